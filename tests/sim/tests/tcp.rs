//! Members that meet over TCP: real nodes, SYN by SYN.

use ntcp_overlay::node::status::PathKind;
use ntcp_overlay::punch::method::Method;
use ntcp_sim::Who;
use ntcp_sim::World;
use ntcp_sim::ms;
use ntcp_sim::nat::Behavior;
use ntcp_sim::nat::PORT_RESTRICTED;
use ntcp_sim::oracle::Carrier;
use ntcp_sim::secs;

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
        let path = world.path(who, of);
        assert!(
            matches!(path, PathKind::DirectTcp(at, Method::Simultaneous) if at.ip() == there),
            "{path:?}"
        );
    }
    assert_eq!(world.ask(anna, bert, secs(1)), Some(ms(80)), "the direct round trip");
}

/// Two members, each behind a NAT of its own and in a network that lets no UDP out, registered and surveyed.
fn blocked(a: Behavior, b: Behavior) -> (World, Who, Who) {
    let mut world = World::new();
    let (na, nb) = (world.nat(a), world.nat(b));
    let (anna, bert) = (world.member("anna", Some(na)), world.member("bert", Some(nb)));
    for who in [anna, bert] {
        (world.machines[who.0].no_udp, world.machines[who.0].tcp) = (true, true);
        world.switch_on(who);
    }
    world.run(secs(5));
    (world, anna, bert)
}
