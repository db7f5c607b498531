//! What waits for a slow far end: whole frames, the small ones first, of the large ones the newest.
//!
//! Whoever types, pings or acknowledges sends small messages, and should not wait behind somebody's bulk; bulk that has
//! waited too long is worth less than what comes after it, and its sender should hear of that soon. So the oldest large
//! frames are dropped where there are too many. Nothing that has begun is dropped: the stream would be lost.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

/// Frames up to this size are small, bytes: sealed acknowledgements, pings and keystrokes, handshakes, checks.
const SMALL: usize = 320;
/// Bytes of small frames that may wait.
const SMALL_MAX: usize = 64 << 10;
/// Bytes of large frames that may wait: a turn of the device and some.
const LARGE_MAX: usize = 256 << 10;
/// Everything that may wait, bytes, with a frame that has begun.
#[cfg(test)]
pub(super) const MAX: usize = SMALL_MAX + LARGE_MAX + super::stream::INBOX_FULL;

/// With so many bytes of large frames waiting, whoever makes them should rest until half of them have gone.
const REST_AT: usize = 64 << 10;
/// But no longer than this: then the far end is slow, and others must not wait for it. Reason: a pause of a busy machine is
/// over by then, and few connections notice a delay of 10 ms.
const REST_MAX: Duration = Duration::from_millis(10);

/// Frames that the kernel has not taken.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// A frame that has begun, and how much of it has gone.
    begun: (Vec<u8>, usize),
    small: Lane,
    large: Lane,
    /// When it became too much.
    pressed: Option<Instant>,
    /// It was too much for too long, and was not empty since.
    slow: bool,
}

/// Frames of one kind, one behind the other, and their lengths.
#[derive(Debug, Default)]
struct Lane {
    bytes: VecDeque<u8>,
    lens: VecDeque<usize>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.begun.0.is_empty() && self.small.bytes.is_empty() && self.large.bytes.is_empty()
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.begun.0.len() - self.begun.1 + self.small.bytes.len() + self.large.bytes.len()
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.begun.0.capacity() + self.small.bytes.capacity() + self.large.bytes.capacity()
    }

    /// Queues a frame; answers how many were dropped for it, itself perhaps.
    pub(super) fn push(&mut self, frame: &[u8]) -> u64 {
        if frame.len() <= SMALL {
            if self.small.bytes.len() + frame.len() > SMALL_MAX {
                return 1;
            }
            self.small.push(frame);
            return 0;
        }
        let mut dropped = 0;
        while self.large.bytes.len() + frame.len() > LARGE_MAX && self.large.drop_first() {
            dropped += 1;
        }
        self.large.push(frame);
        dropped
    }

    /// Of a frame that has begun, this is still to go. Nothing else may wait.
    pub(super) fn begin(&mut self, rest: &[u8]) {
        debug_assert!(self.is_empty(), "what waits goes first");
        self.begun.0.extend_from_slice(rest);
    }

    /// What is to go next.
    pub(super) fn front(&self) -> &[u8] {
        let (begun, at) = &self.begun;
        match begun.get(*at..) {
            Some(rest) if !rest.is_empty() => rest,
            _ if !self.small.bytes.is_empty() => self.small.bytes.as_slices().0,
            _ => self.large.bytes.as_slices().0,
        }
    }

    /// So many bytes of [`Self::front`] have gone.
    pub(super) fn advance(&mut self, gone: usize) {
        let (begun, at) = &mut self.begun;
        if !begun.is_empty() {
            *at += gone;
            if *at >= begun.len() {
                begun.clear();
                *at = 0;
            }
        } else if !self.small.bytes.is_empty() {
            self.small.advance(gone, begun);
        } else {
            self.large.advance(gone, begun);
        }
    }

    /// Until when whoever fills it should rest, if at all.
    pub(super) fn rest_until(&mut self, now: Instant) -> Option<Instant> {
        let waiting = self.large.bytes.len();
        self.slow &= !self.is_empty();
        if waiting > REST_AT {
            self.pressed.get_or_insert(now);
        } else if waiting <= REST_AT / 2 {
            self.pressed = None;
        }
        let until = self.pressed? + REST_MAX;
        self.slow |= until <= now;
        (!self.slow).then_some(until)
    }
}

impl Lane {
    fn push(&mut self, frame: &[u8]) {
        self.bytes.extend(frame);
        self.lens.push_back(frame.len());
    }

    fn drop_first(&mut self) -> bool {
        let Some(len) = self.lens.pop_front() else { return false };
        self.bytes.drain(..len);
        true
    }

    /// Drops what has gone; the rest of the frame in which that ends has begun.
    fn advance(&mut self, gone: usize, begun: &mut Vec<u8>) {
        let mut gone = gone;
        while gone > 0 {
            let Some(len) = self.lens.pop_front() else { return };
            let of_it = gone.min(len);
            self.bytes.drain(..of_it);
            let (one, other) = self.bytes.as_slices();
            let rest = len - of_it;
            begun.extend_from_slice(one.get(..rest).unwrap_or(one));
            begun.extend_from_slice(other.get(..rest.saturating_sub(one.len())).unwrap_or_default());
            self.bytes.drain(..rest);
            gone -= of_it;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(number: u8, len: usize) -> Vec<u8> {
        vec![number; len]
    }

    /// Lets everything go, `piece` bytes at a time; the frames by number.
    fn drain(queue: &mut Queue, piece: usize) -> Vec<(u8, usize)> {
        let mut seen: Vec<(u8, usize)> = Vec::new();
        while !queue.is_empty() {
            let gone = queue.front().len().min(piece);
            for byte in queue.front().get(..gone).unwrap() {
                match seen.last_mut() {
                    Some((number, len)) if number == byte => *len += 1,
                    _ => seen.push((*byte, 1)),
                }
            }
            queue.advance(gone);
        }
        seen
    }

    #[test]
    fn small_frames_pass_large_ones_but_not_one_that_has_begun() {
        let mut queue = Queue::default();
        queue.begin(&frame(1, 500));
        for (number, len) in [(2, 1000), (3, 100), (4, 1000), (5, 100)] {
            assert_eq!(queue.push(&frame(number, len)), 0);
        }
        queue.advance(400);
        assert_eq!(drain(&mut queue, 7), [(1, 100), (3, 100), (5, 100), (2, 1000), (4, 1000)]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn the_oldest_large_frames_go_and_new_small_ones() {
        let mut queue = Queue::default();
        let dropped: Vec<u64> = (0..6).map(|number| queue.push(&frame(number, 60_000))).collect();
        assert_eq!(dropped, [0, 0, 0, 0, 1, 1]);
        let small: u64 = (0..300).map(|_| queue.push(&frame(9, 300))).sum();
        assert_eq!(small, 300 - 65_536 / 300);
        queue.advance(1);
        assert_eq!(queue.push(&frame(7, 120_000)), 2);
        assert!(queue.len() <= MAX);
        let order: Vec<u8> = drain(&mut queue, 10_000).iter().map(|(number, _)| *number).collect();
        assert_eq!(order, [9, 4, 5, 7]);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_short_pause_makes_the_device_rest_and_a_slow_far_end_does_not_stop_the_others() {
        let t0 = Instant::now();
        let mut queue = Queue::default();
        assert_eq!(queue.rest_until(t0), None);
        queue.push(&frame(1, 60_000));
        assert_eq!(queue.rest_until(t0), None);
        queue.push(&frame(2, 60_000));
        assert_eq!(queue.rest_until(t0), Some(t0 + REST_MAX));
        queue.advance(60_000);
        assert_eq!(queue.rest_until(t0), Some(t0 + REST_MAX), "until half has gone");
        queue.advance(60_000);
        assert_eq!(queue.rest_until(t0), None);

        queue.push(&frame(3, 100_000));
        assert_eq!(queue.rest_until(t0), Some(t0 + REST_MAX));
        assert_eq!(queue.rest_until(t0 + REST_MAX), None, "it is slow");
        queue.advance(90_000);
        queue.push(&frame(4, 100_000));
        assert_eq!(queue.rest_until(t0 + REST_MAX), None, "and stays so");
        drain(&mut queue, 60_000);
        assert_eq!(queue.rest_until(t0 + REST_MAX), None);
        queue.push(&frame(5, 100_000));
        assert!(queue.rest_until(t0 + REST_MAX).is_some(), "until it was empty");
    }

    proptest! {
        #[test]
        fn what_goes_is_whole_frames_however_the_kernel_takes_them(
            steps in proptest::collection::vec((1..2000_usize, 0..3000_usize), 1..200),
        ) {
            let mut queue = Queue::default();
            let mut out = Vec::new();
            let mut sent = 0_u64;
            let mut take = |queue: &mut Queue, gone: usize| {
                let gone = gone.min(queue.front().len());
                out.extend_from_slice(queue.front().get(..gone).unwrap());
                queue.advance(gone);
            };
            for (len, gone) in &steps {
                let len16 = u16::try_from(*len).unwrap();
                let mut frame = vec![0; len + 2];
                frame[..2].copy_from_slice(&len16.to_be_bytes());
                sent += 1;
                sent -= queue.push(&frame);
                take(&mut queue, *gone);
            }
            while !queue.is_empty() {
                take(&mut queue, 777);
            }
            let (mut at, mut count) = (0, 0);
            while at < out.len() {
                at += 2 + usize::from(u16::from_be_bytes([out[at], out[at + 1]]));
                count += 1;
            }
            prop_assert_eq!((at, count), (out.len(), sent));
        }
    }
}
