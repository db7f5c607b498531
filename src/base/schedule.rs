//! Deadlines as data: a table of timers indexed by an enum, a finite ladder, an endless backoff.

use std::time::Duration;
use std::time::Instant;

/// `N` timers; the index is an enum of the owner, cast to `usize`. One `next()` feeds the owner's `poll_timeout`.
#[derive(Clone, Debug)]
pub struct Timers<const N: usize>([Option<Instant>; N]);

impl<const N: usize> Default for Timers<N> {
    fn default() -> Self {
        Self([None; N])
    }
}

impl<const N: usize> Timers<N> {
    /// Arms, moves or (with `None`) stops timer `index`.
    pub fn set(&mut self, index: usize, at: Option<Instant>) {
        if let Some(slot) = self.0.get_mut(index) {
            *slot = at;
        }
    }

    /// When timer `index` goes off, if it is armed.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<Instant> {
        self.0.get(index).copied().flatten()
    }

    /// True once when timer `index` is due; it is stopped by that.
    pub fn take_due(&mut self, index: usize, now: Instant) -> bool {
        self.0.get_mut(index).is_some_and(|slot| slot.take_if(|at| *at <= now).is_some())
    }

    /// The earliest deadline.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }
}

/// Endless retries: doubles from `first` to `cap`, each with up to a quarter taken off at random, so that a crowd that
/// failed together does not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    tries: u32,
}

impl Backoff {
    /// Starts at `first`, never waits longer than `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, tries: 0 }
    }

    /// How long to wait before the next try; `chance` is any random number.
    pub fn next(&mut self, chance: u32) -> Duration {
        let full = self.first.saturating_mul(1 << self.tries.min(16)).min(self.cap);
        self.tries = self.tries.saturating_add(1);
        full - full.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 4.0)
    }

    /// Back to the first rung: the last try worked.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// How many tries failed in a row.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }
}

/// Tokens that refill with time: at most `burst` at once, `per_second` in the long run.
#[derive(Clone, Debug)]
pub struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(burst: u32, per_second: f64, now: Instant) -> Self {
        Self { tokens: f64::from(burst), burst: f64::from(burst), per_second, filled: now }
    }

    /// Takes one token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_some(1, now)
    }

    /// Takes `count` tokens if there are so many.
    pub fn take_some(&mut self, count: u32, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.filled = now;
        let granted = self.tokens >= f64::from(count);
        if granted {
            self.tokens -= f64::from(count);
        }
        granted
    }

    /// Whether nothing was taken for so long that forgetting the bucket changes nothing.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> bool {
        self.tokens + now.saturating_duration_since(self.filled).as_secs_f64() * self.per_second >= self.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_goes_off_once() {
        let t0 = origin();
        let mut timers = Timers::<2>::default();
        timers.set(1, Some(t0));
        assert_eq!(timers.next(), Some(t0));
        assert!(timers.take_due(1, t0));
        assert!(!timers.take_due(1, t0));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn backoff_doubles_to_its_cap_and_starts_over() {
        let mut b = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits: Vec<u64> = (0..4).map(|_| b.next(0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5]);
        b.reset();
        assert!(b.next(u32::MAX) >= Duration::from_millis(749));
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let t0 = origin();
        let mut b = Bucket::new(2, 1.0, t0);
        assert!(b.take(t0) && b.take(t0) && !b.take(t0));
        assert!(b.take(t0 + Duration::from_secs(1)));
        assert!(!b.is_full(t0 + Duration::from_secs(1)));
        assert!(b.is_full(t0 + Duration::from_secs(9)));
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
