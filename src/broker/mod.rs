//! Floor 3: the connection broker as a value: who is here, who may ask what, who is introduced to whom.
//!
//! A [`registry::Broker`] holds *presence*: it starts empty and may be lost at any time, because members come back and
//! say everything again. What must not be lost (members, addresses, invites, revocations) is the engine's to store; the
//! broker keeps of it what it needs to answer: the [`directory::Directory`].
//!
//! The life of a connection: the engine has checked the certificate and calls `handle_connected`; the first message must
//! be `Register`; then requests follow in any order; `handle_closed` ends it. A second connection of one member ends the
//! first. Everything that a call causes comes out as [`registry::Action`]s, in order.
//!
//! Where its owner allows it, the broker also answers TCP connections between two members in each other's name
//! (`forge`): only to endpoints that it saw itself, only for a pair that it has introduced and that both ask for it.
//!
//! What the broker refuses to do: to believe a certificate that is revoked or expired, at any message; to tell a member
//! an address that the other may not have (see [`candidates`]); to carry data (four short handshake messages a side and
//! attempt, no more); to sign anything by itself: it orders a renewal, and the engine, which may hold the CA, does it.
//! It cannot read or forge what members tell each other, and cannot invent a member: they check certificates themselves.

pub mod admission;
pub mod assign;
pub mod candidates;
pub mod directory;
mod forge;
mod introduce;
mod reach;
pub mod registry;
pub mod relays;
pub mod renewal;
mod requests;
mod start;

#[cfg(test)]
pub(crate) mod tests;
