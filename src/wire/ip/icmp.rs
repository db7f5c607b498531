//! "Your packet is too big for the tunnel", said to the sender in ICMP.
//!
//! ```text
//! | IP header from somebody on the way                       |
//! | type, code | checksum | unused, MTU 16 (v4) / MTU 32 (v6) |
//! | the beginning of the packet that was too big             |
//! ```

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use super::Fragment;
use super::ICMP;
use super::ICMPV6;
use super::Packet;
use super::V4_HEADER;
use super::V6_HEADER;
use super::fold;
use super::sum;
use crate::base::cursor::Writer;

/// "Destination unreachable", "fragmentation needed and DF set" (RFC 792, RFC 1191 4).
const V4_TYPE_CODE: [u8; 2] = [3, 4];
/// "Packet too big" (RFC 4443 3.2).
const V6_TYPE_CODE: [u8; 2] = [2, 0];
/// Bytes before the quoted packet.
const ICMP_HEADER: usize = 8;
/// Largest error message about IPv4, bytes (RFC 1812 4.3.2.3).
const V4_MAX: usize = 576;
/// Largest error message about IPv6, bytes: the least MTU (RFC 4443 2.4).
const V6_MAX: usize = 1280;
/// Smallest MTU that may be told: RFC 791 3.2 and RFC 8200 5.
const V4_MIN_MTU: u16 = 68;
const V6_MIN_MTU: u16 = 1280;
/// Hop limit of what we send (RFC 1700).
const TTL: u8 = 64;

/// The ICMP message that tells the sender of `packet` to send at most `mtu` bytes, as if `from` had sent it. `None` where
/// no such message may be sent: to IPv4 packets that may be fragmented, to later fragments, to ICMP errors, to or from
/// what is no single host (RFC 1812 4.3.2.7, RFC 4443 2.4).
///
/// `from` must be of the packet's family. For a packet of this machine itself, take the packet's destination: kernels
/// drop what comes in with their own address as the source. How often to say it is the caller's decision.
#[must_use]
pub fn icmp_too_big(packet: &[u8], mtu: u16, from: IpAddr) -> Option<Vec<u8>> {
    let packet = Packet::parse(packet).ok()?;
    if !packet.dont_fragment() || packet.fragment() == Fragment::Later || is_icmp_error(&packet) {
        return None;
    }
    match (from, packet.source(), packet.destination()) {
        (IpAddr::V4(from), IpAddr::V4(to), IpAddr::V4(destination)) => {
            let is_host = |ip: Ipv4Addr| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
            (is_host(to) && is_host(destination)).then(|| too_big_v4(&packet, mtu.max(V4_MIN_MTU), from, to))
        }
        (IpAddr::V6(from), IpAddr::V6(to), IpAddr::V6(_)) => {
            // RFC 4443 2.4 (e.3): a destination may be multicast here.
            let is_host = !to.is_unspecified() && !to.is_multicast();
            is_host.then(|| too_big_v6(&packet, mtu.max(V6_MIN_MTU), from, to))
        }
        _ => None,
    }
}

fn too_big_v4(packet: &Packet<'_>, mtu: u16, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let quoted = beginning(packet, V4_MAX - V4_HEADER - ICMP_HEADER);
    let mut icmp = Writer::new();
    icmp.put(&V4_TYPE_CODE).u16(0).u16(0).u16(mtu).put(quoted);
    icmp.patch_u16(2, !fold(sum(icmp.as_slice())));
    let mut out = Writer::new();
    let total = u16::try_from(V4_HEADER + icmp.len()).unwrap_or(u16::MAX);
    out.u8(0x45).u8(0).u16(total).u16(0).u16(super::DONT_FRAGMENT);
    out.u8(TTL).u8(ICMP).u16(0).put(&from.octets()).put(&to.octets());
    out.patch_u16(10, !fold(sum(out.as_slice())));
    out.put(icmp.as_slice());
    out.finish()
}

fn too_big_v6(packet: &Packet<'_>, mtu: u16, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let quoted = beginning(packet, V6_MAX - V6_HEADER - ICMP_HEADER);
    let mut icmp = Writer::new();
    icmp.put(&V6_TYPE_CODE).u16(0).u32(u32::from(mtu)).put(quoted);
    let len = u16::try_from(icmp.len()).unwrap_or(u16::MAX);
    let mut pseudo = Writer::new(); // RFC 8200 8.1
    pseudo.put(&from.octets()).put(&to.octets()).u32(u32::from(len)).u32(u32::from(ICMPV6));
    icmp.patch_u16(2, !fold(sum(pseudo.as_slice()) + sum(icmp.as_slice())));
    let mut out = Writer::new();
    out.u32(6 << 28).u16(len).u8(ICMPV6).u8(TTL).put(&from.octets()).put(&to.octets());
    out.put(icmp.as_slice());
    out.finish()
}

fn beginning<'a>(packet: &Packet<'a>, max: usize) -> &'a [u8] {
    let bytes = packet.bytes();
    bytes.get(..max).unwrap_or(bytes)
}

/// Errors are not answered with errors.
fn is_icmp_error(packet: &Packet<'_>) -> bool {
    match (packet.protocol(), packet.payload().first()) {
        (ICMP, Some(kind)) => !matches!(kind, 0 | 8 | 9 | 10 | 13..=18), // RFC 1122 3.2.2: the queries
        (ICMPV6, Some(kind)) => *kind < 128 || *kind == 137,             // RFC 4443 2.1; 137 is a redirect
        (ICMP | ICMPV6, None) => true,
        _ => false,
    }
}
