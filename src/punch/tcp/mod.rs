//! One attempt at a direct TCP connection: rounds of punching, and plain dials beside them, until a stream is proven.
//!
//! ```text
//! begin -> bind a port -> look from the broker -> tell it that we are ready -> both go -> dial -> the next round
//!      \-> dial where the peer always listens
//! ```
//!
//! The attempt orders sockets and is told what became of them. It greets every stream of its own with a keyed check; the
//! first one whose check is answered wins, and the others are closed by the side that asked, so that both keep the same.

mod answer;
mod terms;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::PortId;
use crate::base::id::StreamId;
use crate::base::transmit::Bound;
use crate::base::transmit::Dial;
use crate::base::transmit::Framing;
use crate::base::transmit::Gone;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Why;
use crate::nat::behavior::Behavior;
use crate::punch::keys::PairKeys;
use crate::punch::keys::Side;
use crate::punch::look::Observer;
use crate::punch::method;
use crate::punch::method::Answer;
use crate::punch::method::How;
use crate::punch::method::Method;
use crate::punch::method::Round;
use crate::punch::turn;
use crate::wire::broker::MAX_ENDPOINTS;
use crate::wire::stun::TransactionId;
use crate::wire::syn::Syn;

use answer::Forgeries;

pub use terms::Dialled;
pub use terms::Hands;
pub use terms::Opened;
pub use terms::Plan;
pub use terms::Ready;

/// How long the look from the broker may take: two round trips, one lost packet.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// How long the other side may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(6);
/// A dial that was refused is made again after this and up to as much more by chance: the peer's SYN was late, and with
/// it comes a way in.
const RETRY: Duration = Duration::from_millis(40);
/// Dials of one endpoint in one round, at most.
const MAX_TRIES: u8 = 5;
/// How much sooner UDP begins, where it may work: most of its checks are answered by then. A peer that is ready for TCP
/// ends the wait.
pub const HEAD_START: Duration = Duration::from_millis(600);
/// How long the side that was asked waits for the other one to settle on a stream.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// Punching dials of one attempt, at most: those of all rounds with their retries. The kernel sends each SYN up to three
/// times more before its round ends.
const MAX_DIALS: u32 = 120;

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
    /// What the broker saw of the port.
    mapped: Option<SocketAddr>,
    /// The SYN that was sent from there, where it matters.
    syn: Option<Syn>,
    streams: BTreeMap<StreamId, Stream>,
    orders: VecDeque<StreamOrder>,
    ready: Option<Ready>,
    dialled: Option<Dialled>,
    forgeries: Forgeries,
    dials: u32,
    /// All rounds are over, and nothing came of them.
    failed: bool,
    tried: VecDeque<Method>,
    why: Option<String>,
}

#[derive(Debug)]
enum Stage {
    /// Before a round, which time or the peer brings about; the first round, unless others of this member had their turn.
    Waiting {
        until: Instant,
        round: usize,
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

impl Attempt {
    /// Begins at `start`, or when the peer is found to have begun.
    #[must_use]
    pub fn new(keys: PairKeys, plan: Plan, start: Instant) -> Self {
        let Plan { own, public, observer, targets, rounds, first } = plan;
        Self {
            keys,
            own,
            public,
            observer,
            targets,
            rounds,
            at: 0,
            stage: Stage::Waiting { until: start, round: first },
            port: None,
            bound: Bound::default(),
            mapped: None,
            syn: None,
            streams: BTreeMap::new(),
            orders: VecDeque::new(),
            ready: None,
            dialled: None,
            forgeries: Forgeries::default(),
            dials: 0,
            failed: false,
            tried: VecDeque::new(),
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

    /// Whether all rounds were tried in vain.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
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

    /// How a stream of this attempt came to be; to be asked when it is open.
    #[must_use]
    pub fn how(&self, id: StreamId) -> Option<How> {
        match self.streams.get(&id)?.role {
            Role::Look(_) => None,
            Role::Plain => Some(How { method: Method::Direct, round: None }),
            Role::Punched { method, .. } | Role::Accepted { method } => {
                Some(How { method, round: u8::try_from(self.at + 1).ok() })
            }
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
        let punched = matches!(stream.role, Role::Punched { .. });
        let opened = match (&mut stream.role, self.observer) {
            (Role::Look(asked), Some(observer)) => {
                let transaction = TransactionId(hands.rng.bytes());
                *asked = Some((transaction, hands.now));
                Opened::Ask(stream.to, observer.request(transaction))
            }
            (Role::Look(_), None) => Opened::Nothing,
            (Role::Plain | Role::Punched { .. } | Role::Accepted { .. }, _) => Opened::Greet(stream.to),
        };
        if punched {
            self.note_answer();
        }
        opened
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
                let round = self.rounds.get(self.at);
                // Who answers for the peer has told it of this SYN and of no other.
                let told = round.is_some_and(|round| round.answer != Answer::Peer);
                let retry = matches!(gone.why, Why::Refused | Why::Unreachable) && !stream.open && !told;
                let listens = round.is_some_and(|round| round.abandon.is_some());
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
            Stage::Waiting { round, .. } => self.begin(wanted.max(round), hands),
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
        let endpoints = Self::answerable(plan.answer, family(true).chain(family(false)).collect());
        self.tried.push_back(plan.method);
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
            Stage::Waiting { until, round } if *until <= now => {
                let round = *round;
                self.begin(round, hands);
            }
            Stage::Looking { since } if *since + LOOK_LIMIT <= now => {
                self.why = Some("the broker does not say what our address is".to_owned());
                self.end(now);
            }
            Stage::Ready { since } if *since + READY_LIMIT <= now => {
                self.why = Some("the peer does not take part".to_owned());
                self.end(now);
            }
            Stage::Dialling { .. } => self.dial(hands),
            Stage::Ending { until } if *until <= now => {
                self.failed = true;
                self.give_up();
            }
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
            Stage::Waiting { until, .. } | Stage::Ending { until } | Stage::Won { until, .. } => Some(*until),
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

    /// A method that was begun with.
    pub fn poll_tried(&mut self) -> Option<Method> {
        self.tried.pop_front()
    }

    /// What the broker is to be told.
    pub fn poll_ready(&mut self) -> Option<Ready> {
        self.ready.take()
    }

    fn begin(&mut self, round: usize, hands: &mut Hands<'_>) {
        if !self.targets.is_empty() {
            self.tried.push_back(Method::Direct);
        }
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
        if method::steps(&self.own).is_some() && !hands.turn.take(self.keys.attempt(), hands.now) {
            self.stage = Stage::Waiting { until: hands.now + turn::AGAIN, round: at };
            return;
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

    /// Closes and forgets the streams that are not to be kept.
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
        (self.mapped, self.syn) = (None, None);
    }

    fn open(&mut self, dial: Dial, role: Role, hands: &mut Hands<'_>) {
        let id = StreamId(hands.number());
        self.streams.insert(id, Stream { to: dial.to, role, open: false, hello: None });
        self.orders.push_back(StreamOrder::Open(id, dial));
    }

    fn say_ready(&mut self, mapped: Option<SocketAddr>, rtt: Duration, hands: &mut Hands<'_>) {
        self.mapped = mapped;
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
                    hands.turn.end(self.keys.attempt(), now);
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
        let told = round.answer != Answer::Peer;
        let dial = Dial { from: self.port, ttl, told, ..Dial::plain(to) };
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
    match method::steps(own) {
        Some(step) => method::prediction::next(mapped, step, usize::from(count)),
        None => vec![mapped],
    }
}

#[cfg(test)]
mod tests;
