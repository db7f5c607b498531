//! What a measurement means, in plain words, as pure functions of the report.

use crate::discovery::question::IDLE;
use crate::discovery::report::Figures;
use crate::discovery::report::Report;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Profile;
use crate::nat::behavior::Reaction;
use crate::wire::stun::stunt::Segment;

/// The verdict, a sentence or two each line.
#[must_use]
pub(super) fn sentences(report: &Report) -> Vec<String> {
    let (udp, tcp) = (&report.profile.udp, &report.profile.tcp);
    let mut lines = vec![format!("UDP: {}.", treatment(udp, &report.udp))];
    let same = udp.passes == tcp.passes
        && (udp.mapping, udp.filtering) == (tcp.mapping, tcp.filtering)
        && tcp.passes == Some(true)
        && tcp.filtering != Filtering::Unknown;
    let tcp_words = if same { "the same".to_owned() } else { treatment(tcp, &report.tcp) };
    lines.push(match reaction(tcp) {
        Some(reaction) => format!("TCP: {tcp_words}; {reaction}."),
        None => format!("TCP: {tcp_words}."),
    });
    lines.extend(hairpin(udp, tcp));
    lines.extend(lifetimes(report));
    lines.push(expectation(report));
    lines
}

fn treatment(behavior: &Behavior, figures: &Figures) -> String {
    match behavior.passes {
        Some(false) => return "blocked here; no server answered".to_owned(),
        None => return "no server answered".to_owned(),
        Some(true) => {}
    }
    let mapping = match behavior.mapping {
        Mapping::Unknown => "mapping unknown",
        Mapping::None => "no translation",
        Mapping::EndpointIndependent => "endpoint-independent mapping",
        Mapping::AddressDependent => "another outer port for each address",
        Mapping::AddressAndPortDependent => "another outer port for each address and port",
        Mapping::SessionDependent => "another outer port for each connection",
    };
    let filtering = match behavior.filtering {
        Filtering::Unknown => "filtering unknown",
        Filtering::Open => "open to everybody",
        Filtering::EndpointIndependent => "open ports take in anybody",
        Filtering::AddressDependent => "address-restricted",
        Filtering::AddressAndPortDependent => "port-restricted",
        Filtering::InboundNever => "connections from outside never pass",
    };
    let moves = !matches!(behavior.mapping, Mapping::Unknown | Mapping::None | Mapping::EndpointIndependent);
    let ports = match behavior.ports {
        _ if !moves => String::new(),
        PortAssignment::Unknown => " (its order unknown)".to_owned(),
        PortAssignment::Preserved => " (the inner one where it is free)".to_owned(),
        PortAssignment::Delta(step) => format!(" (the next is {step:+}{})", certainty(figures)),
        PortAssignment::Random => " (any)".to_owned(),
    };
    format!("{mapping}{ports}, {filtering}")
}

fn certainty(figures: &Figures) -> String {
    let sure = figures.ports.confidence;
    if sure < 0.99 { format!(", {:.0} % of the time", sure * 100.0) } else { String::new() }
}

fn reaction(tcp: &Behavior) -> Option<&'static str> {
    match tcp.reaction {
        Reaction::Unknown | Reaction::Drop => None,
        Reaction::Reset => Some(
            "your router answers unsolicited connections with RST, so both sides have to start at the same moment",
        ),
        Reaction::Unreachable => Some(
            "your router answers unsolicited connections with ICMP errors, so both sides have to start at the same moment",
        ),
    }
}

fn hairpin(udp: &Behavior, tcp: &Behavior) -> Option<String> {
    let words = match (udp.hairpin, tcp.hairpin) {
        (None, None) => return None,
        (Some(true), Some(true)) => "machines behind it reach each other by its outer address",
        (Some(true), _) => "machines behind it reach each other by its outer address with UDP only",
        (_, Some(true)) => "machines behind it reach each other by its outer address with TCP only",
        _ => "machines behind it do not reach each other by its outer address, but by their own ones",
    };
    Some(format!("Hairpin: {words}."))
}

fn lifetimes(report: &Report) -> Option<String> {
    let Profile { udp, tcp, transitory, .. } = &report.profile;
    let known = [
        ("UDP", udp.lifetime),
        ("TCP connections", tcp.lifetime),
        ("TCP after a SYN", transitory.opening),
        ("TCP after a FIN", transitory.closing),
    ];
    let words = |(what, lifetime): (&str, Option<u16>)| {
        Some(match lifetime? {
            // The shortest wait was too long.
            seconds if seconds < IDLE[0] => format!("{what} less than {} s", IDLE[0]),
            seconds => format!("{what} {seconds} s or more"),
        })
    };
    let known: Vec<String> = known.into_iter().filter_map(words).collect();
    (!known.is_empty()).then(|| format!("Idle mappings live: {}.", known.join(", ")))
}

fn expectation(report: &Report) -> String {
    let tcp = &report.profile.tcp;
    let Some(share) = report.direct_tcp else {
        return "What to expect of direct TCP cannot be said: not enough is known.".to_owned();
    };
    if tcp.passes == Some(false) {
        return "Expect no direct TCP.".to_owned();
    }
    let dialable = matches!(tcp.mapping, Mapping::None | Mapping::EndpointIndependent)
        && matches!(tcp.filtering, Filtering::Open | Filtering::EndpointIndependent);
    if dialable {
        return "Expect direct TCP with everybody: whoever knows your address may connect.".to_owned();
    }
    if share < 1.0 {
        return "Expect direct TCP only with peers that take in strangers, else a relay: nobody can know your next outer port."
            .to_owned();
    }
    let rest = if tcp.filtering == Filtering::InboundNever {
        "a relay with those whose router never takes a connection from outside either, and with random symmetric NATs"
    } else {
        "a relay with random symmetric NATs"
    };
    format!("Expect direct TCP with {share:.0} % of peers (by the NATs on the market in 2005); {rest}.")
}

/// Every figure, a line each.
#[must_use]
pub(super) fn figures(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, behavior, figures) in
        [("udp", &report.profile.udp, &report.udp), ("tcp", &report.profile.tcp, &report.tcp)]
    {
        let mut line = |what: &str, text: Option<String>| {
            lines.extend(text.map(|text| format!("{name} {what}: {text}")));
        };
        let views = &figures.views;
        line("inner endpoint", figures.local.map(|local| local.to_string()));
        line("outer endpoint", views.first.map(|seen| seen.to_string()));
        line("  from another port", views.other_port.map(|seen| seen.to_string()));
        line("  from another address", views.other_address.map(|seen| seen.to_string()));
        line("  from another address and port", views.other_both.map(|seen| seen.to_string()));
        line("  by a second connection", views.again.map(|seen| seen.to_string()));
        let samples: Vec<String> =
            figures.samples.iter().map(|(inner, outer)| format!("{inner}>{outer}")).collect();
        line("ports, inner>outer", (!samples.is_empty()).then(|| samples.join(" ")));
        let assignment = match behavior.ports {
            PortAssignment::Unknown => None,
            PortAssignment::Preserved => Some("preserved".to_owned()),
            PortAssignment::Delta(step) => Some(format!("step {step:+}")),
            PortAssignment::Random => Some("random".to_owned()),
        };
        line(
            "next port",
            assignment.map(|words| format!("{words}, {:.0} % sure", figures.ports.confidence * 100.0)),
        );
        line("hairpin", behavior.hairpin.map(|works| yes(works).to_owned()));
        line(
            "hairpin source",
            figures.hairpin_outer.map(|outer| if outer { "outer" } else { "inner" }.to_owned()),
        );
        line("one outer address", behavior.paired.map(|paired| yes(paired).to_owned()));
        line("mapping alive after", alive(&figures.idle));
    }
    lines.extend(alive(&report.opening).map(|idle| format!("tcp mapping alive after a SYN and: {idle}")));
    lines.extend(alive(&report.closing).map(|idle| format!("tcp mapping alive after a FIN and: {idle}")));
    lines.extend(report.syn.as_ref().map(|syn| format!("tcp SYN at the server: {}", arrived(syn))));
    let segments = &report.profile.segments;
    let reaction = match report.profile.tcp.reaction {
        Reaction::Unknown => None,
        Reaction::Drop => Some("silence"),
        Reaction::Reset => Some("RST"),
        Reaction::Unreachable => Some("ICMP error"),
    };
    let after =
        report.reaction_after.map(|after| format!(" ({:.1} s)", after.as_secs_f64())).unwrap_or_default();
    lines.extend(reaction.map(|words| format!("tcp answer to a stranger: {words}{after}")));
    for (what, answer) in [
        ("a mapping outlives a RST", segments.survives_reset),
        ("a mapping outlives an ICMP error", segments.survives_icmp),
        ("a SYN-ACK may leave after a SYN", segments.synack_out),
        ("sequence numbers are kept", segments.sequence_kept),
    ] {
        lines.extend(answer.map(|answer| format!("tcp {what}: {}", yes(answer))));
    }
    lines.extend(report.profile.hops.map(|hops| format!("routers up to the outside: {hops}")));
    lines.extend(report.unknown.iter().map(|unknown| format!("unknown: {}: {}", unknown.what, unknown.why)));
    lines
}

/// After which idle times a mapping was still there.
fn alive(idle: &[(u16, bool)]) -> Option<String> {
    let idle: Vec<String> =
        idle.iter().map(|(seconds, alive)| format!("{seconds} s {}", yes(*alive))).collect();
    (!idle.is_empty()).then(|| idle.join(", "))
}

fn arrived(syn: &Segment) -> String {
    let mss = syn.mss().map_or_else(|| "none".to_owned(), |mss| mss.to_string());
    let Segment { ttl, window, sequence, .. } = syn;
    format!("TTL {ttl}, sequence {sequence}, window {window}, MSS {mss}, options {}", hex(&syn.options))
}

/// Bytes as they are in a packet.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn yes(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::classify::Ports;
    use crate::nat::market;

    fn report(udp: Behavior, tcp: Behavior) -> Report {
        let ports = Ports { assignment: tcp.ports, confidence: 1.0, range: None };
        Report {
            profile: Profile { udp, tcp, ..Profile::default() },
            tcp: Figures { ports, ..Figures::default() },
            direct_tcp: market::direct_tcp(&tcp, 1.0),
            ..Report::default()
        }
    }

    #[test]
    fn the_verdict_is_what_a_friend_would_say() {
        let linux = Behavior {
            passes: Some(true),
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            ports: PortAssignment::Preserved,
            reaction: Reaction::Drop,
            hairpin: Some(false),
            ..Behavior::default()
        };
        let stepping = Behavior {
            mapping: Mapping::SessionDependent,
            ports: PortAssignment::Delta(1),
            hairpin: None,
            ..linux
        };
        for (udp, tcp, wanted) in [
            (
                linux,
                Behavior { reaction: Reaction::Reset, ..linux },
                "UDP: endpoint-independent mapping, port-restricted. \
                 TCP: the same; your router answers unsolicited connections with RST, so both sides have to start at the same moment. \
                 Hairpin: machines behind it do not reach each other by its outer address, but by their own ones. \
                 Expect direct TCP with 100 % of peers (by the NATs on the market in 2005); a relay with random symmetric NATs.",
            ),
            (
                Behavior { passes: Some(false), ..Behavior::default() },
                stepping,
                "UDP: blocked here; no server answered. \
                 TCP: another outer port for each connection (the next is +1), port-restricted. \
                 Expect direct TCP with 100 % of peers (by the NATs on the market in 2005); a relay with random symmetric NATs.",
            ),
            (
                Behavior { hairpin: None, ..linux },
                Behavior { ports: PortAssignment::Random, ..stepping },
                "UDP: endpoint-independent mapping, port-restricted. \
                 TCP: another outer port for each connection (any), port-restricted. \
                 Expect direct TCP only with peers that take in strangers, else a relay: nobody can know your next outer port.",
            ),
            (
                Behavior::default(),
                Behavior::default(),
                "UDP: no server answered. TCP: no server answered. \
                 What to expect of direct TCP cannot be said: not enough is known.",
            ),
        ] {
            assert_eq!(sentences(&report(udp, tcp)).join(" "), wanted);
        }
    }

    #[test]
    fn how_long_idle_mappings_live_is_said_where_it_is_known() {
        let behavior = |lifetime| Behavior { passes: Some(true), lifetime, ..Behavior::default() };
        let mut measured = report(behavior(Some(30)), behavior(Some(1)));
        measured.profile.transitory.closing = Some(120);
        let said = sentences(&measured).join(" ");
        let wanted = "Idle mappings live: UDP 30 s or more, TCP connections less than 10 s, TCP after a FIN 120 s or more.";
        assert!(said.contains(wanted), "{said}");
        assert!(!sentences(&report(behavior(None), behavior(None))).join(" ").contains("Idle"));
    }
}
