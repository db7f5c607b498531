//! The kernel's doors for real: TUN, addresses, routes, in network namespaces that the tests make and remove.
//!
//! Each test starts itself again inside its own namespace (`ip netns exec`), so that nothing on this machine changes.
//! Needs root, `ip` and `/dev/net/tun`; without them a test says what is missing and passes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::id::SocketId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::transmit::Dial;
use ntcp_overlay::base::transmit::Outbox;
use ntcp_overlay::base::transmit::PacketBatch;
use ntcp_overlay::base::transmit::StreamEvent;
use ntcp_overlay::base::transmit::Via;
use ntcp_overlay::base::transmit::Why;
use ntcp_overlay::device::OpenError;
use ntcp_overlay::device::Tun;
use ntcp_overlay::io::doors::Doors;
use ntcp_overlay::io::doors::Event;
use ntcp_overlay::io::netlink::Configured;
use ntcp_overlay::io::netlink::Netlink;
use ntcp_overlay::io::netlink::NetlinkError;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

const V4: &str = "10.77.0.1/16";
const V6: &str = "fd12:3456:789a:bcde::a4d:1/64";
const PEER4: &str = "10.77.0.2";
const PEER6: &str = "fd12:3456:789a:bcde::a4d:2";
const MTU: u32 = 1280;
const NOBODY: [IpAddr; 0] = [];

/// The name of the test that it stands in, as the harness knows it.
macro_rules! test_name {
    () => {{
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        path.split("::").nth(1).expect("crate, test, here")
    }};
}

#[test]
fn a_device_carries_pings_of_the_kernel_on_both_families_and_nothing_else() {
    let Some(()) = inside(test_name!(), "") else { return };
    block_on(async {
        for offload in [true, false] {
            let (mut tun, netlink) = device(offload).await;
            assert_eq!(tun.name(), "ntcp0");
            assert_eq!(sysfs("ntcp0", "mtu"), MTU.to_string());
            let link_local =
                Command::new("ip").args("-6 addr show dev ntcp0 scope link".split(' ')).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&link_local.stdout), "", "so no router solicitations");
            let addresses = netlink.local_addresses(None).await.unwrap();
            assert_eq!(addresses, [ip("10.77.0.1"), ip("fd12:3456:789a:bcde::a4d:1")]);
            assert_eq!(netlink.local_addresses(Some("ntcp0")).await.unwrap(), NOBODY);

            for (peer, domain, protocol, ask, answer) in [
                (PEER4, Domain::IPV4, Protocol::ICMPV4, 8, 0),
                (PEER6, Domain::IPV6, Protocol::ICMPV6, 128, 129),
            ] {
                let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
                let mut echo = vec![ask, 0, 0, 0, 0x12, 0x34, 0, 1];
                echo.extend_from_slice(b"hello from the kernel");
                if peer == PEER4 {
                    let sum = internet_checksum(&echo);
                    echo[2..4].copy_from_slice(&sum.to_be_bytes());
                }
                socket.send_to(&echo, &SocketAddr::new(ip(peer), 0).into()).unwrap();
                let packet = packets(&mut tun, 1).pop().unwrap();
                let head = if peer == PEER4 { 20 } else { 40 };
                assert_eq!(packet[head], ask, "an echo request: {packet:?}");
                assert!(packet.ends_with(b"hello from the kernel"));

                assert!(tun.send(&answered(packet, head, answer)).unwrap());
                let mut got = [std::mem::MaybeUninit::uninit(); 200];
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let (_, from) = socket.recv_from(&mut got).unwrap();
                assert_eq!(from.as_socket().unwrap().ip(), ip(peer));
            }
            assert!(tun.recv(&mut [0; 2000]).unwrap().is_none(), "the kernel says nothing unasked");
            assert!(tun.send(&[0x10; 40]).is_err(), "what is not IP is refused");
        }
    });
}

/// The network behind the device sends everything back, with the addresses swapped: checksums stay right, and what this
/// machine sends to the peer comes in as if the peer had sent it.
#[test]
fn bulk_traffic_comes_through_both_backends_on_both_families() {
    let Some(()) = inside(test_name!(), "") else { return };
    for offload in [true, false] {
        let (mut tun, _netlink) = block_on(device(offload));
        for (near, peer) in [("10.77.0.1", PEER4), ("fd12:3456:789a:bcde::a4d:1", PEER6)] {
            let listener = std::net::TcpListener::bind((near, 0)).unwrap();
            let to = SocketAddr::new(ip(peer), listener.local_addr().unwrap().port());
            let bytes: Vec<u8> = (0..4_000_000_u32).map(|i| (i % 251) as u8).collect();
            let sent = bytes.clone();
            let sender = std::thread::spawn(move || {
                std::net::TcpStream::connect(to).unwrap().write_all(&sent).unwrap();
            });
            let receiver = std::thread::spawn(move || {
                let mut got = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
                got
            });
            reflect(&mut tun, || receiver.is_finished());
            assert!(receiver.join().unwrap() == bytes, "{peer} {offload}");
            sender.join().unwrap();

            // Datagrams that follow each other are joined where the kernel knows how, and arrive one by one.
            let (a, b) = (UdpSocket::bind((near, 0)).unwrap(), UdpSocket::bind((near, 0)).unwrap());
            a.connect((peer, b.local_addr().unwrap().port())).unwrap();
            for n in 0..50 {
                a.send(&[n; 64]).unwrap();
            }
            a.send(&[50; 7]).unwrap();
            let receiver = std::thread::spawn(move || {
                b.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut buffer = [0; 9999];
                (0..=50).map(|_| b.recv(&mut buffer).map(|len| buffer[..len].to_vec()).unwrap()).collect()
            });
            reflect(&mut tun, || receiver.is_finished());
            let got: Vec<Vec<u8>> = receiver.join().unwrap();
            let all = (0..50).map(|n| vec![n; 64]).chain([vec![50; 7]]);
            assert_eq!(got, all.collect::<Vec<_>>(), "{peer} {offload}");
        }
    }
}

#[test]
fn a_device_takes_everything_with_it() {
    let Some(()) = inside(test_name!(), "") else { return };
    block_on(async {
        let (tun, netlink) = device(true).await;
        let taken = netlink.check_prefix_free(prefix4(), prefix6(), None).await;
        let Err(NetlinkError::Collision(collision)) = taken else { panic!("{taken:?}") };
        assert_eq!(collision.dev, "ntcp0");
        netlink.check_prefix_free(prefix4(), prefix6(), Some("ntcp0")).await.unwrap();

        drop(tun);
        netlink.check_prefix_free(prefix4(), prefix6(), None).await.unwrap();
        assert_eq!(netlink.local_addresses(None).await.unwrap(), NOBODY);
        assert!(!Path::new("/sys/class/net/ntcp0").exists());
        assert!(!netlink.remove_link("ntcp0").await.unwrap());
    });
}

#[test]
fn a_route_in_the_way_is_named_whatever_table_it_is_in() {
    let Some(()) = inside(test_name!(), "") else { return };
    block_on(async {
        let netlink = Netlink::open().unwrap();
        run("ip link set lo up");
        run("ip route add default dev lo");
        run("ip route add 10.78.0.0/16 dev lo");
        run("ip route add blackhole 10.0.0.0/8");
        netlink.check_prefix_free(prefix4(), prefix6(), None).await.unwrap();
        for (add, del, route) in [
            ("ip route add 10.77.3.0/24 dev lo", "ip route del 10.77.3.0/24", "10.77.3.0/24"),
            ("ip route add 10.64.0.0/10 dev lo", "ip route del 10.64.0.0/10", "10.64.0.0/10"),
            ("ip route add 10.77.9.9 dev lo table 77", "ip route del 10.77.9.9 table 77", "10.77.9.9/32"),
            ("ip addr add 10.77.4.4/32 dev lo", "ip addr del 10.77.4.4/32 dev lo", "10.77.4.4/32"),
            ("ip route add fd12:3456::/32 dev lo", "ip route del fd12:3456::/32 dev lo", "fd12:3456::/32"),
        ] {
            run(add);
            let taken = netlink.check_prefix_free(prefix4(), prefix6(), None).await;
            let Err(NetlinkError::Collision(collision)) = taken else { panic!("{add}: {taken:?}") };
            assert_eq!(
                (collision.route.to_string().as_str(), collision.dev.as_str()),
                (route, "lo"),
                "{add}"
            );
            run(del);
        }
        netlink.check_prefix_free(prefix4(), prefix6(), None).await.unwrap();
    });
}

#[test]
fn a_second_configuration_replaces_the_first() {
    let Some(()) = inside(test_name!(), "") else { return };
    block_on(async {
        let (tun, netlink) = device(true).await;
        for _ in 0..2 {
            let v4 = "10.77.0.9/16".parse().unwrap();
            let configured = netlink.configure(tun.name(), v4, V6.parse().unwrap(), 1400).await.unwrap();
            assert_eq!(configured, Configured { ipv6: true });
            assert_eq!(sysfs("ntcp0", "mtu"), "1400");
            let addresses = netlink.local_addresses(None).await.unwrap();
            assert_eq!(addresses, [ip("10.77.0.9"), ip("fd12:3456:789a:bcde::a4d:1")]);
        }
    });
}

#[test]
fn without_ipv6_a_device_has_its_ipv4_address() {
    let Some(()) = inside(test_name!(), "") else { return };
    block_on(async {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let (tun, netlink) = (Tun::open(None, true).unwrap(), Netlink::open().unwrap());
        let configured =
            netlink.configure(tun.name(), V4.parse().unwrap(), V6.parse().unwrap(), MTU).await.unwrap();
        assert_eq!(configured, Configured { ipv6: false });
        assert_eq!(netlink.local_addresses(None).await.unwrap(), [ip("10.77.0.1")]);
    });
}

#[test]
fn names_count_up_and_a_taken_name_is_refused_by_name() {
    let Some(()) = inside(test_name!(), "") else { return };
    let (first, second) = (Tun::open(None, true).unwrap(), Tun::open(None, false).unwrap());
    assert_eq!((first.name(), second.name()), ("ntcp0", "ntcp1"));
    for taken in ["ntcp0", "lo"] {
        let error = Tun::open(Some(taken), true).unwrap_err();
        assert!(matches!(&error, OpenError::NameInUse(name) if name == taken), "{error}");
    }
    let chosen = Tun::open(Some("fifteen-letters"), true).unwrap();
    assert_eq!(chosen.name(), "fifteen-letters");
}

#[test]
fn without_the_capability_the_user_is_told_which() {
    let without = "setpriv --bounding-set -net_admin --inh-caps -net_admin";
    let Some(()) = inside(test_name!(), without) else { return };
    let error = Tun::open(None, true).unwrap_err();
    assert!(matches!(error, OpenError::NotPermitted), "{error}");
    block_on(async {
        let netlink = Netlink::open().unwrap();
        let refused = netlink.configure("lo", V4.parse().unwrap(), V6.parse().unwrap(), MTU).await;
        let text = refused.unwrap_err().to_string();
        assert!(
            text.contains("not permitted to set the MTU of lo") && text.contains("CAP_NET_ADMIN"),
            "{text}"
        );
        // Looking is allowed to everybody.
        netlink.check_prefix_free(prefix4(), prefix6(), None).await.unwrap();
    });
}

#[test]
fn a_device_that_outlived_its_process_is_removed_and_nothing_else_is() {
    let Some(()) = inside(test_name!(), "") else { return };
    block_on(async {
        let netlink = Netlink::open().unwrap();
        run("ip tuntap add ntcp7 mode tun");
        assert!(netlink.remove_link("ntcp7").await.unwrap());
        assert!(!netlink.remove_link("ntcp7").await.unwrap());
        assert!(matches!(netlink.remove_link("lo").await, Err(NetlinkError::NotATun(_))));
    });
}

#[test]
fn every_change_of_links_addresses_and_routes_is_told() {
    let Some(()) = inside(test_name!(), "") else { return };
    block_on(async {
        let mut changes = Netlink::watch().unwrap();
        for change in [
            "ip link set lo up",
            "ip addr add 192.0.2.1/32 dev lo",
            "ip addr add 2001:db8::1/128 dev lo nodad",
            "ip route add 198.51.100.0/24 dev lo",
            "ip route add 2001:db8:1::/48 dev lo",
        ] {
            run(change);
            let told = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
            assert_eq!(told, Ok(Some(())), "{change}");
        }
    });
}

#[test]
fn a_datagram_that_asks_whether_its_size_passes_is_reported_and_not_cut() {
    let Some(()) = inside(test_name!(), "") else { return };
    let (mut tun, _netlink) = block_on(device(true));
    let mut doors = Doors::new().unwrap();
    let mut outbox = Outbox::default();
    for (id, near, far, most) in [
        (SocketId::V4, "10.77.0.1:0", "10.77.0.2:9", 1280 - 28),
        (SocketId::V6, "[fd12:3456:789a:bcde::a4d:1]:0", "[fd12:3456:789a:bcde::a4d:2]:9", 1280 - 48),
    ] {
        let far: SocketAddr = far.parse().unwrap();
        doors.bind_udp(id, near.parse().unwrap()).unwrap();
        for size in [most + 1, most, 3000] {
            outbox.push_unfragmented(Via::Udp(id), far, &vec![0; size]);
        }
        doors.send(&mut outbox);
        assert_eq!(doors.take_too_big(), [(far, most + 1)]);
        let packets = packets(&mut tun, 1);
        assert_eq!(packets.iter().map(Vec::len).collect::<Vec<_>>(), [1280]);
        assert!(far.is_ipv6() || packets[0][6] & 0x40 != 0, "don't fragment");
    }
}

#[test]
fn an_ordinary_datagram_above_the_mtu_is_cut_and_arrives() {
    let Some(()) = inside(test_name!(), "") else { return };
    let (mut tun, _netlink) = block_on(device(true));
    let mut doors = Doors::new().unwrap();
    let mut outbox = Outbox::default();
    doors.bind_udp(SocketId::V4, "10.77.0.1:0".parse().unwrap()).unwrap();
    outbox.push(Via::Udp(SocketId::V4), "10.77.0.2:9".parse().unwrap(), &[0; 2000]);
    doors.send(&mut outbox);
    assert!(doors.take_too_big().is_empty());
    let fragments = packets(&mut tun, 2);
    assert!(fragments.iter().all(|fragment| fragment[6] & 0x40 == 0), "routers may cut it further");
}

#[test]
fn a_first_syn_that_dies_on_the_way_is_sent_again_and_goes_further() {
    let Some(()) = inside(test_name!(), "") else { return };
    let (mut tun, _netlink) = block_on(device(true));
    let mut doors = Doors::new().unwrap();
    let to: SocketAddr = "10.77.0.2:9".parse().unwrap();
    let (low, usual) = (StreamId(1), StreamId(2));
    doors.connect(low, Dial { ttl: Some(2), ..Dial::plain(to) });
    doors.connect(usual, Dial::plain(to));
    let syns = packets(&mut tun, 2);
    let ttl = |syn: &Vec<u8>| syn[8];
    assert_eq!((ttl(&syns[0]), ttl(&syns[1])), (2, 64));
    let mut batch = PacketBatch::default();
    for syn in &syns {
        batch.push(&time_exceeded(syn));
    }
    tun.send_all(&batch);
    #[expect(
        clippy::disallowed_methods,
        reason = "the doors want a time; no stream here reaches its deadline"
    )]
    let now = Instant::now();
    let mut closed = Vec::new();
    for _ in 0..3 {
        doors
            .wait(now, Some(Duration::from_millis(50)), &mut |event| {
                if let Event::Stream { id, event: StreamEvent::Closed(gone) } = event {
                    closed.push((id, gone.why));
                }
            })
            .unwrap();
    }
    assert_eq!(closed, [(usual, Why::Unreachable)], "the error ends the usual one alone");
    doors.raise_ttl(low);
    let again = packets(&mut tun, 1);
    let port_and_sequence = |syn: &Vec<u8>| (syn[20..22].to_vec(), syn[24..28].to_vec());
    assert_eq!(ttl(&again[0]), 64);
    assert_eq!(port_and_sequence(&again[0]), port_and_sequence(&syns[0]), "the same SYN");
}

#[test]
fn without_descriptors_a_listener_rests_and_then_goes_on() {
    let Some(()) = inside(test_name!(), "") else { return };
    run("ip link set lo up");
    let mut doors = Doors::new().unwrap();
    let addr = doors.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let _far = std::net::TcpStream::connect(addr).unwrap();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(40), maximum: limit.maximum }).unwrap();
    let all: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    #[expect(clippy::disallowed_methods, reason = "any instant will do, the clock then jumps")]
    let mut now = Instant::now();
    let accepted = |doors: &mut Doors, now, timeout| {
        let mut accepted = 0;
        let mut on = |event: Event<'_>| accepted += u32::from(matches!(event, Event::Accepted { .. }));
        doors.wait(now, Some(timeout), &mut on).unwrap();
        accepted
    };
    assert_eq!(accepted(&mut doors, now, Duration::from_secs(10)), 0);
    drop(all);
    for _ in 0..3 {
        assert_eq!(accepted(&mut doors, now, Duration::ZERO), 0, "it rests for a second");
    }
    now += Duration::from_secs(1);
    assert_eq!(accepted(&mut doors, now, Duration::from_secs(10)), 1);
}

/// A configured device.
async fn device(offload: bool) -> (Tun, Netlink) {
    let (tun, netlink) = (Tun::open(None, offload).unwrap(), Netlink::open().unwrap());
    let configured =
        netlink.configure(tun.name(), V4.parse().unwrap(), V6.parse().unwrap(), MTU).await.unwrap();
    assert_eq!(configured, Configured { ipv6: true });
    (tun, netlink)
}

/// The next `count` packets that the kernel sends into the device, as the doors tell of them.
fn packets(tun: &mut Tun, count: usize) -> Vec<Vec<u8>> {
    #[expect(clippy::disallowed_methods, reason = "the doors want a time; no stream here has a deadline")]
    let now = Instant::now();
    let mut doors = Doors::new().unwrap();
    doors.watch_device(tun.as_fd()).unwrap();
    let mut packets = Vec::new();
    let mut buffer = vec![0; 65_536];
    while packets.len() < count {
        let mut told = false;
        doors
            .wait(now, Some(Duration::from_secs(10)), &mut |event| told |= matches!(event, Event::Device))
            .unwrap();
        assert!(told, "no packet came; so far {packets:?}");
        while let Some(len) = tun.recv(&mut buffer).unwrap() {
            packets.push(buffer[..len].to_vec());
        }
    }
    packets
}

/// Sends everything back with source and destination swapped, until `done`.
fn reflect(tun: &mut Tun, done: impl Fn() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "the doors want a time; no stream here has a deadline")]
    let now = Instant::now();
    let mut doors = Doors::new().unwrap();
    doors.watch_device(tun.as_fd()).unwrap();
    let (mut buffer, mut batch) = (vec![0; 65_536], PacketBatch::default());
    while !done() {
        doors.wait(now, Some(Duration::from_millis(20)), &mut |_| {}).unwrap();
        // Every other super-packet goes back whole, the others as the packets that they are cut into.
        while let Some(len) = tun.recv(&mut buffer).unwrap() {
            assert!(len <= usize::try_from(MTU).unwrap(), "a packet of the device fits it");
            batch.push(swapped(&mut buffer[..len]));
            if tun.is_pending() {
                continue;
            }
            if let Some(whole) = tun.super_packet().unwrap() {
                batch.push(swapped(&mut whole.buffer[..whole.len]));
                batch.mark_super(whole.size);
                tun.take_super_packet();
            }
        }
        tun.send_all(&batch);
        batch.clear();
    }
}

/// Source and destination change places.
fn swapped(packet: &mut [u8]) -> &[u8] {
    let (at, size) = if packet[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
    let (source, destination) = packet[at..at + 2 * size].split_at_mut(size);
    source.swap_with_slice(destination);
    packet
}

/// An echo request turned into its answer.
fn answered(mut packet: Vec<u8>, head: usize, kind: u8) -> Vec<u8> {
    let (at, len) = if head == 20 { (12, 4) } else { (8, 16) };
    let (from, to) = (packet[at..at + len].to_vec(), packet[at + len..at + 2 * len].to_vec());
    packet[at..at + len].copy_from_slice(&to);
    packet[at + len..at + 2 * len].copy_from_slice(&from);
    let old = u16::from_be_bytes([packet[head], packet[head + 1]]);
    packet[head] = kind;
    let new = u16::from_be_bytes([packet[head], packet[head + 1]]);
    // RFC 1624, equation 3; swapping the addresses changes no sum.
    let sum = u16::from_be_bytes([packet[head + 2], packet[head + 3]]);
    let sum = !fold(u32::from(!sum) + u32::from(!old) + u32::from(new));
    packet[head + 2..head + 4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// What a router answers at which a packet's time to live ends.
fn time_exceeded(packet: &[u8]) -> Vec<u8> {
    let mut quoted = packet[..28].to_vec();
    quoted[8] = 1;
    let mut icmp = [&[11, 0, 0, 0, 0, 0, 0, 0], &quoted[..]].concat();
    let sum = internet_checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let len = u16::try_from(20 + icmp.len()).unwrap().to_be_bytes();
    let mut head = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, 1, 0, 0, 10, 77, 0, 9];
    head.extend(&packet[12..16]);
    let sum = internet_checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    head.extend(icmp);
    head
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    !fold(pairs.sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix4() -> ipnetwork::Ipv4Network {
    "10.77.0.0/16".parse().unwrap()
}

fn prefix6() -> ipnetwork::Ipv6Network {
    "fd12:3456:789a:bcde::/64".parse().unwrap()
}

fn sysfs(device: &str, what: &str) -> String {
    std::fs::read_to_string(format!("/sys/class/net/{device}/{what}")).unwrap().trim().to_owned()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Runs a command line without quotes; fails the test if it fails.
fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}");
}

/// Set in the process inside the namespace.
const INSIDE: &str = "NTCP_KERNEL_TEST_INSIDE";

/// `Some` inside a namespace of its own. Outside, runs the test `name` again in there, with `wrapper` before it, waits for
/// it, and answers `None`; so does a machine on which that cannot be.
fn inside(name: &str, wrapper: &str) -> Option<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Some(());
    }
    if let Some(missing) = missing() {
        println!("not run: {missing}");
        return None;
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let namespace = Namespace(format!("ntl-kernel-{}-{number}", std::process::id()));
    run(&format!("ip netns add {}", namespace.0));
    let program = std::env::current_exe().unwrap();
    let status = Command::new("ip")
        .args(["netns", "exec", &namespace.0])
        .args(wrapper.split_whitespace())
        .arg(program)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
    None
}

fn missing() -> Option<&'static str> {
    let ip = Command::new("ip").arg("-V").output().is_ok();
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    match (is_root, ip, Path::new("/dev/net/tun").exists()) {
        (false, _, _) => Some("needs root"),
        (_, false, _) => Some("needs the program `ip` (Debian package iproute2)"),
        (_, _, false) => Some("needs /dev/net/tun (`modprobe tun`)"),
        (true, true, true) => None,
    }
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}
