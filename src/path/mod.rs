//! Floor 4: which way to one peer, and how to get a better one.
//!
//! A path is two small things: what carries traffic now, and what is being done for something better. Ways come from
//! introductions: each offer of the broker starts an attempt (`punch`), whose answered checks become direct ways, and
//! binds a relay session, which carries meanwhile. Every way is probed under the keys of its introduction, through the
//! relay too, so round trip and loss are measured end to end.
//!
//! Invariants:
//! * Only authentic messages make, move or prove a way, and each only once: a check that is seen again is a replay. An
//!   address from which the peer's own check came may carry at once where nothing better does (that saves half a round
//!   trip on the first packet); it is dropped again if our checks stay unanswered.
//! * Evidence promotes, distress demotes; time alone does neither. Between two direct ways a switch needs a margin.
//! * A lost path never costs the session: keys and counters live in the tunnel, not here.
//! * The relay stays bound while there is traffic, so falling back costs a probe timeout and no introduction.
//! * At most [`MAX_WAYS`] direct ways, [`MAX_RELAYED`] relay sessions and [`MAX_INTRODUCTIONS`] introductions.

pub mod effort;
pub mod health;
pub mod leg;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::id::StreamId;
use crate::base::rng::Rng;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::identity::certificate::Certificate;
use crate::identity::keys::WgPublic;
use crate::identity::keys::WgSecret;
use crate::identity::names::MemberName;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Transport;
use crate::path::effort::Effort;
use crate::path::health::Duty;
use crate::path::health::Health;
use crate::path::leg::Leg;
use crate::punch::attempt::Attempt;
use crate::punch::keys::Check;
use crate::punch::keys::Numbers;
use crate::punch::keys::PairKeys;
use crate::punch::keys::Seen;
use crate::punch::keys::Side;
use crate::punch::plan;
use crate::relay::client as relay;
use crate::wire::broker::RelayOffer;
use crate::wire::stun;
use crate::wire::stun::TransactionId;

/// Direct ways remembered per peer: two families, a few interfaces, the one before.
pub const MAX_WAYS: usize = 8;
/// Relay sessions per peer: the one in use and those of newer introductions.
pub const MAX_RELAYED: usize = 3;
/// Introductions whose keys are believed even if no way uses them: both sides may ask at once, twice, and each may keep
/// the other one's.
pub const MAX_INTRODUCTIONS: usize = 4;
/// Without traffic for this long a path is not worth keeping open.
pub const IDLE_AFTER: Duration = Duration::from_secs(300);
/// A better round trip must be better by this much, and by [`MARGIN_SHARE`], before a direct way is left for another.
const MARGIN: Duration = Duration::from_millis(3);
/// In parts of a hundred of the old round trip.
const MARGIN_SHARE: u32 = 80;
/// Both sides climb the same ladder; one of them waits this much longer, so that one introduction serves both.
const POLITENESS: Duration = Duration::from_millis(1500);
/// A packet of this size must pass unfragmented before the peer's TCP is told of full-sized segments: bytes of padding
/// in a probe that makes an outer IPv4 packet of 1,464 bytes (see `node::outbound`).
const FULL_SIZE_PADDING: u16 = 1320;
/// A relay session that nobody was met in is given up after this: the life of an introduction at the broker.
const RELAY_TRIAL: Duration = Duration::from_secs(30);
/// Full-sized probes per way.
const FULL_SIZE_TRIES: u8 = 3;

/// What a path needs from around it for the length of one call.
pub struct Ctx<'a> {
    /// The moment.
    pub now: Now,
    /// Where messages leave.
    pub outbox: &'a mut Outbox,
    /// Chance.
    pub rng: &'a mut Rng,
    /// Our own key.
    pub wg: &'a WgSecret,
    /// Our own end.
    pub local: &'a plan::Local,
    /// Number of the next stream.
    pub next_stream: &'a mut u32,
}

/// Work on streams that a path asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamOrder {
    /// Open one.
    Open(StreamId, SocketAddr),
    /// Close one.
    Close(StreamId),
}

/// One offer of the broker, with everything in it verified.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Its name.
    pub attempt: AttemptId,
    /// Which side we are.
    pub side: Side,
    /// The peer's addresses.
    pub candidates: Vec<Candidate>,
    /// Relays, best first.
    pub relays: Vec<RelayGrant>,
}

/// A relay session that we may use.
#[derive(Clone, Debug)]
pub struct RelayGrant {
    /// The relay's certificate, verified.
    pub certificate: Certificate,
    /// As the broker offered it.
    pub offer: RelayOffer,
}

/// What carries, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Carrier<'a> {
    /// Straight to the peer, over UDP.
    DirectUdp(SocketAddr),
    /// Straight to the peer, over TCP.
    DirectTcp(SocketAddr),
    /// Through a relay.
    Relay {
        /// The relay's name.
        name: &'a MemberName,
        /// Whether we reach it over TCP.
        tcp: bool,
        /// Its endpoint.
        endpoint: SocketAddr,
    },
    /// Nothing.
    None,
}

/// Which way to one peer.
#[derive(Debug)]
pub struct Path {
    peer: WgPublic,
    polite: bool,
    numbers: Numbers,
    believed: Vec<Believed>,
    attempts: Vec<Attempt>,
    ways: Vec<Way>,
    relayed: Vec<Relayed>,
    carrier: Option<Leg>,
    effort: Effort,
    wanted: Option<Instant>,
    trouble: Option<String>,
    last_tally: Option<(usize, usize, usize)>,
    orders: VecDeque<StreamOrder>,
}

/// An introduction whose keys the peer may use.
#[derive(Debug)]
struct Believed {
    keys: PairKeys,
    seen: Seen,
}

#[derive(Debug)]
struct Way {
    leg: Leg,
    keys: PairKeys,
    health: Health,
    full_size: FullSize,
}

/// Whether full-sized packets are known to pass a way unfragmented.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FullSize {
    Unknown { tries: u8, last: Option<(TransactionId, Instant)> },
    Passes,
}

#[derive(Debug)]
struct Relayed {
    name: MemberName,
    keys: PairKeys,
    side: relay::Side,
    bound: Option<(Leg, Health)>,
    /// Whether the peer was heard in this session.
    met: bool,
    /// The session is over for us.
    lost: bool,
    born: Instant,
}

impl Path {
    /// To a peer that nothing is known of yet. Of two peers, the one with the greater key is the polite one.
    #[must_use]
    pub fn new(peer: WgPublic, own: WgPublic, now: Instant) -> Self {
        Self {
            peer,
            polite: own > peer,
            numbers: Numbers::default(),
            believed: Vec::new(),
            attempts: Vec::new(),
            ways: Vec::new(),
            relayed: Vec::new(),
            carrier: None,
            effort: Effort::fresh(now),
            wanted: None,
            trouble: None,
            last_tally: None,
            orders: VecDeque::new(),
        }
    }

    /// Traffic for the peer, or from it: the path is worth having.
    pub fn handle_demand(&mut self, now: Instant) {
        self.wanted = Some(now);
    }

    /// A message left by `leg`.
    pub fn handle_sent(&mut self, leg: Leg, now: Instant) {
        if let Some(health) = self.health_mut(leg) {
            health.on_sent(now);
        }
    }

    /// An authentic message of the peer's tunnel came by `leg`.
    pub fn handle_heard(&mut self, leg: Leg, now: Instant) {
        if leg.channel.is_some()
            && let Some(direct) = self.carrier.filter(|carrier| carrier.channel.is_none())
            && let Some(health) = self.health_mut(direct)
        {
            health.on_deserted(now);
        }
        self.heard(leg, now);
    }

    fn heard(&mut self, leg: Leg, now: Instant) {
        if let Some(relayed) = self.relayed.iter_mut().find(|r| r.is_bound_to(leg)) {
            relayed.met = true;
        }
        if let Some(health) = self.health_mut(leg) {
            health.on_heard(now);
        }
    }

    /// The broker was asked for an introduction.
    pub fn handle_asked(&mut self, now: Instant) {
        self.effort = self.effort.asked(now);
    }

    /// The broker, or the way to it, failed; in words.
    pub fn handle_refused(&mut self, why: String, now: Instant) {
        self.trouble = Some(why);
        self.effort = self.effort.failed(now);
    }

    /// Something changed that makes old failures meaningless: the peer came online, our network changed.
    pub fn handle_change(&mut self, now: Instant) {
        self.effort = self.effort.refreshed(now);
    }

    /// The local network changed: no way can be trusted to work as before, each is probed at once.
    pub fn handle_network_change(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        for health in self.healths_mut() {
            health.on_sent(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
        }
        for relayed in &mut self.relayed {
            relayed.side.handle_doubt(ctx.now);
        }
        self.handle_change(now);
        self.drive(ctx);
    }

    /// The broker introduced us.
    pub fn handle_introduction(&mut self, introduction: Introduction, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        let Some(keys) = PairKeys::new(ctx.wg, self.peer, introduction.attempt, introduction.side) else {
            return;
        };
        let targets = plan::udp_targets(ctx.local, &introduction.candidates);
        self.trouble = if ctx.local.udp && targets.is_empty() {
            Some("the peer has no address that can be tried over UDP".to_owned())
        } else {
            None
        };
        if self.attempts.len() == MAX_INTRODUCTIONS {
            self.attempts.remove(0);
        }
        self.believe(keys.clone());
        self.attempts.push(Attempt::new(keys.clone(), targets, now));
        self.effort = self.effort.introduced();
        self.bind(&introduction.relays, &keys, ctx);
        self.drive(ctx);
    }

    /// A connectivity check that claims to belong to one of our introductions came by `leg`. False if it is forged.
    pub fn handle_check(
        &mut self,
        leg: Leg,
        received: &stun::Received<'_>,
        attempt: AttemptId,
        ctx: &mut Ctx<'_>,
    ) -> bool {
        let Some((keys, check)) = self.judge(attempt, received) else { return false };
        let now = ctx.now.instant;
        match check {
            Check::Request(transaction) => {
                self.heard(leg, now);
                leg.push(ctx.outbox, &keys.success(transaction, leg.to));
                if leg.channel.is_none() {
                    self.meet(leg, &keys, now);
                    if let Some(attempt) = self.attempts.iter_mut().find(|a| a.keys().attempt() == attempt) {
                        attempt.handle_request(leg.to, now);
                    }
                }
            }
            Check::Success(transaction, _) if self.answered(leg, &keys, transaction, now) => {
                self.heard(leg, now);
            }
            Check::Success(..) => return false,
        }
        self.settle(ctx);
        true
    }

    /// A message of a relay's own protocol (answer to a bind). False if none of our sessions waits for it.
    pub fn handle_relay_answer(
        &mut self,
        via: Via,
        from: SocketAddr,
        received: &stun::Received<'_>,
        ctx: &mut Ctx<'_>,
    ) -> bool {
        let now = ctx.now;
        let events = self.relayed.iter_mut().map(|r| r.side.handle_response(via, from, received, now));
        let Some(event) = events.flatten().next() else { return false };
        self.on_relay(&event);
        self.settle(ctx);
        true
    }

    /// Whether a stream was opened for this path.
    #[must_use]
    pub fn owns_stream(&self, id: StreamId) -> bool {
        self.relayed.iter().any(|r| r.side.owns_stream(id))
    }

    /// A stream that this path had ordered came up (`Ok`), or is gone or never came up (`Err`, in words).
    pub fn handle_stream(&mut self, id: StreamId, news: Result<(), String>, ctx: &mut Ctx<'_>) {
        let news = news.map_or_else(relay::StreamNews::Closed, |()| relay::StreamNews::Opened);
        let Some(relayed) = self.relayed.iter_mut().find(|r| r.side.owns_stream(id)) else { return };
        if let Some(event) = relayed.side.handle_stream(id, news, ctx.now) {
            self.on_relay(&event);
        }
        self.settle(ctx);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        self.effort = self.effort.expire(now);
        for health in self.healths_mut() {
            health.expire(now);
        }
        self.finish_attempts(now);
        self.forget(now);
        self.drive(ctx);
    }

    /// When to call [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let attempts = self.attempts.iter().filter_map(Attempt::poll_timeout);
        let over = self.attempts.iter().map(|a| a.started() + crate::punch::attempt::DEADLINE);
        let probes = self.legs().flat_map(|(leg, health)| {
            [Some(health.next_probe(self.duty(leg))), health.next_expiry()].into_iter().flatten()
        });
        let relays = self.relayed.iter().filter_map(|r| r.side.poll_timeout());
        // Nothing is asked for a path that is direct, or idle by then: such a deadline would never be met.
        let effort = self.wanted.and_then(|wanted| {
            let rests = matches!(self.effort, Effort::Resting { .. });
            let patience = if rests { self.patience() } else { Duration::ZERO };
            let at = self.effort.deadline()? + patience;
            (!(rests && self.is_direct()) && at < wanted + IDLE_AFTER).then_some(at)
        });
        let idle = self
            .wanted
            .filter(|_| !self.ways.is_empty() || !self.relayed.is_empty())
            .map(|at| at + IDLE_AFTER);
        attempts.chain(over).chain(probes).chain(relays).chain(effort).chain(idle).min()
    }

    /// Work on streams.
    pub fn poll_order(&mut self) -> Option<StreamOrder> {
        self.orders.pop_front()
    }

    /// Whether the broker should be asked for an introduction now.
    #[must_use]
    pub fn wants_introduction(&self, now: Instant) -> bool {
        self.is_active(now)
            && !self.is_direct()
            && self
                .effort
                .is_due(now - self.patience().min(now.saturating_duration_since(self.wanted.unwrap_or(now))))
    }

    /// What carries now.
    #[must_use]
    pub fn leg(&self) -> Option<Leg> {
        self.carrier
    }

    /// Whether full-sized packets are known to pass what carries now without being fragmented.
    #[must_use]
    pub fn passes_full_size(&self) -> bool {
        self.ways.iter().any(|way| Some(way.leg) == self.carrier && way.full_size == FullSize::Passes)
    }

    /// What carries now, for people.
    #[must_use]
    pub fn carrier(&self) -> Carrier<'_> {
        let Some(leg) = self.carrier else { return Carrier::None };
        if let Some(relayed) = self.relayed.iter().find(|r| r.is_bound_to(leg)) {
            let tcp = matches!(leg.via, Via::Stream(_));
            return Carrier::Relay { name: &relayed.name, tcp, endpoint: leg.to };
        }
        match leg.via {
            Via::Udp(_) => Carrier::DirectUdp(leg.to),
            Via::Stream(_) => Carrier::DirectTcp(leg.to),
        }
    }

    /// Round trip and loss of what carries now.
    #[must_use]
    pub fn quality(&self) -> (Option<Duration>, Option<f64>) {
        let health = self.carrier.and_then(|leg| self.health(leg));
        (health.and_then(Health::rtt), health.and_then(Health::loss))
    }

    /// Whether a direct way carries.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.carrier.is_some_and(|leg| leg.channel.is_none())
    }

    /// Whether there was traffic lately.
    #[must_use]
    pub fn is_active(&self, now: Instant) -> bool {
        self.wanted.is_some_and(|at| now < at + IDLE_AFTER)
    }

    /// Why the path is not direct, in words, and when the next try is due.
    #[must_use]
    pub fn why(&self, now: Instant) -> (Option<String>, Option<Duration>) {
        if self.is_direct() {
            return (None, None);
        }
        let next = match self.effort {
            Effort::Resting { until, .. } if self.is_active(now) => {
                Some(until.saturating_duration_since(now))
            }
            Effort::Resting { .. } | Effort::Asking { .. } | Effort::Punching { .. } => None,
        };
        let doing = match self.effort {
            Effort::Asking { .. } => Some("asking the broker for an introduction".to_owned()),
            Effort::Punching { .. } => Some("checking for a direct path".to_owned()),
            Effort::Resting { .. } => None,
        };
        let failed = self.last_tally.map(|(probes, targets, _)| {
            let addresses = if targets == 1 { "address" } else { "addresses" };
            format!("no answer to {probes} probes to {targets} {addresses} of the peer: a NAT or firewall on the way lets no UDP through from us")
        });
        (self.trouble.clone().or(doing).or(failed), next)
    }

    /// One probe of what carries now, for a person who asked; its answer shows in [`Self::quality`] and is known by the
    /// transaction that this returns.
    pub fn probe(&mut self, ctx: &mut Ctx<'_>) -> Option<TransactionId> {
        let leg = self.carrier?;
        let id = self.numbers.next(ctx.rng);
        let keys = self.keys_of(leg)?.clone();
        leg.push(ctx.outbox, &keys.request(id, 0));
        self.health_mut(leg)?.on_probe(id, ctx.now.instant);
        Some(id)
    }

    /// What is being done for a better way.
    #[must_use]
    pub fn effort(&self) -> Effort {
        self.effort
    }

    /// Our address as a relay sees it over UDP.
    #[must_use]
    pub fn relay_mapped(&self) -> Option<SocketAddr> {
        let bound = self.relayed.iter().filter_map(|r| r.side.bound());
        bound.filter(|b| matches!(b.via, Via::Udp(_))).map(|b| b.mapped).next()
    }

    /// Gives up everything: the peer is no longer one.
    pub fn close(&mut self) {
        self.ways.clear();
        self.attempts.clear();
        self.believed.clear();
        for mut old in std::mem::take(&mut self.relayed) {
            self.release(&mut old);
        }
        self.carrier = None;
    }

    fn judge(&mut self, attempt: AttemptId, received: &stun::Received<'_>) -> Option<(PairKeys, Check)> {
        let believed = self.believed.iter_mut().find(|b| b.keys.attempt() == attempt)?;
        let check = believed.keys.judge(received)?;
        if let Check::Request(request) = check
            && !believed.seen.accept(request)
        {
            return None;
        }
        Some((believed.keys.clone(), check))
    }

    /// Takes the keys of a new introduction; forgets the oldest that nothing uses any more.
    fn believe(&mut self, keys: PairKeys) {
        while self.believed.len() >= MAX_INTRODUCTIONS {
            let in_use = |id: AttemptId| {
                self.attempts.iter().any(|a| a.keys().attempt() == id)
                    || self.ways.iter().any(|w| w.keys.attempt() == id)
                    || self.relayed.iter().any(|r| r.keys.attempt() == id)
            };
            let Some(at) = self.believed.iter().position(|b| !in_use(b.keys.attempt())) else { break };
            self.believed.remove(at);
        }
        self.believed.push(Believed { keys, seen: Seen::default() });
    }

    /// The peer answered by `leg`. False if that answers nothing that we asked there.
    fn answered(&mut self, leg: Leg, keys: &PairKeys, transaction: TransactionId, now: Instant) -> bool {
        if let Some(way) = self.ways.iter_mut().find(|w| w.leg == leg)
            && way.full_size.is_answered_by(transaction)
        {
            way.full_size = FullSize::Passes;
            return true;
        }
        if let Some(health) = self.health_mut(leg)
            && health.on_answer(transaction, now).is_some()
        {
            return true;
        }
        let found = self
            .attempts
            .iter_mut()
            .filter(|a| a.keys().attempt() == keys.attempt())
            .find_map(|a| a.handle_success(transaction, now));
        // The answer must come from where the question went, or the way is not symmetric (RFC 8445 7.2.5.2.1).
        let Some(found) = found.filter(|found| found.to == leg.to && leg.channel.is_none()) else {
            return false;
        };
        self.meet(leg, keys, now);
        if let Some(health) = self.health_mut(leg) {
            health.on_round_trip(found.rtt, now);
        }
        self.effort = self.effort.succeeded(now);
        self.trouble = None;
        self.last_tally = None;
        true
    }

    /// The peer is at `leg`: remember the way.
    fn meet(&mut self, leg: Leg, keys: &PairKeys, now: Instant) {
        if let Some(way) = self.ways.iter_mut().find(|w| w.leg == leg) {
            way.keys = keys.clone();
            return;
        }
        if self.ways.len() == MAX_WAYS {
            let carrier = self.carrier;
            let oldest = (0..self.ways.len())
                .filter(|i| self.ways.get(*i).is_some_and(|w| Some(w.leg) != carrier))
                .min_by_key(|i| self.ways.get(*i).map(|w| (w.health.is_proven(), w.health.heard())));
            if let Some(oldest) = oldest {
                self.ways.remove(oldest);
            }
        }
        let full_size = FullSize::Unknown { tries: 0, last: None };
        self.ways.push(Way { leg, keys: keys.clone(), health: Health::new(now), full_size });
    }

    fn bind(&mut self, grants: &[RelayGrant], keys: &PairKeys, ctx: &mut Ctx<'_>) {
        let Some(grant) = grants.first() else {
            if self.carrier.is_none() && self.trouble.is_none() {
                self.trouble = Some("the network has no relay".to_owned());
            }
            return;
        };
        let mut offer = grant.offer.clone();
        offer.endpoints.retain(|e| match e.transport {
            Transport::Udp => plan::is_relay(ctx.local, e.addr) && ctx.local.udp,
            Transport::Tcp => plan::is_relay(ctx.local, e.addr),
        });
        let mut side = match relay::Side::new(&offer, ctx.wg, &grant.certificate, ctx.now, ctx.rng.fork()) {
            Ok(side) => side,
            Err(why) => {
                self.trouble = Some(why.to_string());
                return;
            }
        };
        if ctx.local.udp_blocked {
            side.handle_udp_blocked(ctx.now);
        }
        while self.relayed.len() >= MAX_RELAYED {
            let carrier = self.carrier;
            let spare = self.relayed.iter().position(|r| !carrier.is_some_and(|leg| r.is_bound_to(leg)));
            let mut old = self.relayed.remove(spare.unwrap_or(0));
            self.release(&mut old);
        }
        self.relayed.push(Relayed {
            name: grant.certificate.subject.uri.name.clone(),
            keys: keys.clone(),
            side,
            bound: None,
            met: false,
            lost: false,
            born: ctx.now.instant,
        });
    }

    /// Sends whatever is due: probes of attempts, of ways, of relay sessions.
    fn drive(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        for attempt in &mut self.attempts {
            while let Some(probe) = attempt.poll(now, &mut self.numbers, ctx.rng) {
                Leg::udp(probe.to).push(ctx.outbox, &probe.message);
            }
        }
        self.drive_relays(ctx);
        self.reconsider(now);
        self.probe_ways(ctx);
    }

    fn drive_relays(&mut self, ctx: &mut Ctx<'_>) {
        let mut news = Vec::new();
        for relayed in &mut self.relayed {
            news.extend(relayed.side.handle_timeout(ctx.now));
            while let Some(order) = relayed.side.poll_order() {
                self.orders.push_back(match order {
                    relay::Order::Open(to) => {
                        let id = StreamId(*ctx.next_stream);
                        // The top half of the range is the doors' own, for accepted streams.
                        *ctx.next_stream = (*ctx.next_stream + 1) & 0x7fff_ffff;
                        relayed.side.on_stream_named(id);
                        StreamOrder::Open(id, to)
                    }
                    relay::Order::Close(id) => StreamOrder::Close(id),
                });
            }
            while let Some((via, to, message)) = relayed.side.poll_transmit() {
                ctx.outbox.push(via, to, &message);
            }
            relayed.sync(ctx.now.instant);
        }
        for event in &news {
            self.on_relay(event);
        }
        self.relayed.retain(|r| !r.lost);
    }

    fn probe_ways(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        let carrier = self.carrier;
        let duty = |leg: Leg| if Some(leg) == carrier { Duty::Carrying } else { Duty::Standby };
        for way in &mut self.ways {
            if way.health.next_probe(duty(way.leg)) <= now {
                let id = self.numbers.next(ctx.rng);
                way.leg.push(ctx.outbox, &way.keys.request(id, 0));
                way.health.on_probe(id, now);
            }
            if way.health.is_proven()
                && matches!(way.leg.via, Via::Udp(_))
                && let Some(id) = way.full_size.next(now, &mut self.numbers, ctx.rng)
            {
                ctx.outbox.push_unfragmented(
                    way.leg.via,
                    way.leg.to,
                    &way.keys.request(id, FULL_SIZE_PADDING),
                );
            }
        }
        for relayed in &mut self.relayed {
            let Some((leg, health)) = &mut relayed.bound else { continue };
            if health.next_probe(duty(*leg)) <= now {
                let id = self.numbers.next(ctx.rng);
                leg.push(ctx.outbox, &relayed.keys.request(id, 0));
                health.on_probe(id, now);
            }
        }
    }

    fn finish_attempts(&mut self, now: Instant) {
        let direct = self.is_direct();
        let mut failed = None;
        self.attempts.retain(|attempt| {
            let over = attempt.is_over(now);
            if over && attempt.tally().2 == 0 {
                failed = Some(attempt.tally());
            }
            !over
        });
        if let Some(tally) = failed {
            self.last_tally = Some(tally);
        }
        if self.attempts.is_empty() && matches!(self.effort, Effort::Punching { .. }) {
            self.effort = if direct { self.effort.succeeded(now) } else { self.effort.failed(now) };
        }
    }

    /// Drops what is no longer worth its probes.
    fn forget(&mut self, now: Instant) {
        let idle = !self.is_active(now);
        if idle {
            self.believed.clear();
        }
        self.ways.retain(|way| !idle && !way.health.is_forgotten(now));
        // Beside a direct way the newest relay session that works is kept warm; others only while they are young.
        let carrier = self.carrier;
        let works = |r: &&Relayed| r.met && r.bound.as_ref().is_some_and(|(_, health)| !health.is_dead());
        let warm = self.relayed.iter().filter(works).map(|r| r.born).max();
        let keep = |r: &Relayed| {
            let in_use = carrier.is_some_and(|leg| r.is_bound_to(leg));
            let young = now < r.born + RELAY_TRIAL;
            !idle && (in_use || young || Some(r.born) == warm)
        };
        let (kept, dropped): (Vec<Relayed>, Vec<Relayed>) = self.relayed.drain(..).partition(keep);
        self.relayed = kept;
        for mut old in dropped {
            self.release(&mut old);
        }
    }

    fn on_relay(&mut self, event: &relay::Event) {
        match event {
            relay::Event::Bound(_) => {}
            relay::Event::Lost(why) => self.trouble = Some(why.to_string()),
        }
    }

    fn release(&mut self, relayed: &mut Relayed) {
        relayed.side.close();
        while let Some(order) = relayed.side.poll_order() {
            if let relay::Order::Close(id) = order {
                self.orders.push_back(StreamOrder::Close(id));
            }
        }
    }

    /// After anything was taken in: let the relay sessions tell where they are bound, choose, send what is due.
    fn settle(&mut self, ctx: &mut Ctx<'_>) {
        for relayed in &mut self.relayed {
            relayed.sync(ctx.now.instant);
        }
        self.drive(ctx);
    }

    /// Chooses what carries: a proven direct way, a relay over which the peer was heard, a direct way that only the peer
    /// has proven, a relay at which the peer may still turn up. A proven direct way is left for another by a margin only.
    fn reconsider(&mut self, now: Instant) {
        let alive = || self.ways.iter().filter(|way| !way.health.is_dead());
        let rtt = |way: &&Way| way.health.rtt().unwrap_or(Duration::MAX);
        let best = alive().filter(|way| way.health.is_proven()).min_by_key(rtt);
        let current = alive().find(|way| Some(way.leg) == self.carrier && way.health.is_proven());
        let proven = match (best, current) {
            (Some(best), Some(current)) if !is_clearly_better(best, current) => Some(current.leg),
            (best, _) => best.map(|way| way.leg),
        };
        let provisional = alive().max_by_key(|way| way.health.heard()).map(|way| way.leg);
        let relay = |met: bool| {
            let bound = self.relayed.iter().filter(|r| r.met == met);
            let bound = bound.filter_map(|r| r.bound.as_ref().map(|(leg, health)| (r.born, leg, health)));
            bound.filter(|(_, _, h)| !h.is_dead()).max_by_key(|(born, _, _)| *born).map(|(_, leg, _)| *leg)
        };
        let chosen = proven.or_else(|| relay(true)).or(provisional).or_else(|| relay(false));
        let Some(old) = self.carrier.filter(|old| Some(*old) != chosen) else {
            self.carrier = chosen;
            return;
        };
        // What had worked is lost: earlier failures say nothing about now. What never worked is a failure of its own.
        let worked = self.health(old).is_none_or(Health::is_proven);
        let fell = old.channel.is_none() && chosen.is_some_and(|leg| leg.channel.is_some());
        if worked && (fell || chosen.is_none()) {
            self.effort = self.effort.refreshed(now);
        }
        self.carrier = chosen;
    }

    fn legs(&self) -> impl Iterator<Item = (Leg, &Health)> {
        let ways = self.ways.iter().map(|way| (way.leg, &way.health));
        ways.chain(self.relayed.iter().filter_map(|r| r.bound.as_ref().map(|(leg, health)| (*leg, health))))
    }

    fn healths_mut(&mut self) -> impl Iterator<Item = &mut Health> {
        let ways = self.ways.iter_mut().map(|way| &mut way.health);
        ways.chain(self.relayed.iter_mut().filter_map(|r| r.bound.as_mut().map(|(_, health)| health)))
    }

    fn health(&self, leg: Leg) -> Option<&Health> {
        self.legs().find(|(at, _)| *at == leg).map(|(_, health)| health)
    }

    fn health_mut(&mut self, leg: Leg) -> Option<&mut Health> {
        let way = self.ways.iter_mut().find(|way| way.leg == leg).map(|way| &mut way.health);
        way.or_else(|| {
            self.relayed
                .iter_mut()
                .filter_map(|r| r.bound.as_mut())
                .find(|(at, _)| *at == leg)
                .map(|(_, health)| health)
        })
    }

    fn keys_of(&self, leg: Leg) -> Option<&PairKeys> {
        let way = self.ways.iter().find(|way| way.leg == leg).map(|way| &way.keys);
        way.or_else(|| self.relayed.iter().find(|r| r.is_bound_to(leg)).map(|r| &r.keys))
    }

    fn duty(&self, leg: Leg) -> Duty {
        if Some(leg) == self.carrier { Duty::Carrying } else { Duty::Standby }
    }

    fn patience(&self) -> Duration {
        if self.polite && self.last_tally.is_some() { POLITENESS } else { Duration::ZERO }
    }
}

impl Relayed {
    fn is_bound_to(&self, leg: Leg) -> bool {
        self.bound.as_ref().is_some_and(|(at, _)| *at == leg)
    }

    /// Takes over where the session is bound now.
    fn sync(&mut self, now: Instant) {
        let leg = self.side.bound().map(|b| Leg { via: b.via, to: b.endpoint, channel: Some(b.channel) });
        self.bound = match (self.bound.take(), leg) {
            (_, None) => None,
            (Some((_, health)), Some(leg)) => Some((leg, health)),
            (None, Some(leg)) => Some((leg, Health::new(now))),
        };
        self.lost = self.bound.is_none() && self.side.poll_timeout().is_none() && !self.side.is_opening();
    }
}

impl FullSize {
    fn is_answered_by(self, transaction: TransactionId) -> bool {
        matches!(self, Self::Unknown { last: Some((id, _)), .. } if id == transaction)
    }

    /// The next full-sized probe, if one is due.
    fn next(&mut self, now: Instant, numbers: &mut Numbers, rng: &mut Rng) -> Option<TransactionId> {
        let Self::Unknown { tries, last } = self else { return None };
        let waited = last.is_none_or(|(_, at)| now >= at + Duration::from_secs(1));
        if *tries >= FULL_SIZE_TRIES || !waited {
            return None;
        }
        let id = numbers.next(rng);
        *tries += 1;
        *last = Some((id, now));
        Some(id)
    }
}

fn is_clearly_better(best: &Way, current: &Way) -> bool {
    let (Some(best), Some(current)) = (best.health.rtt(), current.health.rtt()) else { return false };
    best + MARGIN < current && best * 100 < current * MARGIN_SHARE
}
