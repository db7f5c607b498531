//! The kernel's shortcut through a relay: one TCP connection to the peer itself, dialled at the relay's gate for it.
//!
//! It belongs to a session that is bound, and stands beside its channel. Both sides dial; whoever comes first waits in the
//! relay, which calls the other one. Once open it is used like a direct stream: no channel header, whole super-packets, and
//! nothing but an authentic check proves that the peer is at its far end. When it breaks, the channel carries on at once.

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::StreamId;
use crate::base::transmit::Dial;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Via;
use crate::path::health::Health;
use crate::path::leg::Leg;

/// How long after a session began its gate is dialled, if the relay is still needed: most pairs are direct by then.
pub(super) const DIAL_AFTER: Duration = Duration::from_millis(500);
/// Rests after a connection that failed, or broke. A summons of the other side ends any of them.
const REST: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// The connection of one session.
#[derive(Debug)]
pub(super) struct Splice {
    state: State,
    failures: usize,
}

#[derive(Debug)]
enum State {
    /// Not dialled, and not before this.
    Resting(Instant),
    Dialling(StreamId, SocketAddr),
    Open(StreamId, Leg, Box<Health>),
}

impl Splice {
    /// Of a session that began now.
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Resting(now + DIAL_AFTER), failures: 0 }
    }

    /// The other side dials.
    pub(super) fn on_summoned(&mut self, now: Instant) {
        if let State::Resting(until) = &mut self.state {
            *until = now.min(*until);
        }
    }

    /// Dials if it is time; `id` is a fresh number, used up if this answers something.
    pub(super) fn dial(&mut self, gate: SocketAddr, id: StreamId, now: Instant) -> Option<StreamOrder> {
        let State::Resting(until) = self.state else { return None };
        if now < until {
            return None;
        }
        self.state = State::Dialling(id, gate);
        Some(StreamOrder::Open(id, Dial::plain(gate)))
    }

    /// Gives up a connection over which nobody is heard any more.
    pub(super) fn hang_up_if_dead(&mut self, now: Instant) -> Option<StreamOrder> {
        let State::Open(id, _, health) = &self.state else { return None };
        let id = *id;
        if !health.is_dead() {
            return None;
        }
        self.rest(now);
        Some(StreamOrder::Close(id))
    }

    /// What became of a stream of this session; false if it is not this one.
    pub(super) fn handle_stream(&mut self, id: StreamId, open: bool, now: Instant) -> bool {
        match self.state {
            State::Dialling(own, to) if own == id => {
                if open {
                    let leg = Leg { via: Via::Stream(id), to, channel: None };
                    self.state = State::Open(id, leg, Box::new(Health::new(now)));
                } else {
                    self.rest(now);
                }
                true
            }
            State::Open(own, ..) if own == id => {
                if !open {
                    self.rest(now);
                }
                true
            }
            State::Resting(_) | State::Dialling(..) | State::Open(..) => false,
        }
    }

    /// The stream, if there is one.
    pub(super) fn stream(&self) -> Option<StreamId> {
        match self.state {
            State::Resting(_) => None,
            State::Dialling(id, _) | State::Open(id, ..) => Some(id),
        }
    }

    /// The way, once it is open, proven or not.
    pub(super) fn way(&self) -> Option<(Leg, &Health)> {
        match &self.state {
            State::Open(_, leg, health) => Some((*leg, health)),
            State::Resting(_) | State::Dialling(..) => None,
        }
    }

    /// The same, to tell it what happens.
    pub(super) fn way_mut(&mut self) -> Option<(Leg, &mut Health)> {
        match &mut self.state {
            State::Open(_, leg, health) => Some((*leg, health)),
            State::Resting(_) | State::Dialling(..) => None,
        }
    }

    /// The way, if the peer is proven to be at its other end.
    pub(super) fn proven(&self) -> Option<Leg> {
        self.way().filter(|(_, health)| health.is_proven() && !health.is_dead()).map(|(leg, _)| leg)
    }

    /// When [`Self::dial`] would do something.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Resting(until) => Some(until),
            State::Dialling(..) | State::Open(..) => None,
        }
    }

    fn rest(&mut self, now: Instant) {
        let worked = self.way().is_some_and(|(_, health)| health.is_proven());
        self.failures = if worked { 0 } else { self.failures + 1 };
        let [.., longest] = REST;
        let rest = REST.get(self.failures.saturating_sub(1)).copied().unwrap_or(longest);
        self.state = State::Resting(now + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: &str = "203.0.113.5:20001";

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn dial(splice: &mut Splice, id: u32, now: Instant) -> bool {
        let gate = GATE.parse().unwrap();
        let order = splice.dial(gate, StreamId(id), now);
        let wanted = StreamOrder::Open(StreamId(id), Dial::plain(gate));
        order.is_some_and(|order| order == wanted)
    }

    #[test]
    fn a_gate_is_dialled_once_a_direct_path_had_its_chance_or_the_other_side_calls() {
        let t0 = origin();
        let mut splice = Splice::new(t0);
        assert!(!dial(&mut splice, 1, t0));
        assert_eq!(splice.due(), Some(t0 + DIAL_AFTER));
        assert!(dial(&mut splice, 1, t0 + DIAL_AFTER));
        assert!(!dial(&mut splice, 2, t0 + DIAL_AFTER), "once");
        let mut summoned = Splice::new(t0);
        summoned.on_summoned(t0);
        assert!(dial(&mut summoned, 1, t0));
    }

    #[test]
    fn failures_make_the_rests_longer_and_a_summons_ends_any() {
        let mut now = origin();
        let mut splice = Splice::new(now);
        for (id, rest) in (1..).zip([2, 5, 15, 60, 300, 300]) {
            now = splice.due().unwrap();
            assert!(dial(&mut splice, id, now));
            assert!(splice.handle_stream(StreamId(id), false, now));
            assert_eq!(splice.due(), Some(now + Duration::from_secs(rest)));
        }
        splice.on_summoned(now);
        assert!(dial(&mut splice, 99, now));
    }

    #[test]
    fn an_open_connection_is_a_way_only_when_it_is_proven_and_ends_with_its_stream() {
        let t0 = origin();
        let mut splice = Splice::new(t0);
        splice.on_summoned(t0);
        assert!(dial(&mut splice, 7, t0));
        assert!(!splice.handle_stream(StreamId(8), true, t0), "another's stream");
        assert!(splice.handle_stream(StreamId(7), true, t0));
        assert_eq!((splice.proven(), splice.way().map(|(leg, _)| leg.to)), (None, GATE.parse().ok()));
        let (leg, health) = splice.way_mut().unwrap();
        health.on_round_trip(Duration::from_millis(40), t0);
        assert_eq!(splice.proven(), Some(leg));
        assert!(splice.handle_stream(StreamId(7), false, t0));
        assert_eq!((splice.proven(), splice.stream()), (None, None));
    }
}
