//! A bare TCP segment over IPv4 (RFC 9293 3.1): no options, no data.
//!
//! ```text
//! | source port, u16 | destination port, u16 | sequence number, u32 | acknowledgment number, u32 |
//! | 5 words, u8 | flags, u8 | window, u16 | checksum, u16 | urgent 0, u16 |
//! ```

use std::net::SocketAddrV4;

use super::ip;
use super::ip::emit;
use crate::base::cursor::Writer;

/// Bytes of it.
pub const LEN: usize = 20;
/// What it says of the receiver's room: the largest that needs no scaling.
const WINDOW: u16 = u16::MAX;
/// Bytes of an IPv4 header without options, which the kernel writes itself.
const IP_HEADER: usize = 20;

/// The bytes, with a right checksum.
#[must_use]
pub fn emit(from: SocketAddrV4, to: SocketAddrV4, sequence: u32, acknowledgment: u32, flags: u8) -> Vec<u8> {
    let mut tcp = Writer::new();
    tcp.u16(from.port()).u16(to.port()).u32(sequence).u32(acknowledgment);
    tcp.u8(5 << 4).u8(flags).u16(WINDOW).u16(0).u16(0);
    emit::packet((*from.ip()).into(), (*to.ip()).into(), ip::TCP, 0, tcp, 16).split_off(IP_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_these_bytes_and_its_checksum_is_right() {
        let (from, to) = ("192.0.2.1:4660".parse().unwrap(), "198.51.100.7:80".parse().unwrap());
        let bytes = emit(from, to, 0x0102_0304, 0x0506_0708, 0x12);
        assert_eq!(bytes.len(), LEN);
        assert_eq!(bytes[..16], [0x12, 0x34, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x12, 0xff, 0xff]);
        let pseudo = [&[192, 0, 2, 1, 198, 51, 100, 7, 0, 6, 0, 20][..], &bytes].concat();
        assert_eq!(emit::checksum(&[&pseudo]), 0);
    }
}
