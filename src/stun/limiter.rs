//! What one source gets from a server that answers strangers: so many answers, and so many bytes more than it sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::schedule::Bucket;

/// How often a source may ask at once: a NAT in front of a large office is one source.
const BURST: u32 = 64;
/// How often a source may ask in the long run, per second.
const PER_SECOND: f64 = 32.0;
/// How many bytes more than it sent a source may get at once: a whole discovery by a client that pays for nothing takes some
/// 20 answers of 48 more each, and there may be two at a time.
pub const EXCESS: u32 = 2048;
/// And in the long run, per second: ten of the shortest answers, and of no use to whoever forges sources to flood somebody.
pub const EXCESS_PER_SECOND: u32 = 128;
/// How many sources are told apart; about 100 bytes each.
const SOURCES: usize = 8192;
/// What all further sources share, at once and per second: new ones still get through while the table is full.
const STRANGERS: u32 = 1024;
/// How often the table is swept when it is full.
const SWEEP: Duration = Duration::from_secs(1);

/// What each source may ask. Its memory is bounded: a source is an IPv4 address or an IPv6 /64, and when there are more
/// than 8192 at a time, the rest share one allowance.
#[derive(Debug)]
pub struct Limiter {
    sources: BTreeMap<IpAddr, Account>,
    strangers: Account,
    swept: Instant,
}

#[derive(Debug)]
struct Account {
    answers: Bucket,
    excess: Bucket,
}

impl Account {
    fn is_full(&self, now: Instant) -> bool {
        self.answers.is_full(now) && self.excess.is_full(now)
    }
}

impl Limiter {
    /// Nobody asked yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            sources: BTreeMap::new(),
            strangers: Account {
                answers: Bucket::new(STRANGERS, f64::from(STRANGERS), now),
                excess: Bucket::new(EXCESS, f64::from(EXCESS_PER_SECOND), now),
            },
            swept: now,
        }
    }

    /// Whether one more request of `source` may be answered.
    pub fn allow(&mut self, source: SocketAddr, now: Instant) -> bool {
        self.account(source, now).answers.take(now)
    }

    /// Whether `source`, which sent `asked` bytes, may get `answered`: what it did not pay for with its request comes
    /// out of a small allowance.
    pub fn spend(&mut self, source: SocketAddr, asked: usize, answered: usize, now: Instant) -> bool {
        let excess = answered.saturating_sub(asked);
        excess == 0
            || u32::try_from(excess)
                .is_ok_and(|excess| self.account(source, now).excess.take_some(excess, now))
    }

    fn account(&mut self, source: SocketAddr, now: Instant) -> &mut Account {
        let source = prefix(source.ip());
        let is_full = self.sources.len() >= SOURCES && !self.sources.contains_key(&source);
        if is_full && now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.sources.retain(|_, account| !account.is_full(now));
        }
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            return &mut self.strangers;
        }
        self.sources.entry(source).or_insert_with(|| Account {
            answers: Bucket::new(BURST, PER_SECOND, now),
            excess: Bucket::new(EXCESS, f64::from(EXCESS_PER_SECOND), now),
        })
    }
}

/// One customer: an IPv4 address, an IPv6 /64.
fn prefix(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_source_cannot_ask_for_ever_and_does_not_hinder_another() {
        let t0 = origin();
        let mut limiter = Limiter::new(t0);
        let (greedy, other) = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8:0:1::1]:1".parse().unwrap());
        assert_eq!((0..1000).filter(|_| limiter.allow(greedy, t0)).count(), 64);
        assert!(!limiter.allow("[2001:db8::2]:9".parse().unwrap(), t0), "the same /64 is the same source");
        assert!(limiter.allow(other, t0));
        let later = t0 + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| limiter.allow(greedy, later)).count(), 32);
    }

    #[test]
    fn a_flood_of_forged_sources_has_a_bound_in_memory_and_in_answers() {
        let t0 = origin();
        let mut limiter = Limiter::new(t0);
        let known = "192.0.2.1:1".parse().unwrap();
        assert!(limiter.allow(known, t0));
        let flood = (0..20_000u32).map(|n| SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + n).into(), 1));
        let answered = flood.filter(|source| limiter.allow(*source, t0)).count();
        assert_eq!(answered, SOURCES - 1 + 1024);
        assert_eq!(limiter.sources.len(), SOURCES);
        assert!(limiter.allow(known, t0), "who was there before is served");
        let later = t0 + Duration::from_secs(60);
        assert!(limiter.allow("198.51.100.9:1".parse().unwrap(), later));
        assert_eq!(limiter.sources.len(), 1, "whoever was quiet is forgotten");
    }

    #[test]
    fn whatever_a_source_asks_it_gets_little_more_than_it_sent() {
        let t0 = origin();
        let mut limiter = Limiter::new(t0);
        let greedy: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let (mut sent, mut got) = (0, 0);
        for tenth in 0..36_000u32 {
            let now = t0 + Duration::from_millis(100) * tenth;
            for (asked, answered) in [(20, 68), (28, 36), (1500, 1500), (20, 116)] {
                if limiter.spend(greedy, asked, answered, now) {
                    (sent, got) = (sent + asked, got + answered);
                }
            }
        }
        assert!(got > sent, "some get more");
        assert!(got <= sent + 2048 + 128 * 3600, "{got} bytes for {sent} in an hour");
        assert!(limiter.spend(greedy, 68, 68, t0 + Duration::from_secs(3600)), "who pays is always served");
        assert!(!limiter.spend(greedy, 0, usize::MAX, t0 + Duration::from_secs(9999)));
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
