//! A limit per source before the limit for all: one flooder must not put every peer into cookie mode.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::base::schedule::Bucket;

/// Handshake initiations that one source may send at once: a site of fifty machines behind one address that wake up
/// together.
const BURST: u32 = 50;
/// In the long run, per second; a peer sends one every five seconds at most (WireGuard 6.4: REKEY-TIMEOUT).
const PER_SECOND: f64 = 10.0;
/// Sources remembered; beyond that strangers share one bucket.
const MAX_SOURCES: usize = 4096;

/// Buckets by source address.
#[derive(Debug)]
pub struct SourceGate {
    sources: BTreeMap<IpAddr, Bucket>,
    crowd: Bucket,
}

impl SourceGate {
    /// A gate that has seen nobody.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { sources: BTreeMap::new(), crowd: Bucket::new(BURST, PER_SECOND, now) }
    }

    /// Whether one more handshake of `source` may be looked at. IPv6 sources count by /64, which is what one site gets.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = site(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            if self.sources.len() >= MAX_SOURCES {
                return self.crowd.take(now);
            }
        }
        self.sources.entry(source).or_insert_with(|| Bucket::new(BURST, PER_SECOND, now)).take(now)
    }
}

fn site(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn a_flood_of_one_source_leaves_the_others_alone() {
        let now = Instant::now();
        let mut gate = SourceGate::new(now);
        let (flooder, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let admitted = (0..1000).filter(|_| gate.admit(flooder, now)).count();
        assert_eq!(admitted, 50);
        assert!(gate.admit(other, now));
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        assert_eq!((0..60).filter(|i| gate.admit(if i % 2 == 0 { a } else { b }, now)).count(), 50);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn memory_is_bounded_under_a_flood_of_sources() {
        let now = Instant::now();
        let mut gate = SourceGate::new(now);
        for i in 0..20_000u32 {
            let _ = gate.admit(IpAddr::V4(i.into()), now);
        }
        assert!(gate.sources.len() <= MAX_SOURCES);
    }
}
