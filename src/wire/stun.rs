//! STUN messages: RFC 8489, the discovery attributes of RFC 5780, and this network's own attributes.

use std::net::SocketAddr;

use super::WireError;

/// Method of RFC 8489 and of everything here: Binding.
pub const BINDING: u16 = 0x001;
/// Bind one side of a relay session (private use, RFC 8489 18.2: 0x100-0xFFF is unassigned expert review).
pub const RELAY_BIND: u16 = 0x0e1;

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
    /// RFC 8489 14.8.
    ErrorCode(u16, String),
    /// RFC 8445 7.1.1.
    Priority(u32),
    /// RFC 5780 7.2.
    ChangeRequest { ip: bool, port: bool },
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
    /// Own: microseconds since 1970, strictly growing per sender: an old message cannot be replayed.
    Timestamp(u64),
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
    /// What it says.
    pub message: Message,
    /// Whether it uses RFC 8489's cookie; without it, it is an RFC 3489 client.
    pub has_cookie: bool,
    bytes: &'a [u8],
}

impl<'a> Received<'a> {
    /// Reads a message; checks FINGERPRINT if there is one; does not check integrity.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes; [`WireError::Unknown`] for unknown comprehension-required attributes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let _ = bytes;
        Err(WireError::Unknown)
    }

    /// Whether the message carries MESSAGE-INTEGRITY-SHA256 under `key` (constant time). Attributes after the hash were
    /// not covered by it and are not in `message`.
    #[must_use]
    pub fn is_authentic(&self, key: &[u8]) -> bool {
        let _ = (self.bytes, key);
        false
    }
}

impl Message {
    /// The message's bytes, with `integrity` and a FINGERPRINT behind it (no FINGERPRINT with [`Integrity::None`]).
    #[must_use]
    pub fn emit(&self, integrity: Integrity<'_>) -> Vec<u8> {
        let _ = integrity;
        Vec::new()
    }

    /// The mapped address in it, XOR-ed or plain.
    #[must_use]
    pub fn mapped(&self) -> Option<SocketAddr> {
        None
    }

    /// The USERNAME in it.
    #[must_use]
    pub fn username(&self) -> Option<&[u8]> {
        None
    }
}
