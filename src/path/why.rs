//! Why a path is not direct, in words for whoever asks `status`.

use std::time::Duration;
use std::time::Instant;

use crate::path::Path;
use crate::path::effort::Effort;

impl Path {
    /// Why the path is not direct, in words, and when the next try is due.
    #[must_use]
    pub fn why(&self, now: Instant) -> (Option<String>, Option<Duration>) {
        if self.is_direct() {
            return (None, None);
        }
        let next = match self.effort {
            Effort::Resting { until, .. } if self.is_active(now) => {
                Some(until.saturating_duration_since(now))
            }
            Effort::Resting { .. } | Effort::Asking { .. } | Effort::Punching { .. } => None,
        };
        let doing = match self.effort {
            Effort::Asking { .. } => Some("asking the broker for an introduction".to_owned()),
            Effort::Punching { .. } => Some("checking for a direct path".to_owned()),
            Effort::Resting { .. } => None,
        };
        let failed = self.last_tally.filter(|(_, targets, _)| *targets > 0).map(|(probes, targets, _)| {
            let addresses = if targets == 1 { "address" } else { "addresses" };
            format!("no answer to {probes} probes to {targets} {addresses} of the peer: the NATs and firewalls between us let no packet of either side in")
        });
        let failed = match (failed, self.streams.failure()) {
            (Some(udp), Some((dials, _))) if dials > 0 => {
                Some(format!("{udp}; {dials} TCP connections failed too"))
            }
            (None, Some((_, why))) => why.map(|why| format!("no direct TCP connection: {why}")),
            (udp, _) => udp,
        };
        (self.trouble.clone().or(doing).or(failed), next)
    }
}
