//! What a router does to packets: values that compose, made real by nftables over the kernel's own connection tracking.
//!
//! A NAT is described for UDP and for TCP apart, because real boxes differ there: a [`Behaviour`] is how outer ports are
//! chosen ([`Mapping`]: what they depend on, and which port comes next), who may send to them ([`Filtering`]), what a
//! stranger gets ([`Reaction`]), and for TCP whether sequence numbers matter ([`Windows`]). [`Lifetimes`] say when an idle
//! mapping goes. `rules` turns all of it into one script; [`kinds`] names the combinations worth testing, with the boxes
//! known to behave so.
//!
//! What a router cannot do here: kill a mapping because of a RST or ICMP beyond what conntrack does by itself, let a
//! SYN-ACK out after a SYN, rewrite sequence numbers, or forget TCP's states. For UDP a session is its two endpoints, so
//! session- and address+port-dependent mappings differ only after the session has expired.

pub mod kinds;
mod rules;

use std::net::IpAddr;
use std::time::Duration;

pub use rules::ruleset;

/// How a router translates and filters IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nat {
    /// No translation: inside addresses are public and everything is forwarded both ways.
    Open,
    /// No translation, but only answers to what went out come in: company networks with public addresses, IPv6 homes.
    StatefulFirewall,
    /// One outer port per inner port, for every destination; anyone may send to it (full cone: EIM and EIF).
    FullCone,
    /// Plain masquerade: one outer port per inner port, and only the address and port written to may answer.
    PortRestricted,
    /// A fresh random outer port for every session, and only the address and port written to may answer.
    SymmetricRandom,
    /// Any behaviour for each transport.
    Composed {
        /// For UDP.
        udp: Behaviour,
        /// For TCP.
        tcp: Behaviour,
    },
}

impl Nat {
    /// The same behaviour for UDP and TCP.
    pub const fn both(behaviour: Behaviour) -> Self {
        Self::Composed { udp: behaviour, tcp: behaviour }
    }

    /// What it is, in words for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Open => "a router that lets everything pass",
            Self::StatefulFirewall => "a firewall that lets in answers only",
            Self::FullCone => "a full-cone NAT",
            Self::PortRestricted => "a port-restricted NAT",
            Self::SymmetricRandom => "a symmetric NAT with random ports",
            Self::Composed { .. } => "a NAT made to order",
        }
    }

    /// Whether inside addresses stay inside.
    pub fn translates(self) -> bool {
        self.behaviours().is_some()
    }

    /// What it does with UDP and with TCP; `None` if it does not translate.
    pub fn behaviours(self) -> Option<(Behaviour, Behaviour)> {
        let both = |behaviour| Some((behaviour, behaviour));
        match self {
            Self::Open | Self::StatefulFirewall => None,
            Self::FullCone => both(Behaviour { filtering: Filtering::Independent, ..Behaviour::LINUX }),
            Self::PortRestricted => both(Behaviour::LINUX),
            Self::SymmetricRandom => {
                both(Behaviour { mapping: Mapping::Session(Ports::Random), ..Behaviour::LINUX })
            }
            Self::Composed { udp, tcp } => Some((udp, tcp)),
        }
    }
}

/// What a NAT does with one transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviour {
    /// How outer ports are chosen.
    pub mapping: Mapping,
    /// Who may send to them.
    pub filtering: Filtering,
    /// What happens to everything else from outside.
    pub reaction: Reaction,
    /// For TCP: which segments of a session pass.
    pub windows: Windows,
}

impl Behaviour {
    /// Plain masquerade behind a silent firewall.
    pub const LINUX: Self = Self {
        mapping: Mapping::Kept,
        filtering: Filtering::AddressAndPort,
        reaction: Reaction::Drop,
        windows: Windows::Checked,
    };
}

/// What an outer port depends on, besides the inner endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// On nothing, and the outer port is the inner one while nobody else inside uses it towards the same destination:
    /// netfilter's masquerade and whatever is built on it.
    Kept,
    /// On nothing, but it is another port: RFC 4787's endpoint-independent mapping, as carriers' NATs have it.
    Independent(Ports),
    /// On the destination's address: rare, 2.5 % of the market in 2005.
    Address(Ports),
    /// On the destination's address and port, and the same again for a later session: 18.7 % of the market in 2005.
    AddressAndPort(Ports),
    /// On the session: every new one gets a new port. pf (OPNsense, pfSense), netfilter's `--random-fully`, many cellular
    /// and cloud NATs.
    Session(Ports),
}

/// Which outer port a new mapping gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    /// This much above the last one: what most symmetric NATs of 2005 did; 2 where ports are given out in RTP/RTCP pairs.
    Step(u16),
    /// Any: RFC 6056's advice, today's rule among symmetric NATs.
    Random,
}

/// From where packets may come in to a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filtering {
    /// From anywhere: "full cone" as an option of home routers, carriers that follow RFC 6888.
    Independent,
    /// From addresses that were written to: "address restricted".
    Address,
    /// From addresses and ports that were written to: netfilter and nearly all firewalls.
    AddressAndPort,
    /// As before, but a SYN never, not even from where one was sent to: Linux before 2.6.31, strict TCP inspection. For UDP
    /// the same as [`Self::AddressAndPort`].
    NeverSyn,
}

/// What a packet gets that no mapping takes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Silence: most home routers.
    Drop,
    /// A RST (for UDP, which has none, ICMP port unreachable): OpenWrt's `REJECT`, its default on the outside.
    Reset,
    /// ICMP port unreachable: a plain iptables `REJECT`.
    Unreachable,
}

/// Whether a TCP session's sequence numbers matter. They do where a port that has sent a SYN and given up answers a SYN
/// from there: its SYN-ACK has another initial sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Windows {
    /// Only what fits the windows that were seen passes: netfilter as it is shipped.
    Checked,
    /// Everything passes: netfilter with `nf_conntrack_tcp_be_liberal`, and boxes that only count sessions.
    Ignored,
}

/// How long an idle mapping lives. Both directions refresh it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// UDP, whether answered or not.
    pub udp: Duration,
    /// TCP from a SYN to an answer.
    pub tcp_opening: Duration,
    /// TCP once established.
    pub tcp_established: Duration,
}

impl Default for Lifetimes {
    /// Netfilter's, except that UDP has the one figure of RFC 4787, 4.3 for its two.
    fn default() -> Self {
        Self {
            udp: Duration::from_secs(120),
            tcp_opening: Duration::from_secs(120),
            tcp_established: Duration::from_secs(432_000),
        }
    }
}

/// What a router does with IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum V6 {
    /// The site has none.
    None,
    /// Public addresses inside; only answers to what went out come in.
    Firewall,
    /// Public addresses inside; everything is forwarded both ways.
    Open,
}

/// Everything a router does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// IPv4.
    pub nat: Nat,
    /// IPv6.
    pub v6: V6,
    /// Whether inside hosts reach each other by the router's outer address.
    pub hairpin: bool,
    /// Whether UDP passes at all.
    pub udp: bool,
    /// When idle mappings go.
    pub lifetimes: Lifetimes,
}

impl Rules {
    /// What of them is kernel parameters, under `/proc/sys`, with their values.
    pub(crate) fn sysctls(&self) -> [(&'static str, String); 5] {
        let seconds = |time: Duration| time.as_secs().to_string();
        let Lifetimes { udp, tcp_opening, tcp_established } = self.lifetimes;
        let liberal = self.nat.behaviours().is_some_and(|(_, tcp)| tcp.windows == Windows::Ignored);
        [
            ("net/netfilter/nf_conntrack_udp_timeout", seconds(udp)),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", seconds(udp)),
            ("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", seconds(tcp_opening)),
            ("net/netfilter/nf_conntrack_tcp_timeout_established", seconds(tcp_established)),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", u8::from(liberal).to_string()),
        ]
    }
}

/// A table that drops all UDP to and from these addresses, established or not, as a changed firewall policy would.
pub(crate) fn block_udp(addresses: &[IpAddr]) -> String {
    let mut rules = String::new();
    for address in addresses {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        rules += &format!("    {family} daddr {address} meta l4proto udp drop\n");
        rules += &format!("    {family} saddr {address} meta l4proto udp drop\n");
    }
    format!(
        "table inet ntl_block {{\n  chain forward {{\n    type filter hook forward priority -10;\n{rules}  }}\n}}\n"
    )
}
