//! P2PNAT with a low first TTL (Gaballo's thesis 5.2.5), the same socket kept.
//!
//! The first SYN opens the own NAT and dies behind it, so the peer's NAT cannot refuse it with a RST, which would close
//! ours again. Later the TTL is raised, and the kernel's own retransmission, with the same sequence number, goes all the
//! way: by then both NATs are open, also when one side began half a second late. The ICMP error that the first SYN draws is
//! dropped by the socket itself (`sys::option::ignore_dead_on_the_way`).

use std::time::Duration;

use super::Method;
use super::Round;
use crate::nat::behavior::Behavior;

/// Just before the kernel sends its SYN again (RFC 6298 2.1: after 1 s).
const RAISE: Duration = Duration::from_millis(900);
/// The retransmissions after 1, 2 and 3 s, and a round trip.
const LIMIT: Duration = Duration::from_millis(3_600);
/// Where the hops to the own NAT are not known: it is the next router, as in most homes.
const USUAL_HOPS: u8 = 1;

/// The round of a side whose TCP is treated like `own`, behind a NAT `hops` routers away.
#[must_use]
pub fn round(own: &Behavior, hops: Option<u8>) -> Round {
    let ttl = hops.unwrap_or(USUAL_HOPS).saturating_add(1);
    Round { ttl: Some(ttl), raise: RAISE, limit: LIMIT, ..Round::of(Method::LowTtl, own) }
}
