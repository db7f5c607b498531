//! Connectivity checks as they come in: whose they are, whether they are news, and which way they prove.

use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::transmit::Via;
use crate::path::Believed;
use crate::path::Ctx;
use crate::path::MAX_INTRODUCTIONS;
use crate::path::Path;
use crate::path::leg::Leg;
use crate::punch::keys::Check;
use crate::punch::keys::PairKeys;
use crate::punch::keys::Seen;
use crate::wire::stun;
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
        match check {
            Check::Request(transaction) => {
                self.heard(leg, now);
                leg.push(ctx.outbox, &keys.success(transaction, leg.to));
                if !self.relays.owns(leg) {
                    self.ways.meet(leg, &keys, self.carrier, now);
                    if let Some(attempt) = self.attempts.iter_mut().find(|a| a.keys().attempt() == attempt)
                        && matches!(leg.via, Via::Udp(_))
                    {
                        attempt.handle_request(leg.via, leg.to, now);
                    }
                }
            }
            Check::Success(transaction, _) if self.answered(leg, &keys, transaction, ctx.mtu, now) => {
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
        mtu: usize,
        now: Instant,
    ) -> bool {
        if self.ways.size_answered(leg, transaction, mtu, now) {
            return true;
        }
        if let Some(health) = self.health_mut(leg)
            && health.on_answer(transaction, now).is_some()
        {
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
            self.on_direct(now);
            return true;
        }
        let found = self
            .attempts
            .iter_mut()
            .filter(|a| a.keys().attempt() == keys.attempt())
            .find_map(|a| a.handle_success(transaction, now));
        // The answer must come from where the question went, or the way is not symmetric (RFC 8445 7.2.5.2.1).
        let Some(found) = found.filter(|f| (f.via, f.to) == (leg.via, leg.to) && !self.relays.owns(leg))
        else {
            return false;
        };
        self.ways.meet(leg, keys, self.carrier, now);
        if let Some(health) = self.health_mut(leg) {
            health.on_round_trip(found.rtt, now);
        }
        self.on_direct(now);
        true
    }

    /// A direct way was proven.
    fn on_direct(&mut self, now: Instant) {
        self.effort = self.effort.succeeded(now);
        self.trouble = None;
        self.last_tally = None;
    }
}
