//! What leaves: datagrams for sockets and streams, packets for the device, each in one arena that is reused.
//!
//! The thinking half writes (seals, in fact) straight into the arena, and the engine sends from there: no allocation
//! and no second copy per packet. Datagrams that follow each other to one destination lie next to each other, which is
//! what a batched send wants.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::Range;

use crate::base::ecn::Ecn;
use crate::base::id::PortId;
use crate::base::id::SocketId;
use crate::base::id::StreamId;

/// Bytes left free before each message for a stream, where the engine writes the frame header (`wire::frame`).
pub const STREAM_HEADROOM: usize = 4;

/// Which door a message leaves by or came in by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Via {
    /// A datagram of this socket.
    Udp(SocketId),
    /// A frame of this stream.
    Stream(StreamId),
}

impl Via {
    /// The data socket of the address family of `to`.
    #[must_use]
    pub fn udp_for(to: SocketAddr) -> Self {
        Self::Udp(if to.is_ipv4() { SocketId::V4 } else { SocketId::V6 })
    }
}

/// What happened to a stream.
#[derive(Debug)]
pub enum StreamEvent<'a> {
    /// Our SYN has left: the whole IP packet. Told of dials that asked for it.
    Dialled(&'a [u8]),
    /// Connected.
    Opened,
    /// One whole frame, without its header.
    Frame(&'a mut [u8]),
    /// Gone, or never came up.
    Closed(Gone),
}

/// Why a stream is gone, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// A RST came, or an ICMP error that says the same.
    Refused,
    /// An ICMP error came, or there is no route.
    Unreachable,
    /// The local endpoint has a connection to there already: perhaps it was accepted (EADDRNOTAVAIL).
    Taken,
    /// No answer in time.
    Silent,
    /// It was open, and is not any more.
    Lost,
}

/// A stream is gone, or never came up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gone {
    /// For programs.
    pub why: Why,
    /// For people.
    pub text: String,
}

impl Gone {
    /// A reason and its words.
    #[must_use]
    pub fn new(why: Why, text: impl Into<String>) -> Self {
        Self { why, text: text.into() }
    }
}

/// How the messages of a stream are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// By `wire::frame`.
    Frames,
    /// By their own lengths: STUN over TCP (RFC 8489 6.2.2).
    Stun,
}

/// How to open a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dial {
    /// Where to.
    pub to: SocketAddr,
    /// From a bound port; otherwise the system chooses one.
    pub from: Option<PortId>,
    /// Time to live of the first SYN; otherwise the system's, as from the moment it is connected. With one, ICMP errors
    /// about packets that died on the way do not end the attempt.
    pub ttl: Option<u8>,
    /// Whether the SYN is to be told of; needs CAP_NET_RAW, and is for dials from a bound port over IPv4.
    pub told: bool,
    /// What will be spoken.
    pub framing: Framing,
    /// Whether it leads to a relay, so that it may go through a proxy, and looks as the port demands (`wire::dress`). Peers
    /// are never dialled through proxies.
    pub to_relay: bool,
}

impl Dial {
    /// A plain connection that carries frames.
    #[must_use]
    pub const fn plain(to: SocketAddr) -> Self {
        Self { to, from: None, ttl: None, told: false, framing: Framing::Frames, to_relay: false }
    }

    /// A connection to a relay, by whatever way it is reached.
    #[must_use]
    pub const fn relay(to: SocketAddr) -> Self {
        Self { to_relay: true, ..Self::plain(to) }
    }
}

/// Work on streams and on sockets of an attempt's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamOrder {
    /// Open one under this number, chosen by whoever orders and never used again. A [`StreamEvent`] follows.
    Open(StreamId, Dial),
    /// Close one; no event follows.
    Close(StreamId),
    /// The system's time to live from now on, for one that was opened with another.
    RaiseTtl(StreamId),
    /// Send a whole IPv4 packet that was made by hand, to its destination; needs CAP_NET_RAW.
    Print(Ipv4Addr, Vec<u8>),
    /// Take a free port and listen on it, for IPv4 and, if it can be had, for IPv6. What was got is told at once.
    Bind(PortId),
    /// Give a port back. Streams that were dialled from it or accepted at it live on.
    Unbind(PortId),
    /// Take a free port for UDP, for IPv4. Messages for it that are queued already find it open.
    OpenUdp(SocketId),
    /// Give it back.
    CloseUdp(SocketId),
}

/// What binding a port gave; a family that the machine does not have has none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Bound {
    /// The port for IPv4.
    pub v4: Option<u16>,
    /// The port for IPv6.
    pub v6: Option<u16>,
}

/// One message in an [`Outbox`].
#[derive(Clone, Debug)]
pub struct Transmit {
    /// The door.
    pub via: Via,
    /// The destination; for a stream, the address of its far end.
    pub to: SocketAddr,
    /// Where the message lies in the arena, without headroom.
    pub range: Range<usize>,
    /// Must not be fragmented on its way: it asks whether its size passes.
    pub unfragmented: bool,
    /// The congestion mark of its IP header; means nothing for a stream, which has marks of its own.
    pub ecn: Ecn,
}

/// Messages that wait to be sent, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    arena: Vec<u8>,
    used: usize,
    sends: Vec<Transmit>,
}

impl Outbox {
    /// Queues a copy of `message`.
    pub fn push(&mut self, via: Via, to: SocketAddr, message: &[u8]) {
        let _ = self.fill(via, to, message.len(), |slot| {
            slot.copy_from_slice(message);
            Some(message.len())
        });
    }

    /// Queues a copy of `message` that is to arrive in one piece or not at all.
    pub fn push_unfragmented(&mut self, via: Via, to: SocketAddr, message: &[u8]) {
        self.push(via, to, message);
        if let Some(last) = self.sends.last_mut() {
            last.unfragmented = true;
        }
    }

    /// Lets `write` make a message of at most `room` bytes in place; it answers how many it used, or `None` to take it
    /// back. Returns that answer.
    pub fn fill(
        &mut self,
        via: Via,
        to: SocketAddr,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<usize> {
        let start = match via {
            Via::Udp(_) => self.used,
            Via::Stream(_) => self.used + STREAM_HEADROOM,
        };
        if self.arena.len() < start + room {
            self.arena.resize(start + room, 0);
        }
        let written = write(self.arena.get_mut(start..start + room)?)?.min(room);
        self.used = start + written;
        self.sends.push(Transmit {
            via,
            to,
            range: start..self.used,
            unfragmented: false,
            ecn: Ecn::NotCapable,
        });
        Some(written)
    }

    /// Gives the last message a congestion mark; without one, its transport is said not to know of them.
    pub fn mark(&mut self, ecn: Ecn) {
        if let Some(last) = self.sends.last_mut() {
            last.ecn = ecn;
        }
    }

    /// The queued messages.
    #[must_use]
    pub fn sends(&self) -> &[Transmit] {
        &self.sends
    }

    /// The bytes of one message.
    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.arena.get(range).unwrap_or_default()
    }

    /// The arena itself, for an engine that writes frame headers into the headroom.
    pub fn arena_mut(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.sends.clear();
        self.used = 0;
    }
}

/// IP packets that wait to be written to the device, in order; some may be super-packets.
#[derive(Debug, Default)]
pub struct PacketBatch {
    arena: Vec<u8>,
    used: usize,
    packets: Vec<(Range<usize>, Option<NonZeroU16>)>,
}

impl PacketBatch {
    /// Queues a copy of `packet`.
    pub fn push(&mut self, packet: &[u8]) {
        let _ = self.fill(packet.len(), |slot| {
            slot.copy_from_slice(packet);
            Some(0..packet.len())
        });
    }

    /// Lets `write` make a packet in `room` bytes; it answers which part of them is the packet, or `None`.
    pub fn fill(
        &mut self,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Option<Range<usize>>,
    ) -> Option<Range<usize>> {
        if self.arena.len() < self.used + room {
            self.arena.resize(self.used + room, 0);
        }
        let part = write(self.arena.get_mut(self.used..self.used + room)?)?;
        let range = self.used + part.start..(self.used + part.end).min(self.used + room);
        self.used = range.end;
        self.packets.push((range.clone(), None));
        Some(range)
    }

    /// Says that the last packet is a super-packet, with so much payload in each segment but the last.
    pub fn mark_super(&mut self, size: NonZeroU16) {
        if let Some((_, segment)) = self.packets.last_mut() {
            *segment = Some(size);
        }
    }

    /// Payload of each segment of the packet of this number, if it is a super-packet.
    #[must_use]
    pub fn segment(&self, index: usize) -> Option<NonZeroU16> {
        self.packets.get(index).and_then(|(_, segment)| *segment)
    }

    /// How many packets wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// The packet of this number, counted from 0; empty if there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> &[u8] {
        self.packets.get(index).and_then(|(range, _)| self.arena.get(range.clone())).unwrap_or_default()
    }

    /// The packets.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.packets.iter().map(|(range, _)| self.arena.get(range.clone()).unwrap_or_default())
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_lie_next_to_each_other_and_streams_get_headroom() {
        let to: SocketAddr = "192.0.2.1:9".parse().unwrap();
        let mut out = Outbox::default();
        out.push(Via::udp_for(to), to, b"abc");
        assert_eq!(out.fill(Via::udp_for(to), to, 100, |_| None), None);
        out.push(Via::udp_for(to), to, b"de");
        out.push(Via::Stream(StreamId(7)), to, b"f");
        let ranges: Vec<_> = out.sends().iter().map(|t| t.range.clone()).collect();
        assert_eq!(ranges, [0..3, 3..5, 9..10]);
        assert_eq!(out.bytes(3..5), b"de");
        out.clear();
        assert!(out.is_empty());
    }

    #[test]
    fn a_packet_may_lie_anywhere_in_its_room() {
        let mut batch = PacketBatch::default();
        let _ = batch.fill(10, |slot| {
            slot.fill(7);
            Some(2..5)
        });
        batch.push(b"z");
        let all: Vec<&[u8]> = batch.iter().collect();
        assert_eq!(all, [&[7, 7, 7][..], b"z"]);
    }
}
