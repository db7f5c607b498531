//! Floor 3: relays, for pairs that nothing direct can join (the theses' Internet Service Translator).
//!
//! A relay forwards opaque messages between the two sides of a session that a broker authorised. It holds its own
//! certificate and key, and no secret of anybody else; no client names a destination.

pub mod client;
pub mod server;
