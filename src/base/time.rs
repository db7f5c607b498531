//! Time as an argument: one value carries both clocks, so that nothing below the engine has to read either.

use std::fmt;
use std::time::Duration;
use std::time::Instant;

/// The moment at which something is handled: the monotonic clock for deadlines and the calendar for certificates.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic; deadlines are measured on it.
    pub instant: Instant,
    /// Calendar time; certificates, tokens and logs are measured on it. May jump.
    pub unix: UnixTime,
}

impl Now {
    /// The same moment, later by `by` on both clocks.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self { instant: self.instant + by, unix: self.unix.plus(by) }
    }
}

/// Time since 1970-01-01 UTC, with the resolution of the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(Duration);

impl UnixTime {
    /// From whole seconds since the epoch.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// From the distance to the epoch.
    #[must_use]
    pub const fn from_epoch(since: Duration) -> Self {
        Self(since)
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub const fn secs(self) -> u64 {
        self.0.as_secs()
    }

    /// Microseconds since the epoch; enough for 580,000 years.
    #[must_use]
    pub fn micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    /// Later by `by`; saturates at the end of time.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix {}", self.0.as_secs())
    }
}
