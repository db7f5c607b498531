//! Stories about the relay: who is let in, who is not, and who hears of it (nobody).

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::ecn::Ecn;
use crate::base::id::SocketId;
use crate::base::id::StreamId;
use crate::base::rng::Seed;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgSecret;
use crate::relay::client::KEY_LABEL;
use crate::relay::server::Config;
use crate::relay::server::MAX_DATAGRAM;
use crate::relay::server::Relay;
use crate::relay::server::Stats;
use crate::relay::testing::addr;
use crate::relay::testing::broker;
use crate::relay::testing::now;
use crate::relay::testing::relay_secret;
use crate::relay::testing::signed;
use crate::relay::testing::token;
use crate::wire::relay::Channel;
use crate::wire::relay::Token;
use crate::wire::relay::split;
use crate::wire::stun;

const UDP: Via = Via::Udp(SocketId::V4);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_bound_sides_exchange_messages_whose_payload_is_untouched() {
    let mut net = Net::new();
    let (a, b) = net.pair(1);
    assert_eq!(net.say(&a, b"hello"), [(b.clone(), b"hello".to_vec())]);
    assert_eq!(net.say(&b, b"hello yourself"), [(a, b"hello yourself".to_vec())]);
    let stats = net.relay.stats();
    assert_eq!((stats.sessions, stats.binds, stats.messages, stats.bytes), (1, 2, 2, 19));
}

#[test]
fn a_bind_is_answered_with_the_address_it_came_from_under_the_members_key() {
    let mut net = Net::new();
    let t = token(1, 0, &alice(), net.now);
    let replies = net.send(UDP, A, &bind(&t, &alice(), net.now));
    let [(via, to, bytes)] = replies.as_slice() else { panic!("one answer, not {replies:?}") };
    assert_eq!((*via, *to), (UDP, addr(A)));
    let answer = stun::Received::parse(bytes).unwrap();
    assert!(answer.is_authentic(&key(&alice(), &t)));
    assert_eq!(answer.message.mapped(), Some(addr(A)));
    assert_eq!(answer.message.class, stun::Class::Success);
    assert!(bytes.len() < bind(&t, &alice(), net.now).len(), "no amplifier");
}

#[test]
fn whatever_is_wrong_with_a_bind_nothing_is_answered_and_others_are_unharmed() {
    type Change = fn(&mut Net) -> Vec<u8>;
    type Counter = fn(&Stats) -> u64;
    let cases: [(&str, Change, Counter); 12] = [
        (
            "no token",
            |net| request(&[stun::Attribute::Timestamp(net.now.unix.micros())], &[1; 32]),
            |s| s.garbage,
        ),
        (
            "no time",
            |net| {
                let t = token(3, 0, &mallory(), net.now);
                let token = stun::Attribute::RelayToken(signed(&t, &broker()));
                request(&[token], &key(&mallory(), &t))
            },
            |s| s.garbage,
        ),
        (
            "a token of garbage",
            |net| {
                let token = stun::Attribute::RelayToken(vec![0xa5; 170]);
                request(&[token, stun::Attribute::Timestamp(net.now.unix.micros())], &[1; 32])
            },
            |s| s.garbage,
        ),
        (
            "a token of another relay",
            |net| {
                let relay = WgSecret::new([77; 32]).public();
                bind(&Token { relay, ..token(3, 0, &mallory(), net.now) }, &mallory(), net.now)
            },
            |s| s.forged,
        ),
        (
            "a stolen token without its holder's key",
            |net| bind(&token(1, 0, &alice(), net.now), &mallory(), net.now.plus(SECOND)),
            |s| s.forged,
        ),
        (
            "a stolen token that was never used, without its holder's key",
            |net| bind(&token(4, 0, &alice(), net.now), &mallory(), net.now),
            |s| s.forged,
        ),
        (
            "another broker's signature",
            |net| {
                let t = token(3, 0, &mallory(), net.now);
                bind_with(&t, &mallory(), &SigningKey::from_seed(&[8; 32]), net.now)
            },
            |s| s.forged,
        ),
        (
            "somebody else in a seat that is taken, even with a broker's signature",
            |net| bind(&token(1, 0, &mallory(), net.now), &mallory(), net.now.plus(SECOND)),
            |s| s.forged,
        ),
        (
            "an expired token for a new session",
            |net| {
                let t = Token { expires: net.now.unix, ..token(3, 0, &mallory(), net.now) };
                bind(&t, &mallory(), net.now)
            },
            |s| s.expired,
        ),
        (
            "a time of yesterday",
            |net| {
                let (t, now) = (token(3, 0, &mallory(), net.now), net.now);
                let yesterday = crate::base::time::UnixTime::from_secs(now.unix.secs() - 86_400);
                bind(&t, &mallory(), Now { unix: yesterday, ..now })
            },
            |s| s.expired,
        ),
        (
            "a time of tomorrow",
            |net| bind(&token(3, 0, &mallory(), net.now), &mallory(), net.now.plus(86_400 * SECOND)),
            |s| s.expired,
        ),
        (
            "the answer to a bind",
            |net| {
                let t = token(3, 0, &mallory(), net.now);
                stun::Message { class: stun::Class::Success, ..message(&t, &broker(), net.now) }
                    .emit(stun::Integrity::Sha256(&key(&mallory(), &t)))
            },
            |s| s.garbage,
        ),
    ];
    for (what, make, counter) in cases {
        let mut net = Net::new();
        let (a, b) = net.pair(1);
        let bytes = make(&mut net);
        let before = net.relay.stats();
        assert_eq!(net.send(UDP, MALLORY, &bytes), [], "{what}");
        let after = net.relay.stats();
        assert_eq!(counter(&after), counter(&before) + 1, "{what}: {after:?}");
        assert_eq!(after.sessions, 1, "{what}");
        assert_eq!(net.say(&a, b"x"), [(b.clone(), b"x".to_vec())], "{what}");
        assert_eq!(net.say(&b, b"y"), [(a, b"y".to_vec())], "{what}");
    }
}

#[test]
fn garbage_of_any_kind_and_size_is_only_counted() {
    let mut net = Net::new();
    let (a, b) = net.pair(1);
    let valid = bind(&token(3, 0, &alice(), net.now), &alice(), net.now);
    let mut pieces: Vec<Vec<u8>> = (0..valid.len()).map(|end| valid[..end].to_vec()).collect();
    pieces.extend((0..=255).map(|first| vec![first; 65_536]));
    pieces.extend((0..=255).map(|first| vec![first]));
    for bit in 0..valid.len() * 8 {
        let mut bytes = valid.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        pieces.push(bytes);
    }
    for (n, piece) in pieces.iter().enumerate() {
        assert_eq!(net.send(UDP, MALLORY, piece), [], "piece {n}");
        net.now = net.now.plus(Duration::from_millis(100));
        if n % 100 == 0 {
            net.refresh(&a);
            net.refresh(&b);
        }
    }
    let stats = net.relay.stats();
    assert_eq!(stats.rejected(), pieces.len() as u64, "{stats:?}");
    assert_eq!(net.say(&a, b"x"), [(b, b"x".to_vec())]);
}

#[test]
fn a_replayed_bind_moves_nobody() {
    let mut net = Net::new();
    let (a, b) = net.pair(1);
    let captured = bind(&token(1, 0, &alice(), net.start), &alice(), net.start);
    assert_eq!(net.send(UDP, MALLORY, &captured), []);
    assert_eq!(net.send(UDP, A, &captured), []);
    assert_eq!(net.relay.stats().replayed, 2);
    assert_eq!(net.say(&b, b"x"), [(a, b"x".to_vec())]);
}

#[test]
fn a_replayed_bind_does_not_revive_a_session_that_is_over() {
    let mut net = Net::new();
    let long = Token { expires: net.now.unix.plus(3600 * SECOND), ..token(1, 0, &alice(), net.now) };
    let captured = bind(&long, &alice(), net.now);
    assert_eq!(net.send(UDP, A, &captured).len(), 1);
    net.pass(121 * SECOND);
    assert_eq!(net.relay.stats().sessions, 0);
    assert_eq!(net.send(UDP, MALLORY, &captured), []);
    assert_eq!(net.relay.stats().replayed, 1);
    // The holder may come back for as long as the token lasts.
    assert_eq!(net.send(UDP, A, &bind(&long, &alice(), net.now)).len(), 1);
}

#[test]
fn a_channel_is_worth_nothing_from_another_address() {
    let mut net = Net::new();
    let (a, _b) = net.pair(1);
    for number in 0..0x1000 {
        let mut message = Channel::new(number).header().to_vec();
        message.extend_from_slice(b"injected");
        assert_eq!(net.send(UDP, MALLORY, &message), []);
        assert_eq!(net.send(Via::Udp(SocketId::V6), A, &message), [], "another socket is another door");
        if number != a.channel.number() & 0xfff {
            assert_eq!(net.send(UDP, A, &message), [], "only one channel is bound there");
        }
    }
    assert_eq!(net.relay.stats().unbound, 3 * 0x1000 - 1);
    assert_eq!(net.relay.stats().messages, 0);
}

#[test]
fn the_newest_bind_wins_whatever_the_address_and_transport() {
    let mut net = Net::new();
    let (a, b) = net.pair(1);
    // NAT rebinding.
    let moved = net.bind(UDP, "203.0.113.77:9", &token(1, 0, &alice(), net.start), &alice());
    assert_eq!(net.say(&b, b"1"), [(moved.clone(), b"1".to_vec())]);
    assert_eq!(net.say(&a, b"from the old address"), []);
    // To a stream.
    net.accept(StreamId(1), A);
    let stream = net.bind(Via::Stream(StreamId(1)), A, &token(1, 0, &alice(), net.start), &alice());
    assert_eq!(net.say(&b, b"2"), [(stream.clone(), b"2".to_vec())]);
    assert_eq!(net.say(&stream, b"3"), [(b.clone(), b"3".to_vec())]);
    assert_eq!(net.say(&moved, b"from the old address"), []);
    // And back.
    let back = net.bind(UDP, A, &token(1, 0, &alice(), net.start), &alice());
    assert_eq!(net.say(&b, b"4"), [(back, b"4".to_vec())]);
    assert_eq!(net.say(&stream, b"over the old stream"), []);
    assert_eq!(net.relay.stats().sessions, 1);
}

#[test]
fn a_bound_side_stays_bound_after_its_token_has_expired() {
    let mut net = Net::new();
    let (a, b) = net.pair(1);
    for _ in 0..20 {
        net.pass(25 * SECOND);
        net.refresh(&a);
        net.refresh(&b);
    }
    assert_eq!(net.say(&a, b"x"), [(b.clone(), b"x".to_vec())]);
    // Also from elsewhere.
    let moved = net.bind(UDP, "203.0.113.77:9", &token(1, 0, &alice(), net.start), &alice());
    assert_eq!(net.say(&b, b"x"), [(moved, b"x".to_vec())]);
}

#[test]
fn a_session_ends_when_one_side_has_gone_and_its_room_is_free_again() {
    let mut net = Net::with(Config { max_sessions: 1, max_sessions_per_member: 1, ..Config::default() });
    let (a, b) = net.pair(1);
    for _ in 0..4 {
        net.pass(25 * SECOND);
        net.refresh(&a);
    }
    assert_eq!(net.relay.stats().sessions, 1);
    net.pass(25 * SECOND);
    assert_eq!(net.relay.stats().sessions, 0, "b was silent for 125 s");
    assert_eq!(net.say(&a, b"x"), []);
    assert_eq!(net.say(&b, b"x"), []);
    let _ = net.pair(2);
    assert_eq!(net.relay.stats().sessions, 1);
}

#[test]
fn data_keeps_a_session_alive_like_a_refresh() {
    let mut net = Net::new();
    let (a, b) = net.pair(1);
    for _ in 0..10 {
        net.pass(60 * SECOND);
        assert_eq!(net.say(&a, b"x").len(), 1);
        assert_eq!(net.say(&b, b"x").len(), 1);
    }
}

#[test]
fn what_is_sent_before_the_other_side_is_there_arrives_with_it_if_it_comes_soon() {
    let mut net = Net::new();
    let a = net.bind(UDP, A, &token(1, 0, &alice(), net.now), &alice());
    for n in 0..6_u8 {
        assert_eq!(net.say(&a, &[n; 148]), []);
    }
    assert_eq!((net.relay.stats().held, net.relay.stats().full), (4, 2));
    net.pass(SECOND);
    let replies = net.send(UDP, B, &bind(&token(1, 1, &bob(), net.now), &bob(), net.now));
    assert_eq!(replies.len(), 5, "the answer and four messages");
    for (n, (_, to, bytes)) in replies.iter().skip(1).enumerate() {
        assert_eq!((*to, split(bytes).unwrap().1), (addr(B), &[u8::try_from(n).unwrap(); 148][..]));
    }
    assert_eq!(net.refresh(&a).len(), 1, "and only once");
}

#[test]
fn what_waited_too_long_is_not_delivered_and_makes_room() {
    let mut net = Net::with(Config { max_held_bytes: 5000, ..Config::default() });
    let a = net.bind(UDP, A, &token(1, 0, &alice(), net.now), &alice());
    let other = net.bind(UDP, A, &token(2, 0, &alice(), net.now), &alice());
    assert_eq!(net.say(&a, &[1; 4000]), []);
    assert_eq!(net.say(&other, &[1; 4000]), [], "no room over all sessions");
    assert_eq!(net.relay.stats().full, 1);
    net.pass(3 * SECOND);
    assert_eq!(net.say(&other, &[2; 1000]), []);
    assert_eq!(net.relay.stats().held, 2);
    let replies = net.send(UDP, B, &bind(&token(1, 1, &bob(), net.now), &bob(), net.now));
    assert_eq!(replies.len(), 1, "the answer alone");
    let replies = net.send(UDP, B, &bind(&token(2, 1, &bob(), net.now), &bob(), net.now));
    assert_eq!(replies.len(), 2);
}

#[test]
fn a_side_whose_stream_broke_gets_what_came_meanwhile() {
    let mut net = Net::new();
    let (_, b) = net.pair(1);
    net.accept(StreamId(1), A);
    let over = Via::Stream(StreamId(1));
    let _ = net.bind(over, A, &token(1, 0, &alice(), net.start), &alice());
    net.relay.handle_stream_closed(StreamId(1));
    assert_eq!(net.say(&b, b"meanwhile"), []);
    let replies = net.send(UDP, A, &bind(&token(1, 0, &alice(), net.start), &alice(), net.now.plus(SECOND)));
    assert_eq!(replies.len(), 2);
}

#[test]
fn a_congestion_mark_goes_on_in_a_datagram_and_becomes_a_loss_before_a_stream() {
    let mut net = Net::new();
    let (a, _) = net.pair(1);
    let message = [&a.channel.header()[..], b"data"].concat();
    let marks = |net: &mut Net, ecn| -> Vec<Ecn> {
        let mut out = Outbox::default();
        net.relay.handle_message(a.via, a.addr, ecn, &message, net.now, &mut out);
        out.sends().iter().map(|sent| sent.ecn).collect()
    };
    for ecn in [Ecn::NotCapable, Ecn::Capable0, Ecn::Capable1, Ecn::Congested] {
        assert_eq!(marks(&mut net, ecn), [ecn]);
    }
    net.accept(StreamId(1), B);
    let _ = net.bind(Via::Stream(StreamId(1)), B, &token(1, 1, &bob(), net.start), &bob());
    assert_eq!(marks(&mut net, Ecn::Capable0).len(), 1);
    assert_eq!(marks(&mut net, Ecn::Congested), []);
    assert_eq!((net.relay.stats().congested, net.relay.stats().rejected()), (1, 1));
}

#[test]
fn a_message_that_no_datagram_can_carry_is_dropped_but_a_stream_takes_it() {
    let mut net = Net::new();
    let (a, b) = net.pair(1);
    assert_eq!(net.say(&a, &vec![0; MAX_DATAGRAM - 4]).len(), 1);
    assert_eq!(net.say(&a, &vec![0; MAX_DATAGRAM - 3]), []);
    assert_eq!(net.relay.stats().too_long, 1);
    net.accept(StreamId(1), B);
    let stream = net.bind(Via::Stream(StreamId(1)), B, &token(1, 1, &bob(), net.start), &bob());
    assert_eq!(net.say(&a, &vec![0; 65_000]), [(stream.clone(), vec![0; 65_000])]);
    assert_eq!(net.say(&stream, &vec![0; 65_000]), [], "the other way it still cannot go");
    assert_eq!(net.say(&b, b"x"), []);
}

#[test]
fn a_stream_without_a_bind_is_closed_and_one_with_a_bind_is_not() {
    let mut net = Net::new();
    net.accept(StreamId(1), A);
    net.accept(StreamId(2), B);
    let _ = net.bind(Via::Stream(StreamId(2)), B, &token(1, 1, &bob(), net.now), &bob());
    assert_eq!(net.send(Via::Stream(StreamId(1)), A, b"GET / HTTP/1.1\r\n\r\n"), []);
    net.pass(4 * SECOND);
    assert_eq!(net.relay.poll_close(), None);
    net.pass(2 * SECOND);
    assert_eq!(net.relay.poll_close(), Some(StreamId(1)));
    assert_eq!((net.relay.poll_close(), net.relay.stats().streams), (None, 1));
    // A token is of no use on a stream that is gone already.
    let late = bind(&token(2, 0, &alice(), net.now), &alice(), net.now);
    assert_eq!(net.send(Via::Stream(StreamId(1)), A, &late), []);
}

#[test]
fn a_stream_whose_last_session_is_over_is_closed() {
    let mut net = Net::new();
    net.accept(StreamId(2), B);
    let _ = net.bind(Via::Stream(StreamId(2)), B, &token(1, 1, &bob(), net.now), &bob());
    net.pass(121 * SECOND);
    assert_eq!(net.relay.poll_close(), None);
    net.pass(6 * SECOND);
    assert_eq!(net.relay.poll_close(), Some(StreamId(2)));
    net.pass(600 * SECOND);
    assert_eq!(net.relay.poll_timeout(), None, "an empty relay sleeps");
}

#[test]
fn idle_streams_crowd_out_each_other_and_nobody_who_is_bound() {
    let config = Config { max_idle_streams: 3, max_idle_streams_per_source: 2, ..Config::default() };
    let mut net = Net::with(config);
    net.accept(StreamId(1), A);
    let a = net.bind(Via::Stream(StreamId(1)), A, &token(1, 0, &alice(), net.now), &alice());
    let b = net.bind(UDP, B, &token(1, 1, &bob(), net.now), &bob());
    for n in 2..6 {
        net.accept(StreamId(n), MALLORY);
        net.now = net.now.plus(Duration::from_millis(1));
    }
    let mut closed: Vec<_> = std::iter::from_fn(|| net.relay.poll_close()).collect();
    assert_eq!(closed, [StreamId(4), StreamId(5)], "the third and fourth of one source");
    for n in 6..20 {
        net.accept(StreamId(n), &format!("198.18.0.{n}:5"));
        net.now = net.now.plus(Duration::from_millis(1));
    }
    closed = std::iter::from_fn(|| net.relay.poll_close()).collect();
    assert_eq!(closed.len(), 13);
    assert_eq!(closed.first(), Some(&StreamId(2)), "the oldest first");
    assert_eq!(net.say(&a, b"x"), [(b.clone(), b"x".to_vec())]);
    assert_eq!(net.say(&b, b"x"), [(a, b"x".to_vec())]);
}

#[test]
fn a_flood_of_first_binds_is_cut_and_refreshes_and_other_sources_pass() {
    let mut net = Net::with(Config { bind_burst: 5, binds_per_second: 1.0, ..Config::default() });
    let (a, b) = net.pair(1);
    for n in 10..200_u8 {
        let t = token(n, 0, &alice(), net.now);
        assert_eq!(net.send(UDP, MALLORY, &bind(&t, &mallory(), net.now)), []);
    }
    let stats = net.relay.stats();
    assert_eq!((stats.forged, stats.limited), (5, 185));
    assert_eq!(net.refresh(&a).len(), 1);
    assert_eq!(net.refresh(&b).len(), 1);
    let _ = net.pair(2);
}

#[test]
fn a_flood_over_udp_in_somebodys_name_leaves_them_the_stream() {
    let mut net = Net::with(Config { bind_burst: 5, binds_per_second: 1.0, ..Config::default() });
    for n in 10..200_u8 {
        let t = token(n, 0, &alice(), net.now);
        assert_eq!(net.send(UDP, A, &bind(&t, &mallory(), net.now)), []);
    }
    let t = token(1, 0, &alice(), net.now);
    assert_eq!(net.send(UDP, A, &bind(&t, &alice(), net.now)), []);
    net.accept(StreamId(1), A);
    let _ = net.bind(Via::Stream(StreamId(1)), A, &t, &alice());
}

#[test]
fn limits_on_sessions_hold_for_the_relay_and_for_each_member() {
    let mut net = Net::with(Config { max_sessions: 3, max_sessions_per_member: 2, ..Config::default() });
    let _ = net.pair(1);
    let _ = net.pair(2);
    let third = token(3, 0, &alice(), net.now);
    assert_eq!(net.send(UDP, A, &bind(&third, &alice(), net.now)), [], "alice has two");
    let _ = net.bind(UDP, MALLORY, &token(4, 0, &mallory(), net.now), &mallory());
    let fourth = token(5, 0, &mallory(), net.now);
    assert_eq!(net.send(UDP, MALLORY, &bind(&fourth, &mallory(), net.now)), [], "the relay has three");
    assert_eq!((net.relay.stats().full, net.relay.stats().sessions), (2, 3));
}

#[test]
fn a_session_may_be_held_to_a_rate_that_others_do_not_feel() {
    let mut net = Net::with(Config { bytes_per_second: Some(10_000), ..Config::default() });
    let (a, b) = net.pair(1);
    let (c, d) = net.pair(2);
    let passed = (0..1000).filter(|_| !net.say(&a, &[0; 996]).is_empty()).count();
    assert_eq!(passed, 131, "two messages of 65,600 bytes at once");
    assert_eq!(net.relay.stats().over_rate, 1000 - 131);
    assert_eq!(net.say(&b, &[0; 996]), [], "both directions share it");
    assert_eq!(net.say(&c, b"x"), [(d, b"x".to_vec())]);
    net.pass(SECOND);
    let passed = (0..1000).filter(|_| !net.say(&a, &[0; 996]).is_empty()).count();
    assert_eq!(passed, 10);
}

#[test]
fn a_member_may_use_one_door_for_many_sessions() {
    let mut net = Net::new();
    let pairs: Vec<_> = (1..60).map(|n| net.pair(n)).collect();
    for (n, (a, b)) in pairs.iter().enumerate() {
        let text = format!("{n}").into_bytes();
        assert_eq!(net.say(a, &text), [(b.clone(), text.clone())]);
        assert_eq!(net.say(b, &text), [(a.clone(), text)]);
    }
}

#[test]
fn a_broker_cannot_enter_a_session_of_another_broker() {
    let mut net = Net::new();
    let second = SigningKey::from_seed(&[8; 32]);
    net.relay.authorise_broker(second.public());
    let a = net.bind(UDP, A, &token(1, 0, &alice(), net.now), &alice());
    let t = token(1, 1, &mallory(), net.now);
    assert_eq!(net.send(UDP, MALLORY, &bind_with(&t, &mallory(), &second, net.now)), []);
    assert_eq!(net.relay.stats().forged, 1);
    assert_eq!(net.say(&a, b"x"), []);
    // In a session of its own it may do as it likes.
    let t = token(2, 1, &mallory(), net.now);
    assert_eq!(net.send(UDP, MALLORY, &bind_with(&t, &mallory(), &second, net.now)).len(), 1);
}

// Helpers.

const A: &str = "192.0.2.1:4001";
const B: &str = "203.0.113.2:4002";
const MALLORY: &str = "192.0.2.66:666";

fn alice() -> WgSecret {
    WgSecret::new([1; 32])
}

fn bob() -> WgSecret {
    WgSecret::new([2; 32])
}

fn mallory() -> WgSecret {
    WgSecret::new([3; 32])
}

/// A relay and the time.
struct Net {
    relay: Relay,
    start: Now,
    now: Now,
}

/// A side that is bound.
#[derive(Clone, PartialEq, Debug)]
struct Seat {
    via: Via,
    addr: SocketAddr,
    channel: Channel,
    side: u8,
    session: u8,
}

type Sent = (Via, SocketAddr, Vec<u8>);

impl Net {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let now = now();
        let mut relay = Relay::new(config, relay_secret(), Seed([4; 32]), now);
        relay.authorise_broker(broker().public());
        Self { relay, start: now, now }
    }

    /// Alice and Bob, bound over UDP in `session`.
    fn pair(&mut self, session: u8) -> (Seat, Seat) {
        let a = self.bind(UDP, A, &token(session, 0, &alice(), self.now), &alice());
        let b = self.bind(UDP, B, &token(session, 1, &bob(), self.now), &bob());
        (a, b)
    }

    fn bind(&mut self, via: Via, from: &str, t: &Token, member: &WgSecret) -> Seat {
        let replies = self.send(via, from, &bind(t, member, self.now));
        // Two binds at the same microsecond would be a replay.
        self.now = self.now.plus(Duration::from_micros(1));
        let (_, to, bytes) = replies.first().expect("an answer");
        let answer = stun::Received::parse(bytes).unwrap();
        assert!(answer.is_authentic(&key(member, t)));
        let number = answer.message.attributes.iter().find_map(|a| match a {
            stun::Attribute::RelayChannel(number) => Some(*number),
            _ => None,
        });
        let channel = Channel::parse(number.unwrap()).unwrap();
        Seat { via, addr: *to, channel, side: t.side, session: t.session.0[0] }
    }

    /// Binds again from the same place with the token of the beginning.
    fn refresh(&mut self, seat: &Seat) -> Vec<Sent> {
        let member = if seat.side == 0 { alice() } else { bob() };
        let t = token(seat.session, seat.side, &member, self.start);
        self.now = self.now.plus(Duration::from_micros(1));
        self.send(seat.via, &seat.addr.to_string(), &bind(&t, &member, self.now))
    }

    /// Sends `payload` from a seat; answers which seats got what. Seats are told by door and channel.
    fn say(&mut self, from: &Seat, payload: &[u8]) -> Vec<(Seat, Vec<u8>)> {
        let mut message = from.channel.header().to_vec();
        message.extend_from_slice(payload);
        let sent = self.send(from.via, &from.addr.to_string(), &message);
        let to_seat = |(via, addr, bytes): Sent| {
            let (channel, payload) = split(&bytes).unwrap();
            let seat = Seat { via, addr, channel, side: 1 - from.side, session: from.session };
            (seat, payload.to_vec())
        };
        sent.into_iter().map(to_seat).collect()
    }

    fn send(&mut self, via: Via, from: &str, bytes: &[u8]) -> Vec<Sent> {
        let mut out = Outbox::default();
        self.relay.handle_message(via, addr(from), Ecn::NotCapable, bytes, self.now, &mut out);
        out.sends().iter().map(|t| (t.via, t.to, out.bytes(t.range.clone()).to_vec())).collect()
    }

    fn accept(&mut self, id: StreamId, from: &str) {
        self.relay.handle_stream_accepted(id, addr(from), self.now);
    }

    /// Lets time pass, from deadline to deadline.
    fn pass(&mut self, by: Duration) {
        let until = self.now.plus(by);
        while let Some(at) = self.relay.poll_timeout().filter(|at| *at <= until.instant) {
            self.now = self.now.plus(at.saturating_duration_since(self.now.instant));
            self.relay.handle_timeout(self.now);
        }
        self.now = until;
    }
}

fn key(member: &WgSecret, t: &Token) -> [u8; 32] {
    member.derive(relay_secret().public(), KEY_LABEL, &t.session.0).unwrap()
}

fn bind(t: &Token, member: &WgSecret, now: Now) -> Vec<u8> {
    bind_with(t, member, &broker(), now)
}

fn bind_with(t: &Token, member: &WgSecret, broker: &SigningKey, now: Now) -> Vec<u8> {
    message(t, broker, now).emit(stun::Integrity::Sha256(&key(member, t)))
}

fn message(t: &Token, broker: &SigningKey, now: Now) -> stun::Message {
    stun::Message {
        class: stun::Class::Request,
        method: stun::RELAY_BIND,
        transaction: stun::TransactionId([5; 12]),
        attributes: vec![
            stun::Attribute::RelayToken(signed(t, broker)),
            stun::Attribute::Timestamp(now.unix.micros()),
        ],
    }
}

fn request(attributes: &[stun::Attribute], key: &[u8; 32]) -> Vec<u8> {
    stun::Message {
        class: stun::Class::Request,
        method: stun::RELAY_BIND,
        transaction: stun::TransactionId([5; 12]),
        attributes: attributes.to_vec(),
    }
    .emit(stun::Integrity::Sha256(key))
}
