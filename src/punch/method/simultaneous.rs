//! P2PNAT (Ford, Srisuresh, Kegel 2005; Gaballo's thesis 3.4.2): both sides dial each other's mapped endpoint at once.
//!
//! Each SYN opens its own NAT for the other one. One socket stays in SYN_SENT, so its SYN-ACK has the sequence number that
//! both NATs saw in its SYN: what conntrack wants (a socket that is closed and opened again has another). A NAT that lets
//! in more than that makes one of the two an ordinary connection to the listener on the same port.

use super::Method;
use super::Round;
use crate::nat::behavior::Behavior;

/// The round of a side whose TCP is treated like `own`.
#[must_use]
pub const fn round(own: &Behavior) -> Round {
    Round::of(Method::Simultaneous, own)
}
