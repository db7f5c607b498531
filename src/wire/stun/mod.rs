//! STUN messages: RFC 8489, the discovery attributes of RFC 5780 and RFC 3489, and this network's own attributes.
//!
//! ```text
//!  0                   1                   2                   3
//! +---+---------------------------+-------------------------------+
//! |0 0| class and method          | length without this header    |
//! +---+---------------------------+-------------------------------+
//! | cookie 0x2112a442 (RFC 3489 clients: transaction id)          |
//! +---------------------------------------------------------------+
//! | transaction id, 12 bytes                                      |
//! +-------------------------------+-------------------------------+
//! | attribute                     | length without padding        |
//! +-------------------------------+-------------------------------+
//! | value, padded to 4 bytes      | more attributes ...
//! ```
//!
//! | own attribute | number | value |
//! |---|---|---|
//! | RELAY-TOKEN | 0x7e01 | [`crate::wire::relay::SignedToken`] |
//! | RELAY-CHANNEL | 0x7e02 | [`crate::wire::relay::Channel`], then two zero bytes |
//! | TIMESTAMP | 0x7e03 | microseconds since 1970, u64 |
//! | STUNT-PROBE, STUNT-OUTCOME, STUNT-SEGMENT | 0x7e04, 0x7e05, 0x7e06 | see [`stunt`] |
//! | STUNT-SERVER | 0xfe01 | see [`stunt`]; may be ignored |
//! | CAPABILITIES | 0xfe02 | what the sender can do beyond version 1, a bit each, u32 |
//! | RELAY-SPLICE | 0xfe03 | [`crate::wire::relay::Gate`]: the TCP port to dial, the one to dial from; may be ignored |
//! | FILLER | 0xfe04 | zeros, so that the answer is no longer than the request; to be ignored |
//! | REPORT | 0xfe05 | packets of the tunnel that came by this way, u32, wraps; a bit for each wish, u8; 3 zero bytes |
//!
//! RFC 8489 18.3 has no range for private use. Ours lie in the upper half (0x4000..=0x7fff) of the
//! comprehension-required attributes, which needs no RFC, far from anything registered: a stock server that gets one of
//! them refuses it instead of ignoring it. CAPABILITIES and REPORT may be ignored: who does not know
//! them has none, and asks for none.
//!
//! Why an own codec: integrity is checked over the very bytes that came in, RFC 3489 clients send no cookie, and a third
//! of the attributes are our own. Of the ready-made ones `stun_codec` re-encodes what it decoded before it checks, and
//! `stun-rs` brings string preparation and quoting for a user database that this network does not have.

pub mod captured;
mod codec;
pub mod stunt;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use super::WireError;
use super::frame::Front;
use super::relay::Gate;

/// Method of RFC 8489 and of everything here: Binding.
pub const BINDING: u16 = 0x001;
/// Bind one side of a relay session. Our own: not registered, in the range that needs no RFC (RFC 8489 18.2).
pub const RELAY_BIND: u16 = 0x0e1;
/// Do something to me, and tell me what came of it: one [`stunt::Probe`] in the request, one [`stunt::Outcome`] in the
/// answer, beside RESPONSE-ORIGIN (from where it was done) and XOR-MAPPED-ADDRESS (to where). Our own.
pub const STUNT_PROBE: u16 = 0x0e2;
/// What did you see of me: answered with [`stunt::Segment`]s. Our own.
pub const STUNT_SEEN: u16 = 0x0e3;

/// How the tunnel's packets fare on the way of a check, as its sender sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Packets of the other side that came by this way; wraps.
    pub arrived: u32,
    /// The sender wants a direct stream beside it, or has moved its TCP traffic to one.
    pub wants_stream: bool,
}

/// A bit of CAPABILITIES: opens a super-packet that was sealed as one message ([`crate::wire::super_packet`]).
pub const SUPER_PACKETS: u32 = 1;

/// Bytes before the attributes (RFC 8489 5).
pub const HEADER_LEN: usize = 20;
/// What tells STUN from RFC 3489's classic STUN and from other protocols (RFC 8489 5).
pub const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Most attributes in a message; others than ours have fewer than a dozen.
pub const MAX_ATTRIBUTES: usize = 32;
/// Longest USERNAME, bytes (RFC 8489 14.3: fewer than 509).
pub const MAX_USERNAME: usize = 508;
/// Largest message on a stream, bytes: what a datagram without fragmentation could hold (RFC 8489 6.1: 1500), rounded up.
pub const MAX_STREAM_MESSAGE: usize = 2048;

/// The class bits of a message type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A question.
    Request,
    /// No answer wanted.
    Indication,
    /// An answer.
    Success,
    /// A refusal.
    Error,
}

/// 96 random bits that pair an answer with its question.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionId(pub [u8; 12]);

/// An attribute that this program writes or understands; others are skipped if optional.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attribute {
    /// RFC 3489 clients.
    MappedAddress(SocketAddr),
    /// RFC 8489 14.2.
    XorMappedAddress(SocketAddr),
    /// RFC 8489 14.3; here: which key the integrity hash uses.
    Username(Vec<u8>),
    /// RFC 8489 14.8: a number from 300 to 699 and a text for people, printable.
    ErrorCode(u16, String),
    /// RFC 8489 14.13: beside error 420, the numbers that were not understood.
    UnknownAttributes(Vec<u16>),
    /// RFC 8445 7.1.1.
    Priority(u32),
    /// RFC 5780 7.2.
    ChangeRequest {
        /// Answer from the other address.
        ip: bool,
        /// Answer from the other port.
        port: bool,
    },
    /// RFC 5780 7.3.
    ResponseOrigin(SocketAddr),
    /// RFC 5780 7.4.
    OtherAddress(SocketAddr),
    /// RFC 5780 7.5.
    ResponsePort(u16),
    /// RFC 5780 7.6: that many bytes.
    Padding(u16),
    /// Own: the relay token.
    RelayToken(Vec<u8>),
    /// Own: the relay channel that was bound.
    RelayChannel(u16),
    /// Own: where a relay takes TCP for this session, to splice it to the other side's.
    RelaySplice(Gate),
    /// Own: microseconds since 1970, strictly growing per sender: an old message cannot be replayed.
    Timestamp(u64),
    /// RFC 3489 11.2.5: what RESPONSE-ORIGIN is now.
    SourceAddress(SocketAddr),
    /// RFC 3489 11.2.3: what OTHER-ADDRESS is now.
    ChangedAddress(SocketAddr),
    /// Own: what a STUNT server offers.
    StuntServer(stunt::Server),
    /// Own: what a client wants to have done.
    StuntProbe(stunt::Probe),
    /// Own: what came of it.
    StuntOutcome(stunt::Outcome),
    /// Own: a segment as it arrived.
    StuntSegment(stunt::Segment),
    /// Own: a bit for each thing that the sender can do, see [`SUPER_PACKETS`].
    Capabilities(u32),
    /// Own: that many bytes, which pay for the answer. Unlike PADDING, every server ignores it.
    Filler(u16),
    /// Own: how the tunnel's packets fare on this way.
    Report(Report),
}

/// A message: who asks what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Question or answer.
    pub class: Class,
    /// What about.
    pub method: u16,
    /// Which question.
    pub transaction: TransactionId,
    /// In order of appearance.
    pub attributes: Vec<Attribute>,
}

/// Which keyed hash protects a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Integrity<'k> {
    /// None: a stranger's Binding.
    None,
    /// MESSAGE-INTEGRITY-SHA256 with this key, followed by FINGERPRINT.
    Sha256(&'k [u8]),
    /// MESSAGE-INTEGRITY (HMAC-SHA1), for RFC 5769 and older peers, followed by FINGERPRINT.
    Sha1(&'k [u8]),
}

/// A message as it came in: parsed, integrity not yet judged, because the key follows from its attributes.
#[derive(Clone, Debug)]
pub struct Received<'a> {
    /// What it says. Attributes behind an integrity hash are not covered by it and not in here.
    pub message: Message,
    /// Whether it uses RFC 8489's cookie; without it, it is an RFC 3489 client.
    pub has_cookie: bool,
    /// What stands in the cookie's place: the cookie, or the first 4 bytes of an RFC 3489 transaction id.
    pub cookie: [u8; 4],
    /// Comprehension-required attributes that this program does not know. With any of them a request is refused with
    /// 420 and an answer is a failure (RFC 8489 6.3.1, 6.3.3).
    pub unknown_required: Vec<u16>,
    bytes: &'a [u8],
    /// Where MESSAGE-INTEGRITY begins.
    sha1_at: Option<usize>,
    /// Where MESSAGE-INTEGRITY-SHA256 begins.
    sha256_at: Option<usize>,
}

impl<'a> Received<'a> {
    /// Reads a message; checks FINGERPRINT if there is one; does not check integrity.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes; [`WireError::Integrity`] for the FINGERPRINT. Unknown comprehension-required
    /// attributes are no error here, see [`Self::unknown_required`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        codec::parse(bytes)
    }

    /// Whether the message carries MESSAGE-INTEGRITY-SHA256 under `key` (constant time). Attributes after the hash were
    /// not covered by it and are not in `message`.
    ///
    /// The hash must be there in full: a usage that sets no limit must not truncate it (RFC 8489 14.6), and none of ours
    /// does.
    #[must_use]
    pub fn is_authentic(&self, key: &[u8]) -> bool {
        codec::is_authentic(self.bytes, self.sha256_at, ring::hmac::HMAC_SHA256, key)
    }

    /// The same for MESSAGE-INTEGRITY, which older peers use.
    #[must_use]
    pub fn is_authentic_sha1(&self, key: &[u8]) -> bool {
        codec::is_authentic(self.bytes, self.sha1_at, ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key)
    }

    /// Whether it carries an integrity hash at all, right or wrong.
    #[must_use]
    pub fn has_integrity(&self) -> bool {
        self.sha1_at.is_some() || self.sha256_at.is_some()
    }

    /// Bytes of the message, header included.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.bytes.len()
    }
}

impl Message {
    /// A question without attributes.
    #[must_use]
    pub fn request(method: u16, transaction: TransactionId) -> Self {
        Self { class: Class::Request, method, transaction, attributes: Vec::new() }
    }

    /// The answer to `self`, still without attributes.
    #[must_use]
    pub fn success(&self) -> Self {
        Self { class: Class::Success, attributes: Vec::new(), ..self.clone() }
    }

    /// The refusal of `self` with an error `code` from 300 to 699 (RFC 8489 14.8).
    #[must_use]
    pub fn refusal(&self, code: u16, reason: &str) -> Self {
        let attributes = vec![Attribute::ErrorCode(code, reason.to_owned())];
        Self { class: Class::Error, attributes, ..self.clone() }
    }

    /// The same message with one more attribute.
    #[must_use]
    pub fn with(mut self, attribute: Attribute) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// The message's bytes, with `integrity` and a FINGERPRINT behind it (no FINGERPRINT with [`Integrity::None`]).
    /// Attributes beyond what a length field can say are left out.
    #[must_use]
    pub fn emit(&self, integrity: Integrity<'_>) -> Vec<u8> {
        codec::emit(self, COOKIE, integrity)
    }

    /// The message's bytes for an RFC 3489 client, whose transaction id begins with `cookie` ([`Received::cookie`]).
    #[must_use]
    pub fn emit_classic(&self, cookie: [u8; 4]) -> Vec<u8> {
        codec::emit(self, cookie, Integrity::None)
    }

    /// The mapped address in it, XOR-ed or plain.
    #[must_use]
    pub fn mapped(&self) -> Option<SocketAddr> {
        let xored = self.find(|a| if let Attribute::XorMappedAddress(addr) = a { Some(*addr) } else { None });
        xored.or_else(|| {
            self.find(|a| if let Attribute::MappedAddress(addr) = a { Some(*addr) } else { None })
        })
    }

    /// The USERNAME in it.
    #[must_use]
    pub fn username(&self) -> Option<&[u8]> {
        self.find(|a| if let Attribute::Username(name) = a { Some(name.as_slice()) } else { None })
    }

    /// The TIMESTAMP in it, microseconds since 1970.
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        self.find(|a| if let Attribute::Timestamp(micros) = a { Some(*micros) } else { None })
    }

    /// What the server offers, if it is a STUNT server.
    #[must_use]
    pub fn stunt_server(&self) -> Option<&stunt::Server> {
        self.find(|a| if let Attribute::StuntServer(server) = a { Some(server) } else { None })
    }

    /// What to do.
    #[must_use]
    pub fn stunt_probe(&self) -> Option<stunt::Probe> {
        self.find(|a| if let Attribute::StuntProbe(probe) = a { Some(*probe) } else { None })
    }

    /// What came of it.
    #[must_use]
    pub fn stunt_outcome(&self) -> Option<stunt::Outcome> {
        self.find(|a| if let Attribute::StuntOutcome(outcome) = a { Some(*outcome) } else { None })
    }

    /// The segments in it.
    pub fn stunt_segments(&self) -> impl Iterator<Item = &stunt::Segment> {
        self.attributes
            .iter()
            .filter_map(|a| if let Attribute::StuntSegment(segment) = a { Some(segment) } else { None })
    }

    /// Where the answer says it came from (RFC 5780, RFC 3489).
    #[must_use]
    pub fn origin(&self) -> Option<SocketAddr> {
        let now = self.find(|a| if let Attribute::ResponseOrigin(addr) = a { Some(*addr) } else { None });
        now.or_else(|| self.find(|a| if let Attribute::SourceAddress(addr) = a { Some(*addr) } else { None }))
    }

    /// The server's other address with its other port (RFC 5780, RFC 3489).
    #[must_use]
    pub fn other_address(&self) -> Option<SocketAddr> {
        let now = self.find(|a| if let Attribute::OtherAddress(addr) = a { Some(*addr) } else { None });
        now.or_else(|| {
            self.find(|a| if let Attribute::ChangedAddress(addr) = a { Some(*addr) } else { None })
        })
    }

    /// The REPORT in it.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.find(|a| if let Attribute::Report(report) = a { Some(*report) } else { None })
    }

    /// The CAPABILITIES in it; none where it has none.
    #[must_use]
    pub fn capabilities(&self) -> u32 {
        self.find(|a| if let Attribute::Capabilities(bits) = a { Some(*bits) } else { None }).unwrap_or(0)
    }

    /// The error code and text in it.
    #[must_use]
    pub fn error(&self) -> Option<(u16, &str)> {
        self.find(
            |a| if let Attribute::ErrorCode(code, text) = a { Some((*code, text.as_str())) } else { None },
        )
    }

    /// The first attribute that `pick` wants: of repeated ones only the first counts (RFC 8489 14).
    fn find<'m, T>(&'m self, pick: impl Fn(&'m Attribute) -> Option<T>) -> Option<T> {
        self.attributes.iter().find_map(pick)
    }
}

/// Looks at the front of a stream's receive buffer: STUN messages follow each other on TCP without anything between
/// them (RFC 8489 6.2.2). [`Front::Whole`] counts the header here.
///
/// # Errors
/// [`WireError`] when no STUN message (with a cookie) can begin like that: the stream is beyond repair.
pub fn front(buffer: &[u8]) -> Result<Front, WireError> {
    codec::front(buffer)
}
