//! Deadlines of streams: asked for at any time, started by the next wait, which knows what time it is.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Instant;

use crate::base::id::StreamId;

/// At most one deadline per stream.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    fresh: BTreeSet<StreamId>,
    at: BTreeMap<StreamId, Instant>,
    order: BTreeSet<(Instant, StreamId)>,
}

impl Deadlines {
    /// Asks for a deadline, unless there is one already.
    pub(super) fn start(&mut self, id: StreamId) {
        if !self.at.contains_key(&id) {
            self.fresh.insert(id);
        }
    }

    /// Streams whose clock is to be started now.
    pub(super) fn take_fresh(&mut self) -> BTreeSet<StreamId> {
        std::mem::take(&mut self.fresh)
    }

    /// Starts the clock of a stream.
    pub(super) fn set(&mut self, id: StreamId, at: Instant) {
        self.stop(id);
        self.at.insert(id, at);
        self.order.insert((at, id));
    }

    /// The stream needs no deadline any more.
    pub(super) fn stop(&mut self, id: StreamId) {
        self.fresh.remove(&id);
        if let Some(at) = self.at.remove(&id) {
            self.order.remove(&(at, id));
        }
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Streams whose time is up; they have no deadline after this.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<StreamId> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.order.first().copied()
            && at <= now
        {
            self.stop(id);
            due.push(id);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_deadline_starts_with_the_next_wait_and_is_due_once() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do, the clock then jumps")]
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut deadlines = Deadlines::default();
        deadlines.start(StreamId(1));
        deadlines.start(StreamId(2));
        assert_eq!(deadlines.next(), None, "nobody knows the time yet");
        for id in deadlines.take_fresh() {
            deadlines.set(id, start + second * id.0);
        }
        deadlines.start(StreamId(1));
        assert!(deadlines.take_fresh().is_empty(), "a running clock is not started again");
        assert_eq!(deadlines.next(), Some(start + second));
        assert_eq!(deadlines.take_due(start), []);
        assert_eq!(deadlines.take_due(start + second), [StreamId(1)]);
        deadlines.stop(StreamId(2));
        assert_eq!(deadlines.take_due(start + second * 9), []);
        assert_eq!(deadlines.next(), None);
    }
}
