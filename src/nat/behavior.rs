//! How a NAT treats a transport. "Unknown" is a value, never a guess.

use std::time::Duration;

/// How external endpoints are chosen (RFC 4787 4.1, RFC 5382 4.1; session-dependent as in Gaballo's thesis 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mapping {
    /// Not measured.
    #[default]
    Unknown,
    /// No translation at all.
    None,
    /// One external endpoint for all destinations.
    EndpointIndependent,
    /// One per destination address.
    AddressDependent,
    /// One per destination address and port.
    AddressAndPortDependent,
    /// One per session, even to the same destination (TCP only).
    SessionDependent,
}

/// Which inbound packets pass (RFC 4787 5, RFC 5382 4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Filtering {
    /// Not measured.
    #[default]
    Unknown,
    /// Everything.
    Open,
    /// Anything to a mapped endpoint.
    EndpointIndependent,
    /// Only from addresses that were sent to.
    AddressDependent,
    /// Only from endpoints that were sent to.
    AddressAndPortDependent,
    /// Inbound SYNs never, not even after a SYN went out (TCP only).
    InboundNever,
}

/// How the external port follows from what was there before (RFC 4787 4.2; delta as in Gaballo's thesis 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PortAssignment {
    /// Not measured.
    #[default]
    Unknown,
    /// The same as inside.
    Preserved,
    /// Steps by this much from one mapping to the next.
    Delta(i16),
    /// No pattern.
    Random,
}

/// What somebody outside gets for a packet that no mapping takes in (for TCP: a SYN; Gaballo's thesis 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reaction {
    /// Not measured.
    #[default]
    Unknown,
    /// Silence.
    Drop,
    /// A RST (TCP only).
    Reset,
    /// An ICMP error.
    Unreachable,
}

/// How one transport is treated. An `Option` that is `None` was not measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Behavior {
    /// Whether it gets out at all.
    pub passes: Option<bool>,
    /// Mapping.
    pub mapping: Mapping,
    /// Filtering.
    pub filtering: Filtering,
    /// Port assignment.
    pub ports: PortAssignment,
    /// What a stranger gets.
    pub reaction: Reaction,
    /// Whether inside hosts reach each other by outer endpoints (RFC 4787 6).
    pub hairpin: Option<bool>,
    /// Whether all mappings of one inside host have the same outer address (RFC 4787 4.1, "paired").
    pub paired: Option<bool>,
    /// How long an idle mapping is known to live, seconds; for TCP of an established connection.
    pub lifetime: Option<u16>,
}

/// What a NAT does with single segments of TCP. `None` was not measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segments {
    /// Whether a mapping in SYN_SENT outlives a RST from outside.
    pub survives_reset: Option<bool>,
    /// Whether a mapping in SYN_SENT outlives an ICMP error from outside.
    pub survives_icmp: Option<bool>,
    /// Whether a SYN-ACK may leave where a SYN has left (Gaballo's thesis, NATBlaster's case).
    pub synack_out: Option<bool>,
    /// Whether sequence numbers are the same on both sides.
    pub sequence_kept: Option<bool>,
}

/// How long idle mappings of TCP connections that are not established are known to live, seconds (RFC 5382 5,
/// "transitory"). `None` was not measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Transitory {
    /// After a SYN has left.
    pub opening: Option<u16>,
    /// After a FIN has left, with the other side still talking.
    pub closing: Option<u16>,
}

/// Whether a member may be answered in its peer's name by the broker (STUNT-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Forged {
    /// No: its broker forges nothing.
    #[default]
    Never,
    /// No: its broker would, but it has not the right to read its own SYNs.
    Unable,
    /// Yes, as far as anybody knows.
    Able,
    /// It was, and nothing arrived: some network on the way believes no foreign source addresses (BCP 38).
    Lost,
}

/// What a member knows about the NATs before it; travels in offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Profile {
    /// UDP.
    pub udp: Behavior,
    /// TCP.
    pub tcp: Behavior,
    /// More about TCP.
    pub segments: Segments,
    /// Still more: [`Behavior::lifetime`] of [`Self::tcp`] is that of established connections.
    pub transitory: Transitory,
    /// Routers on the way up to and with the member's own outermost NAT: the TTL of a packet that is to open the NAT and
    /// die behind it is one more.
    pub hops: Option<u8>,
    /// Answers that its broker forges.
    pub forged: Forged,
}

/// How often a mapping has to be used that is known to live for `lifetime` seconds: as often as is `usual`, or in three
/// quarters of its life, so that one packet may be late. Never more often than every 5 s.
#[must_use]
pub fn keeping(usual: Duration, lifetime: Option<u16>) -> Duration {
    let lives = lifetime.map(|seconds| Duration::from_secs(seconds.into()));
    usual.min(lives.map_or(usual, |lives| (lives * 3 / 4).max(MOST_OFTEN)))
}

/// Between packets that only keep a mapping: whoever forgets sooner is not worth the traffic.
const MOST_OFTEN: Duration = Duration::from_secs(5);

/// What two answers to the same local port say about the mapping (RFC 5780 4.3): `first` and `second` are the mapped
/// addresses that two servers at different addresses saw, `local` is the socket's own.
#[must_use]
pub fn mapping_of(
    local: std::net::SocketAddr,
    first: std::net::SocketAddr,
    second: Option<std::net::SocketAddr>,
) -> Mapping {
    match second {
        _ if first == local => Mapping::None,
        None => Mapping::Unknown,
        Some(second) if second == first => Mapping::EndpointIndependent,
        // One pair of answers cannot tell the address's share from the port's: assume the worse.
        Some(_) => Mapping::AddressAndPortDependent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_used_before_it_goes_and_no_more_often_than_need_be() {
        let secs = Duration::from_secs;
        for (usual, lifetime, wanted) in [
            (20, None, secs(20)),
            (20, Some(120), secs(20)),
            (25, Some(30), Duration::from_millis(22_500)),
            (20, Some(10), Duration::from_millis(7500)),
            (20, Some(1), secs(5)),
            (2, Some(1), secs(2)),
        ] {
            assert_eq!(keeping(secs(usual), lifetime), wanted, "{lifetime:?}");
        }
    }
}
