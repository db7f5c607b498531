//! Whose turn it is. Behind a NAT whose ports step no other attempt of this member may use a port up between a look from
//! outside and the packets that follow it; and thousands of packets to one peer's NAT are enough at a time.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;

/// How long a turn lasts at most: a look and a start by the broker over a slow line. A peer that is never ready must not
/// hold up the others.
const LASTS: Duration = Duration::from_millis(1500);
/// When whoever waits asks again.
pub const AGAIN: Duration = Duration::from_millis(50);

/// The turn of one member, and who waits for it, the longest first.
#[derive(Debug, Default)]
pub struct Turn {
    holder: Option<(AttemptId, Instant)>,
    /// With the moment at which each asked last: whoever asks no more waits no more.
    waiting: VecDeque<(AttemptId, Instant)>,
}

impl Turn {
    /// Whether `who` may look now, and then send. If not, it asks again after [`AGAIN`].
    pub fn take(&mut self, who: AttemptId, now: Instant) -> bool {
        self.waiting.retain(|(waits, asked)| *waits == who || now < *asked + 2 * AGAIN);
        let free = self.holder.is_none_or(|(holder, until)| holder == who || until <= now);
        if free && self.waiting.front().is_none_or(|(first, _)| *first == who) {
            self.waiting.retain(|(waits, _)| *waits != who);
            self.holder = Some((who, now + LASTS));
            return true;
        }
        match self.waiting.iter_mut().find(|(waits, _)| *waits == who) {
            Some((_, asked)) => *asked = now,
            None => self.waiting.push_back((who, now)),
        }
        false
    }

    /// `who` has the turn until then and not for the usual time.
    pub fn keep(&mut self, who: AttemptId, until: Instant) {
        if let Some((_, ends)) = self.holder.as_mut().filter(|(holder, _)| *holder == who) {
            *ends = until;
        }
    }

    /// `who` will have sent everything by `until`.
    pub fn end(&mut self, who: AttemptId, until: Instant) {
        if let Some((_, ends)) = self.holder.as_mut().filter(|(holder, _)| *holder == who) {
            *ends = until.min(*ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: AttemptId = AttemptId([1; 16]);
    const TWO: AttemptId = AttemptId([2; 16]);
    const THREE: AttemptId = AttemptId([3; 16]);

    #[test]
    fn one_has_the_turn_at_a_time_and_the_others_get_it_in_their_order() {
        let (mut turn, t0) = (Turn::default(), origin());
        assert!(turn.take(ONE, t0));
        assert!(turn.take(ONE, t0), "once more is no harm");
        assert!(!turn.take(TWO, t0));
        assert!(!turn.take(THREE, t0));
        turn.end(TWO, t0);
        assert!(!turn.take(TWO, t0 + AGAIN), "nobody ends another one's turn");
        turn.end(ONE, t0 + AGAIN);
        assert!(!turn.take(THREE, t0 + AGAIN), "it came after another");
        assert!(turn.take(TWO, t0 + AGAIN));
        assert!(!turn.take(ONE, t0 + AGAIN));
    }

    #[test]
    fn whoever_holds_it_too_long_or_waits_no_more_stops_nobody() {
        let (mut turn, t0) = (Turn::default(), origin());
        assert!(turn.take(ONE, t0));
        assert!(!turn.take(TWO, t0));
        assert!(!turn.take(THREE, t0 + LASTS - AGAIN), "the first has it still");
        assert!(turn.take(THREE, t0 + LASTS), "the second does not ask any more");
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
