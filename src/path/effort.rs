//! When to ask the broker for a (better) way: the other half of a path's state, beside what carries.

use std::time::Duration;
use std::time::Instant;

/// After a failed introduction with nothing that carries, or with a relay only: the gaps between tries. Quick at first,
/// because most failures are a lost packet or a peer that was just starting; then polite.
const LADDER: [Duration; 8] =
    [secs(2), secs(5), secs(10), secs(20), secs(30), secs(60), secs(120), secs(300)];
/// The longest of these gaps while nothing carries: somebody waits for it.
const MUTE_FOR: Duration = secs(20);
/// An introduction without an answer of the broker is given up after this.
const ASKING_FOR: Duration = secs(5);

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What is being done for a better way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// Nothing before `until`; the `rung` counts tries that failed in a row.
    Resting {
        /// When the next try may begin.
        until: Instant,
        /// Which gap comes next.
        rung: usize,
    },
    /// The broker was asked.
    Asking {
        /// When.
        since: Instant,
        /// As in `Resting`.
        rung: usize,
    },
    /// Checks are under way.
    Punching {
        /// As in `Resting`.
        rung: usize,
    },
}

impl Effort {
    /// Ready to begin at `now`.
    #[must_use]
    pub const fn fresh(now: Instant) -> Self {
        Self::Resting { until: now, rung: 0 }
    }

    /// Whether the broker should be asked now.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self, Self::Resting { until, .. } if *until <= now)
    }

    /// The broker was asked.
    #[must_use]
    pub const fn asked(self, now: Instant) -> Self {
        Self::Asking { since: now, rung: self.rung() }
    }

    /// The introduction came: by our asking or by the other side's.
    #[must_use]
    pub const fn introduced(self) -> Self {
        Self::Punching { rung: self.rung() }
    }

    /// It led to a direct way: the next trouble starts from the first rung.
    #[must_use]
    pub const fn succeeded(self, now: Instant) -> Self {
        Self::fresh(now)
    }

    /// It led nowhere: rest, longer each time; less long while nothing at all carries.
    #[must_use]
    pub fn failed(self, mute: bool, now: Instant) -> Self {
        let rung = self.rung();
        let gap = LADDER.get(rung).or(LADDER.last()).copied().unwrap_or(secs(300));
        let gap = if mute { gap.min(MUTE_FOR) } else { gap };
        Self::Resting { until: now + gap, rung: (rung + 1).min(LADDER.len() - 1) }
    }

    /// Something changed (network, presence, a lost path): old failures say nothing about now.
    #[must_use]
    pub fn refreshed(self, now: Instant) -> Self {
        match self {
            Self::Resting { .. } => Self::fresh(now),
            Self::Asking { since, .. } => Self::Asking { since, rung: 0 },
            Self::Punching { .. } => Self::Punching { rung: 0 },
        }
    }

    /// The broker does not answer: as good as a failure.
    #[must_use]
    pub fn expire(self, mute: bool, now: Instant) -> Self {
        match self {
            Self::Asking { since, .. } if now >= since + ASKING_FOR => self.failed(mute, now),
            Self::Resting { .. } | Self::Asking { .. } | Self::Punching { .. } => self,
        }
    }

    /// When [`Self::is_due`] or [`Self::expire`] will say something new.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Resting { until, .. } => Some(*until),
            Self::Asking { since, .. } => Some(*since + ASKING_FOR),
            Self::Punching { .. } => None,
        }
    }

    /// How many tries failed in a row before this one, up to the last gap.
    #[must_use]
    pub const fn rung(self) -> usize {
        match self {
            Self::Resting { rung, .. } | Self::Asking { rung, .. } | Self::Punching { rung } => rung,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn failures_climb_the_ladder_and_a_change_starts_over() {
        let t0 = Instant::now();
        let mut effort = Effort::fresh(t0);
        let mut gaps = Vec::new();
        for _ in 0..10 {
            assert!(effort.is_due(effort.deadline().unwrap()));
            effort = effort.asked(t0).introduced().failed(false, t0);
            gaps.push((effort.deadline().unwrap() - t0).as_secs());
        }
        assert_eq!(gaps, [2, 5, 10, 20, 30, 60, 120, 300, 300, 300]);
        let mute = effort.asked(t0).failed(true, t0);
        assert_eq!(mute.deadline(), Some(t0 + secs(20)), "somebody waits");
        assert!(effort.refreshed(t0).is_due(t0));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn a_silent_broker_counts_as_a_failure() {
        let t0 = Instant::now();
        let asking = Effort::fresh(t0).asked(t0);
        assert_eq!(asking.expire(false, t0 + secs(4)), asking);
        assert_eq!(asking.expire(false, t0 + secs(5)).deadline(), Some(t0 + secs(7)));
    }
}
