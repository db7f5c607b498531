//! Stories about the server of RFC 5780: who gets what, from where, and what nobody gets.

use proptest::prelude::*;

use super::*;
use crate::base::grid::Home;
use crate::wire::stun::Integrity;
use crate::wire::stun::TransactionId;

const A: &str = "198.51.100.1:3478";
const A_ALTERNATE: &str = "198.51.100.1:3479";
const B: &str = "198.51.100.2:3478";
const B_ALTERNATE: &str = "198.51.100.2:3479";
const CLIENT: &str = "203.0.113.5:4242";

#[test]
fn an_answer_comes_from_where_it_was_asked_for() {
    for (asked, ip, port, from, other) in [
        (A, false, false, A, B_ALTERNATE),
        (A, false, true, A_ALTERNATE, B_ALTERNATE),
        (A, true, false, B, B_ALTERNATE),
        (A, true, true, B_ALTERNATE, B_ALTERNATE),
        (B_ALTERNATE, true, true, A, A),
        (B, true, false, A, A_ALTERNATE),
    ] {
        let reply = two().asked(request().with(Attribute::ChangeRequest { ip, port }), asked).unwrap();
        assert_eq!((reply.from, reply.to), (addr(from), addr(CLIENT)));
        let answer = Received::parse(&reply.bytes).unwrap().message;
        let expected = request()
            .success()
            .with(Attribute::MappedAddress(addr(CLIENT)))
            .with(Attribute::XorMappedAddress(addr(CLIENT)))
            .with(Attribute::ResponseOrigin(addr(from)))
            .with(Attribute::OtherAddress(addr(other)));
        assert_eq!(answer, expected);
    }
}

#[test]
fn a_client_of_rfc_3489_is_told_in_its_own_words() {
    let change = request().with(Attribute::ChangeRequest { ip: true, port: true });
    let classic = change.emit_classic([1, 2, 3, 4]);
    let reply = two().heard(&classic, CLIENT, A).unwrap();
    assert_eq!((reply.from, &reply.bytes[4..20]), (addr(B_ALTERNATE), &classic[4..20]));
    let answer = Received::parse(&reply.bytes).unwrap().message;
    let expected = [
        Attribute::MappedAddress(addr(CLIENT)),
        Attribute::SourceAddress(addr(B_ALTERNATE)),
        Attribute::ChangedAddress(addr(B_ALTERNATE)),
    ];
    assert_eq!(answer.attributes, expected);
}

#[test]
fn a_server_with_less_says_so_and_refuses_the_rest() {
    let grid = |homes: &[&str], alternate| {
        let homes = homes.iter().map(|home| home.parse().unwrap());
        Story::new(Grid::new(homes.map(|ip| Home { bound: ip, seen: ip }).collect(), 3478, alternate, None))
    };
    let (one, one_port) = (&["198.51.100.1"][..], &["198.51.100.1", "198.51.100.2"][..]);
    for (text, homes, alternate, ip, port, from) in [
        ("one address", one, Some(3479), false, true, Some(A_ALTERNATE)),
        ("one address", one, Some(3479), true, false, None),
        ("one address", one, Some(3479), true, true, None),
        ("one port", one_port, None, true, false, Some(B)),
        ("one port", one_port, None, false, true, None),
        ("nothing", one, None, false, true, None),
        ("nothing", one, None, false, false, Some(A)),
        ("all addresses of a machine", &["0.0.0.0"], Some(3479), true, true, None),
        ("another family's", &["198.51.100.1", "2001:db8::1"], Some(3479), true, true, None),
    ] {
        let mut story = grid(homes, alternate);
        let reply = story.asked(request().with(Attribute::ChangeRequest { ip, port }), A).unwrap();
        let answer = Received::parse(&reply.bytes).unwrap().message;
        assert_eq!(answer.other_address(), None, "{text}");
        match from {
            Some(from) => assert_eq!((reply.from, answer.origin()), (addr(from), Some(addr(from))), "{text}"),
            None => {
                assert_eq!((reply.from, answer.error()), (addr(A), Some((420, ""))), "{text}");
                assert!(answer.attributes.contains(&Attribute::UnknownAttributes(vec![CHANGE_REQUEST])));
            }
        }
    }
}

#[test]
fn behind_a_one_to_one_nat_the_answer_names_what_the_client_sees() {
    let home = |bound: &str, seen: &str| Home { bound: bound.parse().unwrap(), seen: seen.parse().unwrap() };
    let homes = vec![home("10.0.0.1", "198.51.100.1"), home("10.0.0.2", "198.51.100.2")];
    let mut story = Story::new(Grid::new(homes, 3478, Some(3479), None));
    let reply = story.asked(request(), "10.0.0.1:3478").unwrap();
    let answer = Received::parse(&reply.bytes).unwrap().message;
    assert_eq!(reply.from, addr("10.0.0.1:3478"));
    assert_eq!((answer.origin(), answer.other_address()), (Some(addr(A)), Some(addr(B_ALTERNATE))));
}

#[test]
fn padding_comes_back_as_far_as_the_request_paid_for_it() {
    for (sent, back) in
        [(0, None), (40, None), (48, None), (52, Some(4)), (1500, Some(1452)), (3000, Some(1500))]
    {
        let mut story = two();
        let asked = request().with(Attribute::Padding(sent)).emit(Integrity::None);
        let reply = story.heard(&asked, CLIENT, A).unwrap();
        let answer = Received::parse(&reply.bytes).unwrap().message;
        let found = answer.attributes.iter().find_map(|attribute| match attribute {
            Attribute::Padding(len) => Some(*len),
            _ => None,
        });
        assert_eq!(found, back, "{sent}");
        assert!(back.is_none() || reply.bytes.len() <= asked.len());
    }
}

#[test]
fn another_port_gets_an_answer_only_if_it_asked_before_and_not_long_ago() {
    let elsewhere = |port| request().with(Attribute::ResponsePort(port));
    let refused = |reply: Option<Reply>| {
        let reply = reply.unwrap();
        let answer = Received::parse(&reply.bytes).unwrap().message;
        assert_eq!((reply.to, answer.error()), (addr(CLIENT), Some((420, ""))));
        assert!(answer.attributes.contains(&Attribute::UnknownAttributes(vec![RESPONSE_PORT])));
    };
    let mut story = two();
    refused(story.asked(elsewhere(5000), A));
    story.heard(&request().emit(Integrity::None), "203.0.113.5:5000", B).unwrap();
    let reply = story.asked(elsewhere(5000), A).unwrap();
    assert_eq!((reply.from, reply.to), (addr(A), addr("203.0.113.5:5000")));
    let answer = Received::parse(&reply.bytes).unwrap().message;
    assert_eq!(answer.mapped(), Some(addr(CLIENT)), "of whoever asked");
    refused(story.asked(elsewhere(5001), A));
    refused(story.asked(elsewhere(0), A));
    let both = elsewhere(5000).with(Attribute::Padding(100));
    let answer = story.asked(both, A).unwrap();
    assert_eq!(Received::parse(&answer.bytes).unwrap().message.error(), Some((400, "")));
    story.now += REMEMBERED + Duration::from_secs(1);
    refused(story.asked(elsewhere(5000), A));
    let itself = story.asked(elsewhere(4242), A);
    assert_eq!(itself.map(|reply| reply.to), Some(addr(CLIENT)), "it has just asked");
}

#[test]
fn who_pays_is_always_answered_in_full_and_who_does_not_gets_less_and_less() {
    let mut story = two();
    let lengths = |story: &mut Story, message: &Message| {
        let ask = |_| story.asked(message.clone(), A).map_or(0, |reply| reply.bytes.len());
        (0..60).map(ask).collect::<Vec<_>>()
    };
    let paying = request().with(Attribute::Filler(44));
    assert!(lengths(&mut story, &paying).iter().all(|len| *len == 68), "as long as the request");
    story.now += Duration::from_secs(60);
    let stingy = lengths(&mut story, &request());
    // 2048 bytes: 42 answers of 48 more, two of 12 more, and then silence.
    let wanted: Vec<usize> = [[68].repeat(42), [32].repeat(2), [0].repeat(16)].concat();
    assert_eq!(stingy, wanted);
    assert_eq!(lengths(&mut story, &paying)[..4], [68; 4], "but for the limit on questions");
    story.now += Duration::from_secs(1);
    assert_eq!(lengths(&mut story, &request())[..11], [[68, 68].as_slice(), &[32; 3], &[0; 6]].concat());
}

#[test]
fn what_deserves_no_answer_gets_none() {
    let plain = request();
    for (text, bytes) in [
        ("garbage", b"GET / HTTP/1.1\r\n\r\n\r\n".to_vec()),
        ("an answer", plain.success().emit(Integrity::None)),
        ("an indication", Message { class: Class::Indication, ..plain.clone() }.emit(Integrity::None)),
        ("another method", Message { method: 0x0e2, ..plain.clone() }.emit(Integrity::None)),
        ("somebody's registration", plain.clone().with(Attribute::Username(vec![1])).emit(Integrity::None)),
        ("somebody's probe", plain.emit(Integrity::Sha256(b"key"))),
    ] {
        assert_eq!(two().heard(&bytes, CLIENT, A), None, "{text}");
    }
    for from in ["203.0.113.5:53", "255.255.255.255:4242", "0.0.0.0:1", A, B, A_ALTERNATE, B_ALTERNATE] {
        assert_eq!(two().heard(&plain.emit(Integrity::None), from, A), None, "{from}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let mut strange = request().with(Attribute::Priority(1)).emit(Integrity::None);
    strange[20..22].copy_from_slice(&[0x00, 0x02]); // RESPONSE-ADDRESS of RFC 3489: send to whomever I name
    let reply = two().heard(&strange, CLIENT, A).unwrap();
    let answer = Received::parse(&reply.bytes).unwrap().message;
    assert_eq!((reply.to, answer.error()), (addr(CLIENT), Some((420, ""))));
    assert!(answer.attributes.contains(&Attribute::UnknownAttributes(vec![0x0002])));
}

#[test]
fn on_a_stream_the_answer_has_both_addresses_and_the_offer_and_no_change_is_possible() {
    let story = two();
    let offer = stunt::Server { port: 3478, ..stunt::Server::default() };
    let asked = |message: &Message, offer: Option<stunt::Server>| {
        let bytes = message.emit(Integrity::None);
        let received = Received::parse(&bytes).unwrap();
        let answer = story.server.answer_on_stream(&received, addr(CLIENT), addr(A_ALTERNATE), offer)?;
        Some(Received::parse(&answer).unwrap().message)
    };
    let answer = asked(&request(), Some(offer.clone())).unwrap();
    assert!(answer.attributes.contains(&Attribute::MappedAddress(addr(CLIENT))), "as an ALG would find it");
    assert!(answer.attributes.contains(&Attribute::XorMappedAddress(addr(CLIENT))), "and as it would not");
    assert_eq!((answer.origin(), answer.other_address()), (Some(addr(A_ALTERNATE)), Some(addr(B))));
    assert_eq!(answer.stunt_server(), Some(&offer));
    assert_eq!(asked(&request(), None).unwrap().stunt_server(), None);
    let change = request().with(Attribute::ChangeRequest { ip: true, port: false });
    let padded = change.with(Attribute::Padding(4)).with(Attribute::ResponsePort(9));
    let refusal = asked(&padded, Some(offer)).unwrap();
    let refused = vec![CHANGE_REQUEST, PADDING, RESPONSE_PORT];
    assert!(refusal.attributes.contains(&Attribute::UnknownAttributes(refused)));
    assert_eq!(asked(&request().success(), None), None);
}

#[test]
fn the_memory_of_who_asked_is_bounded_and_the_oldest_make_room() {
    let t0 = origin();
    let mut asked = Asked::default();
    let endpoint = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(n).into(), 1);
    let most = u32::try_from(MOST_REMEMBERED).unwrap();
    for n in 0..2 * most {
        asked.insert(endpoint(n % (most + 10)), t0 + Duration::from_millis(n.into()));
    }
    assert!(asked.last.len() <= MOST_REMEMBERED && asked.order.len() <= MOST_REMEMBERED);
    let newest = endpoint((2 * most - 1) % (most + 10));
    assert!(asked.knows(newest, t0 + Duration::from_millis((2 * most).into())));
}

proptest! {
    /// The promise of the module's essay, against whatever a stranger can think of, with forged sources.
    #[test]
    fn a_stranger_moves_no_byte_to_a_third_party_and_no_more_bytes_than_were_sent(
        asks in proptest::collection::vec(ask(), 1..300),
    ) {
        let mut story = two();
        let mut sent = BTreeMap::new();
        let mut got = BTreeMap::new();
        let mut seconds = 0;
        for Ask { bytes, host, port, local, wait } in asks {
            story.now += Duration::from_millis(wait);
            seconds += wait.div_ceil(1000);
            let from = SocketAddr::from(([203, 0, 113, host], port));
            let Some(reply) = story.heard(&bytes, &from.to_string(), [A, A_ALTERNATE, B, B_ALTERNATE][local]) else {
                *sent.entry(from.ip()).or_insert(0) += bytes.len();
                continue;
            };
            prop_assert_eq!(reply.to.ip(), from.ip(), "not to a third party");
            prop_assert!(reply.to == from || sent.contains_key(&reply.to.ip()), "nor to a port that never asked");
            prop_assert!([A, A_ALTERNATE, B, B_ALTERNATE].map(addr).contains(&reply.from));
            *sent.entry(from.ip()).or_insert(0) += bytes.len();
            *got.entry(from.ip()).or_insert(0) += reply.bytes.len();
            let allowed = sent[&from.ip()] + 2048 + 128 * usize::try_from(seconds).unwrap();
            prop_assert!(got[&from.ip()] <= allowed);
        }
    }
}

#[derive(Clone, Debug)]
struct Ask {
    bytes: Vec<u8>,
    host: u8,
    port: u16,
    local: usize,
    wait: u64,
}

fn ask() -> impl Strategy<Value = Ask> {
    let port = || prop_oneof![4 => 4000u16..4004, 1 => any::<u16>()];
    let attribute = prop_oneof![
        any::<(bool, bool)>().prop_map(|(ip, port)| Attribute::ChangeRequest { ip, port }),
        port().prop_map(Attribute::ResponsePort),
        (0u16..2000).prop_map(Attribute::Padding),
        any::<u32>().prop_map(Attribute::Priority),
    ];
    let message = (any::<[u8; 12]>(), proptest::collection::vec(attribute, 0..4), any::<bool>()).prop_map(
        |(id, attributes, classic)| {
            let message = Message { attributes, ..Message::request(BINDING, TransactionId(id)) };
            if classic { message.emit_classic([9, 9, 9, 9]) } else { message.emit(Integrity::None) }
        },
    );
    (message, 5u8..8, port(), 0usize..4, 0u64..50).prop_map(|(bytes, host, port, local, wait)| Ask {
        bytes,
        host,
        port,
        local,
        wait,
    })
}

struct Story {
    server: DiscoveryServer,
    now: Instant,
}

impl Story {
    fn new(grid: Grid) -> Self {
        let now = origin();
        Self { server: DiscoveryServer::new(grid, now), now }
    }

    fn asked(&mut self, message: Message, local: &str) -> Option<Reply> {
        self.heard(&message.emit(Integrity::None), CLIENT, local)
    }

    fn heard(&mut self, bytes: &[u8], from: &str, local: &str) -> Option<Reply> {
        self.server.handle_datagram(bytes, addr(from), addr(local), self.now)
    }
}

/// Two addresses, two ports.
fn two() -> Story {
    let homes = [A, B].map(|home| Home { bound: addr(home).ip(), seen: addr(home).ip() });
    Story::new(Grid::new(homes.to_vec(), 3478, Some(3479), None))
}

fn request() -> Message {
    Message::request(BINDING, TransactionId([7; 12]))
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
fn origin() -> Instant {
    Instant::now()
}
