//! Addresses with a role, and which of them are fit to be told to others.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

/// An address as the outermost NAT shows it to the world (RFC 4787: the external endpoint of a mapping).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MappedAddr(pub SocketAddr);

/// A member's two addresses inside the overlay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OverlayAddrs {
    /// In the network's IPv4 prefix.
    pub v4: Ipv4Addr,
    /// In the network's unique local /64 (RFC 4193).
    pub v6: Ipv6Addr,
}

impl OverlayAddrs {
    /// Whether `ip` is one of the two.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => v4 == self.v4,
            IpAddr::V6(v6) => v6 == self.v6,
        }
    }
}

impl fmt::Display for OverlayAddrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.v4, self.v6)
    }
}

/// IPv4-mapped IPv6 addresses become plain IPv4: one address, one spelling.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whether an address may be offered to a peer or probed when a peer offers it: unicast, routable beyond this host, a
/// port. Link-local is out because it means nothing without its interface.
#[must_use]
pub fn is_candidate(addr: SocketAddr) -> bool {
    let fit = match addr.ip().to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
                && v4.octets()[0] != 0
                && v4.octets()[0] < 240
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local())
        }
    };
    fit && addr.port() != 0
}

/// Private or shared address space: RFC 1918, RFC 6598 (100.64.0.0/10), RFC 4193.
#[must_use]
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unicast_addresses_with_a_port_are_candidates() {
        for (text, fit) in [
            ("192.0.2.1:5", true),
            ("10.0.0.1:5", true),
            ("192.0.2.1:0", false),
            ("127.0.0.1:5", false),
            ("0.0.0.0:5", false),
            ("0.1.2.3:5", false),
            ("224.0.0.1:5", false),
            ("255.255.255.255:5", false),
            ("169.254.1.1:5", false),
            ("[::1]:5", false),
            ("[fe80::1]:5", false),
            ("[ff02::1]:5", false),
            ("[2001:db8::1]:5", true),
            ("[::ffff:127.0.0.1]:5", false),
        ] {
            assert_eq!(is_candidate(text.parse().unwrap()), fit, "{text}");
        }
    }

    #[test]
    fn shared_address_space_is_private() {
        for (text, private) in [
            ("100.64.0.1", true),
            ("100.127.9.9", true),
            ("100.128.0.1", false),
            ("10.1.1.1", true),
            ("8.8.8.8", false),
            ("fd00::1", true),
        ] {
            assert_eq!(is_private(text.parse().unwrap()), private, "{text}");
        }
    }
}
