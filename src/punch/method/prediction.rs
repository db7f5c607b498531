//! Port prediction (Gaballo's thesis 3.3; the P2PWG white paper's N+1): simultaneous open towards ports that do not exist
//! yet.
//!
//! A NAT that gives every destination the port after the last one is asked for its last one (a look from the broker), and
//! the peer is told the next few. Nothing else may go out between the look and the dials: where the NAT gives ports by
//! session, each connection uses one up.

use std::net::SocketAddr;

use super::Method;
use super::Round;
use super::depends;
use crate::nat::behavior::Behavior;

/// The endpoints that the next `count` mappings of a NAT may have, when the last one is seen as `seen`.
#[must_use]
pub fn next(seen: SocketAddr, step: i16, count: usize) -> Vec<SocketAddr> {
    let port = |n: i32| u16::try_from(i32::from(seen.port()) + i32::from(step) * n).ok();
    let ports = (1..).map_while(port).take_while(|port| *port > 0);
    ports.take(count).map(|port| SocketAddr::new(seen.ip(), port)).collect()
}

/// The round of a side whose TCP is treated like `own`, where a port of either side has to be guessed.
#[must_use]
pub const fn round(own: &Behavior, peer: &Behavior) -> Option<Round> {
    if depends(own.mapping) || depends(peer.mapping) {
        Some(Round::of(Method::Prediction, own))
    } else {
        None
    }
}
