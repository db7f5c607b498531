//! The NATs worth naming: what they do, and which boxes are known to do it.

use super::Behaviour;
use super::Filtering;
use super::Mapping;
use super::Nat;
use super::Ports;
use super::Reaction;
use super::Windows;

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
pub const KINDS: [Kind; 16] = [
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
        nat: Nat::both(Behaviour { windows: Windows::Ignored, ..Behaviour::LINUX }),
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
];

/// The kind with this name.
pub fn named(name: &str) -> Option<Kind> {
    KINDS.into_iter().find(|kind| kind.name == name)
}
