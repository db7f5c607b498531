//! The one place that reads the clocks and asks the system for randomness; everything else takes both as arguments.

use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use ring::rand::SecureRandom as _;
use ring::rand::SystemRandom;

use crate::base::rng::Seed;
use crate::base::time::Now;
use crate::base::time::UnixTime;

/// This moment, on both clocks. A calendar set before 1970 reads as 1970: then no certificate is valid yet.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place where the clocks are read")]
pub fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), unix: UnixTime::from_epoch(since) }
}

/// A seed from the system's generator.
#[must_use]
pub fn seed() -> Seed {
    Seed(random())
}

/// `N` unpredictable bytes from the system's generator.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("a Linux that runs this program has a random generator");
    bytes
}
