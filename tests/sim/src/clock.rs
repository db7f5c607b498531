//! The clock of the simulated internet, also for those who read it themselves.
//!
//! Members take time as an argument. WireGuard, inside boringtun, does not: it asks the system. So this crate answers for
//! the system. It defines `clock_gettime`, which the linker prefers to the C library's; on a thread on which a world is
//! running, the answer is the world's time, on every other thread the kernel's. Handshakes are then repeated, keys renewed
//! and sessions forgotten in virtual time, and one seed always makes one trace.
//!
//! Every reading is a nanosecond later than the one before, as on a real machine: two handshakes of one moment would
//! otherwise bear one timestamp, and the second would be taken for a replay of the first.

#![allow(unsafe_code, reason = "the C library's function has to be replaced where boringtun calls it")]

use std::cell::Cell;
use std::time::Duration;

use rustix::time::ClockId;

/// What the monotonic clocks show when a world begins: long after the machine was switched on.
const UPTIME: Duration = Duration::from_secs(1_000_000);
/// What the calendar shows when a world begins, seconds since 1970.
pub(crate) const EPOCH: u64 = 1_900_000_000;

thread_local! {
    /// Nanoseconds since the world of this thread began; `None` without one.
    static ELAPSED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, this thread's clocks show so much after the beginning of the world. They do not go by themselves.
pub(crate) fn set(elapsed: Duration) {
    let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    ELAPSED.with(|clock| clock.set(Some(nanos.max(clock.get().unwrap_or(0)))));
}

/// A world begins on this thread.
pub(crate) fn begin() {
    ELAPSED.with(|clock| clock.set(Some(0)));
}

/// The world of this thread is over: its clocks show real time again.
pub(crate) fn release() {
    let _ = ELAPSED.try_with(|clock| clock.set(None));
}

/// Real time since some moment, on any thread: for figures about the simulation itself.
#[must_use]
pub fn real() -> Duration {
    since_zero(rustix::time::clock_gettime(ClockId::Monotonic))
}

/// Processor time that this thread has used: what a busy machine does not change.
#[must_use]
pub fn used() -> Duration {
    since_zero(rustix::time::clock_gettime(ClockId::ThreadCPUTime))
}

fn since_zero(time: rustix::time::Timespec) -> Duration {
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// One more reading of this thread's virtual clock.
fn read() -> Option<Duration> {
    let next = |clock: &Cell<Option<u64>>| {
        let now = clock.get()? + 1;
        clock.set(Some(now));
        Some(Duration::from_nanos(now))
    };
    ELAPSED.try_with(next).ok().flatten()
}

/// Takes the C library's place.
///
/// # Safety
/// `to` is null or points to a `timespec` that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, to: *mut libc::timespec) -> libc::c_int {
    let is_calendar = clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_REALTIME_COARSE;
    let time = match read() {
        Some(elapsed) if is_calendar => Duration::from_secs(EPOCH) + elapsed,
        Some(elapsed) => UPTIME + elapsed,
        None => since_zero(rustix::time::clock_gettime(kernels(clock))),
    };
    // SAFETY: the caller vouches for it.
    if let Some(to) = unsafe { to.as_mut() } {
        to.tv_sec = libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX);
        to.tv_nsec = libc::c_long::from(time.subsec_nanos());
    }
    0
}

/// The clocks that Rust programs read; anything else is answered as the monotonic one.
fn kernels(clock: libc::clockid_t) -> ClockId {
    match clock {
        libc::CLOCK_REALTIME => ClockId::Realtime,
        libc::CLOCK_REALTIME_COARSE => ClockId::RealtimeCoarse,
        libc::CLOCK_MONOTONIC_COARSE => ClockId::MonotonicCoarse,
        libc::CLOCK_MONOTONIC_RAW => ClockId::MonotonicRaw,
        libc::CLOCK_BOOTTIME => ClockId::Boottime,
        libc::CLOCK_PROCESS_CPUTIME_ID => ClockId::ProcessCPUTime,
        libc::CLOCK_THREAD_CPUTIME_ID => ClockId::ThreadCPUTime,
        _ => ClockId::Monotonic,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "what they show is the question")]

    use std::time::Instant;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_thread_with_a_world_sees_its_time_and_every_other_thread_the_kernels() {
        begin();
        let (start, calendar) = (Instant::now(), SystemTime::now());
        assert!(Instant::now() > start, "no two readings are equal");
        set(Duration::from_secs(3600));
        let passed = Instant::now() - start;
        assert!((3600.0..3600.001).contains(&passed.as_secs_f64()), "{passed:?}");
        assert!((3600.0..3600.001).contains(&calendar.elapsed().unwrap().as_secs_f64()));
        let since_1970 = calendar.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(since_1970.as_secs(), EPOCH);
        let elsewhere = std::thread::spawn(SystemTime::now).join().unwrap();
        release();
        let really = SystemTime::now();
        assert!(really.duration_since(elsewhere).unwrap() < Duration::from_secs(60));
    }
}
