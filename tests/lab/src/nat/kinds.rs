//! The NATs worth naming: what they do, and which boxes are known to do it.

use super::Behaviour;
use super::Filtering;
use super::Hairpin;
use super::Mapping;
use super::Nat;
use super::Numbers;
use super::OnIcmp;
use super::OnReset;
use super::Pooling;
use super::Ports;
use super::Reaction;
use super::States;

/// A NAT with a name.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// One short word for tables and command lines.
    pub name: &'static str,
    /// Which real boxes do this.
    pub boxes: &'static str,
    /// What it does.
    pub nat: Nat,
}

/// All of them, the friendliest first.
pub const KINDS: [Kind; 28] = [
    Kind { name: "public", boxes: "servers, and the few homes without a NAT", nat: Nat::Open },
    Kind {
        name: "firewall",
        boxes: "company and campus networks with public addresses behind a stateful firewall",
        nat: Nat::StatefulFirewall,
    },
    Kind {
        name: "full-cone",
        boxes: "home routers with their \"full cone\" option on; carriers that follow RFC 6888",
        nat: Nat::both(Behaviour {
            mapping: Mapping::Independent(Ports::Random),
            filtering: Filtering::Independent,
            ..Behaviour::LINUX
        }),
    },
    Kind {
        name: "address-restricted",
        boxes: "carriers' NATs and game-friendly routers that filter by address (RFC 4787, REQ-8)",
        nat: Nat::both(Behaviour {
            mapping: Mapping::Independent(Ports::Random),
            filtering: Filtering::Address,
            ..Behaviour::LINUX
        }),
    },
    Kind {
        name: "port-restricted",
        boxes: "carriers' NATs that give ports of their own and filter strictly",
        nat: Nat::both(Behaviour { mapping: Mapping::Independent(Ports::Random), ..Behaviour::LINUX }),
    },
    Kind {
        name: "linux",
        boxes: "netfilter's masquerade: most home routers, Docker, phones' hotspots",
        nat: Nat::PortRestricted,
    },
    Kind {
        name: "linux-rst",
        boxes: "the same behind a firewall that rejects: OpenWrt as it is shipped",
        nat: Nat::both(Behaviour { reaction: Reaction::Reset, ..Behaviour::LINUX }),
    },
    Kind {
        name: "linux-icmp",
        boxes: "the same behind a plain iptables REJECT",
        nat: Nat::both(Behaviour { reaction: Reaction::Unreachable, ..Behaviour::LINUX }),
    },
    Kind {
        name: "linux-liberal",
        boxes: "the same with nf_conntrack_tcp_be_liberal, which some routers set for speed",
        nat: Nat::both(Behaviour { states: States::WindowsIgnored, ..Behaviour::LINUX }),
    },
    Kind {
        name: "never-syn",
        boxes: "Linux before 2.6.31, firewalls with strict TCP inspection: 16.1 % of the market in 2005",
        nat: Nat::both(Behaviour { filtering: Filtering::NeverSyn, ..Behaviour::LINUX }),
    },
    Kind {
        name: "address-step1",
        boxes: "2.5 % of the market in 2005",
        nat: Nat::both(Behaviour { mapping: Mapping::Address(Ports::Step(1)), ..Behaviour::LINUX }),
    },
    Kind {
        name: "port-step1",
        boxes: "18.7 % of the market in 2005",
        nat: Nat::both(Behaviour { mapping: Mapping::AddressAndPort(Ports::Step(1)), ..Behaviour::LINUX }),
    },
    Kind {
        name: "session-step1",
        boxes: "2.9 % of the market in 2005",
        nat: Nat::both(Behaviour { mapping: Mapping::Session(Ports::Step(1)), ..Behaviour::LINUX }),
    },
    Kind {
        name: "session-step2",
        boxes: "boxes that keep ports in RTP/RTCP pairs (RFC 4787, 4.2.2)",
        nat: Nat::both(Behaviour { mapping: Mapping::Session(Ports::Step(2)), ..Behaviour::LINUX }),
    },
    Kind {
        name: "session-random",
        boxes: "pf (OPNsense, pfSense), --random-fully, many cellular and cloud NATs",
        nat: Nat::SymmetricRandom,
    },
    Kind {
        name: "cone-udp-random-tcp",
        boxes: "carriers that are kind to games, that is to UDP, alone",
        nat: Nat::Composed {
            udp: Behaviour {
                mapping: Mapping::Independent(Ports::Random),
                filtering: Filtering::Independent,
                ..Behaviour::LINUX
            },
            tcp: Behaviour { mapping: Mapping::Session(Ports::Random), ..Behaviour::LINUX },
        },
    },
    Kind {
        name: "synack-out",
        boxes: "NATs of 2005 that look at a segment's direction only; NATBlaster was made for them",
        nat: Nat::both(Behaviour { states: States::SynAckOut, ..Behaviour::LINUX }),
    },
    Kind {
        name: "stateless",
        boxes: "cheap routers of 2005; translators of carriers (MAP-T, lw4o6) and of load balancers",
        nat: Nat::both(Behaviour { states: States::None, reset: OnReset::Ignored, ..Behaviour::LINUX }),
    },
    Kind {
        name: "rst-kills",
        boxes: "routers that know mappings but no sessions: 17.1 % of the market in 2005 forgot after a RST",
        nat: Nat::both(Behaviour {
            mapping: Mapping::Independent(Ports::Random),
            reset: OnReset::Mapping,
            ..Behaviour::LINUX
        }),
    },
    Kind {
        name: "rst-ignored",
        boxes: "routers that follow RFC 7857, 2.2",
        nat: Nat::both(Behaviour { reset: OnReset::Ignored, ..Behaviour::LINUX }),
    },
    Kind {
        name: "icmp-kills",
        boxes: "4.5 % of the market in 2005",
        nat: Nat::both(Behaviour {
            mapping: Mapping::Independent(Ports::Random),
            icmp: OnIcmp::Mapping,
            ..Behaviour::LINUX
        }),
    },
    Kind {
        name: "seq-rewritten",
        boxes: "Cisco PIX and ASA as they are shipped, pf with `modulate state`",
        nat: Nat::both(Behaviour { numbers: Numbers::Shifted, ..Behaviour::LINUX }),
    },
    Kind {
        name: "hairpin",
        boxes: "carriers' NATs that follow RFC 6888: full cones that turn packets back",
        nat: Nat::both(Behaviour {
            mapping: Mapping::Independent(Ports::Random),
            filtering: Filtering::Independent,
            hairpin: Hairpin::External,
            ..Behaviour::LINUX
        }),
    },
    Kind {
        name: "hairpin-internal",
        boxes: "home routers whose port forwarding does not masquerade what comes from inside",
        nat: Nat::both(Behaviour { hairpin: Hairpin::Internal, ..Behaviour::LINUX }),
    },
    Kind {
        name: "pooled",
        boxes: "carriers' NATs with several addresses that ignore RFC 4787, REQ-2",
        nat: Nat::both(Behaviour {
            mapping: Mapping::Independent(Ports::Random),
            pooling: Pooling::Arbitrary,
            ..Behaviour::LINUX
        }),
    },
    Kind {
        name: "delayed-rst",
        boxes: "routers that follow RFC 5382, REQ-4 and then answer",
        nat: Nat::both(Behaviour { reaction: Reaction::LateReset, ..Behaviour::LINUX }),
    },
    Kind {
        name: "never-syn-rst",
        boxes: "firewalls with strict TCP inspection that reset what they refuse",
        nat: Nat::both(Behaviour {
            filtering: Filtering::NeverSyn,
            reaction: Reaction::Reset,
            ..Behaviour::LINUX
        }),
    },
    Kind {
        name: "linux-prohibited",
        boxes: "routers with access lists, such as Cisco IOS: communication administratively prohibited",
        nat: Nat::both(Behaviour { reaction: Reaction::Prohibited, ..Behaviour::LINUX }),
    },
];

/// The kind with this name.
pub fn named(name: &str) -> Option<Kind> {
    KINDS.into_iter().find(|kind| kind.name == name)
}
