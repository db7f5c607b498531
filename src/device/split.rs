//! One large packet of the kernel, as TSO and USO make it, cut into packets that are complete, one by one.
//!
//! ```text
//! struct virtio_net_hdr (Virtio 1.3, 5.1.6; fields in the machine's byte order)
//! | flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16 |
//! ```
//!
//! `csum_start` is where the transport header begins; with `NEEDS_CSUM` its checksum field, `csum_offset` bytes behind,
//! holds the sum of the pseudo header only. A super-packet has one set of headers and payload for many packets, each of
//! `gso_size` bytes but the last.

use std::num::NonZeroU16;

use super::headers;
use super::headers::HEADERS_MAX;
use super::headers::Headers;
use super::headers::Transport;
use super::sum::Sum;
use crate::sys::tun::HEADER_LEN;

/// The checksum is to be finished.
const NEEDS_CSUM: u8 = 1;
/// Kinds of super-packets, without the ECN bit.
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// TCP with the congestion-window-reduced flag set: on the first packet only.
const GSO_ECN: u8 = 0x80;

/// What the kernel says about a packet, and we to it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Vnet {
    /// Bytes of headers, a hint for allocation.
    pub headers: u16,
    /// Payload of each packet but the last, if it is a super-packet.
    pub segment: Option<(Gso, u16)>,
    /// Start of the transport header and place of the checksum in it, if that is to be finished.
    pub checksum: Option<(u16, u16)>,
}

/// Kinds of super-packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gso {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl Vnet {
    /// Reads the header; `None` for a kind of super-packet that was not asked for.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        let size = u16::from_ne_bytes([g0, g1]);
        let segment = match kind & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCP4 => Some((Gso::Tcp4, size)),
            GSO_TCP6 => Some((Gso::Tcp6, size)),
            GSO_UDP => Some((Gso::Udp, size)),
            _ => return None,
        };
        let places = (u16::from_ne_bytes([s0, s1]), u16::from_ne_bytes([o0, o1]));
        let checksum = (flags & NEEDS_CSUM != 0).then_some(places);
        Some(Self { headers: u16::from_ne_bytes([h0, h1]), segment, checksum })
    }

    /// Writes the header.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let (kind, size) = match self.segment {
            None => (GSO_NONE, 0),
            Some((Gso::Tcp4, size)) => (GSO_TCP4, size),
            Some((Gso::Tcp6, size)) => (GSO_TCP6, size),
            Some((Gso::Udp, size)) => (GSO_UDP, size),
        };
        let (start, offset) = self.checksum.unwrap_or_default();
        let [h0, h1] = self.headers.to_ne_bytes();
        let [g0, g1] = size.to_ne_bytes();
        let [s0, s1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        [if self.checksum.is_some() { NEEDS_CSUM } else { 0 }, kind, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

/// Where the next packet of a super-packet begins.
#[derive(Clone, Copy, Default, Debug)]
pub struct Split {
    vnet: Vnet,
    /// Payload bytes given out already; `None` when there is nothing more.
    at: Option<usize>,
    count: u16,
}

impl Split {
    /// Of a packet that was just read.
    pub fn new(vnet: Vnet) -> Self {
        Self { vnet, at: Some(0), count: 0 }
    }

    /// Payload of each segment, of a super-packet that nothing was cut of yet.
    pub fn uncut(&self) -> Option<NonZeroU16> {
        let (_, size) = self.vnet.segment.filter(|_| self.at == Some(0))?;
        NonZeroU16::new(size)
    }

    /// Whether there is more.
    pub fn is_pending(&self) -> bool {
        self.at.is_some()
    }

    /// Writes the next packet of `whole` into `out`; answers its length. A packet that is longer than `out` is cut, and one
    /// that contradicts its header is left out.
    pub fn next(&mut self, whole: &[u8], out: &mut [u8]) -> Option<usize> {
        let at = self.at.take()?;
        let Some((_, size)) = self.vnet.segment else {
            return single(&self.vnet, whole, out);
        };
        let headers = Headers::parse(whole)?;
        let size = usize::from(size);
        let payload = whole.get(headers.len()..)?;
        let part = payload.get(at..payload.len().min(at + size))?;
        let is_last = at + part.len() >= payload.len();
        if size == 0 || part.is_empty() {
            return None;
        }
        let packet = out.get_mut(..headers.len() + part.len())?;
        let (head, body) = packet.split_at_mut_checked(headers.len())?;
        head.copy_from_slice(whole.get(..headers.len())?);
        body.copy_from_slice(part);
        headers::add_to_id(head, self.count);
        if headers.transport == Transport::Tcp {
            headers::advance_tcp(head, headers.at, u32::try_from(at).ok()?);
            headers::limit_flags(head, headers.at, at == 0, is_last);
        }
        self.count = self.count.wrapping_add(1);
        headers.finish(head, body);
        if !is_last {
            self.at = Some(at + part.len());
        }
        Some(packet.len())
    }
}

/// What to tell the kernel about a super-packet that came as one, and its headers with a checksum for the kernel to
/// finish, in `head`; answers their length. `None` for what is no TCP or UDP without options.
pub fn whole(whole: &[u8], size: NonZeroU16, head: &mut [u8; HEADERS_MAX]) -> Option<(usize, Vnet)> {
    let headers = Headers::parse(whole)?;
    let len = headers.len();
    let head = head.get_mut(..len)?;
    head.copy_from_slice(whole.get(..len)?);
    let payload = whole.len() - len;
    headers.set_lengths(head, payload);
    Some((len, headers.unfinished(head, payload, size.get())?))
}

/// Cuts a super-packet that came as one, for a kernel that takes none.
pub fn each(packet: &[u8], size: NonZeroU16, mut on: impl FnMut(&[u8])) {
    let mut head = [0; HEADERS_MAX];
    let Some((_, vnet)) = whole(packet, size, &mut head) else { return };
    let mut split = Split::new(vnet);
    let mut out = vec![0; HEADERS_MAX + usize::from(size.get())];
    while let Some(len) = split.next(packet, &mut out) {
        on(out.get(..len).unwrap_or_default());
    }
}

/// A packet that is one already; only its checksum may be unfinished.
fn single(vnet: &Vnet, whole: &[u8], out: &mut [u8]) -> Option<usize> {
    let len = whole.len().min(out.len());
    let packet = out.get_mut(..len)?;
    packet.copy_from_slice(whole.get(..len)?);
    if let Some((start, offset)) = vnet.checksum {
        let transport = packet.get_mut(usize::from(start)..)?;
        let mut sum = Sum::default();
        sum.add(transport);
        // Zero would mean "no checksum" in UDP, and is the same number in the others (RFC 768, RFC 1071).
        let finished = match !sum.folded() {
            0 => u16::MAX,
            other => other,
        };
        let place = transport.get_mut(usize::from(offset)..)?.first_chunk_mut()?;
        *place = finished.to_be_bytes();
    }
    Some(len)
}
