//! The packets that a STUNT server answers a client's SYN with in place of its kernel: RST, SYN-ACK, ICMP errors. IPv4 alone.

use std::net::SocketAddr;

use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::wire::ip;
use crate::wire::ip::emit;
use crate::wire::stun::stunt::ACK;
use crate::wire::stun::stunt::RST;
use crate::wire::stun::stunt::SYN;

/// Hops that a packet may take (the default of most systems).
const TTL: u8 = 64;
/// The TTL that a router finds in a packet that it lets die (RFC 1812 5.3.1).
const LAST_HOP: u8 = 1;
/// What our SYN-ACK offers as its window: that of Linux.
const WINDOW: u16 = 64_240;
/// What it announces as its largest segment: what passes everywhere (RFC 8200 5 less headers). No data will ever come.
const MSS: [u8; 4] = [2, 4, 0x04, 0xc4];
/// Bytes of a TCP header without options, in 4-byte words, where the header says so.
const BARE: u8 = 5 << 4;

/// A SYN that a client sent, as far as an answer needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Syn {
    /// The client, as the server sees it.
    pub from: SocketAddr,
    /// Where it arrived.
    pub to: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
}

/// Nobody listens here (RFC 9293 3.10.7.1).
#[must_use]
pub fn reset(syn: &Syn) -> Vec<u8> {
    segment(syn, 0, RST | ACK, BARE, 0, &[])
}

/// Welcome, says a peer whose own numbers begin at `sequence`. It knows no options but the largest segment, so none that
/// the client offered is in force.
#[must_use]
pub fn syn_ack(syn: &Syn, sequence: u32) -> Vec<u8> {
    segment(syn, sequence, SYN | ACK, BARE + (1 << 4), WINDOW, &MSS)
}

/// A router's word about the SYN (RFC 792): `kind` 3 for "unreachable", 11 for "time exceeded". It quotes the IP header and
/// the first 8 bytes behind it, which is what a NAT recognises the connection by.
#[must_use]
pub fn icmp(syn: &Syn, kind: u8, code: u8) -> Vec<u8> {
    let mut head = Writer::new();
    head.u16(syn.from.port()).u16(syn.to.port()).u32(syn.sequence);
    // The checksum of the quoted segment lies behind what is quoted.
    let quoted = emit::packet(syn.from.ip(), syn.to.ip(), ip::TCP, LAST_HOP, head, usize::MAX);
    let mut icmp = Writer::new();
    icmp.u8(kind).u8(code).u16(0).u32(0).put(&whole(&quoted));
    emit::packet(syn.to.ip(), syn.from.ip(), ip::ICMP, TTL, icmp, 2)
}

fn segment(syn: &Syn, sequence: u32, flags: u8, offset: u8, window: u16, options: &[u8]) -> Vec<u8> {
    let mut tcp = Writer::new();
    tcp.u16(syn.to.port()).u16(syn.from.port()).u32(sequence).u32(syn.sequence.wrapping_add(1));
    tcp.u8(offset).u8(flags).u16(window).u16(0).u16(0).put(options);
    emit::packet(syn.to.ip(), syn.from.ip(), ip::TCP, TTL, tcp, 16)
}

/// Makes the quoted header say the length of the whole SYN, not of what is quoted of it.
fn whole(quoted: &[u8]) -> Vec<u8> {
    /// IP and TCP header with 20 bytes of options, as Linux sends them.
    const SYN_LEN: u16 = 60;
    let mut header = Writer::new();
    let mut reader = Reader::new(quoted);
    let Ok(ip) = reader.take(20) else { return quoted.to_vec() };
    header.put(ip);
    header.patch_u16(2, SYN_LEN);
    header.patch_u16(10, 0);
    let sum = emit::checksum(&[header.as_slice()]);
    header.patch_u16(10, sum);
    header.put(reader.rest());
    header.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::Packet;
    use crate::wire::stun::captured;

    fn syn() -> Syn {
        Syn {
            from: "203.0.113.5:4242".parse().unwrap(),
            to: "198.51.100.1:3480".parse().unwrap(),
            sequence: u32::MAX,
        }
    }

    #[test]
    fn segments_answer_the_syn() {
        for (bytes, flags, sequence) in [(reset(&syn()), RST | ACK, 0), (syn_ack(&syn(), 99), SYN | ACK, 99)]
        {
            let (from, to, segment) = captured::read(&bytes).unwrap();
            assert_eq!((from, to), (syn().to, syn().from));
            assert_eq!((segment.flags, segment.sequence, segment.acknowledgment), (flags, sequence, 0));
        }
        let (.., welcome) = captured::read(&syn_ack(&syn(), 99)).unwrap();
        assert_eq!(welcome.mss(), Some(1220));
    }

    #[test]
    fn an_icmp_error_quotes_the_beginning_of_the_syn() {
        let bytes = icmp(&syn(), 11, 0);
        let outer = Packet::parse(&bytes).unwrap();
        assert_eq!((outer.source(), outer.destination()), (syn().to.ip(), syn().from.ip()));
        assert_eq!(outer.protocol(), ip::ICMP);
        let (head, quoted) = outer.payload().split_at(8);
        assert_eq!(head[..2], [11, 0]);
        assert_eq!(emit::checksum(&[outer.payload()]), 0);
        assert_eq!(quoted.len(), 28);
        assert_eq!(
            (quoted[8], emit::checksum(&[&quoted[..20]])),
            (1, 0),
            "it died here, with a right checksum"
        );
        assert_eq!(quoted[12..16], [203, 0, 113, 5]);
        assert_eq!(quoted[20..28], [0x10, 0x92, 0x0d, 0x98, 0xff, 0xff, 0xff, 0xff]);
    }
}
