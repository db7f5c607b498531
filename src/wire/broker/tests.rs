//! Broker messages: round trips, truncation, golden bytes, caps.

use std::net::IpAddr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Forged;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Reaction;
use crate::nat::behavior::Segments;
use crate::nat::behavior::Transitory;
use crate::nat::candidate::Kind;
use crate::nat::candidate::MAX_CANDIDATES;
use crate::nat::candidate::Transport;
use crate::wire::WireError;
use crate::wire::profile::arbitrary::candidate;
use crate::wire::profile::arbitrary::endpoint;
use crate::wire::profile::arbitrary::profile;

fn name() -> impl Strategy<Value = MemberName> {
    "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![name().prop_map(Target::Name), any::<IpAddr>().prop_map(|ip| Target::Addr(ip.to_canonical()))]
}

fn time() -> impl Strategy<Value = UnixTime> {
    any::<u64>().prop_map(|micros| UnixTime::from_epoch(Duration::from_micros(micros)))
}

fn request() -> impl Strategy<Value = RequestId> {
    any::<u32>().prop_map(RequestId)
}

fn endpoints() -> impl Strategy<Value = Vec<SocketAddr>> {
    vec(endpoint(), 0..=MAX_ENDPOINTS)
}

fn attempt() -> impl Strategy<Value = AttemptId> {
    any::<[u8; 16]>().prop_map(AttemptId)
}

fn member() -> impl Strategy<Value = MemberRecord> {
    (vec(any::<u8>(), 0..900), any::<bool>(), time())
        .prop_map(|(certificate, online, last_seen)| MemberRecord { certificate, online, last_seen })
}

fn relay() -> impl Strategy<Value = RelayOffer> {
    (vec(any::<u8>(), 0..900), vec(candidate(), 0..4), any::<[u8; 16]>(), vec(any::<u8>(), 0..MAX_TOKEN))
        .prop_map(|(certificate, endpoints, session, token)| RelayOffer {
            certificate,
            endpoints,
            session: RelaySession(session),
            token: Hidden(token),
        })
}

fn place() -> impl Strategy<Value = RelayPlace> {
    (name(), vec(candidate(), 0..=MAX_CANDIDATES))
        .prop_map(|(name, endpoints)| RelayPlace { name, endpoints })
}

fn delay() -> impl Strategy<Value = RelayDelay> {
    (name(), proptest::option::of(0..u16::MAX)).prop_map(|(name, rtt)| RelayDelay { name, rtt })
}

fn to_broker() -> impl Strategy<Value = ToBroker> {
    let noise = || vec(any::<u8>(), 0..=MAX_NOISE);
    let candidates = || vec(candidate(), 0..=MAX_CANDIDATES);
    let register = (
        "[ -~äöü]{0,60}",
        candidates(),
        profile(),
        candidates(),
        prop_oneof![Just(0), any::<u64>()],
        any::<bool>(),
    )
        .prop_map(|(software, candidates, profile, relay, revocations, watch)| Register {
            software,
            candidates,
            profile,
            relay,
            revocations,
            watch,
        });
    prop_oneof![
        (any::<[u8; 32]>(), vec(any::<u8>(), 0..MAX_REQUEST))
            .prop_map(|(secret, request)| ToBroker::Redeem { secret: Hidden(secret), request }),
        register.prop_map(ToBroker::Register),
        (candidates(), profile()).prop_map(|(candidates, profile)| ToBroker::Update { candidates, profile }),
        (request(), target()).prop_map(|(request, target)| ToBroker::Lookup { request, target }),
        (request(), proptest::option::of(name()))
            .prop_map(|(request, after)| ToBroker::List { request, after }),
        (request(), target(), noise()).prop_map(|(request, target, noise)| ToBroker::Connect {
            request,
            target,
            noise
        }),
        (attempt(), vec(any::<u8>(), 1..=MAX_NOISE))
            .prop_map(|(attempt, noise)| ToBroker::Convey { attempt, noise }),
        (attempt(), any::<u8>(), endpoints(), any::<u16>())
            .prop_map(|(attempt, round, endpoints, rtt)| ToBroker::Ready { attempt, round, endpoints, rtt }),
        vec(delay(), 0..=MAX_PLACES).prop_map(ToBroker::Delays),
        (attempt(), any::<u8>(), any::<bool>(), endpoint(), vec(any::<u8>(), 1..=MAX_SYN)).prop_map(
            |(attempt, round, forge, from, syn)| ToBroker::Dialled { attempt, round, forge, from, syn }
        ),
        (request(), vec(any::<u8>(), 0..MAX_REQUEST))
            .prop_map(|(request, csr)| ToBroker::Renew { request, csr }),
        any::<u32>().prop_map(|nonce| ToBroker::Ping { nonce }),
    ]
}

fn from_broker() -> impl Strategy<Value = FromBroker> {
    let addrs = |most| vec(endpoint(), 0..=most);
    let registered = (any::<u64>(), addrs(MAX_UDP), addrs(MAX_STUN), endpoint(), time(), any::<bool>())
        .prop_map(|(registration, udp, stun, observed, time, forge)| Registered {
            registration: RegistrationId(registration),
            udp,
            stun,
            observed,
            time,
            forge,
        });
    let offer = (
        attempt(),
        proptest::option::of(request()),
        member(),
        vec(candidate(), 0..=MAX_CANDIDATES),
        profile(),
        vec(relay(), 0..=MAX_RELAYS),
        vec(any::<u8>(), 0..=MAX_NOISE),
    )
        .prop_map(|(attempt, request, peer, candidates, profile, relays, noise)| Offer {
            attempt,
            request,
            peer,
            candidates,
            profile,
            relays,
            noise,
        });
    let certificate = || vec(any::<u8>(), 0..=MAX_CERTIFICATE);
    let refusal = proptest::sample::select(REFUSALS.to_vec());
    prop_oneof![
        certificate().prop_map(|certificate| FromBroker::Enrolled { certificate }),
        registered.prop_map(FromBroker::Registered),
        (request(), member()).prop_map(|(request, member)| FromBroker::Found { request, member }),
        (request(), vec(member(), 0..=MAX_LISTED), any::<bool>())
            .prop_map(|(request, members, more)| FromBroker::Listing { request, members, more }),
        offer.prop_map(FromBroker::Offer),
        (attempt(), vec(any::<u8>(), 1..=MAX_NOISE))
            .prop_map(|(attempt, noise)| FromBroker::Conveyed { attempt, noise }),
        member().prop_map(FromBroker::Changed),
        vec(any::<u8>(), 0..2000).prop_map(FromBroker::Revocations),
        (request(), certificate())
            .prop_map(|(request, certificate)| FromBroker::Renewed { request, certificate }),
        (request(), refusal, "[ -~äöü]{0,60}").prop_map(|(request, why, text)| FromBroker::Refused {
            request,
            why,
            text
        }),
        any::<u32>().prop_map(|nonce| FromBroker::Pong { nonce }),
        vec(place(), 0..=MAX_PLACES).prop_map(FromBroker::Relays),
        (attempt(), any::<u8>()).prop_map(|(attempt, round)| FromBroker::Awaited { attempt, round }),
        (attempt(), any::<u8>(), endpoints(), 0..=MAX_WAIT)
            .prop_map(|(attempt, round, endpoints, wait)| FromBroker::Go { attempt, round, endpoints, wait }),
        (attempt(), any::<u8>(), any::<bool>(), vec(any::<u8>(), 1..=MAX_SYN))
            .prop_map(|(attempt, round, forge, syn)| FromBroker::Dialled { attempt, round, forge, syn }),
    ]
}

const REFUSALS: [Refusal; 9] = [
    Refusal::NotFound,
    Refusal::Offline,
    Refusal::InvalidInvite,
    Refusal::NameTaken,
    Refusal::NoAddressLeft,
    Refusal::TooMany,
    Refusal::NoAuthority,
    Refusal::Malformed,
    Refusal::Forbidden,
];

proptest! {
    #[test]
    fn what_a_member_says_a_broker_reads(message in to_broker()) {
        let bytes = message.emit();
        prop_assert!(bytes.len() <= MAX_AUTHENTICATED);
        prop_assert_eq!(ToBroker::parse(&bytes), Ok(message));
    }

    #[test]
    fn what_a_broker_says_a_member_reads(message in from_broker()) {
        let bytes = message.emit();
        prop_assert!(bytes.len() <= MAX_AUTHENTICATED);
        prop_assert_eq!(FromBroker::parse(&bytes), Ok(message));
    }

    #[test]
    fn noise_on_the_line_is_an_error_and_never_a_panic(bytes in vec(any::<u8>(), 0..600)) {
        let _ = ToBroker::parse(&bytes);
        let _ = FromBroker::parse(&bytes);
    }
}

#[test]
fn a_message_cut_short_is_never_taken_for_the_whole() {
    for (message, _) in golden_to() {
        let bytes = message.emit();
        for n in 0..bytes.len() {
            assert_ne!(ToBroker::parse(&bytes[..n]), Ok(message.clone()), "{message:?} cut at {n}");
        }
    }
    for (message, _) in golden_from() {
        let bytes = message.emit();
        for n in 0..bytes.len() {
            assert_ne!(FromBroker::parse(&bytes[..n]), Ok(message.clone()), "{message:?} cut at {n}");
        }
    }
}

#[test]
fn the_bytes_of_each_message_stay_what_they_are() {
    for (message, hex) in golden_to() {
        assert_eq!(ToBroker::parse(&bytes(hex)), Ok(message.clone()), "{hex}");
        assert_eq!(message.emit(), bytes(hex), "{message:?}");
    }
    for (message, hex) in golden_from() {
        assert_eq!(FromBroker::parse(&bytes(hex)), Ok(message.clone()), "{hex}");
        assert_eq!(message.emit(), bytes(hex), "{message:?}");
    }
}

#[test]
fn an_unknown_kind_is_told_apart_from_garbage() {
    assert_eq!(ToBroker::parse(&[0x7f, 1, 0, 0]), Err(WireError::Unknown));
    assert_eq!(FromBroker::parse(&[0x01]), Err(WireError::Unknown), "kinds have a direction");
    assert_eq!(ToBroker::parse(&[]), Err(WireError::Truncated));
    assert_eq!(ToBroker::parse(&vec![0x0c; MAX_AUTHENTICATED + 1]), Err(WireError::TooLong));
}

#[test]
fn a_question_has_one_target() {
    for (hex, result) in [
        ("04 010004 00000001", WireError::Missing),
        ("04 010004 00000001 060001 61 070005 040a4d0002", WireError::Invalid),
        ("04 010004 00000001 060001 41", WireError::Invalid),
        ("04 010004 00000001 070006 040a4d000200", WireError::Invalid),
        ("04 060001 61", WireError::Missing),
        ("04 010003 000001 060001 61", WireError::Invalid),
    ] {
        assert_eq!(ToBroker::parse(&bytes(hex)), Err(result), "{hex}");
    }
}

#[test]
fn a_candidate_that_only_a_newer_program_knows_is_passed_over() {
    let message = ToBroker::parse(&bytes("03 090009 0700 04c0000201 0001 090009 0004 04c0000201 0002"));
    let Ok(ToBroker::Update { candidates, .. }) = message else { panic!("{message:?}") };
    assert_eq!(candidates.iter().map(|c| c.addr.port()).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_list_over_its_cap_is_refused_and_never_sent() {
    let many = vec![sample_candidate(); MAX_CANDIDATES + 1];
    let message = ToBroker::Update { candidates: many, profile: Profile::default() };
    let sent = message.emit();
    let Ok(ToBroker::Update { candidates, .. }) = ToBroker::parse(&sent) else { panic!() };
    assert_eq!(candidates.len(), MAX_CANDIDATES);
    let one = bytes("090009 0004 04c0000201 0002");
    let over = [&[0x03], &one.repeat(MAX_CANDIDATES + 1)[..]].concat();
    assert_eq!(ToBroker::parse(&over), Err(WireError::TooLong));
    let noise = [&bytes("07 0f0010 000102030405060708090a0b0c0d0e0f 0e00c1")[..], &[0; 193]].concat();
    assert_eq!(ToBroker::parse(&noise), Err(WireError::TooLong));
}

#[test]
fn a_listing_that_does_not_fit_says_that_there_is_more() {
    let fat = MemberRecord { certificate: vec![7; 2000], online: true, last_seen: UnixTime::from_secs(1) };
    let message = FromBroker::Listing { request: RequestId(1), members: vec![fat; 64], more: false };
    let sent = message.emit();
    assert!(sent.len() <= MAX_AUTHENTICATED && sent.len() > MAX_AUTHENTICATED - 2100);
    let Ok(FromBroker::Listing { members, more, .. }) = FromBroker::parse(&sent) else { panic!() };
    assert!(more);
    assert_eq!(members.len(), 32);
}

#[test]
fn a_reason_cannot_paint_on_the_terminal() {
    let refused = FromBroker::Refused {
        request: RequestId(0),
        why: Refusal::Offline,
        text: "\x1b[2Jall is well\r\n".to_owned(),
    };
    let Ok(FromBroker::Refused { text, .. }) = FromBroker::parse(&refused.emit()) else { panic!() };
    assert_eq!(text, "\\u{1b}[2Jall is well\\r\\n");
}

#[test]
fn every_refusal_has_a_number_of_its_own() {
    for why in REFUSALS {
        let message = FromBroker::Refused { request: RequestId(1), why, text: String::new() };
        assert_eq!(FromBroker::parse(&message.emit()), Ok(message));
    }
    assert_eq!(
        FromBroker::parse(&bytes("8b 010004 00000001 1c0001 ff")),
        Ok(FromBroker::Refused { request: RequestId(1), why: Refusal::Forbidden, text: String::new() })
    );
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn sample_candidate() -> Candidate {
    Candidate { transport: Transport::Udp, kind: Kind::Mapped, addr: "192.0.2.1:4242".parse().unwrap() }
}

fn sample_profile() -> Profile {
    Profile {
        udp: Behavior {
            passes: Some(true),
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            ports: PortAssignment::Preserved,
            reaction: Reaction::Drop,
            hairpin: Some(false),
            paired: Some(true),
            lifetime: Some(30),
        },
        tcp: Behavior {
            passes: None,
            mapping: Mapping::SessionDependent,
            filtering: Filtering::InboundNever,
            ports: PortAssignment::Delta(-2),
            ..Behavior::default()
        },
        segments: Segments { sequence_kept: Some(true), ..Segments::default() },
        transitory: Transitory { opening: Some(60), closing: None },
        hops: Some(2),
        forged: Forged::Able,
    }
}

fn sample_member() -> MemberRecord {
    MemberRecord { certificate: vec![0xce, 0x47], online: true, last_seen: UnixTime::from_secs(1) }
}

const ATTEMPT: AttemptId = AttemptId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

fn golden_to() -> Vec<(ToBroker, &'static str)> {
    vec![
        (
            ToBroker::Redeem { secret: Hidden([0x5e; 32]), request: vec![0xaa, 0xbb] },
            "01 030020 5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e 040002 aabb",
        ),
        (
            ToBroker::Register(Register {
                software: "0.1.0".to_owned(),
                candidates: vec![sample_candidate()],
                profile: sample_profile(),
                relay: vec![Candidate {
                    transport: Transport::Tcp,
                    kind: Kind::Configured,
                    addr: "[2001:db8::1]:6061".parse().unwrap(),
                }],
                revocations: 3,
                watch: true,
            }),
            "02 080005 302e312e30 090009 0004 04c0000201 1092 0a0021 03 010204010000010201001e 00050502fffe0000000000 00000001 02 003c0000 01 \
             0b0015 0102 0620010db8000000000000000000000001 17ad 0c0008 0000000000000003 0d0001 01",
        ),
        (
            ToBroker::Update { candidates: vec![sample_candidate()], profile: Profile::default() },
            "03 090009 0004 04c0000201 1092",
        ),
        (
            ToBroker::Lookup {
                request: RequestId(0x0102_0304),
                target: Target::Addr("10.77.0.2".parse().unwrap()),
            },
            "04 010004 01020304 070005 040a4d0002",
        ),
        (
            ToBroker::List { request: RequestId(5), after: Some("nas".parse().unwrap()) },
            "05 010004 00000005 060003 6e6173",
        ),
        (
            ToBroker::Connect {
                request: RequestId(6),
                target: Target::Name("nas".parse().unwrap()),
                noise: vec![1, 0, 0, 0],
            },
            "06 010004 00000006 060003 6e6173 0e0004 01000000",
        ),
        (
            ToBroker::Convey { attempt: ATTEMPT, noise: vec![2, 0, 0, 0] },
            "07 0f0010 000102030405060708090a0b0c0d0e0f 0e0004 02000000",
        ),
        (
            ToBroker::Ready {
                attempt: ATTEMPT,
                round: 2,
                endpoints: vec!["203.0.113.5:20001".parse().unwrap(), "203.0.113.5:20002".parse().unwrap()],
                rtt: 80,
            },
            "08 0f0010 000102030405060708090a0b0c0d0e0f 1f0001 02 0b0007 04cb007105 4e21 0b0007 04cb007105 4e22 \
             200002 0050",
        ),
        (
            ToBroker::Delays(vec![
                RelayDelay { name: "nas".parse().unwrap(), rtt: Some(40) },
                RelayDelay { name: "r".parse().unwrap(), rtt: None },
            ]),
            "09 210005 0028 6e6173 210003 ffff 72",
        ),
        (
            ToBroker::Dialled {
                attempt: ATTEMPT,
                round: 1,
                forge: true,
                from: "203.0.113.5:20001".parse().unwrap(),
                syn: vec![0x4e, 0x21],
            },
            "0d 0f0010 000102030405060708090a0b0c0d0e0f 1f0001 01 240001 01 180007 04cb007105 4e21 230002 4e21",
        ),
        (ToBroker::Renew { request: RequestId(7), csr: vec![0xcc] }, "0a 010004 00000007 040001 cc"),
        (ToBroker::Ping { nonce: 8 }, "0c 020004 00000008"),
    ]
}

fn golden_from() -> Vec<(FromBroker, &'static str)> {
    vec![
        (FromBroker::Enrolled { certificate: vec![0xce, 0x47] }, "81 050002 ce47"),
        (
            FromBroker::Registered(Registered {
                registration: RegistrationId(9),
                udp: vec!["198.51.100.1:6060".parse().unwrap()],
                stun: vec!["198.51.100.2:3478".parse().unwrap()],
                observed: "203.0.113.5:50000".parse().unwrap(),
                time: UnixTime::from_secs(1),
                forge: true,
            }),
            "82 160008 0000000000000009 170007 04c6336401 17ac 1e0007 04c6336402 0d96 180007 04cb007105 c350 190008 00000000000f4240 \
             240001 01",
        ),
        (
            FromBroker::Found { request: RequestId(1), member: sample_member() },
            "84 010004 00000001 100014 050002 ce47 110001 01 120008 00000000000f4240",
        ),
        (
            FromBroker::Listing { request: RequestId(2), members: vec![sample_member()], more: true },
            "85 010004 00000002 100014 050002 ce47 110001 01 120008 00000000000f4240 1a0001 01",
        ),
        (
            FromBroker::Offer(Offer {
                attempt: ATTEMPT,
                request: Some(RequestId(6)),
                peer: MemberRecord { online: false, ..sample_member() },
                candidates: vec![sample_candidate()],
                profile: sample_profile(),
                relays: vec![RelayOffer {
                    certificate: vec![0xce],
                    endpoints: vec![sample_candidate()],
                    session: RelaySession([0x11; 16]),
                    token: Hidden(vec![0x70]),
                }],
                noise: vec![1, 0, 0, 0],
            }),
            "86 0f0010 000102030405060708090a0b0c0d0e0f 010004 00000006 \
             100010 050002 ce47 120008 00000000000f4240 \
             090009 0004 04c0000201 1092 0a0021 03 010204010000010201001e 00050502fffe0000000000 00000001 02 003c0000 01 \
             130027 050001 ce 0b0009 0004 04c0000201 1092 140010 11111111111111111111111111111111 150001 70 \
             0e0004 01000000",
        ),
        (
            FromBroker::Conveyed { attempt: ATTEMPT, noise: vec![2, 0, 0, 0] },
            "87 0f0010 000102030405060708090a0b0c0d0e0f 0e0004 02000000",
        ),
        (FromBroker::Changed(sample_member()), "88 100014 050002 ce47 110001 01 120008 00000000000f4240"),
        (FromBroker::Revocations(vec![0x4c]), "89 1b0001 4c"),
        (
            FromBroker::Renewed { request: RequestId(7), certificate: vec![0xce, 0x47] },
            "8a 010004 00000007 050002 ce47",
        ),
        (
            FromBroker::Refused { request: RequestId(4), why: Refusal::Offline, text: "off".to_owned() },
            "8b 010004 00000004 1c0001 02 1d0003 6f6666",
        ),
        (FromBroker::Pong { nonce: 8 }, "8c 020004 00000008"),
        (
            FromBroker::Awaited { attempt: ATTEMPT, round: 1 },
            "8d 0f0010 000102030405060708090a0b0c0d0e0f 1f0001 01",
        ),
        (
            FromBroker::Go {
                attempt: ATTEMPT,
                round: 1,
                endpoints: vec!["203.0.113.5:20001".parse().unwrap()],
                wait: 0,
            },
            "8e 0f0010 000102030405060708090a0b0c0d0e0f 1f0001 01 0b0007 04cb007105 4e21",
        ),
        (
            FromBroker::Relays(vec![RelayPlace {
                name: "nas".parse().unwrap(),
                endpoints: vec![sample_candidate()],
            }]),
            "8f 220012 060003 6e6173 0b0009 0004 04c0000201 1092",
        ),
        (
            FromBroker::Dialled { attempt: ATTEMPT, round: 1, forge: false, syn: vec![0x4e, 0x21] },
            "90 0f0010 000102030405060708090a0b0c0d0e0f 1f0001 01 230002 4e21",
        ),
    ]
}

#[test]
fn secrets_and_tokens_do_not_show_in_logs() {
    let redeem = ToBroker::Redeem { secret: Hidden([0x5e; 32]), request: vec![] };
    assert!(!format!("{redeem:?}").contains("94"), "{redeem:?}");
    let offer = RelayOffer {
        certificate: vec![],
        endpoints: vec![],
        session: RelaySession([0; 16]),
        token: Hidden(vec![0x70; 8]),
    };
    assert!(!format!("{offer:?}").contains("112"), "{offer:?}");
}
