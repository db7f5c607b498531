//! TCP segments as a kernel hands them over, IP header first: what the SYN of a connection was (tcp(7), `TCP_SAVED_SYN`)
//! or what a packet socket caught.

use std::net::SocketAddr;

use super::stunt::Segment;
use crate::base::cursor::Reader;
use crate::wire::WireError;
use crate::wire::ip::Fragment;
use crate::wire::ip::Packet;
use crate::wire::ip::TCP;

/// Bytes of a TCP header without options (RFC 9293 3.1).
const TCP_HEADER: usize = 20;

/// From where to where a captured segment went, and what it says. Its age and the server's address are not in it.
///
/// # Errors
/// [`WireError::Unknown`] for what is no TCP segment, otherwise whatever is wrong with the bytes.
pub fn read(packet: &[u8]) -> Result<(SocketAddr, SocketAddr, Segment), WireError> {
    let ip = Packet::parse(packet)?;
    if ip.protocol() != TCP || ip.fragment() != Fragment::Whole {
        return Err(WireError::Unknown);
    }
    let mut reader = Reader::new(ip.payload());
    let (source, destination) = (reader.u16()?, reader.u16()?);
    let (sequence, acknowledgment) = (reader.u32()?, reader.u32()?);
    let (offset, flags, window) = (reader.u8()?, reader.u8()?, reader.u16()?);
    let _checksum_and_urgent = reader.u32()?;
    let options = (usize::from(offset >> 4) * 4).checked_sub(TCP_HEADER).ok_or(WireError::Invalid)?;
    let segment = Segment {
        flags,
        ttl: ttl(packet)?,
        source,
        destination,
        sequence,
        acknowledgment,
        window,
        options: reader.take(options)?.to_vec(),
        ..Segment::default()
    };
    Ok((SocketAddr::new(ip.source(), source), SocketAddr::new(ip.destination(), destination), segment))
}

/// The TTL of an IPv4 header is its ninth byte, the hop limit of an IPv6 header its eighth.
fn ttl(packet: &[u8]) -> Result<u8, WireError> {
    let mut reader = Reader::new(packet);
    let skip = if reader.u8()? >> 4 == 4 { 7 } else { 6 };
    reader.take(skip)?;
    Ok(reader.u8()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::cursor::Writer;
    use crate::wire::ip::emit;

    const MSS: [u8; 4] = [2, 4, 5, 180];

    fn syn(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut tcp = Writer::new();
        tcp.u16(from.port()).u16(to.port()).u32(7).u32(8).u8(6 << 4).u8(2).u16(9).u32(0).put(&MSS);
        emit::packet(from.ip(), to.ip(), TCP, 61, tcp, 16)
    }

    #[test]
    fn a_segment_is_read_in_both_families() {
        for (from, to) in
            [("192.0.2.1:4242", "198.51.100.1:3480"), ("[2001:db8::1]:4242", "[2001:db8::2]:3480")]
        {
            let (source, destination, segment) = read(&syn(from, to)).unwrap();
            assert_eq!((source, destination), (from.parse().unwrap(), to.parse().unwrap()));
            let wanted = Segment {
                flags: 2,
                ttl: 61,
                source: 4242,
                destination: 3480,
                sequence: 7,
                acknowledgment: 8,
                window: 9,
                options: MSS.to_vec(),
                ..Segment::default()
            };
            assert_eq!(segment, wanted);
        }
    }

    #[test]
    fn what_is_cut_short_or_no_segment_is_an_error() {
        let whole = syn("192.0.2.1:4242", "198.51.100.1:3480");
        for n in 0..whole.len() {
            assert!(read(&whole[..n]).is_err(), "cut at {n}");
        }
        let mut udp = whole.clone();
        udp[9] = 17;
        assert_eq!(read(&udp), Err(WireError::Unknown));
        let mut short = whole;
        short[32] = 4 << 4; // a TCP header of 16 bytes
        assert_eq!(read(&short), Err(WireError::Invalid));
    }
}
