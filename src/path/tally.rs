//! Loss as traffic itself shows it: what left by a way, and what of it the peer says it got.
//!
//! The sender notes its count with each probe that leaves, and the answer brings the receiver's count of that moment
//! (direct loss measurement, RFC 6374 2.1). Datagrams hardly ever overtake each other, so what was sent between two
//! answered probes has arrived by then, or is lost. Bulk traffic so shows a loss of 0.1 % within seconds, for which
//! probes of their own would have to be many.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

/// What the measurement looks back on: five probes of a way that carries.
const WINDOW: Duration = Duration::from_secs(10);
/// Shorter spans say nothing.
const LEAST: Duration = Duration::from_secs(5);
/// Between two marks: probes may come faster than that.
const STEP: Duration = Duration::from_secs(1);

/// What leaves by a way at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Sealed packets; handshakes and keep-alives do not count.
    pub messages: u32,
    /// Bytes in them of large TCP packets.
    pub bulk: u64,
}

/// What left by a way until some moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Count {
    messages: u32,
    bulk: u64,
}

impl Count {
    /// Bytes of large TCP packets.
    #[must_use]
    pub(super) fn bulk(&self) -> u64 {
        self.bulk
    }
}

/// The counts of one way.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: Count,
    arrived: u32,
    marks: VecDeque<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    sent: Count,
    /// Of that, what the peer got; wraps.
    arrived: u32,
}

/// What happened to the traffic of the last seconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Measured {
    /// For how long it was looked at.
    pub(super) over: Duration,
    /// Packets that left.
    pub(super) sent: u32,
    /// Packets that did not arrive.
    pub(super) lost: u32,
    /// Spans between probes in which some did not.
    pub(super) spans: usize,
    /// Bytes of large TCP packets that left, a second.
    pub(super) bulk: f64,
}

impl Measured {
    /// Share of the packets that did not arrive, 0 to 1.
    #[must_use]
    pub(super) fn loss(&self) -> f64 {
        f64::from(self.lost) / f64::from(self.sent.max(1))
    }
}

impl Tally {
    /// Something leaves.
    pub(super) fn on_sent(&mut self, load: Load) {
        self.sent.messages = self.sent.messages.wrapping_add(load.messages);
        self.sent.bulk += load.bulk;
    }

    /// A packet of the peer came.
    pub(super) fn on_arrived(&mut self) {
        self.arrived = self.arrived.wrapping_add(1);
    }

    /// What left until now: for a probe that leaves.
    #[must_use]
    pub(super) fn sent(&self) -> Count {
        self.sent
    }

    /// How many packets of the peer came: for a probe of the peer, and its answer. Wraps.
    #[must_use]
    pub(super) fn arrived(&self) -> u32 {
        self.arrived
    }

    /// The peer answered a probe that left at `at`, after `sent`, and had got so many packets then.
    pub(super) fn on_report(&mut self, at: Instant, sent: Count, arrived: u32) {
        if let Some(last) = self.marks.back() {
            if at < last.at + STEP {
                return;
            }
            let (left, came) =
                (sent.messages.wrapping_sub(last.sent.messages), arrived.wrapping_sub(last.arrived));
            // More than were sent, by more than overtake each other: the peer counts anew, or another way.
            if came > left.saturating_add(left / 4).saturating_add(64) {
                self.marks.clear();
            }
        }
        self.marks.push_back(Mark { at, sent, arrived });
        while self.marks.front().is_some_and(|first| first.at + WINDOW < at) {
            self.marks.pop_front();
        }
    }

    /// What the marks of the last [`WINDOW`] say, if they are enough and not older than that.
    #[must_use]
    pub(super) fn measured(&self, now: Instant) -> Option<Measured> {
        let (first, last) = (self.marks.front()?, self.marks.back()?);
        let over = last.at.saturating_duration_since(first.at);
        if over < LEAST || last.at + WINDOW < now {
            return None;
        }
        let lost = |from: &Mark, to: &Mark| {
            let sent = to.sent.messages.wrapping_sub(from.sent.messages);
            sent.saturating_sub(to.arrived.wrapping_sub(from.arrived))
        };
        let spans = self.marks.iter().zip(self.marks.iter().skip(1)).filter(|(from, to)| lost(from, to) > 0);
        let kib = u32::try_from((last.sent.bulk - first.sent.bulk) / 1024).unwrap_or(u32::MAX);
        Some(Measured {
            over,
            sent: last.sent.messages.wrapping_sub(first.sent.messages),
            lost: lost(first, last),
            spans: spans.count(),
            bulk: f64::from(kib) * 1024.0 / over.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_between_two_answers_and_did_not_arrive_is_lost() {
        let t0 = origin();
        let mut tally = Tally::default();
        let mut arrived = u32::MAX - 250;
        for second in 0..6 {
            let at = t0 + Duration::from_secs(2 * second);
            tally.on_report(at, tally.sent(), arrived);
            assert_eq!(tally.measured(at).is_some(), second >= 3, "after {} s", 2 * second);
            tally.on_sent(Load { messages: 100, bulk: 102_400 });
            arrived = arrived.wrapping_add(if second % 2 == 0 { 98 } else { 100 });
        }
        let measured = tally.measured(t0 + WINDOW).unwrap();
        assert_eq!((measured.sent, measured.lost, measured.spans), (500, 6, 3));
        assert!((measured.bulk - 51_200.0).abs() < 1.0, "{measured:?}");
        assert!((measured.loss() - 0.012).abs() < 1e-9);
        assert_eq!(tally.measured(t0 + WINDOW * 3), None, "that is long ago");
    }

    #[test]
    fn a_peer_that_begins_to_count_anew_has_lost_nothing_and_invented_nothing() {
        let t0 = origin();
        let mut tally = Tally::default();
        for (second, arrived) in [(0, 1000), (3, 1100), (6, 1200), (9, 5), (12, 105), (15, 205)] {
            tally.on_report(t0 + Duration::from_secs(second), tally.sent(), arrived);
            tally.on_sent(Load { messages: 100, bulk: 0 });
        }
        let measured = tally.measured(t0 + Duration::from_secs(15)).unwrap();
        assert_eq!((measured.sent, measured.lost), (200, 0));
    }

    #[test]
    fn packets_that_overtake_a_probe_are_no_loss_and_quick_probes_no_marks() {
        let t0 = origin();
        let mut tally = Tally::default();
        for (ms, arrived) in [(0, 0), (10, 1), (3000, 103), (6000, 200)] {
            tally.on_report(t0 + Duration::from_millis(ms), tally.sent(), arrived);
            if ms != 10 {
                tally.on_sent(Load { messages: 100, bulk: 0 });
            }
        }
        let measured = tally.measured(t0 + Duration::from_secs(6)).unwrap();
        assert_eq!((measured.sent, measured.lost, tally.marks.len()), (200, 0, 3));
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
