//! Ctrl-C: every wait of the lab ends early with an error, so that the owner's `Drop` can clean up.

use std::sync::Once;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::bail;

use crate::sys;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks around.
const SLICE: Duration = Duration::from_millis(20);

/// From now on the first SIGINT or SIGTERM is remembered instead of ending the process; the second one ends it.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(sys::on_interrupt(remember)));
}

extern "C" fn remember(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Fails once the user has asked to stop.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { bail!("interrupted") } else { Ok(()) }
}

/// Sleeps, unless interrupted.
pub fn pause(how_long: Duration) -> Result<()> {
    let until = Instant::now() + how_long;
    loop {
        check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(SLICE));
    }
}

/// Asks again and again until there is an answer; gives up after `limit`, naming what was awaited.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= until {
            bail!("waited {limit:?} in vain for {what}");
        }
        pause(SLICE)?;
    }
}
