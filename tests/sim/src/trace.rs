//! What happened, as one number and a few counts: two runs of one seed must agree in all of it.
//!
//! Into the number goes every datagram (when, from, to, how long, which kind), every message between members and the
//! broker (when, who, which), every segment of TCP and every packet that came out of a tunnel. What is *in* sealed
//! messages does not: ephemeral keys and the serial numbers of certificates are the system's true randomness, and lengths
//! of messages that bear certificates vary with it. Nothing that a member decides depends on those bytes, so nothing that
//! can be seen from outside may either.

use std::hash::Hash;
use std::hash::Hasher;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use ntcp_overlay::wire::demux;

use crate::tcp::Kind;

/// FNV-1a, 64 bits: the offset and the prime.
const FNV: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x0000_0100_0000_01b3);

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trace {
    /// Everything, as one number.
    pub hash: u64,
    /// Deliveries and deadlines.
    pub events: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Of these, connectivity checks, registrations and binds.
    pub stun: u64,
    /// Of these, WireGuard's handshake messages.
    pub handshakes: u64,
    /// Of these, through a relay.
    pub relayed: u64,
    /// Segments of TCP sent, and ICMP errors about them.
    pub segments: u64,
    /// Of these, SYNs.
    pub syns: u64,
    /// Messages between members and the broker.
    pub control: u64,
    /// Introductions that the broker made.
    pub introductions: u64,
    /// Packets that came out of tunnels.
    pub packets: u64,
}

impl Default for Trace {
    fn default() -> Self {
        let (offset, _) = FNV;
        Self {
            hash: offset,
            events: 0,
            datagrams: 0,
            stun: 0,
            handshakes: 0,
            relayed: 0,
            segments: 0,
            syns: 0,
            control: 0,
            introductions: 0,
            packets: 0,
        }
    }
}

impl Trace {
    /// A datagram leaves.
    pub(crate) fn datagram(&mut self, at: Duration, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.datagrams += 1;
        let kind = match demux::kind(bytes) {
            demux::Kind::Stun => {
                self.stun += 1;
                1
            }
            demux::Kind::Noise => {
                self.handshakes += u64::from(bytes.first().is_some_and(|kind| (1..4).contains(kind)));
                2 + bytes.first().copied().map_or(0, u64::from)
            }
            demux::Kind::Relay => {
                self.relayed += 1;
                7
            }
            demux::Kind::Unknown => 8,
        };
        self.mix(&[nanos(at), address(from), address(to), bytes.len() as u64, kind]);
    }

    /// A segment leaves.
    pub(crate) fn segment(&mut self, at: Duration, from: SocketAddr, to: SocketAddr, kind: &Kind) {
        self.segments += 1;
        self.syns += u64::from(matches!(kind, Kind::Syn(_)));
        self.mix(&[nanos(at), address(from), address(to), kind.code()]);
    }

    /// A message between a member and the broker.
    pub(crate) fn control<M>(&mut self, at: Duration, member: usize, message: &M) {
        self.control += 1;
        self.mix(&[nanos(at), member as u64]);
        std::mem::discriminant(message).hash(self);
    }

    /// Something else happened to a machine.
    pub(crate) fn event(&mut self, at: Duration, member: usize, what: u64) {
        self.events += 1;
        self.mix(&[nanos(at), member as u64, what]);
    }

    /// A packet came out of a machine's tunnel.
    pub(crate) fn packet(&mut self, at: Duration, member: usize, payload: &[u8]) {
        self.packets += 1;
        self.mix(&[nanos(at), member as u64]);
        payload.iter().for_each(|byte| self.mix_one((*byte).into()));
    }

    fn mix(&mut self, words: &[u64]) {
        words.iter().for_each(|word| self.mix_one(*word));
    }

    fn mix_one(&mut self, word: u64) {
        let (_, prime) = FNV;
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(prime);
    }
}

impl Hasher for Trace {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix_one((*byte).into()));
    }
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

fn address(at: SocketAddr) -> u64 {
    let ip = match at.ip() {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => u128::from(v6) as u64,
    };
    (ip << 16) | u64::from(at.port())
}
