//! Golden texts.

use super::*;
use crate::control::api::BrokerRole;
use crate::control::api::Candidate;
use crate::control::api::RelayDelay;
use crate::control::api::RelayRole;

const NOW: UnixTime = UnixTime::from_secs(1_000_000);

fn path(kind: Kind) -> Path {
    Path { kind, endpoint: None, method: None, round: None, relay: None, relay_transport: None }
}

fn peer(name: &str, last_byte: u8, state: State, path: Path) -> Peer {
    Peer {
        name: name.to_owned(),
        addresses: vec![[10, 77, 0, last_byte].into()],
        public_key: "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=".to_owned(),
        groups: Vec::new(),
        wireguard: false,
        state,
        path,
        rtt_ms: None,
        loss: None,
        rx_bytes: 0,
        tx_bytes: 0,
        last_handshake_s: None,
        last_seen: None,
        why: None,
        choice: None,
        beside_endpoint: None,
        beside_method: None,
        next_try_s: None,
    }
}

fn member() -> Status {
    let nas = Peer {
        rtt_ms: Some(12.34),
        loss: Some(0.0),
        rx_bytes: 5 << 30,
        tx_bytes: 1536,
        last_handshake_s: Some(75),
        addresses: vec![[10, 77, 0, 2].into(), "fd00::a4d:2".parse().unwrap()],
        groups: vec!["home".to_owned()],
        ..peer(
            "nas",
            2,
            State::Active,
            Path { endpoint: "203.0.113.5:4242".parse().ok(), ..path(Kind::DirectUdp) },
        )
    };
    let relayed = Path {
        endpoint: "203.0.113.1:6061".parse().ok(),
        relay: Some("hub".to_owned()),
        relay_transport: Some("udp".to_owned()),
        ..path(Kind::Relay)
    };
    let office = Peer {
        rtt_ms: Some(104.6),
        loss: Some(0.25),
        rx_bytes: 100,
        tx_bytes: 1023,
        last_handshake_s: Some(3),
        why: Some("udp: both NATs map per destination".to_owned()),
        next_try_s: Some(90),
        ..peer("office-desktop", 3, State::Active, relayed)
    };
    let phone = Peer { wireguard: true, ..peer("phone", 4, State::Idle, path(Kind::None)) };
    let pi =
        Peer { last_seen: Some(1_000_000 - 3 * 3600), ..peer("pi", 5, State::Offline, path(Kind::None)) };
    Status {
        network: Some("home".to_owned()),
        name: Some("laptop".to_owned()),
        addresses: vec![[10, 77, 0, 1].into(), "fd00::a4d:1".parse().unwrap()],
        public_key: Some("key=".to_owned()),
        interface: Some("ntcp0".to_owned()),
        certificate_until: Some(1_000_000 + 5 * 86_400),
        candidates: vec![Candidate {
            transport: "udp".to_owned(),
            kind: "mapped".to_owned(),
            address: "198.51.100.7:4242".parse().unwrap(),
        }],
        brokers: vec![Broker {
            name: Some("hub".to_owned()),
            address: "203.0.113.1:6060".parse().ok(),
            connected: true,
            problem: None,
            udp: Some(true),
            mapped: "198.51.100.7:4242".parse().ok(),
            rtt_ms: Some(20.06),
        }],
        peers: vec![nas, office, phone, pi],
        ..Status::serving()
    }
}

#[test]
fn status_is_a_table_of_peers_below_the_member_itself() {
    assert_eq!(
        status(&member(), NOW, Style::default()),
        "\
laptop in network home: 10.77.0.1 fd00::a4d:1, interface ntcp0
broker hub at 203.0.113.1:6060: connected, 20.1 ms, sees us at 198.51.100.7:4242

NAME            ADDRESS    PATH                  RTT      LOSS  RX       TX       LAST
nas             10.77.0.2  udp 203.0.113.5:4242  12.3 ms  0%    5.0 GiB  1.5 KiB  1m
office-desktop  10.77.0.3  relay hub(udp)        105 ms   25%   100 B    1023 B   3s
phone           10.77.0.4  idle                  -        -     0 B      0 B      -
pi              10.77.0.5  offline 3h            -        -     0 B      0 B      -
"
    );
}

#[test]
fn verbose_status_says_why_and_what_next() {
    let mut member = member();
    member.peers.truncate(2);
    member.methods = vec![Tried { method: "udp".to_owned(), tried: 9, opened: 8, first: 7 }];
    member.unknown_peers = vec!["nsa".to_owned()];
    member.peers[0].choice = Some("UDP lost 1.1 % in 10 s: TCP traffic rides TCP".to_owned());
    member.peers[0].beside_endpoint = "203.0.113.5:4243".parse().ok();
    member.peers[0].beside_method = Some("p2pnat".to_owned());
    member.nat.udp.mapping = Some("address-and-port-dependent".to_owned());
    member.nat.udp.ports = Some("random".to_owned());
    member.nat.tcp.passes = Some(false);
    member.dropped.spoofed = 2;
    member.dropped.malformed = 1;
    assert_eq!(
        status(&member, NOW, Style { verbose: true, ..Style::default() }),
        "\
laptop in network home: 10.77.0.1 fd00::a4d:1, interface ntcp0
broker hub at 203.0.113.1:6060: connected, 20.1 ms, sees us at 198.51.100.7:4242
key: key=
certificate: good for 5d
reachable at: udp 198.51.100.7:4242 (mapped)
nat for udp: mapping address-and-port-dependent, ports random
nat for tcp: blocked
[[peer]] nsa: no member of this name was ever heard of
direct by udp: 8 of 9, 7 at the first introduction
dropped: 1 malformed, 2 with a false source

NAME            ADDRESS    PATH                        RTT      LOSS  RX       TX       LAST
nas             10.77.0.2  udp 203.0.113.5:4242 + tcp  12.3 ms  0%    5.0 GiB  1.5 KiB  1m
  also fd00::a4d:2
  choice: UDP lost 1.1 % in 10 s: TCP traffic rides TCP; tcp 203.0.113.5:4243 (by p2pnat)
  groups: home
  key: HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=
office-desktop  10.77.0.3  relay hub(udp)              105 ms   25%   100 B    1023 B   3s
  why: udp: both NATs map per destination; next try in 1m
  key: HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=
"
    );
}

#[test]
fn a_broker_that_is_away_is_explained() {
    let broker = |connected: bool, udp, problem: Option<&str>| Broker {
        name: connected.then(|| "hub".to_owned()),
        address: "203.0.113.1:6060".parse().ok().filter(|_| connected),
        connected,
        problem: problem.map(str::to_owned),
        udp,
        mapped: None,
        rtt_ms: None,
    };
    for (broker, text) in [
        (
            broker(false, None, Some("connection refused")),
            "broker: not connected: connection refused; trying again",
        ),
        (broker(false, None, None), "broker: not connected: connecting; trying again"),
        (
            broker(true, Some(false), None),
            "broker hub at 203.0.113.1:6060: connected, but UDP does not reach it",
        ),
        (broker(true, None, None), "broker hub at 203.0.113.1:6060: connected"),
        (broker(false, None, Some("\u{1b}[2Jgone")), "broker: not connected: ?[2Jgone; trying again"),
        (
            broker(true, None, Some("this machine's clock is 12 minutes behind the broker's: set it")),
            "broker hub at 203.0.113.1:6060: connected, but this machine's clock is 12 minutes behind the broker's: set it",
        ),
    ] {
        assert_eq!(broker_line(&broker), text);
    }
}

#[test]
fn a_lonely_member_reads_what_to_do() {
    let mut lonely = member();
    lonely.peers.clear();
    assert!(
        status(&lonely, NOW, Style::default())
            .ends_with("`ntcp-overlay invite` on the broker's machine prints a token for one\n")
    );
    lonely.brokers[0].connected = false;
    assert!(status(&lonely, NOW, Style::default()).ends_with("because no broker is connected\n"));
}

#[test]
fn a_server_without_a_member_shows_its_roles() {
    let serving = Status {
        network: Some("home".to_owned()),
        broker: Some(BrokerRole {
            listen: vec!["0.0.0.0:6060".parse().unwrap()],
            members: 3,
            online: 2,
            signs: false,
        }),
        relay: Some(RelayRole {
            listen: vec!["0.0.0.0:6061".parse().unwrap()],
            sessions: 1,
            bytes: 2048,
            spliced: 1,
            joined: 0,
            kernel_bytes: 4096,
            no_kernel: None,
            carried: Vec::new(),
        }),
        ..Status::serving()
    };
    assert_eq!(
        status(&serving, NOW, Style::default()),
        "\
serving network home (no member here)
broker here: on 0.0.0.0:6060, 2 of 3 members online, without the CA key
relay here: on 0.0.0.0:6061, 1 session, 2.0 KiB copied, 4.0 KiB by the kernel (now 1 over TCP, 0 over UDP)
"
    );
}

#[test]
fn peers_lists_names_addresses_and_keys() {
    let [nas, _, phone, pi] = member().peers.try_into().unwrap();
    assert_eq!(
        peers(&[nas, phone, pi], NOW),
        "\
NAME               ADDRESS                STATE       GROUPS  KEY
nas                10.77.0.2 fd00::a4d:2  active      home    HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=
phone (wireguard)  10.77.0.4              idle        -       HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=
pi                 10.77.0.5              offline 3h  -       HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=
"
    );
    assert!(peers(&[], NOW).starts_with("no other members yet"));
}

#[test]
fn a_pong_names_the_way_it_took() {
    let reply = |path, rtt_ms, problem: Option<&str>| Pong {
        name: "nas".to_owned(),
        address: "10.77.0.2".parse().unwrap(),
        path,
        rtt_ms,
        problem: problem.map(str::to_owned),
    };
    let udp = Path { endpoint: "203.0.113.5:4242".parse().ok(), ..path(Kind::DirectUdp) };
    let relay =
        Path { relay: Some("hub".to_owned()), relay_transport: Some("tcp".to_owned()), ..path(Kind::Relay) };
    for (reply, text) in [
        (reply(udp, Some(12.3), None), "pong from nas (10.77.0.2) via udp 203.0.113.5:4242 in 12.3 ms"),
        (reply(relay, Some(0.06), None), "pong from nas (10.77.0.2) via relay hub(tcp) in 0.1 ms"),
        (reply(path(Kind::None), None, Some("offline")), "no reply from nas (10.77.0.2): offline"),
        (reply(path(Kind::None), None, None), "no reply from nas (10.77.0.2): no answer in time"),
    ] {
        assert_eq!(pong(&reply), text);
    }
}

#[test]
fn colour_changes_nothing_but_the_colour() {
    let plain = status(&member(), NOW, Style::default());
    let coloured = status(&member(), NOW, Style { colour: true, verbose: false });
    assert!(coloured.contains("\u{1b}[32mudp 203.0.113.5:4242\u{1b}[0m"));
    let mut stripped = coloured;
    for code in ["1", "2", "32", "33", "0"] {
        stripped = stripped.replace(&format!("\u{1b}[{code}m"), "");
    }
    assert_eq!(stripped, plain);
}

#[test]
fn bytes_have_at_most_four_digits() {
    for (count, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10_239, "9.9 KiB"),
        (10_240, "10 KiB"),
        (1024 * 1024 - 1, "1023 KiB"),
        (1024 * 1024, "1.0 MiB"),
        (u64::MAX, "16383 PiB"),
    ] {
        assert_eq!(bytes(count), text, "{count}");
    }
}

#[test]
fn ages_name_their_largest_unit() {
    for (secs, text) in
        [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86_399, "23h"), (86_400, "1d")]
    {
        assert_eq!(age(secs), text);
    }
}

#[test]
fn a_forwarded_port_is_a_line_and_why_there_is_none_is_for_whoever_asks() {
    let forwarded = |worth: &str| Forwarded {
        transport: "udp".to_owned(),
        protocol: "pcp".to_owned(),
        internal: 4000,
        external: "100.64.0.9:4001".parse().unwrap(),
        worth: worth.to_owned(),
    };
    let shown = |forwarded: Vec<Forwarded>, verbose: bool| {
        let address = Some([192, 168, 1, 1].into());
        let gateway = Gateway { address, forwarded, problem: Some("no TCP".to_owned()) };
        status(&Status { gateway: Some(gateway), ..member() }, NOW, Style { verbose, ..Style::default() })
    };
    let text = shown(vec![forwarded("public")], false);
    assert!(
        text.contains("\nrouter 192.168.1.1 forwards udp 100.64.0.9:4001 to port 4000 (pcp)\n"),
        "{text}"
    );
    assert!(!text.contains("no TCP"));
    let text = shown(vec![forwarded("nested")], true);
    assert!(
        text.contains("(pcp), but another NAT stands outside") && text.contains("router: no TCP\n"),
        "{text}"
    );
}

#[test]
fn the_way_to_each_relay_is_for_whoever_asks() {
    let relay = |name: &str, rtt_ms| RelayDelay { name: name.to_owned(), rtt_ms };
    let with = Status { relay_delays: vec![relay("oslo", Some(41)), relay("lima", None)], ..member() };
    let text = status(&with, NOW, Style { verbose: true, ..Style::default() });
    assert!(text.contains("\nrelay oslo: 41 ms\nrelay lima: cannot be reached\n"), "{text}");
    assert!(!status(&with, NOW, Style::default()).contains("oslo"));
}

#[test]
fn a_proxy_is_named() {
    let with = Status { proxy: Some("http://proxy:3128".to_owned()), ..member() };
    let text = status(&with, NOW, Style::default());
    assert!(text.contains("\nbroker and relays through the proxy http://proxy:3128\n"), "{text}");
}
