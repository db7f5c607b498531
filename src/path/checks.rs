//! Connectivity checks as they come in: whose they are, whether they are news, and which way they prove.

use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::transmit::Via;
use crate::path::Believed;
use crate::path::Ctx;
use crate::path::MAX_INTRODUCTIONS;
use crate::path::Means;
use crate::path::Outcome;
use crate::path::Path;
use crate::path::leg::Leg;
use crate::punch::keys::Check;
use crate::punch::keys::PairKeys;
use crate::punch::keys::Seen;
use crate::wire::stun;
use crate::wire::stun::Report;
use crate::wire::stun::TransactionId;

impl Path {
    /// A connectivity check that claims to belong to one of our introductions came by `leg`. False if it is forged.
    pub fn handle_check(
        &mut self,
        leg: Leg,
        received: &stun::Received<'_>,
        attempt: AttemptId,
        ctx: &mut Ctx<'_>,
    ) -> bool {
        let Some((keys, check)) = self.judge(attempt, received) else { return false };
        if !self.is_wanted(leg) {
            return false;
        }
        let now = ctx.now.instant;
        self.opens_super_packets = received.message.capabilities() & stun::SUPER_PACKETS != 0;
        let report = received.message.report();
        if let Some(report) = report {
            self.peer_wants_stream = report.wants_stream;
        }
        match check {
            Check::Request(transaction) => {
                self.heard(leg, now);
                let report = self.report(leg).filter(|_| report.is_some());
                leg.push(ctx.outbox, &keys.success(transaction, leg.to, report));
                if !self.relays.owns(leg) {
                    self.ways.meet(leg, &keys, self.carrier, now);
                    if let Some(attempt) = self.attempts.iter_mut().find(|a| a.keys().attempt() == attempt)
                        && matches!(leg.via, Via::Udp(_))
                    {
                        attempt.handle_request(leg.via, leg.to, now);
                    }
                }
            }
            Check::Success(transaction, _)
                if self.answered(leg, &keys, transaction, report, ctx.mtu, now) =>
            {
                self.heard(leg, now);
            }
            Check::Success(..) => return false,
        }
        self.drive(ctx);
        true
    }

    fn judge(&mut self, attempt: AttemptId, received: &stun::Received<'_>) -> Option<(PairKeys, Check)> {
        let believed = self.believed.iter_mut().find(|b| b.keys.attempt() == attempt)?;
        let check = believed.keys.judge(received)?;
        if let Check::Request(request) = check
            && !believed.seen.accept(request)
        {
            return None;
        }
        Some((believed.keys.clone(), check))
    }

    /// How the peer's packets fare on a way.
    fn report(&self, leg: Leg) -> Option<Report> {
        let arrived = self.health(leg)?.tally().arrived();
        Some(Report { arrived, wants_stream: self.choice.wants_stream() })
    }

    /// Takes the keys of a new introduction; forgets the oldest that nothing uses any more.
    pub(super) fn believe(&mut self, keys: PairKeys) {
        while self.believed.len() >= MAX_INTRODUCTIONS {
            let in_use = |id: AttemptId| {
                self.attempts.iter().any(|a| a.keys().attempt() == id)
                    || self.ways.healths().any(|(_, keys, _)| keys.attempt() == id)
                    || self.relays.keys().any(|keys| keys.attempt() == id)
            };
            let Some(at) = self.believed.iter().position(|b| !in_use(b.keys.attempt())) else { break };
            self.believed.remove(at);
        }
        self.believed.push(Believed { keys, seen: Seen::default() });
    }

    /// The peer answered by `leg`. False if that answers nothing that we asked there.
    fn answered(
        &mut self,
        leg: Leg,
        keys: &PairKeys,
        transaction: TransactionId,
        report: Option<Report>,
        mtu: usize,
        now: Instant,
    ) -> bool {
        if self.ways.size_answered(leg, transaction, mtu, now) {
            return true;
        }
        if let Some(health) = self.health_mut(leg)
            && let Some(rtt) = health.on_answer(transaction, report.map(|report| report.arrived), now)
        {
            if report.is_some() {
                self.choice.on_told(now.checked_sub(rtt).unwrap_or(now));
            }
            return true;
        }
        if let Some((id, rtt)) = self.streams.handle_success(keys, transaction, now) {
            if leg.via != Via::Stream(id) {
                return false;
            }
            self.ways.meet(leg, keys, self.carrier, now);
            if let Some(health) = self.health_mut(leg) {
                health.on_round_trip(rtt, now);
            }
            self.on_direct(leg, now);
            return true;
        }
        let attempt = self.attempts.iter_mut().find(|a| a.keys().attempt() == keys.attempt());
        let Some(attempt) = attempt else { return false };
        let (_, _, before) = attempt.tally();
        let found = attempt.handle_success(transaction, now);
        if before == 0 && attempt.tally().2 > 0 {
            let first = self.effort.rung() == 0;
            self.streams.tell(Outcome::Opened { means: Means::Udp, first });
        }
        // The answer must come from where the question went, or the way is not symmetric (RFC 8445 7.2.5.2.1).
        let Some(found) = found.filter(|f| (f.via, f.to) == (leg.via, leg.to) && !self.relays.owns(leg))
        else {
            return false;
        };
        self.ways.meet(leg, keys, self.carrier, now);
        if let Some(health) = self.health_mut(leg) {
            health.on_round_trip(found.rtt, now);
        }
        self.on_direct(leg, now);
        true
    }

    /// A direct way was proven.
    fn on_direct(&mut self, leg: Leg, now: Instant) {
        if leg.is_direct_stream() {
            self.choice.on_stream(now);
        }
        self.effort = self.effort.succeeded(now);
        self.trouble = None;
        self.last_tally = None;
    }
}
