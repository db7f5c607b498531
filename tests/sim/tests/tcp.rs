//! Members that meet over TCP: real nodes, SYN by SYN.

use std::net::Ipv4Addr;

use ntcp_overlay::identity::revocation::RevocationList;
use ntcp_overlay::node::status::Holdings;
use ntcp_overlay::node::status::PathKind;
use ntcp_overlay::punch::method::Method;
use ntcp_sim::Who;
use ntcp_sim::World;
use ntcp_sim::machine::Sockets;
use ntcp_sim::ms;
use ntcp_sim::nat::Behavior;
use ntcp_sim::nat::Filtering;
use ntcp_sim::nat::Mapping;
use ntcp_sim::nat::OPEN;
use ntcp_sim::nat::PORT_RESTRICTED;
use ntcp_sim::nat::Ports;
use ntcp_sim::nat::SYMMETRIC;
use ntcp_sim::nat::simple;
use ntcp_sim::oracle::Carrier;
use ntcp_sim::secs;
use ntcp_sim::tcp::Kind;
use ntcp_sim::tcp::Refusal;
use ntcp_sim::tcp::Tcp;

/// Four rounds of at most five dials, each repeated by the kernel or made again five times at most, and six listeners that
/// are dialled five times.
const SYNS: usize = 4 * 5 * 5 + 6 * 5;

#[test]
fn two_members_whose_networks_block_udp_are_direct_over_tcp_by_syns_that_cross() {
    let (mut world, anna, bert) = blocked(PORT_RESTRICTED, PORT_RESTRICTED);
    let took = world.ask(anna, bert, secs(5)).unwrap();
    println!("first answer after {took:?}");
    assert!(took <= ms(640), "{took:?}");
    world.run(secs(1));
    assert_eq!(world.carrier(anna, bert), Some(Carrier::Tcp));
    for (who, of) in [(anna, bert), (bert, anna)] {
        let there = world.outside(of);
        assert!(matches!(world.path(who, of), PathKind::DirectTcp(at, _) if at.ip() == there));
        assert_eq!(method(&mut world, who, of), Some(Method::Simultaneous));
    }
    assert_eq!(world.ask(anna, bert, secs(1)), Some(ms(80)), "the direct round trip");
}

#[test]
fn each_kind_of_nat_is_opened_by_the_method_that_is_meant_for_it() {
    let never = Tcp { never_syn: true, ..Tcp::LINUX };
    let behind = |tcp| Behavior { tcp, ..PORT_RESTRICTED };
    for (what, a, b, wanted) in [
        ("SYNs cross", PORT_RESTRICTED, behind(never), Method::Simultaneous),
        (
            "a refused SYN is sent again",
            behind(Tcp { refusal: Refusal::Reset, ..Tcp::LINUX }),
            OPEN,
            Method::Simultaneous,
        ),
        ("ports are guessed", SYMMETRIC, PORT_RESTRICTED, Method::Prediction),
        ("and guessed on both sides", SYMMETRIC, SYMMETRIC, Method::Prediction),
        (
            "a SYN that would be refused dies early",
            PORT_RESTRICTED,
            behind(Tcp { refusal: Refusal::Unreachable, ..never }),
            Method::LowTtl,
        ),
    ] {
        let (mut world, anna, bert) = blocked(a, b);
        assert!(world.ask(anna, bert, secs(5)).is_some(), "{what}");
        world.run(secs(8));
        assert_eq!(world.carrier(anna, bert), Some(Carrier::Tcp), "{what}");
        assert_eq!(method(&mut world, anna, bert), Some(wanted), "{what}");
    }
}

#[test]
fn a_member_in_public_is_dialled_where_it_always_listens() {
    let mut world = World::new();
    let nat = world.nat(Behavior { tcp: Tcp { never_syn: true, ..Tcp::LINUX }, ..SYMMETRIC });
    let (anna, bert) = (world.member("anna", Some(nat)), world.member("bert", None));
    begin(&mut world, [anna, bert]);
    for (asks, asked, wanted) in [(anna, bert, Method::Direct), (bert, anna, Method::Reversal)] {
        assert!(world.ask(asks, asked, secs(5)).is_some());
        world.run(secs(1));
        assert_eq!(method(&mut world, asks, asked), Some(wanted));
        begin(&mut world, [anna, bert]);
    }
}

#[test]
fn an_introduction_that_fails_in_every_round_stays_within_its_budget_of_packets() {
    let count = |world: &World, before: usize, who: Who, of: Who| {
        let between = (world.outside(who), world.outside(of));
        let is_syn = |kind: &Kind| matches!(kind, Kind::Syn(_));
        let sent = world.segments[before..].iter();
        sent.filter(|s| (s.from.ip(), s.to.ip()) == between && is_syn(&s.kind)).count()
    };
    // The most dials are those to guessed ports; between these two sites nothing passes.
    let (mut world, anna, bert) = blocked(PORT_RESTRICTED, SYMMETRIC);
    world.block(anna, bert, true);
    let before = world.segments.len();
    assert!(world.ask(anna, bert, secs(5)).is_some());
    world.run(ms(10_500));
    let syns = [count(&world, before, anna, bert), count(&world, before, bert, anna)];
    println!("in silence: {syns:?} SYNs");
    assert!(syns.iter().all(|n| (10..=SYNS).contains(n)), "{syns:?} SYNs");

    // Random ports, and filters that would let any port of the peer in: worth a try, in vain.
    let hopeful = simple(Mapping::AddressAndPortDependent, Filtering::AddressDependent);
    for refusal in [Refusal::Drop, Refusal::Reset, Refusal::Unreachable] {
        let nat = Behavior { ports: Ports::Random, tcp: Tcp { refusal, ..Tcp::LINUX }, ..hopeful };
        let (mut world, anna, bert) = blocked(nat, nat);
        let before = world.segments.len();
        assert!(world.ask(anna, bert, secs(5)).is_some());
        // The next introduction comes two seconds after the last round.
        world.run(ms(10_500));
        assert_eq!(world.machines[bert.0].offers.len(), 1);
        for (who, of) in [(anna, bert), (bert, anna)] {
            let syns = count(&world, before, who, of);
            println!("{refusal:?}: {syns} SYNs");
            assert!((10..=SYNS).contains(&syns), "{refusal:?}: {syns} SYNs");
        }
    }
}

#[test]
fn a_nat_that_forgets_everything_costs_the_stream_and_neither_the_session_nor_the_way_back() {
    let (mut world, anna, bert) = blocked(PORT_RESTRICTED, PORT_RESTRICTED);
    assert!(world.ask(anna, bert, secs(5)).is_some());
    assert_eq!(world.converse(anna, bert, secs(5)).0, 25);
    assert_eq!(world.carrier(anna, bert), Some(Carrier::Tcp));
    world.net.nats[0].reboot();
    let (_, gap) = world.converse(anna, bert, secs(40));
    println!("NAT rebooted: a gap of {gap:?}");
    assert!(gap <= secs(4), "{gap:?}");
    assert_eq!(world.carrier(anna, bert), Some(Carrier::Tcp), "direct again");
}

#[test]
fn a_cut_that_is_mended_within_seconds_loses_nothing_that_was_said() {
    let (mut world, anna, bert) = blocked(PORT_RESTRICTED, PORT_RESTRICTED);
    assert!(world.ask(anna, bert, secs(5)).is_some());
    world.run(secs(1));
    world.cut_off(anna, true);
    world.say(anna, bert, "into the cut");
    world.run(ms(600));
    world.cut_off(anna, false);
    world.run(secs(2));
    assert!(world.heard(bert, "into the cut"), "TCP repeats it");
    assert_eq!(world.carrier(anna, bert), Some(Carrier::Tcp));
}

#[test]
fn a_member_that_moves_is_met_over_tcp_from_its_new_place() {
    let (mut world, anna, bert) = blocked(PORT_RESTRICTED, PORT_RESTRICTED);
    assert!(world.ask(anna, bert, secs(5)).is_some());
    let _ = world.converse(anna, bert, secs(3));
    let hotel = world.nat(SYMMETRIC);
    world.roam(anna, Some(hotel), Ipv4Addr::new(192, 168, 1, 77));
    let (_, gap) = world.converse(anna, bert, secs(40));
    println!("moved: a gap of {gap:?}");
    assert!(gap <= secs(4), "{gap:?}");
    assert_eq!(world.carrier(anna, bert), Some(Carrier::Tcp));
    assert_eq!(method(&mut world, anna, bert), Some(Method::Prediction));
}

#[test]
fn whoever_dies_while_being_punched_leaves_nothing_open() {
    // Every stage: before the look, while both get ready, while SYNs are under way, after the first stream is up.
    for after in [ms(60), ms(130), ms(200), ms(260), ms(300), ms(350), ms(420)] {
        let (mut world, anna, bert) = blocked(PORT_RESTRICTED, SYMMETRIC);
        world.say(anna, bert, "ping");
        world.run(after);
        world.switch_off(bert, after > ms(250));
        world.run(secs(420));
        let machine = &world.machines[anna.0];
        assert_eq!(machine.node().holdings(), Holdings::default(), "after {after:?}");
        assert_eq!(machine.sockets(), Sockets::default(), "after {after:?}");
        assert_eq!(world.server.connections(), 0, "after {after:?}");
    }
}

#[test]
fn whatever_is_open_for_a_revoked_member_is_closed() {
    let (mut world, anna, bert) = blocked(PORT_RESTRICTED, PORT_RESTRICTED);
    assert!(world.ask(anna, bert, secs(5)).is_some());
    world.run(secs(5));
    assert!(world.machines[anna.0].node().holdings().streams > 0);
    let serial = world.machines[bert.0].certificate.serial;
    let list = RevocationList::default().next(world.now.unix, [serial]).unwrap();
    let (signed, now) = (world.authority.sign_revocations(&list), world.now);
    world.server.revoke(list, signed, now);
    world.run(secs(2));
    assert_eq!(world.machines[anna.0].node().holdings(), Holdings::default());
    assert_eq!(world.machines[anna.0].sockets(), Sockets::default());
}

/// By which method a peer is reached over TCP.
fn method(world: &mut World, who: Who, of: Who) -> Option<Method> {
    world.peer(who, of).how.map(|how| how.method)
}

/// Two members, each behind a NAT of its own and in a network that lets no UDP out, registered and surveyed.
fn blocked(a: Behavior, b: Behavior) -> (World, Who, Who) {
    let mut world = World::new();
    let (na, nb) = (world.nat(a), world.nat(b));
    let (anna, bert) = (world.member("anna", Some(na)), world.member("bert", Some(nb)));
    begin(&mut world, [anna, bert]);
    (world, anna, bert)
}

/// All of them start anew, in networks that let no UDP out.
fn begin(world: &mut World, all: [Who; 2]) {
    for who in all {
        (world.machines[who.0].no_udp, world.machines[who.0].tcp) = (true, true);
        world.switch_on(who);
    }
    world.run(secs(5));
}
