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
use crate::nat::behavior::Filtering;

/// Just before the kernel sends its SYN again (RFC 6298 2.1: after 1 s).
const RAISE: Duration = Duration::from_millis(900);
/// The retransmissions after 1, 2 and 3 s, and a round trip.
const LIMIT: Duration = Duration::from_millis(3_600);
/// Where the hops to the own NAT are not known: it is the next router, as in most homes.
const USUAL_HOPS: u8 = 1;

/// The round of a side whose TCP is treated like `own`, behind a NAT `hops` routers away. Where that NAT lets no SYN in, our
/// own SYN is the only one that can arrive, and goes all the way at once: it meets the peer's socket before that one's
/// time to live is raised, and what the peer then repeats is no SYN any more, which could be refused.
#[must_use]
pub fn round(own: &Behavior, hops: Option<u8>) -> Round {
    let ttl = (own.filtering != Filtering::InboundNever).then(|| ttl(hops));
    Round { ttl, raise: RAISE, limit: LIMIT, ..Round::of(Method::LowTtl, own) }
}

/// The time to live of a packet that is to open a NAT `hops` routers away and to die behind it.
pub(super) fn ttl(hops: Option<u8>) -> u8 {
    hops.unwrap_or(USUAL_HOPS).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whoever_can_be_reached_hides_its_first_syn() {
        let linux = Behavior { filtering: Filtering::AddressAndPortDependent, ..Behavior::default() };
        let never = Behavior { filtering: Filtering::InboundNever, ..linux };
        assert_eq!([round(&linux, Some(2)).ttl, round(&never, Some(2)).ttl], [Some(3), None]);
    }
}
