//! Whole IP packets that a program makes itself, with their checksums (RFC 791, RFC 8200, RFC 1071).

use std::net::IpAddr;

use super::ICMP;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;

/// Puts an IP header before `payload` and, at `checksum_at` in the payload, the checksum over both that TCP, ICMP and ICMPv6
/// have there. Addresses of different families are written as IPv6.
#[must_use]
pub fn packet(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    ttl: u8,
    mut payload: Writer,
    checksum_at: usize,
) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let (mut header, mut pseudo) = (Writer::new(), Writer::new());
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        /// Version 4, five words.
        const VERSION_AND_LENGTH: u8 = 0x45;
        const DONT_FRAGMENT: u16 = 0x4000;
        header.u8(VERSION_AND_LENGTH).u8(0).u16(len.saturating_add(20)).u16(0).u16(DONT_FRAGMENT);
        header.u8(ttl).u8(protocol).u16(0).put(&from.octets()).put(&to.octets());
        let sum = checksum(&[header.as_slice()]);
        header.patch_u16(10, sum);
        if protocol != ICMP {
            pseudo.put(&from.octets()).put(&to.octets()).u16(protocol.into()).u16(len);
        }
    } else {
        let [from, to] = [from, to].map(|ip| match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        });
        header.u32(0x6000_0000).u16(len).u8(protocol).u8(ttl).put(&from).put(&to);
        pseudo.put(&from).put(&to).u16(protocol.into()).u16(len);
    }
    payload.patch_u16(checksum_at, 0);
    let sum = checksum(&[pseudo.as_slice(), payload.as_slice()]);
    payload.patch_u16(checksum_at, sum);
    header.put(payload.as_slice());
    header.finish()
}

/// The Internet checksum over parts of even length; the last one may be odd.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        let mut reader = Reader::new(part);
        while let Ok(word) = reader.u16() {
            sum += u64::from(word);
        }
        sum += reader.u8().map_or(0, |last| u64::from(last) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::Packet;
    use super::super::TCP;
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // RFC 1071 3: 0001 f203 f4f5 f6f7 sum to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&bytes]), !0xddf2);
        assert_eq!(checksum(&[&bytes[..4], &bytes[4..]]), !0xddf2);
        assert_eq!(checksum(&[&[0x12]]), !0x1200);
    }

    #[test]
    fn a_packet_that_is_made_is_a_packet_that_is_read_and_sums_to_zero() {
        for (from, to) in [("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8::2")] {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let mut tcp = Writer::new();
            tcp.put(&[7; 20]).u8(1);
            let bytes = packet(from, to, TCP, 9, tcp, 16);
            let read = Packet::parse(&bytes).unwrap();
            assert_eq!((read.source(), read.destination(), read.protocol()), (from, to, TCP));
            let mut pseudo = Writer::new();
            match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    assert_eq!(checksum(&[&bytes[..20]]), 0);
                    pseudo.put(&from.octets()).put(&to.octets())
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => pseudo.put(&from.octets()).put(&to.octets()),
                _ => unreachable!("of one family"),
            };
            pseudo.u16(6).u16(21);
            assert_eq!(checksum(&[pseudo.as_slice(), read.payload()]), 0);
        }
    }
}
