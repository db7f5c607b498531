//! Packets of one batch joined into super-packets, which the kernel takes as one: the opposite of `split`.
//!
//! Only neighbours in a flow are joined: the same addresses, ports and header fields, sequence numbers (TCP) and
//! identifications (IPv4) that continue, one size but for the last, checksums that are right. A packet that does not continue
//! its flow begins anew behind it, and what belongs to no flow is a wall that nothing passes, so the order in a flow, and
//! between flows and everything else, is that of arrival.

use super::headers;
use super::headers::ACK;
use super::headers::HEADERS_MAX;
use super::headers::Headers;
use super::headers::PSH;
use super::headers::Transport;
use super::headers::long;
use super::headers::word;
use super::split::Vnet;

/// Packets in a super-packet at most: what one call writes; the kernel takes as many of UDP (`UDP_MAX_SEGMENTS`).
pub const PARTS: usize = 64;
/// Bytes of a super-packet at most: what an IP header can say, less some room.
const BYTES: usize = 65_000;
/// Flows that grow at a time; a batch with more of them gains little from joining.
const FLOWS: usize = 16;

/// Which packets become one. Reused, so that it allocates only until it has seen a large batch.
#[derive(Debug, Default)]
pub struct Merge {
    groups: Vec<Group>,
    /// The packet that follows each one in its group; its own number for the last.
    next: Vec<usize>,
    /// Groups that may still grow.
    open: Vec<usize>,
}

/// Packets that leave as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// The number of its first packet.
    pub first: usize,
    last: usize,
    /// How many there are.
    pub count: usize,
    /// `None` for a packet that is alone for good.
    headers: Option<Headers>,
    /// Payload of each packet but the last.
    size: usize,
    /// Payload of all.
    payload: usize,
    /// The last packet had the push flag.
    push: bool,
}

/// What a packet must have to be joined to others.
#[derive(Clone, Copy)]
struct Piece {
    headers: Headers,
    payload: usize,
    push: bool,
}

impl Merge {
    /// Plans a batch; `udp` says whether UDP may be joined.
    pub fn plan<'a>(&mut self, count: usize, packet: impl Fn(usize) -> &'a [u8], udp: bool) {
        self.groups.clear();
        self.next.clear();
        self.open.clear();
        for index in 0..count {
            self.next.push(index);
            self.place(index, &packet, udp);
        }
    }

    fn place<'a>(&mut self, index: usize, packet: &impl Fn(usize) -> &'a [u8], udp: bool) {
        let bytes = packet(index);
        let alone =
            Group { first: index, last: index, count: 1, headers: None, size: 0, payload: 0, push: false };
        let Some(headers) = Headers::parse(bytes) else {
            self.open.clear();
            self.groups.push(alone);
            return;
        };
        let flow = |number: &usize| {
            self.groups.get(*number).is_some_and(|group| is_same_flow(&headers, bytes, packet(group.first)))
        };
        let place = self.open.iter().position(flow);
        let piece = piece(headers, bytes, udp);
        if let (Some(place), Some(piece)) = (place, piece)
            && let Some(number) = self.open.get(place).copied()
            && let Some(group) = self.groups.get_mut(number)
            && continues(group, &piece, bytes, packet(group.first), packet(group.last))
        {
            if let Some(next) = self.next.get_mut(group.last) {
                *next = index;
            }
            group.last = index;
            group.count += 1;
            group.payload += piece.payload;
            group.push = piece.push;
            if piece.push || piece.payload < group.size || group.count == PARTS {
                self.open.swap_remove(place);
            }
            return;
        }
        if let Some(place) = place {
            self.open.swap_remove(place);
        }
        let Some(piece) = piece else {
            // Of a flow, but not to be joined. While the flow is not open, nothing later can pass it.
            self.groups.push(alone);
            return;
        };
        if !piece.push {
            if self.open.len() == FLOWS {
                self.open.clear();
            }
            self.open.push(self.groups.len());
        }
        let (size, push) = (piece.payload, piece.push);
        self.groups.push(Group { headers: Some(headers), size, payload: size, push, ..alone });
    }

    /// The groups, in the order in which they are to be written.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The packets of a group, in order.
    pub fn parts(&self, group: &Group) -> impl Iterator<Item = usize> {
        let mut at = Some(group.first);
        std::iter::from_fn(move || {
            let index = at?;
            at = self.next.get(index).copied().filter(|next| *next != index);
            Some(index)
        })
    }
}

impl Group {
    /// The headers of the super-packet, made of the first packet, into `head`; answers their length and what to tell the
    /// kernel. `None` for a packet that is to be written as it is.
    pub fn headers(&self, first: &[u8], head: &mut [u8; HEADERS_MAX]) -> Option<(usize, Vnet)> {
        let headers = self.headers.filter(|_| self.count > 1)?;
        let len = headers.len();
        let head = head.get_mut(..len)?;
        head.copy_from_slice(first.get(..len)?);
        headers.set_lengths(head, self.payload);
        if headers.transport == Transport::Tcp && self.push {
            headers::add_flags(head, headers.at, PSH);
        }
        let size = u16::try_from(self.size).ok()?;
        Some((len, headers.unfinished(head, self.payload, size)?))
    }
}

/// Looks at what does not depend on other packets.
fn piece(headers: Headers, bytes: &[u8], udp: bool) -> Option<Piece> {
    let (head, body) = bytes.split_at_checked(headers.len())?;
    let said = if headers.is_v6 { 40 + usize::from(word(head, 4)?) } else { usize::from(word(head, 2)?) };
    if said != bytes.len() || body.is_empty() {
        return None;
    }
    let push = match headers.transport {
        Transport::Tcp => match head.get(headers.at + 13)? {
            // Everything else means something to the receiver, packet by packet.
            flags if *flags == ACK => false,
            flags if *flags == ACK | PSH => true,
            _ => return None,
        },
        Transport::Udp if udp && usize::from(word(head, headers.at + 4)?) == 8 + body.len() => false,
        Transport::Udp => return None,
    };
    // Otherwise the kernel would write a right one, and nobody would ever know.
    let sound = headers.is_sound(head, body)
        && (headers.is_v6 || {
            let mut sum = super::sum::Sum::default();
            sum.add(head.get(..20)?);
            sum.folded() == u16::MAX
        });
    sound.then_some(Piece { headers, payload: body.len(), push })
}

/// Addresses, protocol and ports.
fn is_same_flow(headers: &Headers, a: &[u8], b: &[u8]) -> bool {
    let (addresses, protocol) = if headers.is_v6 { (8..40, 6) } else { (12..20, 9) };
    let ports = headers.at..headers.at + 4;
    // The first byte holds the version, and so whether the other ranges mean the same in both.
    a.first().map(|byte| byte >> 4) == b.first().map(|byte| byte >> 4)
        && a.get(protocol) == b.get(protocol)
        && a.get(addresses.clone()) == b.get(addresses)
        && a.get(ports.clone()) == b.get(ports)
}

/// Whether `bytes` is what the kernel would have sent next, had it cut a super-packet.
fn continues(group: &Group, piece: &Piece, bytes: &[u8], first: &[u8], last: &[u8]) -> bool {
    let at = piece.headers.at;
    let same = |range: std::ops::Range<usize>| bytes.get(range.clone()) == first.get(range);
    if group.headers != Some(piece.headers)
        || piece.payload > group.size
        || group.payload + piece.payload + HEADERS_MAX > BYTES
    {
        return false;
    }
    let ip = if piece.headers.is_v6 {
        // Class and flow label; next header and hop limit.
        same(0..4) && same(6..8)
    } else {
        // Class; flags, offset, TTL.
        let id = word(last, 4).map(|id| id.wrapping_add(1));
        same(0..2) && same(6..9) && word(bytes, 4) == id
    };
    let tcp = || {
        let expected = long(first, at + 4).zip(u32::try_from(group.payload).ok());
        // Acknowledgement, length and window, urgent pointer, options.
        long(bytes, at + 4) == expected.map(|(start, sent)| start.wrapping_add(sent))
            && same(at + 8..at + 13)
            && same(at + 14..at + 16)
            && same(at + 18..piece.headers.len())
    };
    ip && (piece.headers.transport == Transport::Udp || tcp())
}
