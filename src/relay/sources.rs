//! How often one source may make the relay check a signature, for more sources than there is memory for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::base::schedule::Bucket;

/// One budget per source address. Two generations instead of a list in order of use: a source that is seen moves to the
/// young one; when that is full, it becomes the old one and the old one is forgotten. Memory is bounded, every step is
/// constant time, and who was seen lately keeps its (perhaps empty) bucket.
#[derive(Debug)]
pub(super) struct Sources {
    burst: u32,
    per_second: f64,
    half: usize,
    young: HashMap<IpAddr, Bucket>,
    old: HashMap<IpAddr, Bucket>,
}

impl Sources {
    /// At most `max` sources are remembered, each with `burst` at once and `per_second` in the long run.
    pub(super) fn new(max: usize, burst: u32, per_second: f64) -> Self {
        Self { burst, per_second, half: (max / 2).max(1), young: HashMap::new(), old: HashMap::new() }
    }

    /// Takes one from the budget of the source that `ip` belongs to.
    pub(super) fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        let source = source_of(ip);
        if let Some(bucket) = self.young.get_mut(&source) {
            return bucket.take(now);
        }
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        let mut bucket =
            self.old.remove(&source).unwrap_or_else(|| Bucket::new(self.burst, self.per_second, now));
        let granted = bucket.take(now);
        self.young.insert(source, bucket);
        granted
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// What one customer of a provider gets: an IPv4 address, or an IPv6 /64 (RFC 6177).
pub(super) fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::relay::testing::now;

    #[test]
    fn an_ipv6_network_shares_one_budget() {
        let mut sources = Sources::new(10, 2, 1.0);
        let t = now().instant;
        assert!(sources.take("2001:db8::1".parse().unwrap(), t));
        assert!(sources.take("2001:db8::2".parse().unwrap(), t));
        assert!(!sources.take("2001:db8::3".parse().unwrap(), t));
        assert!(sources.take("2001:db8:0:1::3".parse().unwrap(), t));
    }

    #[test]
    fn a_flood_of_sources_neither_fills_the_memory_nor_frees_the_one_who_keeps_asking() {
        let mut sources = Sources::new(100, 1, 0.0);
        let t = now().instant;
        let greedy = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert!(sources.take(greedy, t));
        for n in 0..10_000_u32 {
            assert!(sources.take(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)), t));
            assert!(!sources.take(greedy, t), "after {n}");
            assert!(sources.len() <= 101);
        }
    }
}
