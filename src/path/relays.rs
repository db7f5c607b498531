//! The relay sessions to one peer: bound one after another until the peer is met in one.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::StreamId;
use crate::base::time::Now;
use crate::base::transmit::Dial;
use crate::base::transmit::Gone;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Via;
use crate::identity::names::MemberName;
use crate::path::Ctx;
use crate::path::RelayGrant;
use crate::path::health::Carrying;
use crate::path::health::Duty;
use crate::path::health::Health;
use crate::path::leg::Leg;
use crate::path::splice::Splice;
use crate::punch::keys::Numbers;
use crate::punch::keys::PairKeys;
use crate::punch::plan;
use crate::relay::client;
use crate::wire::stun;

/// Relay sessions per peer: the one in use and those of newer introductions.
pub(super) const MAX_RELAYED: usize = 3;
/// A relay session that nobody was met in is given up after this: the life of an introduction at the broker.
const TRIAL: Duration = Duration::from_secs(30);
/// Nobody met at the first relay of an introduction for this long: both sides go to the second. Longer than a bind and a
/// probe over any but satellite lines, TCP included.
const NEXT_AFTER: Duration = Duration::from_millis(1500);

/// Relay sessions, at most [`MAX_RELAYED`], and what is in reserve.
#[derive(Debug, Default)]
pub(super) struct Relays {
    sessions: Vec<Session>,
    reserve: Option<Reserve>,
    orders: VecDeque<StreamOrder>,
    trouble: Option<String>,
    /// A direct way is proven: no gate is dialled.
    settled: bool,
}

#[derive(Debug)]
struct Session {
    name: MemberName,
    keys: PairKeys,
    side: client::Side,
    bound: Option<(Leg, Health)>,
    splice: Splice,
    /// The other side has called us to its gate.
    summoned: bool,
    /// Whether the peer was heard in this session.
    met: bool,
    /// It went silent, and the relay was asked whether it still knows us.
    doubted: bool,
    born: Instant,
    /// Which of the relays of its introduction: the first to use, the others in case it fails.
    rank: u8,
}

/// The other relays of the newest introduction.
#[derive(Debug)]
struct Reserve {
    due: Instant,
    rank: u8,
    keys: PairKeys,
    grants: VecDeque<RelayGrant>,
}

impl Relays {
    /// Goes to the first of `grants`; the others are in reserve.
    pub(super) fn bind(
        &mut self,
        grants: Vec<RelayGrant>,
        keys: &PairKeys,
        carrier: Option<Leg>,
        ctx: &mut Ctx<'_>,
    ) {
        let mut grants = VecDeque::from(grants);
        match grants.pop_front() {
            Some(grant) => self.open(&grant, 0, keys.clone(), carrier, ctx),
            None if carrier.is_none() => self.trouble = Some("the network has no relay".to_owned()),
            None => {}
        }
        let due = ctx.now.instant + NEXT_AFTER;
        self.reserve = (!grants.is_empty()).then(|| Reserve { due, rank: 1, keys: keys.clone(), grants });
    }

    /// Lets time pass in every session, and sends what is due; `settled` if a relay is not needed any more.
    pub(super) fn drive(&mut self, settled: bool, carrier: Option<Leg>, ctx: &mut Ctx<'_>) {
        self.settled = settled;
        self.open_reserve(settled, carrier, ctx);
        let best = self.best_session(true).map(|session| session.born);
        for session in &mut self.sessions {
            session.doubt(ctx.now);
            if let Some(client::Event::Lost(why)) = session.side.handle_timeout(ctx.now) {
                self.trouble = Some(why.to_string());
            }
            while let Some(order) = session.side.poll_order() {
                self.orders.push_back(match order {
                    client::Order::Open(to) => {
                        let id = next_stream(ctx);
                        session.side.on_stream_named(id);
                        StreamOrder::Open(id, Dial::relay(to))
                    }
                    client::Order::Close(id) => StreamOrder::Close(id),
                });
            }
            while let Some((via, to, message)) = session.side.poll_transmit() {
                ctx.outbox.push(via, to, &message);
            }
            session.drive_splice(!settled && best == Some(session.born), &mut self.orders, ctx);
        }
        self.sync(ctx.now.instant);
        self.sessions.retain(|session| !session.is_lost());
    }

    /// Sends the probes that are due.
    pub(super) fn probe(&mut self, carrying: Option<Carrying>, numbers: &mut Numbers, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        for session in &mut self.sessions {
            let bound = session.bound.as_mut().map(|(leg, health)| (*leg, health));
            for (leg, health) in bound.into_iter().chain(session.splice.way_mut()) {
                health.on_lifetime(ctx.lifetime(leg));
                if health.next_probe(Duty::of(leg, carrying)) <= now {
                    let id = numbers.next(ctx.rng);
                    leg.push(ctx.outbox, &session.keys.request(id, 0));
                    health.on_probe(id, now);
                }
            }
        }
    }

    /// Whether a message of a relay's own protocol may be for one of the sessions.
    pub(super) fn awaits(&self, via: Via, from: SocketAddr, message: &stun::Message) -> bool {
        self.sessions.iter().any(|session| session.side.awaits(via, from, message))
    }

    /// A message of a relay's own protocol. False if no session waits for it.
    pub(super) fn handle_answer(
        &mut self,
        via: Via,
        from: SocketAddr,
        received: &stun::Received<'_>,
        now: Now,
    ) -> bool {
        let mut answered = false;
        for session in &mut self.sessions {
            let event = session.side.handle_response(via, from, received, now);
            if event == Some(client::Event::Summoned) {
                session.splice.on_summoned(now.instant);
                session.summoned = true;
            }
            answered |= event.is_some();
        }
        self.sync(now.instant);
        answered
    }

    /// What became of a stream of ours.
    pub(super) fn handle_stream(&mut self, id: StreamId, news: Result<(), Gone>, now: Now) {
        let spliced = |s: &mut Session| s.splice.handle_stream(id, news.is_ok(), now.instant);
        if let Some(session) = self.sessions.iter_mut().find_map(|s| spliced(s).then_some(s)) {
            if news.is_err() {
                session.fall_back(now.instant);
            }
            return;
        }
        let news =
            news.map_or_else(|gone| client::StreamNews::Closed(gone.text), |()| client::StreamNews::Opened);
        let Some(session) = self.sessions.iter_mut().find(|s| s.side.owns_stream(id)) else { return };
        if let Some(client::Event::Lost(why)) = session.side.handle_stream(id, news, now) {
            self.trouble = Some(why.to_string());
        }
        self.sync(now.instant);
    }

    /// Nothing is certain any more: binds again at once.
    pub(super) fn handle_doubt(&mut self, now: Now) {
        for session in &mut self.sessions {
            session.side.handle_doubt(now);
        }
    }

    /// The peer was heard by `leg`.
    pub(super) fn on_heard(&mut self, leg: Leg) {
        if let Some(session) = self.sessions.iter_mut().find(|session| session.owns(leg)) {
            session.met = true;
        }
    }

    /// The best way of the best session that works and in which the peer was met (or, without `met`, was not yet): the
    /// kernel's where it is proven, else the channel.
    pub(super) fn best(&self, met: bool) -> Option<Leg> {
        let session = self.best_session(met)?;
        session.splice.proven().or_else(|| session.bound.as_ref().map(|(leg, _)| *leg))
    }

    /// Of the newest introduction whose sessions work, the first relay that does.
    fn best_session(&self, met: bool) -> Option<&Session> {
        let fit = self.sessions.iter().filter(|session| session.met == met && session.works());
        fit.max_by_key(|session| (self.began(session), Reverse(session.rank)))
    }

    /// When the introduction of a session came.
    fn began(&self, session: &Session) -> Option<Instant> {
        let attempt = session.keys.attempt();
        self.sessions.iter().filter(|other| other.keys.attempt() == attempt).map(|other| other.born).min()
    }

    /// Whether `leg` leads to the peer by way of a relay.
    pub(super) fn owns(&self, leg: Leg) -> bool {
        leg.channel.is_some() || self.sessions.iter().any(|session| session.owns(leg))
    }

    /// Whether `leg` is a connection that a relay's kernel carries.
    pub(super) fn is_spliced(&self, leg: Leg) -> bool {
        leg.channel.is_none() && self.owns(leg)
    }

    /// Drops what is no longer worth its probes, or all. Beside a direct way the best session is kept warm, and where a
    /// relay carries, another one of the same introduction, in case it dies; others only while they are young.
    pub(super) fn forget(&mut self, all: bool, carrier: Option<Leg>, now: Instant) {
        let best = self.best_session(true).map(|s| (s.born, s.keys.attempt()));
        let relayed = carrier.is_some_and(|leg| self.owns(leg));
        let keep = |s: &Session| {
            let in_use = carrier.is_some_and(|leg| s.owns(leg));
            let warm = best.is_some_and(|(born, attempt)| {
                s.born == born || relayed && s.works() && s.keys.attempt() == attempt
            });
            !all && (in_use || warm || now < s.born + TRIAL)
        };
        let (kept, dropped): (Vec<Session>, Vec<Session>) = self.sessions.drain(..).partition(keep);
        self.sessions = kept;
        dropped.into_iter().for_each(|old| self.release(old));
        if all {
            self.reserve = None;
        }
    }

    /// Why there is no relay, in words, if something went wrong since the last call.
    pub(super) fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    pub(super) fn poll_order(&mut self) -> Option<StreamOrder> {
        self.orders.pop_front()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.sessions.iter().filter_map(|session| session.side.poll_timeout());
        let best = self.best_session(true).map(|session| session.born);
        let dials = self.sessions.iter().filter(|session| best == Some(session.born) && !self.settled);
        let dials = dials.filter_map(|session| session.gate().and_then(|_| session.splice.due()));
        sessions.chain(dials).chain(self.reserve.as_ref().map(|reserve| reserve.due)).min()
    }

    /// The name of the relay behind `leg`.
    pub(super) fn name_of(&self, leg: Leg) -> Option<&MemberName> {
        self.sessions.iter().find(|session| session.owns(leg)).map(|session| &session.name)
    }

    /// Our address as a relay sees it over UDP.
    pub(super) fn mapped(&self) -> Option<SocketAddr> {
        let bound = self.sessions.iter().filter_map(|session| session.side.bound());
        bound.filter(|bound| matches!(bound.via, Via::Udp(_))).map(|bound| bound.mapped).next()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The keys of every session, bound or not.
    pub(super) fn keys(&self) -> impl Iterator<Item = &PairKeys> {
        self.sessions.iter().map(|session| &session.keys)
    }

    pub(super) fn healths(&self) -> impl Iterator<Item = (Leg, &PairKeys, &Health)> {
        self.sessions.iter().flat_map(|s| {
            let bound = s.bound.as_ref().map(|(leg, health)| (*leg, health));
            bound.into_iter().chain(s.splice.way()).map(|(leg, health)| (leg, &s.keys, health))
        })
    }

    pub(super) fn healths_mut(&mut self) -> impl Iterator<Item = (Leg, &mut Health)> {
        self.sessions.iter_mut().flat_map(|s| {
            let bound = s.bound.as_mut().map(|(leg, health)| (*leg, health));
            bound.into_iter().chain(s.splice.way_mut())
        })
    }

    /// Binds at the next relay of the introduction too, unless a direct path was found meanwhile: nobody may be met at the
    /// first one, or it may die later.
    fn open_reserve(&mut self, settled: bool, carrier: Option<Leg>, ctx: &mut Ctx<'_>) {
        let Some(mut reserve) = self.reserve.take_if(|reserve| settled || reserve.due <= ctx.now.instant)
        else {
            return;
        };
        let Some(grant) = reserve.grants.pop_front().filter(|_| !settled) else { return };
        self.open(&grant, reserve.rank, reserve.keys.clone(), carrier, ctx);
        reserve.due = ctx.now.instant + NEXT_AFTER;
        reserve.rank = reserve.rank.saturating_add(1);
        self.reserve = Some(reserve).filter(|reserve| !reserve.grants.is_empty());
    }

    fn open(
        &mut self,
        grant: &RelayGrant,
        rank: u8,
        keys: PairKeys,
        carrier: Option<Leg>,
        ctx: &mut Ctx<'_>,
    ) {
        let mut offer = grant.offer.clone();
        offer.endpoints.retain(|e| plan::is_relay(ctx.local, e.transport, e.addr));
        plan::order_relay(ctx.local, &mut offer.endpoints);
        let mut side = match client::Side::new(&offer, ctx.wg, &grant.certificate, ctx.now, ctx.rng.fork()) {
            Ok(side) => side,
            Err(why) => {
                self.trouble = Some(why.to_string());
                return;
            }
        };
        if ctx.local.udp_blocked {
            side.handle_udp_blocked(ctx.now);
        }
        while self.sessions.len() >= MAX_RELAYED {
            let spare = self.sessions.iter().position(|s| !carrier.is_some_and(|leg| s.owns(leg)));
            let old = self.sessions.remove(spare.unwrap_or(0));
            self.release(old);
        }
        let name = grant.certificate.subject.uri.name.clone();
        self.sessions.push(Session {
            name,
            keys,
            side,
            bound: None,
            splice: Splice::new(ctx.now.instant),
            summoned: false,
            met: false,
            doubted: false,
            born: ctx.now.instant,
            rank,
        });
    }

    fn sync(&mut self, now: Instant) {
        self.sessions.iter_mut().for_each(|session| session.sync(now));
    }

    fn release(&mut self, mut session: Session) {
        self.orders.extend(session.splice.stream().map(StreamOrder::Close));
        session.side.close();
        while let Some(order) = session.side.poll_order() {
            if let client::Order::Close(id) = order {
                self.orders.push_back(StreamOrder::Close(id));
            }
        }
    }
}

impl Session {
    /// Whether `leg` is this session's channel, or its connection through the relay's kernel.
    fn owns(&self, leg: Leg) -> bool {
        let spliced = self.splice.way().is_some_and(|(at, _)| at == leg);
        spliced || self.bound.as_ref().is_some_and(|(at, _)| *at == leg)
    }

    /// Whether it could carry now.
    fn works(&self) -> bool {
        self.splice.proven().is_some() || self.bound.as_ref().is_some_and(|(_, health)| !health.is_dead())
    }

    /// Where the relay's kernel would take a connection of ours.
    fn gate(&self) -> Option<SocketAddr> {
        let bound = self.side.bound()?;
        bound.gate.map(|gate| SocketAddr::new(bound.endpoint.ip(), gate.port))
    }

    /// Dials the gate if it is time, because this session is `wanted` or the other side is there already; ends a connection
    /// that is dead.
    fn drive_splice(&mut self, wanted: bool, orders: &mut VecDeque<StreamOrder>, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        if let Some(order) = self.splice.hang_up_if_dead(now) {
            orders.push_back(order);
            self.fall_back(now);
        }
        let Some(gate) = self.gate().filter(|_| wanted || self.summoned) else { return };
        if self.splice.due().is_some_and(|due| due <= now) {
            self.summoned = false;
            orders.extend(self.splice.dial(gate, next_stream(ctx), now));
        }
    }

    /// The kernel's connection is gone. If the relay is, so is the channel: it must answer before it carries.
    fn fall_back(&mut self, now: Instant) {
        if let Some((_, health)) = &mut self.bound {
            health.on_deserted(now);
        }
    }

    /// A silent session may mean a silent peer or a relay that has forgotten us, as after a restart: ask it, once.
    fn doubt(&mut self, now: Now) {
        let silent = self.bound.as_ref().is_some_and(|(_, health)| health.is_dead());
        if silent && !self.doubted {
            self.side.handle_doubt(now);
        }
        self.doubted = silent;
    }

    /// Takes over where the session is bound now. Another leg is another way: what is known of the old one says nothing.
    fn sync(&mut self, now: Instant) {
        let leg = self.side.bound().map(|b| Leg { via: b.via, to: b.endpoint, channel: Some(b.channel) });
        self.bound = match (self.bound.take(), leg) {
            (_, None) => None,
            (Some((old, health)), Some(leg)) if old == leg => Some((leg, health)),
            (_, Some(leg)) => Some((leg, Health::new(now))),
        };
    }

    /// Given up: not bound, and nothing under way that could change it.
    fn is_lost(&self) -> bool {
        self.bound.is_none() && self.side.poll_timeout().is_none() && !self.side.is_opening()
    }
}

/// A number for a stream; the top half of the range is the doors' own, for accepted streams.
fn next_stream(ctx: &mut Ctx<'_>) -> StreamId {
    let id = StreamId(*ctx.next_stream);
    *ctx.next_stream = (*ctx.next_stream + 1) & 0x7fff_ffff;
    id
}
