//! What operators forbid besides what their NATs do: how a site may talk to the outside, and whose source addresses the
//! internet believes. Each is a table of its own, so that it comes and goes without a NAT noticing.

use std::net::Ipv4Addr;

/// How the inside of a site may reach the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Egress {
    /// Freely.
    All,
    /// Only by TCP to this port: hotels, guest networks, and companies that allow "the web".
    Tcp(u16),
    /// Only from this address, where a proxy is.
    Through(Ipv4Addr),
}

impl Egress {
    /// Replaces what was in force before. Established connections that the new policy forbids are cut.
    pub(super) fn rules(self) -> String {
        let verdicts = match self {
            Self::All => String::new(),
            Self::Tcp(port) => {
                format!(
                    "iifname \"lan\" meta l4proto != tcp drop\n    iifname \"lan\" tcp dport != {port} drop"
                )
            }
            Self::Through(proxy) => {
                format!(
                    "iifname \"lan\" ip saddr != {proxy} drop\n    iifname \"lan\" meta nfproto ipv6 drop"
                )
            }
        };
        format!(
            "table inet ntl_egress {{}}\n\
             delete table inet ntl_egress\n\
             table inet ntl_egress {{\n  chain forward {{\n    type filter hook forward priority -10;\n    \
             {verdicts}\n  }}\n}}\n"
        )
    }
}

/// Whether packets that come in by `port` must have a source address that is routed out by it: BCP 38.
pub(super) fn ingress_filter(port: &str, on: bool) -> String {
    let verb = if on { "add" } else { "delete" };
    // Declared in full each time; what exists already stays as it is.
    format!(
        "table inet ntl_ingress {{\n  \
           set filtered {{ type ifname; }}\n  \
           chain arriving {{ type filter hook prerouting priority raw; }}\n\
         }}\n\
         flush chain inet ntl_ingress arriving\n\
         add rule inet ntl_ingress arriving ip6 saddr fe80::/10 accept\n\
         add rule inet ntl_ingress arriving iifname @filtered fib saddr . iif oif missing drop\n\
         add element inet ntl_ingress filtered {{ \"{port}\" }}\n\
         {verb} element inet ntl_ingress filtered {{ \"{port}\" }}\n"
    )
}
