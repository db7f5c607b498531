//! Why something carries, or nothing does, in words for whoever asks `status`.

use std::time::Duration;
use std::time::Instant;

use crate::base::transmit::Via;
use crate::path::Path;
use crate::path::Transport;
use crate::path::choice::Reason;
use crate::path::choice::Rides;
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
        let failed = match (failed, self.no_stream()) {
            (Some(udp), Some(tcp)) => Some(format!("{udp}; {tcp}")),
            (udp, tcp) => udp.or(tcp),
        };
        (self.trouble.clone().or(doing).or(failed), next)
    }

    /// Why there is no direct TCP connection, if one was tried in vain.
    #[must_use]
    pub fn no_stream(&self) -> Option<String> {
        let (dials, why) = self.streams.failure()?;
        match (dials, why) {
            (0, None) => None,
            (0, Some(why)) => Some(format!("no direct TCP connection: {why}")),
            (1, _) => Some("1 TCP connection failed too".to_owned()),
            (dials, _) => Some(format!("{dials} TCP connections failed too")),
        }
    }

    /// Why UDP or TCP carries, in words, where a direct way does.
    #[must_use]
    pub fn choice(&self, now: Instant) -> Option<String> {
        let carrier = self.carrier.filter(|_| self.is_direct())?;
        let stream = matches!(carrier.via, Via::Stream(_));
        let rule = match self.transport {
            Transport::Auto => None,
            Transport::Tcp => Some("the configuration wants TCP"),
            Transport::Udp => Some("the configuration wants UDP"),
        };
        if let Some(rule) = rule {
            return Some(rule.to_owned());
        }
        if stream && self.ways.best_datagrams(None).is_none() {
            return Some("no answer over UDP".to_owned());
        }
        if let Some((reason, left)) = self.choice.reason(now) {
            return Some(moved(&reason, left, self.no_stream()));
        }
        if self.beside.is_some() {
            return Some("the peer's packets are lost over UDP: TCP traffic rides TCP, both ways".to_owned());
        }
        if let Some(left) = self.choice.barren(now) {
            let minutes = left.as_secs().div_ceil(60);
            return Some(format!("UDP loses packets, but TCP was no faster: not tried for {minutes} min"));
        }
        Some("UDP works".to_owned())
    }
}

fn moved(reason: &Reason, left: Option<Duration>, failed: Option<String>) -> String {
    let percent = reason.loss * 100.0;
    let lost = match reason.over {
        Some(over) => format!("UDP lost {percent:.1} % in {} s", over.as_secs()),
        None => format!("UDP lost {percent:.0} % of the last probes"),
    };
    let (what, means) = match reason.rides {
        Rides::Tcp => {
            ("TCP traffic", format!(", which holds a TCP flow at {:.1} Mbit/s", reason.bound * 8.0 / 1e6))
        }
        Rides::All => ("everything", String::new()),
    };
    match left {
        Some(left) => format!("{lost}{means}: {what} rides TCP, for {} s at least", left.as_secs()),
        None => {
            let failed = failed.map(|why| format!(" ({why})")).unwrap_or_default();
            format!("{lost}{means}: a direct TCP connection is wanted{failed}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_says_what_was_lost_what_that_means_and_for_how_long() {
        let s = Duration::from_secs;
        let reason = Reason::new(Rides::Tcp, 0.011, Some(s(10)), 212_500.0);
        assert_eq!(
            moved(&reason, Some(s(43)), None),
            "UDP lost 1.1 % in 10 s, which holds a TCP flow at 1.7 Mbit/s: TCP traffic rides TCP, for 43 s at least"
        );
        assert_eq!(
            moved(&reason, None, Some("9 TCP connections failed too".to_owned())),
            "UDP lost 1.1 % in 10 s, which holds a TCP flow at 1.7 Mbit/s: a direct TCP connection is wanted (9 TCP connections failed too)"
        );
        let heavy = Reason::new(Rides::All, 0.4, None, 0.0);
        assert_eq!(
            moved(&heavy, Some(s(60)), None),
            "UDP lost 40 % of the last probes: everything rides TCP, for 60 s at least"
        );
    }
}
