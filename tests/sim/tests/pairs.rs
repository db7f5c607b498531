//! Every pair of NATs: what the product does is what the oracle says it can; and for TCP, so is what it plans.

use ntcp_overlay::nat::behavior::Behavior as Tcp;
use ntcp_overlay::nat::behavior::Filtering as TcpFiltering;
use ntcp_overlay::nat::behavior::Mapping as TcpMapping;
use ntcp_overlay::nat::behavior::PortAssignment;
use ntcp_overlay::nat::behavior::Profile;
use ntcp_overlay::node::status::PathKind;
use ntcp_overlay::punch::keys::Side;
use ntcp_overlay::punch::plan;
use ntcp_sim::World;
use ntcp_sim::ms;
use ntcp_sim::nat::Behavior;
use ntcp_sim::nat::Filtering;
use ntcp_sim::nat::Mapping;
use ntcp_sim::nat::OPEN;
use ntcp_sim::nat::PORT_RESTRICTED;
use ntcp_sim::nat::Ports;
use ntcp_sim::nat::simple;
use ntcp_sim::oracle;
use ntcp_sim::oracle::TcpDoor;
use ntcp_sim::oracle::TcpPort;
use ntcp_sim::secs;

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

#[test]
fn between_every_pair_of_nats_members_are_direct_where_that_is_possible_and_relayed_everywhere_else() {
    let kinds: Vec<(Mapping, Filtering)> =
        MAPPINGS.into_iter().flat_map(|m| FILTERINGS.map(|f| (m, f))).collect();
    let (mut direct, mut wrong) = (0, Vec::new());
    for a in &kinds {
        for b in &kinds {
            let can = oracle::meet(*a, *b);
            let ports = |n: usize| [Ports::Stepping(7), Ports::Random, Ports::Kept][n % 3];
            let with = |(mapping, filtering): (Mapping, Filtering), n| Behavior {
                ports: ports(n),
                ..simple(mapping, filtering)
            };
            let (mut world, anna, bert) = World::pair(with(*a, direct), with(*b, wrong.len() + 1));
            // Where only one direction passes, the first packet may be lost before that shows: asked twice.
            let answered = world.ask(anna, bert, secs(1)).or_else(|| world.ask(anna, bert, secs(1)));
            world.run(secs(6));
            let is = world.is_direct(anna, bert);
            direct += usize::from(is);
            if answered.is_none_or(|took| took > ms(400)) || is != can || world.is_relayed(anna, bert) == can
            {
                wrong.push(format!("{a:?} {b:?}: can {can}, is {is}, first answer {answered:?}"));
            }
        }
    }
    println!("{direct} of {} pairs are direct", kinds.len().pow(2));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn behind_one_carrier_members_meet_if_it_turns_packets_back_and_else_by_the_relay() {
    for hairpin in [true, false] {
        let mut world = World::new();
        let carrier = world.nat(Behavior { hairpin, ..OPEN });
        let homes = [(); 2].map(|()| world.nat_behind(carrier, PORT_RESTRICTED));
        let anna = world.member("anna", Some(homes[0]));
        let bert = world.member("bert", Some(homes[1]));
        world.switch_on(anna);
        world.switch_on(bert);
        world.run(secs(3));
        assert!(world.ask(anna, bert, secs(5)).is_some());
        world.run(secs(6));
        assert_eq!(world.is_direct(anna, bert), hairpin);
        assert_eq!(world.is_relayed(anna, bert), !hairpin);
    }
}

#[test]
fn the_same_private_addresses_on_both_sides_confuse_nobody() {
    let mut world = World::new();
    let nats = [(); 2].map(|()| world.nat(PORT_RESTRICTED));
    let (anna, bert) = (world.member("anna", Some(nats[0])), world.member("bert", Some(nats[1])));
    let same = std::net::Ipv4Addr::new(192, 168, 1, 2);
    for (who, nat) in [(anna, nats[0]), (bert, nats[1])] {
        world.move_to(who, Some(nat), same);
        world.switch_on(who);
    }
    world.run(secs(3));
    assert!(world.ask(anna, bert, secs(5)).is_some());
    world.run(secs(2));
    let there = world.outside(bert);
    assert!(matches!(world.path(anna, bert), PathKind::DirectUdp(at) if at.ip() == there));
}

#[test]
fn a_tcp_connection_is_planned_exactly_where_the_theses_tables_allow_one() {
    let ports = [
        (TcpPort::Same, TcpMapping::EndpointIndependent, PortAssignment::Preserved),
        (TcpPort::Next, TcpMapping::AddressAndPortDependent, PortAssignment::Delta(1)),
        (TcpPort::Next, TcpMapping::SessionDependent, PortAssignment::Delta(1)),
        (TcpPort::Random, TcpMapping::SessionDependent, PortAssignment::Random),
    ];
    let doors = [
        (TcpDoor::Anybody, TcpFiltering::EndpointIndependent),
        (TcpDoor::Address, TcpFiltering::AddressDependent),
        (TcpDoor::Endpoint, TcpFiltering::AddressAndPortDependent),
        (TcpDoor::Nobody, TcpFiltering::InboundNever),
    ];
    let kinds: Vec<_> = ports
        .iter()
        .flat_map(|(port, mapping, ports)| {
            doors.iter().map(|(door, filtering)| {
                let tcp = Tcp { mapping: *mapping, filtering: *filtering, ports: *ports, ..Tcp::default() };
                ((*port, *door), Profile { tcp, ..Profile::default() })
            })
        })
        .collect();
    let mut wrong = Vec::new();
    for (a, of_a) in &kinds {
        for (b, of_b) in &kinds {
            let planned = plan::choose(of_a, of_b, Side::Asking);
            // Two NATs that give random ports and let in by address alone: the plan hopes, in vain.
            let hopeful = *a == (TcpPort::Random, TcpDoor::Address) && a == b;
            // One that gives random ports and lets anybody in could be dialled at the port that the broker saw. Nobody has
            // seen such a NAT, and the plan leaves it to the relay.
            let odd = |x: (TcpPort, TcpDoor), y: (TcpPort, TcpDoor)| {
                x == (TcpPort::Random, TcpDoor::Anybody) && matches!(y.1, TcpDoor::Endpoint | TcpDoor::Nobody)
            };
            let can = oracle::open(*a, *b) && !odd(*a, *b) && !odd(*b, *a);
            if planned.is_ok() != (can || hopeful) {
                wrong.push(format!("{a:?} {b:?}: {:?}", planned.map(|rounds| rounds.len())));
            }
            let mirrored = plan::choose(of_b, of_a, Side::Asked).map(|rounds| rounds.len());
            assert_eq!(plan::choose(of_a, of_b, Side::Asking).map(|rounds| rounds.len()), mirrored);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
