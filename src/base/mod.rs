//! Floor 0: what every other floor may use.
//!
//! Admission rule: a thing lives here when it is used on three floors and knows no protocol. Nothing here opens a
//! socket, reads a clock or draws a random number; time and chance come in as arguments.

pub mod addr;
pub mod cursor;
pub mod ecn;
pub mod grid;
pub mod hidden;
pub mod id;
pub mod rng;
pub mod schedule;
pub mod time;
pub mod transmit;
