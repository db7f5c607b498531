//! The tests on TCP mappings that are half open, and their steps: a SYN to a port of the server that answers nothing, a look
//! at how it arrived, something that is done to the mapping, and what came of it.

use std::net::SocketAddr;
use std::time::Duration;

use super::Survey;
use super::probe::Ask;
use super::probe::Dial;
use super::probe::End;
use super::probe::PATIENCE;
use super::probe::Probe;
use super::probe::Slot;
use super::question::FILTER_WATCH;
use super::question::IDLE;
use super::question::Question;
use super::question::is_fit;
use super::question::place;
use crate::wire::stun::Attribute;
use crate::wire::stun::STUNT_PROBE;
use crate::wire::stun::STUNT_SEEN;
use crate::wire::stun::stunt;
use crate::wire::stun::stunt::Action;
use crate::wire::stun::stunt::Port;

/// How long an answer to a single segment is waited for.
const SEGMENT_WATCH: Duration = Duration::from_millis(1500);
/// How long after a segment its effect is looked at.
const SETTLE: Duration = Duration::from_millis(200);
/// How long until a SYN that was lost has been repeated by the kernel, after a second, and has arrived.
const REPETITION: Duration = Duration::from_millis(1200);

/// Ports of this machine: of the tests that take no time, of those that leave a mapping idle, and of the connections on which
/// the server is asked about the latter.
const AT_ONCE: u8 = 4;
const OPENING: u8 = 40;
const CALLING: u8 = 50;

/// A test on a half open TCP mapping: a SYN to the server's silent port, then something else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HalfOpen {
    /// A SYN from there.
    Crossing,
    /// A RST from there, then what would have been the answer.
    Reset,
    /// An ICMP error, then the answer.
    Icmp,
    /// A SYN-ACK to there.
    SynAck,
    /// Nothing for so many seconds, then the answer.
    Idle(u16),
}

impl HalfOpen {
    /// All but the idle ones.
    pub const SEGMENTS: [Self; 4] = [Self::Crossing, Self::Reset, Self::Icmp, Self::SynAck];

    /// All, in the order in which they are done.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::SEGMENTS.into_iter().chain(IDLE.map(Self::Idle))
    }

    /// A place in a list; all idle ones have one together.
    const fn number(self) -> u8 {
        match self {
            Self::Crossing => 0,
            Self::Reset => 1,
            Self::Icmp => 2,
            Self::SynAck => 3,
            Self::Idle(_) => 4,
        }
    }

    /// The TCP port of this machine that it is done on.
    fn slot(self) -> Slot {
        match self {
            Self::Idle(seconds) => Slot(OPENING.saturating_add(place(seconds))),
            _ => Slot(AT_ONCE.saturating_add(self.number())),
        }
    }
}

impl Survey {
    /// The steps of a test on a half open mapping. Each address of the server has one silent port, so tests at the same
    /// address follow each other: the newest SYN that came there must be the right one.
    pub(super) fn half_open(&mut self, test: HalfOpen, step: Question) -> Option<Probe> {
        let server = self.stunt_server()?;
        let wanted = match test {
            HalfOpen::Crossing => server.can.silent && server.can.watch,
            HalfOpen::Reset | HalfOpen::Icmp | HalfOpen::Idle(_) => server.can.forge && server.can.watch,
            HalfOpen::SynAck => server.can.watch,
        };
        let address = self.address_of(test)?;
        let ip = *server.addresses.get(usize::from(address))?;
        let silent = SocketAddr::new(ip, server.silent.filter(|_| wanted)?);
        is_fit(silent, self.tcp_primary()?).then_some(())?;
        let from = test.slot();
        let target = self.opened(test).map(|syn| (syn.source, syn.sequence));
        match step {
            Question::Opened(_) => {
                self.heard(Question::TcpPrimed)?;
                let before = HalfOpen::all().take_while(|other| *other != test);
                let mut same = before.filter(|other| self.address_of(*other) == Some(address));
                same.all(|other| self.is_settled(other)).then_some(())?;
                // A mapping that is to be idle must not see the SYN again.
                Some(Probe::Syn { from, to: silent, goes_on: !matches!(test, HalfOpen::Idle(_)) })
            }
            Question::Looked(_) => {
                self.is_over(Question::Opened(test)).then_some(())?;
                self.ask(STUNT_SEEN, None, SETTLE, PATIENCE)
            }
            Question::LookedAgain(_) => {
                (self.is_unseen(test) && !matches!(test, HalfOpen::Idle(_))).then_some(())?;
                self.ask(STUNT_SEEN, None, REPETITION, PATIENCE)
            }
            Question::Tested(_) => {
                let (port, sequence) = target?;
                let forge = |survey: &mut Self, action, watch| {
                    survey.stunt(action, address, Port::Silent, Some(port), watch, Duration::ZERO)
                };
                match test {
                    HalfOpen::Crossing => forge(self, Action::Connect, FILTER_WATCH),
                    HalfOpen::Reset => forge(self, Action::Reset, Duration::ZERO),
                    HalfOpen::Icmp => forge(self, Action::Icmp { kind: 11, code: 0 }, Duration::ZERO),
                    HalfOpen::SynAck => Some(Probe::SynAck { from, to: silent, sequence }),
                    HalfOpen::Idle(_) => None,
                }
            }
            Question::Answered(HalfOpen::Idle(seconds)) => {
                // By a connection of its own: the first one may have been forgotten as well.
                let (port, action, watch) = (target?.0, Action::SynAck, SEGMENT_WATCH);
                let probe = stunt::Probe { action, address, port: Port::Silent, target: Some(port), watch };
                let message = Some(self.request(STUNT_PROBE, Some(Attribute::StuntProbe(probe))));
                let (to, after) = (self.tcp_primary()?, Duration::from_secs(seconds.into()));
                let (from, end) = (Slot(CALLING.saturating_add(place(seconds))), End::Keep);
                Some(Probe::Dial(Dial { from, to, message, after, wait: watch, end, sequence: false }))
            }
            Question::Answered(_) => {
                let done = matches!(test, HalfOpen::Reset | HalfOpen::Icmp)
                    && self.heard(Question::Tested(test)).is_some();
                let (port, _) = target.filter(|_| done)?;
                self.stunt(Action::SynAck, address, Port::Silent, Some(port), SEGMENT_WATCH, SETTLE)
            }
            Question::Judged(HalfOpen::Idle(_)) => {
                self.heard(Question::Answered(test))?;
                let (on, message) = (Question::Answered(test), self.request(STUNT_SEEN, None));
                Some(Probe::Ask(Ask { on, message, after: SETTLE, wait: PATIENCE }))
            }
            Question::Judged(_) => {
                let last =
                    if test == HalfOpen::SynAck { Question::Tested(test) } else { Question::Answered(test) };
                self.is_over(last).then_some(())?;
                self.ask(STUNT_SEEN, None, SETTLE, PATIENCE)
            }
            _ => None,
        }
    }

    /// The address at which a half open test is done: another one for each, as far as they go.
    pub(super) fn address_of(&self, test: HalfOpen) -> Option<u8> {
        test.number().checked_rem(u8::try_from(self.stunt_server()?.addresses.len()).ok()?)
    }

    /// Whether no further step of a half open test will come.
    fn is_settled(&self, test: HalfOpen) -> bool {
        let last = match test {
            HalfOpen::Crossing => Question::Tested(test),
            HalfOpen::Reset | HalfOpen::Icmp | HalfOpen::SynAck => Question::Judged(test),
            HalfOpen::Idle(_) => Question::Looked(test),
        };
        let failed = |step: Question| self.is_over(step) && self.heard(step).is_none();
        let unseen = self.is_over(Question::LookedAgain(test)) && self.opened(test).is_none();
        self.is_over(last)
            || unseen
            || failed(Question::Looked(test))
            || (test != HalfOpen::SynAck && failed(Question::Tested(test)))
    }

    /// Whether the server was asked for the SYN of a half open test, and had not seen it by then.
    fn is_unseen(&self, test: HalfOpen) -> bool {
        self.heard(Question::Looked(test)).is_some() && self.opened(test).is_none()
    }

    /// The SYN of a half open test, as the server saw it. One that is not repeated may be lost: then the newest is that of a
    /// test before.
    pub(super) fn opened(&self, test: HalfOpen) -> Option<stunt::Segment> {
        let syn = |segment: &stunt::Segment| segment.flags & (stunt::SYN | stunt::ACK) == stunt::SYN;
        let newest = |test| {
            let looks = [Question::LookedAgain(test), Question::Looked(test)];
            looks.into_iter().find_map(|look| self.segment(test, look, syn))
        };
        let mut before = HalfOpen::all().take_while(|other| *other != test);
        let is_same = |other: HalfOpen, found: &stunt::Segment| {
            newest(other).is_some_and(|one| (one.address, one.source) == (found.address, found.source))
        };
        newest(test).filter(|found| !before.any(|other| is_same(other, found)))
    }

    /// The newest segment that came to a half open test's silent port, as an answer tells.
    pub(super) fn segment(
        &self,
        test: HalfOpen,
        answer: Question,
        wanted: impl Fn(&stunt::Segment) -> bool,
    ) -> Option<stunt::Segment> {
        let (silent, address) = (self.stunt_server()?.silent?, self.address_of(test)?);
        let at = |segment: &&stunt::Segment| {
            segment.destination == silent && segment.address == address && wanted(segment)
        };
        self.heard(answer)?.message.stunt_segments().find(at).cloned()
    }
}
