//! A packet that stands for many, sealed as one message: what follows it there, and what of it may be believed.
//!
//! ```text
//! +------------------------------+---------------------------+----------------------+
//! | IP packet, up to 65,535      | payload of each segment,  | zeros, up to a       |
//! | bytes by its own length      | 16 bits, not 0            | multiple of 16 bytes |
//! +------------------------------+---------------------------+----------------------+
//! ```
//!
//! Behind an ordinary packet there are only zeros, or nothing. A super-packet has the headers of its first segment and the
//! payload of all; its checksum is the receiver's to write, because the seal protects it better. It never leaves for
//! anybody who has not said that he opens it ([`crate::wire::stun::SUPER_PACKETS`]).

use std::num::NonZeroU16;

use super::ip;

/// Bytes behind the packet.
pub const TRAILER_LEN: usize = 2;
/// Segments of TCP are no smaller than that: the kernel's own limit (`TCP_MIN_SND_MSS`), less the options in it.
const TCP_LEAST: u16 = 8;
/// Segments of UDP in one packet at most (`UDP_MAX_SEGMENTS` since Linux 6.8).
const UDP_MOST: usize = 128;

/// What a sealed message held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// One packet.
    Packet,
    /// A super-packet with so much payload in each segment but the last.
    SuperPacket(NonZeroU16),
    /// A super-packet that nobody could have made.
    Impossible,
}

/// The bytes behind a packet whose segments have `size` bytes of payload.
#[must_use]
pub fn trailer(size: NonZeroU16) -> [u8; TRAILER_LEN] {
    size.get().to_be_bytes()
}

/// Reads what follows `packet`. Segments of TCP are made to fit `mtu`, the receiver's; those of UDP are what they are.
#[must_use]
pub fn read(packet: &ip::Packet<'_>, rest: &[u8], mtu: usize) -> Held {
    let size = rest.first_chunk().and_then(|bytes| NonZeroU16::new(u16::from_be_bytes(*bytes)));
    let Some(size) = size else { return Held::Packet };
    believe(packet, size, mtu).map_or(Held::Impossible, Held::SuperPacket)
}

fn believe(packet: &ip::Packet<'_>, size: NonZeroU16, mtu: usize) -> Option<NonZeroU16> {
    if packet.is_fragment() {
        return None;
    }
    let transport = match packet.protocol() {
        ip::TCP => usize::from(packet.payload().get(12)? >> 4) * 4,
        ip::UDP => 8,
        _ => return None,
    };
    let payload = packet.payload().len().checked_sub(transport).filter(|len| *len > 0)?;
    if packet.protocol() == ip::UDP {
        return (payload.div_ceil(usize::from(size.get())) <= UDP_MOST).then_some(size);
    }
    let fits = mtu.saturating_sub(packet.payload_at() + transport);
    let fits = NonZeroU16::new(u16::try_from(fits).unwrap_or(u16::MAX))?;
    Some(size.min(fits)).filter(|size| size.get() >= TCP_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 packet of `protocol` with `payload` bytes behind a header of 20 (TCP) or 8 bytes.
    fn packet(protocol: u8, payload: usize) -> Vec<u8> {
        let transport = if protocol == ip::TCP { 20 } else { 8 };
        let len = u16::try_from(20 + transport + payload).unwrap();
        let mut packet = vec![0; usize::from(len)];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[9] = protocol;
        packet[32.min(usize::from(len) - 1)] = 5 << 4;
        packet
    }

    #[test]
    fn what_follows_a_packet_says_what_it_is() {
        let size = |n| Held::SuperPacket(NonZeroU16::new(n).unwrap());
        for (protocol, payload, rest, held) in [
            (ip::TCP, 9000, &[][..], Held::Packet),
            (ip::TCP, 9000, &[5], Held::Packet),
            (ip::TCP, 9000, &[0, 0, 0, 0], Held::Packet),
            (ip::TCP, 9000, &[5, 0], size(1280)),
            (ip::TCP, 9000, &[5, 0, 0, 0, 0, 0], size(1280)),
            (ip::TCP, 9000, &[9, 0], size(1340)),
            (ip::TCP, 9000, &[0, 7], Held::Impossible),
            (ip::TCP, 0, &[5, 0], Held::Impossible),
            (ip::UDP, 9000, &[9, 0], size(0x900)),
            (ip::UDP, 9000, &[0, 70], Held::Impossible),
            (ip::ICMP, 9000, &[5, 0], Held::Impossible),
        ] {
            let bytes = packet(protocol, payload);
            let packet = ip::Packet::parse(&bytes).unwrap();
            assert_eq!(read(&packet, rest, 1380), held, "{protocol} {payload} {rest:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(size in 8..=1340_u16, payload in 1..60_000_usize) {
            let bytes = packet(ip::TCP, payload);
            let size = NonZeroU16::new(size).unwrap();
            let held = read(&ip::Packet::parse(&bytes).unwrap(), &trailer(size), 1380);
            prop_assert_eq!(held, Held::SuperPacket(size));
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, rest: Vec<u8>, mtu: usize) {
            if let Ok(packet) = ip::Packet::parse(&bytes) {
                let _ = read(&packet, &rest, mtu);
            }
        }
    }
}
