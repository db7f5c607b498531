//! Stories of one search, with a clock that jumps and two NATs that step.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::*;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::punch::turn::Turn;

const ATTEMPT: AttemptId = AttemptId([7; 16]);

#[test]
fn a_port_that_steps_is_found_between_two_looks_however_busy_the_nat_is_afterwards() {
    let (mut anna, mut bert) = (Side::new(1, Part::Between(1)), Side::new(2, Part::Told));
    let knocked = anna.act().knocked.expect("a knock at the peer's door");
    assert_eq!(bert.act().knocked, None);
    assert_eq!(bert.ready(), Some((FIRST_ROUND, vec![bert.nat.common])));
    anna.answer();
    anna.nat.last += 40;
    let (round, endpoints) = anna.ready().expect("both looks are answered");
    assert_eq!((round, &endpoints[..]), (FIRST_ROUND, &[knocked][..]));
    bert.go(round, endpoints);
    anna.go(round, vec![bert.nat.common]);
    assert_eq!(bert.act().checked, [(bert.nat.common, knocked)]);
    assert_eq!(anna.act().checked, [(knocked, bert.nat.common)], "from the port that was knocked with");
}

#[test]
fn what_the_nat_does_between_the_looks_makes_the_range_wider_and_not_wrong() {
    let mut anna = Side::new(1, Part::Between(-3));
    anna.nat.step = -3;
    anna.nat.busy = 1;
    let knocked = anna.act().knocked.unwrap();
    anna.answer();
    let (_, endpoints) = anna.ready().unwrap();
    assert_eq!(endpoints.len(), 3, "one of its own, and two of others: {endpoints:?}");
    assert!(endpoints.contains(&knocked));
}

#[test]
fn two_nats_that_step_are_met_where_both_guesses_agree() {
    let (mut anna, mut bert) = (Side::new(1, Part::Next(1)), Side::new(2, Part::Next(2)));
    bert.nat.step = 2;
    for side in [&mut anna, &mut bert] {
        side.act();
        side.answer();
    }
    let (of_anna, of_bert) = (anna.ready().unwrap(), bert.ready().unwrap());
    anna.go(FIRST_ROUND, of_bert.1);
    bert.go(FIRST_ROUND, of_anna.1);
    let (there, back) = (anna.act().checked, bert.act().checked);
    assert_eq!(there.len(), MAX_ENDPOINTS);
    assert!(
        there.iter().zip(&back).all(|(a, b)| *a == (b.1, b.0)),
        "each meets its counterpart: {there:?} {back:?}"
    );
}

#[test]
fn a_look_that_is_lost_is_made_again_with_the_same_ports_and_a_round_without_any_is_followed_by_another() {
    let mut anna = Side::new(1, Part::Between(1));
    let first = anna.act().knocked.unwrap();
    anna.questions.clear();
    anna.until_due();
    assert_eq!(anna.act().knocked, Some(first), "the mappings live on");
    anna.questions.clear();
    let mut sockets = 1;
    while anna.search.is_open() {
        anna.until_due();
        sockets += usize::from(anna.act().knocked.is_some_and(|knocked| knocked != first));
        anna.questions.clear();
    }
    assert!(sockets > 1, "a second round with sockets of its own");
    assert_eq!(anna.search.poll_timeout(), None);
    assert!((LOOK_LIMIT * 2..LOOK_LIMIT * 3).contains(&(anna.now - anna.began)), "and then it is over");
}

#[test]
fn numbers_that_begin_anew_between_the_looks_cost_a_round_and_no_wrong_guess() {
    let mut anna = Side::new(1, Part::Between(1));
    anna.act();
    anna.nat.last = 20_000;
    let restarted: Vec<_> = anna.questions.iter().rev().take(1).copied().collect();
    anna.nat.mappings.retain(|(socket, _), _| *socket != restarted[0].0);
    anna.answer();
    assert_eq!(anna.ready(), None);
    anna.act();
    anna.answer();
    assert_eq!(anna.ready().unwrap().0, FIRST_ROUND + 1);
}

#[test]
fn the_side_that_is_ahead_calls_the_other_one_into_its_round() {
    let mut bert = Side::new(2, Part::Told);
    bert.act();
    assert_eq!(bert.ready().unwrap().0, FIRST_ROUND);
    bert.with(|search, hands| search.handle_awaited(FIRST_ROUND + 1, hands));
    assert_eq!(bert.ready().unwrap().0, FIRST_ROUND + 1);
    bert.with(|search, hands| search.handle_awaited(FIRST_ROUND, hands));
    assert_eq!(bert.ready(), None, "never back");
    bert.with(|search, hands| search.handle_awaited(FIRST_ROUND + 9, hands));
    assert!(!bert.search.is_open(), "there is no such round");
}

#[test]
fn guesses_wait_for_their_turn_and_an_answer_of_a_stranger_is_none() {
    let mut anna = Side::new(1, Part::Next(1));
    assert!(anna.turn.take(AttemptId([1; 16]), anna.now));
    anna.act();
    assert!(anna.questions.is_empty(), "another attempt has the turn");
    anna.turn.end(AttemptId([1; 16]), anna.now);
    anna.until_due();
    anna.act();
    let (socket, transaction) = anna.questions[0];
    let message = stun::Message::request(stun::BINDING, transaction).success();
    let answer = message.with(stun::Attribute::XorMappedAddress(anna.nat.common)).emit(stun::Integrity::None);
    let received = stun::Received::parse(&answer).unwrap();
    let stranger = at(9, 1);
    assert!(!anna.with(|search, hands| search.handle_answer(socket, stranger, &received, hands)));
    assert_eq!(anna.ready(), None);
}

#[test]
fn random_ports_are_met_by_many_sockets_and_many_guesses_and_no_more_than_that() {
    let (mut anna, mut bert) = (Side::new(1, Part::Many), Side::new(2, Part::Sweep));
    anna.nat.random = Some(Rng::new(Seed([3; 32])));
    anna.act();
    anna.answer();
    bert.act();
    let (of_anna, of_bert) = (anna.ready().unwrap(), bert.ready().unwrap());
    assert_eq!(of_anna.1.len(), MAX_ENDPOINTS, "where its ports lie");
    anna.go(FIRST_ROUND, of_bert.1);
    bert.go(FIRST_ROUND, of_anna.1);
    anna.until_over();
    bert.until_over();
    let open: BTreeSet<SocketAddr> = anna.knocked.iter().map(|(from, _)| *from).collect();
    assert_eq!((open.len(), anna.knocked.len()), (SOCKETS, SOCKETS));
    assert!(anna.knocked.iter().all(|(_, to)| *to == bert.nat.common));
    let tried: BTreeSet<SocketAddr> = bert.knocked.iter().map(|(_, to)| *to).collect();
    assert_eq!((tried.len(), bert.knocked.len()), (1024, 1024), "none twice");
    assert!(bert.now - bert.began >= SWEEP_PACE * 1023, "paced");
    let met = bert.knocked.iter().position(|(_, to)| open.contains(to)).expect("98 times of 100");
    assert!(met < 1024, "{met}");
}

#[test]
fn a_sweep_goes_to_the_address_that_the_broker_saw_and_keeps_to_a_range_that_is_wide_enough() {
    let rng = &mut Rng::new(Seed([0; 32]));
    for (seen, first, count) in [
        (&[][..], 1024, 64_512),
        (&[40_000, 50_000, 45_000], 40_000, 10_001),
        (&[40_000, 40_100], 1024, 64_512),
        (&[1, 65_535], 1024, 64_512),
    ] {
        let sweep = Sweep::new(at(1, 1).ip(), seen, rng);
        assert_eq!((sweep.first, sweep.count), (first, count), "{seen:?}");
        assert!(sweep.clone().all(|to| to.port() >= first && u32::from(to.port() - first) < count));
        assert_eq!(sweep.map(|to| to.port()).collect::<BTreeSet<_>>().len(), 1024);
    }
    let mut bert = Side::new(2, Part::Sweep);
    bert.act();
    bert.go(FIRST_ROUND, vec![at(77, 40_000), at(77, 50_000)]);
    bert.until_over();
    assert!(bert.knocked.iter().all(|(_, to)| to.ip() == at(1, 1).ip()), "whatever the peer says");
}

/// One member with its NAT, which gives every destination the port after the last one.
struct Side {
    search: Search,
    nat: Nat,
    now: Instant,
    began: Instant,
    rng: Rng,
    next: u32,
    turn: Turn,
    /// Looks that were not answered yet.
    questions: Vec<(SocketId, TransactionId)>,
    /// Knocks of its whole life, by what they look like outside.
    knocked: Vec<(SocketAddr, SocketAddr)>,
}

struct Nat {
    /// Where the broker sees the data socket.
    common: SocketAddr,
    last: i32,
    step: i32,
    /// Mappings of others after each of ours.
    busy: i32,
    /// Whether it gives out any port instead.
    random: Option<Rng>,
    mappings: BTreeMap<(SocketId, SocketAddr), SocketAddr>,
}

/// What left, by what it looks like outside.
#[derive(Default)]
struct Left {
    knocked: Option<SocketAddr>,
    checked: Vec<(SocketAddr, SocketAddr)>,
}

impl Side {
    fn new(number: u8, part: Part) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
        let now = Instant::now();
        let terms = Terms { broker: at(200, 6060), mapped: at(number, 4000), peer: at(3 - number, 4000) };
        let common = at(number, 4000);
        let nat = Nat { common, last: 30_000, step: 1, busy: 0, random: None, mappings: BTreeMap::new() };
        let rng = Rng::new(Seed([number; 32]));
        let search = Search::new(ATTEMPT, part, terms, now);
        let turn = Turn::default();
        Self { search, nat, now, began: now, rng, next: 2, turn, questions: Vec::new(), knocked: Vec::new() }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Search, &mut Hands<'_>) -> T) -> T {
        let mut hands =
            Hands { now: self.now, rng: &mut self.rng, next: &mut self.next, turn: &mut self.turn };
        act(&mut self.search, &mut hands)
    }

    /// Does what is due, and sends it through the NAT.
    fn act(&mut self) -> Left {
        self.with(Search::handle_timeout);
        let mut left = Left::default();
        while let Some(deed) = self.search.poll_deed() {
            match deed {
                Deed::Open(_) => {}
                Deed::Ask(socket, to, _) => {
                    self.nat.out(socket, to);
                    let look = self.search.looks.iter().find(|look| look.socket == socket).unwrap();
                    self.questions.push((socket, look.transaction));
                }
                Deed::Knock(socket, to) => {
                    let from = self.nat.out(socket, to);
                    self.knocked.push((from, to));
                    left.knocked = Some(from);
                }
                Deed::Check(Via::Udp(SocketId::V4), to) => left.checked.push((self.nat.common, to)),
                Deed::Check(Via::Udp(socket), to) => left.checked.push((self.nat.out(socket, to), to)),
                Deed::Check(Via::Stream(_), _) => panic!("a search has no streams"),
            }
        }
        left
    }

    /// The broker answers all looks.
    fn answer(&mut self) {
        for (socket, transaction) in std::mem::take(&mut self.questions) {
            let broker = self.search.terms.broker;
            let seen = self.nat.out(socket, broker);
            let message = stun::Message::request(stun::BINDING, transaction).success();
            let answer = message.with(stun::Attribute::XorMappedAddress(seen)).emit(stun::Integrity::None);
            let received = stun::Received::parse(&answer).unwrap();
            self.with(|search, hands| search.handle_answer(socket, broker, &received, hands));
        }
    }

    fn ready(&mut self) -> Option<(u8, Vec<SocketAddr>)> {
        self.search.poll_ready().map(|ready| (ready.round, ready.endpoints))
    }

    fn go(&mut self, round: u8, endpoints: Vec<SocketAddr>) {
        self.search.handle_go(round, endpoints, Duration::ZERO, self.now);
    }

    fn until_over(&mut self) {
        while self.search.is_open() {
            self.act();
            self.until_due();
        }
    }

    fn until_due(&mut self) {
        self.now = self.search.poll_timeout().unwrap_or(self.now);
    }
}

impl Nat {
    fn out(&mut self, socket: SocketId, to: SocketAddr) -> SocketAddr {
        if socket == SocketId::V4 {
            return self.common;
        }
        *self.mappings.entry((socket, to)).or_insert_with(|| {
            if let Some(rng) = &mut self.random {
                let port = 1024 + u16::try_from(rng.below(64_512)).unwrap();
                return SocketAddr::new(self.common.ip(), port);
            }
            self.last += self.step;
            let port = u16::try_from(self.last).unwrap();
            self.last += self.step * self.busy;
            SocketAddr::new(self.common.ip(), port)
        })
    }
}

fn at(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, host], port))
}
