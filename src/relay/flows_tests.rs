//! Stories about sessions over UDP: when the kernel is to carry them, whose messages, and when no longer.

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
use crate::relay::backend::Backend;
use crate::relay::backend::Why;
use crate::relay::client::KEY_LABEL;
use crate::relay::server::Config;
use crate::relay::server::Relay;
use crate::relay::splices::Kernel;
use crate::relay::splices::Order;
use crate::relay::testing::addr;
use crate::relay::testing::broker;
use crate::relay::testing::now;
use crate::relay::testing::relay_secret;
use crate::relay::testing::signed;
use crate::relay::testing::token;
use crate::wire::relay::Channel;
use crate::wire::relay::Flow;
use crate::wire::relay::may_follow;
use crate::wire::stun;

const UDP: Via = Via::Udp(SocketId(1));
const A: &str = "192.0.2.10:1000";
const B: &str = "203.0.113.20:2000";
const DOORS: [&str; 2] = ["[::]:6061", "0.0.0.0:6061"];

#[test]
fn two_that_are_bound_over_udp_are_joined_with_the_channel_of_both() {
    let mut net = Net::new(Config::default());
    let (first, orders) = net.bind(UDP, A, 1, 0);
    assert_eq!(orders, [], "the first one has nobody yet");
    let (second, orders) = net.bind(UDP, B, 1, 1);
    assert_eq!(first, second);
    let flow = Flow { first: addr(A), second: addr(B), at: addr(DOORS[1]), channel: first.unwrap() };
    assert_eq!(orders, [Order::Join { number: 0, flow }]);
    assert_eq!(net.state().0, Backend::Userspace, "until the kernel does it");
    net.relay.handle_joined(0, true);
    assert_eq!((net.state(), net.relay.stats().joined), ((Backend::Kernel, Why::Joined), 1));
    assert_eq!(net.bind(UDP, A, 1, 0).1, [], "a refresh changes nothing");
}

#[test]
fn a_side_that_moves_is_parted_from_where_it_was_before_it_is_joined_where_it_is() {
    let mut net = Net::new(Config::default());
    let old = net.join(1);
    let (_, orders) = net.bind(UDP, "192.0.2.10:1001", 1, 0);
    let new = Flow { first: addr("192.0.2.10:1001"), ..old };
    assert_eq!(orders, [Order::Part { number: 0, flow: old }, Order::Join { number: 0, flow: new }]);
    net.relay.handle_joined(0, true);
    assert_eq!(net.relay.stats().joined, 1);
}

#[test]
fn a_side_that_changes_to_tcp_takes_the_session_back_to_user_space() {
    let mut net = Net::new(Config::default());
    let flow = net.join(1);
    let stream = Via::Stream(StreamId(1));
    net.relay.handle_stream_accepted(StreamId(1), addr(A), net.now);
    let (_, orders) = net.bind(stream, A, 1, 0);
    assert_eq!(orders, [Order::Part { number: 0, flow }]);
    assert_eq!((net.state(), net.relay.stats().joined), ((Backend::Userspace, Why::NotDialled), 0));
}

#[test]
fn a_session_that_is_over_is_parted_and_another_one_may_take_its_place() {
    let mut net = Net::new(Config::default());
    let flow = net.join(1);
    net.now = net.now.plus(Duration::from_secs(121));
    net.relay.handle_timeout(net.now);
    assert_eq!(net.orders(), [Order::Part { number: 0, flow }]);
    assert_eq!((net.relay.stats().sessions, net.relay.stats().joined), (0, 0));
    net.join(2);
}

#[test]
fn what_the_kernel_refuses_is_copied_until_a_side_moves() {
    let mut net = Net::new(Config::default());
    net.bind(UDP, A, 1, 0);
    net.bind(UDP, B, 1, 1);
    net.relay.handle_joined(0, false);
    assert_eq!((net.state(), net.relay.stats().unspliced), ((Backend::Userspace, Why::Refused), 1));
    assert_eq!(net.bind(UDP, A, 1, 0).1, [], "it is not asked the same again");
    let (_, orders) = net.bind(UDP, "192.0.2.10:1001", 1, 0);
    assert!(matches!(orders.as_slice(), [Order::Join { .. }]), "{orders:?}");
}

#[test]
fn only_what_the_kernel_can_and_may_carry_is_joined() {
    for (case, config, second) in [
        ("a byte rate", Config { bytes_per_second: Some(1000), ..Config::default() }, (UDP, B)),
        ("the other socket", Config::default(), (Via::Udp(SocketId(0)), "[2001:db8::1]:5")),
        ("a member on this machine", Config::default(), (UDP, "198.51.100.1:5")),
        ("a socket that the kernel does not know", Config::default(), (Via::Udp(SocketId(7)), B)),
    ] {
        let mut net = Net::new(config);
        net.bind(UDP, A, 1, 0);
        assert_eq!(net.bind(second.0, second.1, 1, 1).1, [], "{case}");
    }
}

#[test]
fn nobody_without_the_sessions_own_valid_token_changes_what_the_kernel_does() {
    let mut net = Net::new(Config::default());
    let flow = net.join(1);
    let stranger = "198.18.0.1:9";
    let (stolen, foreign) = (WgSecret::new([66; 32]), SigningKey::from_seed(&[66; 32]));
    let (now, before) = (net.now, net.relay.stats());
    let mut late = token(3, 0, &alice(), now);
    late.expires = now.unix;
    let replayed = net.last.clone();
    for (case, bytes) in [
        ("no token", vec![0x01; 200]),
        ("garbage of 64 KiB", vec![0x40; 65_535]),
        ("a stolen token", net.request(&signed(&token(1, 0, &alice(), now), &broker()), &stolen, 1)),
        (
            "a token of another broker",
            net.request(&signed(&token(1, 0, &alice(), now), &foreign), &alice(), 1),
        ),
        ("another pair's token for this session", {
            let other = token(1, 0, &stolen, now);
            net.request(&signed(&other, &broker()), &stolen, 1)
        }),
        ("a token after its time", net.request(&signed(&late, &broker()), &alice(), 3)),
        ("a bind that was heard before", replayed),
    ] {
        let mut out = Outbox::default();
        net.relay.handle_message(UDP, addr(stranger), Ecn::default(), &bytes, net.now, &mut out);
        assert!(out.is_empty(), "{case} is answered");
        assert_eq!(net.orders(), [], "{case}");
    }
    assert_eq!(net.relay.stats().rejected() - before.rejected(), 7);
    assert_eq!((net.relay.stats().sessions, net.relay.stats().joined), (1, 1));
    assert_eq!(net.flow(), Some(flow), "the session goes on as it was");
}

#[test]
fn half_a_session_never_reaches_the_kernel_however_many_there_are() {
    let config = Config { bind_burst: 1000, max_sessions_per_member: 1000, ..Config::default() };
    let mut net = Net::new(config);
    for session in 1..=200 {
        assert_eq!(net.bind(UDP, A, session, 0).1, []);
    }
    assert_eq!(net.relay.stats().joined, 0);
    assert_eq!(net.bind(UDP, B, 7, 1).1.len(), 1, "and whoever is met is joined all the same");
}

#[test]
fn messages_for_different_members_do_not_travel_in_one_train() {
    let on = |channel: u16, payload: &[u8]| [&Channel::new(channel).header()[..], payload].concat();
    let noise = |receiver: u8| vec![4, 0, 0, 0, receiver];
    let bind = vec![0, 1, 0, 0];
    for (case, before, next, wanted) in [
        ("one channel", on(5, b"a"), on(5, b"b"), true),
        ("two channels", on(5, b"a"), on(6, b"b"), false),
        ("a bind behind a message", on(5, b"a"), bind.clone(), false),
        ("a message behind a bind", bind, on(5, b"a"), false),
        ("nothing of a relay's", noise(1), noise(2), true),
        ("nearly nothing", vec![0x40], on(0, b""), false),
    ] {
        assert_eq!(may_follow(&before, &next), wanted, "{case}");
    }
}

/// A relay with a kernel, and what it orders.
struct Net {
    relay: Relay,
    now: Now,
    /// The newest bind.
    last: Vec<u8>,
}

impl Net {
    fn new(config: Config) -> Self {
        let now = now();
        let mut relay = Relay::new(config, relay_secret(), Seed([3; 32]), now);
        relay.authorise_broker(broker().public());
        let here = vec!["198.51.100.1".parse().unwrap()];
        let doors = DOORS.map(addr).to_vec();
        relay.set_kernel(Kernel { ports: 20_000..=20_999, here, mtu: 1500, doors });
        Self { relay, now, last: Vec::new() }
    }

    /// A session that the kernel carries.
    fn join(&mut self, session: u8) -> Flow {
        self.bind(UDP, A, session, 0);
        let (_, orders) = self.bind(UDP, B, session, 1);
        let [Order::Join { number, flow }] = orders[..] else { panic!("{orders:?}") };
        self.relay.handle_joined(number, true);
        flow
    }

    /// The channel in the answer to a bind, and what the kernel is to do.
    fn bind(&mut self, via: Via, from: &str, session: u8, side: u8) -> (Option<Channel>, Vec<Order>) {
        let member = if side == 0 { alice() } else { bob() };
        let token = signed(&token(session, side, &member, self.now), &broker());
        let bytes = self.request(&token, &member, session);
        let mut out = Outbox::default();
        self.relay.handle_message(via, addr(from), Ecn::default(), &bytes, self.now, &mut out);
        self.last = bytes;
        let answer = out.sends().first().map(|answer| out.bytes(answer.range.clone()).to_vec());
        let answer = answer.and_then(|bytes| Some(stun::Received::parse(&bytes).ok()?.message));
        let channel = answer.into_iter().flat_map(|message| message.attributes).find_map(|a| match a {
            stun::Attribute::RelayChannel(number) => Channel::parse(number).ok(),
            _ => None,
        });
        (channel, self.orders())
    }

    fn request(&mut self, token: &[u8], member: &WgSecret, session: u8) -> Vec<u8> {
        self.now = self.now.plus(Duration::from_micros(1));
        let message = stun::Message {
            class: stun::Class::Request,
            method: stun::RELAY_BIND,
            transaction: stun::TransactionId([5; 12]),
            attributes: vec![
                stun::Attribute::RelayToken(token.to_vec()),
                stun::Attribute::Timestamp(self.now.unix.micros()),
            ],
        };
        let key = member.derive(relay_secret().public(), KEY_LABEL, &[session; 16]).unwrap();
        message.emit(stun::Integrity::Sha256(&key))
    }

    fn orders(&mut self) -> Vec<Order> {
        std::iter::from_fn(|| self.relay.poll_order()).collect()
    }

    /// What a new bind of bob's from elsewhere would end: what the kernel does now.
    fn flow(&mut self) -> Option<Flow> {
        let (_, orders) = self.bind(UDP, "203.0.113.20:2001", 1, 1);
        orders.into_iter().find_map(|order| match order {
            Order::Part { flow, .. } => Some(flow),
            _ => None,
        })
    }

    fn state(&self) -> (Backend, Why) {
        let sessions = self.relay.sessions(9);
        let [one] = sessions.as_slice() else { panic!("{sessions:?}") };
        (one.backend, one.why)
    }
}

fn alice() -> WgSecret {
    WgSecret::new([1; 32])
}

fn bob() -> WgSecret {
    WgSecret::new([2; 32])
}
