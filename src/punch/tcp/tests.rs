//! Stories of one attempt, with a clock that jumps.

use std::collections::BTreeSet;

use super::*;
use crate::base::id::AttemptId;
use crate::base::id::RegistrationId;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::identity::agreement::Agreements;
use crate::identity::keys::WgSecret;
use crate::nat::behavior::Forged;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Profile;
use crate::punch::turn::Turn;
use crate::wire::stun;
use crate::wire::syn::testing::linux;

#[test]
fn a_round_looks_tells_dials_and_greets_and_the_first_answered_stream_wins() {
    let mut story = Story::new(Side::Asking, method::simultaneous::round(&INDEPENDENT));
    let port = story.bound();
    let (look, dial) = story.opened_one();
    assert_eq!((dial.to, dial.from, dial.framing), (BROKER, Some(port), Framing::Stun));
    story.look_answers(look, "203.0.113.5:4000");
    let ready = story.attempt.poll_ready().unwrap();
    assert_eq!(ready.endpoints, [at("203.0.113.5:4000")]);
    assert_eq!((ready.round, ready.rtt), (1, ms(80)));

    story.go(&["198.51.100.7:5000"], ms(10));
    assert_eq!(story.orders(), [], "not before the wait is over");
    story.pass(ms(10));
    let (punch, dial) = story.opened_one();
    assert_eq!((dial.to, dial.from, dial.ttl), (at("198.51.100.7:5000"), Some(port), None));
    let opened = story.with(|a, h| a.handle_opened(punch, h));
    assert_eq!(opened, Opened::Greet(at("198.51.100.7:5000")));
    story.attempt.greeted(punch, TransactionId([1; 12]), story.now);
    assert!(story.attempt.handle_accepted(StreamId(1 << 31), port, at("198.51.100.7:5001")));
    story.now += ms(40);
    let won = story.attempt.handle_success(TransactionId([1; 12]), story.now);
    assert_eq!(won, Some((punch, ms(40))));
    story.attempt.win(punch, story.now);
    let closed = [look, StreamId(1 << 31)].map(StreamOrder::Close);
    let mut orders = story.orders();
    orders.sort_by_key(|order| format!("{order:?}"));
    assert_eq!(orders, [closed[0].clone(), closed[1].clone(), StreamOrder::Unbind(port)]);
    assert!(story.attempt.is_over());
}

#[test]
fn the_side_that_was_asked_leaves_the_choice_to_the_other_and_closes_what_was_never_answered() {
    let mut story = Story::new(Side::Asked, method::simultaneous::round(&INDEPENDENT));
    story.until_dialling(&["198.51.100.7:5000", "198.51.100.8:5000"]);
    let dials = story.opened();
    let [(one, _), (two, _)] = dials[..] else { panic!("{dials:?}") };
    for (n, id) in [(1, one), (2, two)] {
        story.with(|a, h| a.handle_opened(id, h));
        story.attempt.greeted(id, TransactionId([n; 12]), story.now);
    }
    assert!(story.attempt.handle_success(TransactionId([1; 12]), story.now).is_some());
    story.attempt.win(one, story.now);
    assert!(!story.orders().contains(&StreamOrder::Close(two)), "the other side may prefer it");
    story.pass(SETTLED_AFTER);
    assert_eq!(story.orders(), [StreamOrder::Close(two)]);
    assert!(story.attempt.is_over());
}

#[test]
fn a_refused_dial_is_made_again_a_few_times_and_then_another_round_begins() {
    let mut story = Story::new(Side::Asking, method::simultaneous::round(&INDEPENDENT));
    story.until_dialling(&["198.51.100.7:5000"]);
    for _ in 0..MAX_TRIES {
        let (id, _) = story.opened_one();
        let gone = Gone::new(Why::Refused, "refused");
        story.with(|a, h| a.handle_closed(id, &gone, h));
        story.next();
    }
    let orders = story.orders();
    assert!(orders.iter().any(|order| matches!(order, StreamOrder::Unbind(_))), "{orders:?}");
    assert!(matches!(orders.last(), Some(StreamOrder::Bind(_))), "a fresh port: {orders:?}");
}

#[test]
fn a_low_first_ttl_is_raised_before_the_kernel_sends_again() {
    let mut story = Story::new(Side::Asking, method::low_ttl::round(&INDEPENDENT, Some(2)));
    story.until_dialling(&["198.51.100.7:5000"]);
    let (id, dial) = story.opened_one();
    assert_eq!(dial.ttl, Some(3), "one more than the routers up to our own NAT");
    story.pass(ms(899));
    assert_eq!(story.orders(), []);
    story.pass(ms(1));
    assert_eq!(story.orders(), [StreamOrder::RaiseTtl(id)]);
}

#[test]
fn whoever_listens_in_stunt_2_gives_its_syn_up_and_keeps_the_port() {
    let mut story = Story::new(Side::Asked, method::stunt2::round(&INDEPENDENT, Side::Asked));
    story.until_dialling(&["198.51.100.7:5000"]);
    let (id, _) = story.opened_one();
    story.pass(ms(100));
    assert_eq!(story.orders(), [StreamOrder::Close(id)]);
}

#[test]
fn whoever_is_awaited_begins_at_once_and_catches_up() {
    let round = method::simultaneous::round(&INDEPENDENT);
    let mut story = Story::new(Side::Asked, round);
    story.attempt.stage = Stage::Waiting { until: story.now + ms(600), round: 0 };
    story.with(|a, h| a.handle_awaited(1, h));
    let StreamOrder::Bind(first) = story.orders()[0] else { panic!("no port") };
    story.with(|a, h| a.handle_awaited(2, h));
    let orders = story.orders();
    assert_eq!(orders[0], StreamOrder::Unbind(first));
    assert!(matches!(orders[1], StreamOrder::Bind(port) if port != first), "{orders:?}");
}

#[test]
fn what_worked_before_is_begun_with_and_a_failure_is_known_as_one() {
    let stunt2 = method::stunt2::round(&INDEPENDENT, Side::Asking);
    let mut story = Story::new(Side::Asking, method::simultaneous::round(&INDEPENDENT));
    story.attempt.rounds[1] = stunt2;
    story.attempt.stage = Stage::Waiting { until: story.now, round: 1 };
    story.with(|a, h| a.handle_awaited(1, h));
    story.bound();
    let (look, _) = story.opened_one();
    story.look_answers(look, "203.0.113.5:4000");
    assert_eq!(
        story.attempt.poll_ready().unwrap().round,
        2,
        "the peer, who waits for round 1, is drawn along"
    );
    story.go(&["198.51.100.7:5000"], Duration::ZERO);
    assert_eq!(story.attempt.poll_tried(), Some(Method::Stunt2));
    while !story.attempt.is_over() {
        assert!(!story.attempt.has_failed());
        story.next();
    }
    assert!(story.attempt.has_failed());
    assert_eq!(story.attempt.poll_tried(), None, "what comes before it is left to the next introduction");
}

#[test]
fn a_nat_that_steps_is_met_where_it_will_be() {
    let own = |mapping, step| Behavior { mapping, ports: PortAssignment::Delta(step), ..INDEPENDENT };
    let seen = at("203.0.113.5:20000");
    let ports = |own: &Behavior, count| -> Vec<u16> {
        guesses(seen, own, count).iter().map(SocketAddr::port).collect()
    };
    assert_eq!(ports(&INDEPENDENT, 5), [20000]);
    assert_eq!(ports(&own(Mapping::SessionDependent, 2), 3), [20002, 20004, 20006]);
    assert_eq!(ports(&own(Mapping::AddressDependent, -1), 2), [19999, 19998]);
    assert_eq!(guesses(at("203.0.113.5:65534"), &own(Mapping::SessionDependent, 1), 5).len(), 1);
}

#[test]
fn behind_a_nat_that_steps_an_attempt_waits_until_the_one_before_has_dialled() {
    let own = Behavior { mapping: Mapping::SessionDependent, ports: PortAssignment::Delta(1), ..INDEPENDENT };
    let mut story = Story::new(Side::Asking, method::prediction::round(&own, &INDEPENDENT).unwrap());
    story.attempt.own = own;
    let other = AttemptId([1; 16]);
    assert!(story.turn.take(other, story.now));
    story.next();
    assert_eq!(story.orders(), [], "the other one has the turn");
    story.with(|a, h| a.handle_awaited(2, h));
    assert_eq!(story.orders(), [], "nor does a peer that waits change that");
    story.turn.end(other, story.now);
    story.next();
    let port = story.bound();
    let (look, _) = story.opened_one();
    story.look_answers(look, "203.0.113.5:4000");
    assert_eq!(story.attempt.poll_ready().unwrap().round, 2, "the one that the peer is in");
    assert!(!story.turn.take(other, story.now));
    story.attempt.handle_go(2, vec![at("198.51.100.7:5000")], ms(0), story.now);
    story.next();
    assert!(story.opened().iter().any(|(_, dial)| dial.from == Some(port)));
    assert!(story.turn.take(other, story.now), "whoever has dialled needs it no more");
}

#[test]
fn an_attempt_that_nobody_takes_part_in_ends() {
    let mut story = Story::new(Side::Asking, method::simultaneous::round(&INDEPENDENT));
    story.bound();
    let (look, _) = story.opened_one();
    story.look_answers(look, "203.0.113.5:4000");
    while !story.attempt.is_over() {
        story.next();
    }
    assert_eq!(story.attempt.tally(), (0, Some("the peer does not take part")));
}

#[test]
fn a_peer_that_dies_in_the_middle_leaves_nothing_open_after_two_minutes() {
    let deaths: [Death; 6] = [
        Death("before the look", |story| {
            story.bound();
        }),
        Death("before it was ready", |story| {
            story.bound();
            let (look, _) = story.opened_one();
            story.look_answers(look, "203.0.113.5:4000");
        }),
        Death("while both dialled", |story| {
            story.until_dialling(&["198.51.100.7:5000", "198.51.100.7:5001"])
        }),
        Death("after a stream came up", |story| {
            story.until_dialling(&["198.51.100.7:5000"]);
            let (id, _) = story.opened_one();
            story.with(|a, h| a.handle_opened(id, h));
            story.attempt.greeted(id, TransactionId([1; 12]), story.now);
        }),
        Death("after it had dialled us", |story| {
            story.until_dialling(&["198.51.100.7:5000"]);
            let (port, id) = (story.attempt.port.unwrap(), StreamId(1 << 31));
            assert!(story.attempt.handle_accepted(id, port, at("198.51.100.7:5001")));
            story.open.insert(format!("{id:?}"));
        }),
        Death("after everything was refused", |story| {
            story.until_dialling(&["198.51.100.7:5000"]);
            let (id, _) = story.opened_one();
            story.with(|a, h| a.handle_closed(id, &Gone::new(Why::Refused, "refused"), h));
            story.open.remove(&format!("{id:?}"));
        }),
    ];
    for Death(when, until_then) in deaths {
        for side in [Side::Asking, Side::Asked] {
            let mut story = Story::new(side, method::simultaneous::round(&INDEPENDENT));
            until_then(&mut story);
            let died = story.now;
            while let Some(at) = story.attempt.poll_timeout() {
                story.now = story.now.max(at);
                story.with(Attempt::handle_timeout);
                for order in story.orders() {
                    if let StreamOrder::Bind(port) = order {
                        story.with(|a, h| a.handle_bound(port, Bound { v4: Some(4000), v6: None }, h));
                    }
                }
            }
            assert!(story.open.is_empty(), "{when}, {side:?}: {:?}", story.open);
            assert!(story.now - died < Duration::from_secs(120), "{when}: {:?}", story.now - died);
        }
    }
}

#[test]
fn a_syn_that_the_broker_answers_is_dialled_once_and_told_with_where_it_was_seen_to_come_from() {
    let mut story = Story::new(Side::Asking, answered_round());
    story.until_dialling(&["[2001:db8::7]:5000", "198.51.100.7:5000", "198.51.100.7:5001"]);
    let (id, dial) = story.opened_one();
    assert_eq!((dial.to, dial.ttl, dial.told), (at("198.51.100.7:5000"), Some(3), true));
    let packet = linux("192.168.1.2:4000", "198.51.100.7:5000", 77, 1, 2);
    story.attempt.handle_dialled(id, &packet);
    let wanted = Dialled { round: 1, forge: true, from: at("203.0.113.5:4000"), syn: packet[20..].to_vec() };
    assert_eq!(story.attempt.poll_dialled(), Some(wanted));
    assert_eq!(story.attempt.poll_dialled(), None);
    let gone = Gone::new(Why::Refused, "refused");
    story.with(|a, h| a.handle_closed(id, &gone, h));
    story.pass(ms(500));
    assert_eq!(story.orders(), [], "another SYN would have another number");
}

#[test]
fn answers_that_were_sent_twice_and_never_came_are_lost_on_their_way() {
    for (told, arrives, lost) in [(2, false, true), (1, false, false), (2, true, false)] {
        let mut story = Story::new(Side::Asking, answered_round());
        story.until_dialling(&["198.51.100.7:5000"]);
        for round in 1..=2 {
            let (id, _) = story.opened_one();
            if round <= told {
                story.attempt.handle_both_dialled(round, true, &[]);
                story.attempt.handle_both_dialled(round + 1, true, &[]);
            }
            if arrives {
                story.with(|a, h| a.handle_opened(id, h));
            }
            story.pass(ms(2_500));
            if round == 1 {
                let orders = story.orders();
                let Some(StreamOrder::Bind(port)) = orders.last() else { panic!("{orders:?}") };
                story.with(|a, h| a.handle_bound(*port, Bound { v4: Some(4001), v6: None }, h));
                let (look, _) = story.opened_one();
                story.look_answers(look, "203.0.113.5:4001");
                story.go(&["198.51.100.7:5000"], Duration::ZERO);
            }
        }
        assert_eq!(story.attempt.has_lost_forgeries(), lost, "told {told} times");
    }
}

#[test]
fn whoever_answers_by_hand_takes_the_peers_number_and_its_own() {
    let round = Round { answer: Answer::Own, ..answered_round() };
    let mut story = Story::new(Side::Asking, round);
    story.until_dialling(&["198.51.100.7:5000"]);
    let (id, _) = story.opened_one();
    let peers = &linux("192.168.9.9:5", "203.0.113.5:4000", 5000, 1, 2)[20..];
    story.attempt.handle_both_dialled(1, false, peers);
    assert_eq!(story.orders(), [], "our own SYN has not left");
    story.attempt.handle_dialled(id, &linux("192.168.1.2:4000", "198.51.100.7:5000", 77, 1, 2));
    story.attempt.handle_both_dialled(1, true, peers);
    assert_eq!(story.orders(), [], "nobody asked for a forged one");
    story.attempt.handle_both_dialled(1, false, peers);
    let orders = story.orders();
    let [StreamOrder::Print(to, packet)] = &orders[..] else { panic!("{orders:?}") };
    let (source, destination, segment) = stun::captured::read(packet).unwrap();
    assert_eq!((source, destination), (at("192.168.1.2:4000"), at("198.51.100.7:5000")));
    assert_eq!(IpAddr::from(*to), destination.ip());
    assert_eq!((segment.sequence, segment.acknowledgment), (77, 5001));
}

/// STUNT-1, two routers away from the outside.
fn answered_round() -> Round {
    let able = Profile { tcp: INDEPENDENT, forged: Forged::Able, hops: Some(2), ..Profile::default() };
    method::stunt1::round(&able, &able).unwrap()
}

const INDEPENDENT: Behavior = Behavior {
    passes: Some(true),
    mapping: Mapping::EndpointIndependent,
    filtering: crate::nat::behavior::Filtering::AddressAndPortDependent,
    ports: PortAssignment::Preserved,
    reaction: crate::nat::behavior::Reaction::Drop,
    hairpin: None,
    paired: None,
    lifetime: None,
};
const BROKER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 6060);
const KEY: [u8; 32] = [3; 32];

/// When a peer dies, and how far the story goes until then.
struct Death(&'static str, fn(&mut Story));

struct Story {
    attempt: Attempt,
    now: Instant,
    rng: Rng,
    next: u32,
    turn: Turn,
    /// Streams and ports that were ordered and not given back.
    open: BTreeSet<String>,
}

impl Story {
    /// An attempt that is to begin now, with the same round twice.
    fn new(side: Side, round: Round) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
        let now = Instant::now();
        let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
        let keys = PairKeys::new(&mut Agreements::new(a), b.public(), AttemptId([7; 16]), side).unwrap();
        let observer = Observer { at: BROKER, registration: RegistrationId(9), key: KEY };
        let plan = Plan {
            own: INDEPENDENT,
            public: Vec::new(),
            observer: Some(observer),
            targets: Vec::new(),
            rounds: vec![round; 2],
            first: 0,
        };
        let attempt = Attempt::new(keys, plan, now);
        Self {
            attempt,
            now,
            rng: Rng::new(Seed([0; 32])),
            next: 1,
            turn: Turn::default(),
            open: BTreeSet::new(),
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Attempt, &mut Hands<'_>) -> T) -> T {
        let mut hands =
            Hands { now: self.now, rng: &mut self.rng, next: &mut self.next, turn: &mut self.turn };
        act(&mut self.attempt, &mut hands)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.with(Attempt::handle_timeout);
    }

    /// To the next deadline.
    fn next(&mut self) {
        if let Some(at) = self.attempt.poll_timeout() {
            self.now = self.now.max(at);
            self.with(Attempt::handle_timeout);
        }
    }

    fn orders(&mut self) -> Vec<StreamOrder> {
        let orders: Vec<StreamOrder> = std::iter::from_fn(|| self.attempt.poll_order()).collect();
        for order in &orders {
            match order {
                StreamOrder::Open(id, _) => drop(self.open.insert(format!("{id:?}"))),
                StreamOrder::Bind(port) => drop(self.open.insert(format!("{port:?}"))),
                StreamOrder::Close(id) => drop(self.open.remove(&format!("{id:?}"))),
                StreamOrder::Unbind(port) => drop(self.open.remove(&format!("{port:?}"))),
                StreamOrder::RaiseTtl(_)
                | StreamOrder::Print(..)
                | StreamOrder::OpenUdp(_)
                | StreamOrder::CloseUdp(_) => {}
            }
        }
        orders
    }

    fn opened(&mut self) -> Vec<(StreamId, Dial)> {
        let opened = |order| if let StreamOrder::Open(id, dial) = order { Some((id, dial)) } else { None };
        self.orders().into_iter().filter_map(opened).collect()
    }

    fn opened_one(&mut self) -> (StreamId, Dial) {
        let opened = self.opened();
        assert_eq!(opened.len(), 1, "{opened:?}");
        opened[0]
    }

    fn bound(&mut self) -> PortId {
        self.pass(Duration::ZERO);
        let orders = self.orders();
        let [StreamOrder::Bind(port)] = orders[..] else { panic!("{orders:?}") };
        self.with(|a, h| a.handle_bound(port, Bound { v4: Some(4000), v6: None }, h));
        port
    }

    fn look_answers(&mut self, look: StreamId, mapped: &str) {
        let Opened::Ask(to, question) = self.with(|a, h| a.handle_opened(look, h)) else {
            panic!("no question")
        };
        assert_eq!(to, BROKER);
        self.now += ms(80);
        let question = stun::Received::parse(&question).unwrap();
        assert!(question.is_authentic(&KEY));
        let answer = question.message.success().with(stun::Attribute::XorMappedAddress(at(mapped)));
        let answer = answer.emit(stun::Integrity::Sha256(&KEY));
        assert!(self.with(|a, h| a.handle_frame(look, &answer, h)));
    }

    fn go(&mut self, endpoints: &[&str], wait: Duration) {
        let endpoints = endpoints.iter().map(|endpoint| at(endpoint)).collect();
        let round = u8::try_from(self.attempt.at + 1).unwrap();
        self.attempt.handle_go(round, endpoints, wait, self.now);
        self.with(Attempt::handle_timeout);
    }

    fn until_dialling(&mut self, endpoints: &[&str]) {
        self.bound();
        let (look, _) = self.opened_one();
        self.look_answers(look, "203.0.113.5:4000");
        self.attempt.poll_ready().unwrap();
        self.go(endpoints, Duration::ZERO);
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
