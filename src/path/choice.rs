//! UDP or TCP where both can be had: which of them carries what, for how long, and why.
//!
//! UDP carries unless it is found to lose too much. Then TCP traffic rides a direct TCP connection, if one can be opened:
//! the outer connection repairs random loss, which the inner one takes for congestion. Everything else (UDP, ping) stays
//! on datagrams, because it repairs its losses itself, or not, and would only wait behind what is repaired. Only where
//! datagrams are hardly of use everything rides the stream. So a packet's transport decides, never its size: no flow is
//! split over two ways, and none is reordered but at the moment of a move.
//!
//! What "too much" is follows from what loss does to TCP: over a way of round trip R that loses the share p, a flow
//! reaches about 1.22 segments / (R √p) and no more (Mathis et al. 1997). For 1,340 bytes and 80 ms that is 5.2, 2.3 and
//! 1.6 Mbit/s at 0.1, 0.5 and 1 % loss; cubic over direct UDP was measured at 7.8, 2.0 and 1.8, and over an outer BBR
//! connection at 159, 62 and 118.
//!
//! Every move lasts at least [`STAY`], twice as long each time that it has to be made again, so that nothing flaps; and a
//! move that made nothing faster is taken back and not repeated for [`BARREN`].

use std::time::Duration;
use std::time::Instant;

use crate::path::tally::Measured;

/// A flow that may be faster than this over UDP, bytes a second (20 Mbit/s), is left there: who has so much hardly waits.
const ENOUGH: f64 = 20e6 / 8.0;
/// Segment of an inner TCP flow, bytes: the default MTU less its headers.
const SEGMENT: f64 = 1340.0;
/// Mathis's constant: the square root of 3/2.
const MATHIS: f64 = 1.22;
/// There is bulk traffic if TCP sends in large packets at least this share of what loss lets one flow have: less is not held up by it.
const BULK_SHARE: f64 = 0.25;
/// Packets lost, at least, in that many different spans between two probes: one full queue is no lossy way.
const LASTING: (u32, usize) = (4, 3);
/// Loss at which datagrams are hardly of use: voice breaks up, a name is looked up in vain every tenth time.
const HEAVY: f64 = 0.1;
/// Packets that such a loss must be seen on, if probes alone do not show it.
const HEAVY_LEAST: u32 = 50;
/// The least time on the stream, and the most that it grows to.
const STAY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1800));
/// A move that has to be made again within this time after the way back stays twice as long.
const RELAPSE: Duration = Duration::from_secs(600);
/// Losses among the last probes of UDP that allow the way back.
const CALM: f64 = 0.05;
/// A new connection gets this long to find its speed, and is then watched for as long.
const SETTLE: Duration = Duration::from_secs(8);
/// It has to be faster by this factor, or it was not worth it.
const FASTER: f64 = 1.25;
/// So long UDP keeps what TCP made no faster.
const BARREN: Duration = Duration::from_secs(1800);
/// Between tries to open a stream; doubled after each up to the second.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1800));
/// A wish that nothing confirms any more is forgotten.
const WISH: Duration = Duration::from_secs(60);
/// Traffic is looked at in spans of this; one without any means that there is none.
const LOOK: Duration = Duration::from_secs(2);

/// What rides the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rides {
    /// TCP.
    Tcp,
    /// Everything.
    All,
}

/// What is known when the choice is looked at again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// Round trip of the best way over UDP; `None` if there is none.
    pub(super) rtt: Option<Duration>,
    /// How traffic fared on it.
    pub(super) traffic: Option<Measured>,
    /// Share of its last probes that was lost, if there were enough of them.
    pub(super) probes: Option<f64>,
    /// Whether a direct stream is proven.
    pub(super) stream: bool,
    /// Bytes of large TCP packets that ever left by the stream.
    pub(super) streamed: u64,
}

/// Why the stream is wanted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Reason {
    /// What is to ride it.
    pub(super) rides: Rides,
    /// Share of packets that UDP lost.
    pub(super) loss: f64,
    /// Over how long that was measured on traffic; `None`: on the last probes.
    pub(super) over: Option<Duration>,
    /// What a TCP flow would reach there, bytes a second.
    pub(super) bound: f64,
    /// What TCP sent there in large packets, bytes a second.
    before: f64,
}

impl Reason {
    /// For words about it.
    #[cfg(test)]
    pub(super) const fn new(rides: Rides, loss: f64, over: Option<Duration>, bound: f64) -> Self {
        Self { rides, loss, over, bound, before: 0.0 }
    }
}

/// What carries what.
#[derive(Debug)]
pub(super) struct Choice {
    state: State,
    stay: Duration,
    /// When UDP got back what rode the stream.
    returned: Option<Instant>,
    /// Until when TCP is not tried, because it was no faster.
    barren: Option<Instant>,
    ask: (Instant, Duration),
}

#[derive(Debug)]
enum State {
    /// UDP carries everything.
    Datagrams,
    /// UDP still does, but should not.
    Wishing(Wish),
    /// The stream carries what `reason` says.
    Riding { reason: Reason, until: Instant, trial: Trial },
}

/// A stream is wanted.
#[derive(Clone, Copy, Debug)]
struct Wish {
    reason: Reason,
    since: Instant,
    until: Instant,
    /// The peer knows of it.
    told: bool,
}

/// Whether the move was worth it.
#[derive(Clone, Copy, Debug)]
enum Trial {
    /// Not looked at before then.
    Settling(Instant),
    /// Traffic is measured.
    Measuring { since: Instant, from: u64, looked: Instant, last: u64 },
    /// It was, or cannot be told.
    Over,
}

impl Choice {
    /// UDP carries everything.
    #[must_use]
    pub(super) const fn new(now: Instant) -> Self {
        let (stay, (ask, _)) = (STAY.0, ASK_AGAIN);
        Self { state: State::Datagrams, stay, returned: None, barren: None, ask: (now, ask) }
    }

    /// Looks again.
    pub(super) fn consider(&mut self, sight: &Sight, now: Instant) {
        match &mut self.state {
            State::Datagrams | State::Wishing(_) => self.consider_stream(sight, now),
            State::Riding { .. } if !sight.stream => self.state = State::Datagrams,
            State::Riding { reason, until, trial } => {
                trial.look(sight.streamed, now);
                if reason.rides == Rides::Tcp && trial.is_barren(reason.before, sight.streamed, now) {
                    self.barren = Some(now + BARREN);
                    self.state = State::Datagrams;
                } else if *until <= now && sight.rtt.is_some() {
                    if sight.probes.is_some_and(|loss| loss > CALM) {
                        *until = now + self.stay;
                    } else {
                        self.returned = Some(now);
                        self.state = State::Datagrams;
                    }
                }
            }
        }
    }

    fn consider_stream(&mut self, sight: &Sight, now: Instant) {
        let rested = self.barren.is_none_or(|until| until <= now);
        let found = judge(sight).filter(|reason| rested || reason.rides == Rides::All);
        let wish = match (&self.state, found) {
            (State::Wishing(old), Some(reason)) => Some(Wish { reason, until: now + WISH, ..*old }),
            (_, Some(reason)) => Some(Wish { reason, since: now, until: now + WISH, told: false }),
            (State::Wishing(old), None) if now < old.until => Some(*old),
            (_, None) => None,
        };
        self.state = match wish {
            Some(Wish { reason, .. }) if sight.stream => {
                let again = self.returned.is_some_and(|at| now < at + RELAPSE);
                self.stay = if again { (self.stay * 2).min(STAY.1) } else { STAY.0 };
                State::Riding { reason, until: now + self.stay, trial: Trial::Settling(now + SETTLE) }
            }
            Some(wish) => State::Wishing(wish),
            None => State::Datagrams,
        };
    }

    /// The peer answered a probe that left at `sent`, and so knows what we wanted then.
    pub(super) fn on_told(&mut self, sent: Instant) {
        if let State::Wishing(wish) = &mut self.state {
            wish.told |= wish.since <= sent;
        }
    }

    /// What rides the stream now.
    #[must_use]
    pub(super) fn rides(&self) -> Option<Rides> {
        match &self.state {
            State::Riding { reason, .. } => Some(reason.rides),
            State::Datagrams | State::Wishing(_) => None,
        }
    }

    /// Whether a stream is wanted, or used.
    #[must_use]
    pub(super) fn wants_stream(&self) -> bool {
        !matches!(self.state, State::Datagrams)
    }

    /// Whether one should be opened now. A peer that does not know why would not take part.
    #[must_use]
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(&self.state, State::Wishing(wish) if wish.told) && self.ask.0 <= now
    }

    /// An introduction is being asked for, perhaps for this.
    pub(super) fn on_asked(&mut self, now: Instant) {
        if self.is_due(now) {
            let (_, gap) = self.ask;
            self.ask = (now + gap, (gap * 2).min(ASK_AGAIN.1));
        }
    }

    /// A stream came up: what was tried in vain before says nothing about the next one.
    pub(super) fn on_stream(&mut self, now: Instant) {
        let (gap, _) = ASK_AGAIN;
        self.ask = (now + gap, gap);
    }

    /// The reason for the stream, wanted or used, and how much longer it is used at least.
    #[must_use]
    pub(super) fn reason(&self, now: Instant) -> Option<(Reason, Option<Duration>)> {
        match &self.state {
            State::Datagrams => None,
            State::Wishing(wish) => Some((wish.reason, None)),
            State::Riding { reason, until, .. } => {
                Some((*reason, Some(until.saturating_duration_since(now))))
            }
        }
    }

    /// For how much longer TCP is not tried because it was no faster, if that is so.
    #[must_use]
    pub(super) fn barren(&self, now: Instant) -> Option<Duration> {
        self.barren.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

impl Trial {
    /// Goes on with what the stream has carried by now.
    fn look(&mut self, streamed: u64, now: Instant) {
        match self {
            Self::Settling(until) if *until <= now => {
                *self = Self::Measuring { since: now, from: streamed, looked: now, last: streamed };
            }
            Self::Measuring { looked, last, .. } if *looked + LOOK <= now => {
                if *last == streamed {
                    // Nobody sends: nothing can be said of the stream.
                    *self = Self::Over;
                } else {
                    (*looked, *last) = (now, streamed);
                }
            }
            Self::Settling(_) | Self::Measuring { .. } | Self::Over => {}
        }
    }

    /// True once if the stream is no faster than UDP was.
    fn is_barren(&mut self, before: f64, streamed: u64, now: Instant) -> bool {
        let Self::Measuring { since, from, .. } = *self else { return false };
        if now < since + SETTLE {
            return false;
        }
        *self = Self::Over;
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        let kib = u32::try_from((streamed - from) / 1024).unwrap_or(u32::MAX);
        f64::from(kib) * 1024.0 / seconds < before * FASTER
    }
}

/// Whether what is seen asks for a stream.
fn judge(sight: &Sight) -> Option<Reason> {
    let rtt = sight.rtt?;
    let traffic = sight.traffic.filter(|traffic| traffic.sent > 0);
    let loss = traffic.map_or(0.0, |traffic| traffic.loss());
    let bound = bound(rtt, loss);
    let before = traffic.map_or(0.0, |traffic| traffic.bulk);
    let over = traffic.map(|traffic| traffic.over);
    let (lost, spans) = LASTING;
    let lasting = traffic.is_some_and(|traffic| traffic.lost >= lost && traffic.spans >= spans);
    if lasting && loss >= HEAVY && traffic.is_some_and(|traffic| traffic.sent >= HEAVY_LEAST) {
        return Some(Reason { rides: Rides::All, loss, over, bound, before });
    }
    if let Some(loss) = sight.probes.filter(|loss| *loss >= 2.0 * HEAVY) {
        // A probe goes there and back.
        return Some(Reason { rides: Rides::All, loss, over: None, bound: self::bound(rtt, loss), before });
    }
    let bulk = before >= bound * BULK_SHARE;
    (lasting && bulk && bound < ENOUGH).then_some(Reason { rides: Rides::Tcp, loss, over, bound, before })
}

/// What a TCP flow reaches over a way with such a round trip and loss, bytes a second.
fn bound(rtt: Duration, loss: f64) -> f64 {
    MATHIS * SEGMENT / (rtt.as_secs_f64().max(1e-6) * loss.max(1e-9).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const RTT: Duration = Duration::from_millis(80);
    const TCP: Option<Rides> = Some(Rides::Tcp);
    const ALL: Option<Rides> = Some(Rides::All);

    #[test]
    fn what_a_flow_reaches_is_what_was_measured() {
        // Milliseconds, loss, and Mbit/s of cubic over direct UDP in the lab.
        for (rtt, loss, measured) in [(80, 0.001, 7.8), (80, 0.005, 2.0), (80, 0.01, 1.8), (160, 0.02, 0.3)] {
            let reached = bound(Duration::from_millis(rtt), loss) * 8.0 / 1e6;
            assert!(
                (0.4..2.0).contains(&(reached / measured)),
                "{rtt} ms, {loss}: {reached:.1} of {measured}"
            );
        }
    }

    #[test]
    fn what_is_seen_decides_what_rides_the_stream() {
        let mbit = |n: f64| n * 1e6 / 8.0;
        for (what, rtt, (sent, lost, spans), bulk, probes, wanted) in [
            ("clean", 80, (9000, 0, 0), mbit(100.0), Some(0.0), None),
            ("0.1 % at 80 ms", 80, (7000, 7, 4), mbit(7.0), Some(0.0), TCP),
            ("1 % at 80 ms", 80, (1700, 17, 5), mbit(1.8), Some(0.05), TCP),
            ("a starved flow", 160, (270, 5, 3), mbit(0.3), Some(0.05), TCP),
            ("the same, of somebody who types", 160, (270, 5, 3), mbit(0.01), Some(0.05), None),
            ("1 % near by", 1, (90_000, 900, 5), mbit(100.0), Some(0.05), None),
            ("one full queue", 80, (7000, 300, 1), mbit(7.0), Some(0.0), None),
            ("three packets", 80, (700, 3, 3), mbit(5.0), Some(0.0), None),
            ("12 %", 80, (700, 84, 5), mbit(0.5), Some(0.15), ALL),
            ("12 % of voice", 20, (500, 60, 5), 0.0, Some(0.15), ALL),
            ("12 % of a few", 20, (30, 4, 3), 0.0, Some(0.15), None),
            ("nothing but probes, and a quarter of them lost", 20, (0, 0, 0), 0.0, Some(0.25), ALL),
            ("probes are too few yet", 20, (0, 0, 0), 0.0, None, None),
        ] {
            let traffic = Measured { over: 10 * S, sent, lost, spans, bulk };
            let rtt = Some(Duration::from_millis(rtt));
            let sight = Sight { rtt, traffic: Some(traffic), probes, stream: false, streamed: 0 };
            assert_eq!(judge(&sight).map(|reason| reason.rides), wanted, "{what}");
        }
        assert_eq!(judge(&Sight { rtt: None, ..lossy() }), None, "there is no UDP");
    }

    #[test]
    fn tcp_moves_when_a_stream_is_there_and_back_after_its_stay_each_time_twice_as_long() {
        let (mut choice, mut now) = (Choice::new(origin()), origin());
        let mut stays = Vec::new();
        for _ in 0..7 {
            choice.consider(&lossy(), now);
            assert_eq!((choice.rides(), choice.wants_stream()), (None, true), "none is there yet");
            now += S;
            let began = now;
            ride(&mut choice, now);
            while choice.rides() == TCP {
                now += S;
                choice.consider(&Sight { stream: true, ..calm() }, now);
            }
            stays.push((now - began).as_secs());
            assert!(!choice.wants_stream());
            now += 20 * S;
        }
        assert_eq!(stays, [60, 120, 240, 480, 960, 1800, 1800]);
        now += RELAPSE;
        ride(&mut choice, now);
        choice.consider(&Sight { stream: true, ..calm() }, now + STAY.0);
        assert_eq!(choice.rides(), None, "after so long without it the stay is short again");
    }

    #[test]
    fn udp_that_still_loses_probes_does_not_get_anything_back() {
        let (mut choice, t0) = (Choice::new(origin()), origin());
        ride(&mut choice, t0);
        let bad = Sight { stream: true, probes: Some(0.1), ..calm() };
        for minute in 1..5 {
            choice.consider(&bad, t0 + minute * STAY.0);
            assert_eq!(choice.rides(), TCP);
        }
        choice.consider(&Sight { stream: true, rtt: None, ..calm() }, t0 + 6 * STAY.0);
        assert_eq!(choice.rides(), TCP, "nor does UDP that is not there");
        choice.consider(&Sight { stream: true, ..calm() }, t0 + 7 * STAY.0);
        assert_eq!(choice.rides(), None);
    }

    #[test]
    fn a_move_that_made_nothing_faster_is_taken_back_and_not_repeated_for_long() {
        // Bytes a second over the stream, the pause of the traffic if there is one, and whether it stays there.
        for (rate, pause, stays) in
            [(225_000, None, false), (2_000_000, None, true), (225_000, Some(10), true)]
        {
            let (mut choice, t0) = (Choice::new(origin()), origin());
            ride(&mut choice, t0);
            let mut streamed = 0;
            for second in 1..30 {
                streamed += if pause.is_none_or(|pause| second < pause) { rate } else { 0 };
                choice.consider(&Sight { streamed, stream: true, ..calm() }, t0 + second * S);
            }
            assert_eq!(choice.rides().is_some(), stays, "{rate} {pause:?}");
            if !stays {
                choice.consider(&Sight { stream: true, ..lossy() }, t0 + 60 * S);
                assert_eq!((choice.rides(), choice.barren(t0 + 60 * S).is_some()), (None, true));
                choice.consider(&Sight { stream: true, ..lossy() }, t0 + 30 * S + BARREN);
                assert_eq!(choice.rides(), TCP);
            }
        }
    }

    #[test]
    fn a_stream_is_asked_for_once_the_peer_knows_and_then_ever_more_rarely() {
        let (mut choice, t0) = (Choice::new(origin()), origin());
        choice.on_asked(t0);
        choice.consider(&lossy(), t0);
        choice.on_told(t0 - S);
        assert!(!choice.is_due(t0), "that probe left before there was a wish");
        choice.on_told(t0);
        let (mut now, mut asked) = (t0, Vec::new());
        while now < t0 + 600 * S {
            choice.consider(&lossy(), now);
            if choice.is_due(now) {
                choice.on_asked(now);
                asked.push((now - t0).as_secs());
            }
            now += S;
        }
        assert_eq!(asked, [0, 30, 90, 210, 450]);
        choice.consider(&calm(), now + WISH);
        assert!(!choice.wants_stream(), "nothing confirms the wish any more");
    }

    #[test]
    fn a_stream_that_is_gone_carries_nothing() {
        let (mut choice, t0) = (Choice::new(origin()), origin());
        ride(&mut choice, t0);
        choice.consider(&calm(), t0 + S);
        assert_eq!(choice.rides(), None);
    }

    /// Gives the choice a reason and a stream.
    fn ride(choice: &mut Choice, now: Instant) {
        choice.consider(&Sight { stream: true, ..lossy() }, now);
        assert_eq!(choice.rides(), TCP);
    }

    /// 1 % of a flow that reaches 1.8 Mbit/s.
    fn lossy() -> Sight {
        let traffic = Measured { over: 10 * S, sent: 1700, lost: 17, spans: 5, bulk: 225_000.0 };
        Sight { rtt: Some(RTT), traffic: Some(traffic), probes: Some(0.0), stream: false, streamed: 0 }
    }

    fn calm() -> Sight {
        Sight { traffic: None, ..lossy() }
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        static ORIGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *ORIGIN
    }
}
