//! STUNT-2 (Guha and Francis 2005; Gaballo's thesis 3.4.1): the one side sends a SYN, gives it up and listens; the other
//! one dials.
//!
//! For NATs that keep no TCP state: there a SYN opens the way for anything that follows. Conntrack drops the listener's
//! SYN-ACK, whose sequence number is not that of the SYN it saw.

use std::time::Duration;

use super::Method;
use super::Round;
use crate::nat::behavior::Behavior;
use crate::punch::keys::Side;

/// How long the SYN of the side that listens has to reach its own NAT.
const ABANDON: Duration = Duration::from_millis(100);
/// When the other side dials.
const START: Duration = Duration::from_millis(300);

/// The round of `side`, whose TCP is treated like `own`: whoever was asked listens.
#[must_use]
pub const fn round(own: &Behavior, side: Side) -> Round {
    let round = Round::of(Method::Stunt2, own);
    match side {
        Side::Asked => Round { abandon: Some(ABANDON), ..round },
        Side::Asking => Round { start: START, ..round },
    }
}
