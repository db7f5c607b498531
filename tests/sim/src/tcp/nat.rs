//! A NAT for TCP: mappings as for datagrams, and a session for each connection, as netfilter's conntrack has them.
//!
//! A SYN that leaves opens a session, and lets in what answers it: a SYN-ACK to its number, a SYN that crosses it, a RST. A
//! RST closes it again. A SYN-ACK leaves only if its number is that of the last SYN which left, or if none did: so a port
//! that has given up a SYN cannot take a connection from there ([`Tcp::windows`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use super::segment::Kind;
use crate::nat::Allotment;
use crate::nat::Behavior;
use crate::nat::Filtering;
use crate::nat::Mapping;
use crate::secs;

/// How long a session lives in each phase (Linux: SYN_SENT, CLOSE; RFC 5382, REQ-5).
const OPENING: Duration = secs(120);
const CLOSED: Duration = secs(10);
const OPEN: Duration = secs(2 * 3600 + 4 * 60);

/// What a NAT does with TCP, besides mapping and filtering it by the same words as datagrams.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tcp {
    /// Every session has a port of its own, also the second one to the same place.
    pub per_session: bool,
    /// A SYN from outside never passes, not even from where one was sent to.
    pub never_syn: bool,
    /// Sequence numbers must fit those seen before.
    pub windows: bool,
    /// A RST or an ICMP error from outside ends the mapping, and not the session alone.
    pub fragile: bool,
    /// What a SYN gets that may not pass.
    pub refusal: Refusal,
}

impl Tcp {
    /// As netfilter behind a firewall that drops.
    pub const LINUX: Self =
        Self { per_session: false, never_syn: false, windows: true, fragile: false, refusal: Refusal::Drop };
}

/// What a SYN gets that may not pass.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Refusal {
    /// Silence.
    Drop,
    /// A RST.
    Reset,
    /// ICMP: unreachable.
    Unreachable,
}

/// What becomes of a segment from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Inward {
    /// It goes on to there.
    To(SocketAddr),
    /// It is dropped.
    Dropped,
    /// It is dropped, and its sender gets this.
    Refused(Kind),
}

type Key = (SocketAddr, Option<IpAddr>, Option<u16>);

/// Mappings and sessions of one NAT.
#[derive(Debug)]
pub(crate) struct Table {
    public: Ipv4Addr,
    /// The inside of each outer port.
    by_port: BTreeMap<u16, SocketAddr>,
    by_key: BTreeMap<Key, u16>,
    sessions: BTreeMap<(u16, SocketAddr), Session>,
    /// At which port a session is, by its inside and its remote end: it stays there, whoever began it.
    places: BTreeMap<(SocketAddr, SocketAddr), u16>,
    allotment: Allotment,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    phase: Phase,
    /// The initial sequence number of the inside, once a SYN or a SYN-ACK has shown it.
    number: Option<u32>,
    until: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Opening,
    /// SYNs have crossed, or a SYN has come in: a RST that answers a SYN fits no window any more.
    Crossing,
    Open,
    Closed,
}

impl Session {
    /// What belongs to no handshake passes. After a RST too, as in netfilter, which only forgets such sessions soon.
    fn go_on(&mut self, now: Instant) {
        let over = self.phase == Phase::Closed;
        self.enter(if over { Phase::Closed } else { Phase::Open }, now);
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.until = now
            + match phase {
                Phase::Opening | Phase::Crossing => OPENING,
                Phase::Open => OPEN,
                Phase::Closed => CLOSED,
            };
    }
}

impl Table {
    pub(crate) fn new(public: Ipv4Addr) -> Self {
        Self {
            public,
            by_port: BTreeMap::new(),
            by_key: BTreeMap::new(),
            sessions: BTreeMap::new(),
            places: BTreeMap::new(),
            allotment: Allotment::new(public, 1),
        }
    }

    /// A reboot: everything is forgotten and ports are handed out anew.
    pub(crate) fn clear(&mut self) {
        self.by_port.clear();
        self.by_key.clear();
        self.sessions.clear();
        self.places.clear();
        self.allotment.skip();
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self, now: Instant) -> usize {
        self.sessions.values().filter(|session| now < session.until).count()
    }

    /// The outside source of a segment from `inside` to `to`; `None` if it does not leave.
    pub(crate) fn outward(
        &mut self,
        does: &Behavior,
        inside: SocketAddr,
        to: SocketAddr,
        kind: &Kind,
        now: Instant,
    ) -> Option<SocketAddr> {
        self.sweep(now);
        let key = match does.mapping {
            _ if does.tcp.per_session => (inside, Some(to.ip()), Some(to.port())),
            Mapping::EndpointIndependent => (inside, None, None),
            Mapping::AddressDependent => (inside, Some(to.ip()), None),
            Mapping::AddressAndPortDependent => (inside, Some(to.ip()), Some(to.port())),
        };
        let place = self.places.get(&(inside, to)).copied();
        let session = place.and_then(|port| self.sessions.get(&(port, to)).copied());
        let over = session.is_none_or(|session| session.phase == Phase::Closed);
        let opens = matches!(kind, Kind::Syn(_));
        let known = place.filter(|_| !over || !opens).or(self.by_key.get(&key).copied());
        let port = match (kind, known) {
            // Netfilter takes up a connection in its middle, so that it survives a reboot if its port does.
            (Kind::Syn(_) | Kind::Ack(_) | Kind::Data(..) | Kind::Probe, None) => self.map(does, inside, key),
            (Kind::Syn(_), Some(_)) if session.is_some() && over && does.tcp.per_session => {
                self.map(does, inside, key)
            }
            (_, Some(port)) => port,
            (_, None) => return None,
        };
        let fresh = Session { phase: Phase::Opening, number: None, until: now + OPENING };
        let mut session = session.unwrap_or(fresh);
        match kind {
            Kind::Syn(_) if session.phase == Phase::Open => {}
            Kind::Syn(number) => {
                session.number = Some(*number);
                let crosses = session.phase == Phase::Crossing;
                session.enter(if crosses { Phase::Crossing } else { Phase::Opening }, now);
            }
            Kind::SynAck(number, _) => {
                if over || does.tcp.windows && session.number.is_some_and(|sent| sent != *number) {
                    return None;
                }
                session.number = Some(*number);
            }
            Kind::Ack(_) | Kind::Data(..) | Kind::Probe => session.go_on(now),
            Kind::Fin | Kind::Reset(_) if over => return None,
            Kind::Fin | Kind::Reset(_) => session.enter(Phase::Closed, now),
            Kind::Unreachable(_) | Kind::Expired(_) => return None,
        }
        self.sessions.insert((port, to), session);
        self.places.insert((inside, to), port);
        Some(SocketAddr::new(self.public.into(), port))
    }

    /// What becomes of a segment from `from` to our `port`.
    pub(crate) fn inward(
        &mut self,
        does: &Behavior,
        from: SocketAddr,
        port: u16,
        kind: &Kind,
        now: Instant,
    ) -> Inward {
        self.sweep(now);
        let Some(inside) = self.by_port.get(&port).copied() else { return refuse(does, kind) };
        let met = self.sessions.range((port, FIRST)..).take_while(|((at, _), _)| *at == port);
        let lets_in = match does.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => met.into_iter().any(|((_, to), _)| to.ip() == from.ip()),
            Filtering::AddressAndPortDependent => false,
        };
        let session = self.sessions.get_mut(&(port, from));
        let over = session.as_ref().is_some_and(|session| session.phase == Phase::Closed);
        let session = session.filter(|_| !over || !matches!(kind, Kind::Syn(_)));
        match (kind, session) {
            (Kind::Syn(_), _) if does.tcp.never_syn => return refuse(does, kind),
            (Kind::Syn(_), Some(session)) if session.phase == Phase::Open => {}
            (Kind::Syn(_), Some(session)) => session.enter(Phase::Crossing, now),
            (Kind::Syn(_), None) if lets_in => {
                let session = Session { phase: Phase::Crossing, number: None, until: now + OPENING };
                self.sessions.insert((port, from), session);
                self.places.insert((inside, from), port);
            }
            (Kind::Syn(_), None) => return refuse(does, kind),
            (_, None) => return Inward::Dropped,
            (Kind::SynAck(_, answers), Some(session)) => {
                if over || does.tcp.windows && session.number != Some(*answers) {
                    return Inward::Dropped;
                }
            }
            (Kind::Ack(_) | Kind::Data(..) | Kind::Probe, Some(session)) => session.go_on(now),
            (Kind::Fin | Kind::Reset(None), Some(session)) => session.enter(Phase::Closed, now),
            (Kind::Reset(Some(answers)), Some(session)) => {
                let fits = session.phase == Phase::Opening || !does.tcp.windows;
                if !fits || session.number != Some(*answers) {
                    return Inward::Dropped;
                }
                session.enter(Phase::Closed, now);
                if does.tcp.fragile {
                    self.forget(port);
                }
            }
            (Kind::Unreachable(number) | Kind::Expired(number), Some(session)) => {
                if session.number != Some(*number) {
                    return Inward::Dropped;
                }
                if does.tcp.fragile {
                    self.forget(port);
                }
            }
        }
        Inward::To(inside)
    }

    fn map(&mut self, does: &Behavior, inside: SocketAddr, key: Key) -> u16 {
        let by_port = &self.by_port;
        let port = self.allotment.next(does.ports, inside.port(), |port| by_port.contains_key(&port));
        self.by_key.insert(key, port);
        self.by_port.insert(port, inside);
        port
    }

    fn forget(&mut self, port: u16) {
        self.by_port.remove(&port);
        self.by_key.retain(|_, at| *at != port);
        self.sessions.retain(|(at, _), _| *at != port);
        self.places.retain(|_, at| *at != port);
    }

    /// Sessions that are over go, and mappings that none uses any more.
    fn sweep(&mut self, now: Instant) {
        if self.sessions.values().all(|session| now < session.until) {
            return;
        }
        self.sessions.retain(|_, session| now < session.until);
        let sessions = &self.sessions;
        self.places.retain(|(_, remote), port| sessions.contains_key(&(*port, *remote)));
        let used = |port: u16| sessions.range((port, FIRST)..).next().is_some_and(|((at, _), _)| *at == port);
        self.by_port.retain(|port, _| used(*port));
        self.by_key.retain(|_, port| used(*port));
    }
}

/// The least of all remote endpoints.
const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn refuse(does: &Behavior, kind: &Kind) -> Inward {
    match (kind, does.tcp.refusal) {
        (Kind::Syn(number), Refusal::Reset) => Inward::Refused(Kind::Reset(Some(*number))),
        (Kind::Syn(number), Refusal::Unreachable) => Inward::Refused(Kind::Unreachable(*number)),
        _ => Inward::Dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::PORT_RESTRICTED;
    use crate::nat::Ports;
    use crate::nat::simple;

    const INSIDE: &str = "192.168.1.2:5000";
    const PEER: &str = "198.51.100.9:6000";

    #[test]
    fn a_syn_opens_the_way_for_what_answers_it_and_for_nothing_else() {
        let (mut nat, t0) = nat();
        let port = out(&mut nat, &PORT_RESTRICTED, Kind::Syn(7), t0).unwrap();
        for (what, from, kind, passes) in [
            ("a SYN of a stranger", "198.51.100.9:6001", Kind::Syn(1), false),
            ("an answer to another SYN", PEER, Kind::SynAck(1, 8), false),
            ("its answer", PEER, Kind::SynAck(1, 7), true),
            ("a SYN that crosses it", PEER, Kind::Syn(1), true),
        ] {
            let got = nat.inward(&PORT_RESTRICTED, at(from), port, &kind, t0);
            assert_eq!(got == Inward::To(at(INSIDE)), passes, "{what}: {got:?}");
        }
    }

    #[test]
    fn a_port_that_has_given_up_a_syn_takes_no_connection_from_there_where_windows_count() {
        for windows in [true, false] {
            let does = Behavior { tcp: Tcp { windows, ..Tcp::LINUX }, ..PORT_RESTRICTED };
            let (mut nat, t0) = nat();
            let port = out(&mut nat, &does, Kind::Syn(7), t0).unwrap();
            assert_eq!(nat.inward(&does, at(PEER), port, &Kind::Syn(1), t0), Inward::To(at(INSIDE)));
            assert!(out(&mut nat, &does, Kind::SynAck(7, 1), t0).is_some(), "the socket itself");
            assert_eq!(out(&mut nat, &does, Kind::SynAck(8, 1), t0).is_none(), windows, "a listener");
        }
    }

    #[test]
    fn a_reset_closes_what_a_syn_has_opened_unless_another_syn_has_crossed_it() {
        for crossed in [false, true] {
            let (mut nat, t0) = nat();
            let port = out(&mut nat, &PORT_RESTRICTED, Kind::Syn(7), t0).unwrap();
            let mut get =
                |kind| nat.inward(&PORT_RESTRICTED, at(PEER), port, &kind, t0) == Inward::To(at(INSIDE));
            assert_eq!(crossed, crossed && get(Kind::Syn(1)));
            assert_eq!(get(Kind::Reset(Some(7))), !crossed);
            assert_eq!(get(Kind::Syn(2)), crossed);
        }
    }

    #[test]
    fn whoever_may_not_in_gets_what_the_nat_answers() {
        for (refusal, wanted) in [
            (Refusal::Drop, Inward::Dropped),
            (Refusal::Reset, Inward::Refused(Kind::Reset(Some(3)))),
            (Refusal::Unreachable, Inward::Refused(Kind::Unreachable(3))),
        ] {
            let (mut nat, t0) = nat();
            let does = Behavior { tcp: Tcp { refusal, never_syn: true, ..Tcp::LINUX }, ..PORT_RESTRICTED };
            let port = out(&mut nat, &does, Kind::Syn(7), t0).unwrap();
            assert_eq!(nat.inward(&does, at(PEER), port, &Kind::Syn(3), t0), wanted, "where a SYN went");
            assert_eq!(nat.inward(&does, at(PEER), port + 1, &Kind::Syn(3), t0), wanted, "no mapping");
            assert_eq!(nat.inward(&does, at(PEER), port + 1, &Kind::Ack(0), t0), Inward::Dropped);
        }
    }

    #[test]
    fn sessions_get_ports_as_the_nat_gives_them_and_lose_them_in_time() {
        let steps = Behavior {
            ports: Ports::Stepping(2),
            tcp: Tcp { per_session: true, ..Tcp::LINUX },
            ..simple(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
        };
        let (mut nat, t0) = nat();
        let first = out(&mut nat, &steps, Kind::Syn(7), t0).unwrap();
        assert_eq!(out(&mut nat, &steps, Kind::Syn(7), t0), Some(first), "the same SYN once more");
        assert!(nat.inward(&steps, at(PEER), first, &Kind::Reset(Some(7)), t0) == Inward::To(at(INSIDE)));
        assert_eq!(out(&mut nat, &steps, Kind::Syn(8), t0), Some(first + 2), "a new session");
        assert_eq!(nat.sessions(t0), 2);
        assert_eq!(nat.sessions(t0 + CLOSED), 1);
        assert_eq!(nat.sessions(t0 + OPENING), 0);
        assert_eq!(out(&mut nat, &steps, Kind::Fin, t0 + OPENING), None, "nobody knows it any more");
    }

    fn out(nat: &mut Table, does: &Behavior, kind: Kind, now: Instant) -> Option<u16> {
        nat.outward(does, at(INSIDE), at(PEER), &kind, now).map(|at| at.port())
    }

    fn at(addr: &str) -> SocketAddr {
        addr.parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn nat() -> (Table, Instant) {
        (Table::new(Ipv4Addr::new(203, 0, 113, 1)), Instant::now())
    }
}
