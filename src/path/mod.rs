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
//! * At most 8 direct ways, 3 relay sessions and [`MAX_INTRODUCTIONS`] introductions.

mod checks;
mod choice;
pub mod effort;
pub mod health;
pub mod leg;
mod relays;
mod search;
mod size;
mod splice;
mod streams;
mod tally;
mod terms;
mod ways;
mod why;

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::StreamId;
use crate::base::transmit::Gone;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Via;
use crate::identity::keys::WgPublic;
use crate::path::choice::Choice;
use crate::path::choice::Rides;
use crate::path::choice::Sight;
use crate::path::effort::Effort;
use crate::path::health::Carrying;
use crate::path::health::Duty;
use crate::path::health::Health;
use crate::path::health::PAUSE;
use crate::path::leg::Leg;
use crate::path::relays::Relays;
use crate::path::search::Sockets;
use crate::path::streams::Streams;
use crate::path::ways::Ways;
use crate::punch::attempt::Attempt;
use crate::punch::keys::Numbers;
use crate::punch::keys::PairKeys;
use crate::punch::keys::Seen;
use crate::punch::method::How;
use crate::punch::method::Method;
use crate::punch::plan;
use crate::punch::search::Search;
use crate::wire::stun;
use crate::wire::stun::TransactionId;

pub use tally::Load;
pub use terms::Carrier;
pub use terms::Ctx;
pub use terms::Introduction;
pub use terms::Means;
pub use terms::Outcome;
pub use terms::RelayGrant;
pub use terms::RelayedBy;
pub use terms::Transport;
pub use terms::View;

/// Introductions whose keys are believed even if no way uses them: both sides may ask at once, twice, and each may keep
/// the other one's.
pub const MAX_INTRODUCTIONS: usize = 4;
/// Without traffic for this long a path is not worth keeping open.
pub const IDLE_AFTER: Duration = Duration::from_secs(300);
/// Whoever had us introduced sends something within this: three tries of a handshake (WireGuard 6.1: every 5 s), and room.
const EXPECTED_WITHIN: Duration = Duration::from_secs(30);
/// Both sides climb the same ladder; one of them waits this much longer, so that one introduction serves both.
const POLITENESS: Duration = Duration::from_millis(1500);
/// Which way to one peer.
#[derive(Debug)]
pub struct Path {
    peer: WgPublic,
    polite: bool,
    numbers: Numbers,
    believed: Vec<Believed>,
    attempts: Vec<Attempt>,
    streams: Streams,
    search: Option<Search>,
    /// When a large search sent its last packet.
    swept: Option<Instant>,
    sockets: Sockets,
    ways: Ways,
    relays: Relays,
    transport: Transport,
    carrier: Option<Leg>,
    /// A direct stream that TCP packets leave by, beside a carrier over UDP.
    beside: Option<Leg>,
    choice: Choice,
    peer_wants_stream: bool,
    effort: Effort,
    wanted: Option<Instant>,
    asked_for: Option<Instant>,
    trouble: Option<String>,
    last_tally: Option<(usize, usize, usize)>,
    /// The peer opens super-packets, by its last word.
    opens_super_packets: bool,
}

/// An introduction whose keys the peer may use.
#[derive(Debug)]
struct Believed {
    keys: PairKeys,
    seen: Seen,
}

impl Path {
    /// To a peer that nothing is known of yet. Of two peers, the one with the greater key is the polite one.
    #[must_use]
    pub fn new(peer: WgPublic, own: WgPublic, transport: Transport, now: Instant) -> Self {
        Self {
            peer,
            polite: own > peer,
            numbers: Numbers::default(),
            believed: Vec::new(),
            attempts: Vec::new(),
            streams: Streams::default(),
            search: None,
            swept: None,
            sockets: Sockets::default(),
            ways: Ways::default(),
            relays: Relays::default(),
            transport,
            carrier: None,
            beside: None,
            choice: Choice::new(now),
            peer_wants_stream: false,
            effort: Effort::fresh(now),
            wanted: None,
            asked_for: None,
            trouble: None,
            last_tally: None,
            opens_super_packets: false,
        }
    }

    /// Traffic for the peer, or from it: the path is worth having.
    pub fn handle_demand(&mut self, now: Instant) {
        self.wanted = Some(now);
    }

    /// The peer asked for us: its first packets are on their way. If none comes, that is no reason to keep a path, or two
    /// members that ask for each other in turn would keep each other awake for ever.
    pub fn handle_asked_for(&mut self, now: Instant) {
        self.asked_for = Some(now);
    }

    /// Messages left by `leg`.
    pub fn handle_sent(&mut self, leg: Leg, load: Load, now: Instant) {
        if let Some(health) = self.health_mut(leg) {
            health.on_sent(load, now);
        }
    }

    /// A packet of the peer came by `leg`, in an authentic message.
    pub fn handle_packet(&mut self, leg: Leg, now: Instant) {
        self.handle_heard(leg, now);
        self.handle_demand(now);
        if let Some(health) = self.health_mut(leg) {
            health.on_arrived();
        }
    }

    /// An authentic message of the peer's tunnel came by `leg`.
    pub fn handle_heard(&mut self, leg: Leg, now: Instant) {
        if self.relays.owns(leg)
            && let Some(direct) = self.carrier.filter(|carrier| !self.relays.owns(*carrier))
            && let Some(health) = self.health_mut(direct)
        {
            health.on_deserted(now);
        }
        self.heard(leg, now);
    }

    fn heard(&mut self, leg: Leg, now: Instant) {
        self.relays.on_heard(leg);
        if let Some(health) = self.health_mut(leg) {
            health.on_heard(now);
        }
    }

    /// The broker was asked for an introduction.
    pub fn handle_asked(&mut self, now: Instant) {
        self.choice.on_asked(now);
        self.effort = self.effort.asked(now);
    }

    /// The broker, or the way to it, failed; in words.
    pub fn handle_refused(&mut self, why: String, now: Instant) {
        self.trouble = Some(why);
        self.effort = self.effort.failed(self.carrier.is_none(), now);
    }

    /// Something changed that makes old failures meaningless: the peer came online, our network changed.
    pub fn handle_change(&mut self, now: Instant) {
        self.effort = self.effort.refreshed(now);
    }

    /// Our mapped address became known, or another: the peer must hear of it, also if it is just being punched with less.
    pub fn handle_new_candidates(&mut self, now: Instant) {
        if !self.is_direct() {
            self.effort = Effort::fresh(now);
        }
    }

    /// The local network changed: no way can be trusted to work as before, each is probed at once.
    pub fn handle_network_change(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        for (_, health) in self.healths_mut() {
            health.on_sent(Load::default(), now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
        }
        self.relays.handle_doubt(ctx.now);
        self.handle_change(now);
        self.drive(ctx);
    }

    /// The broker introduced us.
    pub fn handle_introduction(&mut self, introduction: Introduction, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        let Some(keys) = PairKeys::new(ctx.wg, self.peer, introduction.attempt, introduction.side) else {
            return;
        };
        let targets = match self.transport {
            Transport::Auto | Transport::Udp => plan::udp_targets(ctx.local, &introduction.candidates),
            Transport::Tcp => Vec::new(),
        };
        self.trouble = if ctx.local.udp && targets.is_empty() && self.transport != Transport::Tcp {
            Some("the peer has no address that can be tried over UDP".to_owned())
        } else {
            None
        };
        let searches = self.prepare_search(&introduction, &targets, ctx);
        if !targets.is_empty() {
            self.streams.tell(Outcome::Tried(Means::Udp));
        }
        self.prepare_streams(&introduction, &keys, !targets.is_empty(), searches, ctx);
        if self.attempts.len() == MAX_INTRODUCTIONS {
            self.attempts.remove(0);
        }
        self.believe(keys.clone());
        self.attempts.push(Attempt::new(keys.clone(), targets, now));
        self.effort = self.effort.introduced();
        self.relays.bind(introduction.relays, &keys, self.carrier, ctx);
        self.drive(ctx);
    }

    /// Whether a message of a relay's own protocol may be for this path: a question that changes nothing.
    #[must_use]
    pub fn awaits_relay_answer(&self, via: Via, from: SocketAddr, message: &stun::Message) -> bool {
        self.relays.awaits(via, from, message)
    }

    /// A message of a relay's own protocol (answer to a bind). False if none of our sessions waits for it.
    pub fn handle_relay_answer(
        &mut self,
        via: Via,
        from: SocketAddr,
        received: &stun::Received<'_>,
        ctx: &mut Ctx<'_>,
    ) -> bool {
        let known = self.relays.handle_answer(via, from, received, ctx.now);
        if known {
            self.drive(ctx);
        }
        known
    }

    /// A stream that this path had ordered came up (`Ok`), or is gone or never came up (`Err`, in words).
    pub fn handle_stream(&mut self, id: StreamId, news: Result<(), Gone>, ctx: &mut Ctx<'_>) {
        self.streams.handle_stream(id, news.as_ref().copied(), &mut self.numbers, ctx);
        if news.is_err() {
            self.streams.forget(id, false);
            self.ways.lose_stream(id);
        }
        self.relays.handle_stream(id, news, ctx.now);
        self.drive(ctx);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        self.effort = self.effort.expire(self.carrier.is_none(), now);
        for (_, health) in self.healths_mut() {
            health.expire(now);
        }
        self.streams.handle_timeout(ctx);
        self.finish_attempts(now);
        self.forget(now);
        self.drive(ctx);
    }

    /// When to call [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let attempts = self.attempts.iter().filter_map(Attempt::poll_timeout);
        let over = self.attempts.iter().map(|a| a.started() + crate::punch::attempt::DEADLINE);
        let carrying = self.carrying();
        let probes = self.healths().flat_map(|(leg, _, health)| {
            [Some(health.next_probe(Duty::of(leg, carrying))), health.next_expiry()].into_iter().flatten()
        });
        let relays = self.relays.poll_timeout();
        // Nothing is asked for a path that is direct, or idle by then: such a deadline would never be met.
        let effort = self.wanted.and_then(|wanted| {
            let rests = matches!(self.effort, Effort::Resting { .. });
            let patience = if rests { self.patience() } else { Duration::ZERO };
            let at = self.effort.deadline()? + patience;
            (!(rests && self.is_direct()) && at < wanted + IDLE_AFTER).then_some(at)
        });
        let idle = self.active_until().filter(|_| !self.ways.is_empty() || !self.relays.is_empty());
        let streams = self.streams.poll_timeout();
        let search = self.search_timeout();
        attempts
            .chain(over)
            .chain(search)
            .chain(probes)
            .chain(streams)
            .chain(relays)
            .chain(effort)
            .chain(idle)
            .min()
    }

    /// What came of attempts at a direct path.
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        self.streams.poll_outcome()
    }

    /// Work on streams.
    pub fn poll_order(&mut self) -> Option<StreamOrder> {
        while let Some(id) = self.ways.take_dropped() {
            self.streams.forget(id, true);
        }
        self.streams.poll_order().or_else(|| self.sockets.poll_order()).or_else(|| self.relays.poll_order())
    }

    /// Whether the broker should be asked for an introduction now.
    #[must_use]
    pub fn wants_introduction(&self, now: Instant) -> bool {
        // Only who has traffic asks: being asked for is no reason to ask back.
        let Some(wanted) = self.wanted.filter(|at| now < *at + IDLE_AFTER) else { return false };
        let patience = self.patience().min(now.saturating_duration_since(wanted));
        if self.is_direct() { self.lacks_stream(now) } else { self.effort.is_due(now - patience) }
    }

    /// Whether a stream should be opened beside UDP.
    fn lacks_stream(&self, now: Instant) -> bool {
        self.choice.is_due(now) && !self.streams.is_open()
    }

    /// What carries now.
    #[must_use]
    pub fn leg(&self) -> Option<Leg> {
        self.carrier
    }

    /// By what TCP packets leave: a flow never leaves by two ways at once, whatever else does.
    #[must_use]
    pub fn leg_for_tcp(&self) -> Option<Leg> {
        self.beside.or(self.carrier)
    }

    /// The largest packet, up to the device's `mtu`, that is known to pass what carries now unfragmented.
    #[must_use]
    pub fn size(&self, mtu: usize) -> Option<usize> {
        let leg = self.carrier?;
        if leg.is_direct_stream() { Some(mtu) } else { self.ways.size(leg) }
    }

    /// Whether super-packets may leave whole: a stream has no size that it passes, but a relay would have to cut them for
    /// its other side.
    #[must_use]
    pub fn carries_super_packets(&self, tcp: bool) -> bool {
        let leg = if tcp { self.leg_for_tcp() } else { self.carrier };
        self.opens_super_packets && leg.is_some_and(|leg| leg.is_direct_stream())
    }

    /// What carries now, for people.
    #[must_use]
    pub fn carrier(&self) -> Carrier<'_> {
        let Some(leg) = self.carrier else { return Carrier::None };
        if let Some(name) = self.relays.name_of(leg) {
            let by = match leg.via {
                _ if self.relays.is_spliced(leg) => RelayedBy::Splice,
                Via::Udp(_) => RelayedBy::Udp,
                Via::Stream(_) => RelayedBy::Tcp,
            };
            return Carrier::Relay { name, by, endpoint: leg.to };
        }
        match leg.via {
            Via::Udp(_) => Carrier::DirectUdp(leg.to),
            Via::Stream(id) => Carrier::DirectTcp(leg.to, self.streams.how(id).method),
        }
    }

    /// How the direct way that carries now was opened; `None` where checks of known addresses sufficed, and for a relay.
    #[must_use]
    pub fn how(&self) -> Option<How> {
        let leg = self.carrier.filter(|leg| !self.relays.owns(*leg))?;
        match leg.via {
            Via::Udp(_) => self.how_found(leg),
            Via::Stream(id) => Some(self.streams.how(id)),
        }
    }

    /// The direct stream that TCP traffic rides beside a carrier over UDP.
    #[must_use]
    pub fn beside(&self) -> Option<(SocketAddr, Method)> {
        match self.beside? {
            Leg { via: Via::Stream(id), to, .. } => Some((to, self.streams.how(id).method)),
            Leg { via: Via::Udp(_), .. } => None,
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
        self.carrier.is_some_and(|leg| !self.relays.owns(leg))
    }

    /// Attempts at direct ways that are not over.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.attempts.len() + self.streams.attempts()
    }

    /// Whether there was traffic lately.
    #[must_use]
    pub fn is_active(&self, now: Instant) -> bool {
        self.active_until().is_some_and(|until| now < until)
    }

    fn active_until(&self) -> Option<Instant> {
        let wanted = self.wanted.map(|at| at + IDLE_AFTER);
        wanted.max(self.asked_for.map(|at| at + EXPECTED_WITHIN))
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
        self.relays.mapped()
    }

    /// Gives up everything: the peer is no longer one.
    pub fn close(&mut self, now: Instant) {
        self.ways.forget(true, now);
        self.streams.give_up();
        self.attempts.clear();
        self.search = None;
        self.close_sockets();
        self.believed.clear();
        self.carrier = None;
        self.relays.forget(true, None, now);
    }

    /// Sends whatever is due: probes of attempts, of ways, of relay sessions.
    fn drive(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        self.drive_search(ctx);
        for attempt in &mut self.attempts {
            while let Some(probe) = attempt.poll(now, &mut self.numbers, ctx.rng) {
                Leg { via: probe.via, to: probe.to, channel: None }.push(ctx.outbox, &probe.message);
            }
        }
        self.settle_streams(now);
        let settled = self.carrier.is_some_and(|leg| !self.relays.owns(leg) && self.is_proven(leg));
        self.relays.drive(settled, self.carrier, ctx);
        if let Some(why) = self.relays.take_trouble() {
            self.trouble.get_or_insert(why);
        }
        self.reconsider(now);
        let carrying = self.carrying();
        self.ways.probe(carrying, self.choice.wants_stream(), &mut self.numbers, ctx);
        self.relays.probe(carrying, &mut self.numbers, ctx);
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
        if self.attempts.is_empty()
            && !self.streams.is_open()
            && matches!(self.effort, Effort::Punching { .. })
        {
            self.effort = if direct {
                self.effort.succeeded(now)
            } else {
                self.effort.failed(self.carrier.is_none(), now)
            };
        }
    }

    /// Drops what is no longer worth its probes.
    fn forget(&mut self, now: Instant) {
        let idle = !self.is_active(now);
        if idle {
            self.believed.clear();
        }
        self.ways.forget(idle, now);
        self.relays.forget(idle, self.carrier, now);
    }

    /// Chooses what carries: a proven direct way, a relay over which the peer was heard, a direct way that only the peer
    /// has proven, a relay at which the peer may still turn up. A proven direct way is left for another by a margin only.
    fn reconsider(&mut self, now: Instant) {
        self.reconsider_transport(now);
        let stream = self.ways.best_stream(self.beside.or(self.carrier));
        let all = stream.filter(|_| self.choice.rides() == Some(Rides::All));
        let chosen = all
            .or_else(|| self.ways.best_proven(self.carrier))
            .or_else(|| self.relays.best(true))
            .or_else(|| self.ways.last_heard())
            .or_else(|| self.relays.best(false));
        let datagrams = chosen.is_some_and(|leg| matches!(leg.via, Via::Udp(_)) && !self.relays.owns(leg));
        self.beside =
            stream.filter(|_| datagrams && (self.choice.rides().is_some() || self.peer_wants_stream));
        let Some(old) = self.carrier.filter(|old| Some(*old) != chosen) else {
            self.carrier = chosen;
            return;
        };
        // What had worked is lost: earlier failures say nothing about now. What never worked is a failure of its own.
        let worked = self.health(old).is_none_or(Health::is_proven);
        let fell = !self.relays.owns(old) && chosen.is_some_and(|leg| self.relays.owns(leg));
        if worked && (fell || chosen.is_none()) {
            self.effort = self.effort.refreshed(now);
        }
        self.carrier = chosen;
    }

    /// Looks at what UDP and TCP are worth, where both may carry.
    fn reconsider_transport(&mut self, now: Instant) {
        if self.transport != Transport::Auto {
            return;
        }
        let stream = self.ways.best_stream(self.beside.or(self.carrier)).and_then(|leg| self.health(leg));
        let datagrams = self.ways.best_datagrams(self.carrier).and_then(|leg| self.health(leg));
        let sight = Sight {
            rtt: datagrams.and_then(Health::rtt),
            traffic: datagrams.and_then(|health| health.tally().measured(now)),
            probes: datagrams.and_then(Health::settled_loss),
            stream: stream.is_some(),
            streamed: stream.map_or(0, |health| health.tally().sent().bulk()),
        };
        let before = (self.choice.wants_stream(), self.choice.rides());
        self.choice.consider(&sight, now);
        let after = (self.choice.wants_stream(), self.choice.rides());
        if after != before {
            tracing::debug!(wants_stream = after.0, rides = ?after.1, why = ?self.choice.reason(now), "UDP or TCP");
        }
    }

    /// What carries, and until when it counts as that if there is no more traffic. Datagrams that everything has left are
    /// still watched, for the way back.
    fn carrying(&self) -> Option<Carrying> {
        let leg = self.carrier?;
        let left = leg.is_direct_stream() && self.choice.rides().is_some();
        let beside = if left { self.ways.best_datagrams(None) } else { self.beside };
        Some(Carrying { leg, beside, until: self.wanted? + PAUSE })
    }

    fn healths(&self) -> impl Iterator<Item = (Leg, &PairKeys, &Health)> {
        self.ways.healths().chain(self.relays.healths())
    }

    fn healths_mut(&mut self) -> impl Iterator<Item = (Leg, &mut Health)> {
        self.ways.healths_mut().chain(self.relays.healths_mut())
    }

    fn health(&self, leg: Leg) -> Option<&Health> {
        self.healths().find(|(at, ..)| *at == leg).map(|(_, _, health)| health)
    }

    fn health_mut(&mut self, leg: Leg) -> Option<&mut Health> {
        self.healths_mut().find(|(at, _)| *at == leg).map(|(_, health)| health)
    }

    fn keys_of(&self, leg: Leg) -> Option<&PairKeys> {
        self.healths().find(|(at, ..)| *at == leg).map(|(_, keys, _)| keys)
    }

    fn is_proven(&self, leg: Leg) -> bool {
        self.health(leg).is_some_and(Health::is_proven)
    }

    fn patience(&self) -> Duration {
        if self.polite && self.last_tally.is_some() { POLITENESS } else { Duration::ZERO }
    }
}
