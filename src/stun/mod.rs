//! Floor 3: STUN transactions (RFC 8489) and the stateless server.
//!
//! A [`client::Transaction`] is one question with its repetitions; it ends with an answer, a refusal or silence, and
//! keeps nothing afterwards. The [`server`] holds no state about anybody but how often a source may ask
//! ([`server::Limiter`]). Neither follows redirects, authenticates by nonce, or answers from another address than it was
//! asked at.

pub mod client;
pub mod server;
