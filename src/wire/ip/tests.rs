//! IP packets: what is read, what is refused, what is changed.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const V4_A: [u8; 4] = [10, 77, 0, 1];
const V4_B: [u8; 4] = [10, 77, 0, 2];

#[test]
fn an_ipv4_packet_is_cut_out_of_its_buffer() {
    let mut buffer = v4(UDP, 0, &[0x12, 0x34, 0, 53, 0, 8, 0, 0]);
    buffer[1] = 0xb9; // DSCP 46, ECT(1)
    buffer.extend(b"leftovers");
    let packet = Packet::parse(&buffer).unwrap();
    assert_eq!(packet.bytes().len(), 28);
    assert_eq!((packet.source(), packet.destination()), (V4_A.into(), V4_B.into()));
    assert_eq!((packet.protocol(), packet.payload_at()), (UDP, 20));
    assert_eq!(packet.ports(), Some((0x1234, 53)));
    assert_eq!((packet.ecn(), packet.is_fragment(), packet.dont_fragment()), (Ecn::Capable1, false, false));
}

#[test]
fn options_are_skipped_and_fragments_are_told_apart() {
    let mut with_options = v4(TCP, DONT_FRAGMENT, &[1, 1, 1, 1, 0, 80, 0, 81]);
    with_options[0] = 0x46;
    let packet = Packet::parse(&with_options).unwrap();
    assert_eq!((packet.ports(), packet.dont_fragment()), (Some((80, 81)), true));
    for (flags, fragment, ports) in [
        (MORE_FRAGMENTS, Fragment::First, Some((80, 81))),
        (MORE_FRAGMENTS | 1, Fragment::Later, None),
        (1, Fragment::Later, None),
    ] {
        let bytes = v4(UDP, flags, &[0, 80, 0, 81]);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.fragment(), packet.ports()), (fragment, ports), "{flags:x}");
    }
    let bytes = v4(ICMP, 0, &[8, 0, 0, 0]);
    assert_eq!(Packet::parse(&bytes).unwrap().ports(), None);
}

#[test]
fn an_ipv6_packet_is_read_through_its_extension_headers() {
    let udp = [0, 80, 0, 81, 0, 8, 0, 0];
    let options = |next: u8| [&[next, 1][..], &[0; 14]].concat();
    let fragment = |next: u8, flags: u16| {
        let [hi, lo] = flags.to_be_bytes();
        vec![next, 0, hi, lo, 1, 2, 3, 4]
    };
    for (text, first, payload, expected) in [
        ("plain", UDP, udp.to_vec(), (UDP, Fragment::Whole, Some((80, 81)))),
        (
            "hop by hop",
            HOP_BY_HOP,
            [&options(UDP)[..], &udp].concat(),
            (UDP, Fragment::Whole, Some((80, 81))),
        ),
        (
            "three kinds",
            HOP_BY_HOP,
            [&options(ROUTING)[..], &options(DESTINATION_OPTIONS), &options(UDP), &udp].concat(),
            (UDP, Fragment::Whole, Some((80, 81))),
        ),
        (
            "first fragment",
            FRAGMENT,
            [&fragment(UDP, 1)[..], &udp].concat(),
            (UDP, Fragment::First, Some((80, 81))),
        ),
        ("later fragment", FRAGMENT, [&fragment(UDP, 8)[..], &udp].concat(), (UDP, Fragment::Later, None)),
        // The middle of something must not be taken for an extension header.
        ("later fragment of options", FRAGMENT, fragment(ROUTING, 9), (ROUTING, Fragment::Later, None)),
        (
            "atomic fragment",
            FRAGMENT,
            [&fragment(UDP, 0)[..], &udp].concat(),
            (UDP, Fragment::Whole, Some((80, 81))),
        ),
    ] {
        let mut buffer = v6(first, &payload);
        buffer[0] = 0x60;
        buffer[1] = 0x30; // congestion experienced
        buffer.extend(b"leftovers");
        let packet = Packet::parse(&buffer).unwrap();
        assert_eq!(packet.bytes().len(), 40 + payload.len(), "{text}");
        assert_eq!((packet.protocol(), packet.fragment(), packet.ports()), expected, "{text}");
        assert_eq!((packet.source(), packet.destination()), (v6_addr(1).into(), v6_addr(2).into()));
        assert_eq!((packet.ecn(), packet.dont_fragment()), (Ecn::Congested, true));
    }
}

#[test]
fn contradictions_are_refused_for_the_right_reason() {
    let good = v4(UDP, 0, &[0; 8]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (text, bytes, error) in [
        ("nothing", vec![], WireError::Truncated),
        ("version 5", with(0, 0x55), WireError::Unknown),
        ("header of 16 bytes", with(0, 0x44), WireError::Invalid),
        ("header longer than the packet", with(0, 0x4f), WireError::Invalid),
        ("total below the header", with(3, 19), WireError::Invalid),
        ("total beyond the buffer", with(3, 29), WireError::Truncated),
        (
            "payload beyond the buffer",
            {
                let mut b = v6(UDP, &[0; 8]);
                b[5] = 9;
                b
            },
            WireError::Truncated,
        ),
        ("extension beyond the packet", v6(HOP_BY_HOP, &[UDP, 1, 0, 0, 0, 0, 0, 0]), WireError::Truncated),
        ("fragment header cut", v6(FRAGMENT, &[UDP, 0, 0, 0]), WireError::Truncated),
        (
            "endless extensions",
            v6(DESTINATION_OPTIONS, &[DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(100)),
            WireError::TooLong,
        ),
    ] {
        assert_eq!(Packet::parse(&bytes), Err(error), "{text}");
    }
    for whole in [good, v6(HOP_BY_HOP, &[UDP, 0, 0, 0, 0, 0, 0, 0])] {
        for n in 0..whole.len() {
            assert_eq!(Packet::parse(&whole[..n]), Err(WireError::Truncated), "cut at {n}");
        }
    }
}

#[test]
fn the_segment_size_of_a_syn_is_lowered_and_its_checksum_stays_right() {
    let mss = [2, 4, 5, 0xb4]; // 1460
    let sack_first = [4, 2, 2, 4, 5, 0xb4, 1, 1];
    let odd = [1, 2, 4, 5, 0xb4, 1, 1, 0];
    for (text, options) in [("alone", &mss[..]), ("behind another", &sack_first), ("at an odd byte", &odd)] {
        for flags in [SYN, SYN | ACK] {
            for mut packet in both_families(&tcp(flags, options)) {
                let before = packet.clone();
                assert!(tcp_checksum_is_right(&packet), "{text}");
                assert!(clamp_mss(&mut packet, 1240), "{text}");
                assert!(tcp_checksum_is_right(&packet), "{text}");
                let changed = before.iter().zip(&packet).filter(|(a, b)| a != b).count();
                assert!((2..=4).contains(&changed), "{text}: only the size and the checksum");
                assert!(packet.windows(4).any(|w| w == [2, 4, 4, 0xd8]), "{text}: 1240");
                assert!(!clamp_mss(&mut packet, 1240), "{text}: once is enough");
            }
        }
    }
}

#[test]
fn everything_else_passes_unchanged() {
    let mss = [2, 4, 5, 0xb4];
    let syn = tcp(SYN, &mss);
    let mut udp = v4(UDP, 0, &syn);
    let mut cut = v4(TCP, 0, &syn[..22]);
    let mut later = v4(TCP, 1, &syn);
    let mut late_v6 = v6(FRAGMENT, &[&[TCP, 0, 0, 8, 0, 0, 0, 0][..], &syn].concat());
    let mut endless = v4(TCP, 0, &tcp(SYN, &[8, 0, 2, 4]));
    let mut over = v4(TCP, 0, &tcp(SYN, &[8, 40, 2, 4]));
    let mut ended = v4(TCP, 0, &tcp(SYN, &[0, 2, 4, 5, 0xb4, 0, 0, 0]));
    let mut short = v4(TCP, 0, &tcp(SYN, &[2, 3, 5, 0]));
    let mut ack = v4(TCP, 0, &tcp(ACK, &mss));
    let mut reset = v4(TCP, 0, &tcp(SYN | RST, &mss));
    let mut none = v4(TCP, 0, &tcp(SYN, &[]));
    let mut small = v4(TCP, 0, &tcp(SYN, &[2, 4, 2, 0x18]));
    for (text, packet) in [
        ("UDP", &mut udp),
        ("header cut", &mut cut),
        ("later fragment", &mut later),
        ("later fragment, IPv6", &mut late_v6),
        ("option of length 0", &mut endless),
        ("option beyond the header", &mut over),
        ("behind the end of options", &mut ended),
        ("size of one byte", &mut short),
        ("no SYN", &mut ack),
        ("SYN and RST", &mut reset),
        ("no option", &mut none),
        ("already small", &mut small),
    ] {
        let before = packet.clone();
        assert!(!clamp_mss(packet, 1240), "{text}");
        assert_eq!(*packet, before, "{text}");
    }
    let mut first = v4(TCP, MORE_FRAGMENTS, &syn);
    assert!(clamp_mss(&mut first, 1240), "a first fragment has the header");
    let mut first = v6(FRAGMENT, &[&[TCP, 0, 0, 1, 0, 0, 0, 0][..], &syn].concat());
    assert!(clamp_mss(&mut first, 1240), "a first fragment has the header");
}

#[test]
fn the_largest_segment_follows_from_the_mtu() {
    assert_eq!(max_mss(1280, Ipv4Addr::from(V4_A).into()), 1240);
    assert_eq!(max_mss(1280, v6_addr(1).into()), 1220);
    assert_eq!(max_mss(10, v6_addr(1).into()), 0);
}

proptest! {
    #[test]
    fn garbage_never_panics(mut bytes in vec(any::<u8>(), 0..200), version in 4u8..7, max in any::<u16>()) {
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | (*first & 0x0f);
        }
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert!(packet.bytes().len() <= bytes.len());
            prop_assert!(packet.payload_at() <= packet.bytes().len());
            let _ = packet.ports();
        }
        let before = bytes.clone();
        let changed = clamp_mss(&mut bytes, max);
        prop_assert_eq!(changed, before != bytes);
    }

    #[test]
    fn any_size_is_lowered_right(size in any::<u16>(), max in any::<u16>(), pad in 0usize..4, tail in vec(any::<u8>(), 0..9)) {
        let mut options = vec![1; pad];
        options.extend([2, 4]);
        options.extend(size.to_be_bytes());
        options.resize(8, 1);
        let segment = [&tcp(SYN, &options)[..], &tail].concat();
        for mut packet in both_families(&segment) {
            prop_assert_eq!(clamp_mss(&mut packet, max), size > max);
            prop_assert!(tcp_checksum_is_right(&packet));
        }
    }
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[test]
fn a_mark_changes_two_bits_and_keeps_a_checksum_as_right_or_wrong_as_it_was() {
    let marks = [Ecn::NotCapable, Ecn::Capable0, Ecn::Capable1, Ecn::Congested];
    for class in 0..=u8::MAX {
        for (mark, id) in
            marks.iter().flat_map(|mark| [0, 1, 0x1234, 0xbaff, 0xffff].map(|id: u16| (*mark, id)))
        {
            let mut packet = v4(UDP, DONT_FRAGMENT, &[0, 80, 0, 81, 0, 8, 0, 0]);
            packet[1] = class;
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            let right = !fold(sum(&packet[..20]));
            packet[10..12].copy_from_slice(&right.to_be_bytes());
            assert_eq!(mark_of(&packet), Ecn::of(class));
            let mut wrong = packet.clone();
            wrong[4] ^= 0x40;
            set_mark(&mut packet, mark);
            set_mark(&mut wrong, mark);
            assert_eq!(
                (packet[1], sum(&packet[..20])),
                (class & 0xfc | mark.bits(), 0xffff),
                "{mark:?} {id:x}"
            );
            assert_ne!(sum(&wrong[..20]), 0xffff);
        }
        let before = v6(UDP, &[0; 8]);
        let mut packet = before.clone();
        (packet[0], packet[1]) = (0x60 | class >> 4, class << 4 | 5);
        assert_eq!(mark_of(&packet), Ecn::of(class));
        set_mark(&mut packet, Ecn::Capable0);
        assert_eq!(packet[..2], [0x60 | class >> 4, (class & 0xfc | 2) << 4 | 5]);
        assert_eq!(packet[2..], before[2..]);
    }
    for cut in [&[][..], &[0x45], &[0x45, 0, 0, 28], &[0x60], &[0x50, 3]] {
        let mut packet = cut.to_vec();
        set_mark(&mut packet, Ecn::Congested);
        let _ = mark_of(&packet);
    }
}

fn v6_addr(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
}

/// A packet from A to B.
fn v4(protocol: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
    let [hi, lo] = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let [f, g] = flags.to_be_bytes();
    let mut bytes = vec![0x45, 0, hi, lo, 0, 0, f, g, 64, protocol, 0, 0];
    bytes.extend(V4_A);
    bytes.extend(V4_B);
    bytes.extend(payload);
    bytes
}

/// A packet from 1 to 2.
fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let [hi, lo] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, hi, lo, next, 64];
    bytes.extend(v6_addr(1).octets());
    bytes.extend(v6_addr(2).octets());
    bytes.extend(payload);
    bytes
}

/// A segment with these flags and options, its checksum still 0.
fn tcp(flags: u8, options: &[u8]) -> Vec<u8> {
    let words = u8::try_from((20 + options.len()) / 4).unwrap();
    let mut bytes = vec![0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, words << 4, flags, 0xff, 0xff, 0, 0, 0, 0];
    bytes.extend(options);
    bytes
}

/// The segment in IPv4 and in IPv6, with the right checksum.
fn both_families(segment: &[u8]) -> [Vec<u8>; 2] {
    [v4(TCP, 0, segment), v6(TCP, segment)].map(|mut packet| {
        let view = Packet::parse(&packet).unwrap();
        let (at, sum) = (view.payload_at() + 16, pseudo_sum(&view) + sum(view.payload()));
        packet[at..at + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
        packet
    })
}

fn tcp_checksum_is_right(packet: &[u8]) -> bool {
    let view = Packet::parse(packet).unwrap();
    fold(pseudo_sum(&view) + sum(view.payload())) == 0xffff
}

fn pseudo_sum(packet: &Packet<'_>) -> u32 {
    let addresses = match (packet.source(), packet.destination()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => sum(&a.octets()) + sum(&b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => sum(&a.octets()) + sum(&b.octets()),
        mixed => panic!("{mixed:?}"),
    };
    addresses + u32::try_from(packet.payload().len()).unwrap() + u32::from(packet.protocol())
}

/// The Internet checksum's sum over `bytes`, not complemented (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| match word {
        [a, b] => u32::from(u16::from_be_bytes([*a, *b])),
        [a] => u32::from(*a) << 8,
        _ => 0,
    });
    words.fold(0, |sum, word| u32::from(fold(sum + word)))
}
