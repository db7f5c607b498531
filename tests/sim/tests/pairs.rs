//! Every pair of NATs, over UDP and over TCP: what the product does is what the oracle says it can, and so is what it plans.

use std::collections::BTreeMap;

use ntcp_overlay::nat::behavior::Behavior as TcpProfile;
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
use ntcp_sim::oracle::Carrier;
use ntcp_sim::oracle::Site;
use ntcp_sim::oracle::TcpDoor;
use ntcp_sim::oracle::TcpPort;
use ntcp_sim::secs;
use ntcp_sim::tcp::Refusal;
use ntcp_sim::tcp::Tcp;

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

/// A NAT by its TCP: how the oracle calls it, and what it does.
#[derive(Clone, Copy, Debug)]
struct Kind {
    ports: TcpPort,
    door: TcpDoor,
    per_session: bool,
}

impl Kind {
    fn all() -> Vec<Self> {
        let ports = [
            (TcpPort::Same, false),
            (TcpPort::Next, false),
            (TcpPort::Next, true),
            (TcpPort::Random, false),
            (TcpPort::Random, true),
        ];
        let doors = [TcpDoor::Anybody, TcpDoor::Address, TcpDoor::Endpoint, TcpDoor::Nobody];
        let with = |(ports, per_session)| doors.map(|door| Self { ports, door, per_session });
        ports.into_iter().flat_map(with).collect()
    }

    /// What it refuses with, and how it looks at sequence numbers, must not matter: `n` chooses.
    fn behavior(self, n: usize) -> Behavior {
        let mapping = match self.ports {
            TcpPort::Same => Mapping::EndpointIndependent,
            TcpPort::Next | TcpPort::Random => Mapping::AddressAndPortDependent,
        };
        let filtering = match self.door {
            TcpDoor::Anybody => Filtering::EndpointIndependent,
            TcpDoor::Address => Filtering::AddressDependent,
            TcpDoor::Endpoint | TcpDoor::Nobody => Filtering::AddressAndPortDependent,
        };
        let ports = match self.ports {
            TcpPort::Same => [Ports::Kept, Ports::Stepping(1), Ports::Random][n % 3],
            TcpPort::Next => Ports::Stepping(1 + u16::from(n.is_multiple_of(2))),
            TcpPort::Random => Ports::Random,
        };
        let tcp = Tcp {
            per_session: self.per_session,
            never_syn: self.door == TcpDoor::Nobody,
            windows: n % 5 < 4,
            refusal: [Refusal::Drop, Refusal::Reset, Refusal::Unreachable][n / 2 % 3],
            ..Tcp::LINUX
        };
        Behavior { ports, tcp, ..simple(mapping, filtering) }
    }

    fn tcp(self) -> (TcpPort, TcpDoor) {
        (self.ports, self.door)
    }

    fn site(self, udp: bool, does: &Behavior) -> Site {
        Site { udp, datagrams: (does.mapping, does.filtering), tcp: self.tcp() }
    }
}

/// Where the product does less over TCP than the oracle finds possible, and why.
fn left_to_the_relay(a: (TcpPort, TcpDoor), b: (TcpPort, TcpDoor)) -> Option<&'static str> {
    let odd = |x: (TcpPort, TcpDoor), y: (TcpPort, TcpDoor)| {
        x == (TcpPort::Random, TcpDoor::Anybody) && matches!(y.1, TcpDoor::Endpoint | TcpDoor::Nobody)
    };
    (odd(a, b) || odd(b, a)).then_some(
        "a NAT with random ports that lets anybody in could be dialled at the port that the broker saw; nobody has seen one",
    )
}

#[test]
fn between_every_pair_of_nats_what_carries_is_what_the_oracle_says_whether_udp_passes_or_not() {
    let kinds = Kind::all();
    let (mut count, mut wrong, mut n) = (BTreeMap::new(), Vec::new(), 0);
    for (i, a) in kinds.iter().enumerate() {
        for b in &kinds[i..] {
            n += 1;
            // Where datagrams get other ports everywhere and are let in from anywhere, the first test above has it.
            let strict = |kind: &Kind| kind.ports == TcpPort::Same || kind.door >= TcpDoor::Endpoint;
            let both = strict(a) && strict(b);
            let (udp_a, udp_b) = [(false, false), (true, both), (false, true), (true, false)][n % 4];
            let (of_a, of_b) = (a.behavior(n), b.behavior(n / 3));
            let best = oracle::carrier(a.site(udp_a, &of_a), b.site(udp_b, &of_b));
            let wanted = if left_to_the_relay(a.tcp(), b.tcp()).is_some() { Carrier::Relay } else { best };

            let mut world = World::new();
            let (na, nb) = (world.nat(of_a), world.nat(of_b));
            let (anna, bert) = (world.member("anna", Some(na)), world.member("bert", Some(nb)));
            for (who, udp) in [(anna, udp_a), (bert, udp_b)] {
                (world.machines[who.0].no_udp, world.machines[who.0].tcp) = (!udp, true);
                world.switch_on(who);
            }
            world.run(secs(5));
            let (asks, asked) = if n % 2 == 0 { (anna, bert) } else { (bert, anna) };
            let answered = world.ask(asks, asked, secs(1)).or_else(|| world.ask(asks, asked, secs(1)));
            world.run(secs(2));
            if wanted == Carrier::Relay || world.carrier(anna, bert) != Some(wanted) {
                // All rounds of all methods.
                world.run(secs(14));
            }
            let is = world.carrier(anna, bert);
            *count.entry(is).or_insert(0) += 1;
            if answered.is_none_or(|took| took > ms(640)) || is != Some(wanted) {
                let nats = format!("{a:?} {of_a:?}\n{b:?} {of_b:?}");
                let udp = format!("UDP {udp_a} {udp_b}");
                wrong.push(format!(
                    "{nats}\n{udp}: wanted {wanted:?}, best {best:?}, is {is:?}, answered {answered:?}"
                ));
            }
        }
    }
    println!("{n} pairs: {count:?}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n\n"));
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
                let tcp = TcpProfile {
                    mapping: *mapping,
                    filtering: *filtering,
                    ports: *ports,
                    ..TcpProfile::default()
                };
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
            let can = oracle::open(*a, *b) && left_to_the_relay(*a, *b).is_none();
            if planned.is_ok() != (can || hopeful) {
                wrong.push(format!("{a:?} {b:?}: {:?}", planned.map(|rounds| rounds.len())));
            }
            let mirrored = plan::choose(of_b, of_a, Side::Asked).map(|rounds| rounds.len());
            assert_eq!(plan::choose(of_a, of_b, Side::Asking).map(|rounds| rounds.len()), mirrored);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
