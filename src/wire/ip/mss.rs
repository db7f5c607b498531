//! TCP's maximum segment size: lowered in passing, so that connections through the tunnel never need a packet that does
//! not fit it, even where ICMP is lost.

use std::net::IpAddr;

use super::Fragment;
use super::Packet;
use super::TCP;
use super::V4_HEADER;
use super::V6_HEADER;
use super::fold;
use crate::base::cursor::Reader;

/// Bytes of a TCP header without options (RFC 9293 3.1).
const TCP_HEADER: usize = 20;
/// Where the checksum stands in it.
const CHECKSUM_AT: usize = 16;
/// Flags (RFC 9293 3.1).
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// Option kinds (RFC 9293 3.2).
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;

/// The largest segment that fits packets of `mtu` bytes towards addresses like `peer` (RFC 6691: without options).
#[must_use]
pub fn max_mss(mtu: u16, peer: IpAddr) -> u16 {
    let headers = TCP_HEADER + if peer.is_ipv4() { V4_HEADER } else { V6_HEADER };
    mtu.saturating_sub(u16::try_from(headers).unwrap_or(u16::MAX))
}

/// Lowers the MSS option of a TCP SYN or SYN-ACK to `max_mss` in place and repairs the checksum incrementally (RFC 1624),
/// so a checksum that was wrong stays wrong. Whether it changed anything. Everything else passes untouched: other
/// packets, fragments without the TCP header, SYNs without the option (their senders assume 536).
///
/// The packet's checksum must be finished: not for packets whose checksum an offload still has to complete.
pub fn clamp_mss(packet: &mut [u8], max_mss: u16) -> bool {
    let Some((tcp_at, option)) = find_mss(packet) else { return false };
    let Some(tcp) = packet.get_mut(tcp_at..) else { return false };
    let Some(old) = word(tcp, option) else { return false };
    let Some(checksum) = word(tcp, CHECKSUM_AT) else { return false };
    if old <= max_mss {
        return false;
    }
    // A word that begins at an odd byte is summed with its bytes swapped (RFC 1071 2B).
    let summed = |value: u16| if option % 2 == 0 { value } else { value.swap_bytes() };
    let repaired = !fold(u32::from(!checksum) + u32::from(!summed(old)) + u32::from(summed(max_mss)));
    put_word(tcp, option, max_mss);
    put_word(tcp, CHECKSUM_AT, repaired);
    true
}

/// Where the TCP header begins in the packet, and where the MSS stands in that.
fn find_mss(packet: &[u8]) -> Option<(usize, usize)> {
    let packet = Packet::parse(packet).ok()?;
    if packet.protocol() != TCP || packet.fragment() == Fragment::Later {
        return None;
    }
    let tcp = packet.payload();
    let header_len = usize::from(tcp.get(12)? >> 4) * 4;
    let flags = tcp.get(13)?;
    if flags & SYN == 0 || flags & RST != 0 {
        return None;
    }
    let mut options = Reader::new(tcp.get(TCP_HEADER..header_len)?);
    loop {
        let at = header_len - options.remaining();
        match options.u8().ok()? {
            END => return None,
            NOP => {}
            kind => {
                let len = usize::from(options.u8().ok()?);
                options.take(len.checked_sub(2)?).ok()?;
                if kind == MSS && len == 4 {
                    return Some((packet.payload_at(), at + 2));
                }
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Reader::new(bytes.get(at..)?).u16().ok()
}

fn put_word(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(slot) = bytes.get_mut(at..at + 2) {
        slot.copy_from_slice(&value.to_be_bytes());
    }
}
