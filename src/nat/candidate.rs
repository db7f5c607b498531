//! Where a member might be reached.

use std::net::SocketAddr;

/// What carries bytes on the outside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
}

/// How a member came to know an address of its own; in order of preference between equals (RFC 8445 5.1.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Of an interface of this machine.
    Host,
    /// Opened by the gateway on request (UPnP, NAT-PMP, PCP).
    Forwarded,
    /// Written into the configuration by its owner.
    Configured,
    /// Seen by a server inside the provider's network: the outside of the home NAT under a carrier NAT.
    Inner,
    /// Seen by a broker or STUN server: the outside of the outermost NAT.
    Mapped,
}

/// One address to try.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Candidate {
    /// UDP or TCP.
    pub transport: Transport,
    /// Where it comes from.
    pub kind: Kind,
    /// The address.
    pub addr: SocketAddr,
}

/// How many candidates one member may offer: enough for a few interfaces in two families, too few to make a peer scan a
/// network (RFC 8445 19.5.1).
pub const MAX_CANDIDATES: usize = 16;
