//! How one way is doing: round trip, loss, and whether it is still there.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::nat::behavior::keeping;
use crate::path::leg::Leg;
use crate::path::tally::Count;
use crate::path::tally::Load;
use crate::path::tally::Tally;
use crate::wire::stun::TransactionId;

/// A probe without an answer is lost after this: twice the round trip, within bounds.
const LOST_AFTER: (Duration, Duration) = (ms(300), ms(2000));
/// Traffic went out and nothing came back for this long (or twice the round trip): look whether the way is still there.
const SUSPICIOUS_AFTER: Duration = ms(500);
/// Between probes of a way under suspicion.
const URGENT: Duration = ms(250);
/// Between probes of the way that carries traffic: what RTT and loss in `status` are made of.
const CARRYING: Duration = ms(2000);
/// So long after the last packet a way still counts as carrying: people pause. Probes for nobody would keep radios awake.
pub const PAUSE: Duration = ms(30_000);
/// Between probes of a way that only has to be kept open, unless the own NAT is known to forget sooner: below 30 s, the shortest UDP mapping lifetime in common use
/// (Linux conntrack, one-way flows; RFC 4787 REQ-5 would give two minutes).
const KEEPING: Duration = ms(20_000);
/// Between probes of a dead way: most outages end, and the way back should not need the broker.
const REVIVING: Duration = ms(5000);
/// A dead way is forgotten after this.
const FORGET_AFTER: Duration = ms(120_000);
/// Lost probes in a row, with nothing else heard either, that make a way dead.
const DEAD_AFTER: u32 = 3;
/// Lost probes in a row, with the peer still heard, that make a way dead: what leaves does not arrive. More than
/// [`DEAD_AFTER`], because a way that loses a third of all round trips is still better than none.
const DEAF_AFTER: u32 = 6;
/// Probes that `loss` looks back on.
const WINDOW: usize = 20;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a way is good for at the moment: decides how often it is probed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duty {
    /// Carries traffic, and there was some lately: until then, if no more comes.
    Carrying(Instant),
    /// Is kept open.
    Standby,
}

/// What carries, and until when it counts as that if there is no more traffic.
#[derive(Clone, Copy, Debug)]
pub struct Carrying {
    /// The carrier.
    pub leg: Leg,
    /// Another way that carries some of the traffic, or would if it lost less.
    pub beside: Option<Leg>,
    /// Until when.
    pub until: Instant,
}

impl Duty {
    /// Of `leg`, when another or the same carries.
    #[must_use]
    pub fn of(leg: Leg, carrying: Option<Carrying>) -> Self {
        match carrying {
            Some(carrying) if carrying.leg == leg || carrying.beside == Some(leg) => {
                Self::Carrying(carrying.until)
            }
            Some(_) | None => Self::Standby,
        }
    }
}

/// Probes and their answers on one way.
#[derive(Debug)]
pub struct Health {
    srtt: Option<Duration>,
    outstanding: VecDeque<(TransactionId, Instant, Count)>,
    tally: Tally,
    history: VecDeque<bool>,
    /// Lost since something was heard.
    lost_in_row: u32,
    /// Lost since one was answered.
    unanswered: u32,
    heard: Instant,
    probed: Option<Instant>,
    waiting_since: Option<Instant>,
    proven: bool,
    /// Between probes while nobody talks.
    keeping: Duration,
}

impl Health {
    /// Of a way on which something authentic was just heard.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            srtt: None,
            outstanding: VecDeque::new(),
            tally: Tally::default(),
            history: VecDeque::with_capacity(WINDOW),
            lost_in_row: 0,
            unanswered: 0,
            heard: now,
            probed: None,
            waiting_since: None,
            proven: false,
            keeping: KEEPING,
        }
    }

    /// The own NAT's mapping for this way is known to live for so many seconds.
    pub fn on_lifetime(&mut self, lifetime: Option<u16>) {
        self.keeping = keeping(KEEPING, lifetime);
    }

    /// A probe leaves.
    pub fn on_probe(&mut self, id: TransactionId, now: Instant) {
        self.outstanding.push_back((id, now, self.tally.sent()));
        self.probed = Some(now);
    }

    /// A round trip was measured elsewhere (by the attempt that found the way).
    pub fn on_round_trip(&mut self, rtt: Duration, now: Instant) {
        if self.is_dead() {
            // What was lost in the outage says nothing about the way as it is now.
            self.history.clear();
            self.outstanding.clear();
        }
        // RFC 6298 2.3: alpha = 1/8.
        self.srtt = Some(self.srtt.map_or(rtt, |srtt| (srtt * 7 + rtt) / 8));
        self.proven = true;
        self.lost_in_row = 0;
        self.unanswered = 0;
        self.on_heard(now);
    }

    /// An answer came, perhaps with the count of our packets that `arrived`; its round trip if it answers a probe that is
    /// under way.
    pub fn on_answer(&mut self, id: TransactionId, arrived: Option<u32>, now: Instant) -> Option<Duration> {
        let at = self.outstanding.iter().position(|(sent, ..)| *sent == id)?;
        let (_, sent, count) = self.outstanding.remove(at)?;
        let rtt = now.saturating_duration_since(sent);
        self.on_round_trip(rtt, now);
        if let Some(arrived) = arrived {
            self.tally.on_report(sent, count, arrived);
        }
        self.record(true);
        Some(rtt)
    }

    /// Something authentic came this way. A dead way is not revived by that, only probed at once: it may have died in
    /// the other direction alone.
    pub fn on_heard(&mut self, now: Instant) {
        self.heard = now;
        self.waiting_since = None;
        if !self.is_dead() {
            self.lost_in_row = 0;
        }
    }

    /// Traffic left this way.
    pub fn on_sent(&mut self, load: Load, now: Instant) {
        self.tally.on_sent(load);
        self.waiting_since.get_or_insert(now);
    }

    /// A packet of the tunnel came this way.
    pub fn on_arrived(&mut self) {
        self.tally.on_arrived();
    }

    /// How the tunnel's packets fare here.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The peer sends its traffic by a worse way. Unless this one was heard a moment ago, it has given it up: so do we,
    /// until our next probe, which leaves now, is answered.
    pub fn on_deserted(&mut self, now: Instant) {
        if now >= self.heard + SUSPICIOUS_AFTER && !self.is_dead() {
            self.lost_in_row = DEAD_AFTER;
            self.probed = None;
        }
    }

    /// Counts probes that will not be answered any more.
    pub fn expire(&mut self, now: Instant) {
        let patience = self.patience();
        while let Some((_, sent, _)) = self.outstanding.front()
            && *sent + patience <= now
        {
            let after_heard = *sent >= self.heard;
            self.outstanding.pop_front();
            self.record(false);
            self.lost_in_row += u32::from(after_heard);
            self.unanswered += 1;
        }
    }

    /// When the next probe should leave.
    #[must_use]
    pub fn next_probe(&self, duty: Duty) -> Instant {
        let Some(probed) = self.probed else { return self.heard };
        if self.is_dead() {
            let gap = if self.heard > probed { URGENT } else { REVIVING };
            return probed + gap;
        }
        let regular = match duty {
            Duty::Carrying(until) if probed + CARRYING < until => probed + CARRYING,
            Duty::Carrying(_) | Duty::Standby => probed.max(self.heard) + self.keeping,
        };
        let suspicious = SUSPICIOUS_AFTER.max(self.srtt.unwrap_or_default() * 2);
        match self.waiting_since {
            Some(since) => regular.min((since + suspicious).max(probed + URGENT)),
            None if self.unanswered > 0 => regular.min(probed + URGENT),
            None => regular,
        }
    }

    /// When [`Self::expire`] has something to do.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.outstanding.front().map(|(_, sent, _)| *sent + self.patience())
    }

    /// Nobody answers here any more.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lost_in_row >= DEAD_AFTER || self.unanswered >= DEAF_AFTER
    }

    /// Dead for so long that it is not worth a probe.
    #[must_use]
    pub fn is_forgotten(&self, now: Instant) -> bool {
        self.is_dead() && now >= self.heard + FORGET_AFTER
    }

    /// One of our own probes was answered, so it works in both directions.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// When something authentic last came this way.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Smoothed round trip.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// Share of the last probes that went unanswered; `None` before the first is decided.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        let lost = self.history.iter().filter(|answered| !**answered).count();
        let all = u32::try_from(self.history.len()).ok().filter(|n| *n > 0)?;
        Some(f64::from(u32::try_from(lost).unwrap_or(all)) / f64::from(all))
    }

    /// The same, once there were as many probes as it looks back on.
    #[must_use]
    pub fn settled_loss(&self) -> Option<f64> {
        self.loss().filter(|_| self.history.len() == WINDOW)
    }

    fn patience(&self) -> Duration {
        let (least, most) = LOST_AFTER;
        (self.srtt.map_or(most, |srtt| srtt * 2 + ms(50))).clamp(least, most)
    }

    fn record(&mut self, answered: bool) {
        if self.history.len() == WINDOW {
            self.history.pop_front();
        }
        self.history.push_back(answered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_way_under_traffic_is_dead_within_two_seconds_and_revives_on_one_answer() {
        let t0 = origin();
        let mut h = Health::new(t0);
        h.on_round_trip(ms(40), t0);
        h.on_sent(Load::default(), t0 + ms(10));
        let (mut now, mut id) = (t0, 0);
        while !h.is_dead() {
            now = h
                .next_probe(Duty::Carrying(t0 + PAUSE))
                .min(h.next_expiry().unwrap_or(now + KEEPING))
                .max(now);
            h.expire(now);
            if h.next_probe(Duty::Carrying(t0 + PAUSE)) <= now && !h.is_dead() {
                id += 1;
                h.on_probe(transaction(id), now);
            }
        }
        assert!(now - t0 < ms(2000), "dead after {:?}", now - t0);
        assert!((3..=6).contains(&id), "{id} probes");
        h.on_probe(transaction(99), now);
        h.on_heard(now + ms(1));
        assert!(h.is_dead(), "the peer's words do not say that ours arrive");
        assert_eq!(h.next_probe(Duty::Carrying(t0 + PAUSE)), now + URGENT, "but that is asked soon");
        assert!(h.on_answer(transaction(99), None, now + ms(2)).is_some());
        assert!(!h.is_dead());
    }

    #[test]
    fn an_idle_way_is_only_kept_open() {
        let t0 = origin();
        let mut h = Health::new(t0);
        assert_eq!(h.next_probe(Duty::Standby), t0, "a new way is probed at once");
        h.on_probe(transaction(1), t0);
        assert_eq!(h.on_answer(transaction(1), None, t0 + ms(30)), Some(ms(30)));
        assert_eq!(h.next_probe(Duty::Standby), t0 + ms(30) + KEEPING);
        assert_eq!(h.next_probe(Duty::Carrying(t0 + PAUSE)), t0 + CARRYING);
        assert_eq!(h.next_probe(Duty::Carrying(t0 + CARRYING)), t0 + ms(30) + KEEPING, "nobody talks");
        h.on_lifetime(Some(10));
        assert_eq!(h.next_probe(Duty::Standby), t0 + ms(30) + ms(7500), "before the NAT forgets it");
        h.on_lifetime(None);
        assert_eq!(h.on_answer(transaction(1), None, t0 + ms(31)), None, "one answer a probe");
    }

    #[test]
    fn loss_is_the_share_of_unanswered_probes() {
        let t0 = origin();
        let mut h = Health::new(t0);
        assert_eq!(h.loss(), None);
        for i in 0..4 {
            h.on_probe(transaction(i), t0);
        }
        for i in 0..3 {
            let _ = h.on_answer(transaction(i), None, t0 + ms(10));
        }
        h.expire(t0 + ms(3000));
        assert_eq!(h.loss(), Some(0.25));
        assert!(!h.is_dead());
    }

    #[test]
    fn a_way_that_comes_back_starts_without_the_losses_of_the_outage() {
        let t0 = origin();
        let mut h = Health::new(t0);
        for i in 0..4 {
            h.on_probe(transaction(i), t0);
        }
        h.expire(t0 + ms(5000));
        assert!(h.is_dead());
        assert_eq!(h.loss(), Some(1.0));
        h.on_round_trip(ms(40), t0 + ms(6000));
        assert_eq!((h.is_dead(), h.loss()), (false, None));
    }

    #[test]
    fn a_dead_way_is_forgotten_in_the_end() {
        let t0 = origin();
        let mut h = Health::new(t0);
        for i in 0..3 {
            h.on_probe(transaction(i), t0);
        }
        h.expire(t0 + ms(5000));
        assert!(h.is_dead());
        assert!(!h.is_forgotten(t0 + ms(5000)));
        assert!(h.is_forgotten(t0 + FORGET_AFTER));
    }

    #[test]
    fn a_way_on_which_the_peer_is_heard_but_never_answers_is_dead_too() {
        let t0 = origin();
        let mut h = Health::new(t0);
        h.on_round_trip(ms(40), t0);
        let mut now = t0;
        for i in 0..DEAF_AFTER {
            assert!(!h.is_dead());
            h.on_probe(transaction(u8::try_from(i).unwrap()), now);
            h.on_heard(now + ms(100));
            now += ms(300);
            h.expire(now);
        }
        assert!(h.is_dead());
    }

    #[test]
    fn a_way_that_the_peer_left_is_left_until_a_probe_is_answered() {
        let t0 = origin();
        let mut h = Health::new(t0);
        h.on_probe(transaction(1), t0);
        h.on_round_trip(ms(40), t0);
        h.on_deserted(t0 + ms(499));
        assert!(!h.is_dead(), "its messages may have crossed");
        h.on_deserted(t0 + ms(500));
        assert!(h.is_dead());
        assert!(h.next_probe(Duty::Carrying(t0 + PAUSE)) <= t0 + ms(500));
        h.on_probe(transaction(2), t0 + ms(500));
        assert!(h.on_answer(transaction(2), None, t0 + ms(540)).is_some());
        assert!(!h.is_dead());
    }

    fn transaction(i: u8) -> TransactionId {
        TransactionId([i; 12])
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
