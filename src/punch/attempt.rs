//! One attempt: checks to every target, on a ladder, paced, until each is answered or the ladder is spent.

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::rng::Rng;
use crate::base::transmit::Via;
use crate::punch::keys::Numbers;
use crate::punch::keys::PairKeys;
use crate::wire::stun::TransactionId;

/// When the probes of one check leave, counted from its first. Short first: the other side's filter opens a moment after
/// ours; the last ones cover a peer whose offer was late.
pub const LADDER: [Duration; 7] = [ms(0), ms(100), ms(250), ms(500), ms(1000), ms(2000), ms(3500)];
/// How long an attempt may take: the ladder and one slow round trip.
pub const DEADLINE: Duration = ms(5000);
/// Between two probes of one attempt (RFC 8445 14.2 has 50 ms for unknown bandwidth and allows less; sixteen
/// candidates must not cost 0.8 s here).
pub const PACE: Duration = ms(5);
/// Targets from the offer, ports that a search has found, and addresses that the peer's checks turned out to come from.
pub const MAX_CHECKS: usize = 32;
/// The budget of one attempt: every check to the end of its ladder.
pub const MAX_PROBES: usize = MAX_CHECKS * LADDER.len();

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Drives the checks of one introduction.
#[derive(Debug)]
pub struct Attempt {
    keys: PairKeys,
    checks: Vec<Check>,
    started: Instant,
    paced: Instant,
    probes: usize,
    answers: usize,
}

#[derive(Debug)]
struct Check {
    via: Via,
    to: SocketAddr,
    first: Instant,
    /// When each probe left, until it is answered.
    sent: Vec<(TransactionId, Option<Instant>)>,
    answered: bool,
}

/// A probe to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Probe {
    /// From which socket.
    pub via: Via,
    /// Where.
    pub to: SocketAddr,
    /// What.
    pub message: Vec<u8>,
}

/// A target that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The socket that asked it.
    pub via: Via,
    /// Which.
    pub to: SocketAddr,
    /// After how long.
    pub rtt: Duration,
}

impl Attempt {
    /// Checks `targets` from `now` on, from the data sockets.
    #[must_use]
    pub fn new(keys: PairKeys, targets: Vec<SocketAddr>, now: Instant) -> Self {
        let mut attempt = Self { keys, checks: Vec::new(), started: now, paced: now, probes: 0, answers: 0 };
        for to in targets {
            attempt.check(Via::udp_for(to), to, now);
        }
        attempt
    }

    /// The keys of this introduction.
    #[must_use]
    pub fn keys(&self) -> &PairKeys {
        &self.keys
    }

    /// An authentic request came from `from` to the socket `via`: check it from there at once, whatever its ladder says (a
    /// triggered check, RFC 8445 7.3.1.4). It is how a peer behind a NAT that maps per destination is found.
    pub fn handle_request(&mut self, via: Via, from: SocketAddr, now: Instant) {
        match self.checks.iter_mut().find(|check| (check.via, check.to) == (via, from)) {
            Some(check) if check.sent.is_empty() => check.first = now,
            Some(_) => {}
            None => self.check(via, from, now),
        }
    }

    /// Checks `to` from the socket `via`, from `now` on.
    pub fn check(&mut self, via: Via, to: SocketAddr, now: Instant) {
        if self.checks.len() < MAX_CHECKS {
            self.checks.push(Check { via, to, first: now, sent: Vec::new(), answered: false });
        }
    }

    /// An authentic answer came. `None` if it answers nothing that is under way; no probe is answered twice.
    pub fn handle_success(&mut self, transaction: TransactionId, now: Instant) -> Option<Answered> {
        for check in &mut self.checks {
            let Some((_, at)) = check.sent.iter_mut().find(|(id, _)| *id == transaction) else { continue };
            let at = at.take()?;
            self.answers += usize::from(!check.answered);
            check.answered = true;
            return Some(Answered { via: check.via, to: check.to, rtt: now.saturating_duration_since(at) });
        }
        None
    }

    /// The next probe, if one is due.
    pub fn poll(&mut self, now: Instant, numbers: &mut Numbers, rng: &mut Rng) -> Option<Probe> {
        if now < self.paced || self.is_over(now) {
            return None;
        }
        let keys = &self.keys;
        let check = self
            .checks
            .iter_mut()
            .filter(|check| check.due().is_some_and(|due| due <= now))
            .min_by_key(|check| check.due())?;
        let transaction = numbers.next(rng);
        check.sent.push((transaction, Some(now)));
        self.paced = now + PACE;
        self.probes += 1;
        Some(Probe { via: check.via, to: check.to, message: keys.request(transaction, 0) })
    }

    /// When to poll again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.checks.iter().filter_map(Check::due).min()?;
        Some(due.max(self.paced).min(self.started + DEADLINE))
    }

    /// Whether nothing more will come of it.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.started + DEADLINE
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Probes sent, targets tried, targets that answered.
    #[must_use]
    pub fn tally(&self) -> (usize, usize, usize) {
        (self.probes, self.checks.len(), self.answers)
    }
}

impl Check {
    fn due(&self) -> Option<Instant> {
        if self.answered {
            return None;
        }
        LADDER.get(self.sent.len()).map(|after| self.first + *after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::AttemptId;
    use crate::base::id::SocketId;
    use crate::base::rng::Seed;
    use crate::identity::agreement::Agreements;
    use crate::identity::keys::WgSecret;
    use crate::punch::keys::Side;

    #[test]
    fn an_unanswered_attempt_stays_within_its_budget_and_ends() {
        let t0 = origin();
        let targets: Vec<SocketAddr> = (0..40).map(|i| SocketAddr::from(([192, 0, 2, i], 9))).collect();
        let mut attempt = Attempt::new(keys(), targets, t0);
        let sent = drain(&mut attempt, t0);
        assert_eq!(sent.len(), MAX_PROBES);
        assert!(sent.windows(2).all(|w| w[1].0 - w[0].0 >= PACE), "paced");
        assert!(attempt.is_over(t0 + DEADLINE));
        assert_eq!(attempt.tally(), (MAX_PROBES, MAX_CHECKS, 0));
    }

    #[test]
    fn the_ladder_of_one_target() {
        let t0 = origin();
        let to = SocketAddr::from(([192, 0, 2, 1], 9));
        let sent = drain(&mut Attempt::new(keys(), vec![to], t0), t0);
        let gaps: Vec<u128> = sent.iter().map(|(at, _)| (*at - t0).as_millis()).collect();
        assert_eq!(gaps, [0, 100, 250, 500, 1000, 2000, 3500]);
    }

    #[test]
    fn an_answer_ends_the_ladder_and_tells_the_round_trip() {
        let t0 = origin();
        let to = SocketAddr::from(([192, 0, 2, 1], 9));
        let mut attempt = Attempt::new(keys(), vec![to], t0);
        let (mut numbers, mut rng) = (Numbers::default(), Rng::new(Seed([0; 32])));
        assert!(attempt.poll(t0, &mut numbers, &mut rng).is_some());
        let id = attempt.checks[0].sent[0].0;
        assert_eq!(attempt.handle_success(TransactionId([0; 12]), t0), None);
        let answered = attempt.handle_success(id, t0 + ms(40));
        assert_eq!(answered, Some(Answered { via: Via::udp_for(to), to, rtt: ms(40) }));
        assert_eq!(attempt.handle_success(id, t0 + ms(50)), None, "the same answer again");
        assert_eq!(attempt.poll_timeout(), None);
    }

    #[test]
    fn a_request_from_an_unknown_address_is_checked_at_once() {
        let t0 = origin();
        let mut attempt = Attempt::new(keys(), vec![], t0);
        let from = SocketAddr::from(([192, 0, 2, 77], 1024));
        let via = Via::Udp(SocketId(7));
        attempt.handle_request(via, from, t0);
        attempt.handle_request(via, from, t0);
        let mut rng = Rng::new(Seed([0; 32]));
        let probe = attempt.poll(t0, &mut Numbers::default(), &mut rng).unwrap();
        assert_eq!((probe.via, probe.to), (via, from));
        assert_eq!(attempt.tally(), (1, 1, 0));
    }

    fn drain(attempt: &mut Attempt, t0: Instant) -> Vec<(Instant, Probe)> {
        let (mut numbers, mut rng) = (Numbers::default(), Rng::new(Seed([0; 32])));
        let (mut now, mut sent) = (t0, Vec::new());
        while !attempt.is_over(now) {
            while let Some(probe) = attempt.poll(now, &mut numbers, &mut rng) {
                sent.push((now, probe));
            }
            let Some(next) = attempt.poll_timeout() else { break };
            now = next;
        }
        sent
    }

    fn keys() -> PairKeys {
        let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
        PairKeys::new(&mut Agreements::new(a), b.public(), AttemptId([7; 16]), Side::Asking).unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
