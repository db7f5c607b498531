//! The headers of a TCP or UDP packet without IP options or extension headers: where they end, and their lengths and
//! checksums written anew.

use super::split::Gso;
use super::split::Vnet;
use super::sum::Sum;
use crate::wire::ip;

/// Bytes of an IPv4 header without options, of an IPv6 header, of a UDP header, of a TCP header without options.
const V4: usize = 20;
const V6: usize = 40;
const UDP: usize = 8;
const TCP: usize = 20;
/// Bytes of the largest headers: IPv6 40, TCP 60.
pub(super) const HEADERS_MAX: usize = 100;
/// TCP flags (RFC 9293 3.1).
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// What comes after the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Where the headers of a packet are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Headers {
    /// Family and protocol.
    pub(super) is_v6: bool,
    pub(super) transport: Transport,
    /// Start of the transport header.
    pub(super) at: usize,
    /// Bytes of the transport header.
    pub(super) transport_len: usize,
}

impl Headers {
    /// Of a whole packet; `None` for anything with options, extension headers or fragments, and for other protocols. The
    /// lengths inside are not looked at.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (is_v6, at, protocol) = match packet {
            // Version and length; flags and offset: no fragment; protocol.
            [0x45, _, _, _, _, _, flags, 0, _, protocol, ..] if flags & 0xbf == 0 => (false, V4, *protocol),
            [first, _, _, _, _, _, next, ..] if first >> 4 == 6 => (true, V6, *next),
            _ => return None,
        };
        let (transport, transport_len) = match protocol {
            ip::TCP => (Transport::Tcp, usize::from(packet.get(at + 12)? >> 4) * 4),
            ip::UDP => (Transport::Udp, UDP),
            _ => return None,
        };
        let fits =
            packet.len() >= at + transport_len && (transport == Transport::Udp || transport_len >= TCP);
        fits.then_some(Self { is_v6, transport, at, transport_len })
    }

    /// Bytes of all headers.
    pub(super) fn len(&self) -> usize {
        self.at + self.transport_len
    }

    /// Where the checksum stands in the transport header.
    pub(super) fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    /// The sum of the pseudo header (RFC 9293 3.1, RFC 8200 8.1) for `len` bytes of header and payload.
    pub(super) fn pseudo(&self, head: &[u8], len: usize) -> Sum {
        let mut sum = Sum::default();
        sum.add(if self.is_v6 { head.get(8..40) } else { head.get(12..20) }.unwrap_or_default());
        sum.add_word(u16::from(match self.transport {
            Transport::Tcp => ip::TCP,
            Transport::Udp => ip::UDP,
        }));
        sum.add_word(u16::try_from(len).unwrap_or(u16::MAX));
        sum
    }

    /// Writes the lengths for a payload of `len` bytes, and IPv4's checksum.
    pub(super) fn set_lengths(&self, head: &mut [u8], len: usize) {
        let word = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
        let transport = self.transport_len + len;
        if self.is_v6 {
            put(head, 4, word(transport));
        } else {
            put(head, 2, word(V4 + transport));
            put(head, 10, 0);
            let mut sum = Sum::default();
            sum.add(head.get(..V4).unwrap_or_default());
            put(head, 10, !sum.folded());
        }
        if self.transport == Transport::Udp {
            put(head, self.at + 4, word(transport));
        }
    }

    /// Writes lengths and checksums for `body`.
    pub(super) fn finish(&self, head: &mut [u8], body: &[u8]) {
        self.set_lengths(head, body.len());
        let place = self.at + self.checksum_offset();
        put(head, place, 0);
        let checksum = !self.sum(head, body);
        let none = self.transport == Transport::Udp && checksum == 0;
        put(head, place, if none { u16::MAX } else { checksum });
    }

    /// Leaves the checksum of a super-packet with `payload` bytes to the kernel, which finishes it for every packet that
    /// it makes of it; answers what to tell it.
    pub(super) fn unfinished(&self, head: &mut [u8], payload: usize, size: u16) -> Option<Vnet> {
        let sum = self.pseudo(head, self.transport_len + payload).folded();
        put(head, self.at + self.checksum_offset(), sum);
        let gso = match (self.transport, self.is_v6) {
            (Transport::Tcp, false) => Gso::Tcp4,
            (Transport::Tcp, true) => Gso::Tcp6,
            (Transport::Udp, _) => Gso::Udp,
        };
        let short = |value: usize| u16::try_from(value).ok();
        let checksum = (short(self.at)?, short(self.checksum_offset())?);
        Some(Vnet { headers: short(self.len())?, segment: Some((gso, size)), checksum: Some(checksum) })
    }

    /// Whether the checksum is there and right.
    pub(super) fn is_sound(&self, head: &[u8], body: &[u8]) -> bool {
        let absent = self.transport == Transport::Udp && word(head, self.at + 6) == Some(0);
        !absent && self.sum(head, body) == u16::MAX
    }

    fn sum(&self, head: &[u8], body: &[u8]) -> u16 {
        let mut sum = self.pseudo(head, self.transport_len + body.len());
        sum.add(head.get(self.at..).unwrap_or_default());
        sum.add(body);
        sum.folded()
    }
}

/// Moves IPv4's identification on; IPv6 has none here.
pub(super) fn add_to_id(head: &mut [u8], count: u16) {
    if head.first() == Some(&0x45)
        && let Some(id) = word(head, 4)
    {
        put(head, 4, id.wrapping_add(count));
    }
}

/// Moves TCP's sequence number on.
pub(super) fn advance_tcp(head: &mut [u8], at: usize, by: u32) {
    if let Some(place) = head.get_mut(at + 4..).and_then(<[u8]>::first_chunk_mut) {
        *place = u32::from_be_bytes(*place).wrapping_add(by).to_be_bytes();
    }
}

/// Of the packets of one super-packet, only the first says "congestion window reduced" and only the last "end" and "push".
pub(super) fn limit_flags(head: &mut [u8], at: usize, is_first: bool, is_last: bool) {
    if let Some(flags) = head.get_mut(at + 13) {
        *flags &= !(if is_first { 0 } else { CWR }) & !(if is_last { 0 } else { FIN | PSH });
    }
}

/// Sets TCP flags.
pub(super) fn add_flags(head: &mut [u8], at: usize, more: u8) {
    if let Some(flags) = head.get_mut(at + 13) {
        *flags |= more;
    }
}

/// Two bytes.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

/// Four bytes.
pub(super) fn long(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

/// Writes two bytes.
pub(super) fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_be_bytes();
    }
}
