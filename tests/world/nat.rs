//! A NAT as a value: mapping and filtering by RFC 4787's words, no hairpin, mappings that die of silence.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

/// Linux conntrack's default for flows without an answer; the shortest in common use.
const LIFETIME: Duration = Duration::from_secs(30);

/// What a NAT does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behavior {
    /// One external port for all destinations (RFC 4787 4.1: endpoint-independent).
    pub(crate) one_port: bool,
    /// Lets in only what was sent to (RFC 4787 5: address-and-port-dependent).
    pub(crate) filters: bool,
}

/// Port-restricted: the common home router.
pub(crate) const PORT_RESTRICTED: Behavior = Behavior { one_port: true, filters: true };
/// Full cone.
pub(crate) const OPEN: Behavior = Behavior { one_port: true, filters: false };
/// Another port for each destination.
pub(crate) const SYMMETRIC: Behavior = Behavior { one_port: false, filters: true };

/// One NAT.
#[derive(Debug)]
pub(crate) struct Nat {
    /// Its outside.
    pub(crate) public: Ipv4Addr,
    behavior: Behavior,
    mappings: Vec<Mapping>,
    next_port: u16,
}

#[derive(Debug)]
struct Mapping {
    inside: SocketAddr,
    port: u16,
    /// For whom alone, if the mapping depends on the destination.
    only: Option<SocketAddr>,
    sent_to: BTreeMap<SocketAddr, Instant>,
    used: Instant,
}

impl Nat {
    pub(crate) fn new(public: Ipv4Addr, behavior: Behavior) -> Self {
        Self { public, behavior, mappings: Vec::new(), next_port: 20_000 }
    }

    /// The outside source of a datagram from `inside` to `to`.
    pub(crate) fn outward(&mut self, inside: SocketAddr, to: SocketAddr, now: Instant) -> SocketAddr {
        self.expire(now);
        let only = (!self.behavior.one_port).then_some(to);
        let public = IpAddr::V4(self.public);
        let at = self.mappings.iter().position(|m| m.inside == inside && m.only == only);
        let at = at.unwrap_or_else(|| {
            self.next_port += 7;
            let (port, sent_to) = (self.next_port, BTreeMap::new());
            self.mappings.push(Mapping { inside, port, only, sent_to, used: now });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[at];
        mapping.used = now;
        mapping.sent_to.insert(to, now);
        SocketAddr::new(public, mapping.port)
    }

    /// Where a datagram from `from` to our `port` goes inside, if it may.
    pub(crate) fn inward(&mut self, from: SocketAddr, port: u16, now: Instant) -> Option<SocketAddr> {
        self.expire(now);
        let filters = self.behavior.filters;
        let mapping = self.mappings.iter_mut().find(|m| m.port == port)?;
        match mapping.sent_to.get_mut(&from) {
            Some(used) => *used = now,
            None if filters => return None,
            None => {}
        }
        mapping.used = now;
        Some(mapping.inside)
    }

    /// A reboot: everything is forgotten and ports are handed out anew.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
        self.next_port += 1000;
    }

    fn expire(&mut self, now: Instant) {
        self.mappings.retain(|m| now < m.used + LIFETIME);
        for mapping in &mut self.mappings {
            mapping.sent_to.retain(|_, used| now < *used + LIFETIME);
        }
    }
}
