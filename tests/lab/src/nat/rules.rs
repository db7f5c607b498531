//! The rule set of a router, as one script for `nft -f`.
//!
//! A router has an interface `wan` outside, a bridge `lan` inside, and loops of its own (`machinery`). Through the loop
//! `hp0`-`hp1` packets from inside to one of the router's outer addresses leave by `hp0`, translated as if they went
//! outside, and come in again by `hp1` under the rules for packets from outside. So hairpinned packets obey the NAT's own
//! filter.
//!
//! Conntrack alone is a session table that keeps ports and lets in only answers. What a NAT does beyond that it remembers
//! in tables of its own, learned from every packet that leaves: `out_*` (inner endpoint, and what else the mapping depends
//! on -> outer endpoint), `in_*` (outer endpoint -> inner endpoint), `met_*` (outer endpoint and address that it wrote to).

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::Behaviour;
use super::Filtering;
use super::Hairpin;
use super::Lifetimes;
use super::Mapping;
use super::Nat;
use super::OnIcmp;
use super::OnReset;
use super::Pooling;
use super::Ports;
use super::Reaction;
use super::Rules;
use super::V6;
use super::beside::Beside;
use super::beside::REFUSE_LATER;

/// Stepping ports start here, below the ports that Linux hosts take by themselves (from 32768), and start again after
/// [`STEPS`] steps: few enough to load in milliseconds, more than any run needs.
const FIRST_PORT: u16 = 20_000;

/// See [`FIRST_PORT`].
const STEPS: u16 = 2_000;

/// Where packets from outside come in, and where those to the outside leave.
pub(super) const OUTER_IN: &str = r#"iifname { "wan", "hp1" }"#;

/// What a router is besides its rules.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    /// Its outer addresses, of which all but the first are a pool's.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// How often it has been restarted: its ports then step from elsewhere.
    pub(super) restarts: u16,
}

impl Outside {
    fn wan(&self) -> Ipv4Addr {
        self.addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// A fresh choice among all addresses, as an expression.
    fn any(&self) -> String {
        let all: Vec<String> =
            self.addresses.iter().enumerate().map(|(n, address)| format!("{n} : {address}")).collect();
        format!("numgen random mod {} map {{ {} }}", all.len(), all.join(", "))
    }

    fn set(&self) -> String {
        let all: Vec<String> = self.addresses.iter().map(Ipv4Addr::to_string).collect();
        format!("{{ {} }}", all.join(", "))
    }
}

/// Removes what [`ruleset`] has loaded. Declared first, so that it succeeds whether the tables exist or not.
pub(super) const RESET: &str =
    "table inet ntl {}\ntable ip ntl_nat {}\ndelete table inet ntl\ndelete table ip ntl_nat\n";

/// The whole rule set of a router.
pub(super) fn ruleset(rules: &Rules, outside: &Outside) -> String {
    let Some((does_udp, does_tcp)) = rules.nat.behaviours() else { return filter(rules, outside, None) };
    let Lifetimes { udp: idle, tcp_opening, tcp_established, tcp_closing } = rules.lifetimes;
    let lives = Lives { opening: idle, established: idle, closing: idle };
    let udp = Transport { name: "udp", does: does_udp, lives, outside };
    let lives = Lives { opening: tcp_opening, established: tcp_established, closing: tcp_closing };
    let tcp = Transport { name: "tcp", does: does_tcp, lives, outside };
    filter(rules, outside, Some((&udp, &tcp))) + &translation(&udp, &tcp)
}

/// What passes and what does not.
fn filter(rules: &Rules, outside: &Outside, nat: Option<(&Transport<'_>, &Transport<'_>)>) -> String {
    let udp = if rules.udp { "" } else { "meta l4proto udp drop" };
    let open = if rules.nat == Nat::Open { "meta nfproto ipv4 accept" } else { "" };
    let v6_in = if rules.v6 == V6::Open { "meta nfproto ipv6 accept" } else { "" };
    // Only a mapping's filter translates the destination of what nobody asked for.
    let v4_in = if nat.is_some() { "ct status dnat accept" } else { "" };
    let beside = nat.map(|(_, tcp)| Beside { does: tcp.does, lifetimes: rules.lifetimes });
    let beside = beside.map(|beside| beside.rules()).unwrap_or_default();
    let [refuse, hairpin] = nat.map_or_else(Default::default, |(udp, tcp)| {
        [udp.refuse() + &tcp.refuse(), udp.no_hairpin() + &tcp.no_hairpin()]
    });
    let never_syn = nat.map_or("", |(_, tcp)| tcp.never_syn());
    let (late, forward, chains, own) = (beside.input, beside.forward, beside.chains, outside.set());
    format!(
        r#"table inet ntl {{
  chain refuse {{
{refuse}    drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
{late}    ct state established,related accept
    meta l4proto {{ icmp, ipv6-icmp }} accept
    {OUTER_IN} jump refuse
    iifname "lan" ip daddr {own} meta l4proto {{ tcp, udp }} drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    {udp}
    {open}
{hairpin}    {never_syn}
{forward}    ct state established,related accept
    ct state invalid drop
    iifname "lan" accept
    {v4_in}
    {v6_in}
  }}
{chains}}}
"#
    )
}

fn translation<'a>(udp: &Transport<'a>, tcp: &Transport<'a>) -> String {
    let all = |part: fn(&Transport<'a>) -> String| part(udp) + &part(tcp);
    let (tables, hairpin, back) =
        (all(Transport::tables), all(Transport::internal_hairpin), all(Transport::back));
    let (out, wan, learn, forget) =
        (all(Transport::out), udp.outside.wan(), all(Transport::learn), all(Transport::forget));
    let late = if tcp.does.reaction == Reaction::LateReset { REFUSE_LATER } else { "" };
    format!(
        r#"table ip ntl_nat {{
{tables}  chain back {{
    type nat hook prerouting priority dstnat;
{hairpin}    {OUTER_IN} jump strangers
  }}
  chain strangers {{
{back}  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname != {{ "wan", "hp0" }} accept
{out}    snat to {wan}
  }}
  chain end {{
    type filter hook forward priority 5;
    meta l4proto tcp tcp flags & (fin | rst) != 0 ct mark set 1
  }}
  chain forget {{
    type filter hook forward priority 10;
    {OUTER_IN} jump forgotten
  }}
  chain forgotten {{
{forget}  }}
{late}  chain learn {{
    type filter hook postrouting priority 200;
    oifname != {{ "wan", "hp0" }} accept
{learn}  }}
}}
"#
    )
}

/// How long a mapping lives after a packet.
#[derive(Clone, Copy)]
struct Lives {
    opening: Duration,
    established: Duration,
    closing: Duration,
}

/// One transport's share of the rules.
struct Transport<'a> {
    name: &'static str,
    does: Behaviour,
    lives: Lives,
    outside: &'a Outside,
}

/// What a mapping table is asked with, besides the inner endpoint.
struct Key {
    types: &'static str,
    /// How a new session has it.
    new: String,
    /// How many parts of the remote endpoint it needs: address, port.
    remote: usize,
}

impl Key {
    /// How a session that exists has it.
    fn known(&self, side: &Side) -> String {
        let remote = side.remote.iter().take(self.remote).map(|part| format!(" . {part}"));
        remote.fold(side.inner.to_owned(), |key, part| key + &part)
    }
}

/// The two ways to read a conntrack entry, depending on who began the session.
const SIDES: [Side; 2] = [
    Side {
        leaving: "original",
        coming: "reply",
        inner: "ct original ip saddr . ct original proto-src",
        remote: ["ct original ip daddr", "ct original proto-dst"],
        outer: "ct reply ip daddr . ct reply proto-dst",
    },
    Side {
        leaving: "reply",
        coming: "original",
        inner: "ct reply ip saddr . ct reply proto-src",
        remote: ["ct reply ip daddr", "ct reply proto-dst"],
        outer: "ct original ip daddr . ct original proto-dst",
    },
];

/// Where a conntrack entry has what.
struct Side {
    /// The direction of packets that leave.
    leaving: &'static str,
    /// The direction of packets that come.
    coming: &'static str,
    inner: &'static str,
    /// Address and port.
    remote: [&'static str; 2],
    outer: &'static str,
}

impl Transport<'_> {
    /// What strangers get; whatever is not named here is dropped.
    fn refuse(&self) -> String {
        let name = self.name;
        let icmp = |what| format!("meta l4proto {name} meta nfproto ipv4 reject with icmp type {what}");
        let refusal = match (self.does.reaction, name) {
            (Reaction::Drop | Reaction::LateReset, _) => return String::new(),
            (Reaction::Reset, "tcp") => "meta l4proto tcp reject with tcp reset".to_owned(),
            (Reaction::Reset | Reaction::Unreachable, _) => icmp("port-unreachable"),
            (Reaction::Prohibited, _) => icmp("admin-prohibited"),
        };
        format!("    {refusal}\n")
    }

    /// A SYN from outside is refused even if conntrack takes it for the other half of a simultaneous open.
    fn never_syn(&self) -> &'static str {
        match self.does.filtering {
            Filtering::NeverSyn => r#"iifname { "wan", "hp1" } tcp flags & (syn | ack) == syn jump refuse"#,
            Filtering::Independent | Filtering::Address | Filtering::AddressAndPort => "",
        }
    }

    /// The loop that brings packets to an outer address back in is closed.
    fn no_hairpin(&self) -> String {
        match self.does.hairpin {
            Hairpin::External => String::new(),
            Hairpin::No | Hairpin::Internal => {
                format!("    iifname \"lan\" oifname \"hp0\" meta l4proto {} drop\n", self.name)
            }
        }
    }

    /// The key of the mapping table; `None` where conntrack's own choice per session is all there is.
    fn key(&self) -> Option<Key> {
        let name = self.name;
        let (types, new, remote) = match (self.does.mapping, self.does.pooling) {
            (Mapping::Kept, Pooling::Paired) | (Mapping::Session(_), _) => return None,
            (Mapping::Kept, Pooling::Arbitrary) | (Mapping::Independent(_), _) => {
                ("ipv4_addr . inet_service", String::new(), 0)
            }
            (Mapping::Address(_), _) => ("ipv4_addr . inet_service . ipv4_addr", " . ip daddr".to_owned(), 1),
            (Mapping::AddressAndPort(_), _) => (
                "ipv4_addr . inet_service . ipv4_addr . inet_service",
                format!(" . ip daddr . {name} dport"),
                2,
            ),
        };
        Some(Key { types, new: format!("ip saddr . {name} sport{new}"), remote })
    }

    fn tables(&self) -> String {
        let name = self.name;
        let idle = self.lives.established.as_secs();
        let flags = format!("flags dynamic,timeout; timeout {idle}s; size 65535;");
        let mut text = String::new();
        if let Some(Key { types, .. }) = self.key() {
            let _ = writeln!(text, "  map out_{name} {{ type {types} : ipv4_addr . inet_service; {flags} }}");
        }
        if self.finds_inner() {
            let _ = writeln!(
                text,
                "  map in_{name} {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; {flags} }}"
            );
        }
        if self.does.filtering == Filtering::Address {
            let _ =
                writeln!(text, "  set met_{name} {{ type ipv4_addr . inet_service . ipv4_addr; {flags} }}");
        }
        text
    }

    /// The way from inside to another inside host, without the loop.
    fn internal_hairpin(&self) -> String {
        let (name, own) = (self.name, self.outside.set());
        match self.does.hairpin {
            Hairpin::Internal => format!(
                "    iifname \"lan\" ip daddr {own} dnat ip to ip daddr . {name} dport map @in_{name}\n"
            ),
            Hairpin::No | Hairpin::External => String::new(),
        }
    }

    /// The way back in for those who are no session yet.
    fn back(&self) -> String {
        let name = self.name;
        let met = match self.does.filtering {
            Filtering::Independent => String::new(),
            Filtering::Address => format!("ip daddr . {name} dport . ip saddr @met_{name} "),
            Filtering::AddressAndPort | Filtering::NeverSyn => return String::new(),
        };
        format!("    {met}dnat ip to ip daddr . {name} dport map @in_{name}\n")
    }

    /// The choice of an outer endpoint for a new session: the remembered one, else a new one.
    fn out(&self) -> String {
        let name = self.name;
        let again = self.key().map_or_else(String::new, |key| {
            format!("    meta l4proto {name} snat ip to {} map @out_{name}\n", key.new)
        });
        let address = match self.does.pooling {
            Pooling::Paired => self.outside.wan().to_string(),
            Pooling::Arbitrary => self.outside.any(),
        };
        let fresh = match self.does.mapping {
            Mapping::Kept => address,
            Mapping::Independent(ports)
            | Mapping::Address(ports)
            | Mapping::AddressAndPort(ports)
            | Mapping::Session(ports) => match ports {
                Ports::Random => format!("{address} : 1024-65535 fully-random"),
                Ports::Step(step) => {
                    let ports = stepping(step, self.outside.restarts);
                    format!("{address} : numgen inc mod {STEPS} map {{ {ports} }}")
                }
            },
        };
        format!("{again}    meta l4proto {name} snat to {fresh}\n")
    }

    /// What is remembered of each packet that leaves, whichever side began its session, and for how long.
    fn learn(&self) -> String {
        let name = self.name;
        let mut text = String::new();
        for (packets, verb, life) in self.phases() {
            for side in &SIDES {
                let when = format!("    meta l4proto {name} ct direction {} {packets}{verb}", side.leaving);
                let (inner, life) = (side.inner, life.as_secs());
                let outer = format!("ip saddr . {name} sport");
                if let Some(key) = self.key() {
                    let key = key.known(side);
                    let _ = writeln!(text, "{when} @out_{name} {{ {key} timeout {life}s : {outer} }}");
                }
                if self.finds_inner() {
                    let _ = writeln!(text, "{when} @in_{name} {{ {outer} timeout {life}s : {inner} }}");
                }
                if self.does.filtering == Filtering::Address {
                    let _ = writeln!(text, "{when} @met_{name} {{ {outer} . ip daddr timeout {life}s }}");
                }
            }
        }
        text
    }

    /// Which packets keep a mapping alive for how long. An opening segment never shortens a life.
    fn phases(&self) -> Vec<(&'static str, &'static str, Duration)> {
        let Lives { opening, established, closing } = self.lives;
        if self.name == "udp" {
            return vec![("", "update", established)];
        }
        vec![
            ("tcp flags & syn == syn ", "add", opening),
            ("tcp flags & syn != syn ct mark != 1 ", "update", established),
            ("tcp flags & syn != syn ct mark 1 ", "update", closing),
        ]
    }

    /// What ends a mapping is forgotten here too; conntrack's entry is ended by itself or by
    /// [`Forgetting`](super::Forgetting).
    fn forget(&self) -> String {
        let name = self.name;
        let mut ends = Vec::new();
        if self.does.icmp == OnIcmp::Mapping {
            // Code 4 is about the size of a packet.
            ends.push("icmp type { destination-unreachable, time-exceeded } icmp code != 4");
        }
        if name == "tcp" && self.does.reset == OnReset::Mapping {
            ends.push("tcp flags & rst == rst");
        }
        let mut text = String::new();
        for end in ends {
            for side in &SIDES {
                let when = format!("    {end} ct protocol {name} ct direction {} delete", side.coming);
                let (outer, [peer, _]) = (side.outer, side.remote);
                if let Some(key) = self.key() {
                    let key = key.known(side);
                    let _ = writeln!(text, "{when} @out_{name} {{ {key} : 0.0.0.0 . 0 }}");
                }
                if self.finds_inner() {
                    let _ = writeln!(text, "{when} @in_{name} {{ {outer} : 0.0.0.0 . 0 }}");
                }
                if self.does.filtering == Filtering::Address {
                    let _ = writeln!(text, "{when} @met_{name} {{ {outer} . {peer} }}");
                }
            }
        }
        text
    }

    fn finds_inner(&self) -> bool {
        matches!(self.does.filtering, Filtering::Independent | Filtering::Address)
            || self.does.hairpin == Hairpin::Internal
    }
}

/// The elements of a map from a counter to ports that step. A map and not arithmetic: nft 1.0.6 swaps a number's bytes.
fn stepping(step: u16, restarts: u16) -> String {
    /// How far a restart moves the first port: prime, so that all of them come in turn.
    const MOVE: u16 = 617;
    let port = |n| FIRST_PORT.saturating_add(step.saturating_mul(n));
    let first = restarts.wrapping_mul(MOVE) % STEPS;
    (0..STEPS).map(|n| format!("{n} : {}", port((n + first) % STEPS))).collect::<Vec<_>>().join(", ")
}
