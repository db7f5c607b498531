//! Stories about gates: who may dial, who is joined to whom, and what strangers and floods achieve (nothing).

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::ecn::Ecn;
use crate::base::id::SocketId;
use crate::base::rng::Seed;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
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
use crate::wire::relay::Gate;
use crate::wire::stun;
use crate::wire::syn::Syn;
use crate::wire::syn::testing::linux;

const UDP: Via = Via::Udp(SocketId::V4);
const RELAY: &str = "198.51.100.1";
const A: &str = "192.0.2.10:1000";
const B: &str = "203.0.113.20:2000";
const SYN: u8 = 0x02;

#[test]
fn two_that_dial_their_gates_become_one_connection() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    assert_eq!(net.dial("192.0.2.10:5555", a.port, 100), [], "the first one waits");
    let [Order::Splice { number, pair }] = &net.dial("203.0.113.20:6666", b.port, 200)[..] else { panic!() };
    assert_eq!((pair.first.isn, pair.second.isn), (100, 200));
    let answers = net.done(*number, true);
    let to: Vec<IpAddr> = answers.iter().map(destination).collect();
    assert_eq!(to, [addr(A).ip(), addr(B).ip()], "now, and to both");
    assert_eq!(net.state(), (Backend::Kernel, Why::Spliced));
    assert_eq!((net.relay.stats().spliced, net.relay.stats().splices), (1, 1));
}

#[test]
fn the_one_who_has_not_come_is_called() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    let called = net.tap(&syn("192.0.2.10:5555", a.port, 1));
    let [(to, bytes)] = called.as_slice() else { panic!("{called:?}") };
    assert_eq!(*to, addr(B));
    let summons = stun::Received::parse(bytes).unwrap();
    assert!(summons.is_authentic(&key(&bob(), 1)));
    assert_eq!(summons.message.class, stun::Class::Indication);
    assert_eq!(summons.message.attributes, [stun::Attribute::RelaySplice(b)]);
}

#[test]
fn each_is_told_the_others_port_so_that_ports_may_stay_as_they_are() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    assert_eq!((a.from, b.from), (b.port, a.port));
}

#[test]
fn a_gate_is_open_to_the_address_that_has_proven_its_token_alone() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    for (case, from, port) in [
        ("a stranger", "192.0.2.99:1", a.port),
        ("the other side at the wrong gate", "203.0.113.20:1", a.port),
        ("a port that is no gate", "192.0.2.10:1", if a.port == 20_000 { 20_001 } else { 20_000 }),
    ] {
        let before = net.relay.stats().unbound;
        assert_eq!(net.dial(from, port, 1), [], "{case}");
        assert_eq!(net.relay.stats().unbound, before + 1, "{case}");
    }
    net.dial("192.0.2.10:5", a.port, 1);
    assert_eq!(net.dial("203.0.113.20:6", b.port, 2).len(), 1, "and the two meet all the same");
}

#[test]
fn without_a_bind_there_is_no_gate_and_after_the_session_it_is_shut() {
    let mut net = Net::new(Config::default());
    assert_eq!(net.dial("192.0.2.10:5", 20_000, 1), []);
    let (a, b) = net.splice(1);
    net.now = net.now.plus(Duration::from_secs(121));
    net.relay.handle_timeout(net.now);
    let orders = net.orders();
    assert!(matches!(orders.as_slice(), [Order::Release { .. }]), "{orders:?}");
    assert_eq!(net.dial("192.0.2.10:7", a.port, 1), []);
    assert_eq!(net.dial("203.0.113.20:8", b.port, 2), []);
    assert_eq!((net.relay.stats().sessions, net.relay.stats().spliced), (0, 0));
}

#[test]
fn a_syn_that_comes_again_is_answered_again_with_its_newest_timestamp() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    net.dial("192.0.2.10:5", a.port, 1);
    let again = linux("192.0.2.10:5", &format!("{RELAY}:{}", a.port), 1, 99, SYN);
    net.tap(&again);
    let [Order::Splice { number, pair }] = &net.dial("203.0.113.20:6", b.port, 2)[..] else { panic!() };
    assert_eq!(pair.first, Syn::parse(&again).unwrap());
    net.done(*number, true);
    net.tap(&again);
    let [Order::Send { to, .. }] = &net.orders()[..] else { panic!() };
    assert_eq!(*to, addr(A).ip(), "to this side alone");
}

#[test]
fn a_new_syn_replaces_the_old_and_is_joined_to_a_new_one_only() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    net.dial("192.0.2.10:5", a.port, 1);
    net.dial("192.0.2.10:6", a.port, 3);
    let [Order::Splice { number, pair }] = &net.dial("203.0.113.20:6", b.port, 2)[..] else { panic!() };
    assert_eq!(pair.first.isn, 3);
    net.done(*number, true);
    // Alice dials once more: bob's connection has begun and cannot be joined to that.
    assert_eq!(net.dial("192.0.2.10:7", a.port, 4), []);
    assert_eq!(net.relay.stats().spliced, 1, "what stands goes on meanwhile");
    let orders = net.dial("203.0.113.20:8", b.port, 5);
    assert!(matches!(orders.as_slice(), [Order::Release { .. }, Order::Splice { .. }]), "{orders:?}");
}

#[test]
fn a_syn_whose_sender_has_given_up_is_joined_to_nobody() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    net.dial("192.0.2.10:5", a.port, 1);
    net.now = net.now.plus(Duration::from_secs(5));
    assert_eq!(net.dial("203.0.113.20:6", b.port, 2), []);
    assert_eq!(net.dial("192.0.2.10:7", a.port, 3).len(), 1, "the next one is");
}

#[test]
fn two_members_behind_one_address_have_two_gates() {
    let mut net = Net::new(Config::default());
    let a = net.bind("192.0.2.10:1", 1, 0);
    let b = net.bind("192.0.2.10:2", 1, 1);
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.port, b.port);
    net.dial("192.0.2.10:51", a.port, 1);
    let [Order::Splice { pair, .. }] = &net.dial("192.0.2.10:52", b.port, 2)[..] else { panic!() };
    assert_eq!((pair.first.isn, pair.second.isn), (1, 2));
}

#[test]
fn a_flood_of_half_open_connections_takes_no_room_and_no_time_of_others() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    for n in 0..20_000_u32 {
        let from = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1024 + (n % 60_000) as u16));
        net.tap(&syn(&from.to_string(), a.port, n));
    }
    for n in 0..1000 {
        net.tap(&syn(&format!("192.0.2.10:{}", 1024 + n), a.port, 7));
    }
    assert_eq!(net.orders(), []);
    let orders = net.dial("203.0.113.20:6", b.port, 2);
    assert!(matches!(orders.as_slice(), [Order::Splice { .. }]), "the newest of the side itself: {orders:?}");
    assert_eq!(net.relay.stats().unbound, 20_000);
}

#[test]
fn garbage_at_a_gate_is_counted_and_nothing_more() {
    let mut net = Net::new(Config::default());
    let (a, _) = net.pair(1);
    let whole = syn("192.0.2.10:5", a.port, 1);
    let cut = (0..whole.len()).map(|n| whole[..n].to_vec());
    let other = [vec![0; 65_535], vec![0x45; 65_535], vec![0x60; 65_535], vec![0xff; 512]];
    let count = cut.chain(other).map(|packet| assert_eq!(net.tap(&packet), [])).count() as u64;
    assert_eq!(net.relay.stats().garbage, count);
    assert_eq!(net.orders(), []);
}

#[test]
fn where_the_kernel_cannot_or_may_not_there_is_no_gate_and_the_reason_is_known() {
    let limited = Config { bytes_per_second: Some(1000), ..Config::default() };
    let mut net = Net::new(limited);
    assert_eq!(net.bind(A, 1, 0), None);
    assert_eq!(net.state(), (Backend::Userspace, Why::Limited));

    let mut net = Net::new(Config::default());
    assert!(net.bind(A, 1, 0).is_some(), "nobody knows yet");
    assert_eq!(net.state(), (Backend::Userspace, Why::Alone));
    assert_eq!(net.bind("[2001:db8::1]:5", 1, 1), None);
    assert_eq!(net.state(), (Backend::Userspace, Why::Families));

    let mut net = Net::new(Config::default());
    assert_eq!(net.bind(&format!("{RELAY}:5"), 1, 0), None);
    assert_eq!(net.state(), (Backend::Userspace, Why::SameMachine));

    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    assert_eq!(net.state(), (Backend::Userspace, Why::NotDialled));
    net.dial("192.0.2.10:5", a.port, 1);
    let [Order::Splice { number, .. }] = &net.dial("203.0.113.20:6", b.port, 2)[..] else { panic!() };
    assert_eq!(net.done(*number, false), [], "nobody is answered");
    assert_eq!(net.state(), (Backend::Userspace, Why::Refused));
    assert_eq!(net.bind(A, 1, 0), None, "and the gate is not offered again");
    assert_eq!(net.relay.stats().unspliced, 1);
}

#[test]
fn a_side_that_moves_takes_its_gate_along_and_shuts_the_old_one() {
    let mut net = Net::new(Config::default());
    let (a, b) = net.pair(1);
    let moved = net.bind("192.0.2.77:9", 1, 0).unwrap();
    assert_eq!(moved.port, a.port);
    assert_eq!(net.dial("192.0.2.10:5", a.port, 1), []);
    net.dial("203.0.113.20:6", b.port, 2);
    assert_eq!(net.dial("192.0.2.77:5", a.port, 1).len(), 1);
}

/// A relay with a kernel, and what it orders.
struct Net {
    relay: Relay,
    now: Now,
}

impl Net {
    fn new(config: Config) -> Self {
        let now = now();
        let mut relay = Relay::new(config, relay_secret(), Seed([3; 32]), now);
        relay.authorise_broker(broker().public());
        let here = vec![RELAY.parse().unwrap()];
        // No socket whose datagrams the kernel carries: these stories are about TCP.
        relay.set_kernel(Kernel { ports: 20_000..=20_999, here, mtu: 1500, doors: Vec::new() });
        Self { relay, now }
    }

    fn pair(&mut self, session: u8) -> (Gate, Gate) {
        let first = self.bind(A, session, 0).unwrap();
        let second = self.bind(B, session, 1).unwrap();
        assert_eq!(self.bind(A, session, 0), Some(first), "a gate stays while its side does");
        (first, second)
    }

    fn splice(&mut self, session: u8) -> (Gate, Gate) {
        let (a, b) = self.pair(session);
        self.dial("192.0.2.10:5", a.port, 1);
        let [Order::Splice { number, .. }] = &self.dial("203.0.113.20:6", b.port, 2)[..] else { panic!() };
        self.done(*number, true);
        (a, b)
    }

    /// The gate in the answer to a bind.
    fn bind(&mut self, from: &str, session: u8, side: u8) -> Option<Gate> {
        self.now = self.now.plus(Duration::from_micros(1));
        let member = if side == 0 { alice() } else { bob() };
        let t = token(session, side, &member, self.now);
        let message = stun::Message {
            class: stun::Class::Request,
            method: stun::RELAY_BIND,
            transaction: stun::TransactionId([5; 12]),
            attributes: vec![
                stun::Attribute::RelayToken(signed(&t, &broker())),
                stun::Attribute::Timestamp(self.now.unix.micros()),
            ],
        };
        let bytes = message.emit(stun::Integrity::Sha256(&key(&member, session)));
        let mut out = Outbox::default();
        self.relay.handle_message(UDP, addr(from), Ecn::NotCapable, &bytes, self.now, &mut out);
        let answer = out.sends().first().expect("an answer");
        let answer = stun::Received::parse(out.bytes(answer.range.clone())).unwrap();
        answer.message.attributes.iter().find_map(|a| match a {
            stun::Attribute::RelaySplice(gate) => Some(*gate),
            _ => None,
        })
    }

    /// What the relay's kernel is to do after a SYN.
    fn dial(&mut self, from: &str, port: u16, isn: u32) -> Vec<Order> {
        self.tap(&syn(from, port, isn));
        self.orders()
    }

    /// Messages that a packet at the tap leads to.
    fn tap(&mut self, packet: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Outbox::default();
        self.relay.handle_tapped(packet, self.now, &mut out);
        out.sends().iter().map(|t| (t.to, out.bytes(t.range.clone()).to_vec())).collect()
    }

    fn done(&mut self, number: u32, done: bool) -> Vec<Order> {
        self.relay.handle_spliced(number, done);
        self.orders()
    }

    fn orders(&mut self) -> Vec<Order> {
        std::iter::from_fn(|| self.relay.poll_order()).collect()
    }

    fn state(&self) -> (Backend, Why) {
        let sessions = self.relay.sessions(9);
        let [one] = sessions.as_slice() else { panic!("{sessions:?}") };
        (one.backend, one.why)
    }
}

fn destination(order: &Order) -> IpAddr {
    let Order::Send { to, .. } = order else { panic!("{order:?}") };
    *to
}

fn syn(from: &str, port: u16, isn: u32) -> Vec<u8> {
    linux(from, &SocketAddr::new(RELAY.parse().unwrap(), port).to_string(), isn, 1, SYN)
}

fn alice() -> WgSecret {
    WgSecret::new([1; 32])
}

fn bob() -> WgSecret {
    WgSecret::new([2; 32])
}

fn key(member: &WgSecret, session: u8) -> [u8; 32] {
    member.derive(relay_secret().public(), KEY_LABEL, &[session; 16]).unwrap()
}
