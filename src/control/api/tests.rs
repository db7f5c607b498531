//! What scripts rely on, and that everything survives its way through the socket.

use super::*;
use crate::base::addr::OverlayAddrs;
use crate::base::time::UnixTime;
use crate::identity::keys::WgPublic;
use crate::nat::behavior::Profile;
use crate::nat::candidate;
use crate::nat::candidate::Transport;
use crate::node::methods::Count;
use crate::node::request;
use crate::node::serve::Served;
use crate::node::status::Activity;
use crate::node::status::Counters;
use crate::node::status::PathKind;
use crate::node::status::PeerStatus;
use crate::node::status::Snapshot;
use crate::path::Means;
use crate::path::RelayedBy;
use crate::punch::method::Method;
use crate::relay::server::Stats;

fn snapshot() -> Snapshot {
    let peer = PeerStatus {
        name: "nas".parse().unwrap(),
        addrs: vec!["10.77.0.2".parse().unwrap()],
        wg: WgPublic([7; 32]),
        groups: vec!["home".parse().unwrap()],
        stock: false,
        path: PathKind::Relay {
            name: "hub".parse().unwrap(),
            by: RelayedBy::Udp,
            endpoint: "203.0.113.1:6061".parse().unwrap(),
        },
        how: None,
        activity: Activity::Active,
        rtt: Some(Duration::from_micros(12_345)),
        loss: Some(0.25),
        rx_bytes: 1,
        tx_bytes: 2,
        last_handshake: Some(Duration::from_secs(3)),
        last_seen: None,
        why: Some("udp: no answer".to_owned()),
        choice: Some("UDP works".to_owned()),
        beside: Some(("203.0.113.5:4242".parse().unwrap(), Method::Simultaneous)),
        next_try: Some(Duration::from_secs(9)),
    };
    Snapshot {
        network: "home".parse().unwrap(),
        name: "laptop".parse().unwrap(),
        addrs: OverlayAddrs { v4: "10.77.0.1".parse().unwrap(), v6: "fd00::a4d:1".parse().unwrap() },
        wg: WgPublic([8; 32]),
        certificate_until: UnixTime::from_secs(5),
        candidates: vec![candidate::Candidate {
            transport: Transport::Udp,
            kind: candidate::Kind::Mapped,
            addr: "192.0.2.1:4".parse().unwrap(),
        }],
        profile: Profile::default(),
        brokers: Vec::new(),
        peers: vec![peer],
        unknown_peers: vec!["nsa".parse().unwrap()],
        revocations: 4,
        served: Some(Served {
            endpoints: vec!["192.0.2.1:4".parse().unwrap()],
            stats: Stats { sessions: 3, ..Stats::default() },
        }),
        counters: Counters { spoofed: 6, ..Counters::default() },
        methods: vec![(Means::Udp, Count { tried: 9, opened: 8, first: 7 })],
    }
}

#[test]
fn status_json_keeps_the_names_that_scripts_rely_on() {
    let json = serde_json::to_value(Status::from(snapshot())).unwrap();
    for (pointer, value) in [
        ("/schema", "1"),
        ("/name", "\"laptop\""),
        ("/addresses/0", "\"10.77.0.1\""),
        ("/candidates/0/kind", "\"mapped\""),
        ("/dropped/spoofed", "6"),
        ("/methods/0", "{\"first\":7,\"method\":\"udp\",\"opened\":8,\"tried\":9}"),
        ("/unknown_peers/0", "\"nsa\""),
        ("/relay/sessions", "3"),
        ("/relay/listen/0", "\"192.0.2.1:4\""),
        ("/peers/0/name", "\"nas\""),
        ("/peers/0/addresses/0", "\"10.77.0.2\""),
        ("/peers/0/path", "\"relay\""),
        ("/peers/0/endpoint", "\"203.0.113.1:6061\""),
        ("/peers/0/relay", "\"hub\""),
        ("/peers/0/relay_transport", "\"udp\""),
        ("/peers/0/rtt_ms", "12.345"),
        ("/peers/0/loss", "0.25"),
        ("/peers/0/rx_bytes", "1"),
        ("/peers/0/tx_bytes", "2"),
        ("/peers/0/last_handshake_s", "3"),
        ("/peers/0/why", "\"udp: no answer\""),
        ("/peers/0/choice", "\"UDP works\""),
        ("/peers/0/beside_endpoint", "\"203.0.113.5:4242\""),
        ("/peers/0/beside_method", "\"p2pnat\""),
    ] {
        assert_eq!(json.pointer(pointer).map(ToString::to_string).as_deref(), Some(value), "{pointer}");
    }
}

#[test]
fn replies_read_back() {
    let pong = request::Pong {
        ticket: request::Ticket(1),
        name: "nas".parse().unwrap(),
        addr: "10.77.0.2".parse().unwrap(),
        path: PathKind::DirectUdp("203.0.113.5:4242".parse().unwrap()),
        rtt: Err("no answer".to_owned()),
    };
    for reply in [
        Reply::Status(Box::new(Status::from(snapshot()))),
        Reply::Pong(pong.into()),
        Reply::Invite { token: "ntcp1-x".to_owned(), ttl_s: 5 },
        Reply::refused(Reason::Timeout, "too slow"),
    ] {
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply, "{text}");
    }
}

#[test]
fn requests_are_short_json_and_unknown_ones_are_errors() {
    let text = r#"{"schema":1,"request":{"op":"ping","peer":"nas","timeout_ms":5}}"#;
    let envelope: Envelope = serde_json::from_str(text).unwrap();
    assert_eq!(envelope.request, Request::Ping { peer: "nas".to_owned(), timeout_ms: 5 });
    assert_eq!(serde_json::to_string(&envelope).unwrap(), text);
    for bad in [
        r#"{"schema":1,"request":{"op":"dance"}}"#,
        r#"{"schema":1,"request":{"op":"status","path":"/etc/shadow"}}"#,
        r#"{"request":{"op":"status"}}"#,
        "[]",
    ] {
        assert!(serde_json::from_str::<Envelope>(bad).is_err(), "{bad}");
    }
}

#[test]
fn whatever_changes_something_is_a_write() {
    for (request, write) in [
        (Request::Status {}, false),
        (Request::Ping { peer: String::new(), timeout_ms: 0 }, false),
        (Request::Down {}, true),
        (
            Request::Invite { name: None, groups: Vec::new(), ttl_s: None, relay: false, may_relay: false },
            true,
        ),
        (Request::Revoke { name: String::new() }, true),
        (Request::ImportRevocations { base64: String::new() }, true),
    ] {
        assert_eq!(request.is_write(), write, "{request:?}");
    }
}
