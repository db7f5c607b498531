//! A NAT as a value: mapping, filtering and port assignment by RFC 4787's words, hairpin, and mappings that die of silence.
//! What is here alone is for datagrams; what TCP has besides is in `tcp::nat`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::rng::Rng;
use ntcp_overlay::base::rng::Seed;

use crate::tcp::nat::Table;
use crate::tcp::nat::Tcp;

/// Linux conntrack's default for flows without an answer; the shortest in common use.
const LIFETIME: Duration = Duration::from_secs(30);
/// Ports that a NAT gives out when it does not keep the inside's.
const FIRST_PORT: u16 = 20_000;
/// Between two clean-ups.
const SWEEP: Duration = Duration::from_secs(30);

/// Which destinations share one external port (RFC 4787 4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mapping {
    /// All.
    EndpointIndependent,
    /// Those of one address.
    AddressDependent,
    /// None.
    AddressAndPortDependent,
}

/// Who may answer at an external port (RFC 4787 5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Every port of an address that was sent to.
    AddressDependent,
    /// Whom was sent to.
    AddressAndPortDependent,
}

/// Which external port a new mapping gets (RFC 4787 4.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ports {
    /// The same as inside, or the next one that is free.
    Kept,
    /// So many more than the mapping before.
    Stepping(u16),
    /// Any.
    Random,
}

/// What a NAT does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Behavior {
    /// Mapping.
    pub mapping: Mapping,
    /// Filtering.
    pub filtering: Filtering,
    /// Port assignment.
    pub ports: Ports,
    /// Whether hosts behind it reach each other by their external addresses (RFC 4787 6); the source is then external.
    pub hairpin: bool,
    /// A mapping is forgotten after so much silence in both directions. TCP's have lifetimes of their own.
    pub lifetime: Duration,
    /// What else it does with TCP.
    pub tcp: Tcp,
}

/// Port-restricted: the common home router.
pub const PORT_RESTRICTED: Behavior =
    simple(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent);
/// Full cone.
pub const OPEN: Behavior = simple(Mapping::EndpointIndependent, Filtering::EndpointIndependent);
/// Another port for each destination.
pub const SYMMETRIC: Behavior = simple(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent);

/// A NAT without hairpin, with ports that step by 7 and the usual lifetime.
#[must_use]
pub const fn simple(mapping: Mapping, filtering: Filtering) -> Behavior {
    let (ports, tcp) = (Ports::Stepping(7), Tcp::LINUX);
    Behavior { mapping, filtering, ports, hairpin: false, lifetime: LIFETIME, tcp }
}

/// One NAT.
#[derive(Debug)]
pub struct Nat {
    /// Its outside.
    pub public: Ipv4Addr,
    /// What it does.
    pub behavior: Behavior,
    /// Its sessions of TCP.
    pub(crate) tcp: Table,
    by_port: BTreeMap<u16, Flow>,
    by_key: BTreeMap<(SocketAddr, Option<IpAddr>, Option<u16>), u16>,
    allotment: Allotment,
    swept: Option<Instant>,
}

/// One mapping.
#[derive(Debug)]
struct Flow {
    inside: SocketAddr,
    key: (SocketAddr, Option<IpAddr>, Option<u16>),
    sent_to: BTreeMap<SocketAddr, Instant>,
    used: Instant,
}

impl Nat {
    pub(crate) fn new(public: Ipv4Addr, behavior: Behavior) -> Self {
        Self {
            public,
            behavior,
            tcp: Table::new(public),
            by_port: BTreeMap::new(),
            by_key: BTreeMap::new(),
            allotment: Allotment::new(public, 0),
            swept: None,
        }
    }

    /// The outside source of a datagram from `inside` to `to`.
    pub(crate) fn outward(&mut self, inside: SocketAddr, to: SocketAddr, now: Instant) -> SocketAddr {
        self.sweep(now);
        let key = match self.behavior.mapping {
            Mapping::EndpointIndependent => (inside, None, None),
            Mapping::AddressDependent => (inside, Some(to.ip()), None),
            Mapping::AddressAndPortDependent => (inside, Some(to.ip()), Some(to.port())),
        };
        let lifetime = self.behavior.lifetime;
        let alive = |flow: &Flow| now < flow.used + lifetime;
        let known = self.by_key.get(&key).copied().filter(|port| self.by_port.get(port).is_some_and(alive));
        let port = known.unwrap_or_else(|| {
            if let Some(stale) = self.by_key.remove(&key) {
                self.by_port.remove(&stale);
            }
            let port = self.free_port(inside.port(), now);
            self.by_key.insert(key, port);
            self.by_port.insert(port, Flow { inside, key, sent_to: BTreeMap::new(), used: now });
            port
        });
        if let Some(flow) = self.by_port.get_mut(&port) {
            flow.used = now;
            flow.sent_to.insert(to, now);
        }
        SocketAddr::new(self.public.into(), port)
    }

    /// Where a datagram from `from` to our `port` goes inside, if it may.
    pub(crate) fn inward(&mut self, from: SocketAddr, port: u16, now: Instant) -> Option<SocketAddr> {
        let lifetime = self.behavior.lifetime;
        let flow = self.by_port.get_mut(&port).filter(|flow| now < flow.used + lifetime)?;
        let alive = |at: &Instant| now < *at + lifetime;
        let passes = match self.behavior.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => {
                flow.sent_to.iter().any(|(to, at)| to.ip() == from.ip() && alive(at))
            }
            Filtering::AddressAndPortDependent => flow.sent_to.get(&from).is_some_and(alive),
        };
        if !passes {
            return None;
        }
        if let Some(used) = flow.sent_to.get_mut(&from) {
            *used = now;
        }
        flow.used = now;
        Some(flow.inside)
    }

    /// A reboot: everything is forgotten and ports are handed out anew.
    pub fn reboot(&mut self) {
        self.by_port.clear();
        self.by_key.clear();
        self.allotment.skip();
        self.tcp.clear();
    }

    /// How many mappings are alive.
    #[must_use]
    pub fn flows(&self, now: Instant) -> usize {
        self.by_port.values().filter(|flow| now < flow.used + self.behavior.lifetime).count()
    }

    /// How many sessions of TCP it remembers.
    #[must_use]
    pub fn sessions(&self, now: Instant) -> usize {
        self.tcp.sessions(now)
    }

    fn free_port(&mut self, inside: u16, now: Instant) -> u16 {
        let (lifetime, by_port) = (self.behavior.lifetime, &self.by_port);
        let taken = |port| by_port.get(&port).is_some_and(|flow| now < flow.used + lifetime);
        let port = self.allotment.next(self.behavior.ports, inside, taken);
        if let Some(stale) = self.by_port.remove(&port) {
            self.by_key.remove(&stale.key);
        }
        port
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now < at + SWEEP) {
            return;
        }
        self.swept = Some(now);
        let lifetime = self.behavior.lifetime;
        self.by_port.retain(|_, flow| {
            flow.sent_to.retain(|_, used| now < *used + lifetime);
            now < flow.used + lifetime
        });
        let by_port = &self.by_port;
        self.by_key.retain(|_, port| by_port.contains_key(port));
    }
}

/// How one transport's outside ports are given out.
#[derive(Debug)]
pub(crate) struct Allotment {
    last: u16,
    rng: Rng,
}

impl Allotment {
    /// Its chances are those of the NAT's address, and of the transport's number.
    pub(crate) fn new(public: Ipv4Addr, transport: u8) -> Self {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&public.octets());
        seed[4] = transport;
        Self { last: FIRST_PORT, rng: Rng::new(Seed(seed)) }
    }

    /// A port for the inside's, none that is taken.
    pub(crate) fn next(&mut self, ports: Ports, inside: u16, taken: impl Fn(u16) -> bool) -> u16 {
        let mut port = match ports {
            Ports::Kept => inside,
            Ports::Stepping(by) => {
                self.last = FIRST_PORT + (self.last - FIRST_PORT + by) % 40_000;
                self.last
            }
            Ports::Random => 1024 + u16::try_from(self.rng.below(64_512)).unwrap_or(0),
        };
        while taken(port) {
            port = port.wrapping_add(1).max(1024);
        }
        port
    }

    /// Those given out from now on have nothing to do with those before.
    pub(crate) fn skip(&mut self) {
        self.last = FIRST_PORT + (self.last + 1000) % 30_000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: &str = "192.168.1.2:5000";

    #[test]
    fn mappings_depend_on_what_they_should() {
        let to = [at("192.0.2.1:1"), at("192.0.2.1:2"), at("192.0.2.2:1")];
        for (mapping, ports) in [
            (Mapping::EndpointIndependent, 1),
            (Mapping::AddressDependent, 2),
            (Mapping::AddressAndPortDependent, 3),
        ] {
            let (mut nat, t0) = nat(simple(mapping, Filtering::EndpointIndependent));
            let mut seen: Vec<SocketAddr> = to.iter().map(|to| nat.outward(at(INSIDE), *to, t0)).collect();
            assert_eq!(seen[0], nat.outward(at(INSIDE), to[0], t0), "the same again");
            seen.dedup();
            assert_eq!(seen.len(), ports, "{mapping:?}");
        }
    }

    #[test]
    fn filters_let_in_whom_they_should() {
        let from = [at("192.0.2.1:1"), at("192.0.2.1:2"), at("192.0.2.2:1")];
        for (filtering, let_in) in [
            (Filtering::EndpointIndependent, [true, true, true]),
            (Filtering::AddressDependent, [true, true, false]),
            (Filtering::AddressAndPortDependent, [true, false, false]),
        ] {
            let (mut nat, t0) = nat(simple(Mapping::EndpointIndependent, filtering));
            let port = nat.outward(at(INSIDE), from[0], t0).port();
            let passed = from.map(|from| nat.inward(from, port, t0) == Some(at(INSIDE)));
            assert_eq!(passed, let_in, "{filtering:?}");
            assert_eq!(nat.inward(from[0], port + 1, t0), None, "another port");
        }
    }

    #[test]
    fn a_mapping_dies_of_silence_and_lives_by_traffic_of_either_side() {
        let (mut nat, t0) = nat(PORT_RESTRICTED);
        let (to, half) = (at("192.0.2.1:1"), LIFETIME * 2 / 3);
        let port = nat.outward(at(INSIDE), to, t0).port();
        assert!(nat.inward(to, port, t0 + half).is_some());
        assert!(nat.inward(to, port, t0 + half * 2).is_some(), "refreshed");
        assert_eq!(nat.inward(to, port, t0 + half * 2 + LIFETIME), None);
        assert_eq!(nat.flows(t0 + half * 2 + LIFETIME), 0);
        assert_ne!(nat.outward(at(INSIDE), to, t0 + half * 2 + LIFETIME).port(), port, "another port");
    }

    #[test]
    fn ports_are_kept_stepped_or_random_and_never_given_out_twice() {
        let to = at("192.0.2.1:1");
        let with = |ports| Behavior { ports, ..OPEN };
        let (mut kept, t0) = nat(with(Ports::Kept));
        assert_eq!(kept.outward(at(INSIDE), to, t0).port(), 5000);
        assert_eq!(kept.outward(at("192.168.1.3:5000"), to, t0).port(), 5001);
        let (mut stepping, t0) = nat(with(Ports::Stepping(2)));
        let first = stepping.outward(at(INSIDE), to, t0).port();
        assert_eq!(stepping.outward(at("192.168.1.3:5000"), to, t0).port(), first + 2);
        let (mut random, t0) = nat(with(Ports::Random));
        let inside = |n: u16| SocketAddr::from(([192, 168, 1, 2], n));
        let ports: std::collections::BTreeSet<u16> =
            (1..2000).map(|n| random.outward(inside(n), to, t0).port()).collect();
        assert_eq!(ports.len(), 1999);
    }

    fn at(addr: &str) -> SocketAddr {
        addr.parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn nat(behavior: Behavior) -> (Nat, Instant) {
        (Nat::new(Ipv4Addr::new(203, 0, 113, 1), behavior), Instant::now())
    }
}
