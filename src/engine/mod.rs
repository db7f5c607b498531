//! Floor: engine.

pub mod cleanup;
pub mod serve;
pub mod up;
