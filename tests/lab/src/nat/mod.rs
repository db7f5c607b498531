//! What a router does to packets: values that compose, made real by nftables over the kernel's own connection tracking.
//!
//! A NAT is described for UDP and for TCP apart, because real boxes differ there: a [`Behaviour`] is one habit per line,
//! from how outer ports are chosen to what a RST does. [`Lifetimes`] say when an idle mapping goes. [`kinds`] names the
//! combinations worth testing, with the boxes known to behave so. All of it may change while the router runs.
//!
//! | module | one line |
//! |---|---|
//! | `behaviour` | the habits |
//! | `rules` | the rule set: filter, translation, and what a mapping remembers |
//! | `beside` | rules for segments that connection tracking would refuse or misread |
//! | `machinery` | what a router needs besides rules: addresses, loops, kernel parameters |
//! | `forgetting` | connection tracking made to forget: one session after an ICMP error, all of them at a reboot |
//!
//! For UDP a session is its two endpoints, so session- and address+port-dependent mappings differ only after the session
//! has expired.

mod behaviour;
mod beside;
mod forgetting;
pub mod kinds;
mod machinery;
mod rules;

use std::net::IpAddr;
use std::time::Duration;

pub use behaviour::Behaviour;
pub use behaviour::Filtering;
pub use behaviour::Hairpin;
pub use behaviour::Mapping;
pub use behaviour::Numbers;
pub use behaviour::OnIcmp;
pub use behaviour::OnReset;
pub use behaviour::POOL;
pub use behaviour::Pooling;
pub use behaviour::Ports;
pub use behaviour::Reaction;
pub use behaviour::States;

pub(crate) use forgetting::Forgetting;
pub(crate) use machinery::Machinery;

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

    /// The same NAT with this hairpin for UDP and for TCP; nothing changes where it does not translate.
    #[must_use]
    pub fn with_hairpin(self, hairpin: Hairpin) -> Self {
        let Some((udp, tcp)) = self.behaviours() else { return self };
        Self::Composed { udp: Behaviour { hairpin, ..udp }, tcp: Behaviour { hairpin, ..tcp } }
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

/// How long an idle mapping lives. Both directions refresh it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// UDP, whether answered or not.
    pub udp: Duration,
    /// TCP from a SYN to an answer: 120 s in netfilter, 56 s and less were seen in 2005.
    pub tcp_opening: Duration,
    /// TCP once established: RFC 5382 wants 2 h 4 min, many carriers give 5 min. Where no states are kept, this alone counts.
    pub tcp_established: Duration,
    /// TCP after a FIN in either direction: RFC 5382 wants 4 min.
    pub tcp_closing: Duration,
}

impl Default for Lifetimes {
    /// Netfilter's, except that UDP has the one figure of RFC 4787, 4.3 for its two.
    fn default() -> Self {
        Self {
            udp: Duration::from_secs(120),
            tcp_opening: Duration::from_secs(120),
            tcp_established: Duration::from_secs(432_000),
            tcp_closing: Duration::from_secs(120),
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
    /// Whether UDP passes at all.
    pub udp: bool,
    /// When idle mappings go.
    pub lifetimes: Lifetimes,
}

impl Rules {
    /// What of them is kernel parameters, under `/proc/sys`, with their values.
    fn sysctls(&self) -> Vec<(&'static str, String)> {
        let seconds = |time: Duration| time.as_secs().to_string();
        let Lifetimes { udp, tcp_opening, tcp_established, tcp_closing } = self.lifetimes;
        let tcp = self.nat.behaviours().map(|(_, tcp)| tcp);
        let liberal = tcp.is_some_and(|tcp| tcp.states == States::WindowsIgnored);
        // Conntrack keeps an established session for so long after a RST.
        let reset = if tcp.is_some_and(|tcp| tcp.reset == OnReset::Mapping) { 1 } else { 10 };
        vec![
            ("net/netfilter/nf_conntrack_udp_timeout", seconds(udp)),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", seconds(udp)),
            ("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", seconds(tcp_opening)),
            ("net/netfilter/nf_conntrack_tcp_timeout_syn_recv", seconds(tcp_opening.min(SYN_RECEIVED))),
            ("net/netfilter/nf_conntrack_tcp_timeout_established", seconds(tcp_established)),
            ("net/netfilter/nf_conntrack_tcp_timeout_fin_wait", seconds(tcp_closing)),
            ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", seconds(tcp_closing)),
            ("net/netfilter/nf_conntrack_tcp_timeout_last_ack", seconds(tcp_closing)),
            ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", seconds(tcp_closing)),
            ("net/netfilter/nf_conntrack_tcp_timeout_close", reset.to_string()),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", u8::from(liberal).to_string()),
        ]
    }
}

/// Netfilter's patience after both SYNs.
const SYN_RECEIVED: Duration = Duration::from_secs(60);

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
