//! Stories about the broker, with a jumping clock, and what the inline tests of its parts share.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::addr::OverlayAddrs;
use crate::base::id::AttemptId;
use crate::base::id::RegistrationId;
use crate::base::id::RequestId;
use crate::base::rng::Seed;
use crate::base::time::Now;
use crate::base::time::UnixTime;
use crate::broker::directory::Directory;
use crate::broker::registry::Action;
use crate::broker::registry::Broker;
use crate::broker::registry::ConnId;
use crate::broker::registry::Ended;
use crate::broker::registry::Settings;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Roles;
use crate::identity::certificate::Serial;
use crate::identity::certificate::Subject;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberUri;
use crate::identity::revocation::RevocationList;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::Transport;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MemberRecord;
use crate::wire::broker::Offer;
use crate::wire::broker::Refusal;
use crate::wire::broker::Register;
use crate::wire::broker::RelayDelay;
use crate::wire::broker::Target;
use crate::wire::broker::ToBroker;
use crate::wire::stun::captured;
use crate::wire::syn;

const DAY: u64 = 24 * 3600;
const START: u64 = 20_000 * DAY;

/// Some moment to count from; every certificate of these tests is a day old then.
#[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
pub(crate) fn origin() -> Now {
    Now { instant: Instant::now(), unix: UnixTime::from_secs(START) }
}

/// A member's certificate that nobody signed; `n` makes its address and its keys.
pub(crate) fn certificate(name: &str, n: u8) -> Certificate {
    let subject = Subject {
        uri: MemberUri { network: "home".parse().unwrap(), name: name.parse().unwrap() },
        roles: Roles::MEMBER,
        addrs: Some(OverlayAddrs {
            v4: Ipv4Addr::new(10, 77, 0, n),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x0a4d, n.into()),
        }),
        groups: Vec::new(),
        wg: WgPublic([n; 32]),
    };
    Certificate {
        subject,
        serial: Serial([n; 16]),
        not_before: UnixTime::from_secs(START - DAY),
        not_after: UnixTime::from_secs(START + 90 * DAY),
        key: [n; 32],
        der: [name.as_bytes(), &[n]].concat(),
    }
}

struct Story {
    broker: Broker,
    now: Now,
    out: Vec<Action>,
}

const ANNA: ConnId = ConnId(1);
const BERT: ConnId = ConnId(2);

impl Story {
    fn new() -> Self {
        let settings = Settings {
            key: SigningKey::from_seed(&[1; 32]),
            prefix: "10.77.0.0/16".parse().unwrap(),
            prefix_v6: "fd00::/64".parse().unwrap(),
            advertised_udp: vec!["192.0.2.1:6060".parse().unwrap()],
            udp_port: Some(6060),
            forge: true,
        };
        let (directory, list) = (Directory::default(), RevocationList::default());
        let broker = Broker::new(settings, directory, list, Vec::new(), Seed([3; 32]));
        Self { broker, now: origin(), out: Vec::new() }
    }

    /// Anna and Bert, both registered, Anna watching.
    fn with_two() -> Self {
        let mut story = Self::new();
        story.join(ANNA, certificate("anna", 1), true);
        story.join(BERT, certificate("bert", 2), false);
        story.out.clear();
        story
    }

    fn connect(&mut self, conn: ConnId, certificate: Certificate) -> Option<RegistrationId> {
        let source = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 1), 40_000));
        let local = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 6060));
        self.broker.handle_connected(conn, certificate, source, local, &mut self.out)
    }

    fn join(&mut self, conn: ConnId, certificate: Certificate, watch: bool) -> RegistrationId {
        let registration = self.connect(conn, certificate).unwrap();
        self.say(conn, ToBroker::Register(Register { watch, ..register() }));
        registration
    }

    /// A relay that is wherever the broker sees it.
    fn join_relay(&mut self, conn: ConnId, name: &str, n: u8) {
        let mut certificate = certificate(name, n);
        certificate.subject.roles = Roles::RELAY;
        certificate.subject.addrs = None;
        self.connect(conn, certificate);
        let endpoint = Candidate { kind: Kind::Configured, ..udp("0.0.0.0:6061") };
        self.say(conn, ToBroker::Register(Register { relay: vec![endpoint], ..register() }));
    }

    fn say(&mut self, conn: ConnId, message: ToBroker) {
        self.broker.handle_message(conn, message, self.now, &mut self.out);
    }

    fn sent(&mut self, to: ConnId) -> Vec<FromBroker> {
        let mut sent = Vec::new();
        self.out.retain(|action| match action {
            Action::Send(conn, message) if *conn == to => {
                sent.push(message.clone());
                false
            }
            _ => true,
        });
        sent
    }

    fn offers(&mut self, to: ConnId) -> Vec<Offer> {
        let sent = self.sent(to).into_iter();
        sent.filter_map(|m| if let FromBroker::Offer(offer) = m { Some(offer) } else { None }).collect()
    }

    fn listing(&mut self, to: ConnId) -> (Vec<MemberRecord>, bool) {
        match self.sent(to).pop() {
            Some(FromBroker::Listing { members, more, .. }) => (members, more),
            other => unreachable!("a listing was asked for, not {other:?}"),
        }
    }

    fn refusals(&mut self, to: ConnId) -> Vec<(RequestId, Refusal)> {
        let refusal = |m| match m {
            FromBroker::Refused { request, why, .. } => Some((request, why)),
            _ => None,
        };
        self.sent(to).into_iter().filter_map(refusal).collect()
    }

    fn ended(&self, conn: ConnId) -> Option<Ended> {
        self.out.iter().find_map(|action| match action {
            Action::Close(id, why) if *id == conn => Some(*why),
            _ => None,
        })
    }

    fn ask_for_bert(&mut self, request: u32) {
        let target = Target::Name("bert".parse().unwrap());
        self.say(ANNA, ToBroker::Connect { request: RequestId(request), target, noise: vec![7; 148] });
    }
}

fn register() -> Register {
    Register {
        software: "test".to_owned(),
        candidates: vec![udp("192.168.1.2:5000"), udp("127.0.0.1:5000"), udp("10.77.0.9:5000")],
        profile: Profile::default(),
        relay: vec![],
        revocations: 0,
        watch: false,
    }
}

fn udp(addr: &str) -> Candidate {
    Candidate { transport: Transport::Udp, kind: Kind::Host, addr: addr.parse().unwrap() }
}

#[test]
fn who_registers_hears_of_the_stun_servers_as_they_stand_then() {
    let mut story = Story::new();
    let told = |out: &[Action]| {
        out.iter().find_map(|action| match action {
            Action::Send(_, FromBroker::Registered(registered)) => Some(registered.stun.clone()),
            _ => None,
        })
    };
    story.join(ANNA, certificate("anna", 1), false);
    assert_eq!(told(&story.out), Some(vec![]));
    let servers: Vec<SocketAddr> = vec!["192.0.2.9:3478".parse().unwrap(), "0.0.0.0:3478".parse().unwrap()];
    story.broker.handle_stun_servers(servers.clone());
    story.out.clear();
    story.join(BERT, certificate("bert", 2), false);
    assert_eq!(told(&story.out), Some(servers));
}

#[test]
fn both_sides_of_an_introduction_get_one_name_and_the_other_side() {
    let mut s = Story::with_two();
    s.ask_for_bert(5);
    let (a, b) = (s.offers(ANNA).remove(0), s.offers(BERT).remove(0));
    assert_eq!(a.attempt, b.attempt);
    assert_eq!((a.request, b.request), (Some(RequestId(5)), None));
    assert_eq!(
        (a.noise.len(), b.noise.len()),
        (0, 148),
        "the handshake rides to the side that was asked for"
    );
    assert_eq!((a.peer.certificate, b.peer.certificate), (b"bert\x02".to_vec(), b"anna\x01".to_vec()));
    assert_eq!(a.candidates, [udp("192.168.1.2:5000")], "unfit candidates were never told");
    s.ask_for_bert(6);
    assert_ne!(s.offers(ANNA).remove(0).attempt, a.attempt);
}

#[test]
fn the_mapped_address_of_a_udp_registration_is_in_the_next_offer() {
    let mut s = Story::with_two();
    let registration = s.join(BERT, certificate("bert", 2), false);
    s.out.clear();
    let mapped: SocketAddr = "203.0.113.9:700".parse().unwrap();
    s.broker.handle_mapped(registration, mapped, s.now, &mut s.out);
    assert!(matches!(s.sent(ANNA).as_slice(), [FromBroker::Changed(_)]), "watchers hear of it");
    s.broker.handle_mapped(registration, mapped, s.now, &mut s.out);
    assert_eq!(s.sent(ANNA), [], "but not of what did not change");
    s.ask_for_bert(1);
    let first = s.offers(ANNA)[0].candidates[0];
    assert_eq!(first, Candidate { kind: Kind::Mapped, addr: mapped, ..first });
}

#[test]
fn a_member_on_the_brokers_own_machine_is_looked_for_where_the_broker_is_reached() {
    let mut s = Story::with_two();
    let registration = s.join(BERT, certificate("bert", 2), false);
    for (seen, told) in [("127.0.0.1:4500", "192.0.2.1:4500"), ("203.0.113.9:700", "203.0.113.9:700")] {
        s.broker.handle_mapped(registration, seen.parse().unwrap(), s.now, &mut s.out);
        s.out.clear();
        s.ask_for_bert(1);
        let mapped = |c: &&Candidate| c.kind == Kind::Mapped;
        let offered: Vec<SocketAddr> =
            s.offers(ANNA)[0].candidates.iter().filter(mapped).map(|c| c.addr).collect();
        assert_eq!(offered, [told.parse().unwrap()]);
    }
}

#[test]
fn a_relay_on_the_brokers_own_machine_is_offered_where_the_broker_is_reached() {
    let mut s = Story::with_two();
    let mut cert = certificate("r", 9);
    (cert.subject.roles, cert.subject.addrs) = (Roles::RELAY, None);
    let (source, local) = ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:6060".parse().unwrap());
    s.broker.handle_connected(ConnId(3), cert, source, local, &mut s.out).unwrap();
    let endpoint = Candidate { kind: Kind::Configured, ..udp("0.0.0.0:6061") };
    s.say(ConnId(3), ToBroker::Register(Register { relay: vec![endpoint], ..register() }));
    s.out.clear();
    s.ask_for_bert(1);
    assert_eq!(s.offers(ANNA)[0].relays[0].endpoints[0].addr, "192.0.2.1:6061".parse().unwrap());
}

#[test]
fn a_second_connection_of_the_same_member_ends_the_first() {
    let mut s = Story::with_two();
    s.join(ConnId(3), certificate("bert", 2), false);
    assert_eq!(s.ended(BERT), Some(Ended::Replaced));
    s.out.clear();
    s.broker.handle_closed(BERT, s.now, &mut s.out);
    assert_eq!(s.out, [], "the end of the first does not make the member leave");
    s.ask_for_bert(1);
    assert_eq!(s.offers(ConnId(3)).len(), 1);
}

#[test]
fn watchers_hear_of_coming_and_going() {
    let mut s = Story::new();
    s.join(ANNA, certificate("anna", 1), true);
    s.out.clear();
    s.join(BERT, certificate("bert", 2), false);
    s.broker.handle_closed(BERT, s.now, &mut s.out);
    let online: Vec<bool> = s
        .sent(ANNA)
        .into_iter()
        .filter_map(|m| if let FromBroker::Changed(record) = m { Some(record.online) } else { None })
        .collect();
    assert_eq!(online, [true, false]);
    assert!(s.out.contains(&Action::Gone("bert".parse().unwrap(), s.now.unix)));
}

#[test]
fn whoever_is_not_there_cannot_be_met_and_the_answer_says_which() {
    let mut s = Story::with_two();
    s.broker.handle_closed(BERT, s.now, &mut s.out);
    s.out.clear();
    for (target, wanted) in [
        (Target::Name("bert".parse().unwrap()), Refusal::Offline),
        (Target::Addr("10.77.0.2".parse().unwrap()), Refusal::Offline),
        (Target::Name("carl".parse().unwrap()), Refusal::NotFound),
        (Target::Addr("10.77.0.1".parse().unwrap()), Refusal::Malformed),
    ] {
        s.say(ANNA, ToBroker::Connect { request: RequestId(1), target, noise: vec![] });
        assert_eq!(s.refusals(ANNA), [(RequestId(1), wanted)]);
    }
}

#[test]
fn four_handshake_messages_a_side_may_pass_and_no_stranger_joins_in() {
    let mut s = Story::with_two();
    let carl = ConnId(3);
    s.join(carl, certificate("carl", 3), false);
    s.ask_for_bert(1);
    let attempt = s.offers(ANNA)[0].attempt;
    s.out.clear();
    s.say(carl, ToBroker::Convey { attempt, noise: vec![1] });
    assert_eq!(s.refusals(carl), [(RequestId(0), Refusal::NotFound)]);
    for n in 0..5 {
        s.say(BERT, ToBroker::Convey { attempt, noise: vec![n] });
    }
    assert_eq!(s.sent(ANNA).len(), 4);
    assert_eq!(s.refusals(BERT), [(RequestId(0), Refusal::TooMany)]);
    s.say(ANNA, ToBroker::Convey { attempt, noise: vec![9] });
    assert_eq!(
        s.sent(BERT),
        [FromBroker::Conveyed { attempt, noise: vec![9] }],
        "each side has its own four"
    );
}

#[test]
fn both_sides_of_a_punch_begin_when_both_are_ready() {
    let mut s = Story::with_two();
    let carl = ConnId(3);
    s.join(carl, certificate("carl", 3), false);
    s.ask_for_bert(1);
    let attempt = s.offers(ANNA)[0].attempt;
    s.out.clear();
    let ready = |endpoints: &[&str], rtt| {
        let endpoints = endpoints.iter().map(|at| at.parse().unwrap()).collect();
        ToBroker::Ready { attempt, round: 1, endpoints, rtt }
    };
    s.say(carl, ready(&["203.0.113.9:4000"], 1));
    assert_eq!(s.refusals(carl), [(RequestId(0), Refusal::NotFound)], "it is not his");
    s.say(ANNA, ready(&["203.0.113.1:4000", "203.0.113.1:22", "127.0.0.1:4000", "10.77.0.9:4000"], 30));
    assert_eq!(s.sent(BERT), [FromBroker::Awaited { attempt, round: 1 }]);
    s.out.clear();
    s.say(BERT, ready(&["203.0.113.2:5000"], 10));
    let go = |endpoint: &str, wait| FromBroker::Go {
        attempt,
        round: 1,
        endpoints: vec![endpoint.parse().unwrap()],
        wait,
    };
    assert_eq!(s.sent(ANNA), [go("203.0.113.2:5000", 0)]);
    assert_eq!(s.sent(BERT), [go("203.0.113.1:4000", 10)], "only what is fit to be dialled");
}

#[test]
fn an_attempt_is_forgotten_after_half_a_minute() {
    let mut s = Story::with_two();
    s.ask_for_bert(1);
    let attempt = s.offers(ANNA)[0].attempt;
    s.now = s.now.plus(Duration::from_secs(30));
    s.broker.handle_timeout(s.now, &mut s.out);
    s.out.clear();
    s.say(BERT, ToBroker::Convey { attempt, noise: vec![1] });
    assert_eq!(s.refusals(BERT), [(RequestId(0), Refusal::NotFound)]);
}

#[test]
fn introductions_are_limited_and_reconnecting_does_not_help() {
    let mut s = Story::with_two();
    for n in 0..40 {
        s.ask_for_bert(n);
    }
    assert_eq!(s.refusals(ANNA), (32..40).map(|n| (RequestId(n), Refusal::TooMany)).collect::<Vec<_>>());
    s.broker.handle_closed(ANNA, s.now, &mut s.out);
    s.broker.handle_timeout(s.now, &mut s.out);
    s.join(ANNA, certificate("anna", 1), false);
    s.out.clear();
    s.ask_for_bert(50);
    assert_eq!(s.refusals(ANNA), [(RequestId(50), Refusal::TooMany)]);
    s.now = s.now.plus(Duration::from_secs(1));
    s.ask_for_bert(51);
    assert_eq!(s.offers(ANNA).len(), 1);
}

#[test]
fn a_revoked_member_is_cut_off_and_everybody_hears_of_it() {
    let mut s = Story::with_two();
    let list = RevocationList { version: 1, issued: s.now.unix, serials: vec![Serial([2; 16])] };
    s.broker.handle_revocations(list, b"signed".to_vec(), s.now, &mut s.out);
    assert_eq!(s.ended(BERT), Some(Ended::Revoked));
    assert_eq!(s.sent(ANNA)[0], FromBroker::Revocations(b"signed".to_vec()));
    assert_eq!(s.sent(BERT)[0], FromBroker::Revocations(b"signed".to_vec()), "also the one it is about");
    s.out.clear();
    assert_eq!(s.connect(ConnId(3), certificate("bert", 2)), None);
    assert_eq!(s.ended(ConnId(3)), Some(Ended::Revoked));
    s.ask_for_bert(1);
    assert_eq!(s.refusals(ANNA), [(RequestId(1), Refusal::NotFound)]);
}

#[test]
fn an_older_revocation_list_brings_nobody_back() {
    let mut s = Story::with_two();
    let list = |version, serials| RevocationList { version, issued: UnixTime::from_secs(START), serials };
    s.broker.handle_revocations(list(2, vec![Serial([2; 16])]), vec![2], s.now, &mut s.out);
    s.out.clear();
    s.broker.handle_revocations(list(1, vec![]), vec![1], s.now, &mut s.out);
    assert_eq!((s.broker.revocations().version, s.out.len()), (2, 0));
}

#[test]
fn whoever_holds_an_older_list_gets_the_newer_one_when_it_registers() {
    let mut s = Story::new();
    let list = RevocationList { version: 3, issued: s.now.unix, serials: vec![] };
    s.broker.handle_revocations(list, b"signed".to_vec(), s.now, &mut s.out);
    for (held, wanted) in [(2, 1), (3, 0)] {
        s.connect(ANNA, certificate("anna", 1));
        s.say(ANNA, ToBroker::Register(Register { revocations: held, ..register() }));
        let pushed = s.sent(ANNA).iter().filter(|m| matches!(m, FromBroker::Revocations(_))).count();
        assert_eq!(pushed, wanted, "held {held}");
    }
}

#[test]
fn a_connection_ends_when_its_certificate_runs_out() {
    let mut s = Story::with_two();
    s.now = s.now.plus(Duration::from_secs(91 * DAY));
    s.broker.handle_timeout(s.now, &mut s.out);
    assert_eq!((s.ended(ANNA), s.ended(BERT)), (Some(Ended::Expired), Some(Ended::Expired)));
    assert_eq!(s.broker.online(), 0);
}

#[test]
fn nothing_comes_before_register_so_that_no_connection_lives_beside_the_registered_one() {
    for message in [ToBroker::Ping { nonce: 4 }, ToBroker::List { request: RequestId(1), after: None }] {
        let mut s = Story::new();
        s.connect(ANNA, certificate("anna", 1));
        s.say(ANNA, message);
        assert_eq!(s.ended(ANNA), Some(Ended::Misbehaved));
        assert!(s.sent(ANNA).iter().all(|m| matches!(m, FromBroker::Refused { .. })));
    }
}

#[test]
fn a_list_comes_in_pages_and_leaves_servers_out() {
    let mut s = Story::new();
    s.join(ANNA, certificate("anna", 250), false);
    for n in 0..40 {
        s.broker.handle_enrolled(certificate(&format!("m{n:02}"), n + 1), s.now);
    }
    let mut relay = certificate("a-relay", 200);
    relay.subject.roles = Roles::RELAY;
    relay.subject.addrs = None;
    s.broker.handle_enrolled(relay, s.now);
    s.out.clear();
    s.say(ANNA, ToBroker::List { request: RequestId(1), after: None });
    let (members, more) = s.listing(ANNA);
    assert!(more);
    assert_eq!(members.len(), 32);
    assert_eq!(members[0].certificate, certificate("anna", 250).der);
    s.say(ANNA, ToBroker::List { request: RequestId(2), after: Some("m30".parse().unwrap()) });
    let (members, more) = s.listing(ANNA);
    assert_eq!((members.len(), more), (9, false));
}

#[test]
fn a_remote_relay_is_offered_with_a_session_for_both_and_a_token_for_each() {
    let mut s = Story::with_two();
    let relay = ConnId(3);
    s.join_relay(relay, "r", 9);
    s.out.clear();
    s.ask_for_bert(1);
    let (a, b) = (s.offers(ANNA).remove(0).relays, s.offers(BERT).remove(0).relays);
    assert_eq!((a.len(), b.len()), (1, 1));
    assert_eq!(a[0].session, b[0].session);
    assert_ne!(a[0].token, b[0].token);
    assert_eq!(a[0].endpoints[0].addr, "198.51.100.1:6061".parse().unwrap(), "where the broker sees it");
    s.broker.handle_closed(relay, s.now, &mut s.out);
    s.ask_for_bert(2);
    assert_eq!(s.offers(ANNA)[0].relays, [], "a relay that is gone is not offered");
}

#[test]
fn members_are_asked_how_far_the_relays_are_once_there_is_a_choice_and_the_nearest_is_offered_first() {
    let mut s = Story::with_two();
    let asked = |s: &mut Story, to: ConnId| -> Vec<Vec<String>> {
        let relays = s.sent(to).into_iter().filter_map(|m| match m {
            FromBroker::Relays(places) => Some(places.iter().map(|p| p.name.to_string()).collect()),
            _ => None,
        });
        relays.collect()
    };
    let wait = |s: &mut Story, seconds: u64| {
        for _ in 0..seconds {
            s.now = s.now.plus(Duration::from_secs(1));
            s.broker.handle_timeout(s.now, &mut s.out);
        }
    };
    s.join_relay(ConnId(3), "near", 9);
    wait(&mut s, 30);
    assert!(asked(&mut s, ANNA).is_empty(), "with one relay there is nothing to choose");
    s.join_relay(ConnId(4), "afar", 8);
    wait(&mut s, 30);
    assert_eq!(asked(&mut s, ANNA), [["afar", "near"]]);
    assert_eq!(asked(&mut s, BERT), [["afar", "near"]]);

    for (side, far, near) in [(ANNA, Some(20), Some(30)), (BERT, Some(200), Some(30))] {
        let delay = |name: &str, rtt| RelayDelay { name: name.parse().unwrap(), rtt };
        s.say(side, ToBroker::Delays(vec![delay("afar", far), delay("near", near)]));
    }
    s.ask_for_bert(1);
    let offered = s.offers(ANNA)[0].relays[0].certificate.clone();
    assert_eq!(offered, certificate("near", 9).der);
    s.join(ConnId(5), certificate("carl", 3), false);
    assert_eq!(asked(&mut s, ConnId(5)), [["afar", "near"]], "a newcomer is asked at once");
}

#[test]
fn a_member_without_the_relays_role_is_no_relay() {
    let mut s = Story::with_two();
    let carl = ConnId(3);
    s.connect(carl, certificate("carl", 3));
    s.say(carl, ToBroker::Register(Register { relay: vec![udp("192.0.2.3:6061")], ..register() }));
    s.ask_for_bert(1);
    assert_eq!(s.offers(ANNA)[0].relays, []);
}

#[test]
fn a_certificate_that_contradicts_the_directory_is_turned_away() {
    let mut s = Story::with_two();
    let thief = ConnId(3);
    s.connect(thief, certificate("carl", 2));
    s.say(thief, ToBroker::Register(register()));
    assert_eq!(s.ended(thief), Some(Ended::Conflict));
    s.ask_for_bert(1);
    assert_eq!(s.offers(BERT).len(), 1, "the holder of the address stays");
}

#[test]
fn watchers_learn_in_the_end_how_it_stands_with_a_member_that_comes_and_goes_too_often() {
    let mut s = Story::with_two();
    let told = |s: &mut Story| -> Vec<bool> {
        let sent = s.sent(ANNA).into_iter();
        sent.filter_map(|m| if let FromBroker::Changed(record) = m { Some(record.online) } else { None })
            .collect()
    };
    for n in 0..20 {
        s.broker.handle_closed(ConnId(BERT.0 + n), s.now, &mut s.out);
        s.join(ConnId(BERT.0 + n + 1), certificate("bert", 2), false);
    }
    assert!(told(&mut s).len() < 12, "not every change is told");
    s.now = s.now.plus(Duration::from_secs(6));
    s.broker.handle_timeout(s.now, &mut s.out);
    assert_eq!(told(&mut s), [true], "the last one is");
    s.now = s.now.plus(Duration::from_secs(60));
    s.broker.handle_timeout(s.now, &mut s.out);
    assert!(told(&mut s).is_empty(), "once");
}

/// Where anna's and bert's connections are seen to come from.
const ANNAS: &str = "198.51.100.1:41000";
const BERTS: &str = "203.0.113.2:42000";

/// Anna and Bert, introduced, each seen at an endpoint; the introduction's name.
fn introduced() -> (Story, AttemptId) {
    let mut s = Story::new();
    let anna = s.join(ANNA, certificate("anna", 1), false);
    let bert = s.join(BERT, certificate("bert", 2), false);
    s.broker.handle_looked(anna, ANNAS.parse().unwrap(), s.now);
    s.broker.handle_looked(bert, BERTS.parse().unwrap(), s.now);
    s.out.clear();
    s.ask_for_bert(1);
    let attempt = s.offers(ANNA)[0].attempt;
    s.out.clear();
    (s, attempt)
}

/// What a member says that has dialled; its kernel's ports are those of its inside.
fn dialled(attempt: AttemptId, round: u8, forge: bool, from: &str) -> ToBroker {
    let packet = syn::testing::linux("192.168.1.2:5", "192.0.2.9:6", u32::from(round) * 1000, 7, 2);
    let syn = packet[20..].to_vec();
    ToBroker::Dialled { attempt, round, forge, from: from.parse().unwrap(), syn }
}

fn forgeries(s: &mut Story) -> Vec<[(IpAddr, Vec<u8>); 2]> {
    let mut all = Vec::new();
    s.out.retain(|action| match action {
        Action::Forge { packets, .. } => {
            all.push(packets.clone());
            false
        }
        _ => true,
    });
    all
}

#[test]
fn each_of_two_that_dialled_each_other_is_answered_in_the_others_name() {
    let (mut s, attempt) = introduced();
    s.say(ANNA, dialled(attempt, 1, true, ANNAS));
    assert!(forgeries(&mut s).is_empty(), "not before both have said so");
    s.say(BERT, dialled(attempt, 1, true, BERTS));
    let forged = forgeries(&mut s);
    let [[to_anna, to_bert]] = &forged[..] else { panic!("{forged:?}") };
    for ((to, packet), from, at) in [(to_anna, BERTS, ANNAS), (to_bert, ANNAS, BERTS)] {
        let (source, destination, segment) = captured::read(packet).unwrap();
        assert_eq!((source, destination), (from.parse().unwrap(), at.parse().unwrap()));
        assert_eq!((*to, segment.sequence, segment.acknowledgment), (destination.ip(), 1000, 1001));
    }
    for conn in [ANNA, BERT] {
        let told = s.sent(conn);
        assert!(matches!(&told[..], [FromBroker::Dialled { round: 1, forge: true, .. }]), "{told:?}");
    }
    s.say(BERT, dialled(attempt, 1, true, BERTS));
    assert!(forgeries(&mut s).is_empty(), "one pair for two words");
}

#[test]
fn whoever_answers_by_hand_gets_the_others_syn_and_nothing_is_forged() {
    let (mut s, attempt) = introduced();
    s.say(ANNA, dialled(attempt, 1, false, "192.0.2.77:9"));
    s.say(BERT, dialled(attempt, 1, false, "192.0.2.78:9"));
    assert!(forgeries(&mut s).is_empty());
    let told = s.sent(ANNA);
    assert!(
        matches!(&told[..], [FromBroker::Dialled { forge: false, syn, .. }] if syn.len() == 40),
        "{told:?}"
    );
}

#[test]
fn nothing_is_forged_for_one_alone_nor_to_an_endpoint_that_was_not_seen_here() {
    let good = |attempt: AttemptId| (dialled(attempt, 1, true, ANNAS), dialled(attempt, 1, true, BERTS));
    type Say = fn(AttemptId) -> (ToBroker, ToBroker);
    let stories: [(&str, Say); 6] = [
        ("an endpoint that nobody has", |a| {
            (dialled(a, 1, true, "192.0.2.99:80"), dialled(a, 1, true, BERTS))
        }),
        ("the other one's endpoint", |a| (dialled(a, 1, true, BERTS), dialled(a, 1, true, BERTS))),
        ("the right address, another port", |a| {
            (dialled(a, 1, true, "198.51.100.1:41001"), dialled(a, 1, true, BERTS))
        }),
        ("the other one did not ask for it", |a| (dialled(a, 1, true, ANNAS), dialled(a, 1, false, BERTS))),
        ("the other one is in another round", |a| (dialled(a, 2, true, ANNAS), dialled(a, 1, true, BERTS))),
        ("an introduction that never was", |a| {
            let mut other = a;
            other.0[0] ^= 1;
            (dialled(other, 1, true, ANNAS), dialled(other, 1, true, BERTS))
        }),
    ];
    for (what, say) in stories {
        let (mut s, attempt) = introduced();
        let (first, second) = say(attempt);
        s.say(ANNA, first);
        s.say(BERT, second);
        assert!(forgeries(&mut s).is_empty(), "{what}");
    }

    let (mut s, attempt) = introduced();
    s.now = s.now.plus(Duration::from_secs(29));
    let (first, second) = good(attempt);
    s.say(ANNA, first);
    s.say(BERT, second);
    assert_eq!(forgeries(&mut s).len(), 1, "seen a short while ago");
    s.now = s.now.plus(Duration::from_secs(1));
    s.ask_for_bert(2);
    let attempt = s.offers(ANNA)[0].attempt;
    let (first, second) = good(attempt);
    s.say(ANNA, first);
    s.say(BERT, second);
    assert!(forgeries(&mut s).is_empty(), "too long ago");

    let (mut s, attempt) = introduced();
    let carl = s.join(ConnId(3), certificate("carl", 3), false);
    s.broker.handle_looked(carl, "192.0.2.3:43000".parse().unwrap(), s.now);
    s.say(ConnId(3), dialled(attempt, 1, true, "192.0.2.3:43000"));
    s.say(BERT, dialled(attempt, 1, true, BERTS));
    assert!(forgeries(&mut s).is_empty(), "a third one cannot take a side");

    let (mut s, attempt) = introduced();
    s.broker.settings.forge = false;
    let (first, second) = good(attempt);
    s.say(ANNA, first);
    s.say(BERT, second);
    assert!(forgeries(&mut s).is_empty(), "its owner does not allow it");
    assert_eq!(s.refusals(ANNA), [(RequestId(0), Refusal::Forbidden)]);
}

#[test]
fn forged_answers_have_a_rate() {
    let (mut s, mut attempt) = introduced();
    let mut pairs = 0;
    for request in 2..20 {
        s.out.clear();
        s.say(ANNA, dialled(attempt, 1, true, ANNAS));
        s.say(BERT, dialled(attempt, 1, true, BERTS));
        pairs += forgeries(&mut s).len();
        s.out.clear();
        s.ask_for_bert(request);
        attempt = s.offers(ANNA)[0].attempt;
    }
    assert_eq!(pairs, 8, "as many as one member may have at once");
    s.out.clear();
    s.say(ANNA, dialled(attempt, 1, true, ANNAS));
    s.say(BERT, dialled(attempt, 1, true, BERTS));
    assert_eq!(s.refusals(ANNA), [(RequestId(0), Refusal::TooMany)]);
    assert_eq!(s.refusals(BERT), [(RequestId(0), Refusal::TooMany)]);
}

#[test]
fn one_introduction_has_a_few_rounds_and_a_header_must_be_one() {
    let (mut s, attempt) = introduced();
    for round in 1..=8 {
        s.say(ANNA, dialled(attempt, round, true, ANNAS));
    }
    assert_eq!(s.refusals(ANNA), []);
    s.say(ANNA, dialled(attempt, 9, true, ANNAS));
    assert_eq!(s.refusals(ANNA), [(RequestId(0), Refusal::TooMany)]);
    let from = BERTS.parse().unwrap();
    s.say(BERT, ToBroker::Dialled { attempt, round: 1, forge: true, from, syn: vec![0x50; 40] });
    assert_eq!(s.refusals(BERT), [(RequestId(0), Refusal::Malformed)]);
}
