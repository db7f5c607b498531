//! The steps of the data plane, each alone: `make bench-micro`. What they cost together is `make bench`'s to say.

#![allow(clippy::panic, reason = "a bench that cannot run fails by panicking")]

use std::hint::black_box;
use std::net::IpAddr;
use std::net::Ipv4Addr;

use divan::Bencher;
use divan::counter::BytesCount;
use ntcp_overlay::device::merge::Merge;
use ntcp_overlay::device::split::Gso;
use ntcp_overlay::device::split::Split;
use ntcp_overlay::device::split::Vnet;
use ntcp_overlay::identity::keys::WgSecret;
use ntcp_overlay::node::peers::PeerId;
use ntcp_overlay::node::routes::Routes;
use ntcp_overlay::tunnel::session;
use ntcp_overlay::tunnel::session::Keys;
use ntcp_overlay::tunnel::session::Opened;
use ntcp_overlay::tunnel::session::Sealed;
use ntcp_overlay::tunnel::session::Session;
use ntcp_overlay::tunnel::session::SessionIndex;
use ntcp_overlay::wire::demux;
use ntcp_overlay::wire::ip;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// A small packet, one of the MTU, a super-packet.
const SIZES: [usize; 3] = [64, 1380, 65_000];
/// Payload of a segment: MTU 1380 less IPv4, TCP and timestamps.
const SEGMENT: u16 = 1328;

fn main() {
    divan::main();
}

#[divan::bench(args = SIZES)]
fn seal(bencher: Bencher<'_, '_>, size: usize) {
    let (mut a, _) = sessions();
    let (packet, mut out) = (tcp(size), vec![0; size + 200]);
    bencher.counter(BytesCount::new(size)).bench_local(|| a.seal(black_box(&packet), &mut out));
}

#[divan::bench(args = SIZES)]
fn open(bencher: Bencher<'_, '_>, size: usize) {
    let (mut a, mut b) = sessions();
    let (packet, mut plain) = (tcp(size), vec![0; size + 200]);
    let sealed = || {
        let mut message = vec![0; size + 200];
        let Sealed::Data(len) = a.seal(&packet, &mut message) else { panic!("no session") };
        message.truncate(len);
        message
    };
    // One at a time: what is opened late would be a replay.
    bencher.counter(BytesCount::new(size)).with_inputs(sealed).bench_local_values(|message| {
        assert!(matches!(b.open(HERE, &message, &mut plain), Opened::Packet(_)));
    });
}

#[divan::bench]
fn split(bencher: Bencher<'_, '_>) {
    let (whole, vnet, mut out) = (tcp(65_000), vnet(), [0; 2000]);
    bencher.counter(BytesCount::new(whole.len())).bench_local(|| {
        let mut split = Split::new(vnet);
        while let Some(len) = split.next(black_box(&whole), &mut out) {
            black_box(len);
        }
    });
}

#[divan::bench]
fn merge(bencher: Bencher<'_, '_>) {
    let (mut split, whole, mut packets) = (Split::new(vnet()), tcp(64_000), Vec::new());
    let mut out = [0; 2000];
    while let Some(len) = split.next(&whole, &mut out) {
        packets.push(out[..len].to_vec());
    }
    let mut merge = Merge::default();
    bencher.counter(BytesCount::new(whole.len())).bench_local(|| {
        merge.plan(packets.len(), |index| &packets[index], true);
        assert_eq!(merge.groups().len(), 1);
    });
}

/// What kind of message it is, which session it is for, whose address its packet comes from: in a network of so many.
#[divan::bench(args = [10, 1000])]
fn demux_and_route(bencher: Bencher<'_, '_>, members: u32) {
    let (mut a, _) = sessions();
    let (packet, mut message) = (tcp(1380), vec![0; 1600]);
    let Sealed::Data(len) = a.seal(&packet, &mut message) else { panic!("no session") };
    let mut routes = Routes::default();
    for member in 0..members {
        routes.insert(IpAddr::V4(Ipv4Addr::from(0x0a4d_0000 + member)).into(), PeerId(member));
    }
    bencher.bench_local(|| {
        let message = black_box(&message[..len]);
        let kind = demux::kind(message);
        let header = session::header(message);
        let owner = ip::Packet::parse(&packet).ok().and_then(|packet| routes.owner(packet.source()));
        (kind, header, owner)
    });
}

/// Two sessions that have shaken hands.
fn sessions() -> (Session, Session) {
    let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
    let (a_keys, b_keys) = (Keys::new(&a), Keys::new(&b));
    let mut near = Session::new(&a_keys, b.public(), None, None, SessionIndex::new(5));
    let mut far = Session::new(&b_keys, a.public(), None, None, SessionIndex::new(6));
    let (mut one, mut other) = ([0; 256], [0; 256]);
    let len = near.initiate(&mut one, true).expect("the first handshake");
    let Opened::Answer(len) = far.open(HERE, &one[..len], &mut other) else { panic!("no answer") };
    let Opened::Answer(len) = near.open(HERE, &other[..len], &mut one) else { panic!("no session") };
    assert_eq!(far.open(HERE, &one[..len], &mut other), Opened::Nothing);
    (near, far)
}

fn vnet() -> Vnet {
    Vnet { headers: 40, segment: Some((Gso::Tcp4, SEGMENT)), checksum: Some((20, 16)) }
}

/// A TCP packet over IPv4 of `len` bytes.
fn tcp(len: usize) -> Vec<u8> {
    let mut packet = vec![7; len];
    let total = u16::try_from(len).expect("an IPv4 packet");
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[12..20].copy_from_slice(&[10, 77, 0, 1, 10, 77, 0, 2]);
    packet[20..40].copy_from_slice(&[0, 22, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    packet
}
