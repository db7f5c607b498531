//! The largest packet that passes one way unfragmented: asked for from the largest downwards, and again now and then.
//!
//! Packets are probed with the outer "don't fragment" bit, three times each, and the first size that comes back counts. So
//! nobody has to send an ICMP message, and a way that swallows large packets in silence is found out the same way (RFC 8899,
//! with steps instead of a search). Until something is proven, TCP is told of small segments (`node::outbound`). Beginning
//! anew every few minutes notices both a way that became narrower and one that became wider.

use std::time::Duration;
use std::time::Instant;

use crate::base::rng::Rng;
use crate::punch::keys::Numbers;
use crate::tunnel::session;
use crate::wire::stun::TransactionId;

/// Inner packets that are asked for, bytes, after the device's own MTU; outside they are 60 (IPv4) or 80 bytes larger.
/// Reason: outer IPv4 packets of 1,400, 1,360 and 1,320 pass mobile networks (1,430), clouds (1,460) and most tunnels.
/// Below, the smallest segments serve, which every network carries.
const STEPS: [usize; 3] = [1340, 1300, 1260];
/// Probes of one size.
const TRIES: u8 = 3;
/// Between them; longer than the round trip of most ways.
const GAP: Duration = Duration::from_secs(1);
/// A way may become another: everything is asked again after this (RFC 8899 5.1.1: PMTU_RAISE_TIMER, 600 s; half of it,
/// because the same question also finds black holes).
const AGAIN: Duration = Duration::from_secs(300);

/// What is known of one way.
#[derive(Clone, Debug, Default)]
pub(super) struct PathSize {
    /// The largest inner packet that passed.
    proven: Option<usize>,
    /// 0 for the device's MTU, then [`STEPS`].
    step: usize,
    tries: u8,
    last: Option<(TransactionId, Instant)>,
    /// Answered, or nothing left to ask: when it begins anew.
    again: Option<Instant>,
}

impl PathSize {
    /// The largest inner packet that is known to pass.
    pub(super) fn proven(&self) -> Option<usize> {
        self.proven
    }

    /// The next probe, if one is due: its name, and the length that the datagram should have.
    pub(super) fn next(
        &mut self,
        mtu: usize,
        now: Instant,
        numbers: &mut Numbers,
        rng: &mut Rng,
    ) -> Option<(TransactionId, usize)> {
        if let Some(again) = self.again {
            if now < again {
                return None;
            }
            *self = Self { proven: self.proven, ..Self::default() };
        }
        if self.last.is_some_and(|(_, at)| now < at + GAP) {
            return None;
        }
        if self.tries == TRIES {
            self.step += 1;
            self.tries = 0;
        }
        let Some(size) = size_of(self.step, mtu) else {
            self.proven = None;
            self.again = Some(now + AGAIN);
            return None;
        };
        let id = numbers.next(rng);
        self.tries += 1;
        self.last = Some((id, now));
        Some((id, size + session::OVERHEAD))
    }

    /// Takes an answer; false if it answers nothing that was asked last.
    pub(super) fn on_answer(&mut self, transaction: TransactionId, mtu: usize, now: Instant) -> bool {
        if self.again.is_some() || self.last.is_none_or(|(asked, _)| asked != transaction) {
            return false;
        }
        self.proven = size_of(self.step, mtu);
        self.again = Some(now + AGAIN);
        true
    }
}

/// Steps that are no smaller than the device's MTU are passed over.
fn size_of(step: usize, mtu: usize) -> Option<usize> {
    std::iter::once(mtu).chain(STEPS.into_iter().filter(|size| *size < mtu)).nth(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Seed;

    const MTU: usize = 1380;

    /// Asks for a while on a way that lets datagrams of `passes` bytes through; every size that was asked for.
    fn ask(size: &mut PathSize, passes: usize, from: Instant, seconds: u64) -> Vec<usize> {
        let (mut numbers, mut rng) = (Numbers::default(), Rng::new(Seed([1; 32])));
        let mut asked = Vec::new();
        for second in 0..seconds {
            let now = from + Duration::from_secs(second);
            let Some((id, len)) = size.next(MTU, now, &mut numbers, &mut rng) else { continue };
            assert_eq!(size.next(MTU, now, &mut numbers, &mut rng), None, "one at a time");
            asked.push(len - session::OVERHEAD);
            if len <= passes {
                assert!(size.on_answer(id, MTU, now));
                assert!(!size.on_answer(id, MTU, now), "one answer a question");
            }
        }
        asked
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn the_largest_that_passes_is_found_and_found_again_when_the_way_changes() {
        let t0 = Instant::now();
        let after = |n: u32| t0 + AGAIN * n + Duration::from_secs(60) * n;
        let mut size = PathSize::default();
        assert_eq!(ask(&mut size, 1500, t0, 60), [1380]);
        assert_eq!(size.proven(), Some(1380));
        assert_eq!(ask(&mut size, 1372, after(1), 60), [1380, 1380, 1380, 1340], "narrower now");
        assert_eq!(size.proven(), Some(1340));
        let all = [[1380; 3], [1340; 3], [1300; 3], [1260; 3]].concat();
        assert_eq!(ask(&mut size, 1280, after(2), 60), all, "a black hole for all of them");
        assert_eq!(size.proven(), None);
        assert_eq!(ask(&mut size, 1412, after(3), 60), [1380], "wide again");
        assert_eq!(size.proven(), Some(1380));
    }

    #[test]
    fn steps_above_the_mtu_are_passed_over() {
        assert_eq!(
            (0..5).map_while(|step| size_of(step, 8900)).collect::<Vec<_>>(),
            [8900, 1340, 1300, 1260]
        );
        assert_eq!((0..5).map_while(|step| size_of(step, 1300)).collect::<Vec<_>>(), [1300, 1260]);
        assert_eq!((0..5).map_while(|step| size_of(step, 1200)).collect::<Vec<_>>(), [1200]);
    }
}
