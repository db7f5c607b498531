//! The relay itself: bind requests in, answers and forwarded messages out; never a socket.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::base::addr::canonical;
use crate::base::ecn::Ecn;
use crate::base::id::RelaySession;
use crate::base::id::SocketId;
use crate::base::id::StreamId;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::base::schedule::Bucket;
use crate::base::time::Now;
use crate::base::time::UnixTime;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::identity::agreement::Agreements;
use crate::identity::keys::WgPublic;
use crate::identity::keys::WgSecret;
use crate::identity::keys::verify_signature;
use crate::relay::backend::Backend;
use crate::relay::backend::Facts;
use crate::relay::backend::Why;
use crate::relay::backend::choose;
use crate::relay::client::KEY_LABEL;
use crate::relay::flows::Flows;
use crate::relay::sources::Sources;
use crate::relay::splices::Dialled;
use crate::relay::splices::Kernel;
use crate::relay::splices::Order;
use crate::relay::splices::Splices;
use crate::relay::table::Claim;
use crate::relay::table::Door;
use crate::relay::table::End;
use crate::relay::table::Pass;
use crate::relay::table::Reject;
use crate::relay::table::Seat;
use crate::relay::table::Spot;
use crate::relay::table::Table;
use crate::wire::demux;
use crate::wire::frame;
use crate::wire::relay::Channel;
use crate::wire::relay::Flow;
use crate::wire::relay::Gate;
use crate::wire::relay::HEADER_LEN;
use crate::wire::relay::SignedToken;
use crate::wire::relay::split;
use crate::wire::stun;
use crate::wire::syn::Syn;
use crate::wire::syn::TooBig;

/// Largest bind request, bytes; a real one is below 300.
const MAX_BIND: usize = 512;
/// Largest relayed message that goes into a datagram, header included, bytes: what an Ethernet of 1,500 leaves after 20
/// of IPv4 and 8 of UDP. Members do not send longer ones into a session whose other side may be on UDP.
pub const MAX_DATAGRAM: usize = 1472;
/// How far a member's clock may be from the relay's; as for certificates.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// How often the table is looked through while there is something in it: deadlines are kept to this precision.
const SWEEP: Duration = Duration::from_secs(1);
/// Signature checks for tokens that are not on record, a second, over all sources of one transport: at 0.1 ms each a fifth
/// of a core. Who is bound already is not counted.
const CHECKS_PER_SECOND: u32 = 2000;

/// What a relay gives at most.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Sessions.
    pub max_sessions: usize,
    /// Sessions that one member has a side in.
    pub max_sessions_per_member: usize,
    /// Bytes a second that both sides of a session may send together; `None`: as many as they like.
    pub bytes_per_second: Option<u32>,
    /// Open streams.
    pub max_streams: usize,
    /// Open streams over which nobody is bound; beyond, the oldest is closed.
    pub max_idle_streams: usize,
    /// The same for one source address (IPv6: one /64); beyond, the newest is closed.
    pub max_idle_streams_per_source: usize,
    /// First binds of one source address (IPv6: one /64) at once.
    pub bind_burst: u32,
    /// First binds of one source address a second, in the long run.
    pub binds_per_second: f64,
    /// Source addresses whose rate is remembered.
    pub max_sources: usize,
    /// Bytes that wait for sides that are not there yet, over all sessions.
    pub max_held_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_sessions: 10_000,
            max_sessions_per_member: 64,
            bytes_per_second: None,
            max_streams: 20_000,
            max_idle_streams: 256,
            max_idle_streams_per_source: 64,
            bind_burst: 64,
            binds_per_second: 16.0,
            max_sources: 8192,
            max_held_bytes: 1 << 20,
        }
    }
}

/// What a relay has done since it started, and what it holds now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Sessions now.
    pub sessions: usize,
    /// Streams now.
    pub streams: usize,
    /// Binds answered, refreshes included.
    pub binds: u64,
    /// Messages handed on.
    pub messages: u64,
    /// Their payload's bytes.
    pub bytes: u64,
    /// Messages kept for a side that was not there yet.
    pub held: u64,
    /// Dropped: no message that a relay takes.
    pub garbage: u64,
    /// Dropped: token or proof is not good here.
    pub forged: u64,
    /// Dropped: token or time has run out.
    pub expired: u64,
    /// Dropped: seen before, or older than what was seen.
    pub replayed: u64,
    /// Dropped: more first binds than the source, or everybody together, may ask for.
    pub limited: u64,
    /// Dropped or closed: no room.
    pub full: u64,
    /// Dropped: a relayed message of somebody who is not bound there.
    pub unbound: u64,
    /// Dropped: more bytes than the session may send.
    pub over_rate: u64,
    /// Dropped: too long for a datagram.
    pub too_long: u64,
    /// Dropped: marked as congested, which the stream on the other side cannot say.
    pub congested: u64,
    /// Streams closed because nobody bound over them in time.
    pub streams_expired: u64,
    /// Sessions whose TCP connection the kernel carries now.
    pub spliced: usize,
    /// Sessions whose UDP messages the kernel carries now.
    pub joined: usize,
    /// TCP connections that were joined by the kernel backend.
    pub splices: u64,
    /// Dropped: what its kernel, or two connections that do not fit together, would not let be joined.
    pub unspliced: u64,
}

/// One session, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionView {
    /// Which.
    pub id: RelaySession,
    /// Where its two sides are bound from, if they are.
    pub sides: [Option<(Via, SocketAddr)>; 2],
    /// What carries it.
    pub backend: Backend,
    /// Why.
    pub why: Why,
}

impl Stats {
    /// Messages that were dropped, whatever the reason.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.garbage
            + self.forged
            + self.expired
            + self.replayed
            + self.limited
            + self.full
            + self.unbound
            + self.over_rate
            + self.too_long
            + self.congested
            + self.unspliced
    }
}

/// A relay.
pub struct Relay {
    wg: Agreements,
    public: WgPublic,
    brokers: BTreeSet<[u8; 32]>,
    table: Table,
    splices: Splices,
    flows: Flows,
    limited: bool,
    /// For datagrams, whose source anybody can forge, and for streams, whose source is proven: who floods the first in
    /// somebody's name leaves them the second.
    over_udp: Budget,
    over_tcp: Budget,
    rng: Rng,
    stats: Stats,
    sweep_at: Option<Instant>,
    closing: VecDeque<StreamId>,
}

/// How many signatures are checked for strangers.
struct Budget {
    sources: Sources,
    all: Bucket,
}

impl Budget {
    fn new(config: &Config, now: Instant) -> Self {
        Self {
            sources: Sources::new(config.max_sources, config.bind_burst, config.binds_per_second),
            all: Bucket::new(CHECKS_PER_SECOND, f64::from(CHECKS_PER_SECOND), now),
        }
    }

    fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.sources.take(ip, now) && self.all.take(now)
    }
}

impl Relay {
    /// A relay that believes no broker yet. `secret` belongs to the X25519 key in its certificate.
    #[must_use]
    pub fn new(config: Config, secret: WgSecret, seed: Seed, now: Now) -> Self {
        Self {
            public: secret.public(),
            wg: Agreements::new(secret),
            brokers: BTreeSet::new(),
            table: Table::new(config),
            splices: Splices::new(),
            flows: Flows::default(),
            limited: config.bytes_per_second.is_some(),
            over_udp: Budget::new(&config, now.instant),
            over_tcp: Budget::new(&config, now.instant),
            rng: Rng::new(seed),
            stats: Stats::default(),
            sweep_at: None,
            closing: VecDeque::new(),
        }
    }

    /// From now on, tokens signed by this Ed25519 key (of a broker's certificate) open sessions.
    pub fn authorise_broker(&mut self, key: [u8; 32]) {
        self.brokers.insert(key);
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            sessions: self.table.sessions(),
            streams: self.table.streams(),
            spliced: self.splices.count(),
            joined: self.flows.count(),
            ..self.stats
        }
    }

    /// From now on there is a kernel backend, and sessions are offered gates at it.
    pub fn set_kernel(&mut self, kernel: Kernel) {
        self.splices.set_kernel(kernel);
    }

    /// What carries which session, and why: at most `most` of them.
    #[must_use]
    pub fn sessions(&self, most: usize) -> Vec<SessionView> {
        let view = |(slot, id)| {
            let (backend, why) = self.backend(slot);
            let sides = self.table.sides(slot).map(|spot| spot.map(|spot| (spot.door.via, spot.door.addr)));
            SessionView { id, sides, backend, why }
        };
        self.table.all().take(most).map(view).collect()
    }

    /// Whether somebody is bound there, and speaks in this channel.
    #[must_use]
    pub fn is_bound(&self, via: Via, from: SocketAddr, channel: Channel) -> bool {
        let door = Door { via, addr: canonical(from) };
        self.table.seat(&Spot { door, channel }).is_some()
    }

    /// Takes in a frame of a stream that was accepted.
    pub fn handle_frame(&mut self, id: StreamId, bytes: &[u8], now: Now, out: &mut Outbox) {
        if let Some(from) = self.table.far_end(id) {
            self.handle_message(Via::Stream(id), from, Ecn::NotCapable, bytes, now, out);
        }
    }

    /// Takes in a datagram, or a frame whose sender the caller knows. The congestion mark goes on with what is forwarded.
    pub fn handle_message(
        &mut self,
        via: Via,
        from: SocketAddr,
        ecn: Ecn,
        bytes: &[u8],
        now: Now,
        out: &mut Outbox,
    ) {
        let door = Door { via, addr: canonical(from) };
        let done = match demux::kind(bytes) {
            demux::Kind::Relay => self.forward(door, ecn, bytes, now.instant, out),
            demux::Kind::Stun => self.bind(door, bytes, now, out),
            demux::Kind::Noise | demux::Kind::Unknown => Err(Reject::Garbage),
        };
        if let Err(reject) = done {
            self.count(reject);
        }
        self.keep_sweeping(now);
    }

    /// Takes in a packet that the kernel backend has seen at one of its ports: a SYN, or a router's word about one that was
    /// too big. Anybody may have sent it.
    pub fn handle_tapped(&mut self, packet: &[u8], now: Now, out: &mut Outbox) {
        let done = match Syn::parse(packet) {
            Ok(syn) => self.splices.handle_syn(syn, now.instant).map(|(seat, dialled)| {
                if dialled == Dialled::Waits {
                    self.summon(seat.other(), out);
                }
            }),
            Err(_) => match TooBig::parse(packet) {
                Ok(word) => self.splices.handle_too_big(&word),
                Err(_) => Err(Reject::Garbage),
            },
        };
        if let Err(reject) = done {
            self.count(reject);
        }
    }

    /// What became of [`Order::Splice`].
    pub fn handle_spliced(&mut self, number: u32, done: bool) {
        self.splices.handle_spliced(number, done);
        if done {
            self.stats.splices += 1;
        } else {
            self.count(Reject::Unspliced);
        }
    }

    /// What became of [`Order::Join`].
    pub fn handle_joined(&mut self, number: u32, done: bool) {
        self.flows.handle_joined(number, done);
        if !done {
            self.count(Reject::Unspliced);
        }
    }

    /// The next piece of work for the kernel backend.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.splices.poll_order().or_else(|| self.flows.poll_order())
    }

    /// A stream was accepted.
    pub fn handle_stream_accepted(&mut self, id: StreamId, from: SocketAddr, now: Now) {
        if let Some(loser) = self.table.accept(id, canonical(from), now.instant) {
            self.closing.push_back(loser);
            self.count(Reject::Full);
        }
        self.keep_sweeping(now);
    }

    /// A stream is gone, by the other end's will.
    pub fn handle_stream_closed(&mut self, id: StreamId) {
        self.table.drop_stream(id);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.sweep_at.take_if(|at| *at <= now.instant).is_none() {
            return;
        }
        let late = self.table.sweep(now.instant);
        self.stats.streams_expired += late.len() as u64;
        self.closing.extend(late);
        for slot in self.table.take_vacated() {
            self.splices.end(slot);
            self.flows.set(slot, None);
        }
        self.keep_sweeping(now);
    }

    /// When [`Relay::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// The next stream to close.
    pub fn poll_close(&mut self) -> Option<StreamId> {
        self.closing.pop_front()
    }

    fn forward(
        &mut self,
        door: Door,
        ecn: Ecn,
        bytes: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) -> Result<(), Reject> {
        let (channel, payload) = split(bytes).map_err(|_| Reject::Garbage)?;
        let seat = self.table.seat(&Spot { door, channel }).ok_or(Reject::Unbound)?;
        if let Some(spot) = self.table.cross(seat, bytes.len(), now)? {
            return self.deliver(spot, ecn, payload, out);
        }
        self.table.hold(seat, payload, now)?;
        self.stats.held += 1;
        Ok(())
    }

    fn deliver(&mut self, spot: Spot, ecn: Ecn, payload: &[u8], out: &mut Outbox) -> Result<(), Reject> {
        let len = HEADER_LEN + payload.len();
        let longest = match spot.door.via {
            Via::Udp(_) => MAX_DATAGRAM,
            Via::Stream(_) => frame::MAX_PAYLOAD,
        };
        if len > longest {
            return Err(Reject::TooLong);
        }
        // Whoever sent it must hear of the congestion, by a loss where a mark cannot go on (RFC 6040 4.2).
        if ecn == Ecn::Congested && matches!(spot.door.via, Via::Stream(_)) {
            return Err(Reject::Congested);
        }
        let write = |slot: &mut [u8]| {
            let (head, rest) = slot.split_first_chunk_mut::<HEADER_LEN>()?;
            *head = spot.channel.header();
            rest.copy_from_slice(payload);
            Some(len)
        };
        if out.fill(spot.door.via, spot.door.addr, len, write).is_some() {
            out.mark(ecn);
            self.stats.messages += 1;
            self.stats.bytes += payload.len() as u64;
        }
        Ok(())
    }

    /// The cheap questions first; a signature is checked only for a token that is not on record; nothing is answered
    /// before the sender has proven that it holds the token's key.
    fn bind(&mut self, door: Door, bytes: &[u8], now: Now, out: &mut Outbox) -> Result<(), Reject> {
        if bytes.len() > MAX_BIND {
            return Err(Reject::Garbage);
        }
        let request = stun::Received::parse(bytes).map_err(|_| Reject::Garbage)?;
        let (token, stamp) = read_bind(&request.message).ok_or(Reject::Garbage)?;
        let signed = SignedToken::parse(token).map_err(|_| Reject::Garbage)?;
        let session = signed.token.session;
        let end = End::of(signed.token.side).ok_or(Reject::Garbage)?;
        if signed.token.relay != self.public {
            return Err(Reject::Forged);
        }
        let at = UnixTime::from_epoch(Duration::from_micros(stamp));
        if at.since(now.unix).max(now.unix.since(at)) > CLOCK_SKEW {
            return Err(Reject::Expired);
        }
        let on_record = self.table.pass(session, end).filter(|pass| *pass.token == *token);
        let (key, pass) = match on_record {
            Some(pass) => (pass.key.clone(), None),
            None => {
                let pass = self.check_token(&signed, token, door, now)?;
                (pass.key.clone(), Some(pass))
            }
        };
        if !request.is_authentic(&*key) {
            return Err(Reject::Forged);
        }
        let claim = Claim { session, end, pass, stamp, door };
        let (seat, channel) = self.table.bind(claim, now.instant, &mut self.rng)?;
        let gate = self.gate(seat, door);
        out.push(door.via, door.addr, &answer(&request.message, door.addr, channel, gate, &key));
        self.stats.binds += 1;
        self.flows.set(seat.slot, self.flow(seat.slot));
        for payload in self.table.take_held(seat, now.instant) {
            if let Err(reject) = self.deliver(Spot { door, channel }, Ecn::NotCapable, &payload, out) {
                self.count(reject);
            }
        }
        Ok(())
    }

    /// Where this side may dial for a kernel's splice, if it may.
    fn gate(&mut self, seat: Seat, door: Door) -> Option<Gate> {
        match choose(&self.facts(seat.slot)) {
            (Backend::Kernel, _) => self.splices.gate(seat, door.addr.ip(), &mut self.rng),
            (Backend::Userspace, _) => None,
        }
    }

    /// The other side is dialling: so should this one.
    fn summon(&mut self, seat: Seat, out: &mut Outbox) {
        let Some((Spot { door, .. }, key)) = self.table.bound(seat) else { return };
        let key = *key;
        let Some(gate) = self.gate(seat, door) else { return };
        let message = stun::Message {
            class: stun::Class::Indication,
            method: stun::RELAY_BIND,
            transaction: stun::TransactionId(self.rng.bytes()),
            attributes: vec![stun::Attribute::RelaySplice(gate)],
        };
        out.push(door.via, door.addr, &message.emit(stun::Integrity::Sha256(&key)));
    }

    /// What the kernel could carry of this session as it is bound now.
    fn flow(&self, slot: usize) -> Option<Flow> {
        let [Some(first), Some(second)] = self.table.sides(slot) else { return None };
        let Via::Udp(SocketId(socket)) = first.door.via else { return None };
        if first.channel != second.channel || first.door.via != second.door.via {
            return None;
        }
        if choose(&self.facts(slot)).0 != Backend::Kernel {
            return None;
        }
        let at = *self.splices.kernel()?.doors.get(usize::try_from(socket).ok()?)?;
        Some(Flow { first: first.door.addr, second: second.door.addr, at, channel: first.channel })
    }

    fn facts(&self, slot: usize) -> Facts {
        let sides = self.table.sides(slot).map(|spot| spot.map(|spot| spot.door.addr.ip()));
        let here =
            |ip: &IpAddr| ip.is_loopback() || self.splices.kernel().is_some_and(|k| k.here.contains(ip));
        Facts {
            kernel: self.splices.kernel().is_some(),
            limited: self.limited,
            sides,
            same_machine: sides.iter().flatten().any(here),
        }
    }

    fn backend(&self, slot: usize) -> (Backend, Why) {
        match (self.splices.state(slot), self.flows.state(slot)) {
            (Ok(()), _) => (Backend::Kernel, Why::Spliced),
            (_, Ok(())) => (Backend::Kernel, Why::Joined),
            (Err(Some(why)), _) | (_, Err(Some(why))) => (Backend::Userspace, why),
            (Err(None), Err(None)) => (Backend::Userspace, choose(&self.facts(slot)).1),
        }
    }

    fn check_token(
        &mut self,
        signed: &SignedToken,
        token: &[u8],
        door: Door,
        now: Now,
    ) -> Result<Pass, Reject> {
        if signed.token.expires <= now.unix {
            return Err(Reject::Expired);
        }
        let budget = match door.via {
            Via::Udp(_) => &mut self.over_udp,
            Via::Stream(_) => &mut self.over_tcp,
        };
        if !budget.take(door.addr.ip(), now.instant) {
            return Err(Reject::Limited);
        }
        let signs = |broker: &&[u8; 32]| verify_signature(broker, &signed.signed_part, &signed.signature);
        let broker = *self.brokers.iter().find(signs).ok_or(Reject::Forged)?;
        let member = signed.token.member;
        let key = self.wg.derive(member, KEY_LABEL, &signed.token.session.0).ok_or(Reject::Forged)?;
        Ok(Pass { token: token.into(), broker, member, key: Zeroizing::new(key) })
    }

    fn keep_sweeping(&mut self, now: Now) {
        if self.sweep_at.is_none() && !self.table.is_at_rest() {
            self.sweep_at = Some(now.instant + SWEEP);
        }
    }

    fn count(&mut self, reject: Reject) {
        let counter = match reject {
            Reject::Garbage => &mut self.stats.garbage,
            Reject::Forged => &mut self.stats.forged,
            Reject::Expired => &mut self.stats.expired,
            Reject::Replayed => &mut self.stats.replayed,
            Reject::Limited => &mut self.stats.limited,
            Reject::Full => &mut self.stats.full,
            Reject::Unbound => &mut self.stats.unbound,
            Reject::OverRate => &mut self.stats.over_rate,
            Reject::TooLong => &mut self.stats.too_long,
            Reject::Congested => &mut self.stats.congested,
            Reject::Unspliced => &mut self.stats.unspliced,
        };
        *counter += 1;
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("brokers", &self.brokers.len()).field("stats", &self.stats()).finish()
    }
}

/// Token and time of a bind request.
fn read_bind(message: &stun::Message) -> Option<(&[u8], u64)> {
    if message.method != stun::RELAY_BIND || message.class != stun::Class::Request {
        return None;
    }
    let (mut token, mut stamp) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            stun::Attribute::RelayToken(bytes) => token = Some(bytes.as_slice()),
            stun::Attribute::Timestamp(micros) => stamp = Some(*micros),
            _ => {}
        }
    }
    Some((token?, stamp?))
}

fn answer(
    request: &stun::Message,
    mapped: SocketAddr,
    channel: Channel,
    gate: Option<Gate>,
    key: &[u8; 32],
) -> Vec<u8> {
    let mut attributes =
        vec![stun::Attribute::XorMappedAddress(mapped), stun::Attribute::RelayChannel(channel.number())];
    attributes.extend(gate.map(stun::Attribute::RelaySplice));
    let answer = stun::Message {
        class: stun::Class::Success,
        method: request.method,
        transaction: request.transaction,
        attributes,
    };
    answer.emit(stun::Integrity::Sha256(key))
}
