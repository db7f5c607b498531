//! Splitting and joining: hand-made packets, what a kernel gave, and the promise that each undoes the other.

use std::fmt::Write as _;
use std::num::NonZeroU16;

use proptest::prelude::*;

use super::headers::ACK;
use super::headers::FIN;
use super::headers::HEADERS_MAX;
use super::headers::Headers;
use super::headers::PSH;
use super::merge::Merge;
use super::split::Gso;
use super::split::Split;
use super::split::Vnet;

const SYN: u8 = 0x02;
const CWR: u8 = 0x80;

/// One packet in words.
#[derive(Clone, Debug)]
struct Made {
    v6: bool,
    udp: bool,
    ports: (u16, u16),
    id: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    options: Vec<u8>,
    body: Vec<u8>,
}

impl Made {
    fn tcp(seq: u32, body: &[u8]) -> Self {
        let options = vec![1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9];
        let body = body.to_vec();
        Self { v6: false, udp: false, ports: (5000, 22), id: 7, seq, ack: 99, flags: ACK, options, body }
    }

    fn head(&self) -> Vec<u8> {
        let mut head = Vec::new();
        let protocol = if self.udp { 17 } else { 6 };
        if self.v6 {
            head.extend([0x60, 0x01, 0x23, 0x45, 0, 0, protocol, 64]);
            head.extend([0xfd; 16]);
            head.extend([0xfc; 16]);
        } else {
            head.extend([0x45, 0, 0, 0]);
            head.extend(self.id.to_be_bytes());
            head.extend([0x40, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2]);
        }
        head.extend(self.ports.0.to_be_bytes());
        head.extend(self.ports.1.to_be_bytes());
        if self.udp {
            head.extend([0; 4]);
        } else {
            head.extend(self.seq.to_be_bytes());
            head.extend(self.ack.to_be_bytes());
            let len = u8::try_from(20 + self.options.len()).unwrap();
            head.extend([len << 2, self.flags, 0x20, 0, 0, 0, 0, 0]);
            head.extend(&self.options);
        }
        head
    }

    /// With lengths and checksums.
    fn packet(&self) -> Vec<u8> {
        let mut packet = self.head();
        let headers = Headers::parse(&packet).unwrap();
        headers.finish(&mut packet, &self.body);
        packet.extend(&self.body);
        packet
    }

    /// The kernel's way to say the same, in segments of `size`.
    fn super_packet(&self, size: u16) -> (Vnet, Vec<u8>) {
        let mut packet = self.head();
        let headers = Headers::parse(&packet).unwrap();
        headers.set_lengths(&mut packet, self.body.len());
        let sum = headers.pseudo(&packet, headers.transport_len + self.body.len()).folded();
        super::headers::put(&mut packet, headers.at + headers.checksum_offset(), sum);
        let gso = match (self.udp, self.v6) {
            (true, _) => Gso::Udp,
            (false, true) => Gso::Tcp6,
            (false, false) => Gso::Tcp4,
        };
        let short = |n: usize| u16::try_from(n).unwrap();
        let vnet = Vnet {
            headers: short(packet.len()),
            segment: Some((gso, size)),
            checksum: Some((short(headers.at), short(headers.checksum_offset()))),
        };
        packet.extend(&self.body);
        (vnet, packet)
    }
}

fn split(vnet: Vnet, whole: &[u8]) -> Vec<Vec<u8>> {
    let mut split = Split::new(vnet);
    let mut out = vec![0; 65_535];
    let mut all = Vec::new();
    while let Some(len) = split.next(whole, &mut out) {
        all.push(out[..len].to_vec());
    }
    assert!(!split.is_pending());
    all
}

/// What is written for a batch: header and bytes.
fn merge(packets: &[Vec<u8>], udp: bool) -> Vec<(Vnet, Vec<u8>)> {
    let mut merge = Merge::default();
    merge.plan(packets.len(), |index| &packets[index], udp);
    let write = |group: &super::merge::Group| {
        let mut head = [0; HEADERS_MAX];
        match group.headers(&packets[group.first], &mut head) {
            Some((len, vnet)) => {
                let mut whole = head[..len].to_vec();
                merge.parts(group).for_each(|index| whole.extend(&packets[index][len..]));
                (vnet, whole)
            }
            None => (Vnet::default(), packets[group.first].clone()),
        }
    };
    merge.groups().iter().map(write).collect()
}

fn split_all(written: &[(Vnet, Vec<u8>)]) -> Vec<Vec<u8>> {
    written.iter().flat_map(|(vnet, whole)| split(*vnet, whole)).collect()
}

/// The checksums of a packet, added up the slow way.
fn assert_sound(packet: &[u8]) {
    let slow = |parts: &[&[u8]]| {
        let all = parts.concat();
        let sum: u64 = all.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum();
        u16::try_from(sum % 0xffff).unwrap()
    };
    let (head, addresses, protocol) =
        if packet[0] >> 4 == 6 { (40, &packet[8..40], packet[6]) } else { (20, &packet[12..20], packet[9]) };
    let len = u16::try_from(packet.len() - head).unwrap().to_be_bytes();
    assert_eq!(slow(&[addresses, &[0, protocol], &len, &packet[head..]]), 0, "{packet:x?}");
    if head == 20 {
        assert_eq!(slow(&[&packet[..20]]), 0);
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
    }
}

#[test]
fn a_tcp_super_packet_becomes_packets_with_their_own_numbers_and_flags() {
    for v6 in [false, true] {
        let body: Vec<u8> = (0..2500).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let made = Made { v6, flags: ACK | PSH | FIN | CWR, seq: u32::MAX - 500, ..Made::tcp(0, &body) };
        let (vnet, whole) = made.super_packet(1000);
        let expected: Vec<Vec<u8>> = [(0, CWR), (1, 0), (2, PSH | FIN)]
            .map(|(i, flags)| {
                let part = &body[i * 1000..2500.min(i * 1000 + 1000)];
                let step = u32::try_from(i).unwrap();
                let seq = made.seq.wrapping_add(step * 1000);
                let id = made.id + u16::try_from(i).unwrap();
                Made { id, seq, flags: ACK | flags, body: part.to_vec(), ..made.clone() }.packet()
            })
            .to_vec();
        assert_eq!(split(vnet, &whole), expected);
        expected.iter().for_each(|packet| assert_sound(packet));
    }
}

#[test]
fn a_udp_super_packet_becomes_datagrams() {
    for v6 in [false, true] {
        let made = Made { v6, udp: true, ..Made::tcp(0, &[5; 130]) };
        let (vnet, whole) = made.super_packet(64);
        let all = split(vnet, &whole);
        assert_eq!(all.len(), 3);
        for (packet, len) in all.iter().zip([64, 64, 2]) {
            assert_sound(packet);
            let at = if v6 { 40 } else { 20 };
            assert_eq!(packet.len(), at + 8 + len);
            assert_eq!(packet[at + 4..at + 6], u16::try_from(8 + len).unwrap().to_be_bytes());
        }
    }
}

#[test]
fn a_single_packet_gets_its_checksum_and_one_that_has_it_stays_as_it_is() {
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let made = Made { v6, udp, ..Made::tcp(1, b"odd") };
        let (vnet, whole) = made.super_packet(0);
        let unfinished = Vnet { segment: None, ..vnet };
        assert_eq!(split(unfinished, &whole), [made.packet()]);
        assert_eq!(split(Vnet::default(), &made.packet()), [made.packet()]);
    }
    let icmp = [0x45, 0, 0, 21, 0, 0, 0, 0, 64, 1, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2, 8].to_vec();
    assert_eq!(split(Vnet::default(), &icmp), [icmp]);
}

#[test]
fn what_contradicts_itself_is_left_out_and_nothing_panics() {
    let (vnet, whole) = Made::tcp(1, &[1; 300]).super_packet(100);
    for len in 0..whole.len() {
        split(vnet, &whole[..len]);
        split(Vnet { segment: None, ..vnet }, &whole[..len]);
    }
    assert!(split(Vnet { segment: Some((Gso::Tcp4, 0)), ..vnet }, &whole).is_empty());
    assert!(split(Vnet { segment: None, checksum: Some((9999, 16)), ..vnet }, &whole).is_empty());
    let mut small = Split::new(vnet);
    assert_eq!(small.next(&whole, &mut [0; 60]), None, "it does not fit");
    assert!(!small.is_pending());
    assert_eq!(Vnet::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UFO was not asked for");
}

#[test]
fn headers_are_read_as_the_kernel_writes_them() {
    let bytes = [1, 0x81, 54, 0, 0x78, 5, 20, 0, 16, 0];
    let native = bytes.map(|byte: u8| byte);
    let vnet = Vnet::parse(&native).unwrap();
    if cfg!(target_endian = "little") {
        assert_eq!(vnet, Vnet { headers: 54, segment: Some((Gso::Tcp4, 1400)), checksum: Some((20, 16)) });
    }
    let mut without_ecn = native;
    without_ecn[1] &= 0x7f;
    assert_eq!(vnet.emit(), without_ecn);
    assert_eq!(Vnet::default().emit(), [0; 10]);
}

#[test]
fn only_what_continues_its_flow_is_joined() {
    let first = Made::tcp(1000, &[1; 100]);
    let second = Made { id: 8, ..Made::tcp(1100, &[2; 100]) };
    let joins = |a: &Made, b: &Made| merge(&[a.packet(), b.packet()], true).len() == 1;
    assert!(joins(&first, &second));
    assert!(joins(&first, &Made { flags: ACK | PSH, ..second.clone() }));
    assert!(joins(&first, &Made { body: vec![2; 1], ..second.clone() }), "a shorter end");
    let cases: Vec<(&str, Made, Made)> = vec![
        ("a gap", first.clone(), Made { seq: 1101, ..second.clone() }),
        ("older", first.clone(), Made { seq: 900, ..second.clone() }),
        ("another identification", first.clone(), Made { id: 9, ..second.clone() }),
        ("another acknowledgement", first.clone(), Made { ack: 100, ..second.clone() }),
        ("another flow", first.clone(), Made { ports: (5001, 22), ..second.clone() }),
        ("other options", first.clone(), Made { options: vec![1; 12], ..second.clone() }),
        ("fewer options", first.clone(), Made { options: vec![], ..second.clone() }),
        ("longer", first.clone(), Made { body: vec![2; 101], ..second.clone() }),
        ("empty", first.clone(), Made { body: vec![], ..second.clone() }),
        ("an end", first.clone(), Made { flags: ACK | FIN, ..second.clone() }),
        ("a beginning", first.clone(), Made { flags: SYN, ..second.clone() }),
        ("a mark", first.clone(), Made { flags: ACK | CWR, ..second.clone() }),
        ("after a push", Made { flags: ACK | PSH, ..first.clone() }, second.clone()),
    ];
    for (what, a, b) in cases {
        assert!(!joins(&a, &b), "{what}");
        assert_eq!(split_all(&merge(&[a.packet(), b.packet()], true)), [a.packet(), b.packet()], "{what}");
    }
    for (place, what) in
        [(1, "congestion"), (6, "may be fragmented"), (8, "hops"), (10, "sum"), (60, "bytes")]
    {
        let mut changed = second.packet();
        changed[place] ^= 0x40;
        assert_eq!(merge(&[first.packet(), changed], true).len(), 2, "{what}");
    }
    let datagrams = [first, second].map(|made| Made { udp: true, ..made }.packet());
    assert_eq!(merge(&datagrams, true).len(), 1);
    assert_eq!(merge(&datagrams, false).len(), 2, "the kernel does not take them");
}

#[test]
fn flows_are_joined_beside_each_other_and_each_keeps_its_order() {
    let part = |port: u16, n: u16, flags: u8| {
        let seq = u32::from(n) * 100;
        Made { ports: (port, 1), id: n, flags, ..Made::tcp(seq, &[u8::try_from(n).unwrap(); 100]) }.packet()
    };
    let icmp = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    let batch = [
        part(1, 0, ACK),
        part(2, 0, ACK),
        part(1, 1, ACK),
        part(2, 1, ACK | FIN),
        part(2, 2, ACK),
        part(1, 2, ACK),
        icmp.clone(),
        part(1, 3, ACK),
    ];
    let ports: Vec<(u8, usize)> = merge(&batch, true)
        .iter()
        .map(|(vnet, whole)| (whole[21 % whole.len()], split(*vnet, whole).len()))
        .collect();
    assert_eq!(ports, [(1, 3), (2, 1), (2, 1), (2, 1), (0, 1), (1, 1)]);
}

#[test]
fn a_super_packet_stays_within_what_an_ip_header_can_say() {
    let parts: Vec<Vec<u8>> =
        (0..100_u16).map(|n| Made { id: n, ..Made::tcp(u32::from(n) * 1400, &[3; 1400]) }.packet()).collect();
    let written = merge(&parts, true);
    assert!(written.iter().all(|(_, whole)| whole.len() <= 65_000), "{}", written[0].1.len());
    assert_eq!(written.len(), 3, "46, 46 and 8");
    let many: Vec<Vec<u8>> =
        (0..100_u16).map(|n| Made { udp: true, id: n, ..Made::tcp(0, &[3; 8]) }.packet()).collect();
    assert_eq!(merge(&many, true).len(), 2, "64 and 36");
    assert_eq!(split_all(&written), parts);
}

/// What Linux 6.18 gave for `send` of 3,000 bytes on a TCP connection over a device of MTU 1280, IPv4: header, then the first
/// bytes; the payload was all `x`.
const CAPTURED: &str = "01013400cc041400100045000bec65cf40004006b4a00a4d00010a4d0002b6c4e433e0637600eb1a82688018003f207b00000101080a5a61825a1580bd1f";

#[test]
fn what_a_kernel_gave_splits_into_sound_packets_and_joins_again() {
    let bytes: Vec<u8> = (0..CAPTURED.len() / 2)
        .map(|i| u8::from_str_radix(&CAPTURED[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let (header, head) = bytes.split_first_chunk().unwrap();
    let vnet = Vnet::parse(header).unwrap();
    let mut whole = head.to_vec();
    whole.resize(head.len() + 3000, b'x');
    let packets = split(vnet, &whole);
    let lens: Vec<usize> = packets.iter().map(Vec::len).collect();
    assert_eq!(lens, [1280, 1280, 596]);
    packets.iter().for_each(|packet| assert_sound(packet));
    let mut text = String::new();
    for (vnet, whole) in merge(&packets, true) {
        let _ = write!(text, "{vnet:?} {}", whole.len());
        assert_eq!(whole[..52], head[..52]);
    }
    assert_eq!(text, format!("{vnet:?} {}", whole.len()));
}

#[test]
fn a_super_packet_that_came_as_one_is_written_as_the_kernel_would_have_and_cut_like_its_own() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let (vnet, whole) = Made { v6, udp, ..Made::tcp(5, &[7; 3000]) }.super_packet(1280);
        let size = NonZeroU16::new(1280).unwrap();
        // What its sender left there says nothing: not the checksum, and not the length in the UDP header.
        let mut sent = whole.clone();
        let (at, sum) = (if v6 { 40 } else { 20 }, if udp { 6 } else { 16 });
        sent[at + sum..at + sum + 2].fill(0xee);
        let mut head = [0; HEADERS_MAX];
        let (len, told) = super::split::whole(&sent, size, &mut head).unwrap();
        assert_eq!((told, &head[..len]), (vnet, &whole[..len]), "{v6} {udp}");
        let mut parts = Vec::new();
        super::split::each(&sent, size, |part| parts.push(part.to_vec()));
        assert_eq!(parts, split(vnet, &whole));
        parts.iter().for_each(|packet| assert_sound(packet));
    }
    super::split::each(&[0x45; 40], NonZeroU16::MIN, |_| panic!("it has options"));
}

/// A packet of one of a few flows, often one that continues it.
fn traffic() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let step = (0..3_u16, any::<bool>(), any::<bool>(), 0..20_u8, prop_oneof![Just(100_usize), 0..120_usize]);
    proptest::collection::vec(step, 0..80).prop_map(|steps| {
        let mut next = [(0_u16, 0_u32); 12];
        let mut all = Vec::new();
        for (port, v6, udp, luck, len) in steps {
            let flow = usize::from(port) * 4 + usize::from(v6) * 2 + usize::from(udp);
            let (id, seq) = next[flow];
            let made = Made {
                v6,
                udp,
                ports: (port, 80),
                id,
                seq,
                ack: u32::from(luck == 1),
                flags: match luck {
                    2 => ACK | PSH,
                    3 => ACK | FIN,
                    4 => SYN,
                    _ => ACK,
                },
                ..Made::tcp(0, &vec![luck; len])
            };
            let mut packet = made.packet();
            if luck == 5 && len > 0 {
                *packet.last_mut().unwrap() ^= 1;
            }
            next[flow] = (id.wrapping_add(1), seq.wrapping_add(u32::try_from(len).unwrap()));
            all.push(packet);
        }
        all
    })
}

/// Which flow: version, protocol, ports.
fn flow(packet: &[u8]) -> (u8, u8, Vec<u8>) {
    let (at, protocol) = if packet[0] >> 4 == 6 { (40, 6) } else { (20, 9) };
    (packet[0] >> 4, packet[protocol], packet[at..at + 4].to_vec())
}

proptest! {
    #[test]
    fn splitting_undoes_joining(packets in traffic(), udp: bool) {
        let mut after = split_all(&merge(&packets, udp));
        let mut before = packets;
        // Between flows the order may change, inside one never: a stable sort by flow makes both comparable.
        before.sort_by_key(|packet| flow(packet));
        after.sort_by_key(|packet| flow(packet));
        prop_assert_eq!(after, before);
    }

    #[test]
    fn joining_undoes_splitting(v6: bool, udp: bool, push: bool, size in 1..1400_u16, count in 2..40_usize, end: u16) {
        let last = usize::from(end % size) + 1;
        let body = vec![7; usize::from(size) * (count - 1) + last];
        let flags = if push { ACK | PSH } else { ACK };
        let (vnet, whole) = Made { v6, udp, flags, ..Made::tcp(u32::MAX - 9000, &body) }.super_packet(size);
        let again = merge(&split(vnet, &whole), true);
        prop_assert_eq!(again, vec![(vnet, whole)]);
    }

    #[test]
    fn garbage_never_panics(packets: Vec<Vec<u8>>, header: [u8; 10], whole: Vec<u8>) {
        prop_assert_eq!(split_all(&merge(&packets, true)).len(), packets.len());
        if let Some(vnet) = Vnet::parse(&header) {
            split(vnet, &whole);
        }
    }
}
