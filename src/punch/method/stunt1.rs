//! STUNT-1 (Guha and Francis 2005; Gaballo's thesis 3.4.3): both sides dial with a low TTL, and the broker, which knows both
//! SYNs, answers each in the other's name.
//!
//! To either NAT it looks like an ordinary connection from inside, so none refuses it, not even one that never lets a SYN
//! in. It needs a broker whose network lets packets with foreign sources out, ports that are known beforehand (the answer
//! goes to where the broker saw us), and sequence numbers that no NAT rewrites. The TTL stays low until the kernel is
//! connected: a SYN that arrived would be refused.

use std::time::Duration;

use super::Answer;
use super::Method;
use super::Round;
use super::depends;
use super::low_ttl;
use crate::nat::behavior::Forged;
use crate::nat::behavior::Profile;

/// Three round trips to a far broker, or the kernel's second SYN and one.
const LIMIT: Duration = Duration::from_millis(2_500);

/// The round of a side behind `own`, where both can be answered.
#[must_use]
pub fn round(own: &Profile, peer: &Profile) -> Option<Round> {
    let able = |profile: &Profile| profile.forged == Forged::Able && fits(profile);
    (able(own) && able(peer)).then(|| Round {
        ttl: Some(low_ttl::ttl(own.hops)),
        raise: LIMIT,
        limit: LIMIT,
        dials: 1,
        answer: Answer::Broker,
        ..Round::of(Method::Stunt1, &own.tcp)
    })
}

/// Whether what was seen from elsewhere holds for the peer too, and numbers mean the same outside.
pub(super) fn fits(profile: &Profile) -> bool {
    !depends(profile.tcp.mapping) && profile.segments.sequence_kept != Some(false)
}
