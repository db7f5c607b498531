//! How a site is to be built.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use crate::nat::Hairpin;
use crate::nat::Lifetimes;
use crate::nat::Nat;
use crate::nat::Rules;
use crate::nat::V6;

/// How a site is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// What its router does.
    pub rules: Rules,
    /// The private network inside, a /24; not used where the router does not translate.
    pub lan: Ipv4Addr,
    /// Whether hosts inside have IPv4.
    pub v4: bool,
}

impl Site {
    /// A site with this kind of router, no IPv6, no hairpin, and the private network that half of all homes have.
    pub fn new(nat: Nat) -> Self {
        let rules = Rules { nat, v6: V6::None, udp: true, lifetimes: Lifetimes::default() };
        Self { rules, lan: Ipv4Addr::new(192, 168, 1, 0), v4: true }
    }

    /// With `192.168.<n>.0/24` inside.
    #[must_use]
    pub fn lan(mut self, n: u8) -> Self {
        self.lan = Ipv4Addr::new(192, 168, n, 0);
        self
    }

    /// With any /24 inside.
    #[must_use]
    pub fn network(mut self, lan: Ipv4Addr) -> Self {
        self.lan = lan;
        self
    }

    /// With IPv6.
    #[must_use]
    pub fn v6(mut self, v6: V6) -> Self {
        self.rules.v6 = v6;
        self
    }

    /// With IPv6 and nothing else inside.
    #[must_use]
    pub fn v6_only(mut self, v6: V6) -> Self {
        self.v4 = false;
        self.v6(v6)
    }

    /// With a router that lets inside hosts reach each other by its outer address.
    #[must_use]
    pub fn hairpin(mut self) -> Self {
        self.rules.nat = self.rules.nat.with_hairpin(Hairpin::External);
        self
    }

    /// With a router whose idle mappings go after these times.
    #[must_use]
    pub fn lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.rules.lifetimes = lifetimes;
        self
    }

    /// With a router that drops every UDP packet.
    #[must_use]
    pub fn no_udp(mut self) -> Self {
        self.rules.udp = false;
        self
    }
}

/// The inside of a site: network addresses of a /24 and a /64.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lan {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl Lan {
    pub(super) fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.v4.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    pub(super) fn v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.v6.to_bits() | u128::from(host))
    }
}
