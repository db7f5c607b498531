//! Who may knock, and how often: half-open connections and rates, per source and in all, in bounded memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::time::Instant;

use crate::base::schedule::Bucket;

/// Connections that have not finished TLS and their first message, in all. Each costs a few KiB.
pub const MAX_HALF_OPEN: usize = 256;
/// The same from one source: a site full of members behind one NAT that all come back at once still gets in within
/// seconds, because a handshake takes milliseconds.
pub const MAX_HALF_OPEN_PER_SOURCE: usize = 16;
/// Sources remembered for rates, in all; beyond that strangers share one bucket.
pub const MAX_SOURCES: usize = 16_384;

/// Why a knock is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// Too many half-open connections in all.
    Full,
    /// Too many half-open connections from this source.
    SourceFull,
    /// Too many in too short a time from this source.
    TooFast,
}

/// Whoever shares a limit: one IPv4 address, or one IPv6 /64, which is what one subscriber has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Source(IpAddr);

impl Source {
    /// The source that `ip` belongs to.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(v6) => Self(IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64))),
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// A rate per source, in bounded memory.
#[derive(Debug)]
pub struct Rates {
    burst: u32,
    per_second: f64,
    known: BTreeMap<Source, Bucket>,
    others: Option<Bucket>,
}

impl Rates {
    /// Every source may do `burst` things at once and `per_second` in the long run.
    #[must_use]
    pub const fn new(burst: u32, per_second: f64) -> Self {
        Self { burst, per_second, known: BTreeMap::new(), others: None }
    }

    /// Whether `source` may do one more now. Costs the same whatever the load; [`Rates::sweep`] makes room.
    pub fn take(&mut self, source: Source, now: Instant) -> bool {
        if let Some(bucket) = self.known.get_mut(&source) {
            return bucket.take(now);
        }
        let (burst, per_second) = (self.burst, self.per_second);
        if self.known.len() >= MAX_SOURCES {
            return self.others.get_or_insert_with(|| Bucket::new(burst, per_second, now)).take(now);
        }
        self.known.entry(source).or_insert_with(|| Bucket::new(burst, per_second, now)).take(now)
    }

    /// Forgets sources that were quiet for so long that it makes no difference.
    pub fn sweep(&mut self, now: Instant) {
        self.known.retain(|_, bucket| !bucket.is_full(now));
    }
}

/// The gate in front of the TLS handshake.
#[derive(Debug)]
pub struct Admission {
    rates: Rates,
    half_open: BTreeMap<Source, usize>,
    total: usize,
}

impl Default for Admission {
    fn default() -> Self {
        // A crowd behind one NAT that restarts together is some dozens; a scanner knocks some hundreds of times a second.
        // A handshake costs some 200 us, so 32 a second from one source are below a hundredth of a core.
        Self { rates: Rates::new(128, 32.0), half_open: BTreeMap::new(), total: 0 }
    }
}

impl Admission {
    /// A connection came in from `ip`. `Ok` counts it as half open until [`Admission::settled`].
    ///
    /// # Errors
    /// Why it must be closed at once; then it was not counted.
    pub fn admit(&mut self, ip: IpAddr, now: Instant) -> Result<(), Denied> {
        let source = Source::of(ip);
        if self.total >= MAX_HALF_OPEN {
            return Err(Denied::Full);
        }
        if self.half_open.get(&source).is_some_and(|n| *n >= MAX_HALF_OPEN_PER_SOURCE) {
            return Err(Denied::SourceFull);
        }
        if !self.rates.take(source, now) {
            return Err(Denied::TooFast);
        }
        *self.half_open.entry(source).or_default() += 1;
        self.total += 1;
        Ok(())
    }

    /// An admitted connection from `ip` is authenticated or gone.
    pub fn settled(&mut self, ip: IpAddr) {
        let source = Source::of(ip);
        if let Some(n) = self.half_open.get_mut(&source) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.half_open.remove(&source);
            }
            self.total = self.total.saturating_sub(1);
        }
    }

    /// Forgets quiet sources.
    pub fn sweep(&mut self, now: Instant) {
        self.rates.sweep(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::tests::origin;

    fn ip(n: u32) -> IpAddr {
        IpAddr::from((0xc000_0200 + n).to_be_bytes())
    }

    #[test]
    fn one_source_cannot_hold_all_half_open_connections() {
        let mut gate = Admission::default();
        let now = origin().instant;
        for _ in 0..MAX_HALF_OPEN_PER_SOURCE {
            assert_eq!(gate.admit(ip(1), now), Ok(()));
        }
        assert_eq!(gate.admit(ip(1), now), Err(Denied::SourceFull));
        assert_eq!(gate.admit(ip(2), now), Ok(()), "others are not held back");
        gate.settled(ip(1));
        assert_eq!(gate.admit(ip(1), now), Ok(()));
    }

    #[test]
    fn many_sources_together_cannot_exceed_the_total() {
        let mut gate = Admission::default();
        let now = origin().instant;
        for n in 0..u32::try_from(MAX_HALF_OPEN).unwrap() {
            assert_eq!(gate.admit(ip(n), now), Ok(()));
        }
        assert_eq!(gate.admit(ip(9999), now), Err(Denied::Full));
    }

    #[test]
    fn a_source_that_knocks_too_fast_waits_for_its_tokens() {
        let mut gate = Admission::default();
        let now = origin().instant;
        let granted = (0..300)
            .filter(|_| {
                let ok = gate.admit(ip(1), now).is_ok();
                if ok {
                    gate.settled(ip(1));
                }
                ok
            })
            .count();
        assert_eq!(granted, 128);
        assert_eq!(gate.admit(ip(1), now), Err(Denied::TooFast));
        assert_eq!(gate.admit(ip(1), now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn an_ipv6_subscriber_is_one_source() {
        let a = Source::of("2001:db8::1".parse().unwrap());
        assert_eq!(a, Source::of("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(a, Source::of("2001:db8:0:1::1".parse().unwrap()));
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(Source::of("::ffff:192.0.2.1".parse().unwrap()), Source::of(v4));
    }

    #[test]
    fn strangers_share_one_bucket_when_memory_is_full() {
        let mut rates = Rates::new(2, 0.001);
        let now = origin().instant;
        for n in 0..u32::try_from(MAX_SOURCES).unwrap() {
            assert!(rates.take(Source::of(ip(n)), now));
        }
        let more: Vec<bool> = (0..4).map(|n| rates.take(Source::of(ip(1_000_000 + n)), now)).collect();
        assert_eq!(more, [true, true, false, false]);
        assert_eq!(rates.known.len(), MAX_SOURCES);
    }
}
