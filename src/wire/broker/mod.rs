//! Messages between a broker and its members and relays, inside TLS; how they look as bytes stands in `codec.rs`.
//!
//! The connection is TLS 1.3 with ALPN `ntcp/1`. Each message stands behind its length as a `u16` (the caps below). A
//! message of unknown kind ([`super::WireError::Unknown`]) is passed over, any other error ends the connection.

mod codec;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::net::SocketAddr;

use crate::base::hidden::Hidden;
use crate::base::id::AttemptId;
use crate::base::id::RegistrationId;
use crate::base::id::RelaySession;
use crate::base::id::RequestId;
use crate::base::time::UnixTime;
use crate::identity::names::MemberName;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;

/// Largest message from someone without a certificate, bytes: an enrolment request is below 300.
pub const MAX_UNAUTHENTICATED: usize = 2048;
/// Largest message from a certificate's holder, and largest from the broker, bytes.
pub const MAX_AUTHENTICATED: usize = 65_535;
/// Largest WireGuard handshake message (initiation 148, response 92) that may travel through the broker, bytes.
pub const MAX_NOISE: usize = 192;
/// Largest certificate, bytes of DER: a member with a few dozen groups stays below.
pub const MAX_CERTIFICATE: usize = 4096;
/// Largest signing request, bytes.
pub const MAX_REQUEST: usize = 1024;
/// Largest relay token with its signature, bytes.
pub const MAX_TOKEN: usize = 512;
/// Largest signed revocation list, bytes: what one message holds, over 4000 serial numbers.
pub const MAX_REVOCATIONS: usize = MAX_AUTHENTICATED - 4;
/// Most relays in an offer: a best one and some in reserve.
pub const MAX_RELAYS: usize = 4;
/// Most relays that members are asked to measure their way to: a network's own, and some of its members'.
pub const MAX_PLACES: usize = 16;
/// Most members in one listing; the next listing goes on after the last.
pub const MAX_LISTED: usize = 64;
/// Most endpoints that one side of a punch names: five guesses, and one or two in the other family.
pub const MAX_ENDPOINTS: usize = 8;
/// A TCP header with as many options as fit (RFC 9293 3.1), bytes.
pub const MAX_SYN: usize = 60;
/// Longest that a punch waits for the other side, milliseconds: half of a satellite's round trip, and room.
pub const MAX_WAIT: u16 = 1000;
/// Most addresses at which a broker takes UDP registrations.
pub const MAX_UDP: usize = 8;
/// Most STUN servers that a broker names: two for RFC 5780's tests, in two families, and as many in reserve.
pub const MAX_STUN: usize = 8;

/// Whom a question is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// By name.
    Name(MemberName),
    /// By overlay address.
    Addr(IpAddr),
}

/// From a member or relay to the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToBroker {
    /// The first and only message of a connection without a certificate: a signed request and the invite's secret.
    Redeem {
        /// The invite's.
        secret: Hidden<[u8; 32]>,
        /// Bytes of [`crate::wire::enroll::SigningRequest`].
        request: Vec<u8>,
    },
    /// The first message of a connection with one.
    Register(Register),
    /// Candidates or profile changed.
    Update {
        /// All of them, in place of the former.
        candidates: Vec<Candidate>,
        /// In place of the former.
        profile: Profile,
    },
    /// Who is this?
    Lookup {
        /// Echoed by the answer.
        request: RequestId,
        /// Whom.
        target: Target,
    },
    /// Who is there? In order of name, after `after`.
    List {
        /// Echoed by the answer.
        request: RequestId,
        /// The last name of the listing before; `None` from the start.
        after: Option<MemberName>,
    },
    /// Introduce me to `target`; `noise` is the first handshake message, handed on with the offer.
    Connect {
        /// Echoed by the answer.
        request: RequestId,
        /// To whom.
        target: Target,
        /// May be empty; at most [`MAX_NOISE`].
        noise: Vec<u8>,
    },
    /// A handshake message for the other side of `attempt`.
    Convey {
        /// The introduction that it belongs to.
        attempt: AttemptId,
        /// At most [`MAX_NOISE`].
        noise: Vec<u8>,
    },
    /// Ready for round `round` of the attempt's TCP punching: dial me at these endpoints, the likeliest first, when the
    /// broker says so.
    Ready {
        /// The introduction that it belongs to.
        attempt: AttemptId,
        /// Counted from 1.
        round: u8,
        /// At most [`MAX_ENDPOINTS`].
        endpoints: Vec<SocketAddr>,
        /// Our round trip to the broker, milliseconds.
        rtt: u16,
    },
    /// How far our relays are, as [`FromBroker::Relays`] asked.
    Delays(Vec<RelayDelay>),
    /// In round `round` we have dialled the other side's first endpoint with this SYN, which died on its way. Once both have
    /// said so, either the broker answers each in the other's name, or each gets to know the other's SYN.
    Dialled {
        /// The introduction that it belongs to.
        attempt: AttemptId,
        /// Counted from 1.
        round: u8,
        /// Whether the broker is to forge the answers: both must want it.
        forge: bool,
        /// What the port that we dialled from looks like outside: as the broker saw it.
        from: SocketAddr,
        /// The TCP header of our SYN, at most [`MAX_SYN`] bytes.
        syn: Vec<u8>,
    },
    /// A new certificate for the same holder, please; `csr` is a signing request of the same keys.
    Renew {
        /// Echoed by the answer.
        request: RequestId,
        /// Bytes of [`crate::wire::enroll::SigningRequest`].
        csr: Vec<u8>,
    },
    /// Are you there?
    Ping {
        /// Any number.
        nonce: u32,
    },
}

/// What a member or relay says about itself when it comes online.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// Version of the program, for people. Printable, at most 255 bytes.
    pub software: String,
    /// Where to try; empty for a relay.
    pub candidates: Vec<Candidate>,
    /// What its NATs do.
    pub profile: Profile,
    /// A relay's own endpoints; empty for a member that does not relay.
    pub relay: Vec<Candidate>,
    /// Revocation list version that it holds.
    pub revocations: u64,
    /// Whether it wants to hear of every member that comes, changes and goes.
    pub watch: bool,
}

/// What a broker knows about a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberRecord {
    /// Its certificate, DER; whoever reads it verifies it.
    pub certificate: Vec<u8>,
    /// Whether it is connected to this broker.
    pub online: bool,
    /// When it was last.
    pub last_seen: UnixTime,
}

/// A relay that one side of an attempt may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayOffer {
    /// The relay's certificate, DER.
    pub certificate: Vec<u8>,
    /// Its endpoints, UDP and TCP.
    pub endpoints: Vec<Candidate>,
    /// The session both sides meet in.
    pub session: RelaySession,
    /// This side's token: bytes of [`crate::wire::relay::Token`], signed by the broker.
    pub token: Hidden<Vec<u8>>,
}

/// Where a relay is, for whoever is to measure the way there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayPlace {
    /// Its name.
    pub name: MemberName,
    /// Its endpoints, UDP and TCP.
    pub endpoints: Vec<Candidate>,
}

/// How far a relay is from a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayDelay {
    /// Its name.
    pub name: MemberName,
    /// Round trip, milliseconds; `None` if it cannot be reached.
    pub rtt: Option<u16>,
}

/// An introduction, to both sides at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Common name of this introduction.
    pub attempt: AttemptId,
    /// The request that it answers, on the side that asked.
    pub request: Option<RequestId>,
    /// The other side.
    pub peer: MemberRecord,
    /// Where it may be.
    pub candidates: Vec<Candidate>,
    /// What its NATs do.
    pub profile: Profile,
    /// Relays, best first.
    pub relays: Vec<RelayOffer>,
    /// The other side's first handshake message, on the side that was asked for.
    pub noise: Vec<u8>,
}

/// The answer to [`Register`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// Name of the registration in UDP registrations.
    pub registration: RegistrationId,
    /// Where the broker takes UDP registrations.
    pub udp: Vec<SocketAddr>,
    /// STUN servers to measure one's NATs with, UDP and TCP on the same port, best first. An unspecified address stands
    /// for the one at which this broker was reached.
    pub stun: Vec<SocketAddr>,
    /// The source of the control connection, as the broker sees it.
    pub observed: SocketAddr,
    /// The broker's clock.
    pub time: UnixTime,
    /// Whether it forges answers to TCP connections between two members that both ask for it.
    pub forge: bool,
}

/// Why a request was refused. The text beside it is for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No such member or address.
    NotFound,
    /// It exists but is not connected.
    Offline,
    /// Invite unknown, expired or used; deliberately one answer.
    InvalidInvite,
    /// The wanted name belongs to somebody else.
    NameTaken,
    /// The network's prefix has no address left.
    NoAddressLeft,
    /// Too many requests.
    TooMany,
    /// This broker cannot sign certificates.
    NoAuthority,
    /// The request makes no sense.
    Malformed,
    /// The certificate does not allow that.
    Forbidden,
}

/// From the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromBroker {
    /// Answer to `Redeem`.
    Enrolled {
        /// The new certificate, DER.
        certificate: Vec<u8>,
    },
    /// Answer to `Register`.
    Registered(Registered),
    /// Answer to `Lookup`.
    Found {
        /// Of the question.
        request: RequestId,
        /// Who it is.
        member: MemberRecord,
    },
    /// Answer to `List`; `more` if there are names after the last.
    Listing {
        /// Of the question.
        request: RequestId,
        /// In order of name. Those that do not fit one message are left out, and `more` is set.
        members: Vec<MemberRecord>,
        /// Whether there are names after the last.
        more: bool,
    },
    /// To both sides of a `Connect`.
    Offer(Offer),
    /// The other side's `Convey`.
    Conveyed {
        /// The introduction that it belongs to.
        attempt: AttemptId,
        /// At most [`MAX_NOISE`].
        noise: Vec<u8>,
    },
    /// The other side of `attempt` is ready for this round of TCP punching, and waits.
    Awaited {
        /// The introduction that it belongs to.
        attempt: AttemptId,
        /// Counted from 1.
        round: u8,
    },
    /// Both sides are ready: dial these, all of them, `wait` after this message came. The waits differ by what the
    /// broker's words need longer to one side than to the other, so that both begin at once.
    Go {
        /// The introduction that it belongs to.
        attempt: AttemptId,
        /// Counted from 1.
        round: u8,
        /// The peer's, as it named them.
        endpoints: Vec<SocketAddr>,
        /// Milliseconds, at most [`MAX_WAIT`].
        wait: u16,
    },
    /// Both sides have dialled.
    Dialled {
        /// The introduction that it belongs to.
        attempt: AttemptId,
        /// Counted from 1.
        round: u8,
        /// Whether the broker has answered both SYNs in the other's name.
        forge: bool,
        /// The TCP header of the other side's SYN, at most [`MAX_SYN`] bytes.
        syn: Vec<u8>,
    },
    /// A member came, changed or went.
    Changed(MemberRecord),
    /// The network's relays, if there are some to choose from: measure the way to each of them, and say it in
    /// [`ToBroker::Delays`].
    Relays(Vec<RelayPlace>),
    /// The newest revocation list, signed by the CA.
    Revocations(Vec<u8>),
    /// Answer to `Renew`.
    Renewed {
        /// Of the question.
        request: RequestId,
        /// The new certificate, DER.
        certificate: Vec<u8>,
    },
    /// Answer to any request that failed; request 0 for messages without one.
    Refused {
        /// Of the question.
        request: RequestId,
        /// For programs.
        why: Refusal,
        /// For people: what to do next. Printable, at most 255 bytes.
        text: String,
    },
    /// Answer to `Ping`.
    Pong {
        /// Of the ping.
        nonce: u32,
    },
}
