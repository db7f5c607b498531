//! A read-only view of an IP packet, as much as routing and source checks need; making one is in [`emit`].
//!
//! ```text
//! IPv4 (RFC 791)                                   IPv6 (RFC 8200)
//! | 4, IHL | DSCP, ECN | total length       |      | 6 | DSCP, ECN | flow label              |
//! | identification     | flags, offset      |      | payload length    | next hdr | hop limit |
//! | TTL | protocol     | checksum           |      | source, 16 bytes                         |
//! | source                                  |      | destination, 16 bytes                    |
//! | destination                             |      extension headers, each: next hdr, length in 8 bytes - 1, ...
//! | options ...                             |
//! ```
//!
//! Packets come from this machine's kernel or, out of the tunnel, from a peer: nothing in them is believed. Lengths are
//! checked against the buffer, extension headers are counted. Checksums are the receiving kernel's to check.

pub mod emit;
mod mark;
mod mss;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use super::WireError;
use crate::base::cursor::Reader;
use crate::base::ecn::Ecn;

pub use mark::mark_of;
pub use mark::set_mark;
pub use mss::clamp_mss;
pub use mss::max_mss;

/// Protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// RFC 9293.
pub const TCP: u8 = 6;
/// RFC 768.
pub const UDP: u8 = 17;
/// RFC 4443.
pub const ICMPV6: u8 = 58;

/// IPv6 extension headers that are walked (RFC 8200 4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Most extension headers in a packet: RFC 8200 4.1 recommends each at most once, destination options twice.
const MAX_EXTENSIONS: usize = 8;

/// Bytes of an IPv4 header without options.
const V4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
const V6_HEADER: usize = 40;
/// IPv4 flags and offset (RFC 791 3.1).
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Which part of a fragmented packet this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The part with the transport header.
    First,
    /// A part without it.
    Later,
}

/// A packet whose lengths are right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: Fragment,
    dont_fragment: bool,
    ecn: Ecn,
    payload_at: usize,
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads the headers. What follows the packet in the buffer is not part of it.
    ///
    /// # Errors
    /// [`WireError::Truncated`] if the buffer is shorter than the packet says, [`WireError::Unknown`] for another
    /// version, [`WireError::Invalid`] for lengths that contradict each other, [`WireError::TooLong`] for more extension
    /// headers than anybody needs.
    pub fn parse(buffer: &'a [u8]) -> Result<Self, WireError> {
        match buffer.first().ok_or(WireError::Truncated)? >> 4 {
            4 => Self::parse_v4(buffer),
            6 => Self::parse_v6(buffer),
            _ => Err(WireError::Unknown),
        }
    }

    fn parse_v4(buffer: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(buffer);
        let header_len = usize::from(reader.u8()? & 0x0f) * 4;
        let ecn = Ecn::of(reader.u8()?);
        let total_len = usize::from(reader.u16()?);
        let _identification = reader.u16()?;
        let flags = reader.u16()?;
        let _ttl = reader.u8()?;
        let protocol = reader.u8()?;
        let _checksum = reader.u16()?;
        let source = Ipv4Addr::from(reader.array::<4>()?);
        let destination = Ipv4Addr::from(reader.array::<4>()?);
        if header_len < V4_HEADER || total_len < header_len {
            return Err(WireError::Invalid);
        }
        Ok(Self {
            source: source.into(),
            destination: destination.into(),
            protocol,
            fragment: fragment_of(flags & OFFSET, flags & MORE_FRAGMENTS != 0),
            dont_fragment: flags & DONT_FRAGMENT != 0,
            ecn,
            payload_at: header_len,
            bytes: buffer.get(..total_len).ok_or(WireError::Truncated)?,
        })
    }

    fn parse_v6(buffer: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(buffer);
        let [class, ..] = (reader.u32()? << 4).to_be_bytes(); // version 4 bits, class 8, flow label 20
        let ecn = Ecn::of(class);
        let payload_len = usize::from(reader.u16()?);
        let next = reader.u8()?;
        let _hop_limit = reader.u8()?;
        let source = Ipv6Addr::from(reader.array::<16>()?);
        let destination = Ipv6Addr::from(reader.array::<16>()?);
        let mut payload = reader.sub(payload_len)?;
        let (protocol, fragment) = walk_extensions(next, &mut payload)?;
        Ok(Self {
            source: source.into(),
            destination: destination.into(),
            protocol,
            fragment,
            dont_fragment: true, // RFC 8200 4.5: only sources fragment
            ecn,
            payload_at: V6_HEADER + payload_len - payload.remaining(),
            bytes: buffer.get(..V6_HEADER + payload_len).ok_or(WireError::Truncated)?,
        })
    }

    /// Where it claims to come from.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Where it wants to go.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// The packet without whatever followed it in the buffer.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The protocol of the payload, behind all extension headers.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// What stands behind all IP headers; for a later fragment, from the middle of it.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.payload_at..).unwrap_or_default()
    }

    /// Where the payload begins in the packet.
    #[must_use]
    pub fn payload_at(&self) -> usize {
        self.payload_at
    }

    /// Which part of a fragmented packet it is.
    #[must_use]
    pub fn fragment(&self) -> Fragment {
        self.fragment
    }

    /// Whether it is only a part.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragment != Fragment::Whole
    }

    /// Whether nobody on the way may fragment it (always so for IPv6).
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.dont_fragment
    }

    /// Its congestion mark.
    #[must_use]
    pub fn ecn(&self) -> Ecn {
        self.ecn
    }

    /// Source and destination port, if it is TCP or UDP and has them.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        if !matches!(self.protocol, TCP | UDP) || self.fragment == Fragment::Later {
            return None;
        }
        let mut reader = Reader::new(self.payload());
        Some((reader.u16().ok()?, reader.u16().ok()?))
    }
}

/// Leaves `payload` behind the extension headers; gives the protocol there.
fn walk_extensions(first: u8, payload: &mut Reader<'_>) -> Result<(u8, Fragment), WireError> {
    let (mut next, mut fragment) = (first, Fragment::Whole);
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            // What follows a later fragment's header is the middle of something.
            _ if fragment == Fragment::Later => return Ok((next, fragment)),
            FRAGMENT => {
                next = payload.u8()?;
                let _reserved = payload.u8()?;
                let flags = payload.u16()?;
                let _identification = payload.u32()?;
                fragment = fragment_of(flags >> 3, flags & 1 != 0);
            }
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                next = payload.u8()?;
                let len = 8 + 8 * usize::from(payload.u8()?);
                payload.take(len - 2)?;
            }
            _ => return Ok((next, fragment)),
        }
    }
    Err(WireError::TooLong)
}

fn fragment_of(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        (_, _) => Fragment::Later,
    }
}

/// Adds the carries.
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    u16::try_from((once & 0xffff) + (once >> 16)).unwrap_or(u16::MAX)
}
