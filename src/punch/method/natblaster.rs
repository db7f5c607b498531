//! NATBlaster (Biggadike et al. 2005; Gaballo's thesis 3.4.4): both sides dial with a low TTL, tell each other their sequence
//! numbers, and each sends by hand the SYN-ACK that the other one waits for.
//!
//! It needs no packet with a foreign source. But no NAT that knows TCP's states lets a SYN-ACK out where no SYN has come
//! in, so it is for those that were seen to do it.

use std::time::Duration;

use super::Answer;
use super::Method;
use super::Round;
use super::low_ttl;
use super::stunt1;
use crate::nat::behavior::Profile;

/// As for STUNT-1, where the answers come from farther away.
const LIMIT: Duration = Duration::from_millis(2_500);

/// The round of a side behind `own`, where the SYN-ACKs of both get out. That was measured by hand, so both have the right
/// to do it.
#[must_use]
pub fn round(own: &Profile, peer: &Profile) -> Option<Round> {
    let able = |profile: &Profile| profile.segments.synack_out == Some(true) && stunt1::fits(profile);
    (able(own) && able(peer)).then(|| Round {
        ttl: Some(low_ttl::ttl(own.hops)),
        raise: LIMIT,
        limit: LIMIT,
        dials: 1,
        answer: Answer::Own,
        ..Round::of(Method::NatBlaster, &own.tcp)
    })
}
