//! Floor 1: who is who. Names, keys, certificates, and the lists that take them back.
//!
//! A network is an Ed25519 certificate authority. It signs one X.509 certificate per member, broker and relay; the
//! certificate carries everything that others need to know about its holder: the name (URI SAN `ntcp://network/name`),
//! the overlay addresses, the groups, the roles, and the X25519 key that WireGuard's Noise handshake uses. Members check
//! each other's certificates themselves, so a broker can refuse service but not invent a member.
//!
//! This module is deterministic except for making keys, which asks the system's generator through `ring`: keys must not
//! depend on a seed.

pub mod agreement;
pub mod authority;
pub mod certificate;
mod claims;
pub mod credentials;
pub mod keys;
pub mod names;
pub mod pem;
pub mod revocation;
mod x509;
