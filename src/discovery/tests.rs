//! Surveys of NATs that exist in these lines only: for each, the report is what the NAT does.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;

use super::half_open::HalfOpen;
use super::probe::Ask;
use super::probe::Datagram;
use super::probe::Dial;
use super::probe::End;
use super::probe::Finding;
use super::probe::Heard;
use super::probe::Slot;
use super::report::Report;
use super::*;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Reaction;
use crate::nat::behavior::Transitory;
use crate::wire::stun::Attribute;
use crate::wire::stun::Message;
use crate::wire::stun::STUNT_SEEN;
use crate::wire::stun::stunt;
use crate::wire::stun::stunt::Action;
use crate::wire::stun::stunt::Event;
use crate::wire::stun::stunt::Port;

const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2));
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(20, 0, 1, 2));
const SERVER: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(20, 0, 2, 2)),
    IpAddr::V4(Ipv4Addr::new(20, 0, 2, 3)),
    IpAddr::V4(Ipv4Addr::new(20, 0, 2, 4)),
];
const PORTS: [u16; 3] = [3478, 3479, 3480];
const EVERYTHING: Scope = Scope { lifetimes: true, privileged: true };

/// A NAT, and the world around it.
#[derive(Clone, Copy)]
struct Nat {
    mapping: Mapping,
    ports: PortAssignment,
    filtering: Filtering,
    reaction: Reaction,
    hairpin: bool,
    hardy: bool,
    lifetime: u64,
    /// Of TCP: after a SYN, established, after a FIN.
    lifetimes: [u64; 3],
    udp: bool,
    stunt: bool,
    /// A SYN arrives when it is sent again, after a second.
    lossy: bool,
}

const LINUX: Nat = Nat {
    mapping: Mapping::EndpointIndependent,
    ports: PortAssignment::Preserved,
    filtering: Filtering::AddressAndPortDependent,
    reaction: Reaction::Drop,
    hairpin: false,
    hardy: false,
    lifetime: 45,
    lifetimes: [20, 100, 5],
    udp: true,
    stunt: true,
    lossy: false,
};

/// What happens in the course of one survey.
struct World {
    nat: Nat,
    mappings: BTreeMap<(bool, u16, Option<SocketAddr>, u32), u16>,
    met: BTreeSet<(bool, u16, SocketAddr)>,
    next: u16,
    sessions: u32,
    segments: Vec<stunt::Segment>,
    lost: Vec<stunt::Segment>,
    packets: u32,
}

impl World {
    fn survey(nat: Nat, scope: Scope) -> (Report, Self) {
        let servers = [SocketAddr::new(SERVER[0], PORTS[0])];
        let mut survey = Survey::new(&servers, scope, Seed([7; 32]));
        let mut world = Self {
            nat,
            mappings: BTreeMap::new(),
            met: BTreeSet::new(),
            next: 20_000,
            sessions: 0,
            segments: Vec::new(),
            lost: Vec::new(),
            packets: 0,
        };
        let mut out = Vec::new();
        loop {
            while let Some((question, probe)) = survey.poll_probe() {
                world.packets += probe.cost();
                out.push((question, world.carry_out(probe)));
            }
            if out.is_empty() {
                return (survey.report(), world);
            }
            let (question, finding) = out.remove(0);
            survey.handle_finding(question, finding);
        }
    }

    fn carry_out(&mut self, probe: Probe) -> Finding {
        match probe {
            Probe::Udp(datagram) => self.udp(&datagram),
            Probe::Trace { .. } => {
                Finding::Routers(vec![(1, [192, 168, 1, 1].into()), (2, [20, 0, 1, 1].into())])
            }
            Probe::Dial(dial) => self.tcp(&dial),
            Probe::Ask(ask) => self.ask(&ask),
            Probe::Listen(slot) => Finding::Done(Some(local(slot, true))),
            Probe::Syn { from, to, goes_on } => {
                self.segment(from, to, stunt::SYN, 100);
                if self.nat.lossy && goes_on {
                    self.lost.push(self.segments.remove(0));
                }
                Finding::Done(None)
            }
            Probe::SynAck { from, to, sequence } => {
                if self.nat.hardy {
                    self.segment(from, to, stunt::SYN | stunt::ACK, sequence);
                }
                Finding::Done(None)
            }
            Probe::Wait(_) => Finding::Done(None),
        }
    }

    fn segment(&mut self, from: Slot, to: SocketAddr, flags: u8, sequence: u32) {
        let source = self.map(true, local(from, true), to).port();
        let address = u8::try_from(SERVER.iter().position(|ip| *ip == to.ip()).unwrap()).unwrap();
        let segment = stunt::Segment {
            flags,
            ttl: 62,
            address,
            source,
            destination: to.port(),
            sequence,
            ..stunt::Segment::default()
        };
        self.segments.insert(0, segment);
    }

    /// The outer endpoint of a packet on its way out.
    fn map(&mut self, tcp: bool, local: SocketAddr, to: SocketAddr) -> SocketAddr {
        self.sessions += 1;
        let (to, session) = match self.nat.mapping {
            Mapping::AddressDependent => (Some(SocketAddr::new(to.ip(), 0)), 0),
            Mapping::AddressAndPortDependent => (Some(to), 0),
            Mapping::SessionDependent if tcp => (Some(to), self.sessions),
            Mapping::SessionDependent => (Some(to), 0),
            _ => (None, 0),
        };
        let next = &mut self.next;
        let outer =
            *self.mappings.entry((tcp, local.port(), to, session)).or_insert_with(|| match self.nat.ports {
                PortAssignment::Preserved => local.port(),
                PortAssignment::Delta(step) => {
                    *next = next.wrapping_add_signed(step);
                    *next
                }
                _ => {
                    *next = next.wrapping_mul(25_173).wrapping_add(13_849);
                    *next
                }
            });
        let ip = if self.nat.mapping == Mapping::None { INSIDE } else { OUTSIDE };
        SocketAddr::new(ip, outer)
    }

    fn lets_in(&self, tcp: bool, outer: u16, from: SocketAddr) -> bool {
        let met = |wanted: &dyn Fn(&SocketAddr) -> bool| {
            self.met.iter().any(|(kind, port, remote)| *kind == tcp && *port == outer && wanted(remote))
        };
        match self.nat.filtering {
            Filtering::Open => true,
            Filtering::EndpointIndependent => met(&|_| true),
            Filtering::AddressDependent => met(&|remote| remote.ip() == from.ip()),
            _ => met(&|remote| *remote == from),
        }
    }

    fn udp(&mut self, datagram: &Datagram) -> Finding {
        if !self.nat.udp {
            return Finding::Silence;
        }
        let (from, to) = (local(datagram.from, false), datagram.to);
        let outer = self.map(false, from, to);
        self.met.insert((false, outer.port(), to));
        let heard = |source, message| Finding::Heard(Heard { source, local: from, message, sequence: None });
        if to.ip() == OUTSIDE {
            return if self.nat.hairpin { heard(outer, datagram.message.clone()) } else { Finding::Silence };
        }
        let (mut source, mut target) = (to, outer.port());
        for attribute in &datagram.message.attributes {
            match attribute {
                Attribute::ChangeRequest { ip, port } => {
                    let ip = if *ip { SERVER[1] } else { to.ip() };
                    source = SocketAddr::new(ip, if *port { PORTS[1] } else { to.port() });
                }
                Attribute::ResponsePort(port) => target = *port,
                _ => {}
            }
        }
        let alive = datagram.after.as_secs() <= self.nat.lifetime;
        if alive && self.lets_in(false, target, source) {
            heard(source, greeting(&datagram.message, outer, None))
        } else {
            Finding::Silence
        }
    }

    fn tcp(&mut self, dial: &Dial) -> Finding {
        let from = local(dial.from, true);
        let outer = self.map(true, from, dial.to);
        self.met.insert((true, outer.port(), dial.to));
        let Some(question) = &dial.message else {
            return if self.nat.hairpin { Finding::Connected } else { Finding::Silence };
        };
        let can =
            stunt::Capabilities { connect: true, silent: true, own_syn: true, watch: true, forge: true };
        let server = stunt::Server {
            can,
            port: PORTS[0],
            alternate: Some(PORTS[1]),
            silent: Some(PORTS[2]),
            addresses: SERVER.to_vec(),
        };
        let message = match question.stunt_probe() {
            None => greeting(question, outer, self.nat.stunt.then_some(server)),
            Some(probe) => match self.left_idle(dial, probe) {
                Some((event, after)) => {
                    question.success().with(Attribute::StuntOutcome(stunt::Outcome { event, after }))
                }
                None => return Finding::Silence,
            },
        };
        Finding::Heard(Heard {
            source: dial.to,
            local: from,
            message,
            sequence: dial.sequence.then_some(4242),
        })
    }

    /// What is heard of a mapping that has been idle: its own connection's, or one that another connection asks about.
    fn left_idle(&mut self, dial: &Dial, probe: stunt::Probe) -> Option<(Event, Duration)> {
        let [opening, established, closing] = self.nat.lifetimes.map(Duration::from_secs);
        if probe.action == Action::SynAck {
            let target = probe.target.unwrap();
            assert!(self.segments.iter().any(|segment| segment.source == target), "a SYN came from there");
            let hardy = std::mem::replace(&mut self.nat.hardy, dial.after <= opening);
            let done = self.done_to_me(probe, target);
            self.nat.hardy = hardy;
            return Some(done);
        }
        let Action::Wait { seconds } = probe.action else { panic!("{probe:?} on a new connection") };
        let lives = if dial.end == End::Half { closing } else { established };
        assert_eq!(dial.wait, Duration::from_secs(seconds.into()));
        (dial.wait <= lives).then_some((Event::Sent, dial.wait))
    }

    fn ask(&mut self, ask: &Ask) -> Finding {
        let to = SocketAddr::new(SERVER[0], PORTS[0]);
        let filtered = local(Slot(1), true);
        let mut answer = ask.message.success();
        if ask.message.method == STUNT_SEEN {
            if ask.after >= Duration::from_secs(1) {
                self.segments.splice(..0, self.lost.drain(..));
            }
            let own = stunt::Segment { sequence: 4242, destination: PORTS[0], ..stunt::Segment::default() };
            answer.attributes =
                std::iter::once(own).chain(self.segments.clone()).map(Attribute::StuntSegment).collect();
        } else {
            let probe = ask.message.stunt_probe().unwrap();
            let target = probe.target.unwrap_or_else(|| self.map(true, filtered, to).port());
            let (event, after) = self.done_to_me(probe, target);
            answer = answer.with(Attribute::StuntOutcome(stunt::Outcome { event, after }));
        }
        Finding::Heard(Heard { source: to, local: filtered, message: answer, sequence: None })
    }

    fn done_to_me(&mut self, probe: stunt::Probe, target: u16) -> (Event, Duration) {
        let port = match probe.port {
            Port::Main => PORTS[0],
            Port::Alternate => PORTS[1],
            Port::Silent => PORTS[2],
            Port::Any => 3490,
        };
        let from = SocketAddr::new(SERVER[usize::from(probe.address)], port);
        let refused = match self.nat.reaction {
            Reaction::Reset => (Event::Reset, Duration::ZERO),
            Reaction::Unreachable => (Event::Icmp { kind: 3, code: 3 }, Duration::ZERO),
            _ => (Event::Silence, probe.watch),
        };
        let crossing = probe.port == Port::Silent;
        let passes = if crossing {
            self.nat.filtering != Filtering::InboundNever
        } else {
            self.lets_in(true, target, from)
        };
        let reset = stunt::Segment {
            flags: stunt::RST,
            ttl: 62,
            address: probe.address,
            source: target,
            destination: port,
            ..stunt::Segment::default()
        };
        match probe.action {
            Action::Connect if passes => (Event::Connected, Duration::ZERO),
            Action::Connect => refused,
            Action::Reset | Action::Icmp { .. } | Action::Wait { .. } => (Event::Sent, Duration::ZERO),
            // The host behind a hardy NAT answers the stray SYN-ACK with RST; other NATs have forgotten it.
            Action::SynAck if self.nat.hardy => {
                self.segments.insert(0, reset);
                (Event::Reset, Duration::ZERO)
            }
            Action::SynAck => {
                self.segments.insert(0, stunt::Segment { ttl: 63, ..reset });
                refused
            }
        }
    }
}

fn local(slot: Slot, tcp: bool) -> SocketAddr {
    // Not in a row: nobody is to take the inner ports' order for the NAT's.
    SocketAddr::new(INSIDE, 40_000 + u16::from(slot.0) * 37 % 101 * 7 + u16::from(tcp))
}

fn greeting(question: &Message, outer: SocketAddr, server: Option<stunt::Server>) -> Message {
    let other = SocketAddr::new(SERVER[1], PORTS[1]);
    let answer =
        question.success().with(Attribute::XorMappedAddress(outer)).with(Attribute::OtherAddress(other));
    server.into_iter().map(Attribute::StuntServer).fold(answer, Message::with)
}

#[test]
fn a_survey_finds_what_the_nat_does() {
    use Filtering::AddressAndPortDependent as Strict;
    use PortAssignment::Delta;
    use PortAssignment::Random;
    let stepping = |mapping, step| Nat { mapping, ports: Delta(step), ..LINUX };
    for (text, nat) in [
        ("linux", LINUX),
        ("full cone", Nat { filtering: Filtering::EndpointIndependent, ports: Random, ..LINUX }),
        ("address-restricted", Nat { filtering: Filtering::AddressDependent, ..LINUX }),
        ("RST", Nat { reaction: Reaction::Reset, ..LINUX }),
        ("ICMP", Nat { reaction: Reaction::Unreachable, ..LINUX }),
        ("never a SYN", Nat { filtering: Filtering::InboundNever, ..LINUX }),
        ("by address", stepping(Mapping::AddressDependent, 1)),
        ("by address and port", stepping(Mapping::AddressAndPortDependent, 2)),
        ("by session", stepping(Mapping::SessionDependent, -1)),
        ("random", Nat { mapping: Mapping::SessionDependent, ports: Random, ..LINUX }),
        ("hardy, with hairpin", Nat { hairpin: true, hardy: true, ..LINUX }),
        ("firewall", Nat { mapping: Mapping::None, ..LINUX }),
        ("public", Nat { mapping: Mapping::None, filtering: Filtering::Open, ..LINUX }),
    ] {
        let (report, world) = World::survey(nat, EVERYTHING);
        let (udp, tcp, segments) = (report.profile.udp, report.profile.tcp, report.profile.segments);
        // For UDP a session is its two endpoints, and there is no SYN to refuse.
        let mapping = if nat.mapping == Mapping::SessionDependent {
            Mapping::AddressAndPortDependent
        } else {
            nat.mapping
        };
        let filtering = if nat.filtering == Filtering::InboundNever { Strict } else { nat.filtering };
        assert_eq!((udp.mapping, udp.filtering, udp.ports), (mapping, filtering, nat.ports), "{text}");
        assert_eq!(
            (tcp.mapping, tcp.filtering, tcp.ports),
            (nat.mapping, nat.filtering, nat.ports),
            "{text}"
        );
        let open = nat.filtering == Filtering::Open;
        assert_eq!(tcp.reaction, if open { Reaction::Unknown } else { nat.reaction }, "{text}");
        let fixed = nat.mapping == Mapping::EndpointIndependent;
        assert_eq!(
            (udp.hairpin, tcp.hairpin),
            (fixed.then_some(nat.hairpin), fixed.then_some(nat.hairpin)),
            "{text}"
        );
        assert_eq!((udp.passes, tcp.passes, udp.paired), (Some(true), Some(true), Some(true)), "{text}");
        assert_eq!(udp.lifetime, Some(30), "{text}: 45 s, seen after 30 and not after 60");
        assert_eq!(tcp.lifetime, Some(60), "{text}: 100 s");
        let transitory = Transitory { opening: Some(10), closing: Some(1) };
        assert_eq!(report.profile.transitory, transitory, "{text}: 20 and 5 s");
        assert_eq!(
            (segments.survives_reset, segments.survives_icmp),
            (Some(nat.hardy), Some(nat.hardy)),
            "{text}"
        );
        assert_eq!((segments.synack_out, segments.sequence_kept), (Some(nat.hardy), Some(true)), "{text}");
        assert_eq!(report.profile.hops, (nat.mapping != Mapping::None).then_some(1), "{text}");
        let unexplained: Vec<_> = report.unknown.iter().filter(|u| !u.what.starts_with("hairpin")).collect();
        assert!(unexplained.is_empty(), "{text}: {unexplained:?}");
        assert!(world.packets <= BUDGET + LIFETIMES_BUDGET, "{text}: {} packets", world.packets);
    }
}

#[test]
fn a_syn_that_was_lost_is_looked_for_again() {
    let nat = Nat { filtering: Filtering::InboundNever, lossy: true, ..LINUX };
    let (report, world) = World::survey(nat, EVERYTHING);
    assert_eq!(report.profile.tcp.filtering, nat.filtering);
    let segments = report.profile.segments;
    assert_eq!((segments.survives_reset, segments.survives_icmp), (Some(false), Some(false)));
    assert!(world.packets <= BUDGET + LIFETIMES_BUDGET, "{} packets", world.packets);
}

#[test]
fn what_cannot_be_measured_is_unknown_and_says_why() {
    let why = |report: &Report, what: &str| {
        report.unknown.iter().find(|unknown| unknown.what == what).map(|unknown| unknown.why)
    };
    let modest = Scope { lifetimes: false, privileged: false };
    let (report, world) = World::survey(LINUX, modest);
    assert_eq!(report.profile.segments.synack_out, None);
    assert_eq!(why(&report, "whether a SYN-ACK may leave after a SYN"), Some("it needs root here"));
    assert_eq!(report.profile.udp.lifetime, None);
    assert_eq!((report.profile.tcp.lifetime, report.profile.transitory), (None, Transitory::default()));
    assert!(world.packets <= BUDGET, "{} packets", world.packets);

    let (report, _) = World::survey(Nat { stunt: false, ..LINUX }, modest);
    assert_eq!(report.profile.tcp.mapping, Mapping::EndpointIndependent, "a stock server's Binding suffices");
    assert_eq!(report.profile.tcp.filtering, Filtering::Unknown);
    assert!(why(&report, "filtering of TCP").unwrap().contains("does not do STUNT"));
    assert_eq!(report.direct_tcp, None);

    let (report, _) = World::survey(Nat { udp: false, ..LINUX }, modest);
    assert_eq!(report.profile.udp.passes, Some(false), "TCP gets out to the same server");
    assert_eq!(report.profile.tcp.filtering, Filtering::AddressAndPortDependent);
}

#[test]
fn tests_on_half_open_mappings_do_not_share_a_silent_port_at_the_same_time() {
    let mut survey = Survey::new(&[SocketAddr::new(SERVER[0], PORTS[0])], EVERYTHING, Seed([7; 32]));
    let mut world = World::survey(LINUX, EVERYTHING).1;
    let (mut open, mut out) = (BTreeSet::new(), Vec::new());
    loop {
        while let Some((question, probe)) = survey.poll_probe() {
            if let (Question::Opened(test), Probe::Syn { to, .. }) = (question, &probe) {
                assert!(open.insert(*to), "{test:?} at {to} while another is under way");
            }
            out.push((question, world.carry_out(probe)));
        }
        if out.is_empty() {
            break;
        }
        let (question, finding) = out.remove(0);
        // An idle one has its SYN looked at and its port left alone.
        if let Question::Judged(test)
        | Question::Tested(test @ HalfOpen::Crossing)
        | Question::Looked(test @ HalfOpen::Idle(_)) = question
        {
            let address = survey.address_of(test).unwrap();
            open.remove(&SocketAddr::new(SERVER[usize::from(address)], PORTS[2]));
        }
        survey.handle_finding(question, finding);
    }
}
