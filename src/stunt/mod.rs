//! Floor 3: STUNT, how a NAT treats TCP: what a server does for whom, and what it is sure not to do.
//!
//! The idea is Guha and Francis's (IMC 2005), the fourth filtering test Gaballo's (thesis 4.5); bytes and sequence of the
//! protocol stand in [`crate::wire::stun::stunt`]. The [`server`] decides and its engine acts: it connects back, sends the
//! packets that [`forge`] makes, and tells what came of it. Neither knows a socket.

pub mod forge;
pub mod server;
