//! Stories about one side of a session, told with a real relay behind a pretended network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use proptest::prelude::*;

use crate::base::ecn::Ecn;
use crate::base::id::SocketId;
use crate::base::id::StreamId;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::base::time::Now;
use crate::base::time::UnixTime;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::identity::agreement::Agreements;
use crate::identity::keys::WgSecret;
use crate::nat::candidate::Transport;
use crate::relay::client::Bound;
use crate::relay::client::Event;
use crate::relay::client::Lost;
use crate::relay::client::Order;
use crate::relay::client::Side;
use crate::relay::client::StreamNews;
use crate::relay::server::Config;
use crate::relay::server::Relay;
use crate::relay::testing::RELAY;
use crate::relay::testing::addr;
use crate::relay::testing::broker;
use crate::relay::testing::certificate;
use crate::relay::testing::now;
use crate::relay::testing::offer;
use crate::relay::testing::relay_secret;
use crate::relay::testing::token;
use crate::wire::relay::Channel;
use crate::wire::relay::split;
use crate::wire::stun;

const BOTH: &[(Transport, &str)] = &[(Transport::Udp, RELAY), (Transport::Tcp, RELAY)];
const UDP_ONLY: &[(Transport, &str)] = &[(Transport::Udp, RELAY)];
const TCP_ONLY: &[(Transport, &str)] = &[(Transport::Tcp, RELAY)];

#[test]
fn over_udp_it_takes_one_round_trip_and_one_message_every_25_seconds() {
    let mut net = Net::new(BOTH);
    net.run(Duration::from_secs(200));
    let [(40, Event::Bound(bound))] = net.events.as_slice() else { panic!("{:?}", net.events) };
    assert_eq!((bound.via, bound.endpoint, bound.mapped), (udp(), addr(RELAY), addr(MEMBER)));
    assert_eq!(bound.rtt, ms(40));
    let sent: Vec<u64> = net.sent.iter().map(|(at, _)| *at).collect();
    assert_eq!(sent, [0, 25_040, 50_080, 75_120, 100_160, 125_200, 150_240, 175_280]);
    net.hears();
}

#[test]
fn without_any_answer_it_climbs_the_ladder_once_and_gives_up_with_a_reason() {
    let mut net = Net::new(UDP_ONLY);
    net.udp_back = false;
    net.run(Duration::from_secs(60));
    let sent: Vec<u64> = net.sent.iter().map(|(at, _)| *at).collect();
    assert_eq!(sent, [0, 100, 300, 700, 1500]);
    assert_eq!(net.events, [(3100, Event::Lost(Lost::Silent { tcp: "not tried".to_owned() }))]);
    assert_eq!(net.side.poll_timeout(), None);
}

#[test]
fn where_udp_is_silent_a_stream_takes_over() {
    let mut net = Net::new(BOTH);
    net.udp_out = false;
    net.run(Duration::from_secs(100));
    assert_eq!(net.orders, [(300, Order::Open(addr(RELAY)))]);
    // 300 ms of patience, a round trip for the stream, another for the bind.
    let [(380, Event::Bound(bound))] = net.events.as_slice() else { panic!("{:?}", net.events) };
    assert_eq!(bound.via, Via::Stream(StreamId(1)));
    net.hears();
}

#[test]
fn where_udp_is_known_to_be_blocked_nobody_waits_for_it() {
    let mut net = Net::new(BOTH);
    net.udp_out = false;
    net.side.handle_udp_blocked(net.now);
    net.run(Duration::from_secs(10));
    assert_eq!(net.orders, [(0, Order::Open(addr(RELAY)))]);
    assert!(matches!(net.events.as_slice(), [(80, Event::Bound(_))]), "{:?}", net.events);
}

#[test]
fn a_relay_that_speaks_tcp_alone_is_asked_over_tcp_at_once() {
    let mut net = Net::new(TCP_ONLY);
    net.run(Duration::from_secs(10));
    assert!(matches!(net.events.as_slice(), [(80, Event::Bound(_))]), "{:?}", net.events);
    let mut net = Net::new(TCP_ONLY);
    net.tcp = Tcp::Refused;
    net.run(Duration::from_secs(10));
    assert_eq!(net.events, [(40, Event::Lost(Lost::Silent { tcp: "refused".to_owned() }))]);
}

#[test]
fn a_slow_udp_wins_over_a_stream_that_was_opened_meanwhile() {
    let mut net = Net::new(BOTH);
    net.one_way = ms(200);
    net.run(Duration::from_secs(100));
    assert_eq!(net.events.len(), 1, "{:?}", net.events);
    assert!(matches!(net.events.as_slice(), [(400, Event::Bound(Bound { via: Via::Udp(_), .. }))]));
    assert_eq!(net.orders, [(300, Order::Open(addr(RELAY))), (400, Order::Close(StreamId(1)))]);
    net.hears();
}

#[test]
fn when_answers_over_udp_are_lost_the_relay_and_the_side_agree_on_the_stream() {
    let mut net = Net::new(BOTH);
    net.one_way = ms(120);
    net.udp_back = false;
    net.run(Duration::from_secs(3));
    // A bind over UDP (at 700 ms) is newer than the one over the stream (540 ms): the stream has the last word.
    assert!(matches!(net.side.bound(), Some(Bound { via: Via::Stream(_), .. })), "{:?}", net.events);
    net.hears();
}

#[test]
fn a_late_answer_over_udp_brings_the_side_back_from_the_stream() {
    let mut net = Net::new(BOTH);
    net.udp_back_extra = ms(1000);
    net.run(Duration::from_secs(10));
    let vias: Vec<bool> =
        net.events.iter().map(|(_, e)| matches!(e, Event::Bound(Bound { via: Via::Udp(_), .. }))).collect();
    assert_eq!(vias, [false, true], "{:?}", net.events);
    assert_eq!(net.orders.last().map(|(_, order)| order), Some(&Order::Close(StreamId(1))));
    net.hears();
}

#[test]
fn a_lost_answer_costs_one_rung() {
    let mut net = Net::new(UDP_ONLY);
    net.lose = vec![true];
    net.run(Duration::from_secs(20));
    assert!(matches!(net.events.as_slice(), [(140, Event::Bound(_))]), "{:?}", net.events);
}

#[test]
fn a_relay_that_restarts_is_noticed_and_the_side_says_so() {
    let mut net = Net::new(BOTH);
    net.run(Duration::from_secs(100));
    // The new process knows nothing, and the token has expired meanwhile.
    net.relay = fresh_relay(net.now);
    net.side.handle_doubt(net.now);
    net.run(Duration::from_secs(120));
    // 3.1 s for the refresh, and for a new beginning the same again.
    let Some((106_200, Event::Lost(Lost::Silent { tcp }))) = net.events.last() else {
        panic!("{:?}", net.events)
    };
    assert_eq!(tcp, "no answer");
}

#[test]
fn a_relay_that_restarts_while_the_token_lasts_is_bound_to_again() {
    let mut net = Net::new(BOTH);
    net.run(Duration::from_secs(20));
    net.relay = fresh_relay(net.now);
    net.peer = None;
    net.run(Duration::from_secs(60));
    assert_eq!(net.events.len(), 1, "no news: {:?}", net.events);
    net.hears();
}

#[test]
fn a_member_that_moves_tells_the_relay_at_once_if_told_to() {
    let mut net = Net::new(BOTH);
    net.run(Duration::from_secs(10));
    net.member = addr("198.51.100.99:1");
    net.side.handle_doubt(net.now);
    net.run(Duration::from_secs(11));
    let Some((10_040, Event::Bound(bound))) = net.events.last() else { panic!("{:?}", net.events) };
    assert_eq!(bound.mapped, net.member);
    net.hears();
}

#[test]
fn a_broken_stream_is_replaced() {
    let mut net = Net::new(TCP_ONLY);
    net.run(Duration::from_secs(10));
    net.break_stream();
    assert_eq!(net.side.bound(), None);
    net.run(Duration::from_secs(11));
    let Some(Event::Bound(bound)) = net.events.last().map(|(_, e)| e) else { panic!("{:?}", net.events) };
    assert_eq!(bound.via, Via::Stream(StreamId(2)));
    net.hears();
}

#[test]
fn every_endpoint_gets_its_turn() {
    let mut net = Net::new(&[(Transport::Udp, "198.51.100.7:1"), (Transport::Udp, RELAY)]);
    net.dead = vec![addr("198.51.100.7:1")];
    net.run(Duration::from_secs(10));
    assert!(matches!(net.events.as_slice(), [(140, Event::Bound(_))]), "{:?}", net.events);
    net.hears();

    let mut net = Net::new(&[(Transport::Tcp, "198.51.100.7:1"), (Transport::Tcp, RELAY)]);
    net.dead = vec![addr("198.51.100.7:1")];
    net.run(Duration::from_secs(10));
    assert!(matches!(net.events.as_slice(), [(3180, Event::Bound(_))]), "{:?}", net.events);
    net.hears();
}

#[test]
fn an_ipv6_endpoint_is_asked_over_the_ipv6_socket() {
    let mut net = Net::new(&[(Transport::Udp, "[2001:db8::1]:6061")]);
    assert_eq!(
        net.side.poll_transmit().map(|(via, to, _)| (via, to)),
        Some((Via::Udp(SocketId::V6), addr("[2001:db8::1]:6061")))
    );
}

#[test]
fn a_clock_that_jumps_back_does_not_make_a_refresh_a_replay() {
    let mut net = Net::new(UDP_ONLY);
    net.run(Duration::from_secs(10));
    net.now.unix = UnixTime::from_secs(net.now.unix.secs() - 60);
    net.run(Duration::from_secs(200));
    assert_eq!(net.events.len(), 1, "{:?}", net.events);
    assert_eq!(net.relay.stats().replayed, 0);
    net.hears();
}

#[test]
fn an_answer_that_is_not_the_relays_changes_nothing() {
    let mut net = Net::new(UDP_ONLY);
    let (via, to, request) = net.side.poll_transmit().unwrap();
    let request = stun::Received::parse(&request).unwrap().message;
    let key = member().derive(relay_secret().public(), super::client::KEY_LABEL, &[1; 16]).unwrap();
    let good = stun::Message {
        class: stun::Class::Success,
        attributes: vec![
            stun::Attribute::XorMappedAddress(addr(MEMBER)),
            stun::Attribute::RelayChannel(0x4001),
        ],
        ..request.clone()
    };
    let now = net.now;
    let mut give = |via, from, message: &stun::Message, key: &[u8; 32]| {
        let bytes = message.emit(stun::Integrity::Sha256(key));
        net.side.handle_response(via, from, &stun::Received::parse(&bytes).unwrap(), now)
    };
    let stranger = stun::Message { transaction: stun::TransactionId([0; 12]), ..good.clone() };
    let binding = stun::Message { method: stun::BINDING, ..good.clone() };
    let error = stun::Message { class: stun::Class::Error, ..good.clone() };
    let empty = stun::Message { attributes: Vec::new(), ..good.clone() };
    let no_channel =
        stun::Message { attributes: vec![stun::Attribute::XorMappedAddress(addr(MEMBER))], ..good.clone() };
    let bad_channel = stun::Message {
        attributes: vec![stun::Attribute::XorMappedAddress(addr(MEMBER)), stun::Attribute::RelayChannel(1)],
        ..good.clone()
    };
    for message in [&stranger, &binding, &error, &empty, &no_channel, &bad_channel, &request] {
        assert_eq!(give(via, to, message, &key), None, "{message:?}");
    }
    assert_eq!(give(via, to, &good, &[0; 32]), None, "another key");
    assert_eq!(give(via, addr(MEMBER), &good, &key), None, "another address");
    assert_eq!(give(Via::Stream(StreamId(5)), to, &good, &key), None, "another door");
    assert!(matches!(give(via, to, &good, &key), Some(Event::Bound(_))));
    assert_eq!(give(via, to, &good, &key), None, "the same again");
}

#[test]
fn messages_are_wrapped_once_bound_and_not_before() {
    let mut net = Net::new(UDP_ONLY);
    let mut out = Outbox::default();
    assert!(!net.side.wrap(b"early", &mut out));
    net.run(Duration::from_secs(1));
    assert!(net.side.wrap(b"payload", &mut out));
    let sent = out.sends().first().unwrap();
    assert_eq!((sent.via, sent.to), (udp(), addr(RELAY)));
    let (channel, payload) = split(out.bytes(sent.range.clone())).unwrap();
    assert_eq!((Some(channel), payload), (net.side.bound().map(|b| b.channel), &b"payload"[..]));
    assert!(net.side.carries(udp(), addr(RELAY), channel));
    assert!(!net.side.carries(udp(), addr(MEMBER), channel));
    assert!(!net.side.carries(udp(), addr(RELAY), Channel::new(channel.number() + 1)));
}

#[test]
fn who_closes_a_side_hears_nothing_of_it_any_more() {
    let mut net = Net::new(TCP_ONLY);
    net.run(Duration::from_secs(10));
    net.side.close();
    net.run(Duration::from_secs(600));
    assert_eq!(net.orders.last(), Some(&(10_000, Order::Close(StreamId(1)))));
    assert_eq!((net.events.len(), net.side.poll_timeout(), net.side.bound()), (1, None, None));
}

#[test]
fn an_offer_without_a_usable_endpoint_or_key_is_refused_at_once() {
    let (t, now) = (token(1, 0, &member(), now()), now());
    let make = |endpoints, cert| Side::new(&offer(&t, endpoints), &mut wg(), cert, now, Seed([0; 32])).err();
    let good = certificate(&relay_secret());
    assert_eq!(make(&[], &good), Some(Lost::NoEndpoint));
    assert_eq!(make(&[(Transport::Udp, "192.0.2.1:0")], &good), Some(Lost::NoEndpoint));
    let mut bad = good.clone();
    bad.subject.wg = crate::identity::keys::WgPublic([0; 32]);
    assert_eq!(make(UDP_ONLY, &bad), Some(Lost::BadKey));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However many messages are lost and however late the others are: the side gets bound or gives up within seconds,
    /// and once the network is well again, relay and side agree where the side is.
    #[test]
    fn whatever_the_network_does_relay_and_side_end_up_agreeing(
        lose in proptest::collection::vec(any::<bool>(), 0..30),
        jitter in any::<u64>(),
        tcp in prop_oneof![Just(Tcp::Works), Just(Tcp::Refused), Just(Tcp::Silent)],
        udp_back in any::<bool>(),
        broken_at in 0_u64..5000,
        slow in 1_u64..400,
    ) {
        let mut net = Net::new(BOTH);
        net.lose = lose;
        net.jitter = Some(Rng::new(Seed([u8::try_from(jitter % 251).unwrap(); 32])));
        net.one_way = ms(slow);
        net.tcp = tcp;
        net.udp_back = udp_back;
        net.run(ms(broken_at));
        net.break_stream();
        net.run(Duration::from_secs(12));
        net.lose.clear();
        let lost = net.events.iter().any(|(_, e)| matches!(e, Event::Lost(_)));
        prop_assert!(lost || net.side.bound().is_some(), "{:?}", net.events);
        net.run(Duration::from_secs(60));
        if net.side.bound().is_some() {
            net.hears();
        } else {
            prop_assert_eq!(net.side.poll_timeout(), None);
        }
    }
}

// Helpers.

const MEMBER: &str = "192.0.2.1:4001";
const PEER: &str = "203.0.113.2:4002";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn udp() -> Via {
    Via::Udp(SocketId::V4)
}

fn wg() -> Agreements {
    Agreements::new(member())
}

fn member() -> WgSecret {
    WgSecret::new([1; 32])
}

fn fresh_relay(now: Now) -> Relay {
    let mut relay = Relay::new(Config::default(), relay_secret(), Seed([4; 32]), now);
    relay.authorise_broker(broker().public());
    relay
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Tcp {
    Works,
    Refused,
    Silent,
}

#[derive(Debug)]
enum Arrival {
    AtRelay(Via, SocketAddr, Vec<u8>),
    AtSide(Via, Vec<u8>),
    Opened(StreamId),
    Refused(StreamId),
    RelayClosed(StreamId),
}

/// A relay, one side, the network between them, and the time. The other side of the session refreshes by itself.
struct Net {
    relay: Relay,
    side: Side,
    start: Now,
    now: Now,
    member: SocketAddr,
    one_way: Duration,
    /// So much more for answers over UDP.
    udp_back_extra: Duration,
    /// Up to twice as long, at random.
    jitter: Option<Rng>,
    udp_out: bool,
    udp_back: bool,
    tcp: Tcp,
    /// Which of the next messages over UDP are lost.
    lose: Vec<bool>,
    dead: Vec<SocketAddr>,
    queue: BTreeMap<(Instant, u32), Arrival>,
    streams: BTreeMap<StreamId, Instant>,
    opened: u32,
    next: u32,
    peer: Option<Instant>,
    events: Vec<(u64, Event)>,
    orders: Vec<(u64, Order)>,
    sent: Vec<(u64, Via)>,
}

impl Net {
    fn new(endpoints: &[(Transport, &str)]) -> Self {
        let now = now();
        let t = token(1, 0, &member(), now);
        let side =
            Side::new(&offer(&t, endpoints), &mut wg(), &certificate(&relay_secret()), now, Seed([6; 32]))
                .unwrap();
        Self {
            relay: fresh_relay(now),
            side,
            start: now,
            now,
            member: addr(MEMBER),
            one_way: ms(20),
            udp_back_extra: Duration::ZERO,
            jitter: None,
            udp_out: true,
            udp_back: true,
            tcp: Tcp::Works,
            lose: Vec::new(),
            dead: Vec::new(),
            queue: BTreeMap::new(),
            streams: BTreeMap::new(),
            opened: 0,
            next: 0,
            peer: None,
            events: Vec::new(),
            orders: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// Lets everything happen that happens until `until` after the start.
    fn run(&mut self, until: Duration) {
        let until = self.start.instant + until;
        loop {
            self.drain();
            let arrival = self.queue.first_key_value().map(|((at, _), _)| *at);
            let peer = self.peer.unwrap_or(self.now.instant);
            let next = [arrival, self.side.poll_timeout(), self.relay.poll_timeout(), Some(peer)];
            let next = next.into_iter().flatten().min().unwrap().max(self.now.instant);
            if next > until {
                self.advance(until);
                return;
            }
            self.advance(next);
            if self.peer.is_none_or(|at| at <= self.now.instant) {
                self.bind_peer();
            }
            if arrival.is_some_and(|at| at <= self.now.instant) {
                let (_, arrival) = self.queue.pop_first().unwrap();
                self.arrive(arrival);
            }
            self.relay.handle_timeout(self.now);
            let event = self.side.handle_timeout(self.now);
            self.note(event);
        }
    }

    fn advance(&mut self, to: Instant) {
        self.now = self.now.plus(to.saturating_duration_since(self.now.instant));
    }

    fn drain(&mut self) {
        while let Some(order) = self.side.poll_order() {
            self.orders.push((self.elapsed(), order.clone()));
            match order {
                Order::Open(to) => {
                    self.opened += 1;
                    let id = StreamId(self.opened);
                    self.side.on_stream_named(id);
                    let arrival = match self.tcp {
                        Tcp::Works if !self.dead.contains(&to) => Arrival::Opened(id),
                        Tcp::Refused => Arrival::Refused(id),
                        Tcp::Works | Tcp::Silent => continue,
                    };
                    let rtt = self.delay() + self.delay();
                    self.streams.insert(id, self.now.instant + rtt);
                    self.post(self.now.instant + rtt, arrival);
                }
                Order::Close(id) => {
                    self.streams.remove(&id);
                    let at = self.now.instant + self.delay();
                    self.post(at, Arrival::RelayClosed(id));
                }
            }
        }
        while let Some((via, to, bytes)) = self.side.poll_transmit() {
            self.sent.push((self.elapsed(), via));
            let passes = match via {
                Via::Udp(_) => self.udp_out && !self.loses() && !self.dead.contains(&to),
                Via::Stream(id) => self.streams.contains_key(&id),
            };
            let at = self.arrival_over(via);
            if passes {
                self.post(at, Arrival::AtRelay(via, self.member, bytes));
            }
        }
        while let Some(id) = self.relay.poll_close() {
            self.post(self.now.instant, Arrival::Refused(id));
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::AtRelay(via, from, bytes) => {
                let mut out = Outbox::default();
                self.relay.handle_message(via, from, Ecn::NotCapable, &bytes, self.now, &mut out);
                for sent in out.sends() {
                    let passes = match sent.via {
                        Via::Udp(_) => self.udp_back && sent.to == self.member && !self.loses(),
                        Via::Stream(_) => true,
                    };
                    let mut at = self.arrival_over(sent.via);
                    if matches!(sent.via, Via::Udp(_)) {
                        at += self.udp_back_extra;
                    }
                    if passes {
                        self.post(at, Arrival::AtSide(sent.via, out.bytes(sent.range.clone()).to_vec()));
                    }
                }
            }
            Arrival::AtSide(via, bytes) => {
                let event = stun::Received::parse(&bytes)
                    .ok()
                    .and_then(|answer| self.side.handle_response(via, addr(RELAY), &answer, self.now));
                self.note(event);
            }
            Arrival::Opened(id) if self.streams.contains_key(&id) => {
                self.relay.handle_stream_accepted(id, self.member, self.now);
                let event = self.side.handle_stream(id, StreamNews::Opened, self.now);
                self.note(event);
            }
            Arrival::Opened(_) => {}
            Arrival::Refused(id) => {
                self.streams.remove(&id);
                let event = self.side.handle_stream(id, StreamNews::Closed("refused".to_owned()), self.now);
                self.note(event);
            }
            Arrival::RelayClosed(id) => self.relay.handle_stream_closed(id),
        }
    }

    fn break_stream(&mut self) {
        let Some((id, _)) = self.streams.pop_first() else { return };
        self.relay.handle_stream_closed(id);
        let event = self.side.handle_stream(id, StreamNews::Closed("reset".to_owned()), self.now);
        self.note(event);
    }

    /// The other side says something, and it comes out where this side listens.
    fn hears(&mut self) {
        let channel = self.bind_peer();
        let mut message = channel.header().to_vec();
        message.extend_from_slice(b"psst");
        let mut out = Outbox::default();
        self.relay.handle_message(udp(), addr(PEER), Ecn::NotCapable, &message, self.now, &mut out);
        let bound = self.side.bound().copied().expect("bound");
        let [sent] = out.sends() else { panic!("{:?}, {:?}", out.sends(), self.relay) };
        assert_eq!((sent.via, sent.to), (bound.via, self.member));
        assert_eq!(split(out.bytes(sent.range.clone())), Ok((bound.channel, &b"psst"[..])));
    }

    fn bind_peer(&mut self) -> Channel {
        // Its clock is a minute ahead, never jumps, and shows another time at each look.
        self.next += 1;
        let unix = self.start.unix.plus(Duration::from_secs(60)).plus(ms(self.elapsed()));
        let unix = unix.plus(Duration::from_micros(u64::from(self.next)));
        let peer = WgSecret::new([2; 32]);
        let t = token(1, 1, &peer, self.start);
        let offer = offer(&t, UDP_ONLY);
        let skewed = Now { unix, ..self.now };
        let seed = Seed([u8::try_from(self.next % 251).unwrap(); 32]);
        let mut peer = Agreements::new(peer);
        let mut side = Side::new(&offer, &mut peer, &certificate(&relay_secret()), skewed, seed).unwrap();
        let (via, _, bytes) = side.poll_transmit().unwrap();
        let mut out = Outbox::default();
        self.relay.handle_message(via, addr(PEER), Ecn::NotCapable, &bytes, self.now, &mut out);
        self.peer = Some(self.now.instant + Duration::from_secs(20));
        let Some(sent) = out.sends().first() else { return Channel::new(0) };
        let answer = stun::Received::parse(out.bytes(sent.range.clone())).unwrap();
        let _ = side.handle_response(via, addr(RELAY), &answer, skewed);
        side.bound().unwrap().channel
    }

    fn note(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            self.events.push((self.elapsed(), event));
        }
    }

    fn post(&mut self, at: Instant, arrival: Arrival) {
        self.next += 1;
        self.queue.insert((at, self.next), arrival);
    }

    /// When a message that leaves now arrives; streams keep their order.
    fn arrival_over(&mut self, via: Via) -> Instant {
        let at = self.now.instant + self.delay();
        match via {
            Via::Udp(_) => at,
            Via::Stream(id) => match self.streams.get_mut(&id) {
                Some(last) => {
                    *last = at.max(*last);
                    *last
                }
                None => at,
            },
        }
    }

    fn delay(&mut self) -> Duration {
        let more = self.jitter.as_mut().map_or(0, |rng| rng.below(1000));
        self.one_way + self.one_way * more / 1000
    }

    fn loses(&mut self) -> bool {
        self.lose.pop().unwrap_or(false)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.now.instant.duration_since(self.start.instant).as_millis()).unwrap()
    }
}
