//! Rules for the TCP segments that conntrack would refuse or misread: they pass it by.
//!
//! A *free* session is translated by tables alone, which conntrack's first translation of it has filled: which outer
//! endpoint it has, and which inner one. Its segments are not tracked, so no flag and no number matters. All sessions of
//! [`States::None`] are free from their second packet on; of [`States::SynAckOut`] those whose host has answered a SYN that
//! never came in. The tables have two keys: a session as seen inside (inner endpoint, remote endpoint), and as seen outside
//! (outer port, remote endpoint).

use super::Behaviour;
use super::Lifetimes;
use super::Numbers;
use super::OnReset;
use super::Reaction;
use super::States;
use super::rules::OUTER_IN;

/// A session that leaves, or will, as seen inside; and one that comes, once its destination is the inner one.
const INSIDE: [&str; 2] =
    ["ip saddr . tcp sport . ip daddr . tcp dport", "ip daddr . tcp dport . ip saddr . tcp sport"];

/// A session that leaves, once its source is the outer one, as seen outside; and one that comes.
const OUTSIDE: [&str; 2] = ["tcp sport . ip daddr . tcp dport", "tcp dport . ip saddr . tcp sport"];

/// The types of the two.
const KEYS: [&str; 2] =
    ["ipv4_addr . inet_service . ipv4_addr . inet_service", "inet_service . ipv4_addr . inet_service"];

/// A SYN that opens.
const SYN: &str = "tcp flags & (syn | ack) == syn";

/// For a table of the family `ip`, as `dup` wants: sends an unsolicited SYN into the slow loop, from which it comes back to
/// be refused.
pub(super) const REFUSE_LATER: &str = r#"  chain refuse_later {
    type filter hook input priority -5;
    iifname { "wan", "hp1" } ct state new tcp flags & (syn | ack) == syn dup to 192.0.2.1 device "late0"
  }
"#;

/// What TCP needs beside conntrack.
pub(super) struct Beside {
    pub(super) does: Behaviour,
    pub(super) lifetimes: Lifetimes,
}

/// Its rules: for the chains of the filter, and chains of their own in the same table.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) input: String,
    pub(super) forward: String,
    pub(super) chains: String,
}

impl Beside {
    pub(super) fn rules(&self) -> Parts {
        let mut parts = Parts::default();
        let Behaviour { states, reset, reaction, numbers, .. } = self.does;
        if matches!(states, States::None | States::SynAckOut) || reset == OnReset::Ignored {
            parts.forward += "    meta nfproto ipv4 meta l4proto tcp ct state untracked accept\n";
            parts.chains += &self.free_sessions();
        }
        if states == States::SynAckOut {
            parts.forward += &freed_by_syn_ack();
        }
        if reaction == Reaction::LateReset {
            late(&mut parts);
        }
        if numbers == Numbers::Shifted {
            parts.chains += &shifted();
        }
        parts
    }

    /// The tables of free sessions, and the two places where their packets are taken from conntrack and translated.
    fn free_sessions(&self) -> String {
        let [leaving, _] = INSIDE;
        let [left, arriving] = OUTSIDE;
        let [inside, outside] = KEYS;
        let idle = self.lifetimes.tcp_established.as_secs();
        // Outlives what refers to it.
        let long = idle + 60;
        let sets = [
            set_of("free_inside", inside, idle),
            set_of("free_outside", outside, idle),
            set_of("sent", inside, self.lifetimes.tcp_opening.as_secs()),
            set_of("heard", inside, self.lifetimes.tcp_opening.as_secs()),
            map_of("outer_port", inside, "inet_service", long),
            map_of("outer_address", outside, "ipv4_addr", long),
            map_of("inner_port", outside, "inet_service", long),
            map_of("inner_address", outside, "ipv4_addr", long),
        ]
        .concat();
        // Only the host hears of it.
        let reset = match self.does.reset {
            OnReset::Ignored => format!("{OUTER_IN} tcp flags & rst == rst notrack jump to_inner"),
            OnReset::Session | OnReset::Mapping => String::new(),
        };
        let learned = self.learned("original") + &self.learned("reply");
        format!(
            r#"{sets}  chain before {{
    type filter hook prerouting priority raw;
    meta nfproto != ipv4 accept
    meta l4proto != tcp accept
    iifname "lan" {leaving} @free_inside update @free_inside {{ {leaving} }} update @outer_port {{ {leaving} : 0 }} notrack
    {OUTER_IN} {arriving} @free_outside notrack jump to_inner
    {reset}
  }}
  chain to_inner {{
    ip daddr set {arriving} map @inner_address tcp dport set {arriving} map @inner_port accept
  }}
  chain after {{
    type filter hook postrouting priority 300;
    meta nfproto != ipv4 accept
    meta l4proto != tcp accept
    iifname != "lan" accept
    oifname != {{ "wan", "hp0" }} accept
    ct state {{ untracked, invalid }} jump to_outer
{learned}  }}
  chain to_outer {{
    tcp sport set {leaving} map @outer_port ip saddr set {left} map @outer_address jump refresh
    drop
  }}
  chain refresh {{
    update @free_outside {{ {left} }} update @outer_address {{ {left} : 0.0.0.0 }}
    update @inner_port {{ {left} : 0 }} update @inner_address {{ {left} : 0.0.0.0 }} accept
  }}
"#
        )
    }

    /// What the tables learn from a packet that conntrack has translated, where `side` of its entry begins inside.
    fn learned(&self, side: &str) -> String {
        let [left, _] = OUTSIDE;
        let (address, port) = (format!("ct {side} ip saddr"), format!("ct {side} proto-src"));
        let inside = format!("{address} . {port} . ip daddr . tcp dport");
        let when = format!("    meta l4proto tcp ct direction {side}");
        let remember = |(map, key, value): (&str, &str, &str)| {
            // A new session replaces what an old one of the same name has left: `update` keeps the old value.
            format!(
                "{when} tcp flags & syn == syn delete @{map} {{ {key} : {value} }} add @{map} {{ {key} : {value} }}\n\
                 {when} tcp flags & syn != syn update @{map} {{ {key} : {value} }}\n"
            )
        };
        let translation: String = [
            ("outer_port", inside.as_str(), "tcp sport"),
            ("outer_address", left, "ip saddr"),
            ("inner_port", left, &port),
            ("inner_address", left, &address),
        ]
        .map(remember)
        .concat();
        let freedom = match self.does.states {
            States::None => {
                format!("{when} update @free_inside {{ {inside} }} update @free_outside {{ {left} }}\n")
            }
            States::SynAckOut => {
                format!("{when} {SYN} update @sent {{ {inside} }} delete @heard {{ {inside} }}\n")
            }
            States::Checked | States::WindowsIgnored => String::new(),
        };
        translation + &freedom
    }
}

/// A SYN-ACK that conntrack refuses frees the session whose SYN has left, if none has come in.
fn freed_by_syn_ack() -> String {
    let [leaving, coming] = INSIDE;
    format!(
        r#"    {OUTER_IN} {SYN} update @heard {{ {coming} }}
    ct state invalid iifname "lan" tcp flags & (syn | ack) == (syn | ack) {leaving} @sent {leaving} != @heard update @free_inside {{ {leaving} }} accept
"#
    )
}

fn set_of(name: &str, types: &str, seconds: u64) -> String {
    format!("  set {name} {{ type {types}; flags dynamic,timeout; timeout {seconds}s; size 65535; }}\n")
}

fn map_of(name: &str, key: &str, value: &str, seconds: u64) -> String {
    format!(
        "  map {name} {{ type {key} : {value}; flags dynamic,timeout; timeout {seconds}s; size 65535; }}\n"
    )
}

/// SYNs that come out of the slow loop are refused, unless one has left for their sender meanwhile (RFC 5382, REQ-4).
fn late(parts: &mut Parts) {
    let [left, arriving] = OUTSIDE;
    parts.input += "    iifname \"late1\" reject with tcp reset\n";
    parts.chains += &set_of("asked", KEYS[1], 10);
    parts.chains += &format!(
        r#"  chain asking {{
    type filter hook postrouting priority 300;
    oifname {{ "wan", "hp0" }} meta nfproto ipv4 {SYN} update @asked {{ {left} }}
  }}
  chain late {{
    type filter hook prerouting priority raw;
    iifname != "late1" accept
    {arriving} @asked drop
    notrack
  }}
"#
    );
}

/// Half of the range is added to numbers of the inside, which inverting the highest bit does in either direction.
fn shifted() -> String {
    let edges: String = ["sack", "sack1", "sack2", "sack3"]
        .iter()
        .flat_map(|block| ["left", "right"].map(|edge| format!("tcp option {block} {edge}")))
        .map(|edge| format!("    {OUTER_IN} {edge} set {edge} ^ 0x80000000\n"))
        .collect();
    format!(
        r#"  chain shift_out {{
    type filter hook postrouting priority 310;
    iifname "lan" oifname {{ "wan", "hp0" }} meta nfproto ipv4 tcp sequence set tcp sequence ^ 0x80000000
  }}
  chain shift_in {{
    type filter hook prerouting priority -310;
    {OUTER_IN} meta nfproto ipv4 tcp flags & ack == ack tcp ackseq set tcp ackseq ^ 0x80000000
{edges}  }}
"#
    )
}
