//! Floor 3: WireGuard sessions (Noise IKpsk2), by boringtun.
//!
//! [`session::Session`] is the only door to boringtun. The tunnel is deterministic in shape only: boringtun reads the
//! clock and the system's generator itself, which is why this module alone may not be replayed from a seed.
//!
//! Around it stand the guards that boringtun leaves to its caller: one rate limiter for all peers, a gate per source
//! before it ([`gate::SourceGate`]), the source passed in for every message, unpredictable indexes, padding, checked
//! sizes. Which peer an inner source address belongs to is the node's question.

pub mod gate;
pub mod session;
