//! A search for ports over UDP, for two members one of whom at least is seen at another port from everywhere.
//!
//! Plain checks ([`super::attempt`]) fail between a NAT that gives every destination a port of its own and one that lets
//! in only what was written to: nobody knows which port to write to. A search finds out, and has it checked:
//!
//! ```text
//! begin -> fresh socket -> look by the broker -> tell it -> both go -> check what the other one was told -> next round
//! ```
//!
//! * Opposite a peer whose endpoint is known, a port that steps is measured, not predicted. Three datagrams leave back to
//!   back: a look, a knock at the peer's door, a look from a second socket. The knock has the port between those of the two
//!   looks, however busy the NAT is before and after.
//! * Two NATs that step are met as the P2PWG white paper has it (N+1, there 3.5): both look at the same time, tell each other
//!   the next few ports, and write to them in order. The packet to the n-th guess then has the n-th guessed port itself.
//!   Another mapping in between spoils it, so the attempts of a member take turns ([`super::turn`]).
//!
//! * A NAT that gives random ports is met by chance (the birthday paradox; frp, EasyTier and Tailscale's blog describe it for
//!   UDP): its side writes to the peer from [`SOCKETS`] sockets, the peer to up to [`PROBES`] of the ports that may be
//!   theirs. `1 - (1 - SOCKETS / 64,512) ^ PROBES` is 98 %, half of it after 175 probes. Where the first few ports lie narrows
//!   the range. Once in [`REST`], and one at a time.
//!
//! Sockets are fresh in every round, since an old one has old ports for old destinations. The search orders them and is told
//! what a look has seen; which ways come of it, the checks decide.

mod part;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::id::SocketId;
use crate::base::rng::Rng;
use crate::base::transmit::Via;
use crate::punch::method::How;
use crate::punch::method::Method;
use crate::punch::method::prediction::next;
use crate::punch::tcp::Hands;
use crate::punch::tcp::Ready;
use crate::punch::turn;
use crate::wire::broker::MAX_ENDPOINTS;
use crate::wire::stun;
use crate::wire::stun::TransactionId;

pub use part::Part;
pub use part::part;

/// The broker counts rounds of a search from here on, apart from those of TCP.
pub const FIRST_ROUND: u8 = 128;
/// When the looks of a round leave, counted from its beginning.
const LADDER: [Duration; 4] = [ms(0), ms(250), ms(500), ms(1000)];
/// How long they may take.
const LOOK_LIMIT: Duration = ms(2000);
/// How long the other side may take to be ready.
const READY_LIMIT: Duration = ms(4000);
/// How long what was found is checked before the next round: the first four rungs of a check, and a round trip.
const CHECK_LIMIT: Duration = ms(1000);
/// How long the packets of one side take to leave, when it checks guesses.
const SENDING: Duration = ms(50);
/// Rounds of a search in which ports are measured: one, and another if packets were lost.
const ROUNDS_BETWEEN: u8 = 2;
/// Rounds in which they are guessed.
const ROUNDS_NEXT: u8 = 3;
/// Sockets of a side that has random ports. Each is a mapping at its NAT for half a minute or so; home routers hold
/// thousands.
pub const SOCKETS: usize = 256;
/// Ports that the other side tries: as many mappings at its own NAT.
pub const PROBES: u32 = 1024;
/// Between two of these probes: 250 a second, a quarter of a megabit.
const SWEEP_PACE: Duration = ms(4);
/// Sockets that are opened at a time, and the pause behind them.
const BATCH: usize = 16;
const BATCH_PACE: Duration = ms(10);
/// How long all that takes.
const SWEEP_LIMIT: Duration = ms(4500);
/// Before the next try with the same peer.
pub const REST: Duration = Duration::from_secs(120);
/// Ports below are not given out by NATs.
const LOWEST_PORT: u16 = 1024;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Where things are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The broker, which answers STUN over UDP.
    pub broker: SocketAddr,
    /// Where it sees our data socket.
    pub mapped: SocketAddr,
    /// Where it sees the peer's.
    pub peer: SocketAddr,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Open a socket.
    Open(SocketId),
    /// Send this question.
    Ask(SocketId, SocketAddr, Vec<u8>),
    /// Send a check whose answer nobody waits for.
    Knock(SocketId, SocketAddr),
    /// Check an address from here until it answers or the attempt is over.
    Check(Via, SocketAddr),
}

/// A search.
#[derive(Debug)]
pub struct Search {
    attempt: AttemptId,
    part: Part,
    terms: Terms,
    /// The round under way, counted from 0.
    at: u8,
    stage: Stage,
    looks: Vec<Look>,
    /// Sockets that have no look.
    many: Vec<SocketId>,
    deeds: VecDeque<Deed>,
    ready: Option<Ready>,
}

#[derive(Debug)]
enum Stage {
    Waiting {
        until: Instant,
    },
    Looking {
        since: Instant,
        sent: usize,
    },
    Ready {
        since: Instant,
    },
    Starting {
        at: Instant,
        endpoints: Vec<SocketAddr>,
    },
    Checking {
        until: Instant,
    },
    /// Opens more sockets.
    Opening {
        due: Instant,
        left: usize,
        until: Instant,
    },
    /// Tries ports.
    Sweeping {
        due: Instant,
        ports: Sweep,
    },
    Over,
}

/// Ports in an order that visits each once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sweep {
    at: IpAddr,
    /// The range: its first port, and how many there are.
    first: u16,
    count: u32,
    /// Where in the range the sweep begins, and how many ports it has tried.
    start: u32,
    tried: u32,
}

#[derive(Debug)]
struct Look {
    socket: SocketId,
    /// The questions, all alike, and when the latest left.
    transaction: TransactionId,
    asked: Instant,
    seen: Option<(SocketAddr, Duration)>,
}

impl Search {
    /// Begins at `start`, or when the peer is found to have begun.
    #[must_use]
    pub fn new(attempt: AttemptId, part: Part, terms: Terms, start: Instant) -> Self {
        let stage = Stage::Waiting { until: start };
        let (looks, deeds) = (Vec::new(), VecDeque::new());
        Self { attempt, part, terms, at: 0, stage, looks, many: Vec::new(), deeds, ready: None }
    }

    /// The introduction that it is for.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// How a way is found now.
    #[must_use]
    pub fn how(&self) -> How {
        let method = match self.part {
            Part::Told | Part::Between(_) | Part::Next(_) => Method::Prediction,
            Part::Many | Part::Sweep => Method::Birthday,
        };
        How { method, round: Some(self.at + 1) }
    }

    /// Whether it takes hundreds of sockets and packets.
    #[must_use]
    pub fn is_large(&self) -> bool {
        matches!(self.part, Part::Many | Part::Sweep)
    }

    /// Whether something may come of it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.stage, Stage::Over)
    }

    /// Whether a socket is still needed.
    #[must_use]
    pub fn uses(&self, socket: SocketId) -> bool {
        let looks = || self.looks.iter().map(|look| look.socket);
        self.is_open() && looks().chain(self.many.iter().copied()).any(|used| used == socket)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, hands: &mut Hands<'_>) {
        let now = hands.now;
        match &mut self.stage {
            Stage::Waiting { until } if *until <= now => self.begin(hands),
            Stage::Looking { since, .. } if *since + LOOK_LIMIT <= now => self.next_round(hands),
            Stage::Looking { since, sent }
                if LADDER.get(*sent).is_some_and(|after| *since + *after <= now) =>
            {
                *sent += 1;
                self.look(now);
            }
            Stage::Ready { since } if *since + READY_LIMIT <= now => self.give_up(),
            Stage::Starting { at, .. } if *at <= now => self.start(hands),
            Stage::Checking { until } if *until <= now => self.next_round(hands),
            Stage::Opening { due, .. } if *due <= now => self.open_more(hands),
            Stage::Sweeping { due, .. } if *due <= now => self.sweep(now),
            Stage::Waiting { .. }
            | Stage::Looking { .. }
            | Stage::Ready { .. }
            | Stage::Starting { .. }
            | Stage::Checking { .. }
            | Stage::Opening { .. }
            | Stage::Sweeping { .. }
            | Stage::Over => {}
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting { until } | Stage::Checking { until } => Some(*until),
            Stage::Looking { since, sent } => Some(*since + LADDER.get(*sent).copied().unwrap_or(LOOK_LIMIT)),
            Stage::Ready { since } => Some(*since + READY_LIMIT),
            Stage::Starting { at, .. } => Some(*at),
            Stage::Opening { due, .. } | Stage::Sweeping { due, .. } => Some(*due),
            Stage::Over => None,
        }
    }

    /// A STUN message came to one of our sockets; true if it is the answer to a look.
    pub fn handle_answer(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        received: &stun::Received<'_>,
        hands: &mut Hands<'_>,
    ) -> bool {
        let message = &received.message;
        let asked = |look: &&mut Look| look.socket == socket && look.transaction == message.transaction;
        let (true, Some(look)) = (from == self.terms.broker, self.looks.iter_mut().find(asked)) else {
            return false;
        };
        let (stun::Class::Success, Some(mapped)) = (message.class, message.mapped()) else { return false };
        let rtt = hands.now.saturating_duration_since(look.asked);
        look.seen.get_or_insert((mapped, rtt));
        if matches!(self.stage, Stage::Looking { .. }) {
            self.conclude(hands);
        }
        true
    }

    /// The other side is ready for `round` and waits.
    pub fn handle_awaited(&mut self, round: u8, hands: &mut Hands<'_>) {
        let Some(wanted) = round.checked_sub(FIRST_ROUND) else { return };
        match self.stage {
            Stage::Waiting { .. } if wanted >= self.at => {
                self.at = wanted;
                self.begin(hands);
            }
            Stage::Looking { .. } | Stage::Ready { .. } | Stage::Checking { .. } if wanted > self.at => {
                self.at = wanted;
                self.begin(hands);
            }
            Stage::Waiting { .. }
            | Stage::Looking { .. }
            | Stage::Ready { .. }
            | Stage::Starting { .. }
            | Stage::Checking { .. }
            | Stage::Opening { .. }
            | Stage::Sweeping { .. }
            | Stage::Over => {}
        }
    }

    /// Both are ready: the other one is at one of `endpoints`.
    pub fn handle_go(&mut self, round: u8, endpoints: Vec<SocketAddr>, wait: Duration, now: Instant) {
        if round == FIRST_ROUND + self.at && matches!(self.stage, Stage::Ready { .. }) {
            self.stage = Stage::Starting { at: now + wait, endpoints };
        }
    }

    /// It is not needed any more.
    pub fn give_up(&mut self) {
        self.stage = Stage::Over;
        self.deeds.clear();
        self.ready = None;
    }

    /// What is to be done next.
    pub fn poll_deed(&mut self) -> Option<Deed> {
        self.deeds.pop_front()
    }

    /// What the broker is to be told.
    pub fn poll_ready(&mut self) -> Option<Ready> {
        self.ready.take()
    }

    fn begin(&mut self, hands: &mut Hands<'_>) {
        let now = hands.now;
        let sockets = match self.part {
            _ if self.at >= self.rounds() => return self.give_up(),
            Part::Told => {
                let endpoints = vec![self.terms.mapped];
                self.looks.clear();
                return self.say_ready(endpoints, Duration::ZERO, now);
            }
            Part::Next(_) | Part::Many | Part::Sweep if !hands.turn.take(self.attempt, now) => {
                self.stage = Stage::Waiting { until: now + turn::AGAIN };
                return;
            }
            Part::Sweep => {
                self.say_ready(vec![self.terms.mapped], Duration::ZERO, now);
                return hands.turn.keep(self.attempt, now + SWEEP_LIMIT);
            }
            Part::Next(_) => 1,
            Part::Between(_) => 2,
            Part::Many => {
                hands.turn.keep(self.attempt, now + SWEEP_LIMIT);
                MAX_ENDPOINTS
            }
        };
        self.looks.clear();
        for _ in 0..sockets {
            let socket = SocketId(hands.number());
            let transaction = TransactionId(hands.rng.bytes());
            self.looks.push(Look { socket, transaction, asked: now, seen: None });
            self.deeds.push_back(Deed::Open(socket));
        }
        self.stage = Stage::Looking { since: now, sent: 1 };
        self.look(now);
    }

    fn next_round(&mut self, hands: &mut Hands<'_>) {
        self.at += 1;
        self.begin(hands);
    }

    const fn rounds(&self) -> u8 {
        match self.part {
            Part::Told | Part::Between(_) => ROUNDS_BETWEEN,
            Part::Next(_) => ROUNDS_NEXT,
            Part::Many | Part::Sweep => 1,
        }
    }

    /// Sends what the round asks, in an order in which a NAT that steps gives out its ports.
    fn look(&mut self, now: Instant) {
        for (n, look) in self.looks.iter_mut().enumerate() {
            look.asked = now;
            let question =
                stun::Message::request(stun::BINDING, look.transaction).emit(stun::Integrity::None);
            self.deeds.push_back(Deed::Ask(look.socket, self.terms.broker, question));
            if n == 0 && matches!(self.part, Part::Between(_)) {
                self.deeds.push_back(Deed::Knock(look.socket, self.terms.peer));
            }
        }
    }

    /// What the looks have seen, if they have seen everything.
    fn conclude(&mut self, hands: &mut Hands<'_>) {
        let seen: Vec<(SocketAddr, Duration)> = self.looks.iter().filter_map(|look| look.seen).collect();
        let endpoints = match (self.part, &seen[..]) {
            (Part::Between(step), [(first, _), (last, _)]) => between(*first, *last, step),
            (Part::Next(step), [(first, _)]) => next(*first, step, MAX_ENDPOINTS),
            (Part::Many, all) if all.len() == self.looks.len() => all.iter().map(|(seen, _)| *seen).collect(),
            (Part::Told | Part::Between(_) | Part::Next(_) | Part::Many | Part::Sweep, _) => return,
        };
        if endpoints.is_empty() {
            // The numbers began anew, or the NAT does not do what it was seen to do.
            return self.next_round(hands);
        }
        let rtt = seen.first().map(|(_, rtt)| *rtt).unwrap_or_default();
        self.say_ready(endpoints, rtt, hands.now);
    }

    fn say_ready(&mut self, endpoints: Vec<SocketAddr>, rtt: Duration, now: Instant) {
        if matches!(self.part, Part::Between(_)) {
            // The second look has done its duty.
            self.looks.truncate(1);
        }
        self.ready = Some(Ready { round: FIRST_ROUND + self.at, endpoints, rtt });
        self.stage = Stage::Ready { since: now };
    }

    fn start(&mut self, hands: &mut Hands<'_>) {
        let Stage::Starting { endpoints, .. } = &mut self.stage else { return };
        let endpoints = std::mem::take(endpoints);
        let own = self.looks.first().map(|look| Via::Udp(look.socket));
        match (self.part, own) {
            (Part::Between(_), Some(own)) => self.deeds.push_back(Deed::Check(own, self.terms.peer)),
            (Part::Next(_), Some(own)) => {
                let same = |to: &SocketAddr| to.is_ipv4() == self.terms.peer.is_ipv4();
                self.deeds.extend(endpoints.into_iter().filter(same).map(|to| Deed::Check(own, to)));
                hands.turn.end(self.attempt, hands.now + SENDING);
            }
            (Part::Many, _) => {
                let sockets = self.looks.iter().map(|look| look.socket);
                self.deeds.extend(sockets.map(|socket| Deed::Knock(socket, self.terms.peer)));
                let left = SOCKETS - self.looks.len();
                self.stage = Stage::Opening { due: hands.now, left, until: hands.now + SWEEP_LIMIT };
                return;
            }
            (Part::Sweep, _) => {
                // Nobody but the peer is to be swept, whatever it says.
                let peer = self.terms.peer.ip();
                let seen = endpoints.iter().filter(|to| to.ip() == peer).map(SocketAddr::port);
                let ports = Sweep::new(peer, &seen.collect::<Vec<_>>(), hands.rng);
                self.stage = Stage::Sweeping { due: hands.now, ports };
                return;
            }
            (Part::Told | Part::Between(_) | Part::Next(_), _) => {
                self.deeds.extend(endpoints.into_iter().map(|to| Deed::Check(Via::udp_for(to), to)));
            }
        }
        self.stage = Stage::Checking { until: hands.now + CHECK_LIMIT };
    }

    /// The next few sockets of many.
    fn open_more(&mut self, hands: &mut Hands<'_>) {
        let Stage::Opening { due, left, until } = &mut self.stage else { return };
        let some = BATCH.min(*left);
        if some == 0 {
            self.stage = Stage::Checking { until: *until };
            return;
        }
        (*due, *left) = (hands.now + BATCH_PACE, *left - some);
        for _ in 0..some {
            let socket = SocketId(hands.number());
            self.many.push(socket);
            self.deeds.extend([Deed::Open(socket), Deed::Knock(socket, self.terms.peer)]);
        }
    }

    /// The next port.
    fn sweep(&mut self, now: Instant) {
        let Stage::Sweeping { due, ports } = &mut self.stage else { return };
        match ports.next() {
            Some(to) => {
                *due = now + SWEEP_PACE;
                self.deeds.push_back(Deed::Knock(SocketId::V4, to));
            }
            None => self.stage = Stage::Checking { until: now + CHECK_LIMIT },
        }
    }
}

impl Sweep {
    /// Of the ports of `at` among which those are that were `seen`: evenly spread ports are met in any part of their range
    /// equally often, so the part that is known suffices.
    fn new(at: IpAddr, seen: &[u16], rng: &mut Rng) -> Self {
        let (low, high) = (seen.iter().min().copied(), seen.iter().max().copied());
        let (low, high) = (low.unwrap_or(LOWEST_PORT).max(LOWEST_PORT), high.unwrap_or(u16::MAX));
        let wide = u32::from(high.saturating_sub(low)) + 1 >= PROBES;
        let (low, high) = if wide { (low, high) } else { (LOWEST_PORT, u16::MAX) };
        let count = u32::from(high - low) + 1;
        Self { at, first: low, count, start: rng.below(count), tried: 0 }
    }
}

impl Iterator for Sweep {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        if self.tried == PROBES {
            return None;
        }
        let offset = (self.start + self.tried) % self.count;
        self.tried += 1;
        Some(SocketAddr::new(self.at, self.first + u16::try_from(offset).ok()?))
    }
}

/// The ports strictly between those of two looks, as many as may be told: the knock left right after the first look, so its
/// port is the likelier the nearer it is to that.
fn between(first: SocketAddr, last: SocketAddr, step: i16) -> Vec<SocketAddr> {
    let steps = (i32::from(last.port()) - i32::from(first.port())) / i32::from(step);
    if first.ip() != last.ip() || steps < 2 {
        return Vec::new();
    }
    let count = usize::try_from(steps - 1).unwrap_or(0);
    next(first, step, count.min(MAX_ENDPOINTS))
}

#[cfg(test)]
mod tests;
