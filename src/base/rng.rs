//! Chance as an argument: one seeded generator a thread of thought, handed down from the engine.

use rand::RngCore;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// What a generator starts from: drawn from the system by the engine, fixed in tests and in the simulator.
#[derive(Clone, Copy)]
pub struct Seed(pub [u8; 32]);

/// A cryptographically strong generator; the same seed gives the same bytes.
#[derive(Debug)]
pub struct Rng(StdRng);

impl Rng {
    /// A generator that is a pure function of `seed`.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self(StdRng::from_seed(seed.0))
    }

    /// `N` unpredictable bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    /// Uniform over all values.
    pub fn u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform over all values.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `0..bound` up to a bias below 2^-32 for the small bounds used here; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        u32::try_from((u64::from(self.0.next_u32()) * u64::from(bound)) >> 32).unwrap_or(0)
    }

    /// A new seed for a part that wants a generator of its own.
    pub fn fork(&mut self) -> Seed {
        Seed(self.bytes())
    }
}
