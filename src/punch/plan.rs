//! What to check and in which order: one pure function.

use std::net::IpAddr;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;

use crate::base::addr;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Forged;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::MAX_CANDIDATES;
use crate::nat::candidate::Transport;
use crate::punch::keys::Side;
use crate::punch::method;
use crate::punch::method::Round;
use crate::wire::dress::Dress;

/// Addresses at which the peer listens that are dialled, at most.
pub const MAX_LISTENERS: usize = 6;

/// What a member knows of its own end when it plans.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Whether the data socket for IPv4 exists.
    pub has_v4: bool,
    /// Whether the data socket for IPv6 exists and some global IPv6 address is there.
    pub has_v6: bool,
    /// The overlay's own prefixes: never probed, or the overlay would run inside itself.
    pub overlay: Vec<IpNetwork>,
    /// Whether UDP may be used at all (`member.udp`).
    pub udp: bool,
    /// Whether a TCP listener exists.
    pub tcp: bool,
    /// Whether the broker is on this machine: reached over the loopback interface.
    pub beside_broker: bool,
    /// Own addresses that are the same outside: no NAT translates them, though a firewall may guard them.
    pub public: Vec<IpAddr>,
    /// Whether UDP was tried and nothing came back: the broker answers on TCP alone.
    pub udp_blocked: bool,
    /// How the connection to the broker is dressed: perhaps nothing else gets out.
    pub dress: Dress,
}

/// The peer's addresses to check over UDP, most promising first: what a server saw (the way through NATs), then what the
/// gateway or the owner opened, then inner and local addresses (same site). At most [`MAX_CANDIDATES`].
#[must_use]
pub fn udp_targets(local: &Local, peer: &[Candidate]) -> Vec<SocketAddr> {
    if !local.udp {
        return Vec::new();
    }
    let mut fit: Vec<(u8, SocketAddr)> = peer
        .iter()
        .filter(|c| c.transport == Transport::Udp)
        .map(|c| (order(c.kind), addr::canonical(c.addr)))
        .filter(|(_, to)| is_target(local, *to))
        .collect();
    // A peer's own order within a kind is kept: it knows its interfaces.
    fit.sort_by_key(|(order, _)| *order);
    let mut targets: Vec<SocketAddr> = Vec::with_capacity(MAX_CANDIDATES);
    for (_, to) in fit {
        if targets.len() < MAX_CANDIDATES && !targets.contains(&to) {
            targets.push(to);
        }
    }
    targets
}

/// The peer's addresses to dial over TCP, where it always listens: no punching there, but one of the two may be able to
/// reach the other all the same (connection reversal). At most [`MAX_LISTENERS`], most promising first.
#[must_use]
pub fn tcp_targets(local: &Local, peer: &[Candidate]) -> Vec<SocketAddr> {
    let mut fit: Vec<(u8, SocketAddr)> = peer
        .iter()
        .filter(|c| c.transport == Transport::Tcp)
        .map(|c| (order(c.kind), addr::canonical(c.addr)))
        .filter(|(_, to)| is_outside(local, *to))
        .collect();
    fit.sort_by_key(|(order, _)| *order);
    let mut targets: Vec<SocketAddr> = Vec::with_capacity(MAX_LISTENERS);
    for (_, to) in fit {
        if targets.len() < MAX_LISTENERS && !targets.contains(&to) {
            targets.push(to);
        }
    }
    targets
}

/// The rounds of TCP punching between two members, in order, as `side` carries them out. Both compute it from the same two
/// profiles, so both have the same methods in the same order. Empty if no method can open this pair of NATs.
pub fn choose(own: &Profile, peer: &Profile, side: Side) -> Result<Vec<Round>, Hopeless> {
    let (ours, theirs) = (&own.tcp, &peer.tcp);
    if ours.passes == Some(false) || theirs.passes == Some(false) {
        return Err(Hopeless::NoTcp);
    }
    let refuses = |tcp: &Behavior| tcp.filtering == Filtering::InboundNever;
    let by_hand = method::natblaster::round(own, peer);
    if refuses(ours) && refuses(theirs) {
        let forged = method::stunt1::round(own, peer);
        let rounds: Vec<Round> = [by_hand, forged, forged].into_iter().flatten().collect();
        return match (own.forged, peer.forged) {
            _ if !rounds.is_empty() => Ok(rounds),
            (Forged::Never, _) | (_, Forged::Never) => Err(Hopeless::BothRefuseSyns),
            (Forged::Unable, _) | (_, Forged::Unable) => Err(Hopeless::ForgedUnable),
            (Forged::Lost, _) | (_, Forged::Lost) => Err(Hopeless::ForgedLost),
            (Forged::Able, Forged::Able) => Err(Hopeless::BothRefuseSyns),
        };
    }
    let reaches =
        |from: &Behavior, to: &Behavior| method::is_predictable(from) || method::lets_other_ports_in(to);
    // One side must know where the other one's SYN comes from, or not care.
    if !reaches(ours, theirs) || !reaches(theirs, ours) {
        return Err(Hopeless::Unpredictable);
    }
    let first = method::prediction::round(ours, theirs).unwrap_or_else(|| method::simultaneous::round(ours));
    let rounds = [first, method::low_ttl::round(ours, own.hops), first, method::stunt2::round(ours, side)];
    Ok(rounds.into_iter().chain(by_hand).collect())
}

/// The rounds between two members whose IPv4 NATs are hopeless, if both have IPv6 addresses that are the same outside:
/// firewalls let in what crosses, and the ports are known. `None` if one has none.
#[must_use]
pub fn over_v6(local: &Local, peer: &[Candidate]) -> Option<Vec<Round>> {
    let theirs =
        |c: &Candidate| c.addr.is_ipv6() && !addr::is_private(c.addr.ip()) && is_outside(local, c.addr);
    let both = local.public.iter().any(IpAddr::is_ipv6) && peer.iter().any(theirs);
    both.then(|| vec![method::simultaneous::round(&Behavior::default()); 2])
}

/// Why no TCP connection can be punched between two NATs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Hopeless {
    /// One of the two networks lets no TCP out.
    #[error("one of the two networks lets no TCP connection out")]
    NoTcp,
    /// Both NATs never let a SYN in.
    #[error("both NATs let no connection in, not even after one went out")]
    BothRefuseSyns,
    /// The same, and the broker's help needs a right that one of the two has not.
    #[error(
        "both NATs let no connection in, and for the broker's forged answers one of the two needs CAP_NET_RAW: start it as root"
    )]
    ForgedUnable,
    /// The same, and the broker's help did not help.
    #[error(
        "both NATs let no connection in, and answers that the broker forged did not arrive: some network filters them"
    )]
    ForgedLost,
    /// One NAT gives every connection a random port, the other lets in only ports that were written to.
    #[error(
        "one NAT gives every connection a random port, and the other lets in only ports that were written to"
    )]
    Unpredictable,
}

/// Whether a relay may be reached at this address. On the machine of its broker a relay is at the loopback address, where
/// no peer's candidate may send us. Streams need no data socket: they go wherever the kernel has a route.
#[must_use]
pub fn is_relay(local: &Local, transport: Transport, to: SocketAddr) -> bool {
    let here = local.beside_broker && to.ip().is_loopback() && to.port() != 0;
    match transport {
        Transport::Udp => local.udp && (here || is_target(local, to)),
        Transport::Tcp => here || is_outside(local, to),
    }
}

/// A relay's endpoints in the order in which they are tried: first what is dressed as what reached the broker.
pub fn order_relay(local: &Local, endpoints: &mut [Candidate]) {
    endpoints.sort_by_key(|endpoint| Dress::of(endpoint.addr.port()) != local.dress);
}

/// Whether an address may be probed from here at all.
#[must_use]
pub fn is_target(local: &Local, to: SocketAddr) -> bool {
    let family = match to.ip() {
        IpAddr::V4(_) => local.has_v4,
        IpAddr::V6(_) => local.has_v6,
    };
    family && is_outside(local, to)
}

/// Whether an address is fit for a connection from here, whatever the data sockets are.
#[must_use]
pub fn is_outside(local: &Local, to: SocketAddr) -> bool {
    addr::is_candidate(to) && !local.overlay.iter().any(|net| net.contains(to.ip()))
}

const fn order(kind: Kind) -> u8 {
    match kind {
        Kind::Mapped => 0,
        Kind::Forwarded | Kind::Configured => 1,
        Kind::Host => 2,
        Kind::Inner => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::behavior::Mapping;
    use crate::nat::behavior::PortAssignment;
    use crate::nat::behavior::Segments;
    use crate::punch::method::Method;

    #[test]
    fn the_order_is_mapped_opened_local_inner_and_nothing_twice() {
        let peer = [
            candidate(Kind::Inner, "100.64.0.9:5"),
            candidate(Kind::Host, "192.168.1.2:5"),
            candidate(Kind::Configured, "198.51.100.1:7"),
            candidate(Kind::Mapped, "198.51.100.1:5"),
            candidate(Kind::Host, "198.51.100.1:5"),
        ];
        let order: Vec<String> = udp_targets(&local(), &peer).iter().map(ToString::to_string).collect();
        assert_eq!(order, ["198.51.100.1:5", "198.51.100.1:7", "192.168.1.2:5", "100.64.0.9:5"]);
    }

    #[test]
    fn a_hostile_offer_cannot_aim_us_at_ourselves_or_at_crowds() {
        for addr in
            ["127.0.0.1:5", "224.0.0.1:5", "10.77.0.3:5", "192.0.2.1:0", "[fe80::1]:5", "[2001:db8::1]:5"]
        {
            assert_eq!(udp_targets(&local(), &[candidate(Kind::Mapped, addr)]), [], "{addr}");
        }
        let many: Vec<Candidate> =
            (0..200).map(|i| candidate(Kind::Host, &format!("192.0.2.{i}:9"))).collect();
        assert_eq!(udp_targets(&local(), &many).len(), MAX_CANDIDATES);
    }

    #[test]
    fn a_relay_is_tried_first_the_way_the_broker_was_reached() {
        let tcp = |addr: &str| Candidate { transport: Transport::Tcp, ..candidate(Kind::Host, addr) };
        let (plain, tls, socket) = (tcp("192.0.2.1:6061"), tcp("192.0.2.1:443"), tcp("192.0.2.1:80"));
        for (dress, wanted) in [
            (Dress::Plain, [plain, tls, socket]),
            (Dress::Tls, [tls, plain, socket]),
            (Dress::WebSocket, [socket, tls, plain]),
        ] {
            let mut endpoints = [tls, plain, socket];
            order_relay(&Local { dress, ..local() }, &mut endpoints);
            assert_eq!(endpoints, wanted);
        }
    }

    #[test]
    fn without_udp_there_is_nothing_to_check() {
        let deaf = Local { udp: false, ..local() };
        assert_eq!(udp_targets(&deaf, &[candidate(Kind::Mapped, "192.0.2.1:5")]), []);
    }

    #[test]
    fn every_pair_of_nats_gets_the_methods_that_can_open_it() {
        let unknown = Behavior::default();
        let linux = Behavior {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            ..unknown
        };
        let never = Behavior { filtering: Filtering::InboundNever, ..linux };
        let step = Behavior { mapping: Mapping::SessionDependent, ports: PortAssignment::Delta(1), ..linux };
        let random = Behavior { ports: PortAssignment::Random, ..step };
        let restricted = Behavior { filtering: Filtering::AddressDependent, ..linux };
        let mute = Behavior { passes: Some(false), ..linux };
        for (a, b, wanted) in [
            (unknown, unknown, Ok(Method::Simultaneous)),
            (linux, linux, Ok(Method::Simultaneous)),
            (linux, never, Ok(Method::Simultaneous)),
            (never, never, Err(Hopeless::BothRefuseSyns)),
            (step, linux, Ok(Method::Prediction)),
            (step, step, Ok(Method::Prediction)),
            (random, linux, Err(Hopeless::Unpredictable)),
            (random, never, Err(Hopeless::Unpredictable)),
            (random, random, Err(Hopeless::Unpredictable)),
            (random, restricted, Ok(Method::Prediction)),
            (random, unknown, Ok(Method::Prediction)),
            (linux, mute, Err(Hopeless::NoTcp)),
        ] {
            let profile = |tcp| Profile { tcp, ..Profile::default() };
            let (a, b) = (profile(a), profile(b));
            let ours = choose(&a, &b, Side::Asking);
            let theirs = choose(&b, &a, Side::Asked);
            assert_eq!(ours.as_ref().map(|rounds| rounds[0].method).map_err(|e| *e), wanted, "{a:?} {b:?}");
            let methods = |rounds: Result<Vec<Round>, Hopeless>| {
                rounds.map(|rounds| rounds.iter().map(|round| round.method).collect::<Vec<_>>())
            };
            assert_eq!(methods(ours), methods(theirs), "both sides agree: {a:?} {b:?}");
        }
    }

    #[test]
    fn what_lets_no_connection_in_is_opened_by_answers_that_are_forged_or_made_by_hand() {
        use Method::LowTtl;
        use Method::NatBlaster;
        use Method::Simultaneous;
        use Method::Stunt1;
        use Method::Stunt2;
        let never = Behavior {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::InboundNever,
            ..Behavior::default()
        };
        let none = Profile { tcp: never, ..Profile::default() };
        let able = Profile { forged: Forged::Able, ..none };
        let lost = Profile { forged: Forged::Lost, ..none };
        let unable = Profile { forged: Forged::Unable, ..none };
        let step = Behavior { mapping: Mapping::SessionDependent, ports: PortAssignment::Delta(1), ..never };
        let stepping = Profile { tcp: step, ..able };
        let rewritten = Segments { sequence_kept: Some(false), ..Segments::default() };
        let rewritten = Profile { segments: rewritten, ..able };
        let out = Profile { segments: Segments { synack_out: Some(true), ..Segments::default() }, ..none };
        let both = Profile { forged: Forged::Able, ..out };
        let linux = Profile {
            tcp: Behavior { filtering: Filtering::AddressAndPortDependent, ..never },
            forged: Forged::Able,
            ..Profile::default()
        };
        let linux_out = Profile { segments: out.segments, ..linux };
        for (a, b, wanted) in [
            (none, none, Err(Hopeless::BothRefuseSyns)),
            (able, none, Err(Hopeless::BothRefuseSyns)),
            (able, unable, Err(Hopeless::ForgedUnable)),
            (lost, none, Err(Hopeless::BothRefuseSyns)),
            (able, able, Ok(vec![Stunt1, Stunt1])),
            (able, lost, Err(Hopeless::ForgedLost)),
            (able, stepping, Err(Hopeless::BothRefuseSyns)),
            (able, rewritten, Err(Hopeless::BothRefuseSyns)),
            (out, none, Err(Hopeless::BothRefuseSyns)),
            (out, out, Ok(vec![NatBlaster])),
            (both, both, Ok(vec![NatBlaster, Stunt1, Stunt1])),
            (linux, able, Ok(vec![Simultaneous, LowTtl, Simultaneous, Stunt2])),
            (linux_out, out, Ok(vec![Simultaneous, LowTtl, Simultaneous, Stunt2, NatBlaster])),
        ] {
            let methods = |own: &Profile, peer: &Profile, side| -> Result<Vec<Method>, Hopeless> {
                Ok(choose(own, peer, side)?.iter().map(|round| round.method).collect())
            };
            assert_eq!(methods(&a, &b, Side::Asking), wanted, "{a:?} {b:?}");
            assert_eq!(methods(&b, &a, Side::Asked), wanted, "the other way round: {a:?} {b:?}");
        }
    }

    #[test]
    fn a_listener_of_the_peer_is_dialled_at_most_six_times() {
        let tcp = |addr: &str| Candidate { transport: Transport::Tcp, ..candidate(Kind::Host, addr) };
        let peer = [
            tcp("192.168.1.2:5"),
            candidate(Kind::Mapped, "198.51.100.1:5"),
            tcp("127.0.0.1:5"),
            tcp("10.77.0.3:5"),
            tcp("[2001:db8::1]:5"),
        ];
        let wanted: [SocketAddr; 2] = ["192.168.1.2:5".parse().unwrap(), "[2001:db8::1]:5".parse().unwrap()];
        assert_eq!(tcp_targets(&local(), &peer), wanted);
        let many: Vec<Candidate> = (0..99).map(|i| tcp(&format!("192.0.2.{i}:9"))).collect();
        assert_eq!(tcp_targets(&local(), &many).len(), MAX_LISTENERS);
    }

    #[test]
    fn hopeless_nats_matter_to_ipv4_alone() {
        let peer = |addr: &str| [candidate(Kind::Host, addr)];
        let ours = |addr: &str| Local { public: vec![addr.parse().unwrap()], ..local() };
        for (own, theirs, wanted) in [
            ("2001:db8::1", "[2001:db8::2]:5", true),
            ("2001:db8::1", "192.0.2.1:5", false),
            ("2001:db8::1", "[fd00::2]:5", false),
            ("192.0.2.7", "[2001:db8::2]:5", false),
        ] {
            assert_eq!(over_v6(&ours(own), &peer(theirs)).is_some(), wanted, "{own} {theirs}");
        }
    }

    fn local() -> Local {
        Local {
            has_v4: true,
            has_v6: false,
            overlay: vec!["10.77.0.0/16".parse().unwrap()],
            udp: true,
            ..Local::default()
        }
    }

    fn candidate(kind: Kind, addr: &str) -> Candidate {
        Candidate { transport: Transport::Udp, kind, addr: addr.parse().unwrap() }
    }
}
