//! The first packets of a TCP connection, as a relay that splices two of them into one sees and makes them.
//!
//! ```text
//! member A                    relay R                    member B
//!   | SYN, seq a ------------> p |                           |
//!   |                          | q <------------ SYN, seq b  |
//!   | <-- SYN-ACK, seq b, ack a+1 | SYN-ACK, seq a, ack b+1 --> |
//!   | ACK, data: seq a+1, ack b+1 -- addresses rewritten --> |
//! ```
//!
//! Each member gets an answer made of the *other's* SYN, so both kernels count as if they had met each other, and
//! everything that follows needs new addresses only. Options are those that both sides know: an option in force on one
//! side only would be an error. MD5 and AO signatures, MPTCP and fast open are left out: they do not survive NATs anyway.
//!
//! Packets come from strangers: lengths are checked, nothing is believed. Checksums are not checked, because the sender's
//! own kernel may have left them to its network card when the relay reads them; a SYN is only believed as far as its
//! source has been authenticated elsewhere.

use std::net::IpAddr;
use std::net::SocketAddr;

use super::WireError;
use super::ip;
use super::ip::Fragment;
use super::ip::Packet;
use super::ip::emit;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;

/// Flags of a TCP header (RFC 9293 3.1, RFC 3168 6.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
/// Option kinds: RFC 9293 3.2, RFC 7323 2.2 and 3.2, RFC 2018 2.
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const SCALE: u8 = 3;
const SACK: u8 = 4;
const STAMPS: u8 = 8;
/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;
/// Largest shift of a window (RFC 7323 2.3).
const MAX_SCALE: u8 = 14;
/// Hops that an answer may take (the default of most systems).
const TTL: u8 = 64;
/// ICMP "fragmentation needed" (RFC 1191 4) and ICMPv6 "packet too big" (RFC 4443 3.2), type and code.
const FRAGMENTATION_NEEDED: (u8, u8) = (3, 4);
const PACKET_TOO_BIG: (u8, u8) = (2, 0);

/// The opening segment of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syn {
    /// Who dials, as the relay sees it.
    pub from: SocketAddr,
    /// What was dialled: an address of the relay.
    pub to: SocketAddr,
    /// Its initial sequence number.
    pub isn: u32,
    window: u16,
    ecn: bool,
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    stamp: Option<u32>,
}

/// Two connections that are one: what each side dialled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The session's first side.
    pub first: Syn,
    /// Its second.
    pub second: Syn,
}

impl Pair {
    /// The SYN-ACKs that make it one connection, each with its destination.
    #[must_use]
    pub fn answers(&self, max_segment: u16) -> [(IpAddr, Vec<u8>); 2] {
        [
            self.first.answered_with(&self.second, max_segment),
            self.second.answered_with(&self.first, max_segment),
        ]
    }
}

impl Syn {
    /// Reads a packet that opens a connection.
    ///
    /// # Errors
    /// [`WireError::Unknown`] if it is anything else; [`WireError::Invalid`] or [`WireError::Truncated`] if it is broken.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let packet = Packet::parse(packet)?;
        if packet.protocol() != ip::TCP || packet.fragment() != Fragment::Whole {
            return Err(WireError::Unknown);
        }
        Self::read(packet.payload(), packet.source(), packet.destination())
    }

    /// Reads the TCP header of a packet that opened a connection between two endpoints, whatever ports it names: NATs have
    /// changed them since.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn between(header: &[u8], from: SocketAddr, to: SocketAddr) -> Result<Self, WireError> {
        Ok(Self { from, to, ..Self::read(header, from.ip(), to.ip())? })
    }

    fn read(segment: &[u8], from_ip: IpAddr, to_ip: IpAddr) -> Result<Self, WireError> {
        let mut tcp = Reader::new(segment);
        let (from, to) = (tcp.u16()?, tcp.u16()?);
        let (isn, _ack) = (tcp.u32()?, tcp.u32()?);
        let (offset, flags) = (tcp.u8()?, tcp.u8()?);
        let (window, _checksum, _urgent) = (tcp.u16()?, tcp.u16()?, tcp.u16()?);
        if flags & (SYN | ACK | RST | FIN) != SYN {
            return Err(WireError::Unknown);
        }
        let options = (usize::from(offset >> 4) * 4).checked_sub(TCP_HEADER).ok_or(WireError::Invalid)?;
        let mut syn = Self {
            from: SocketAddr::new(from_ip, from),
            to: SocketAddr::new(to_ip, to),
            isn,
            window,
            ecn: flags & (ECE | CWR) == ECE | CWR,
            mss: None,
            scale: None,
            sack: false,
            stamp: None,
        };
        syn.read_options(tcp.take(options)?)?;
        Ok(syn)
    }

    fn read_options(&mut self, options: &[u8]) -> Result<(), WireError> {
        let mut reader = Reader::new(options);
        while !reader.is_empty() {
            let kind = reader.u8()?;
            if kind == END {
                break;
            }
            if kind == NOP {
                continue;
            }
            let len = usize::from(reader.u8()?).checked_sub(2).ok_or(WireError::Invalid)?;
            let mut value = Reader::new(reader.take(len)?);
            match (kind, len) {
                (MSS, 2) => self.mss = Some(value.u16()?),
                (SCALE, 1) => self.scale = Some(value.u8()?.min(MAX_SCALE)),
                (SACK, 0) => self.sack = true,
                (STAMPS, 8) => self.stamp = Some(value.u32()?),
                _ => {}
            }
        }
        Ok(())
    }

    /// The SYN-ACK that tells the sender of this SYN that it has met the sender of `other`: where it goes, and the whole IP
    /// packet. No segment larger than `max_segment` is promised.
    #[must_use]
    pub fn answered_with(&self, other: &Self, max_segment: u16) -> (IpAddr, Vec<u8>) {
        let mut options = Writer::new();
        if let Some(mss) = other.mss {
            options.u8(MSS).u8(4).u16(mss.min(max_segment));
        }
        if self.sack && other.sack {
            options.put(&[NOP, NOP, SACK, 2]);
        }
        if let (Some(own), Some(others)) = (self.stamp, other.stamp) {
            options.put(&[NOP, NOP, STAMPS, 10]).u32(others).u32(own);
        }
        if let (Some(_), Some(scale)) = (self.scale, other.scale) {
            options.put(&[NOP, SCALE, 3, scale]);
        }
        let options = options.finish();
        let ecn = if self.ecn && other.ecn { ECE } else { 0 };
        let words = u8::try_from((TCP_HEADER + options.len()) / 4).unwrap_or(u8::MAX >> 4);
        let mut tcp = Writer::new();
        tcp.u16(self.to.port()).u16(self.from.port()).u32(other.isn).u32(self.isn.wrapping_add(1));
        tcp.u8(words << 4).u8(SYN | ACK | ecn).u16(other.window).u16(0).u16(0).put(&options);
        (self.from.ip(), emit::packet(self.to.ip(), self.from.ip(), ip::TCP, TTL, tcp, 16))
    }
}

/// A router's word that a packet of a spliced connection was too big for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooBig {
    /// The relay's end of the packet that did not fit.
    pub from: SocketAddr,
    /// The member that it was meant for.
    pub to: SocketAddr,
    seq: u32,
    mtu: u16,
}

impl TooBig {
    /// Reads an ICMP message about a TCP segment.
    ///
    /// # Errors
    /// [`WireError::Unknown`] if it is anything else; [`WireError::Invalid`] or [`WireError::Truncated`] if it is broken.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let packet = Packet::parse(packet)?;
        let wanted = match packet.protocol() {
            ip::ICMP => FRAGMENTATION_NEEDED,
            ip::ICMPV6 => PACKET_TOO_BIG,
            _ => return Err(WireError::Unknown),
        };
        if packet.fragment() != Fragment::Whole {
            return Err(WireError::Unknown);
        }
        let mut icmp = Reader::new(packet.payload());
        if (icmp.u8()?, icmp.u8()?) != wanted {
            return Err(WireError::Unknown);
        }
        let (_checksum, high, low) = (icmp.u16()?, icmp.u16()?, icmp.u16()?);
        // RFC 4443 3.2 has 32 bits for it, and no link of today needs them.
        let mtu = if wanted == PACKET_TOO_BIG && high != 0 { u16::MAX } else { low };
        let (from, to, seq) = quoted(icmp.rest())?;
        if from.is_ipv4() != packet.source().is_ipv4() {
            return Err(WireError::Invalid);
        }
        Ok(Self { from, to, seq, mtu })
    }

    /// The same word for the member whose packet it was in truth: `source` has dialled `gate`. Where it goes, and the whole
    /// IP packet.
    #[must_use]
    pub fn passed_on(&self, source: SocketAddr, gate: SocketAddr) -> (IpAddr, Vec<u8>) {
        let mut inner = Writer::new();
        inner.u16(source.port()).u16(gate.port()).u32(self.seq);
        // The beginning of a segment has no checksum.
        let inner = emit::packet(source.ip(), gate.ip(), ip::TCP, TTL, inner, usize::MAX);
        let (protocol, (kind, code)) = match source.ip() {
            IpAddr::V4(_) => (ip::ICMP, FRAGMENTATION_NEEDED),
            IpAddr::V6(_) => (ip::ICMPV6, PACKET_TOO_BIG),
        };
        let mut icmp = Writer::new();
        icmp.u8(kind).u8(code).u16(0).u16(0).u16(self.mtu).put(&inner);
        (source.ip(), emit::packet(gate.ip(), source.ip(), protocol, TTL, icmp, 2))
    }
}

/// Source, destination and sequence number of the TCP segment of which a router quotes the beginning: perhaps no more than
/// 8 bytes behind the IP header (RFC 792), so the length in that header means nothing here.
fn quoted(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr, u32), WireError> {
    let mut reader = Reader::new(bytes);
    let first = reader.u8()?;
    let (source, destination): (IpAddr, IpAddr) = match first >> 4 {
        4 => {
            reader.take(8)?;
            let protocol = reader.u8()?;
            reader.u16()?;
            let (source, destination) = (reader.array::<4>()?, reader.array::<4>()?);
            let options = (usize::from(first & 0x0f) * 4).checked_sub(20).ok_or(WireError::Invalid)?;
            reader.take(options)?;
            if protocol != ip::TCP {
                return Err(WireError::Unknown);
            }
            (source.into(), destination.into())
        }
        6 => {
            reader.take(5)?;
            let protocol = reader.u8()?;
            reader.u8()?;
            if protocol != ip::TCP {
                return Err(WireError::Unknown);
            }
            (reader.array::<16>()?.into(), reader.array::<16>()?.into())
        }
        _ => return Err(WireError::Invalid),
    };
    let (from, to, seq) = (reader.u16()?, reader.u16()?, reader.u32()?);
    Ok((SocketAddr::new(source, from), SocketAddr::new(destination, to), seq))
}

/// Packets for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A SYN of Linux 6: MSS 1460, SACK, timestamps, scale 7, ECN.
    pub(crate) fn linux(from: &str, to: &str, isn: u32, stamp: u32, flags: u8) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut tcp = Writer::new();
        tcp.u16(from.port()).u16(to.port()).u32(isn).u32(0).u8(10 << 4).u8(flags).u16(64240).u16(0).u16(0);
        tcp.put(&[2, 4, 0x05, 0xb4, 4, 2, 8, 10]).u32(stamp).u32(0).put(&[1, 3, 3, 7]);
        emit::packet(from.ip(), to.ip(), ip::TCP, TTL, tcp, 16)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::linux;
    use super::*;

    const A: &str = "192.0.2.1:1111";
    const B: &str = "198.51.100.9:2222";

    fn pair() -> (Syn, Syn) {
        let a = Syn::parse(&linux(A, "203.0.113.5:20001", 1000, 77, SYN | ECE | CWR)).unwrap();
        let b = Syn::parse(&linux(B, "203.0.113.5:20002", 0xffff_ffff, 88, SYN | ECE | CWR)).unwrap();
        (a, b)
    }

    #[test]
    fn a_members_syn_is_answered_with_what_the_other_member_said() {
        let (a, b) = pair();
        let (to, answer) = a.answered_with(&b, 1400);
        let packet = Packet::parse(&answer).unwrap();
        assert_eq!((to, packet.source(), packet.destination()), (a.from.ip(), a.to.ip(), a.from.ip()));
        let mut tcp = Reader::new(packet.payload());
        assert_eq!((tcp.u16(), tcp.u16()), (Ok(20001), Ok(1111)));
        assert_eq!(
            (tcp.u32(), tcp.u32()),
            (Ok(0xffff_ffff), Ok(1001)),
            "their sequence, our acknowledgement"
        );
        assert_eq!(tcp.u16(), Ok(0xb000 | u16::from(SYN | ACK | ECE)));
        assert_eq!(tcp.u16(), Ok(64240));
        let (_sum, _urgent) = (tcp.u16(), tcp.u16());
        let wanted = [
            &[2, 4, 0x05, 0x78, 1, 1, 4, 2, 1, 1, 8, 10][..],
            &88_u32.to_be_bytes(),
            &77_u32.to_be_bytes(),
            &[1, 3, 3, 7],
        ];
        assert_eq!(tcp.rest(), wanted.concat(), "MSS clamped, both times, their scale");
        assert!(is_summed(&answer));
        // Neither side has a number of its own for the other: the two answers cross over.
        let (_, back) = b.answered_with(&a, 1400);
        let packet = Packet::parse(&back).unwrap();
        assert_eq!(&packet.payload()[4..12], &[&1000_u32.to_be_bytes()[..], &[0; 4]].concat());
    }

    #[test]
    fn an_option_is_in_force_only_if_both_sides_know_it() {
        let (a, b) = pair();
        let bare = Syn { ecn: false, mss: None, scale: None, sack: false, stamp: None, ..b };
        let (_, to_a) = a.answered_with(&bare, 1400);
        assert_eq!(Packet::parse(&to_a).unwrap().payload().len(), TCP_HEADER, "nothing that b does not know");
        let (_, to_b) = bare.answered_with(&a, 1400);
        assert_eq!(&Packet::parse(&to_b).unwrap().payload()[TCP_HEADER..], &[2, 4, 0x05, 0x78], "a's MSS");
        assert_eq!(Packet::parse(&to_b).unwrap().payload()[13], SYN | ACK, "no ECN");
    }

    #[test]
    fn ipv6_works_the_same() {
        let (a, b) = ("[2001:db8::1]:1111", "[2001:db8:2::1]:2222");
        let a = Syn::parse(&linux(a, "[2001:db8:5::5]:20001", 5, 1, SYN)).unwrap();
        let b = Syn::parse(&linux(b, "[2001:db8:5::5]:20002", 6, 2, SYN)).unwrap();
        for (to, answer) in (Pair { first: a, second: b }).answers(1400) {
            let packet = Packet::parse(&answer).unwrap();
            assert_eq!(packet.destination(), to);
            assert!(is_summed(&answer));
        }
    }

    #[test]
    fn only_a_bare_syn_is_one() {
        for flags in [SYN | ACK, ACK, RST, SYN | RST, SYN | FIN, 0] {
            assert_eq!(
                Syn::parse(&linux(A, "203.0.113.5:1", 1, 1, flags)),
                Err(WireError::Unknown),
                "{flags:#x}"
            );
        }
    }

    #[test]
    fn a_syn_that_is_cut_or_whose_options_lie_is_refused() {
        let whole = linux(A, "203.0.113.5:1", 1, 1, SYN);
        for n in 0..whole.len() {
            assert!(Syn::parse(&whole[..n]).is_err(), "cut at {n}");
        }
        let mut liar = whole.clone();
        liar[41] = 40; // the length of the first option
        assert_eq!(Syn::parse(&liar), Err(WireError::Truncated));
        liar[41] = 1;
        assert_eq!(Syn::parse(&liar), Err(WireError::Invalid));
        let mut short = whole;
        short[32] = 4 << 4; // a header shorter than a header
        assert_eq!(Syn::parse(&short), Err(WireError::Invalid));
    }

    #[test]
    fn a_routers_complaint_reaches_the_member_whose_packet_it_was() {
        for (router, relay, b, a, gate) in [
            ("192.0.2.77", "203.0.113.5:20002", B, A, "203.0.113.5:20001"),
            (
                "2001:db8::7",
                "[2001:db8:5::5]:2",
                "[2001:db8:2::1]:22",
                "[2001:db8::1]:1",
                "[2001:db8:5::5]:1",
            ),
        ] {
            let [relay, b, a, gate] = [relay, b, a, gate].map(|text| text.parse::<SocketAddr>().unwrap());
            let heard = TooBig { from: relay, to: b, seq: 7, mtu: 1400 };
            // As the router writes it: about a segment from the relay to b.
            let mut inner = Writer::new();
            inner.u16(relay.port()).u16(b.port()).u32(7);
            let inner = emit::packet(relay.ip(), b.ip(), ip::TCP, TTL, inner, usize::MAX);
            let (protocol, kind) = if a.is_ipv4() { (ip::ICMP, 0x0304) } else { (ip::ICMPV6, 0x0200) };
            let mut icmp = Writer::new();
            icmp.u16(kind).u16(0).u16(0).u16(1400).put(&inner);
            let told = emit::packet(router.parse().unwrap(), relay.ip(), protocol, TTL, icmp, 2);
            assert_eq!(TooBig::parse(&told), Ok(heard));
            for n in 0..told.len() {
                assert!(TooBig::parse(&told[..n]).is_err(), "cut at {n}");
            }
            let (to, passed) = heard.passed_on(a, gate);
            assert_eq!(to, a.ip());
            assert!(is_summed(&passed));
            assert_eq!(TooBig::parse(&passed), Ok(TooBig { from: a, to: gate, seq: 7, mtu: 1400 }));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Syn::parse(&bytes);
            let _ = TooBig::parse(&bytes);
        }
    }

    /// Whether the checksum behind the IP header is right, counted afresh.
    fn is_summed(bytes: &[u8]) -> bool {
        let packet = Packet::parse(bytes).unwrap();
        let mut pseudo = Writer::new();
        if packet.protocol() != ip::ICMP {
            match (packet.source(), packet.destination()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => pseudo.put(&a.octets()).put(&b.octets()),
                (IpAddr::V6(a), IpAddr::V6(b)) => pseudo.put(&a.octets()).put(&b.octets()),
                _ => unreachable!(),
            };
            pseudo.u16(u16::from(packet.protocol())).u16(u16::try_from(packet.payload().len()).unwrap());
        }
        emit::checksum(&[pseudo.as_slice(), packet.payload()]) == 0
    }
}
