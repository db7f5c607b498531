//! The table of tests: what each needs to be known before, and how it is done.
//!
//! UDP is measured as RFC 5780 says (4.3 mapping, 4.4 filtering, 4.5 hairpin, 4.6 lifetime), TCP as STUNT does (Gaballo's
//! thesis 4.5: three tests of the binding, three of the filter, and the fourth, a SYN from where a SYN went). Further: how
//! ports follow each other, from [`SAMPLES`] fresh ports in a row; how many routers stand before the outside, by datagrams
//! that expire on the way; what single segments of TCP do to a mapping that is half open; and how long idle mappings live,
//! of UDP, and of TCP after a SYN, established, and after a FIN (RFC 5382 5).

use std::net::SocketAddr;
use std::time::Duration;

use super::Scope;
use super::Survey;
use super::half_open::HalfOpen;
use super::probe::Ask;
use super::probe::Datagram;
use super::probe::Dial;
use super::probe::End;
use super::probe::Finding;
use super::probe::Heard;
use super::probe::PATIENCE;
use super::probe::Probe;
use super::probe::Slot;
use crate::base::addr::canonical;
use crate::base::addr::is_candidate;
use crate::wire::stun::Attribute;
use crate::wire::stun::BINDING;
use crate::wire::stun::Message;
use crate::wire::stun::STUNT_PROBE;
use crate::wire::stun::STUNT_SEEN;
use crate::wire::stun::TransactionId;
use crate::wire::stun::stunt;
use crate::wire::stun::stunt::Action;
use crate::wire::stun::stunt::Port;

/// Servers that one survey asks.
pub const MAX_SERVERS: usize = 4;
/// Fresh ports whose mappings are compared: with 8, one port that somebody else took in between leaves 5 of 7 steps.
pub const SAMPLES: u8 = 8;
/// Idle times after which a mapping is looked at, s: where the timers of real boxes lie (30 s many carriers, 60 s and 120 s
/// home routers; RFC 4787 REQ-5 asks for 120).
pub const IDLE: [u16; 4] = [10, 30, 60, 120];
/// Routers that are looked for: a home behind a carrier has three or four of its own.
const HOPS: u8 = 6;
/// TCP waits this long for UDP's ports to be sampled, lest their ports get mixed; where UDP is blocked, no longer.
const GRACE: Duration = Duration::from_millis(600);
/// How long a filter is watched: three SYNs of the server's kernel.
pub(super) const FILTER_WATCH: Duration = Duration::from_millis(2400);
/// How long the reaction to a stranger's SYN is waited for: RFC 5382 REQ-4 lets a NAT answer after 6 s.
const REACTION_WATCH: Duration = Duration::from_secs(8);

/// UDP ports. Mappings are looked at on one, filters on another; the last asks for answers elsewhere.
const MAPPING: Slot = Slot(0);
const FILTERING: Slot = Slot(1);
const ASKING: Slot = Slot(2);
/// TCP: a port that nobody has written from.
const UNMAPPED: Slot = Slot(3);
const SAMPLED: u8 = 10;
/// UDP and TCP: the ports whose mappings are left idle.
const IDLING: u8 = 20;
/// TCP: those after a FIN. Half open tests have 4 to 7, and from 40.
const CLOSING: u8 = 30;

/// One test.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Question {
    /// A Binding to one of the servers.
    Server(u8),
    /// From the same port, to the first server's other port, other address, and both.
    OtherPort,
    /// See [`Self::OtherPort`].
    OtherAddress,
    /// See [`Self::OtherPort`].
    OtherBoth,
    /// A Binding from the port on which the filter is measured.
    Primed,
    /// From there: answer from your other address and port.
    FromOtherAddress,
    /// From there: answer from your other port.
    FromOtherPort,
    /// A Binding from a fresh port.
    Sample(u8),
    /// From the first sampled port to the outer endpoint of the second (0), and back (1).
    Hairpin(u8),
    /// The routers on the way.
    Hops,
    /// A mapping that will be left alone for so many seconds.
    Idle(u16),
    /// Answer to that mapping, asked from another port after that time.
    Awoken(u16),
    /// TCP may begin.
    Grace,
    /// A Binding over TCP to one of the servers.
    Tcp(u8),
    /// As for UDP.
    TcpOtherPort,
    /// As for UDP.
    TcpOtherAddress,
    /// As for UDP.
    TcpOtherBoth,
    /// The first of these three once more.
    TcpAgain,
    /// A connection from the port on which the filter is measured; requests travel on it.
    TcpPrimed,
    /// A Binding from a fresh port.
    TcpSample(u8),
    /// Wait for connections to that filtered port (0), to a port without a mapping (1), to the sampled ports (2, 3).
    Listen(u8),
    /// Connect to me from another address.
    TcpFromOtherAddress,
    /// Connect to me from another port.
    TcpFromOtherPort,
    /// Connect to my port that has no mapping.
    TcpUnmapped,
    /// As for UDP, by connections that cross.
    TcpHairpin(u8),
    /// A SYN to the silent port.
    Opened(HalfOpen),
    /// How did it look?
    Looked(HalfOpen),
    /// The same once more, if nothing of it was seen: the kernel has repeated it meanwhile.
    LookedAgain(HalfOpen),
    /// The segment that is tested.
    Tested(HalfOpen),
    /// The answer that the SYN would have got, to see whether the mapping is still there.
    Answered(HalfOpen),
    /// What came of that?
    Judged(HalfOpen),
    /// What did the SYN of the first connection look like?
    TcpSequence,
    /// An established connection: say something after so many seconds.
    TcpIdle(u16),
    /// The same on a connection that this side has ended.
    TcpEnding(u16),
}

impl Question {
    /// All of them, in the order in which they are asked if several can be.
    pub(super) fn all(scope: Scope) -> impl Iterator<Item = Self> {
        let servers = || (0..MAX_SERVERS).filter_map(|n| u8::try_from(n).ok());
        let udp = [
            Self::Grace,
            Self::OtherPort,
            Self::OtherAddress,
            Self::OtherBoth,
            Self::Primed,
            Self::FromOtherAddress,
            Self::FromOtherPort,
        ];
        let ports = (0..SAMPLES).map(Self::Sample);
        let tcp = [
            Self::TcpOtherPort,
            Self::TcpOtherAddress,
            Self::TcpOtherBoth,
            Self::TcpAgain,
            Self::TcpPrimed,
            Self::TcpSequence,
        ];
        let tcp_ports = (0..SAMPLES).map(Self::TcpSample).chain((0..4).map(Self::Listen));
        let filters = [Self::TcpUnmapped, Self::TcpFromOtherAddress, Self::TcpFromOtherPort];
        let half_open = HalfOpen::all().filter(move |test| match test {
            HalfOpen::SynAck => scope.privileged,
            HalfOpen::Idle(_) => scope.lifetimes,
            HalfOpen::Crossing | HalfOpen::Reset | HalfOpen::Icmp => true,
        });
        let half_open = half_open.flat_map(|test| {
            [Self::Opened, Self::Looked, Self::LookedAgain, Self::Tested, Self::Answered, Self::Judged]
                .map(|step| step(test))
        });
        let rest = [Self::Hairpin(0), Self::Hairpin(1), Self::TcpHairpin(0), Self::TcpHairpin(1), Self::Hops];
        // The first is the control: whether the server answers elsewhere at all.
        let idle = std::iter::once(0).chain(IDLE).filter(move |_| scope.lifetimes);
        let idle = idle.flat_map(|seconds| [Self::Idle(seconds), Self::Awoken(seconds)]);
        let tcp_idle = IDLE.into_iter().filter(move |_| scope.lifetimes);
        let tcp_idle = tcp_idle.flat_map(|seconds| [Self::TcpIdle(seconds), Self::TcpEnding(seconds)]);
        let udp = servers().map(Self::Server).chain(udp).chain(ports);
        let tcp = servers().map(Self::Tcp).chain(tcp).chain(tcp_ports).chain(filters).chain(half_open);
        udp.chain(tcp).chain(rest).chain(idle).chain(tcp_idle)
    }

    /// Whether it waits for a mapping to go, in the background.
    pub(super) const fn is_about_idleness(self) -> bool {
        match self {
            Self::Idle(_) | Self::Awoken(_) | Self::TcpIdle(_) | Self::TcpEnding(_) => true,
            Self::Opened(test)
            | Self::Looked(test)
            | Self::LookedAgain(test)
            | Self::Tested(test)
            | Self::Answered(test)
            | Self::Judged(test) => matches!(test, HalfOpen::Idle(_)),
            _ => false,
        }
    }
}

/// Where a server answers: its first address and port, and what else it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Places {
    pub(super) first: SocketAddr,
    pub(super) other_port: Option<SocketAddr>,
    pub(super) other_address: Option<SocketAddr>,
    pub(super) other_both: Option<SocketAddr>,
}

impl Places {
    /// From OTHER-ADDRESS (RFC 5780 7.4); a server with one address or one port repeats it there.
    fn new(first: SocketAddr, other: Option<SocketAddr>) -> Self {
        let other = other.map(canonical).filter(|other| is_fit(*other, first));
        let ip = other.map(|other| other.ip()).filter(|ip| *ip != first.ip() && !ip.is_unspecified());
        let port = other.map(|other| other.port()).filter(|port| *port != first.port() && *port != 0);
        let both = ip.zip(port);
        Self {
            first,
            other_port: port.map(|port| SocketAddr::new(first.ip(), port)),
            other_address: ip.map(|ip| SocketAddr::new(ip, first.port())),
            other_both: both.map(|(ip, port)| SocketAddr::new(ip, port)),
        }
    }

    fn stunt(first: SocketAddr, server: &stunt::Server) -> Self {
        let ip = server.addresses.get(1).copied().unwrap_or_else(|| first.ip());
        Self::new(first, Some(SocketAddr::new(ip, server.alternate.unwrap_or_else(|| first.port()))))
    }
}

impl Survey {
    /// How a question is answered; `None` if what it needs is not known, or not yet.
    pub(super) fn probe(&mut self, question: Question) -> Option<Probe> {
        match question {
            Question::Server(n) => self.binding(MAPPING, *self.servers.get(usize::from(n))?, None),
            Question::OtherPort => self.binding(MAPPING, self.places()?.other_port?, None),
            Question::OtherAddress => self.binding(MAPPING, self.places()?.other_address?, None),
            Question::OtherBoth => self.binding(MAPPING, self.places()?.other_both?, None),
            Question::Primed => self.binding(FILTERING, self.primary()?, None),
            Question::FromOtherAddress => {
                self.heard(Question::Primed)?;
                let places = self.places()?;
                places.other_address?;
                let change = Attribute::ChangeRequest { ip: true, port: places.other_both.is_some() };
                self.binding(FILTERING, places.first, Some(change))
            }
            Question::FromOtherPort => {
                self.heard(Question::Primed)?;
                let places = self.places()?;
                places.other_port?;
                self.binding(
                    FILTERING,
                    places.first,
                    Some(Attribute::ChangeRequest { ip: false, port: true }),
                )
            }
            Question::Sample(n) => {
                // Behind the tests that take ports themselves.
                self.asked.contains(&Question::Primed).then_some(())?;
                self.binding(Slot(SAMPLED + n), self.primary()?, None)
            }
            Question::Hairpin(side) => {
                self.is_sampled().then_some(())?;
                let to = self.outer(Question::Sample(1 - side.min(1)), self.primary()?)?;
                let (from, hear) = (Slot(SAMPLED + side), Slot(SAMPLED + 1 - side.min(1)));
                let message = self.request(BINDING, None);
                Some(Probe::Udp(Datagram { from, hear, to, message, after: Duration::ZERO }))
            }
            Question::Hops => {
                self.is_sampled().then_some(())?;
                // Where UDP is blocked, SYNs expire as well.
                let (to, message) = match self.primary() {
                    Some(to) => (to, Some(self.request(BINDING, None))),
                    None => (self.tcp_primary()?, None),
                };
                Some(Probe::Trace { to, message, hops: HOPS })
            }
            Question::Idle(seconds) => {
                let answers_elsewhere =
                    self.heard(Question::Awoken(0)).is_some_and(|heard| heard.message.error().is_none());
                (self.is_sampled() && (seconds == 0 || answers_elsewhere)).then_some(())?;
                self.binding(idle_slot(seconds), self.primary()?, None)
            }
            Question::Awoken(seconds) => {
                let port = self.mapped(Question::Idle(seconds))?.port();
                let (to, after) = (self.primary()?, Duration::from_secs(seconds.into()));
                let message = self.paid(Some(Attribute::ResponsePort(port)), to);
                Some(Probe::Udp(Datagram { from: ASKING, hear: idle_slot(seconds), to, message, after }))
            }
            _ => self.tcp_probe(question),
        }
    }

    fn tcp_probe(&mut self, question: Question) -> Option<Probe> {
        match question {
            Question::Grace => Some(Probe::Wait(GRACE)),
            Question::Tcp(n) => {
                (self.is_sampled() || self.is_over(Question::Grace)).then_some(())?;
                self.dial(MAPPING, *self.servers.get(usize::from(n))?, End::Keep)
            }
            // With a RST, so that it can be dialled again.
            Question::TcpOtherPort => self.dial(MAPPING, self.tcp_places()?.other_port?, End::Reset),
            Question::TcpOtherAddress => self.dial(MAPPING, self.tcp_places()?.other_address?, End::Close),
            Question::TcpOtherBoth => self.dial(MAPPING, self.tcp_places()?.other_both?, End::Close),
            Question::TcpAgain => {
                self.heard(Question::TcpOtherPort)?;
                self.dial(MAPPING, self.tcp_places()?.other_port?, End::Close)
            }
            Question::TcpPrimed => {
                self.is_mapping_known().then_some(())?;
                self.dial(FILTERING, self.tcp_primary()?, End::Keep)
            }
            Question::TcpSample(n) => {
                self.asked.contains(&Question::TcpPrimed).then_some(())?;
                // The first two are to meet by their outer endpoints.
                let end = if n < 2 { End::Keep } else { End::Close };
                self.dial(Slot(SAMPLED + n), self.tcp_primary()?, end)
            }
            Question::Listen(n) => {
                self.is_tcp_sampled().then_some(())?;
                Some(Probe::Listen(
                    *[FILTERING, UNMAPPED, Slot(SAMPLED), Slot(SAMPLED + 1)].get(usize::from(n))?,
                ))
            }
            Question::TcpFromOtherAddress => {
                self.is_over(Question::Listen(0)).then_some(())?;
                let last = self.last_address()?;
                self.stunt(Action::Connect, last, Port::Any, None, FILTER_WATCH, Duration::ZERO)
            }
            Question::TcpFromOtherPort => {
                self.is_over(Question::Listen(0)).then_some(())?;
                self.stunt(Action::Connect, 0, Port::Any, None, FILTER_WATCH, Duration::ZERO)
            }
            Question::TcpUnmapped => {
                let Some(Finding::Done(Some(listening))) = self.found.get(&Question::Listen(1)) else {
                    return None;
                };
                let (target, from) = (listening.port(), self.last_address().unwrap_or(0));
                self.stunt(Action::Connect, from, Port::Any, Some(target), REACTION_WATCH, Duration::ZERO)
            }
            Question::TcpHairpin(side) => {
                (self.is_over(Question::Listen(2)) && self.is_over(Question::Listen(3))).then_some(())?;
                let to = self.outer(Question::TcpSample(1 - side.min(1)), self.tcp_primary()?)?;
                let (from, none) = (Slot(SAMPLED + side), Duration::ZERO);
                let (message, end) = (None, End::Close);
                Some(Probe::Dial(Dial { from, to, message, after: none, wait: none, end, sequence: false }))
            }
            Question::TcpSequence => {
                self.heard(Question::TcpPrimed)?;
                self.stunt_server()?.can.own_syn.then_some(())?;
                self.ask(STUNT_SEEN, None, Duration::ZERO, PATIENCE)
            }
            Question::Opened(test)
            | Question::Looked(test)
            | Question::LookedAgain(test)
            | Question::Tested(test)
            | Question::Answered(test)
            | Question::Judged(test) => self.half_open(test, question),
            Question::TcpIdle(seconds) => self.leave_idle(seconds, IDLING, End::Keep),
            Question::TcpEnding(seconds) => self.leave_idle(seconds, CLOSING, End::Half),
            _ => None,
        }
    }

    /// A connection on which the server is asked to say something after a while, and nothing before.
    fn leave_idle(&mut self, seconds: u16, slots: u8, end: End) -> Option<Probe> {
        self.is_tcp_sampled().then_some(())?;
        self.stunt_server()?;
        let (action, watch) = (Action::Wait { seconds }, Duration::ZERO);
        let probe = stunt::Probe { action, address: 0, port: Port::Any, target: None, watch };
        let message = self.request(STUNT_PROBE, Some(Attribute::StuntProbe(probe)));
        let (to, from) = (self.tcp_primary()?, Slot(slots.saturating_add(place(seconds))));
        let (message, wait) = (Some(message), Duration::from_secs(seconds.into()));
        Some(Probe::Dial(Dial { from, to, message, after: Duration::ZERO, wait, end, sequence: false }))
    }

    /// The server that all further questions go to: the first that has a second address, else the first that answered.
    /// `None` while that is open.
    pub(super) fn primary(&self) -> Option<SocketAddr> {
        self.best(Question::Server, |message| message.other_address().is_some())
    }

    /// The same for TCP: the first that does STUNT.
    pub(super) fn tcp_primary(&self) -> Option<SocketAddr> {
        self.best(Question::Tcp, |message| message.stunt_server().is_some())
    }

    fn best(&self, question: fn(u8) -> Question, able: impl Fn(&Message) -> bool) -> Option<SocketAddr> {
        let mut answered = None;
        for (n, server) in (0..).zip(&self.servers) {
            match self.found.get(&question(n))? {
                Finding::Heard(heard) if able(&heard.message) => return Some(*server),
                Finding::Heard(_) => answered = answered.or(Some(*server)),
                _ => {}
            }
        }
        answered
    }

    /// Where the first server answers by UDP.
    pub(super) fn places(&self) -> Option<Places> {
        let first = self.primary()?;
        Some(Places::new(first, self.greeting(first, Question::Server)?.other_address()))
    }

    /// The same for TCP.
    pub(super) fn tcp_places(&self) -> Option<Places> {
        let first = self.tcp_primary()?;
        let greeting = self.greeting(first, Question::Tcp)?;
        // Stock servers do not name their other address on TCP, but listen there.
        let elsewhere = || self.greeting(first, Question::Server).and_then(Message::other_address);
        Some(match greeting.stunt_server() {
            Some(server) => Places::stunt(first, server),
            None => Places::new(first, greeting.other_address().or_else(elsewhere)),
        })
    }

    /// What the STUNT server offers, if there is one.
    pub(super) fn stunt_server(&self) -> Option<stunt::Server> {
        self.greeting(self.tcp_primary()?, Question::Tcp)?.stunt_server().cloned()
    }

    fn greeting(&self, server: SocketAddr, question: fn(u8) -> Question) -> Option<&Message> {
        let n = self.servers.iter().position(|other| *other == server)?;
        Some(&self.heard(question(u8::try_from(n).ok()?))?.message)
    }

    /// The address of the server that nobody here has dialled, or at least not from the filtered port.
    fn last_address(&self) -> Option<u8> {
        let count = self.stunt_server()?.addresses.len();
        u8::try_from(count.checked_sub(1)?).ok().filter(|last| *last > 0)
    }

    /// Whether the fresh ports have been looked at, or will never be.
    pub(super) fn is_sampled(&self) -> bool {
        self.is_mute(Question::Server) || (0..SAMPLES).all(|n| self.is_over(Question::Sample(n)))
    }

    pub(super) fn is_tcp_sampled(&self) -> bool {
        self.is_mute(Question::Tcp) || (0..SAMPLES).all(|n| self.is_over(Question::TcpSample(n)))
    }

    /// Whether all servers were asked and none answered.
    pub(super) fn is_mute(&self, question: fn(u8) -> Question) -> bool {
        (0..).zip(&self.servers).all(|(n, _)| self.is_over(question(n)) && self.heard(question(n)).is_none())
    }

    /// Whether no mapping test of TCP is under way or to come.
    fn is_mapping_known(&self) -> bool {
        let Some(places) = self.tcp_places() else { return false };
        let over = |place: Option<SocketAddr>, question| place.is_none() || self.is_over(question);
        over(places.other_port, Question::TcpOtherPort)
            && over(places.other_address, Question::TcpOtherAddress)
            && over(places.other_both, Question::TcpOtherBoth)
            && (self.heard(Question::TcpOtherPort).is_none() || self.is_over(Question::TcpAgain))
    }

    pub(super) fn heard(&self, question: Question) -> Option<&Heard> {
        match self.found.get(&question)? {
            Finding::Heard(heard) => Some(heard),
            _ => None,
        }
    }

    pub(super) fn mapped(&self, question: Question) -> Option<SocketAddr> {
        self.heard(question)?.message.mapped()
    }

    /// An own outer endpoint that may be written to.
    fn outer(&self, question: Question, server: SocketAddr) -> Option<SocketAddr> {
        self.mapped(question).map(canonical).filter(|outer| is_fit(*outer, server))
    }

    pub(super) fn is_over(&self, question: Question) -> bool {
        self.found.contains_key(&question)
    }

    pub(super) fn request(&mut self, method: u16, attribute: Option<Attribute>) -> Message {
        let request = Message::request(method, TransactionId(self.rng.bytes()));
        attribute.into_iter().fold(request, Message::with)
    }

    fn binding(&mut self, slot: Slot, to: SocketAddr, attribute: Option<Attribute>) -> Option<Probe> {
        let message = self.paid(attribute, to);
        Some(Probe::Udp(Datagram { from: slot, hear: slot, to, message, after: Duration::ZERO }))
    }

    /// A Binding request as long as what our server answers: four addresses, of 12 bytes each or, in IPv6, 24. So it has
    /// nothing to give away, and need not be asked whether it would.
    fn paid(&mut self, attribute: Option<Attribute>, to: SocketAddr) -> Message {
        const ATTRIBUTE_HEADER: u16 = 4;
        let addresses = if to.is_ipv4() { 4 * 12 } else { 4 * 24 };
        self.request(BINDING, attribute).with(Attribute::Filler(addresses - ATTRIBUTE_HEADER))
    }

    fn dial(&mut self, from: Slot, to: SocketAddr, end: End) -> Option<Probe> {
        let message = Some(self.request(BINDING, None));
        let (sequence, none) = (self.scope.privileged && from == FILTERING, Duration::ZERO);
        Some(Probe::Dial(Dial { from, to, message, after: none, wait: none, end, sequence }))
    }

    pub(super) fn stunt(
        &mut self,
        action: Action,
        address: u8,
        port: Port,
        target: Option<u16>,
        watch: Duration,
        after: Duration,
    ) -> Option<Probe> {
        self.stunt_server()?.can.connect.then_some(())?;
        let probe = stunt::Probe { action, address, port, target, watch };
        self.ask(STUNT_PROBE, Some(Attribute::StuntProbe(probe)), after, watch + PATIENCE)
    }

    pub(super) fn ask(
        &mut self,
        method: u16,
        attribute: Option<Attribute>,
        after: Duration,
        wait: Duration,
    ) -> Option<Probe> {
        self.heard(Question::TcpPrimed)?;
        let message = self.request(method, attribute);
        Some(Probe::Ask(Ask { on: Question::TcpPrimed, message, after, wait }))
    }
}

/// Whether an address that a server told may be written to: one host, of the server's family. On loopback, where servers
/// are tried out, anything goes.
pub(super) fn is_fit(told: SocketAddr, server: SocketAddr) -> bool {
    told.is_ipv4() == server.is_ipv4() && (is_candidate(told) || server.ip().is_loopback())
}

fn idle_slot(seconds: u16) -> Slot {
    Slot(IDLING.saturating_add(place(seconds)))
}

/// Where an idle time stands in [`IDLE`], from 1; 0 is the control, which does not wait.
pub(super) fn place(seconds: u16) -> u8 {
    (1..).zip(IDLE).find(|(_, idle)| *idle == seconds).map_or(0, |(place, _)| place)
}
