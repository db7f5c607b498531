//! The direct ways to one peer: a handful of legs, each with the keys it is checked under and its health.

use std::time::Duration;
use std::time::Instant;

use crate::base::id::StreamId;
use crate::base::transmit::Via;
use crate::path::Ctx;
use crate::path::health::Carrying;
use crate::path::health::Duty;
use crate::path::health::Health;
use crate::path::leg::Leg;
use crate::path::size::PathSize;
use crate::punch::keys::Numbers;
use crate::punch::keys::PairKeys;
use crate::wire::stun::Report;
use crate::wire::stun::TransactionId;

/// Direct ways remembered per peer: two families, a few interfaces, the one before.
pub(super) const MAX_WAYS: usize = 8;
/// A better round trip must be better by this much, and by [`MARGIN_SHARE`], before a direct way is left for another.
const MARGIN: Duration = Duration::from_millis(3);
/// In parts of a hundred of the old round trip.
const MARGIN_SHARE: u32 = 80;
/// Direct ways, at most [`MAX_WAYS`].
#[derive(Debug, Default)]
pub(super) struct Ways {
    all: Vec<Way>,
    /// Streams that are no way any more, and still open.
    dropped: Vec<StreamId>,
}

#[derive(Debug)]
struct Way {
    leg: Leg,
    keys: PairKeys,
    health: Health,
    size: PathSize,
}

impl Ways {
    /// The peer is at `leg`: remembers the way; with too many, the least proven that does not carry is forgotten.
    pub(super) fn meet(&mut self, leg: Leg, keys: &PairKeys, carrier: Option<Leg>, now: Instant) {
        if let Some(way) = self.all.iter_mut().find(|way| way.leg == leg) {
            way.keys = keys.clone();
            return;
        }
        if self.all.len() == MAX_WAYS {
            let spare = self.all.iter().enumerate().filter(|(_, way)| Some(way.leg) != carrier);
            let least = spare.min_by_key(|(_, way)| (way.health.is_proven(), way.health.heard()));
            if let Some(at) = least.map(|(at, _)| at) {
                let spare = self.all.remove(at);
                self.dropped.extend(spare.stream());
            }
        }
        let size = PathSize::default();
        self.all.push(Way { leg, keys: keys.clone(), health: Health::new(now), size });
    }

    /// Sends the probes that are due.
    pub(super) fn probe(
        &mut self,
        carrying: Option<Carrying>,
        wants_stream: bool,
        numbers: &mut Numbers,
        ctx: &mut Ctx<'_>,
    ) {
        let now = ctx.now.instant;
        for way in &mut self.all {
            way.health.on_lifetime(ctx.lifetime(way.leg));
            if way.health.next_probe(Duty::of(way.leg, carrying)) <= now {
                let id = numbers.next(ctx.rng);
                let report = Report { arrived: way.health.tally().arrived(), wants_stream };
                way.leg.push(ctx.outbox, &way.keys.report(id, report));
                way.health.on_probe(id, now);
            }
            if way.health.is_proven()
                && matches!(way.leg.via, Via::Udp(_))
                && let Some((id, len)) = way.size.next(ctx.mtu, now, numbers, ctx.rng)
            {
                let probe = way.keys.request_of(id, len);
                ctx.outbox.push_unfragmented(way.leg.via, way.leg.to, &probe);
            }
        }
    }

    /// Takes the answer to a probe of the way's size; false if it answers none.
    pub(super) fn size_answered(
        &mut self,
        leg: Leg,
        transaction: TransactionId,
        mtu: usize,
        now: Instant,
    ) -> bool {
        let way = self.all.iter_mut().find(|way| way.leg == leg);
        way.is_some_and(|way| way.size.on_answer(transaction, mtu, now))
    }

    /// The largest packet that is known to pass `leg` unfragmented, bytes.
    pub(super) fn size(&self, leg: Leg) -> Option<usize> {
        self.all.iter().find(|way| way.leg == leg)?.size.proven()
    }

    /// The proven way over UDP with the best round trip; `carrier` if it is one.
    pub(super) fn best_datagrams(&self, carrier: Option<Leg>) -> Option<Leg> {
        let fit = || self.all.iter().filter(|way| way.works() && way.stream().is_none());
        let current = fit().find(|way| Some(way.leg) == carrier);
        current.or_else(|| fit().min_by_key(|way| way.health.rtt())).map(|way| way.leg)
    }

    /// The proven stream with the best round trip; `current` if it is one: a flow does not change streams for a little.
    pub(super) fn best_stream(&self, current: Option<Leg>) -> Option<Leg> {
        let fit = || self.all.iter().filter(|way| way.works() && way.stream().is_some());
        let current = fit().find(|way| Some(way.leg) == current);
        current.or_else(|| fit().min_by_key(|way| way.health.rtt())).map(|way| way.leg)
    }

    /// The proven way with the best round trip, among datagrams where there are some; `carrier` stays unless another is
    /// better by a margin.
    pub(super) fn best_proven(&self, carrier: Option<Leg>) -> Option<Leg> {
        let proven = || self.all.iter().filter(|way| way.works());
        let datagrams = proven().any(|way| way.stream().is_none());
        let proven = || proven().filter(|way| !datagrams || way.stream().is_none());
        let best = proven().min_by_key(|way| way.health.rtt().unwrap_or(Duration::MAX));
        let current = proven().find(|way| Some(way.leg) == carrier);
        match (best, current) {
            (Some(best), Some(current)) if !is_clearly_better(best, current) => Some(current.leg),
            (best, _) => best.map(|way| way.leg),
        }
    }

    /// The way by which the peer was heard last, proven or not.
    pub(super) fn last_heard(&self) -> Option<Leg> {
        let alive = self.all.iter().filter(|way| !way.health.is_dead());
        alive.max_by_key(|way| way.health.heard()).map(|way| way.leg)
    }

    /// Drops ways that have been dead for long, or all.
    pub(super) fn forget(&mut self, all: bool, now: Instant) {
        let dropped = &mut self.dropped;
        self.all.retain(|way| {
            let kept = !all && !way.health.is_forgotten(now);
            dropped.extend(way.stream().filter(|_| !kept));
            kept
        });
    }

    /// A stream is gone.
    pub(super) fn lose_stream(&mut self, id: StreamId) {
        self.all.retain(|way| way.stream() != Some(id));
    }

    /// A stream that was a way and is still open.
    pub(super) fn take_dropped(&mut self) -> Option<StreamId> {
        self.dropped.pop()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn healths(&self) -> impl Iterator<Item = (Leg, &PairKeys, &Health)> {
        self.all.iter().map(|way| (way.leg, &way.keys, &way.health))
    }

    pub(super) fn healths_mut(&mut self) -> impl Iterator<Item = (Leg, &mut Health)> {
        self.all.iter_mut().map(|way| (way.leg, &mut way.health))
    }
}

impl Way {
    fn works(&self) -> bool {
        !self.health.is_dead() && self.health.is_proven()
    }

    fn stream(&self) -> Option<StreamId> {
        match self.leg.via {
            Via::Stream(id) => Some(id),
            Via::Udp(_) => None,
        }
    }
}

fn is_clearly_better(best: &Way, current: &Way) -> bool {
    let (Some(best), Some(current)) = (best.health.rtt(), current.health.rtt()) else { return false };
    best + MARGIN < current && best * 100 < current * MARGIN_SHARE
}
