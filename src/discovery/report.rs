//! What the findings mean: a profile for other members, figures for people, and why something is unknown.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use super::Survey;
use super::half_open::HalfOpen;
use super::probe::Finding;
use super::question::IDLE;
use super::question::Question;
use super::question::SAMPLES;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Forged;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Profile;
use crate::nat::behavior::Reaction;
use crate::nat::behavior::Segments;
use crate::nat::behavior::Transitory;
use crate::nat::classify;
use crate::nat::classify::Passed;
use crate::nat::classify::Ports;
use crate::nat::classify::Views;
use crate::nat::market;
use crate::wire::stun::stunt;
use crate::wire::stun::stunt::Event;

/// Everything that a survey knows by now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// For other members.
    pub profile: Profile,
    /// The figures behind UDP's part.
    pub udp: Figures,
    /// The figures behind TCP's part.
    pub tcp: Figures,
    /// Idle seconds after a SYN, and whether the mapping was still there.
    pub opening: Vec<(u16, bool)>,
    /// The same after a FIN.
    pub closing: Vec<(u16, bool)>,
    /// A SYN of this machine as the server saw it.
    pub syn: Option<stunt::Segment>,
    /// How long after a stranger's SYN the answer came, or how long none came.
    pub reaction_after: Option<Duration>,
    /// Share of peers behind the NATs of 2005 that can be met directly over TCP, per cent.
    pub direct_tcp: Option<f64>,
    /// What could not be measured.
    pub unknown: Vec<Unknown>,
}

/// The figures behind a behaviour.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Figures {
    /// The inner endpoint of the mapping tests.
    pub local: Option<SocketAddr>,
    /// How it looked from where.
    pub views: Views,
    /// How ports follow each other.
    pub ports: Ports,
    /// The samples behind that: inner and outer port.
    pub samples: Vec<(u16, u16)>,
    /// Whether hairpinned packets come from the outer endpoint, as RFC 4787 REQ-9 wants.
    pub hairpin_outer: Option<bool>,
    /// Idle seconds, and whether the mapping was still there.
    pub idle: Vec<(u16, bool)>,
}

/// Something that could not be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unknown {
    /// What.
    pub what: &'static str,
    /// Why.
    pub why: &'static str,
}

impl Survey {
    /// What is known by now.
    #[must_use]
    pub fn report(&self) -> Report {
        let (udp, udp_figures) = self.udp();
        let (tcp, tcp_figures) = self.tcp();
        let hops = match self.found.get(&Question::Hops) {
            Some(Finding::Routers(routers)) if udp.mapping != Mapping::None => classify::hops(routers),
            _ => None,
        };
        let (opening, closing) = (self.idle_opening(), self.idle(Question::TcpEnding));
        let transitory =
            Transitory { opening: classify::lifetime(&opening), closing: classify::lifetime(&closing) };
        let profile =
            Profile { udp, tcp, segments: self.segments(), transitory, hops, forged: Forged::default() };
        Report {
            direct_tcp: market::direct_tcp(&tcp, tcp_figures.ports.confidence),
            reaction_after: self.outcome(Question::TcpUnmapped).map(|outcome| outcome.after),
            unknown: self.unknown(&profile),
            profile,
            udp: udp_figures,
            tcp: tcp_figures,
            opening,
            closing,
            syn: self.syn().cloned(),
        }
    }

    /// Whether what decides how peers are met is known, or will never be.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let over = |question| self.is_over(question) || !self.asked.contains(&question);
        let udp = self.is_sampled() && over(Question::FromOtherAddress) && over(Question::FromOtherPort);
        udp && self.is_tcp_sampled()
    }

    fn udp(&self) -> (Behavior, Figures) {
        let views = Views { again: None, ..self.views(Self::UDP) };
        let mut figures = self.figures(Self::UDP, views);
        let mapping = figures.local.map_or(Mapping::Unknown, |local| classify::mapping(local, &views));
        let passed = Passed {
            other_address: self.changed(Question::FromOtherAddress, |from, first| from.ip() != first.ip()),
            other_port: self.changed(Question::FromOtherPort, |from, first| from.port() != first.port()),
            ..Passed::default()
        };
        let sources =
            [0, 1].map(|side| self.heard(Question::Hairpin(side)).map(|heard| (side, heard.source)));
        let hairpinned = sources.into_iter().flatten().next().filter(|_| mapping != Mapping::None);
        if let Some((side, source)) = hairpinned {
            figures.hairpin_outer = Some(self.mapped(Question::Sample(side)) == Some(source));
        }
        figures.idle = self.idle(Question::Awoken);
        let behavior = Behavior {
            passes: self.passes(Self::UDP, Self::TCP),
            mapping,
            filtering: classify::udp_filtering(mapping, &passed),
            ports: assignment(mapping, &figures),
            reaction: Reaction::Unknown,
            hairpin: self.hairpin(mapping, Question::Hairpin, |finding| matches!(finding, Finding::Heard(_))),
            paired: self.paired(Self::UDP, &views),
            lifetime: classify::lifetime(&figures.idle),
        };
        (behavior, figures)
    }

    fn tcp(&self) -> (Behavior, Figures) {
        let views = Views { again: self.mapped(Question::TcpAgain), ..self.views(Self::TCP) };
        let mut figures = self.figures(Self::TCP, views);
        let mapping = figures.local.map_or(Mapping::Unknown, |local| classify::mapping(local, &views));
        let connected = |question| Some(self.outcome(question)?.event == Event::Connected);
        let passed = Passed {
            unmapped: connected(Question::TcpUnmapped),
            other_address: connected(Question::TcpFromOtherAddress),
            other_port: connected(Question::TcpFromOtherPort),
            crossing: connected(Question::Tested(HalfOpen::Crossing)),
        };
        let reaction = match self.outcome(Question::TcpUnmapped).map(|outcome| outcome.event) {
            Some(Event::Silence) => Reaction::Drop,
            Some(Event::Reset) => Reaction::Reset,
            Some(Event::Icmp { .. }) => Reaction::Unreachable,
            Some(Event::Connected | Event::Sent) | None => Reaction::Unknown,
        };
        figures.idle = self.idle(Question::TcpIdle);
        let behavior = Behavior {
            passes: self.passes(Self::TCP, Self::UDP),
            mapping,
            filtering: classify::tcp_filtering(&passed),
            ports: assignment(mapping, &figures),
            reaction,
            hairpin: self.hairpin(mapping, Question::TcpHairpin, |finding| *finding == Finding::Connected),
            paired: self.paired(Self::TCP, &views),
            lifetime: classify::lifetime(&figures.idle),
        };
        (behavior, figures)
    }

    fn segments(&self) -> Segments {
        let primed = self.heard(Question::TcpPrimed).and_then(|heard| heard.sequence);
        let judged = Question::Judged(HalfOpen::SynAck);
        let syn_ack = stunt::SYN | stunt::ACK;
        let opened = self.opened(HalfOpen::SynAck);
        let sent = self.found.get(&Question::Tested(HalfOpen::SynAck)) == Some(&Finding::Done(None));
        Segments {
            survives_reset: self.survives(HalfOpen::Reset),
            survives_icmp: self.survives(HalfOpen::Icmp),
            synack_out: opened.filter(|_| sent && self.heard(judged).is_some()).map(|syn| {
                // Another test's port may have sent one to the same place, rightly.
                let ours = |segment: &stunt::Segment| {
                    segment.flags & syn_ack == syn_ack && segment.source == syn.source
                };
                self.segment(HalfOpen::SynAck, judged, ours).is_some()
            }),
            sequence_kept: primed.zip(self.syn()).map(|(primed, seen)| primed == seen.sequence),
        }
    }

    /// The SYN of the first connection, which the server tells first.
    fn syn(&self) -> Option<&stunt::Segment> {
        self.heard(Question::TcpSequence)?.message.stunt_segments().next()
    }

    /// Whether a mapping still took an answer in after what was done to it. An answer that gets to this machine draws a
    /// RST, because nobody dials any more; the NAT may send one for itself, which has come a shorter way.
    fn survives(&self, test: HalfOpen) -> Option<bool> {
        match self.outcome(Question::Answered(test))?.event {
            Event::Connected => Some(true),
            Event::Silence | Event::Icmp { .. } => Some(false),
            Event::Reset => {
                let syn = self.opened(test)?;
                let reset = self.segment(test, Question::Judged(test), |segment| {
                    segment.flags & stunt::RST != 0 && segment.source == syn.source
                })?;
                Some(reset.ttl == syn.ttl)
            }
            Event::Sent => None,
        }
    }

    const UDP: Kind = Kind {
        server: Question::Server,
        places: [Question::OtherPort, Question::OtherAddress, Question::OtherBoth],
        sample: Question::Sample,
    };
    const TCP: Kind = Kind {
        server: Question::Tcp,
        places: [Question::TcpOtherPort, Question::TcpOtherAddress, Question::TcpOtherBoth],
        sample: Question::TcpSample,
    };

    /// Which of the servers counts, by number.
    fn chosen(&self, kind: Kind) -> Option<u8> {
        let first = if kind.is_udp() { self.primary()? } else { self.tcp_primary()? };
        u8::try_from(self.servers.iter().position(|server| *server == first)?).ok()
    }

    fn views(&self, kind: Kind) -> Views {
        let Some(chosen) = self.chosen(kind) else { return Views::default() };
        let [other_port, other_address, other_both] = kind.places.map(|place| self.mapped(place));
        let mut views = Views {
            first: self.mapped((kind.server)(chosen)),
            other_port,
            other_address,
            other_both,
            again: None,
        };
        // A second server's view serves where the first has one address only.
        let first = self.servers.get(usize::from(chosen));
        for (n, server) in (0..).zip(&self.servers).filter(|(n, _)| *n != chosen) {
            let elsewhere = first.filter(|first| first.ip() != server.ip() && views.other_address.is_none());
            let (Some(first), Some(mapped)) = (elsewhere, self.mapped((kind.server)(n))) else { continue };
            if first.port() == server.port() {
                views.other_address = Some(mapped);
            } else if views.other_both.is_none() {
                views.other_both = Some(mapped);
            }
        }
        views
    }

    fn figures(&self, kind: Kind, views: Views) -> Figures {
        let local = self.chosen(kind).and_then(|n| self.heard((kind.server)(n))).map(|heard| heard.local);
        let samples = (0..SAMPLES).filter_map(|n| {
            let heard = self.heard((kind.sample)(n))?;
            Some((heard.local.port(), heard.message.mapped()?.port()))
        });
        let samples: Vec<(u16, u16)> = samples.collect();
        Figures { local, views, ports: classify::ports(&samples), samples, ..Figures::default() }
    }

    /// Whether a transport gets out. One that does not is blocked only if another one does: else the server is down. A server
    /// that refuses connections does not do TCP.
    fn passes(&self, kind: Kind, other: Kind) -> Option<bool> {
        if self.chosen(kind).is_some() {
            return Some(true);
        }
        let refuses = |(n, _)| self.found.get(&(kind.server)(n)) == Some(&Finding::Refused);
        let refused = (0..).zip(&self.servers).any(refuses);
        let blocked = self.is_mute(kind.server) && self.chosen(other).is_some() && !refused;
        blocked.then_some(false)
    }

    /// Whether the answer to a CHANGE-REQUEST came. From the wrong place it says nothing: the server has not understood.
    fn changed(&self, question: Question, obeyed: impl Fn(SocketAddr, SocketAddr) -> bool) -> Option<bool> {
        match self.found.get(&question)? {
            Finding::Heard(heard) if heard.message.error().is_some() => None,
            Finding::Heard(heard) => obeyed(heard.source, self.primary()?).then_some(true),
            Finding::Silence => Some(false),
            _ => None,
        }
    }

    /// A mapping that changes with the destination is no address to be met at: silence says nothing then.
    fn hairpin(
        &self,
        mapping: Mapping,
        side: fn(u8) -> Question,
        met: impl Fn(&Finding) -> bool,
    ) -> Option<bool> {
        let findings = [self.found.get(&side(0))?, self.found.get(&side(1))?];
        match (findings.into_iter().any(met), mapping) {
            (_, Mapping::None | Mapping::Unknown) => None,
            (true, _) => Some(true),
            (false, Mapping::EndpointIndependent) => Some(false),
            (false, _) => None,
        }
    }

    fn paired(&self, kind: Kind, views: &Views) -> Option<bool> {
        let views = [views.first, views.other_port, views.other_address, views.other_both];
        let samples = (0..SAMPLES).filter_map(|n| self.mapped((kind.sample)(n)));
        let outer: Vec<IpAddr> = views.into_iter().flatten().chain(samples).map(|seen| seen.ip()).collect();
        classify::paired(&outer)
    }

    /// Idle seconds, and whether what the server said afterwards came in. A RST in its place comes from a NAT that says so
    /// when it forgets.
    fn idle(&self, spoken: fn(u16) -> Question) -> Vec<(u16, bool)> {
        let heard = IDLE.into_iter().filter_map(|seconds| match self.found.get(&spoken(seconds))? {
            Finding::Heard(heard) => heard.message.error().is_none().then_some((seconds, true)),
            Finding::Silence | Finding::Refused => Some((seconds, false)),
            _ => None,
        });
        heard.collect()
    }

    fn idle_opening(&self) -> Vec<(u16, bool)> {
        let survived = |seconds| Some((seconds, self.survives(HalfOpen::Idle(seconds))?));
        IDLE.into_iter().filter_map(survived).collect()
    }

    fn outcome(&self, question: Question) -> Option<stunt::Outcome> {
        self.heard(question)?.message.stunt_outcome()
    }

    /// Why what is unknown in `profile` is unknown.
    fn unknown(&self, profile: &Profile) -> Vec<Unknown> {
        const SILENT: &str = "no server answered";
        const ONE_ADDRESS: &str =
            "the server has one address only; name a second server, or one that does RFC 5780";
        const NO_STUNT: &str = "the server does not do STUNT; ours does (`[stun]` in the configuration)";
        const PRIVILEGE: &str = "the server lacks the privileges for it";
        const IPV6: &str = "over IPv6 no server reads packets or makes them by hand";
        const HERE: &str = "it needs root here";
        const MOVES: &str = "the outer port changes with the destination, so nobody can be met at it";
        const NOT_YET: &str = "it was not measured";
        let server = self.stunt_server();
        let is_ipv6 = self.tcp_primary().is_some_and(|server| server.is_ipv6());
        let incapable = if is_ipv6 { IPV6 } else { PRIVILEGE };
        let mut all = Vec::new();
        let mut add = |is_unknown: bool, what, why| {
            if is_unknown {
                all.push(Unknown { what, why });
            }
        };
        let (udp, tcp, segments) = (&profile.udp, &profile.tcp, &profile.segments);
        if udp.passes == Some(true) {
            add(udp.mapping == Mapping::Unknown, "mapping of UDP", ONE_ADDRESS);
            add(udp.filtering == Filtering::Unknown, "filtering of UDP", ONE_ADDRESS);
            let moves =
                !matches!(udp.mapping, Mapping::None | Mapping::Unknown | Mapping::EndpointIndependent);
            add(udp.hairpin.is_none() && moves, "hairpin of UDP", MOVES);
            add(
                udp.lifetime.is_none() && self.scope.lifetimes,
                "lifetime of UDP mappings",
                "the server does not answer to another port (RESPONSE-PORT)",
            );
        } else {
            add(udp.passes.is_none(), "UDP", SILENT);
        }
        if tcp.passes == Some(true) {
            add(tcp.mapping == Mapping::Unknown, "mapping of TCP", ONE_ADDRESS);
            let why = match &server {
                None => NO_STUNT,
                Some(server) if server.addresses.len() < 2 => ONE_ADDRESS,
                Some(server) if !server.can.silent || !server.can.watch => incapable,
                Some(_) => NOT_YET,
            };
            add(tcp.filtering == Filtering::Unknown, "filtering of TCP", why);
            let why = if server.is_some() { NOT_YET } else { NO_STUNT };
            let open = tcp.filtering == Filtering::Open;
            add(tcp.reaction == Reaction::Unknown && !open, "reaction to a stranger's SYN", why);
            let moves =
                !matches!(tcp.mapping, Mapping::None | Mapping::Unknown | Mapping::EndpointIndependent);
            add(tcp.hairpin.is_none() && moves, "hairpin of TCP", MOVES);
            let forge = match &server {
                None => NO_STUNT,
                Some(server) if !server.can.forge || !server.can.watch => incapable,
                Some(_) => NOT_YET,
            };
            add(segments.survives_reset.is_none(), "whether a mapping outlives a RST", forge);
            add(segments.survives_icmp.is_none(), "whether a mapping outlives an ICMP error", forge);
            let own = |can: bool| match (&server, self.scope.privileged) {
                (None, _) => NO_STUNT,
                (_, false) => HERE,
                (Some(_), true) if !can => incapable,
                _ => NOT_YET,
            };
            let mut lifetime = |known: Option<u16>, what, why| {
                add(known.is_none() && self.scope.lifetimes, what, why);
            };
            let waits = if server.is_some() { NOT_YET } else { NO_STUNT };
            lifetime(profile.transitory.opening, "lifetime of TCP mappings after a SYN", forge);
            lifetime(tcp.lifetime, "lifetime of TCP mappings of a connection", waits);
            lifetime(profile.transitory.closing, "lifetime of TCP mappings after a FIN", waits);
            let can = server.as_ref().map(|server| server.can).unwrap_or_default();
            add(segments.synack_out.is_none(), "whether a SYN-ACK may leave after a SYN", own(can.watch));
            add(segments.sequence_kept.is_none(), "whether sequence numbers are kept", own(can.own_syn));
        } else {
            add(tcp.passes.is_none(), "TCP", SILENT);
        }
        let translated = udp.mapping != Mapping::None && udp.passes.or(tcp.passes) == Some(true);
        add(
            profile.hops.is_none() && translated,
            "routers up to the outside",
            "no router with a public address says when a packet expires",
        );
        all
    }
}

/// The questions of one transport.
#[derive(Clone, Copy)]
struct Kind {
    server: fn(u8) -> Question,
    places: [Question; 3],
    sample: fn(u8) -> Question,
}

impl Kind {
    fn is_udp(self) -> bool {
        (self.server)(0) == Question::Server(0)
    }
}

/// Without translation there is nothing to assign.
fn assignment(mapping: Mapping, figures: &Figures) -> PortAssignment {
    if mapping == Mapping::None { PortAssignment::Preserved } else { figures.ports.assignment }
}
