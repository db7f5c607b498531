//! What a router does to packets, written as nftables rules over the kernel's own connection tracking.
//!
//! A router has an interface `wan` outside and a bridge `lan` inside. With hairpin it has also a veth loop `hp0`-`hp1`:
//! packets from inside to the router's own outer address leave by `hp0`, translated as if they went outside, and come in
//! again by `hp1` under the rules for packets from outside. So hairpinned packets obey the NAT's own filter.

use std::net::Ipv4Addr;

/// How a router translates and filters IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nat {
    /// No translation: inside addresses are public and everything is forwarded both ways.
    Open,
    /// No translation, but only answers to what went out come in.
    StatefulFirewall,
    /// One outer port per inner port, for every destination; anyone may send to it (full cone: EIM and EIF).
    FullCone,
    /// Plain masquerade: one outer port per inner port, and only the address and port written to may answer.
    PortRestricted,
    /// A fresh random outer port for every session, and only the address and port written to may answer.
    SymmetricRandom,
}

impl Nat {
    /// Every behaviour.
    pub const ALL: [Self; 5] =
        [Self::Open, Self::StatefulFirewall, Self::FullCone, Self::PortRestricted, Self::SymmetricRandom];

    /// What it is, in words for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Open => "a router that lets everything pass",
            Self::StatefulFirewall => "a firewall that lets in answers only",
            Self::FullCone => "a full-cone NAT",
            Self::PortRestricted => "a port-restricted NAT",
            Self::SymmetricRandom => "a symmetric NAT with random ports",
        }
    }

    /// Whether inside addresses stay inside.
    pub fn translates(self) -> bool {
        match self {
            Self::Open | Self::StatefulFirewall => false,
            Self::FullCone | Self::PortRestricted | Self::SymmetricRandom => true,
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
}

/// The whole rule set of a router whose outer address is `wan`, for one `nft -f`.
pub fn ruleset(rules: &Rules, wan: Ipv4Addr) -> String {
    let udp = if rules.udp { "" } else { "meta l4proto udp drop" };
    let v6_in = if rules.v6 == V6::Open { "meta nfproto ipv6 accept" } else { "" };
    let v4_in = match rules.nat {
        Nat::Open => "meta nfproto ipv4 accept",
        Nat::FullCone => "ct status dnat accept",
        Nat::StatefulFirewall | Nat::PortRestricted | Nat::SymmetricRandom => "",
    };
    // Without hairpin the router's own stack would answer an inside host's probe of the outer address.
    let no_hairpin = if rules.hairpin {
        String::new()
    } else {
        format!("iifname \"lan\" ip daddr {wan} meta l4proto {{ tcp, udp }} drop")
    };
    let mut text = format!(
        r#"table inet ntl {{
  chain input {{
    type filter hook input priority filter; policy accept;
    ct state established,related accept
    meta l4proto {{ icmp, ipv6-icmp }} accept
    iifname {{ "wan", "hp1" }} drop
    {no_hairpin}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    {udp}
    ct state established,related accept
    ct state invalid drop
    iifname "lan" accept
    {v4_in}
    {v6_in}
  }}
}}
"#
    );
    if rules.nat.translates() {
        text += &translation(rules.nat, wan);
    }
    text
}

fn translation(nat: Nat, wan: Ipv4Addr) -> String {
    let flags = if nat == Nat::SymmetricRandom { "random,fully-random" } else { "" };
    // The way back in for anyone: learned after translation, consulted before routing. Every outbound packet refreshes it.
    let (maps, back, learn) = if nat == Nat::FullCone {
        (
            "map in_udp { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 65535; }
  map in_tcp { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 65535; }",
            "dnat ip to udp dport map @in_udp
    dnat ip to tcp dport map @in_tcp",
            "meta l4proto udp update @in_udp { udp sport : ct original ip saddr . ct original proto-src }
    meta l4proto tcp update @in_tcp { tcp sport : ct original ip saddr . ct original proto-src }",
        )
    } else {
        ("", "", "")
    };
    format!(
        r#"table ip ntl_nat {{
  {maps}
  chain back {{
    type nat hook prerouting priority dstnat;
    iifname != {{ "wan", "hp1" }} accept
    {back}
  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname "wan" masquerade {flags}
    oifname "hp0" snat to {wan} {flags}
  }}
  chain learn {{
    type filter hook postrouting priority 200;
    oifname != {{ "wan", "hp0" }} accept
    {learn}
  }}
}}
"#
    )
}

/// A table that drops all UDP to and from these addresses, established or not, as a changed firewall policy would.
pub(crate) fn block_udp(addresses: &[std::net::IpAddr]) -> String {
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
