//! The rule set of a router, as one script for `nft -f`.
//!
//! A router has an interface `wan` outside and a bridge `lan` inside. With hairpin it has also a veth loop `hp0`-`hp1`:
//! packets from inside to the router's own outer address leave by `hp0`, translated as if they went outside, and come in
//! again by `hp1` under the rules for packets from outside. So hairpinned packets obey the NAT's own filter.
//!
//! Conntrack alone is a session table that keeps ports and lets in only answers. What a NAT does beyond that it remembers
//! in tables of its own, learned from every packet that leaves: `out_*` (inner endpoint, and what else the mapping depends
//! on -> outer port), `in_*` (outer port -> inner endpoint), `met_*` (outer port and address that it wrote to).

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::Behaviour;
use super::Filtering;
use super::Mapping;
use super::Nat;
use super::Ports;
use super::Reaction;
use super::Rules;
use super::V6;

/// Stepping ports start here, below the ports that Linux hosts take by themselves (from 32768), and start again after
/// [`STEPS`] steps: few enough to load in milliseconds, more than any run needs.
const FIRST_PORT: u16 = 20_000;

/// See [`FIRST_PORT`].
const STEPS: u16 = 2_000;

/// The whole rule set of a router whose outer address is `wan`, for one `nft -f`.
pub fn ruleset(rules: &Rules, wan: Ipv4Addr) -> String {
    let udp = if rules.udp { "" } else { "meta l4proto udp drop" };
    let v6_in = if rules.v6 == V6::Open { "meta nfproto ipv6 accept" } else { "" };
    let open = if rules.nat == Nat::Open { "meta nfproto ipv4 accept" } else { "" };
    let v4_in = match rules.nat {
        Nat::Open | Nat::StatefulFirewall => "",
        // Only a mapping's filter translates the destination of what nobody asked for.
        Nat::FullCone | Nat::PortRestricted | Nat::SymmetricRandom | Nat::Composed { .. } => {
            "ct status dnat accept"
        }
    };
    // Without hairpin the router's own stack would answer an inside host's probe of the outer address.
    let no_hairpin = if rules.hairpin {
        String::new()
    } else {
        format!("iifname \"lan\" ip daddr {wan} meta l4proto {{ tcp, udp }} drop")
    };
    let (refuse, never_syn) =
        rules.nat.behaviours().map_or_else(Default::default, |(udp, tcp)| (refuse(udp, tcp), never_syn(tcp)));
    let mut text = format!(
        r#"table inet ntl {{
  chain refuse {{
    {refuse}
    drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    ct state established,related accept
    meta l4proto {{ icmp, ipv6-icmp }} accept
    iifname {{ "wan", "hp1" }} jump refuse
    {no_hairpin}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    {udp}
    {open}
    {never_syn}
    ct state established,related accept
    ct state invalid drop
    iifname "lan" accept
    {v4_in}
    {v6_in}
  }}
}}
"#
    );
    if let Some((udp, tcp)) = rules.nat.behaviours() {
        let udp = Transport { name: "udp", does: udp, lifetime: rules.lifetimes.udp, wan };
        let tcp = Transport { name: "tcp", does: tcp, lifetime: rules.lifetimes.tcp_established, wan };
        text += &translation(&udp, &tcp);
    }
    text
}

/// What strangers get; whatever is not named here is dropped.
fn refuse(udp: Behaviour, tcp: Behaviour) -> String {
    let unreachable = "meta nfproto ipv4 reject with icmp type port-unreachable";
    let udp = match udp.reaction {
        Reaction::Drop => String::new(),
        Reaction::Reset | Reaction::Unreachable => format!("meta l4proto udp {unreachable}"),
    };
    let tcp = match tcp.reaction {
        Reaction::Drop => String::new(),
        Reaction::Reset => "meta l4proto tcp reject with tcp reset".to_owned(),
        Reaction::Unreachable => format!("meta l4proto tcp {unreachable}"),
    };
    format!("{udp}\n    {tcp}")
}

/// A SYN from outside is refused even if conntrack takes it for the other half of a simultaneous open.
fn never_syn(tcp: Behaviour) -> &'static str {
    match tcp.filtering {
        Filtering::NeverSyn => r#"iifname { "wan", "hp1" } tcp flags & (syn | ack) == syn jump refuse"#,
        Filtering::Independent | Filtering::Address | Filtering::AddressAndPort => "",
    }
}

fn translation(udp: &Transport, tcp: &Transport) -> String {
    let all = |part: fn(&Transport) -> String| part(udp) + &part(tcp);
    format!(
        r#"table ip ntl_nat {{
{}  chain back {{
    type nat hook prerouting priority dstnat;
    iifname != {{ "wan", "hp1" }} accept
{}  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname != {{ "wan", "hp0" }} accept
{}    snat to {}
  }}
  chain learn {{
    type filter hook postrouting priority 200;
    oifname != {{ "wan", "hp0" }} accept
{}  }}
}}
"#,
        all(Transport::tables),
        all(Transport::back),
        all(Transport::out),
        udp.wan,
        all(Transport::learn),
    )
}

/// One transport's share of the translation.
struct Transport {
    name: &'static str,
    does: Behaviour,
    lifetime: Duration,
    wan: Ipv4Addr,
}

/// What a mapping table is asked with: the types, how a new session has it, and how a packet on its way out has it, where
/// `DIRECTION` is the side of the conntrack entry that names the inner endpoint.
struct Key {
    types: &'static str,
    new: String,
    leaving: String,
}

impl Transport {
    /// The key of the mapping table; `None` where conntrack's own choice per session is all there is.
    fn key(&self) -> Option<Key> {
        let name = self.name;
        let inner = "ct DIRECTION ip saddr . ct DIRECTION proto-src";
        let (types, more) = match self.does.mapping {
            Mapping::Kept | Mapping::Session(_) => return None,
            Mapping::Independent(_) => ("ipv4_addr . inet_service", String::new()),
            Mapping::Address(_) => ("ipv4_addr . inet_service . ipv4_addr", " . ip daddr".to_owned()),
            Mapping::AddressAndPort(_) => {
                ("ipv4_addr . inet_service . ipv4_addr . inet_service", format!(" . ip daddr . {name} dport"))
            }
        };
        Some(Key { types, new: format!("ip saddr . {name} sport{more}"), leaving: format!("{inner}{more}") })
    }

    fn tables(&self) -> String {
        let name = self.name;
        let flags = format!("flags dynamic,timeout; timeout {}s; size 65535;", self.lifetime.as_secs());
        let mut text = String::new();
        if let Some(key) = self.key() {
            let _ = writeln!(
                text,
                "  map out_{name} {{ type {} : ipv4_addr . inet_service; {flags} }}",
                key.types
            );
        }
        if self.lets_strangers_in() {
            let _ =
                writeln!(text, "  map in_{name} {{ type inet_service : ipv4_addr . inet_service; {flags} }}");
        }
        if self.does.filtering == Filtering::Address {
            let _ = writeln!(text, "  set met_{name} {{ type inet_service . ipv4_addr; {flags} }}");
        }
        text
    }

    /// The way back in for those who are no session yet.
    fn back(&self) -> String {
        let name = self.name;
        let met = match self.does.filtering {
            Filtering::Independent => String::new(),
            Filtering::Address => format!("{name} dport . ip saddr @met_{name} "),
            Filtering::AddressAndPort | Filtering::NeverSyn => return String::new(),
        };
        format!("    {met}dnat ip to {name} dport map @in_{name}\n")
    }

    /// The choice of an outer port for a new session: the remembered one, else a new one.
    fn out(&self) -> String {
        let (name, wan) = (self.name, self.wan);
        let again = self.key().map_or_else(String::new, |key| {
            format!("    meta l4proto {name} snat ip to {} map @out_{name}\n", key.new)
        });
        let fresh = match self.does.mapping {
            Mapping::Kept => return again,
            Mapping::Independent(ports)
            | Mapping::Address(ports)
            | Mapping::AddressAndPort(ports)
            | Mapping::Session(ports) => ports,
        };
        let fresh = match fresh {
            Ports::Random => format!("{wan}:1024-65535 random,fully-random"),
            Ports::Step(step) => format!("{wan} : numgen inc mod {STEPS} map {{ {} }}", stepping(step)),
        };
        format!("{again}    meta l4proto {name} snat to {fresh}\n")
    }

    /// What is remembered of each packet that leaves, whichever side began its session.
    fn learn(&self) -> String {
        let (name, wan) = (self.name, self.wan);
        let mut text = String::new();
        let mut rule = |rule: &str| {
            // For a session that was begun outside, the inner endpoint is the source of the replies.
            for direction in ["original", "reply"] {
                let rule = rule.replace("DIRECTION", direction);
                let _ = writeln!(text, "    meta l4proto {name} ct direction {direction} {rule}");
            }
        };
        if let Some(Key { leaving, .. }) = self.key() {
            rule(&format!("update @out_{name} {{ {leaving} : {wan} . {name} sport }}"));
        }
        if self.lets_strangers_in() {
            rule(&format!(
                "update @in_{name} {{ {name} sport : ct DIRECTION ip saddr . ct DIRECTION proto-src }}"
            ));
        }
        if self.does.filtering == Filtering::Address {
            let _ =
                writeln!(text, "    meta l4proto {name} update @met_{name} {{ {name} sport . ip daddr }}");
        }
        text
    }

    fn lets_strangers_in(&self) -> bool {
        matches!(self.does.filtering, Filtering::Independent | Filtering::Address)
    }
}

/// The elements of a map from a counter to ports that step. A map and not arithmetic: nft 1.0.6 swaps a number's bytes.
fn stepping(step: u16) -> String {
    let port = |n| FIRST_PORT.saturating_add(step.saturating_mul(n));
    (0..STEPS).map(|n| format!("{n} : {}", port(n))).collect::<Vec<_>>().join(", ")
}
