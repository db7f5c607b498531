//! Floor 3: STUN transactions (RFC 8489) and the stateless server.

pub mod client;
pub mod server;
