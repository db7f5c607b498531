//! Floor 3: opening a direct path through two NATs, over UDP ([`attempt`]) or TCP ([`tcp`]).
//!
//! An introduction gives both members one [`AttemptId`](crate::base::id::AttemptId) and each other's candidates. Each
//! then sends connectivity checks to all of them at once, paced and capped: STUN Bindings under a key that only the two
//! members can compute ([`keys::PairKeys`]). The checks that leave open the own NAT for the checks that arrive. A check
//! that is answered has proved a way in both directions; which of several ways carries is not decided here (`path`).
//!
//! Where a NAT has another port for everybody, a [`search`] finds out which.
//!
//! Over TCP the same checks are the first frames on whatever stream comes up: nothing else is answered there either.
//!
//! What this module refuses to do: answer a check under any other key, probe more than
//! [`attempt::MAX_CHECKS`] addresses, or send more than [`attempt::MAX_PROBES`] probes an attempt; where ports are random,
//! [`search::PROBES`] more, to one address that the broker saw.

pub mod attempt;
pub mod keys;
pub mod look;
pub mod method;
pub mod plan;
pub mod search;
pub mod tcp;
pub mod turn;
