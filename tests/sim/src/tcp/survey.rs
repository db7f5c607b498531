//! What a survey of the NATs before a machine would find, in the product's words: the members of the simulation do not
//! measure, they are told the truth some seconds after they have met the broker.

use ntcp_overlay::nat::behavior;
use ntcp_overlay::nat::behavior::PortAssignment;
use ntcp_overlay::nat::behavior::Profile;
use ntcp_overlay::nat::behavior::Reaction;
use ntcp_overlay::nat::behavior::Segments;

use super::nat::Refusal;
use crate::Who;
use crate::nat::Behavior;
use crate::nat::Filtering;
use crate::nat::Mapping;
use crate::nat::Ports;
use crate::world::World;

impl World {
    /// What a survey finds before a machine.
    #[must_use]
    pub fn survey(&self, who: Who) -> Profile {
        let machine = &self.machines[who.0];
        let mut all = self.net.before(machine.nat).map(|nat| self.net.nats[nat.0].behavior);
        let innermost = all.next();
        let seen = innermost.map(|first| all.fold(first, outer_of));
        let (udp, tcp) = seen.map_or((open(), open()), |does| (udp(&does), tcp(&does)));
        Profile {
            udp: behavior::Behavior { passes: Some(!machine.no_udp), ..udp },
            tcp: behavior::Behavior { passes: Some(!machine.no_tcp), ..tcp },
            segments: Segments {
                survives_reset: seen.map(|does| !does.tcp.fragile),
                survives_icmp: seen.map(|does| !does.tcp.fragile),
                sequence_kept: Some(true),
                ..Segments::default()
            },
            hops: u8::try_from(self.net.before(machine.nat).count()).ok(),
            ..Profile::default()
        }
    }
}

/// Two NATs in a row are as strict as the stricter of them, and give the ports of the outer one unless that keeps them.
fn outer_of(inner: Behavior, outer: Behavior) -> Behavior {
    Behavior {
        mapping: inner.mapping.max(outer.mapping),
        filtering: inner.filtering.max(outer.filtering),
        ports: if outer.ports == Ports::Kept { inner.ports } else { outer.ports },
        tcp: super::Tcp {
            per_session: inner.tcp.per_session || outer.tcp.per_session,
            never_syn: inner.tcp.never_syn || outer.tcp.never_syn,
            fragile: inner.tcp.fragile || outer.tcp.fragile,
            windows: inner.tcp.windows || outer.tcp.windows,
            refusal: outer.tcp.refusal,
        },
        ..outer
    }
}

fn open() -> behavior::Behavior {
    behavior::Behavior {
        mapping: behavior::Mapping::None,
        filtering: behavior::Filtering::Open,
        ports: PortAssignment::Preserved,
        ..behavior::Behavior::default()
    }
}

fn udp(does: &Behavior) -> behavior::Behavior {
    behavior::Behavior {
        mapping: match does.mapping {
            Mapping::EndpointIndependent => behavior::Mapping::EndpointIndependent,
            Mapping::AddressDependent => behavior::Mapping::AddressDependent,
            Mapping::AddressAndPortDependent => behavior::Mapping::AddressAndPortDependent,
        },
        filtering: match does.filtering {
            Filtering::EndpointIndependent => behavior::Filtering::EndpointIndependent,
            Filtering::AddressDependent => behavior::Filtering::AddressDependent,
            Filtering::AddressAndPortDependent => behavior::Filtering::AddressAndPortDependent,
        },
        ports: match does.ports {
            Ports::Kept => PortAssignment::Preserved,
            Ports::Stepping(by) => i16::try_from(by).map_or(PortAssignment::Unknown, PortAssignment::Delta),
            Ports::Random => PortAssignment::Random,
        },
        hairpin: Some(does.hairpin),
        paired: Some(true),
        ..behavior::Behavior::default()
    }
}

fn tcp(does: &Behavior) -> behavior::Behavior {
    let seen = udp(does);
    behavior::Behavior {
        mapping: if does.tcp.per_session { behavior::Mapping::SessionDependent } else { seen.mapping },
        filtering: if does.tcp.never_syn { behavior::Filtering::InboundNever } else { seen.filtering },
        reaction: match does.tcp.refusal {
            Refusal::Drop => Reaction::Drop,
            Refusal::Reset => Reaction::Reset,
            Refusal::Unreachable => Reaction::Unreachable,
        },
        ..seen
    }
}
