//! One end of a TCP connection.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::id::PortId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::transmit::Gone;
use ntcp_overlay::base::transmit::Why;

use super::segment::Kind;
use super::segment::Segment;
use super::segment::TTL;
use crate::ms;
use crate::secs;

/// Between two SYNs of one socket: Linux repeats the first four each second (`tcp_syn_linear_timeouts`).
const SYN_AGAIN: Duration = secs(1);
/// The first pause between two SYN-ACKs; each is twice the one before.
const SYN_ACK_AGAIN: Duration = secs(1);
/// SYN-ACKs of a connection that nobody confirms (`tcp_synack_retries`, and the first).
const SYN_ACKS: u32 = 6;
/// `io::doors`: how long a dial may take, and how long an accepted stream may keep silent at first.
const DOORS_LIMIT: Duration = secs(5);
/// Unconfirmed messages are sent again after this, then after twice as much, and so on.
const DATA_AGAIN: Duration = ms(400);
/// Unconfirmed for so long, a connection is dead (`TCP_USER_TIMEOUT`, as `io::doors` sets it).
const USER_TIMEOUT: Duration = secs(20);
/// After so much silence the far end is asked for a sign of life, and so often again, as `io::doors` sets it.
const KEEPALIVE: (Duration, Duration) = (secs(25), secs(5));

/// What stands between a socket and a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It has sent a SYN.
    Dialling,
    /// It has sent a SYN and got one: the two have crossed.
    Crossing,
    /// A listener has got a SYN.
    Invited,
    /// Nothing.
    Open,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) id: StreamId,
    pub(super) state: State,
    /// Hops of its segments.
    pub(super) ttl: u8,
    /// `sys::option::ignore_dead_on_the_way`.
    pub(super) ignores_expiry: bool,
    /// Of a listener of an attempt.
    pub(super) port: Option<PortId>,
    /// The far end's initial sequence number.
    pub(super) theirs: u32,
    number: u32,
    accepted: bool,
    /// When it was made, or, later, when the connection came up.
    born: Instant,
    /// When it last sent what it may have to send again, how often it did, and when it began to.
    sent: Instant,
    tries: u32,
    since: Instant,
    /// Messages that the far end has not confirmed, and the number of the first.
    unconfirmed: VecDeque<Vec<u8>>,
    first: u64,
    /// The number of the next message from there, and messages that came before their turn.
    expects: u64,
    early: BTreeMap<u64, Vec<u8>>,
    heard: Instant,
    probed: Instant,
    frames: u64,
}

/// What comes of something that happens to a socket.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) segments: Vec<Segment>,
    pub(super) opened: bool,
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) gone: Option<Gone>,
}

impl Socket {
    pub(super) fn new(id: StreamId, state: State, number: u32, now: Instant) -> Self {
        Self {
            id,
            state,
            ttl: TTL,
            ignores_expiry: false,
            port: None,
            theirs: 0,
            number,
            accepted: state == State::Invited,
            born: now,
            sent: now,
            tries: 0,
            since: now,
            unconfirmed: VecDeque::new(),
            first: 0,
            expects: 0,
            early: BTreeMap::new(),
            heard: now,
            probed: now,
            frames: 0,
        }
    }

    pub(super) fn syn(&self) -> Segment {
        Segment { ttl: self.ttl, kind: Kind::Syn(self.number) }
    }

    pub(super) fn syn_ack(&self) -> Segment {
        Segment { ttl: self.ttl, kind: Kind::SynAck(self.number, self.theirs) }
    }

    /// A message to send; it waits if the connection is not open yet.
    pub(super) fn push(&mut self, bytes: Vec<u8>, now: Instant) -> Option<Segment> {
        if self.unconfirmed.is_empty() {
            (self.sent, self.since, self.tries) = (now, now, 0);
        }
        let number = self.first + self.unconfirmed.len() as u64;
        self.unconfirmed.push_back(bytes.clone());
        (self.state == State::Open).then(|| Segment::new(Kind::Data(number, bytes)))
    }

    /// A segment of the far end, or an ICMP error about one of ours.
    pub(super) fn handle(&mut self, kind: Kind, now: Instant) -> Told {
        let mut told = Told::default();
        self.heard = now;
        match (kind, self.state) {
            (Kind::Syn(theirs), State::Dialling | State::Crossing | State::Invited) => {
                if self.state == State::Dialling {
                    (self.state, self.sent, self.tries) = (State::Crossing, now, 0);
                }
                self.theirs = theirs;
                told.segments.push(self.syn_ack());
            }
            (Kind::SynAck(_, answers), State::Dialling | State::Crossing) if answers != self.number => {
                told.segments.push(Segment::new(Kind::Reset(None)));
            }
            (Kind::SynAck(..), State::Dialling | State::Crossing | State::Open) => {
                told.segments.push(Segment::new(Kind::Ack(self.expects)));
                self.open(now, &mut told);
            }
            (Kind::Ack(upto), State::Crossing | State::Invited | State::Open) => {
                self.open(now, &mut told);
                self.confirm(upto, now);
            }
            (Kind::Data(number, bytes), State::Crossing | State::Invited | State::Open) => {
                self.open(now, &mut told);
                self.take(number, bytes, &mut told);
                told.segments.push(Segment::new(Kind::Ack(self.expects)));
            }
            (Kind::Probe, State::Open) => told.segments.push(Segment::new(Kind::Ack(self.expects))),
            (Kind::Fin, State::Crossing | State::Invited | State::Open) => {
                told.gone = Some(Gone::new(Why::Lost, "closed by the far end"));
            }
            (Kind::Reset(answers), State::Dialling) if answers == Some(self.number) => {
                told.gone = Some(Gone::new(Why::Refused, "cannot connect: refused"));
            }
            // One that answers a SYN has no number that fits here.
            (Kind::Reset(None), State::Crossing | State::Invited) => {
                told.gone = Some(Gone::new(Why::Refused, "cannot connect: refused"));
            }
            (Kind::Reset(_), State::Open) => told.gone = Some(Gone::new(Why::Lost, "lost: reset")),
            (Kind::Unreachable(number), State::Dialling | State::Crossing) if number == self.number => {
                told.gone = Some(Gone::new(Why::Unreachable, "cannot connect: no route to host"));
            }
            (Kind::Expired(number), State::Dialling | State::Crossing)
                if number == self.number && !self.ignores_expiry =>
            {
                told.gone = Some(Gone::new(Why::Unreachable, "cannot connect: no route to host"));
            }
            _ => {}
        }
        told
    }

    /// Time passed: what was not answered is sent again, or given up.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Told {
        let mut told = Told::default();
        if let Some((_, why, text)) = self.limit().filter(|(at, ..)| *at <= now) {
            if self.state == State::Open {
                told.segments.push(Segment::new(Kind::Fin));
            }
            told.gone = Some(Gone::new(why, text));
            return told;
        }
        if self.again().is_some_and(|at| at <= now) {
            self.sent = now;
            self.tries += 1;
            match self.state {
                State::Dialling => told.segments.push(self.syn()),
                State::Crossing | State::Invited => told.segments.push(self.syn_ack()),
                State::Open => told.segments.extend(self.all_unconfirmed()),
            }
        }
        if self.probe().is_some_and(|at| at <= now) {
            self.probed = now;
            told.segments.push(Segment::new(Kind::Probe));
        }
        told
    }

    /// When to call [`Self::handle_timeout`].
    pub(super) fn due(&self) -> Instant {
        let limit = self.limit().map(|(at, ..)| at);
        let all = [limit, self.again(), self.probe()].into_iter().flatten();
        all.min().unwrap_or(self.born + USER_TIMEOUT)
    }

    /// When it is over, and why, if nothing happens before.
    fn limit(&self) -> Option<(Instant, Why, &'static str)> {
        match self.state {
            State::Dialling | State::Crossing => {
                Some((self.born + DOORS_LIMIT, Why::Silent, "cannot connect: no answer within 5 s"))
            }
            State::Invited => Some((
                self.born + SYN_ACK_AGAIN * ((1 << SYN_ACKS) - 1),
                Why::Silent,
                "the connection was not confirmed",
            )),
            State::Open if self.accepted && self.frames == 0 => {
                Some((self.born + DOORS_LIMIT, Why::Lost, "sent no message within 5 s"))
            }
            State::Open if !self.unconfirmed.is_empty() => {
                Some((self.since + USER_TIMEOUT, Why::Lost, "lost: nothing is confirmed"))
            }
            State::Open => {
                let (silence, gap) = KEEPALIVE;
                Some((self.heard + silence + gap, Why::Lost, "lost: no sign of life"))
            }
        }
    }

    /// When what was sent is sent again.
    fn again(&self) -> Option<Instant> {
        match self.state {
            State::Dialling => Some(self.sent + SYN_AGAIN),
            State::Crossing | State::Invited => Some(self.sent + SYN_ACK_AGAIN * (1 << self.tries.min(6))),
            State::Open if self.unconfirmed.is_empty() => None,
            State::Open => Some(self.sent + DATA_AGAIN * (1 << self.tries.min(6))),
        }
    }

    /// When the far end is asked for a sign of life.
    fn probe(&self) -> Option<Instant> {
        let (silence, gap) = KEEPALIVE;
        let idle = self.state == State::Open && self.unconfirmed.is_empty();
        idle.then(|| (self.heard + silence).max(self.probed + gap))
    }

    fn open(&mut self, now: Instant, told: &mut Told) {
        if self.state == State::Open {
            return;
        }
        self.state = State::Open;
        (self.born, self.sent, self.since, self.tries) = (now, now, now, 0);
        told.opened = true;
        told.segments.extend(self.all_unconfirmed());
    }

    fn all_unconfirmed(&self) -> impl Iterator<Item = Segment> {
        let data = |(n, bytes): (u64, &Vec<u8>)| Segment::new(Kind::Data(n, bytes.clone()));
        (self.first..).zip(&self.unconfirmed).map(data)
    }

    /// The far end has everything before `upto`.
    fn confirm(&mut self, upto: u64, now: Instant) {
        while self.first < upto && self.unconfirmed.pop_front().is_some() {
            self.first += 1;
            (self.sent, self.since, self.tries) = (now, now, 0);
        }
    }

    /// A message came: it and those that waited for it are handed on.
    fn take(&mut self, number: u64, bytes: Vec<u8>, told: &mut Told) {
        if number >= self.expects {
            self.early.insert(number, bytes);
        }
        while let Some(next) = self.early.remove(&self.expects) {
            self.expects += 1;
            self.frames += 1;
            told.frames.push(next);
        }
    }
}
