//! One attempt at a direct TCP connection: rounds of punching, and plain dials beside them, until a stream is proven.
//!
//! ```text
//! begin -> bind a port -> look from the broker -> tell it that we are ready -> both go -> dial -> the next round
//!      \-> dial where the peer always listens
//! ```
//!
//! The attempt orders sockets and is told what became of them. It greets every stream of its own with a keyed check; the
//! first one whose check is answered wins, and the others are closed by the side that asked, so that both keep the same.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::PortId;
use crate::base::id::StreamId;
use crate::base::rng::Rng;
use crate::base::transmit::Bound;
use crate::base::transmit::Dial;
use crate::base::transmit::Framing;
use crate::base::transmit::Gone;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Why;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::PortAssignment;
use crate::punch::keys::PairKeys;
use crate::punch::keys::Side;
use crate::punch::look::Observer;
use crate::punch::method;
use crate::punch::method::Method;
use crate::punch::method::Round;
use crate::wire::broker::MAX_ENDPOINTS;
use crate::wire::stun::TransactionId;

/// How long the look from the broker may take: two round trips, one lost packet.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// How long the other side may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(6);
/// A dial that was refused is made again after this and up to as much more by chance: the peer's SYN was late, and with
/// it comes a way in.
const RETRY: Duration = Duration::from_millis(40);
/// Dials of one endpoint in one round, at most.
const MAX_TRIES: u8 = 5;
/// Whoever did not begin with this attempt tells the other one by being ready; before that it may wait for UDP.
pub const HEAD_START: Duration = Duration::from_millis(600);
/// How long the side that was asked waits for the other one to settle on a stream.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// SYN segments that one attempt may cause, at most: all dials of all rounds with their retries, the kernel's own
/// retransmissions not counted.
pub const MAX_DIALS: u32 = 120;

/// An attempt.
#[derive(Debug)]
pub struct Attempt {
    keys: PairKeys,
    own: Behavior,
    public: Vec<IpAddr>,
    observer: Option<Observer>,
    targets: Vec<SocketAddr>,
    rounds: Vec<Round>,
    /// The round under way, counted from 0.
    at: usize,
    stage: Stage,
    port: Option<PortId>,
    bound: Bound,
    streams: BTreeMap<StreamId, Stream>,
    orders: VecDeque<StreamOrder>,
    ready: Option<Ready>,
    dials: u32,
    why: Option<String>,
}

#[derive(Debug)]
enum Stage {
    /// Before the beginning, which time or the peer brings about.
    Waiting {
        until: Instant,
    },
    /// The broker is being asked what the port looks like.
    Looking {
        since: Instant,
    },
    /// It knows that we are ready.
    Ready {
        since: Instant,
    },
    /// Dials.
    Dialling {
        start: Instant,
        endpoints: Vec<SocketAddr>,
        step: Step,
        again: Vec<Again>,
    },
    /// Rounds are over; plain dials may still be under way until then.
    Ending {
        until: Instant,
    },
    /// A stream is proven, but the side that asked may settle on another that is open.
    Won {
        until: Instant,
        winner: StreamId,
    },
    Over,
}

/// What a round does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Start,
    Raise,
    Abandon,
    Limit,
}

/// A dial to be made again.
#[derive(Debug)]
struct Again {
    due: Instant,
    to: SocketAddr,
    tries: u8,
}

#[derive(Debug)]
struct Stream {
    to: SocketAddr,
    role: Role,
    open: bool,
    /// The check that greeted the peer.
    hello: Option<(TransactionId, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Look(Option<(TransactionId, Instant)>),
    Plain,
    Punched { method: Method, tries: u8 },
    Accepted { method: Method },
}

/// What the broker is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// For which round, counted from 1.
    pub round: u8,
    /// Where we are, or will be, the likeliest first.
    pub endpoints: Vec<SocketAddr>,
    /// Our round trip to the broker.
    pub rtt: Duration,
}

/// What the attempt needs from around it for the length of one call.
pub struct Hands<'a> {
    /// The moment.
    pub now: Instant,
    /// Chance.
    pub rng: &'a mut Rng,
    /// Number of the next stream or port.
    pub next: &'a mut u32,
}

impl Hands<'_> {
    fn number(&mut self) -> u32 {
        let number = *self.next;
        // The top half of the range is the doors' own, for accepted streams.
        *self.next = (number + 1) & 0x7fff_ffff;
        number
    }
}

/// What an opened stream wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// This message to the broker.
    Ask(SocketAddr, Vec<u8>),
    /// A check to the peer, whose number is then told by [`Attempt::greeted`].
    Greet(SocketAddr),
    /// Nothing.
    Nothing,
}

/// What both members know before they begin.
#[derive(Debug)]
pub struct Plan {
    /// How our TCP is treated.
    pub own: Behavior,
    /// Addresses of ours that are the same outside.
    pub public: Vec<IpAddr>,
    /// Who looks at us from outside.
    pub observer: Option<Observer>,
    /// Where the peer always listens.
    pub targets: Vec<SocketAddr>,
    /// The rounds.
    pub rounds: Vec<Round>,
}

impl Attempt {
    /// Begins at `start`, or when the peer is found to have begun.
    #[must_use]
    pub fn new(keys: PairKeys, plan: Plan, start: Instant) -> Self {
        let Plan { own, public, observer, targets, rounds } = plan;
        Self {
            keys,
            own,
            public,
            observer,
            targets,
            rounds,
            at: 0,
            stage: Stage::Waiting { until: start },
            port: None,
            bound: Bound::default(),
            streams: BTreeMap::new(),
            orders: VecDeque::new(),
            ready: None,
            dials: 0,
            why: None,
        }
    }

    /// The keys of its introduction.
    #[must_use]
    pub fn keys(&self) -> &PairKeys {
        &self.keys
    }

    /// Whether nothing more will come of it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Whether something may come of it, now or when it begins.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.stage, Stage::Won { .. } | Stage::Over)
    }

    /// Dials made, and what went wrong last, in words.
    #[must_use]
    pub fn tally(&self) -> (u32, Option<&str>) {
        (self.dials, self.why.as_deref())
    }

    /// Whether a stream is of this attempt.
    #[must_use]
    pub fn owns(&self, id: StreamId) -> bool {
        self.streams.contains_key(&id)
    }

    /// By which method a stream of this attempt came to be.
    #[must_use]
    pub fn method_of(&self, id: StreamId) -> Option<Method> {
        match self.streams.get(&id)?.role {
            Role::Look(_) => None,
            Role::Plain => Some(Method::Direct),
            Role::Punched { method, .. } | Role::Accepted { method } => Some(method),
        }
    }

    /// The port of this attempt was bound.
    pub fn handle_bound(&mut self, port: PortId, bound: Bound, hands: &mut Hands<'_>) {
        if self.port != Some(port) {
            return;
        }
        self.bound = bound;
        let Stage::Looking { .. } = self.stage else { return };
        match self.observer {
            Some(observer) => {
                let dial = Dial { from: self.port, framing: Framing::Stun, ..Dial::plain(observer.at) };
                self.open(dial, Role::Look(None), hands);
            }
            None => self.say_ready(None, Duration::ZERO, hands),
        }
    }

    /// A stream of ours is open: what to send on it.
    pub fn handle_opened(&mut self, id: StreamId, hands: &mut Hands<'_>) -> Opened {
        let Some(stream) = self.streams.get_mut(&id) else { return Opened::Nothing };
        stream.open = true;
        match (&mut stream.role, self.observer) {
            (Role::Look(asked), Some(observer)) => {
                let transaction = TransactionId(hands.rng.bytes());
                *asked = Some((transaction, hands.now));
                Opened::Ask(stream.to, observer.request(transaction))
            }
            (Role::Look(_), None) => Opened::Nothing,
            (Role::Plain | Role::Punched { .. } | Role::Accepted { .. }, _) => Opened::Greet(stream.to),
        }
    }

    /// The check that a stream was greeted with left.
    pub fn greeted(&mut self, id: StreamId, transaction: TransactionId, now: Instant) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.hello = Some((transaction, now));
        }
    }

    /// A stream came in at our port.
    pub fn handle_accepted(&mut self, id: StreamId, port: PortId, from: SocketAddr) -> bool {
        let method = self.rounds.get(self.at).map(|round| round.method).filter(|_| self.port == Some(port));
        let Some(method) = method else { return false };
        let role = Role::Accepted { method };
        self.streams.insert(id, Stream { to: from, role, open: true, hello: None });
        true
    }

    /// A message on a stream of ours, if it is the broker's answer there; true then.
    pub fn handle_frame(&mut self, id: StreamId, bytes: &[u8], hands: &mut Hands<'_>) -> bool {
        let Some(Stream { role: Role::Look(asked), .. }) = self.streams.get(&id) else { return false };
        if let (Some((transaction, at)), Some(observer)) = (*asked, self.observer)
            && let Some(mapped) = observer.answer(bytes, transaction)
            && matches!(self.stage, Stage::Looking { .. })
        {
            self.say_ready(Some(mapped), hands.now.saturating_duration_since(at), hands);
        }
        true
    }

    /// A stream is gone, or never came up.
    pub fn handle_closed(&mut self, id: StreamId, gone: &Gone, hands: &mut Hands<'_>) {
        let Some(stream) = self.streams.remove(&id) else { return };
        match (stream.role, &mut self.stage) {
            (Role::Look(_), Stage::Looking { .. }) => {
                self.why = Some(format!("the broker cannot be asked what our address is: {}", gone.text));
                self.end(hands.now);
            }
            (Role::Punched { tries, .. }, Stage::Dialling { again, step, .. }) => {
                let retry = matches!(gone.why, Why::Refused | Why::Unreachable) && !stream.open;
                let listens = self.rounds.get(self.at).is_some_and(|round| round.abandon.is_some());
                if retry && tries < MAX_TRIES && !(listens && *step == Step::Limit) {
                    let jitter = RETRY.mul_f64(f64::from(hands.rng.u32()) / f64::from(u32::MAX));
                    again.push(Again { due: hands.now + RETRY + jitter, to: stream.to, tries });
                }
                self.why = Some(gone.text.clone());
            }
            (Role::Plain | Role::Punched { .. }, _) => self.why = Some(gone.text.clone()),
            (Role::Look(_) | Role::Accepted { .. }, _) => {}
        }
    }

    /// The other side is ready for `round` and waits.
    pub fn handle_awaited(&mut self, round: u8, hands: &mut Hands<'_>) {
        let wanted = usize::from(round).saturating_sub(1);
        match self.stage {
            Stage::Waiting { .. } => self.begin(wanted, hands),
            Stage::Looking { .. } | Stage::Ready { .. } | Stage::Dialling { .. } if wanted > self.at => {
                self.start_round(wanted, hands);
            }
            Stage::Looking { .. }
            | Stage::Ready { .. }
            | Stage::Dialling { .. }
            | Stage::Ending { .. }
            | Stage::Won { .. }
            | Stage::Over => {}
        }
    }

    /// Both are ready.
    pub fn handle_go(&mut self, round: u8, endpoints: Vec<SocketAddr>, wait: Duration, now: Instant) {
        let ours = usize::from(round) == self.at + 1;
        let (true, Stage::Ready { .. }, Some(plan)) = (ours, &self.stage, self.rounds.get(self.at)) else {
            return;
        };
        let start = now + wait;
        // Those of the other family cost nothing; of one family only as many as the method wants.
        let family =
            |v4: bool| endpoints.iter().copied().filter(move |to| to.is_ipv4() == v4).take(plan.dials);
        let endpoints = family(true).chain(family(false)).collect();
        self.stage = Stage::Dialling { start, endpoints, step: Step::Start, again: Vec::new() };
    }

    /// The peer answered our greeting: which stream, and how long it took.
    pub fn handle_success(
        &mut self,
        transaction: TransactionId,
        now: Instant,
    ) -> Option<(StreamId, Duration)> {
        let greeted = |stream: &Stream| stream.hello.is_some_and(|(id, _)| id == transaction);
        let (id, stream) = self.streams.iter_mut().find(|(_, stream)| greeted(stream))?;
        let (_, at) = stream.hello.take()?;
        Some((*id, now.saturating_duration_since(at)))
    }

    /// A stream of this attempt is proven. The side that asked closes the others; the other side leaves that to it, and
    /// closes only what was never answered, in the end.
    pub fn win(&mut self, winner: StreamId, now: Instant) {
        if !self.is_open() {
            return;
        }
        let settles = self.keys.side() == Side::Asking;
        self.close_unless(|id, stream| {
            id == winner || (!settles && stream.open && !matches!(stream.role, Role::Look(_)))
        });
        self.release();
        self.stage = if settles { Stage::Over } else { Stage::Won { until: now + SETTLED_AFTER, winner } };
    }

    /// TCP is not needed any more, or nothing came of it.
    pub fn give_up(&mut self) {
        self.close_unless(|_, _| false);
        self.release();
        self.stage = Stage::Over;
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, hands: &mut Hands<'_>) {
        let now = hands.now;
        match &mut self.stage {
            Stage::Waiting { until } if *until <= now => self.begin(0, hands),
            Stage::Looking { since } if *since + LOOK_LIMIT <= now => {
                self.why = Some("the broker does not say what our address is".to_owned());
                self.end(now);
            }
            Stage::Ready { since } if *since + READY_LIMIT <= now => {
                self.why = Some("the peer does not take part".to_owned());
                self.end(now);
            }
            Stage::Dialling { .. } => self.dial(hands),
            Stage::Ending { until } if *until <= now => self.give_up(),
            Stage::Won { until, winner } if *until <= now => {
                let winner = *winner;
                self.close_unless(|id, stream| id == winner || stream.hello.is_none());
                self.stage = Stage::Over;
            }
            Stage::Waiting { .. }
            | Stage::Looking { .. }
            | Stage::Ready { .. }
            | Stage::Ending { .. }
            | Stage::Won { .. }
            | Stage::Over => {}
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting { until } | Stage::Ending { until } | Stage::Won { until, .. } => Some(*until),
            Stage::Looking { since } => Some(*since + LOOK_LIMIT),
            Stage::Ready { since } => Some(*since + READY_LIMIT),
            Stage::Dialling { start, step, again, .. } => {
                let round = self.rounds.get(self.at)?;
                let next = *start + step.after(round);
                again.iter().map(|again| again.due).chain([next]).min()
            }
            Stage::Over => None,
        }
    }

    /// The next order.
    pub fn poll_order(&mut self) -> Option<StreamOrder> {
        self.orders.pop_front()
    }

    /// What the broker is to be told.
    pub fn poll_ready(&mut self) -> Option<Ready> {
        self.ready.take()
    }

    fn begin(&mut self, round: usize, hands: &mut Hands<'_>) {
        for to in std::mem::take(&mut self.targets) {
            self.open(Dial::plain(to), Role::Plain, hands);
        }
        self.start_round(round, hands);
    }

    fn start_round(&mut self, at: usize, hands: &mut Hands<'_>) {
        self.at = at;
        // What came up late may still be proven.
        self.close_unless(|_, stream| {
            stream.role == Role::Plain || (stream.open && !matches!(stream.role, Role::Look(_)))
        });
        self.release();
        if self.rounds.get(at).is_none() {
            return self.end(hands.now);
        }
        let port = PortId(hands.number());
        self.port = Some(port);
        self.stage = Stage::Looking { since: hands.now };
        self.orders.push_back(StreamOrder::Bind(port));
    }

    fn next_round(&mut self, hands: &mut Hands<'_>) {
        self.start_round(self.at + 1, hands);
    }

    /// No round is left: plain dials may still come up.
    fn end(&mut self, now: Instant) {
        let plain = self.streams.values().any(|stream| stream.role == Role::Plain);
        let until = if plain { now + Duration::from_secs(5) } else { now };
        self.stage = Stage::Ending { until };
    }

    /// Closes the streams that are not to be kept; forgets those that the attempt is over for, but for the kept.
    fn close_unless(&mut self, keep: impl Fn(StreamId, &Stream) -> bool) {
        let orders = &mut self.orders;
        self.streams.retain(|id, stream| {
            let kept = keep(*id, stream);
            if !kept {
                orders.push_back(StreamOrder::Close(*id));
            }
            kept
        });
    }

    fn release(&mut self) {
        if let Some(port) = self.port.take() {
            self.orders.push_back(StreamOrder::Unbind(port));
        }
        self.bound = Bound::default();
    }

    fn open(&mut self, dial: Dial, role: Role, hands: &mut Hands<'_>) {
        let id = StreamId(hands.number());
        self.streams.insert(id, Stream { to: dial.to, role, open: false, hello: None });
        self.orders.push_back(StreamOrder::Open(id, dial));
    }

    fn say_ready(&mut self, mapped: Option<SocketAddr>, rtt: Duration, hands: &mut Hands<'_>) {
        let Some(round) = self.rounds.get(self.at) else { return };
        let endpoints = self.endpoints(mapped, round);
        if endpoints.is_empty() {
            self.why = Some("no address of ours is known outside".to_owned());
            return self.next_round(hands);
        }
        let round = u8::try_from(self.at + 1).unwrap_or(u8::MAX);
        self.ready = Some(Ready { round, endpoints, rtt });
        self.stage = Stage::Ready { since: hands.now };
    }

    /// Where the peer may dial our port.
    fn endpoints(&self, mapped: Option<SocketAddr>, round: &Round) -> Vec<SocketAddr> {
        let mapped = mapped.filter(|mapped| !mapped.ip().is_loopback());
        let guesses = mapped.into_iter().flat_map(|mapped| guesses(mapped, &self.own, round.guesses));
        let port = |ip: &IpAddr| if ip.is_ipv4() { self.bound.v4 } else { self.bound.v6 };
        let public = self.public.iter().filter_map(|ip| Some(SocketAddr::new(*ip, port(ip)?)));
        let mut endpoints: Vec<SocketAddr> = Vec::with_capacity(MAX_ENDPOINTS);
        for endpoint in guesses.chain(public) {
            if endpoints.len() < MAX_ENDPOINTS && !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        endpoints
    }

    fn dial(&mut self, hands: &mut Hands<'_>) {
        let Some(round) = self.rounds.get(self.at).copied() else { return };
        while let Stage::Dialling { start, endpoints, step, again } = &mut self.stage {
            let now = hands.now;
            if let Some(at) = again.iter().position(|again| again.due <= now) {
                let Again { to, tries, .. } = again.swap_remove(at);
                self.dial_punched(to, tries + 1, &round, hands);
                continue;
            }
            if *start + step.after(&round) > now {
                return;
            }
            match *step {
                Step::Start => {
                    *step = Step::Raise;
                    for to in endpoints.clone() {
                        self.dial_punched(to, 1, &round, hands);
                    }
                }
                Step::Raise => {
                    *step = Step::Abandon;
                    if round.ttl.is_some() {
                        let waits =
                            |stream: &Stream| matches!(stream.role, Role::Punched { .. }) && !stream.open;
                        let waiting = self.streams.iter().filter(|(_, stream)| waits(stream));
                        self.orders.extend(waiting.map(|(id, _)| StreamOrder::RaiseTtl(*id)));
                    }
                }
                Step::Abandon => {
                    *step = Step::Limit;
                    if round.abandon.is_some() {
                        again.clear();
                        self.close_unless(|_, stream| {
                            stream.open || !matches!(stream.role, Role::Punched { .. })
                        });
                    }
                }
                Step::Limit => self.next_round(hands),
            }
        }
    }

    fn dial_punched(&mut self, to: SocketAddr, tries: u8, round: &Round, hands: &mut Hands<'_>) {
        if self.dials == MAX_DIALS {
            return;
        }
        self.dials += 1;
        let ttl = round.ttl.filter(|_| tries == 1);
        let dial = Dial { from: self.port, ttl, ..Dial::plain(to) };
        self.open(dial, Role::Punched { method: round.method, tries }, hands);
    }
}

impl Step {
    /// When it has to be taken, counted from the round's start.
    fn after(self, round: &Round) -> Duration {
        match self {
            Self::Start => round.start,
            Self::Raise => round.start + round.raise,
            Self::Abandon => {
                (round.start + round.abandon.unwrap_or(round.raise)).max(round.start + round.raise)
            }
            Self::Limit => round.limit,
        }
    }
}

/// The outer endpoints that the next `count` connections from a port may have, when one from there is seen as `mapped`.
fn guesses(mapped: SocketAddr, own: &Behavior, count: u16) -> Vec<SocketAddr> {
    let step = match (method::depends(own.mapping), own.ports) {
        (true, PortAssignment::Delta(step)) => i32::from(step),
        _ => return vec![mapped],
    };
    let port = |n: u16| u16::try_from(i32::from(mapped.port()) + step * i32::from(n)).ok();
    (1..=count)
        .filter_map(port)
        .filter(|port| *port > 0)
        .map(|port| SocketAddr::new(mapped.ip(), port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::AttemptId;
    use crate::base::id::RegistrationId;
    use crate::base::rng::Seed;
    use crate::identity::keys::WgSecret;
    use crate::nat::behavior::Mapping;
    use crate::wire::stun;

    #[test]
    fn a_round_looks_tells_dials_and_greets_and_the_first_answered_stream_wins() {
        let mut story = Story::new(Side::Asking, method::simultaneous::round(&INDEPENDENT));
        let port = story.bound();
        let (look, dial) = story.opened_one();
        assert_eq!((dial.to, dial.from, dial.framing), (BROKER, Some(port), Framing::Stun));
        story.look_answers(look, "203.0.113.5:4000");
        let ready = story.attempt.poll_ready().unwrap();
        assert_eq!(ready.endpoints, [at("203.0.113.5:4000")]);
        assert_eq!((ready.round, ready.rtt), (1, ms(80)));

        story.go(&["198.51.100.7:5000"], ms(10));
        assert_eq!(story.orders(), [], "not before the wait is over");
        story.pass(ms(10));
        let (punch, dial) = story.opened_one();
        assert_eq!((dial.to, dial.from, dial.ttl), (at("198.51.100.7:5000"), Some(port), None));
        let opened = story.with(|a, h| a.handle_opened(punch, h));
        assert_eq!(opened, Opened::Greet(at("198.51.100.7:5000")));
        story.attempt.greeted(punch, TransactionId([1; 12]), story.now);
        assert!(story.attempt.handle_accepted(StreamId(1 << 31), port, at("198.51.100.7:5001")));
        story.now += ms(40);
        let won = story.attempt.handle_success(TransactionId([1; 12]), story.now);
        assert_eq!(won, Some((punch, ms(40))));
        story.attempt.win(punch, story.now);
        let closed = [look, StreamId(1 << 31)].map(StreamOrder::Close);
        let mut orders = story.orders();
        orders.sort_by_key(|order| format!("{order:?}"));
        assert_eq!(orders, [closed[0], closed[1], StreamOrder::Unbind(port)]);
        assert!(story.attempt.is_over());
    }

    #[test]
    fn the_side_that_was_asked_leaves_the_choice_to_the_other_and_closes_what_was_never_answered() {
        let mut story = Story::new(Side::Asked, method::simultaneous::round(&INDEPENDENT));
        story.until_dialling(&["198.51.100.7:5000", "198.51.100.8:5000"]);
        let dials = story.opened();
        let [(one, _), (two, _)] = dials[..] else { panic!("{dials:?}") };
        for (n, id) in [(1, one), (2, two)] {
            story.with(|a, h| a.handle_opened(id, h));
            story.attempt.greeted(id, TransactionId([n; 12]), story.now);
        }
        assert!(story.attempt.handle_success(TransactionId([1; 12]), story.now).is_some());
        story.attempt.win(one, story.now);
        assert!(!story.orders().contains(&StreamOrder::Close(two)), "the other side may prefer it");
        story.pass(SETTLED_AFTER);
        assert_eq!(story.orders(), [StreamOrder::Close(two)]);
        assert!(story.attempt.is_over());
    }

    #[test]
    fn a_refused_dial_is_made_again_a_few_times_and_then_another_round_begins() {
        let mut story = Story::new(Side::Asking, method::simultaneous::round(&INDEPENDENT));
        story.until_dialling(&["198.51.100.7:5000"]);
        for _ in 0..MAX_TRIES {
            let (id, _) = story.opened_one();
            let gone = Gone::new(Why::Refused, "refused");
            story.with(|a, h| a.handle_closed(id, &gone, h));
            story.next();
        }
        let orders = story.orders();
        assert!(orders.iter().any(|order| matches!(order, StreamOrder::Unbind(_))), "{orders:?}");
        assert!(matches!(orders.last(), Some(StreamOrder::Bind(_))), "a fresh port: {orders:?}");
    }

    #[test]
    fn a_low_first_ttl_is_raised_before_the_kernel_sends_again() {
        let mut story = Story::new(Side::Asking, method::low_ttl::round(&INDEPENDENT, Some(2)));
        story.until_dialling(&["198.51.100.7:5000"]);
        let (id, dial) = story.opened_one();
        assert_eq!(dial.ttl, Some(3), "one more than the routers up to our own NAT");
        story.pass(ms(899));
        assert_eq!(story.orders(), []);
        story.pass(ms(1));
        assert_eq!(story.orders(), [StreamOrder::RaiseTtl(id)]);
    }

    #[test]
    fn whoever_listens_in_stunt_2_gives_its_syn_up_and_keeps_the_port() {
        let mut story = Story::new(Side::Asked, method::stunt2::round(&INDEPENDENT, Side::Asked));
        story.until_dialling(&["198.51.100.7:5000"]);
        let (id, _) = story.opened_one();
        story.pass(ms(100));
        assert_eq!(story.orders(), [StreamOrder::Close(id)]);
    }

    #[test]
    fn whoever_is_awaited_begins_at_once_and_catches_up() {
        let round = method::simultaneous::round(&INDEPENDENT);
        let mut story = Story::new(Side::Asked, round);
        story.attempt.stage = Stage::Waiting { until: story.now + ms(600) };
        story.with(|a, h| a.handle_awaited(1, h));
        let StreamOrder::Bind(first) = story.orders()[0] else { panic!("no port") };
        story.with(|a, h| a.handle_awaited(2, h));
        let orders = story.orders();
        assert_eq!(orders[0], StreamOrder::Unbind(first));
        assert!(matches!(orders[1], StreamOrder::Bind(port) if port != first), "{orders:?}");
    }

    #[test]
    fn a_nat_that_steps_is_met_where_it_will_be() {
        let own = |mapping, step| Behavior { mapping, ports: PortAssignment::Delta(step), ..INDEPENDENT };
        let seen = at("203.0.113.5:20000");
        let ports = |own: &Behavior, count| -> Vec<u16> {
            guesses(seen, own, count).iter().map(SocketAddr::port).collect()
        };
        assert_eq!(ports(&INDEPENDENT, 5), [20000]);
        assert_eq!(ports(&own(Mapping::SessionDependent, 2), 3), [20002, 20004, 20006]);
        assert_eq!(ports(&own(Mapping::AddressDependent, -1), 2), [19999, 19998]);
        assert_eq!(guesses(at("203.0.113.5:65534"), &own(Mapping::SessionDependent, 1), 5).len(), 1);
    }

    #[test]
    fn an_attempt_that_nobody_takes_part_in_ends() {
        let mut story = Story::new(Side::Asking, method::simultaneous::round(&INDEPENDENT));
        story.bound();
        let (look, _) = story.opened_one();
        story.look_answers(look, "203.0.113.5:4000");
        while !story.attempt.is_over() {
            story.next();
        }
        assert_eq!(story.attempt.tally(), (0, Some("the peer does not take part")));
    }

    const INDEPENDENT: Behavior = Behavior {
        passes: Some(true),
        mapping: Mapping::EndpointIndependent,
        filtering: crate::nat::behavior::Filtering::AddressAndPortDependent,
        ports: PortAssignment::Preserved,
        reaction: crate::nat::behavior::Reaction::Drop,
        hairpin: None,
        paired: None,
        lifetime: None,
    };
    const BROKER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 6060);
    const KEY: [u8; 32] = [3; 32];

    struct Story {
        attempt: Attempt,
        now: Instant,
        rng: Rng,
        next: u32,
    }

    impl Story {
        /// An attempt that is to begin now, with the same round twice.
        fn new(side: Side, round: Round) -> Self {
            #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
            let now = Instant::now();
            let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
            let keys = PairKeys::new(&a, b.public(), AttemptId([7; 16]), side).unwrap();
            let observer = Observer { at: BROKER, registration: RegistrationId(9), key: KEY };
            let plan = Plan {
                own: INDEPENDENT,
                public: Vec::new(),
                observer: Some(observer),
                targets: Vec::new(),
                rounds: vec![round; 2],
            };
            let attempt = Attempt::new(keys, plan, now);
            Self { attempt, now, rng: Rng::new(Seed([0; 32])), next: 1 }
        }

        fn with<T>(&mut self, act: impl FnOnce(&mut Attempt, &mut Hands<'_>) -> T) -> T {
            let mut hands = Hands { now: self.now, rng: &mut self.rng, next: &mut self.next };
            act(&mut self.attempt, &mut hands)
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.with(Attempt::handle_timeout);
        }

        /// To the next deadline.
        fn next(&mut self) {
            if let Some(at) = self.attempt.poll_timeout() {
                self.now = self.now.max(at);
                self.with(Attempt::handle_timeout);
            }
        }

        fn orders(&mut self) -> Vec<StreamOrder> {
            std::iter::from_fn(|| self.attempt.poll_order()).collect()
        }

        fn opened(&mut self) -> Vec<(StreamId, Dial)> {
            let opened =
                |order| if let StreamOrder::Open(id, dial) = order { Some((id, dial)) } else { None };
            self.orders().into_iter().filter_map(opened).collect()
        }

        fn opened_one(&mut self) -> (StreamId, Dial) {
            let opened = self.opened();
            assert_eq!(opened.len(), 1, "{opened:?}");
            opened[0]
        }

        fn bound(&mut self) -> PortId {
            self.pass(Duration::ZERO);
            let orders = self.orders();
            let [StreamOrder::Bind(port)] = orders[..] else { panic!("{orders:?}") };
            self.with(|a, h| a.handle_bound(port, Bound { v4: Some(4000), v6: None }, h));
            port
        }

        fn look_answers(&mut self, look: StreamId, mapped: &str) {
            let Opened::Ask(to, question) = self.with(|a, h| a.handle_opened(look, h)) else {
                panic!("no question")
            };
            assert_eq!(to, BROKER);
            self.now += ms(80);
            let question = stun::Received::parse(&question).unwrap();
            assert!(question.is_authentic(&KEY));
            let answer = question.message.success().with(stun::Attribute::XorMappedAddress(at(mapped)));
            let answer = answer.emit(stun::Integrity::Sha256(&KEY));
            assert!(self.with(|a, h| a.handle_frame(look, &answer, h)));
        }

        fn go(&mut self, endpoints: &[&str], wait: Duration) {
            let endpoints = endpoints.iter().map(|endpoint| at(endpoint)).collect();
            let round = u8::try_from(self.attempt.at + 1).unwrap();
            self.attempt.handle_go(round, endpoints, wait, self.now);
            self.with(Attempt::handle_timeout);
        }

        fn until_dialling(&mut self, endpoints: &[&str]) {
            self.bound();
            let (look, _) = self.opened_one();
            self.look_answers(look, "203.0.113.5:4000");
            self.attempt.poll_ready().unwrap();
            self.go(endpoints, Duration::ZERO);
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }
}
