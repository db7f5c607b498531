//! Single packets, made and seen as they are: TCP segments out of any order, ICMP errors, and what arrives of them.
//!
//! A [`Bare`] host sends from a raw socket and sees what comes through a packet socket, as tcpdump would. Its kernel does not
//! hear of the ports in use, so it answers nothing.

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::net::AddressFamily;
use rustix::net::Protocol;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::ipproto;

use crate::ns::Namespace;

/// TCP flags: RFC 9293, 3.1.
pub const SYN: u8 = 0x02;
/// See [`SYN`].
pub const FIN: u8 = 0x01;
/// See [`SYN`].
pub const RST: u8 = 0x04;
/// See [`SYN`].
pub const ACK: u8 = 0x10;
/// Numbers of RFC 790.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// A TCP segment without data.
    Segment {
        /// [`SYN`] and others.
        flags: u8,
        /// Its sequence number.
        number: u32,
        /// Its acknowledgement number.
        acknowledged: u32,
    },
    /// A UDP datagram.
    Datagram,
}

/// A packet between two ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Where it comes from.
    pub source: SocketAddrV4,
    /// Where it goes.
    pub destination: SocketAddrV4,
    /// What it carries.
    pub load: Load,
}

/// What a host has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A packet.
    Packet(Packet),
    /// An ICMP error about a packet; its load is quoted in part.
    Error {
        /// Where the packet that did not arrive came from.
        source: SocketAddrV4,
    },
}

/// A host whose packets are sent and seen one by one.
#[derive(Debug)]
pub struct Bare {
    send: OwnedFd,
    receive: OwnedFd,
}

impl Bare {
    /// Takes these ports of a host from its kernel.
    pub fn new(ns: &Namespace, ports: RangeInclusive<u16>) -> Result<Self> {
        let (first, last) = (ports.start(), ports.end());
        ns.nft(&format!(
            "table inet bare {{
  chain input {{
    type filter hook input priority -250;
    meta l4proto {{ tcp, udp }} th dport {first}-{last} drop
  }}
}}
"
        ))?;
        Self::beside(ns)
    }

    /// A second pair of eyes and hands on such a host: it sees everything too, from now on.
    pub fn beside(ns: &Namespace) -> Result<Self> {
        const ETH_P_IP: u16 = 0x0800;
        let sockets = ns.inside(|| {
            let open = |family, kind, protocol| {
                rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)
            };
            let ipv4 = NonZeroU32::new(u32::from(ETH_P_IP.to_be())).map(Protocol::from_raw);
            let send = open(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
            let receive = open(AddressFamily::PACKET, SocketType::DGRAM, ipv4)?;
            io::Result::Ok((send, receive))
        })?;
        let (send, receive) = sockets.with_context(|| format!("no raw sockets on {}", ns.name()))?;
        Ok(Self { send, receive })
    }

    /// Sends a packet.
    pub fn send(&self, packet: &Packet) -> Result<()> {
        let load = packet.load.bytes(packet.source, packet.destination);
        let bytes = ip(*packet.source.ip(), *packet.destination.ip(), packet.load.protocol(), &load);
        self.emit(&bytes, *packet.destination.ip())
    }

    /// Sends an ICMP error about `packet` to its source, as from `router`: time exceeded if `exceeded`, else port
    /// unreachable.
    pub fn complain(&self, router: Ipv4Addr, packet: &Packet, exceeded: bool) -> Result<()> {
        let load = packet.load.bytes(packet.source, packet.destination);
        let quoted = ip(*packet.source.ip(), *packet.destination.ip(), packet.load.protocol(), &load);
        let mut icmp = if exceeded { vec![11, 0] } else { vec![3, 3] };
        icmp.extend_from_slice(&[0; 6]);
        // The header and eight bytes: RFC 792.
        icmp.extend_from_slice(quoted.get(..28).unwrap_or(&quoted));
        let sum = checksum(&icmp);
        icmp.splice(2..4, sum.to_be_bytes());
        self.emit(&ip(router, *packet.source.ip(), ICMP, &icmp), *packet.source.ip())
    }

    fn emit(&self, bytes: &[u8], to: Ipv4Addr) -> Result<()> {
        rustix::net::sendto(&self.send, bytes, SendFlags::empty(), &SocketAddrV4::new(to, 0))?;
        Ok(())
    }

    /// Waits for what `wanted` makes something of; the rest is thrown away.
    pub fn wait<T>(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(Seen) -> Option<T>,
    ) -> Result<Option<T>> {
        let until = Instant::now() + patience;
        let mut packet = [0; 2048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = left.try_into()?;
            let ready = rustix::event::poll(&mut [PollFd::new(&self.receive, PollFlags::IN)], Some(&left));
            match ready {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let (length, _) = rustix::net::recv(&self.receive, &mut packet[..], RecvFlags::DONTWAIT)?;
            let seen = parse(packet.get(..length).unwrap_or(&packet));
            if let Some(found) = seen.and_then(&mut wanted) {
                return Ok(Some(found));
            }
        }
    }

    /// Waits for a packet to this port that carries such a load.
    pub fn arrival(&self, port: u16, load: Load, patience: Duration) -> Result<Option<Packet>> {
        self.wait(patience, |seen| match seen {
            Seen::Packet(packet) if packet.destination.port() == port && packet.load.is_like(load) => {
                Some(packet)
            }
            Seen::Packet(_) | Seen::Error { .. } => None,
        })
    }
}

impl Load {
    /// The flags of a segment.
    pub fn flags(self) -> u8 {
        match self {
            Self::Segment { flags, .. } => flags,
            Self::Datagram => 0,
        }
    }

    fn is_like(self, other: Self) -> bool {
        self.protocol() == other.protocol() && self.flags() == other.flags()
    }

    fn protocol(self) -> u8 {
        match self {
            Self::Segment { .. } => TCP,
            Self::Datagram => UDP,
        }
    }

    /// With its checksum.
    fn bytes(self, source: SocketAddrV4, destination: SocketAddrV4) -> Vec<u8> {
        let mut bytes = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        let checksum_at = match self {
            Self::Segment { flags, number, acknowledged } => {
                bytes.extend_from_slice(&number.to_be_bytes());
                bytes.extend_from_slice(&acknowledged.to_be_bytes());
                bytes.extend_from_slice(&[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]); // a full window
                16
            }
            Self::Datagram => {
                bytes.extend_from_slice(&[0, 8, 0, 0]);
                6
            }
        };
        let mut pseudo = [source.ip().octets(), destination.ip().octets()].concat();
        pseudo.extend_from_slice(&[0, self.protocol(), 0, bytes.len() as u8]);
        let sum = checksum(&[pseudo, bytes.clone()].concat());
        bytes.splice(checksum_at..checksum_at + 2, sum.to_be_bytes());
        bytes
    }
}

/// An IPv4 packet.
fn ip(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, load: &[u8]) -> Vec<u8> {
    let length = (20 + load.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let sum = checksum(&packet);
    packet.splice(10..12, sum.to_be_bytes());
    packet.extend_from_slice(load);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| pair.iter().fold(0, |word, byte| (word << 8) | u32::from(*byte));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn parse(packet: &[u8]) -> Option<Seen> {
    let (protocol, source, destination, load) = addresses(packet)?;
    let u32_at = |at: usize| Some(u32::from_be_bytes(*load.get(at..)?.first_chunk()?));
    let load = match protocol {
        TCP => Load::Segment { flags: *load.get(13)?, number: u32_at(4)?, acknowledged: u32_at(8)? },
        UDP => Load::Datagram,
        ICMP if matches!(load.first()?, 3 | 11) => {
            let (_, source, ..) = addresses(load.get(8..)?)?;
            return Some(Seen::Error { source });
        }
        _ => return None,
    };
    Some(Seen::Packet(Packet { source, destination, load }))
}

/// Protocol, endpoints and load of an IPv4 packet; the ports mean nothing if the protocol has none.
fn addresses(packet: &[u8]) -> Option<(u8, SocketAddrV4, SocketAddrV4, &[u8])> {
    let load = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
    let port = |at: usize| Some(u16::from_be_bytes(*load.get(at..)?.first_chunk()?));
    let source = SocketAddrV4::new(address(12)?, port(0)?);
    Some((*packet.get(9)?, source, SocketAddrV4::new(address(16)?, port(2)?), load))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(load: Load) -> (Packet, Vec<u8>) {
        let source = SocketAddrV4::new([192, 168, 1, 2].into(), 43_000);
        let destination = SocketAddrV4::new([20, 0, 1, 2].into(), 3600);
        let bytes = load.bytes(source, destination);
        let bytes = ip(*source.ip(), *destination.ip(), load.protocol(), &bytes);
        (Packet { source, destination, load }, bytes)
    }

    #[test]
    fn what_is_sent_is_what_is_seen() {
        let segment = Load::Segment { flags: SYN | ACK, number: 0xdead_beef, acknowledged: 7 };
        for load in [segment, Load::Datagram] {
            let (packet, bytes) = packet(load);
            assert_eq!(parse(&bytes), Some(Seen::Packet(packet)));
        }
    }

    #[test]
    fn a_packet_cut_short_is_not_seen() {
        let (_, bytes) = packet(Load::Segment { flags: SYN, number: 1, acknowledged: 0 });
        for length in 0..34 {
            assert_eq!(parse(&bytes[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_header_with_its_checksum_sums_up_to_nothing() {
        // The example of RFC 1071, 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let (_, bytes) = packet(Load::Datagram);
        assert_eq!(checksum(&bytes[..20]), 0);
    }
}
