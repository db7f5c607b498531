//! Floor 3: STUN transactions (RFC 8489) and servers, for strangers and for the discovery of a NAT's behaviour (RFC 5780).
//!
//! A [`client::Transaction`] is one question with its repetitions; it ends with an answer, a refusal or silence, and
//! keeps nothing afterwards. [`server`] is the plain answer that a broker gives on its own port; [`discovery_server`]
//! answers from two addresses. A server remembers about others how much they may ask ([`limiter`]) and which endpoints
//! asked lately, in bounded memory. Nothing here follows redirects or authenticates by nonce.

pub mod client;
pub mod discovery_server;
pub mod limiter;
pub mod server;
