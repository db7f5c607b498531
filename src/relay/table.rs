//! Who is bound where: the sessions and every index over them, with one owner, so that they cannot disagree.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::base::id::RelaySession;
use crate::base::id::StreamId;
use crate::base::rng::Rng;
use crate::base::schedule::Bucket;
use crate::base::transmit::Via;
use crate::identity::keys::WgPublic;
use crate::relay::server::Config;
use crate::relay::sources::source_of;
use crate::wire::frame;
use crate::wire::relay::Channel;

/// A session ends when a side was silent for so long: four refreshes lost, and some.
pub(super) const SILENCE: Duration = Duration::from_secs(120);
/// A stream must carry a valid bind within this time, or it is closed.
pub(super) const STREAM_PATIENCE: Duration = Duration::from_secs(5);
/// Messages for a side that is not there yet wait for so long: the other member binds within a round trip or two.
pub(super) const HOLD: Duration = Duration::from_secs(2);
/// So many messages wait for one side: a handshake with a repetition, and a few packets behind it.
pub(super) const MAX_HELD: usize = 4;
/// So many bytes wait for one side.
pub(super) const MAX_HELD_BYTES: usize = 8 * 1024;
/// How long the times of an ended session are remembered: a bind is valid 5 minutes before and after its time.
const REMEMBER: Duration = Duration::from_secs(600);
/// How often a free channel is guessed before the door counts as full; doors carry a few of the 4,096.
const CHANNEL_TRIES: usize = 64;

/// Why something is dropped. Nobody is told: it is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reject {
    /// No message that a relay takes.
    Garbage,
    /// Not for this relay, not by a broker it believes, not by the token's holder.
    Forged,
    /// The token or the time has run out.
    Expired,
    /// Not newer than what was seen.
    Replayed,
    /// More binds than the source may ask for.
    Limited,
    /// No room for another session, channel, or waiting message.
    Full,
    /// A relayed message of somebody who is not bound.
    Unbound,
    /// More bytes than the session may send.
    OverRate,
    /// Too long for the transport of the other side.
    TooLong,
    /// Marked as congested, which the transport of the other side cannot say.
    Congested,
    /// Two connections that the kernel backend cannot join.
    Unspliced,
}

/// Where a side's messages come from and go to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Door {
    pub(super) via: Via,
    pub(super) addr: SocketAddr,
}

/// What a relayed message is recognised by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Spot {
    pub(super) door: Door,
    pub(super) channel: Channel,
}

/// One of the two ends of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum End {
    First,
    Second,
}

/// One end of one session that exists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Seat {
    pub(super) slot: usize,
    pub(super) end: End,
}

impl Seat {
    /// The other end of the same session.
    pub(super) fn other(self) -> Self {
        Self { end: self.end.other(), ..self }
    }
}

/// A token whose signature was checked, and what follows from it.
pub(super) struct Pass {
    /// Its bytes: a bind with the same ones needs no second check.
    pub(super) token: Box<[u8]>,
    /// The Ed25519 key of the broker that signed it.
    pub(super) broker: [u8; 32],
    /// Its holder.
    pub(super) member: WgPublic,
    /// Between the holder and this relay.
    pub(super) key: Zeroizing<[u8; 32]>,
}

/// A bind whose sender has proven the token.
pub(super) struct Claim {
    pub(super) session: RelaySession,
    pub(super) end: End,
    /// `None`: the one that is on record.
    pub(super) pass: Option<Pass>,
    pub(super) stamp: u64,
    pub(super) door: Door,
}

struct Session {
    id: RelaySession,
    broker: [u8; 32],
    first: Side,
    second: Side,
    meter: Option<Bucket>,
}

struct Side {
    pass: Option<Pass>,
    stamp: u64,
    spot: Option<Spot>,
    /// The channel it had last: kept wherever it goes, as far as possible.
    channel: Option<Channel>,
    heard: Instant,
    held: Held,
}

/// Messages for a side that is not there yet.
#[derive(Default)]
struct Held {
    messages: Vec<Vec<u8>>,
    bytes: usize,
    since: Option<Instant>,
}

struct Stream {
    from: SocketAddr,
    seats: Vec<Seat>,
    /// Since when nothing is bound over it.
    idle_since: Instant,
}

/// The sessions. Invariants: `by_id`, `by_spot`, `per_member` and the seats of `streams` name exactly what stands in
/// `sessions`; `idle` names exactly the streams without a seat.
pub(super) struct Table {
    config: Config,
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    by_id: HashMap<RelaySession, usize>,
    by_spot: HashMap<Spot, Seat>,
    per_member: HashMap<WgPublic, usize>,
    streams: HashMap<StreamId, Stream>,
    idle: BTreeMap<(Instant, StreamId), IpAddr>,
    /// The newest times of sessions that are over, and until when they matter: their binds are not to be replayed.
    ended: HashMap<RelaySession, ([u64; 2], Instant)>,
    ended_order: VecDeque<(Instant, RelaySession)>,
    /// Slots of sessions that have ended since somebody asked.
    vacated: Vec<usize>,
    held_bytes: usize,
}

impl End {
    /// From a token.
    pub(super) fn of(side: u8) -> Option<Self> {
        match side {
            0 => Some(Self::First),
            1 => Some(Self::Second),
            _ => None,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

impl Session {
    fn side(&self, end: End) -> &Side {
        match end {
            End::First => &self.first,
            End::Second => &self.second,
        }
    }

    fn side_mut(&mut self, end: End) -> &mut Side {
        match end {
            End::First => &mut self.first,
            End::Second => &mut self.second,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        [&self.first, &self.second].iter().any(|side| side.heard + SILENCE <= now)
    }
}

impl Side {
    fn new(stamp: u64, now: Instant) -> Self {
        Self { pass: None, stamp, spot: None, channel: None, heard: now, held: Held::default() }
    }
}

impl Table {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            sessions: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            by_spot: HashMap::new(),
            per_member: HashMap::new(),
            streams: HashMap::new(),
            idle: BTreeMap::new(),
            ended: HashMap::new(),
            ended_order: VecDeque::new(),
            vacated: Vec::new(),
            held_bytes: 0,
        }
    }

    /// Sessions that exist.
    pub(super) fn sessions(&self) -> usize {
        self.by_id.len()
    }

    /// Streams that are open.
    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether time changes nothing here.
    pub(super) fn is_at_rest(&self) -> bool {
        self.by_id.is_empty() && self.idle.is_empty() && self.ended_order.is_empty()
    }

    /// A stream was accepted. Answers the stream that must go for it, which may be the new one.
    pub(super) fn accept(&mut self, id: StreamId, from: SocketAddr, now: Instant) -> Option<StreamId> {
        let source = source_of(from.ip());
        let of_source = self.idle.values().filter(|ip| **ip == source).count();
        if of_source >= self.config.max_idle_streams_per_source
            || self.streams.len() >= self.config.max_streams
        {
            return Some(id);
        }
        let oldest = (self.idle.len() >= self.config.max_idle_streams)
            .then(|| self.idle.first_key_value().map(|((_, id), _)| *id))
            .flatten();
        if let Some(oldest) = oldest {
            self.drop_stream(oldest);
        }
        self.streams.insert(id, Stream { from, seats: Vec::new(), idle_since: now });
        self.idle.insert((now, id), source);
        oldest
    }

    /// A stream is gone. Whoever was bound over it keeps the session and may come back another way.
    pub(super) fn drop_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.idle.remove(&(stream.idle_since, id));
        for seat in stream.seats {
            if let Some(spot) = self.side_mut(seat).and_then(|side| side.spot.take()) {
                self.by_spot.remove(&spot);
            }
        }
    }

    /// The far end of a stream.
    pub(super) fn far_end(&self, id: StreamId) -> Option<SocketAddr> {
        self.streams.get(&id).map(|stream| stream.from)
    }

    /// The pass on record for an end of a session.
    pub(super) fn pass(&self, session: RelaySession, end: End) -> Option<&Pass> {
        let slot = *self.by_id.get(&session)?;
        self.sessions.get(slot)?.as_ref()?.side(end).pass.as_ref()
    }

    /// Seats a side, or moves it to where it speaks from now.
    pub(super) fn bind(
        &mut self,
        claim: Claim,
        now: Instant,
        rng: &mut Rng,
    ) -> Result<(Seat, Channel), Reject> {
        let Claim { session, end, pass, stamp, door } = claim;
        if let Via::Stream(id) = door.via
            && !self.streams.contains_key(&id)
        {
            return Err(Reject::Unbound);
        }
        let slot = self.by_id.get(&session).copied();
        let found = slot.and_then(|slot| self.sessions.get(slot)?.as_ref());
        let newcomer = match (found, &pass) {
            (None, None) => return Err(Reject::Unbound),
            (None, Some(pass)) => {
                let [first, second] = self.ended.get(&session).map(|(stamps, _)| *stamps).unwrap_or_default();
                let last = if end == End::First { first } else { second };
                if stamp <= last {
                    return Err(Reject::Replayed);
                }
                if self.sessions() >= self.config.max_sessions {
                    return Err(Reject::Full);
                }
                Some(pass.member)
            }
            (Some(found), _) => {
                let side = found.side(end);
                if stamp <= side.stamp {
                    return Err(Reject::Replayed);
                }
                match (&side.pass, &pass) {
                    (_, Some(new)) if new.broker != found.broker => return Err(Reject::Forged),
                    (Some(old), Some(new)) if old.member != new.member => return Err(Reject::Forged),
                    (None, None) => return Err(Reject::Unbound),
                    (None, Some(new)) => Some(new.member),
                    (Some(_), _) => None,
                }
            }
        };
        if let Some(member) = newcomer
            && self.per_member.get(&member).copied().unwrap_or(0) >= self.config.max_sessions_per_member
        {
            return Err(Reject::Full);
        }
        let side = found.map(|found| found.side(end));
        let (old, last) = side.map_or((None, None), |side| (side.spot, side.channel));
        // Where both sides have the same number, a message is the other's as it is (`relay::flows`).
        let last = last.or_else(|| found.and_then(|found| found.side(end.other()).channel));
        let channel = self.channel_at(door, old, last, rng).ok_or(Reject::Full)?;

        // Nothing can be refused from here on.
        if let Some(member) = newcomer {
            *self.per_member.entry(member).or_insert(0) += 1;
        }
        let slot = match (slot, &pass) {
            (Some(slot), _) => slot,
            (None, Some(pass)) => self.create(session, pass.broker, now),
            (None, None) => return Err(Reject::Unbound),
        };
        let seat = Seat { slot, end };
        let spot = Spot { door, channel };
        if old != Some(spot) {
            self.leave(seat, now);
            self.by_spot.insert(spot, seat);
            if let Via::Stream(id) = door.via
                && let Some(stream) = self.streams.get_mut(&id)
            {
                stream.seats.push(seat);
                self.idle.remove(&(stream.idle_since, id));
            }
        }
        if let Some(side) = self.side_mut(seat) {
            side.spot = Some(spot);
            side.channel = Some(channel);
            side.stamp = stamp;
            side.heard = now;
            if let Some(pass) = pass {
                side.pass = Some(pass);
            }
        }
        Ok((seat, channel))
    }

    /// Where both sides of the session in `slot` are bound.
    pub(super) fn sides(&self, slot: usize) -> [Option<Spot>; 2] {
        let session = self.sessions.get(slot).and_then(Option::as_ref);
        session.map_or([None; 2], |session| [session.first.spot, session.second.spot])
    }

    /// Where the side at `seat` is bound, and the key that it shares with this relay.
    pub(super) fn bound(&self, seat: Seat) -> Option<(Spot, &[u8; 32])> {
        let side = self.sessions.get(seat.slot)?.as_ref()?.side(seat.end);
        Some((side.spot?, &side.pass.as_ref()?.key))
    }

    /// All sessions with their slots.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, RelaySession)> {
        let sessions = self.sessions.iter().enumerate();
        sessions.filter_map(|(slot, session)| Some((slot, session.as_ref()?.id)))
    }

    /// Slots of sessions that have ended since the last call; they may have been filled again.
    pub(super) fn take_vacated(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.vacated)
    }

    /// Who speaks at `spot`.
    pub(super) fn seat(&self, spot: &Spot) -> Option<Seat> {
        self.by_spot.get(spot).copied()
    }

    /// The sender at `seat` has sent a message of `len` bytes: where does it go? `Ok(None)`: the other side is not there.
    pub(super) fn cross(&mut self, seat: Seat, len: usize, now: Instant) -> Result<Option<Spot>, Reject> {
        let session = self.sessions.get_mut(seat.slot).and_then(Option::as_mut).ok_or(Reject::Unbound)?;
        session.side_mut(seat.end).heard = now;
        if let Some(meter) = &mut session.meter
            && !meter.take_some(u32::try_from(len).unwrap_or(u32::MAX), now)
        {
            return Err(Reject::OverRate);
        }
        Ok(session.side(seat.end.other()).spot)
    }

    /// Keeps a message for the side across from `seat` until it binds.
    pub(super) fn hold(&mut self, seat: Seat, payload: &[u8], now: Instant) -> Result<(), Reject> {
        let across = seat.other();
        let room = self.config.max_held_bytes.saturating_sub(self.held_bytes);
        let Some(side) = self.side_mut(across) else { return Err(Reject::Unbound) };
        let held = &mut side.held;
        let (mut freed, fresh) = (0, held.since.is_none_or(|since| since + HOLD > now));
        if !fresh {
            freed = std::mem::take(held).bytes;
        }
        let fits = held.messages.len() < MAX_HELD
            && held.bytes + payload.len() <= MAX_HELD_BYTES
            && payload.len() <= room + freed;
        if fits {
            held.since.get_or_insert(now);
            held.bytes += payload.len();
            held.messages.push(payload.to_vec());
        }
        self.held_bytes = self.held_bytes - freed + if fits { payload.len() } else { 0 };
        if fits { Ok(()) } else { Err(Reject::Full) }
    }

    /// What was kept for the side at `seat`, if it is not too old.
    pub(super) fn take_held(&mut self, seat: Seat, now: Instant) -> Vec<Vec<u8>> {
        let Some(side) = self.side_mut(seat) else { return Vec::new() };
        let held = std::mem::take(&mut side.held);
        self.held_bytes -= held.bytes;
        if held.since.is_some_and(|since| since + HOLD > now) { held.messages } else { Vec::new() }
    }

    /// Ends what is over; answers the streams that are to be closed.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<StreamId> {
        for slot in 0..self.sessions.len() {
            let Some(session) = self.sessions.get(slot).and_then(Option::as_ref) else { continue };
            if session.is_over(now) {
                self.end(slot, now);
                continue;
            }
            for end in [End::First, End::Second] {
                if session_held_since(self.sessions.get(slot), end).is_some_and(|since| since + HOLD <= now) {
                    let _ = self.take_held(Seat { slot, end }, now);
                }
            }
        }
        while self.ended_order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
        let late = |(since, _): &(Instant, StreamId)| *since + STREAM_PATIENCE <= now;
        let closing: Vec<StreamId> =
            self.idle.keys().take_while(|key| late(key)).map(|(_, id)| *id).collect();
        for id in &closing {
            self.drop_stream(*id);
        }
        closing
    }

    fn side_mut(&mut self, seat: Seat) -> Option<&mut Side> {
        Some(self.sessions.get_mut(seat.slot)?.as_mut()?.side_mut(seat.end))
    }

    /// A channel for a side at `door`: the number it had last, or the other side has, if it is free there; else any.
    fn channel_at(
        &self,
        door: Door,
        old: Option<Spot>,
        last: Option<Channel>,
        rng: &mut Rng,
    ) -> Option<Channel> {
        if let Some(old) = old.filter(|old| old.door == door) {
            return Some(old.channel);
        }
        if let Some(last) = last.filter(|last| !self.by_spot.contains_key(&Spot { door, channel: *last })) {
            return Some(last);
        }
        (0..CHANNEL_TRIES)
            .map(|_| Channel::new(u16::try_from(rng.below(0x1000)).unwrap_or(0)))
            .find(|channel| !self.by_spot.contains_key(&Spot { door, channel: *channel }))
    }

    fn create(&mut self, id: RelaySession, broker: [u8; 32], now: Instant) -> usize {
        let meter = self.config.bytes_per_second.map(|rate| {
            // At least two of the largest messages, or they would never pass.
            Bucket::new(rate.max(2 * MAX_MESSAGE), f64::from(rate), now)
        });
        let [first, second] = self.ended.remove(&id).map(|(stamps, _)| stamps).unwrap_or_default();
        let session =
            Session { id, broker, first: Side::new(first, now), second: Side::new(second, now), meter };
        let slot = self.free.pop().unwrap_or(self.sessions.len());
        match self.sessions.get_mut(slot) {
            Some(empty) => *empty = Some(session),
            None => self.sessions.push(Some(session)),
        }
        self.by_id.insert(id, slot);
        slot
    }

    /// Takes a side from where it spoke from.
    fn leave(&mut self, seat: Seat, now: Instant) {
        let Some(spot) = self.side_mut(seat).and_then(|side| side.spot.take()) else { return };
        self.by_spot.remove(&spot);
        let Via::Stream(id) = spot.door.via else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.seats.retain(|other| *other != seat);
        if stream.seats.is_empty() {
            stream.idle_since = now;
            self.idle.insert((now, id), source_of(stream.from.ip()));
        }
    }

    fn end(&mut self, slot: usize, now: Instant) {
        for end in [End::First, End::Second] {
            let seat = Seat { slot, end };
            self.leave(seat, now);
            let _ = self.take_held(seat, now);
        }
        let Some(session) = self.sessions.get_mut(slot).and_then(Option::take) else { return };
        self.free.push(slot);
        self.vacated.push(slot);
        self.by_id.remove(&session.id);
        for pass in [&session.first.pass, &session.second.pass].into_iter().flatten() {
            if let Some(count) = self.per_member.get_mut(&pass.member) {
                *count -= 1;
                if *count == 0 {
                    self.per_member.remove(&pass.member);
                }
            }
        }
        let until = now + REMEMBER;
        self.ended.insert(session.id, ([session.first.stamp, session.second.stamp], until));
        self.ended_order.push_back((until, session.id));
        if self.ended_order.len() > self.config.max_sessions {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((until, id)) = self.ended_order.pop_front() else { return };
        // It may have come back to life and ended once more since.
        if self.ended.get(&id).is_some_and(|(_, at)| *at == until) {
            self.ended.remove(&id);
        }
    }
}

fn session_held_since(session: Option<&Option<Session>>, end: End) -> Option<Instant> {
    session?.as_ref()?.side(end).held.since
}

#[expect(clippy::cast_possible_truncation, reason = "65,600 fits")]
const MAX_MESSAGE: u32 = frame::MAX_PAYLOAD as u32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::id::SocketId;
    use crate::base::rng::Rng;
    use crate::base::rng::Seed;
    use crate::relay::testing::now;

    /// Something that happens to a table.
    #[derive(Clone, Debug)]
    enum Step {
        Accept { stream: u32 },
        Drop { stream: u32 },
        Bind { session: u8, second: bool, member: u8, door: u8 },
        Say { session: u8, second: bool, len: usize },
        Pass { secs: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (0..4_u32).prop_map(|stream| Step::Accept { stream }),
            1 => (0..4_u32).prop_map(|stream| Step::Drop { stream }),
            8 => (0..4_u8, any::<bool>(), 0..3_u8, 0..7_u8)
                .prop_map(|(session, second, member, door)| Step::Bind { session, second, member, door }),
            8 => (0..4_u8, any::<bool>(), 0..5000_usize)
                .prop_map(|(session, second, len)| Step::Say { session, second, len }),
            2 => (0..70_u64).prop_map(|secs| Step::Pass { secs }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_no_index_disagrees_with_the_sessions(
            steps in proptest::collection::vec(step(), 0..120),
        ) {
            let mut table = Table::new(Config {
                max_sessions: 3,
                max_sessions_per_member: 3,
                max_streams: 4,
                max_idle_streams: 2,
                max_held_bytes: 9000,
                ..Config::default()
            });
            let (mut rng, mut at, mut stamp) = (Rng::new(Seed([1; 32])), now().instant, 0);
            for step in steps {
                take(&mut table, &step, &mut at, &mut stamp, &mut rng);
                check(&table);
            }
            at += REMEMBER + SILENCE;
            table.sweep(at);
            table.sweep(at + REMEMBER);
            check(&table);
            prop_assert_eq!((table.sessions(), table.streams(), table.held_bytes), (0, 0, 0));
            prop_assert!(table.is_at_rest() && table.ended.is_empty());
        }
    }

    #[test]
    fn a_door_with_every_channel_taken_takes_no_more() {
        let mut table = Table::new(Config { max_sessions_per_member: usize::MAX, ..Config::default() });
        let (mut rng, at) = (Rng::new(Seed([1; 32])), now().instant);
        let mut seated = 0;
        for n in 0..6000_u16 {
            let [a, b] = n.to_be_bytes();
            let mut claim = claim(0, End::First, 1, door(6), 1);
            claim.session.0[..2].copy_from_slice(&[a, b]);
            match table.bind(claim, at, &mut rng) {
                Ok(_) => seated += 1,
                Err(reject) => assert_eq!(reject, Reject::Full),
            }
        }
        assert!((3500..=4096).contains(&seated), "{seated}");
        check(&table);
    }

    fn take(table: &mut Table, step: &Step, at: &mut Instant, stamp: &mut u64, rng: &mut Rng) {
        match *step {
            Step::Accept { stream } if !table.streams.contains_key(&StreamId(stream)) => {
                let _ = table.accept(StreamId(stream), "192.0.2.1:1".parse().unwrap(), *at);
            }
            Step::Accept { .. } => {}
            Step::Drop { stream } => table.drop_stream(StreamId(stream)),
            Step::Bind { session, second, member, door: number } => {
                *stamp += 1;
                let end = if second { End::Second } else { End::First };
                let wanted = claim(session, end, member, door(number), *stamp);
                if let Ok((seat, channel)) = table.bind(wanted, *at, rng) {
                    assert_eq!(table.seat(&Spot { door: door(number), channel }), Some(seat));
                    let _ = table.take_held(seat, *at);
                }
            }
            Step::Say { session, second, len } => {
                let Some(slot) = table.by_id.get(&RelaySession([session; 16])) else { return };
                let seat = Seat { slot: *slot, end: if second { End::Second } else { End::First } };
                if let Ok(None) = table.cross(seat, len, *at) {
                    let _ = table.hold(seat, &vec![0; len], *at);
                }
            }
            Step::Pass { secs } => {
                *at += Duration::from_secs(secs);
                let _ = table.sweep(*at);
            }
        }
    }

    fn door(number: u8) -> Door {
        let via = match number {
            0..4 => Via::Stream(StreamId(u32::from(number))),
            _ => Via::Udp(SocketId::V4),
        };
        Door { via, addr: SocketAddr::from(([192, 0, 2, number], 1)) }
    }

    fn claim(session: u8, end: End, member: u8, door: Door, stamp: u64) -> Claim {
        let key = Zeroizing::new([member; 32]);
        let pass = Pass { token: Box::new([]), broker: [0; 32], member: WgPublic([member; 32]), key };
        Claim { session: RelaySession([session; 16]), end, pass: Some(pass), stamp, door }
    }

    /// The invariants of [`Table`], counted afresh from the sessions.
    fn check(table: &Table) {
        let (mut spots, mut members, mut seats) = (HashMap::new(), HashMap::new(), BTreeMap::new());
        let (mut sessions, mut held) = (0, 0);
        for (slot, session) in table.sessions.iter().enumerate() {
            let Some(session) = session else {
                assert!(table.free.contains(&slot));
                continue;
            };
            sessions += 1;
            assert_eq!(table.by_id.get(&session.id), Some(&slot));
            for end in [End::First, End::Second] {
                let (side, seat) = (session.side(end), Seat { slot, end });
                if let Some(pass) = &side.pass {
                    *members.entry(pass.member).or_insert(0) += 1;
                }
                if let Some(spot) = side.spot {
                    assert!(spots.insert(spot, seat).is_none(), "two sides at one spot");
                    if let Via::Stream(id) = spot.door.via {
                        seats.entry(id).or_insert_with(Vec::new).push((slot, end as u8));
                    }
                }
                assert_eq!(side.held.bytes, side.held.messages.iter().map(Vec::len).sum::<usize>());
                held += side.held.bytes;
            }
        }
        assert_eq!(table.by_id.len(), sessions);
        assert_eq!(table.free.len() + sessions, table.sessions.len());
        assert_eq!(table.by_spot, spots);
        assert_eq!(table.per_member, members);
        assert_eq!(table.held_bytes, held);
        assert!(held <= table.config.max_held_bytes);
        assert!(sessions <= table.config.max_sessions);
        let mut idle = 0;
        for id in (0..4).map(StreamId) {
            let Some(stream) = table.streams.get(&id) else {
                assert_eq!(seats.get(&id), None, "a seat on a stream that is gone");
                continue;
            };
            let mut named: Vec<_> = stream.seats.iter().map(|seat| (seat.slot, seat.end as u8)).collect();
            named.sort_unstable();
            assert_eq!(named, seats.remove(&id).unwrap_or_default());
            assert_eq!(table.idle.contains_key(&(stream.idle_since, id)), stream.seats.is_empty());
            idle += usize::from(stream.seats.is_empty());
        }
        assert_eq!(table.idle.len(), idle);
    }
}
