//! The relay's bytes: the token that opens a session and the header before each relayed message.
//!
//! ```text
//! relayed message, on UDP and inside a TCP frame:
//!  0                   1                   2                   3
//! +-------------------------------+-------------------------------+
//! | channel 0x4000..=0x4fff       | reserved, 0                   |
//! +-------------------------------+-------------------------------+
//! | payload: whatever could stand in a datagram of its own        |
//!
//! token:
//! version 1, u8 | side, u8 | session, 16 | member's X25519 key, 32 | relay's X25519 key, 32 | expires, u64 | signature, 64
//! ```
//!
//! `expires` counts seconds since 1970. The signature is Ed25519 over the bytes of `CONTEXT` and everything before it.

use std::net::SocketAddr;

use super::WireError;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::base::id::RelaySession;
use crate::base::time::UnixTime;
use crate::identity::keys::WgPublic;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 4;
/// Bytes of a token with its signature.
pub const TOKEN_LEN: usize = 1 + 1 + 16 + 32 + 32 + 8 + 64;
/// What the signed bytes of a token begin with: the broker's key signs other things too (TLS 1.3 handshakes).
pub const CONTEXT: &[u8] = b"ntcp-overlay relay token\0";
/// Layout of the token.
const VERSION: u8 = 1;

const _: () = assert!(TOKEN_LEN <= super::broker::MAX_TOKEN, "offers carry tokens");

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
    let mut reader = Reader::new(message);
    let channel = Channel::parse(reader.u16()?)?;
    if reader.u16()? != 0 {
        return Err(WireError::Invalid);
    }
    Ok((channel, reader.rest()))
}

/// Whether one message can follow another in a train of datagrams that its way may treat as one: a relay's kernel sees
/// the first header of a train alone, and hands all of it to the same member.
#[must_use]
pub fn may_follow(before: &[u8], next: &[u8]) -> bool {
    let header = |message: &[u8]| message.first_chunk::<HEADER_LEN>().copied().unwrap_or_default();
    let (before, next) = (header(before), header(next));
    let is_relayed = |[first, ..]: [u8; HEADER_LEN]| first & 0xf0 == 0x40;
    before == next || !(is_relayed(before) || is_relayed(next))
}

/// Two UDP endpoints that are bound to one session at one socket of the relay, with one channel: what either sends on the
/// channel is the other's as it is, so that only addresses have to be rewritten.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// The session's first side, as the relay sees it.
    pub first: SocketAddr,
    /// Its second.
    pub second: SocketAddr,
    /// The relay's socket; the address may be unspecified.
    pub at: SocketAddr,
    /// In the header of every message, both ways.
    pub channel: Channel,
}

/// Where one side of a session may dial its relay over TCP, to be spliced to the other side by the relay's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Gate {
    /// The relay's port.
    pub port: u16,
    /// The port to dial from, if it can be had (0: any): with it, and NATs that keep ports, only addresses have to be
    /// rewritten.
    pub from: u16,
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
    /// After this no new bind is accepted. Whole seconds.
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
    /// The bytes that are signed. They begin with [`CONTEXT`], so that no signature made for another purpose fits.
    #[must_use]
    pub fn signed_part(&self) -> Vec<u8> {
        [CONTEXT, &self.body()].concat()
    }

    /// Token and signature, to hand out.
    #[must_use]
    pub fn with_signature(&self, signature: &[u8; 64]) -> Vec<u8> {
        [&self.body()[..], signature].concat()
    }

    fn body(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(VERSION).u8(self.side).put(&self.session.0).put(&self.member.0).put(&self.relay.0);
        writer.u64(self.expires.secs());
        writer.finish()
    }
}

impl SignedToken {
    /// Reads a token; the signature is the caller's to check.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes; [`WireError::Unknown`] for another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(WireError::Unknown);
        }
        let token = Token {
            side: reader.u8()?,
            session: RelaySession(reader.array()?),
            member: WgPublic(reader.array()?),
            relay: WgPublic(reader.array()?),
            expires: UnixTime::from_secs(reader.u64()?),
        };
        let signature = reader.array()?;
        if token.side > 1 {
            return Err(WireError::Invalid);
        }
        if !reader.is_empty() {
            return Err(WireError::TooLong);
        }
        Ok(Self { signed_part: token.signed_part(), token, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token {
            session: RelaySession([0x11; 16]),
            side: 1,
            member: WgPublic([0x22; 32]),
            relay: WgPublic([0x33; 32]),
            expires: UnixTime::from_secs(0x0102_0304),
        }
    }

    #[test]
    fn a_token_has_these_bytes() {
        let mut bytes = vec![1, 1];
        bytes.extend([0x11; 16]);
        bytes.extend([0x22; 32]);
        bytes.extend([0x33; 32]);
        bytes.extend([0, 0, 0, 0, 1, 2, 3, 4]);
        let body = bytes.clone();
        bytes.extend([0x44; 64]);
        assert_eq!(bytes.len(), TOKEN_LEN);
        assert_eq!(token().with_signature(&[0x44; 64]), bytes);
        let signed = SignedToken::parse(&bytes).unwrap();
        assert_eq!((signed.token, signed.signature), (token(), [0x44; 64]));
        assert_eq!(signed.signed_part, [&b"ntcp-overlay relay token\0"[..], &body].concat());
        assert_eq!(signed.signed_part, token().signed_part());
    }

    #[test]
    fn a_token_is_refused_unless_it_is_whole_and_known() {
        let whole = token().with_signature(&[0x44; 64]);
        for n in 0..whole.len() {
            assert_eq!(SignedToken::parse(&whole[..n]), Err(WireError::Truncated), "cut at {n}");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            SignedToken::parse(&bytes).map(|_| ())
        };
        assert_eq!(with(0, 2), Err(WireError::Unknown), "version");
        assert_eq!(with(1, 2), Err(WireError::Invalid), "side");
        assert_eq!(SignedToken::parse(&[&whole[..], &[0]].concat()), Err(WireError::TooLong));
    }

    #[test]
    fn channels_live_between_0x4000_and_0x4fff() {
        for (n, number) in [(0, 0x4000), (0xfff, 0x4fff), (0x1001, 0x4001), (u16::MAX, 0x4fff)] {
            assert_eq!(Channel::new(n).number(), number);
            assert_eq!(Channel::parse(number), Ok(Channel::new(n)));
        }
        assert_eq!(Channel::parse(0x3fff), Err(WireError::Invalid));
        assert_eq!(Channel::parse(0x5000), Err(WireError::Invalid));
    }

    #[test]
    fn a_relayed_message_is_split_into_channel_and_payload() {
        let channel = Channel::new(7);
        let message = [&channel.header()[..], b"payload"].concat();
        assert_eq!(split(&message), Ok((channel, &b"payload"[..])));
        assert_eq!(split(&channel.header()), Ok((channel, &[][..])));
        assert_eq!(split(&message[..3]), Err(WireError::Truncated));
        assert_eq!(split(&[0x40, 7, 0, 1]), Err(WireError::Invalid), "reserved bytes are zero");
        assert_eq!(split(&[0x50, 7, 0, 0]), Err(WireError::Invalid));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            (session, side, member, relay, secs) in any::<([u8; 16], bool, [u8; 32], [u8; 32], u64)>(),
            signature in any::<u8>(),
        ) {
            let token = Token {
                session: RelaySession(session),
                side: u8::from(side),
                member: WgPublic(member),
                relay: WgPublic(relay),
                expires: UnixTime::from_secs(secs),
            };
            let signed = SignedToken::parse(&token.with_signature(&[signature; 64])).unwrap();
            prop_assert_eq!(signed.token, token);
            prop_assert_eq!(signed.signature, [signature; 64]);
        }
    }
}
