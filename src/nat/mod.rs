//! Floor 1: the words of RFC 4787 and RFC 5382 for what a NAT does, and what follows from observations.

pub mod behavior;
pub mod candidate;
pub mod classify;
pub mod gateway;
pub mod market;
