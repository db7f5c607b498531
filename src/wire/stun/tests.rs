//! STUN messages: the published vectors, round trips, truncation, what a hash covers.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::profile::arbitrary::endpoint;

/// RFC 5769 2.1: "STUN test client", PRIORITY, ICE-CONTROLLED, USERNAME "evtj:h6vY".
const RFC5769_REQUEST: &str = "
    0001 0058 2112a442 b7e7a701bc34d686fa87dfae
    8022 0010 5354554e207465737420636c69656e74
    0024 0004 6e0001ff
    8029 0008 932ff9b151263b36
    0006 0009 6576746a3a68367659202020
    0008 0014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2
    8028 0004 e57a3bcf";
/// RFC 5769 2.2.
const RFC5769_RESPONSE_V4: &str = "
    0101 003c 2112a442 b7e7a701bc34d686fa87dfae
    8022 000b 7465737420766563746f7220
    0020 0008 0001a147e112a643
    0008 0014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7
    8028 0004 c07d4c96";
/// RFC 5769 2.3.
const RFC5769_RESPONSE_V6: &str = "
    0101 0048 2112a442 b7e7a701bc34d686fa87dfae
    8022 000b 7465737420766563746f7220
    0020 0014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9
    0008 0014 a382954e4be67bf11784c97c8292c275bfe3ed41
    8028 0004 c8fb0b4c";
/// The password of the three above.
const RFC5769_PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";
/// RFC 5769 2.4: USERNAME, NONCE, REALM; long-term credentials.
const RFC5769_LONG_TERM: &str = "
    0001 0060 2112a442 78ad3433c6ad72c029da412e
    0006 0012 e3839ee38388e383aae38383e382afe382b90000
    0015 001c 662f2f3439396b39353464364f4c33346f4c39465354767936347341
    0014 000b 6578616d706c652e6f726700
    0008 0014 f67024656dd64a3e02b8e0712e85c9a28ca89666";
/// RFC 8489 B.1 with erratum 6268: USERHASH, NONCE, REALM, PASSWORD-ALGORITHM SHA-256.
const RFC8489_LONG_TERM: &str = "
    0001 0090 2112a442 78ad3433c6ad72c029da412e
    001e 0020 4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704
    0015 0029 6f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c39465354767936347341000000
    0014 000b 6578616d706c652e6f726700
    001d 0004 00020000
    001c 0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65";

#[test]
fn the_short_term_vectors_of_rfc_5769_are_authentic() {
    for (hex, mapped) in [
        (RFC5769_REQUEST, None),
        (RFC5769_RESPONSE_V4, Some("192.0.2.1:32853")),
        (RFC5769_RESPONSE_V6, Some("[2001:db8:1234:5678:11:2233:4455:6677]:32853")),
    ] {
        let bytes = bytes(hex);
        let received = Received::parse(&bytes).unwrap();
        assert!(received.has_cookie && received.unknown_required.is_empty());
        assert_eq!(received.message.mapped(), mapped.map(|text| text.parse().unwrap()));
        assert!(received.is_authentic_sha1(RFC5769_PASSWORD));
        assert!(!received.is_authentic_sha1(b"wrong"));
        assert!(!received.is_authentic(RFC5769_PASSWORD), "SHA1 is not SHA256");
    }
    let bytes = bytes(RFC5769_REQUEST);
    let request = Received::parse(&bytes).unwrap().message;
    assert_eq!((request.class, request.method), (Class::Request, BINDING));
    assert_eq!(request.username(), Some(&b"evtj:h6vY"[..]));
    assert!(request.attributes.contains(&Attribute::Priority(0x6e00_01ff)));
}

#[test]
fn the_responses_of_rfc_5769_come_out_but_for_the_software() {
    // Our messages carry no SOFTWARE, so the vectors' hashes cannot come out; their XOR-ed addresses must.
    for hex in [RFC5769_RESPONSE_V4, RFC5769_RESPONSE_V6] {
        let whole = bytes(hex);
        let emitted = Received::parse(&whole).unwrap().message.emit(Integrity::Sha1(RFC5769_PASSWORD));
        assert_eq!(emitted[4..20], whole[4..20]);
        assert_eq!(emitted[20..emitted.len() - 32], whole[36..whole.len() - 32]);
        assert!(Received::parse(&emitted).unwrap().is_authentic_sha1(RFC5769_PASSWORD));
    }
}

#[test]
fn the_long_term_vector_of_rfc_5769_is_authentic() {
    // MD5("<U+30DE><U+30C8><U+30EA><U+30C3><U+30AF><U+30B9>:example.org:TheMatrIX")
    let key = bytes("e8ca7ad59d5eb0518e312911d2dab2a9");
    let bytes = bytes(RFC5769_LONG_TERM);
    let received = Received::parse(&bytes).unwrap();
    assert!(received.is_authentic_sha1(&key));
    assert_eq!(received.unknown_required, [0x15, 0x14], "NONCE and REALM are not ours");
    assert_eq!(received.message.username().map(std::str::from_utf8), Some(Ok("マトリックス")));
}

#[test]
fn the_long_term_vector_of_rfc_8489_is_authentic() {
    // SHA-256("<U+30DE><U+30C8><U+30EA><U+30C3><U+30AF><U+30B9>:example.org:TheMatrIX")
    let key = bytes("dd295a613b9058c3c23d6dc7165bda072304d989c9d0af3a8c7e184b4f9bb4a1");
    let bytes = bytes(RFC8489_LONG_TERM);
    let received = Received::parse(&bytes).unwrap();
    assert!(received.is_authentic(&key));
    assert!(!received.is_authentic_sha1(&key));
    assert_eq!(received.unknown_required, [0x1e, 0x15, 0x14, 0x1d]);
}

#[test]
fn one_wrong_bit_anywhere_is_noticed() {
    let key = b"key";
    let good = request().with(Attribute::Timestamp(7)).emit(Integrity::Sha256(key));
    assert!(Received::parse(&good).unwrap().is_authentic(key));
    // The FINGERPRINT at the end protects itself, and means nothing to who checks the hash.
    for bit in 0..(good.len() - 8) * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let noticed = Received::parse(&bad).map_or(true, |received| !received.is_authentic(key));
        assert!(noticed, "bit {bit}");
    }
}

#[test]
fn what_stands_behind_the_hash_does_not_count() {
    let key = b"key";
    let honest = request().with(Attribute::Username(b"me".to_vec())).emit(Integrity::Sha256(key));
    // A forger on the way takes the fingerprint off and appends another mapped address.
    let mut forged = honest[..honest.len() - 8].to_vec();
    forged.extend(bytes("0001 0008 00010050c0000201"));
    let len = u16::try_from(forged.len() - HEADER_LEN).unwrap();
    forged[2..4].copy_from_slice(&len.to_be_bytes());
    let received = Received::parse(&forged).unwrap();
    assert!(received.is_authentic(key), "the hash covers what stands before it");
    assert_eq!(received.message.attributes, [Attribute::Username(b"me".to_vec())]);
    assert_eq!(received.message.mapped(), None);
}

#[test]
fn a_shortened_hash_is_no_hash() {
    let whole = request().emit(Integrity::Sha256(b"key"));
    let mut short = whole[..HEADER_LEN + 4 + 16].to_vec();
    short[HEADER_LEN + 3] = 16;
    short[3] = 20;
    let received = Received::parse(&short).unwrap();
    assert!(received.has_integrity() && !received.is_authentic(b"key"));
}

#[test]
fn a_message_without_a_hash_is_authentic_under_no_key() {
    let plain = request().emit(Integrity::None);
    assert_eq!(plain.len(), HEADER_LEN);
    let received = Received::parse(&plain).unwrap();
    assert!(!received.is_authentic(b"") && !received.is_authentic_sha1(b"") && !received.has_integrity());
}

#[test]
fn both_hashes_may_stand_in_one_message() {
    // SHA1 first (RFC 8489 14.6): SHA256 covers it.
    let mut message = request().emit(Integrity::Sha1(b"old"));
    message.truncate(message.len() - 8);
    let len = u16::try_from(message.len() - HEADER_LEN + 36).unwrap();
    message[2..4].copy_from_slice(&len.to_be_bytes());
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"new"), &message);
    message.extend(bytes("001c 0020"));
    message.extend(tag.as_ref());
    let received = Received::parse(&message).unwrap();
    assert!(received.is_authentic(b"new") && received.is_authentic_sha1(b"old"));
}

#[test]
fn an_rfc_3489_client_is_recognised_and_answered_in_its_own_words() {
    let bytes = bytes("0001 0000 00112233 445566778899aabbccddeeff");
    let received = Received::parse(&bytes).unwrap();
    assert!(!received.has_cookie);
    let addr = "192.0.2.1:80".parse().unwrap();
    let answer =
        received.message.success().with(Attribute::MappedAddress(addr)).emit_classic(received.cookie);
    assert_eq!(answer, self::bytes("0101 000c 00112233 445566778899aabbccddeeff 0001 0008 00010050c0000201"));
}

#[test]
fn malformed_messages_are_refused_for_the_right_reason() {
    let header = "2112a442 000000000000000000000000";
    for (text, hex, error) in [
        ("first bits set", format!("8001 0000 {header}"), WireError::Unknown),
        ("length not a multiple of 4", format!("0001 0002 {header} 0000"), WireError::Invalid),
        ("longer than its length", format!("0001 0000 {header} 00000000"), WireError::TooLong),
        ("shorter than its length", format!("0001 0008 {header} 00240004"), WireError::Truncated),
        ("attribute beyond the end", format!("0001 0004 {header} 00240004"), WireError::Truncated),
        ("padding beyond the end", format!("0001 0008 {header} 00060005 61626364"), WireError::Truncated),
        ("wrong family", format!("0001 000c {header} 00010008 0003005001020304"), WireError::Invalid),
        (
            "IPv4 in IPv6's length",
            format!("0001 0018 {header} 00010014 00010050{}", "00".repeat(16)),
            WireError::Invalid,
        ),
        ("fingerprint wrong", format!("0001 0008 {header} 80280004 00000000"), WireError::Integrity),
        (
            "fingerprint not last",
            format!("0001 0010 {header} 80280004 00000000 00240004 00000000"),
            WireError::Invalid,
        ),
        ("error code 700", format!("0111 0008 {header} 00090004 00000700"), WireError::Invalid),
        (
            "too many attributes",
            format!("0001 0108 {header} {}", "0024000400000001".repeat(33)),
            WireError::TooLong,
        ),
    ] {
        assert_eq!(Received::parse(&bytes(&hex)).map(|r| r.message), Err(error), "{text}");
    }
}

#[test]
fn unknown_attributes_are_skipped_if_optional_and_listed_if_required() {
    let bytes = bytes("0001 0010 2112a442 000000000000000000000000 c0010001 ff000000 7abc0001 ff000000");
    let received = Received::parse(&bytes).unwrap();
    assert_eq!(received.unknown_required, [0x7abc]);
    assert!(received.message.attributes.is_empty());
}

#[test]
fn own_methods_and_attributes_have_these_bytes() {
    let message = Message::request(RELAY_BIND, TransactionId([0; 12]))
        .with(Attribute::RelayToken(vec![0xaa; 5]))
        .with(Attribute::RelayChannel(0x4001))
        .with(Attribute::Timestamp(0x0102));
    assert_eq!(
        message.emit(Integrity::None),
        bytes(
            "02c1 0020 2112a442 000000000000000000000000 7e010005 aaaaaaaaaa000000 7e020004 40010000 \
             7e030008 0000000000000102"
        )
    );
}

#[test]
fn stunt_has_these_bytes() {
    let request =
        Message::request(STUNT_PROBE, TransactionId([0; 12])).with(Attribute::StuntProbe(stunt::Probe {
            action: stunt::Action::Icmp { kind: 11, code: 0 },
            address: 2,
            port: stunt::Port::Silent,
            target: Some(0x1234),
            watch: Duration::from_millis(3000),
        }));
    let hex = "02c2 000c 2112a442 000000000000000000000000 7e040008 0202021e 1234 0b00";
    assert_eq!(request.emit(Integrity::None), bytes(hex));

    let outcome = stunt::Outcome {
        event: stunt::Event::Icmp { kind: 3, code: 13 },
        after: Duration::from_millis(6001),
    };
    let hex = "03c2 000c 2112a442 000000000000000000000000 7e050008 03030d00 00001771";
    assert_eq!(request.success().with(Attribute::StuntOutcome(outcome)).emit(Integrity::None), bytes(hex));

    let segment = stunt::Segment {
        flags: stunt::SYN | stunt::ACK,
        ttl: 57,
        address: 1,
        source: 4242,
        destination: 3480,
        sequence: 0x0102_0304,
        acknowledgment: 0x0506_0708,
        window: 64_240,
        age: Duration::from_millis(250),
        options: vec![2, 4, 5, 180],
    };
    let seen = Message::request(STUNT_SEEN, TransactionId([0; 12])).success();
    let hex = "03c3 001c 2112a442 000000000000000000000000 7e060018 12390100 1092 0d98 01020304 05060708 faf0 00fa 020405b4";
    assert_eq!(seen.with(Attribute::StuntSegment(segment)).emit(Integrity::None), bytes(hex));

    let server = stunt::Server {
        can: stunt::Capabilities { connect: true, own_syn: true, ..stunt::Capabilities::default() },
        port: 3478,
        alternate: Some(3479),
        silent: None,
        addresses: vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
    };
    let answer = Message::request(BINDING, TransactionId([0; 12])).success();
    let hex =
        "0101 0018 2112a442 000000000000000000000000 fe010012 0105 0d96 0d97 0000 01c0000201 01c0000202 0000";
    assert_eq!(answer.with(Attribute::StuntServer(server)).emit(Integrity::None), bytes(hex));
}

#[test]
fn a_message_cut_short_is_an_error() {
    let whole = bytes(RFC5769_REQUEST);
    for n in 0..whole.len() {
        assert!(Received::parse(&whole[..n]).is_err(), "cut at {n}");
    }
}

#[test]
fn a_stream_is_cut_into_messages() {
    let whole = bytes(RFC5769_REQUEST);
    for n in 0..whole.len() {
        assert!(matches!(front(&whole[..n]), Ok(Front::Missing(m)) if m >= 1 && n + m <= whole.len()), "{n}");
    }
    assert_eq!(front(&whole), Ok(Front::Whole(whole.len())));
    assert_eq!(front(&[&whole[..], b"GET"].concat()), Ok(Front::Whole(whole.len())));
    assert_eq!(front(b"GET / HTTP/1.1\r\n\r\n"), Err(WireError::Unknown));
    assert_eq!(front(&bytes("0001 fffc 2112a442")), Err(WireError::TooLong));
}

#[test]
fn too_much_to_say_is_left_out_and_never_a_wrong_length() {
    let message = request()
        .with(Attribute::Padding(u16::MAX))
        .with(Attribute::Padding(40_000))
        .with(Attribute::Padding(40_000));
    let bytes = message.emit(Integrity::Sha256(b"key"));
    let received = Received::parse(&bytes).unwrap();
    assert!(received.is_authentic(b"key"));
    assert_eq!(received.message.attributes, [Attribute::Padding(40_000)]);
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in message(), key in vec(any::<u8>(), 0..40)) {
        for integrity in [Integrity::None, Integrity::Sha1(&key), Integrity::Sha256(&key)] {
            let bytes = message.emit(integrity);
            let received = Received::parse(&bytes).unwrap();
            prop_assert_eq!(&received.message, &message);
            prop_assert_eq!(received.is_authentic(&key), integrity == Integrity::Sha256(&key));
            prop_assert_eq!(received.is_authentic_sha1(&key), integrity == Integrity::Sha1(&key));
        }
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(mut bytes in vec(any::<u8>(), 0..300), fix in any::<bool>()) {
        if fix && bytes.len() >= HEADER_LEN {
            bytes.truncate(bytes.len() / 4 * 4);
            let len = u16::try_from(bytes.len() - HEADER_LEN).unwrap();
            bytes[0] &= 0x3f;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
        }
        if let Ok(received) = Received::parse(&bytes) {
            prop_assert!(!received.is_authentic(b"key"));
        }
        let _ = front(&bytes);
    }
}

fn message() -> impl Strategy<Value = Message> {
    let class =
        prop_oneof![Just(Class::Request), Just(Class::Indication), Just(Class::Success), Just(Class::Error)];
    (class, 0u16..0x1000, any::<[u8; 12]>(), vec(attribute(), 0..8)).prop_map(
        |(class, method, transaction, attributes)| Message {
            class,
            method,
            transaction: TransactionId(transaction),
            attributes,
        },
    )
}

fn attribute() -> impl Strategy<Value = Attribute> {
    prop_oneof![
        endpoint().prop_map(Attribute::MappedAddress),
        endpoint().prop_map(Attribute::XorMappedAddress),
        vec(any::<u8>(), 0..40).prop_map(Attribute::Username),
        (300u16..700, "[ -~]{0,30}").prop_map(|(code, text)| Attribute::ErrorCode(code, text)),
        vec(any::<u16>(), 0..5).prop_map(Attribute::UnknownAttributes),
        any::<u32>().prop_map(Attribute::Priority),
        any::<(bool, bool)>().prop_map(|(ip, port)| Attribute::ChangeRequest { ip, port }),
        endpoint().prop_map(Attribute::ResponseOrigin),
        endpoint().prop_map(Attribute::OtherAddress),
        any::<u16>().prop_map(Attribute::ResponsePort),
        (0u16..100).prop_map(Attribute::Padding),
        vec(any::<u8>(), 0..200).prop_map(Attribute::RelayToken),
        any::<u16>().prop_map(Attribute::RelayChannel),
        any::<u64>().prop_map(Attribute::Timestamp),
        endpoint().prop_map(Attribute::SourceAddress),
        endpoint().prop_map(Attribute::ChangedAddress),
        stunt::arbitrary::server().prop_map(Attribute::StuntServer),
        stunt::arbitrary::probe().prop_map(Attribute::StuntProbe),
        stunt::arbitrary::outcome().prop_map(Attribute::StuntOutcome),
        stunt::arbitrary::segment().prop_map(Attribute::StuntSegment),
        any::<u32>().prop_map(Attribute::Capabilities),
        (0u16..100).prop_map(Attribute::Filler),
        any::<(u32, bool)>()
            .prop_map(|(arrived, wants_stream)| Attribute::Report(Report { arrived, wants_stream })),
        any::<(u16, u16)>().prop_map(|(port, from)| Attribute::RelaySplice(Gate { port, from })),
    ]
}

fn request() -> Message {
    Message::request(BINDING, TransactionId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
