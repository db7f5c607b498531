//! What a port that a gateway has forwarded is worth: the gateway says what its outer address is, and may be wrong.

use std::net::IpAddr;
use std::net::SocketAddr;

use crate::base::addr::is_candidate;
use crate::base::addr::is_private;
use crate::nat::candidate::Kind;

/// What a forwarded endpoint is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Worth {
    /// Everybody reaches it.
    Public,
    /// Private or shared address space (RFC 1918, RFC 6598): another NAT stands outside this one. Whoever sits between the
    /// two reaches it.
    Nested,
    /// It looks public, but others see us at another address: a NAT outside that hides behind addresses which are not its
    /// own, another line, or a gateway that is wrong. As good as nested.
    Elsewhere,
    /// Nobody reaches it: no address at all, or no port.
    Nothing,
}

impl Worth {
    /// How it is told to others; `None` for not at all.
    #[must_use]
    pub const fn kind(self) -> Option<Kind> {
        match self {
            Self::Public => Some(Kind::Forwarded),
            Self::Nested | Self::Elsewhere => Some(Kind::Inner),
            Self::Nothing => None,
        }
    }
}

/// What `external`, which a gateway claims to forward, is worth. `seen` is our address as somebody outside sees it.
#[must_use]
pub fn worth(external: SocketAddr, seen: Option<IpAddr>) -> Worth {
    // Whom we meet inside some private network sees nothing of the NATs in question.
    let seen = seen.map(|ip| ip.to_canonical()).filter(|ip| !is_private(*ip));
    match seen {
        _ if !is_candidate(external) => Worth::Nothing,
        _ if is_private(external.ip()) => Worth::Nested,
        Some(seen) if seen.is_ipv4() == external.is_ipv4() && seen != external.ip() => Worth::Elsewhere,
        Some(_) | None => Worth::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_believed_only_as_far_as_others_see_the_same() {
        for (name, external, seen, answer) in [
            ("as seen", "203.0.113.5:4000", Some("203.0.113.5"), Worth::Public),
            ("not seen yet", "203.0.113.5:4000", None, Worth::Public),
            ("seen from the same site", "203.0.113.5:4000", Some("192.168.1.7"), Worth::Public),
            ("seen by IPv6", "203.0.113.5:4000", Some("2001:db8::1"), Worth::Public),
            ("behind a home router", "192.168.0.10:4000", Some("203.0.113.5"), Worth::Nested),
            ("behind a carrier", "100.64.3.4:4000", None, Worth::Nested),
            ("behind a carrier that squats", "11.0.0.5:4000", Some("203.0.113.5"), Worth::Elsewhere),
            ("mapped spelling", "203.0.113.5:4000", Some("::ffff:203.0.113.5"), Worth::Public),
            ("no address", "0.0.0.0:4000", None, Worth::Nothing),
            ("no port", "203.0.113.5:0", None, Worth::Nothing),
            ("itself", "127.0.0.1:4000", None, Worth::Nothing),
        ] {
            let seen = seen.map(|ip| ip.parse().unwrap());
            assert_eq!(worth(external.parse().unwrap(), seen), answer, "{name}");
        }
    }
}
