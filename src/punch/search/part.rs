//! What each side does in a search: one pure function of both profiles.

use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Profile;
use crate::punch::method::depends;
use crate::punch::method::steps;

/// What one side does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Its endpoint is known. It checks where it is told.
    Told,
    /// Its NAT steps, and the peer's endpoint is known: the port that the peer gets is measured, between two looks.
    Between(i16),
    /// Its NAT steps, and so does the peer's: the next ports are guessed from one look.
    Next(i16),
    /// Its NAT gives random ports, and the peer's endpoint is known: it writes to the peer from many sockets.
    Many,
    /// The other side of that: it writes to many of the peer's ports.
    Sweep,
}

/// How the outer port for a new destination is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ports {
    Known,
    Steps(i16),
    Random,
    Unknowable,
}

/// What `own` side does; `None` if plain checks suffice, or no search can help. The other side, which asks the other way
/// round, finds the part that goes with it.
#[must_use]
pub fn part(own: &Profile, peer: &Profile) -> Option<Part> {
    let (ours, theirs) = (&own.udp, &peer.udp);
    if ours.passes == Some(false) || theirs.passes == Some(false) {
        return None;
    }
    match (ports(ours), ports(theirs)) {
        (Ports::Known, Ports::Steps(_)) if is_strict(ours) => Some(Part::Told),
        (Ports::Steps(step), Ports::Known) if is_strict(theirs) => Some(Part::Between(step)),
        (Ports::Steps(step), Ports::Steps(_)) => Some(Part::Next(step)),
        (Ports::Random, Ports::Known) if is_strict(theirs) => Some(Part::Many),
        (Ports::Known, Ports::Random) if is_strict(ours) => Some(Part::Sweep),
        (Ports::Known | Ports::Steps(_) | Ports::Random | Ports::Unknowable, _) => None,
    }
}

const fn ports(udp: &Behavior) -> Ports {
    match steps(udp) {
        Some(step) => Ports::Steps(step),
        None if !depends(udp.mapping) => Ports::Known,
        None if matches!(udp.ports, PortAssignment::Random) => Ports::Random,
        None => Ports::Unknowable,
    }
}

/// Whether the peer has to be written to at the very port that it comes from.
const fn is_strict(udp: &Behavior) -> bool {
    !matches!(udp.filtering, Filtering::Open | Filtering::EndpointIndependent | Filtering::AddressDependent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::behavior::Mapping;

    #[test]
    fn the_two_parts_of_every_pair_of_nats() {
        let unknown = Behavior::default();
        let strict = Filtering::AddressAndPortDependent;
        let linux = Behavior { mapping: Mapping::EndpointIndependent, filtering: strict, ..unknown };
        let cone = Behavior { filtering: Filtering::EndpointIndependent, ..linux };
        let restricted = Behavior { filtering: Filtering::AddressDependent, ..linux };
        let steps = |step| Behavior {
            mapping: Mapping::AddressAndPortDependent,
            ports: PortAssignment::Delta(step),
            ..linux
        };
        let random = Behavior { ports: PortAssignment::Random, ..steps(1) };
        let mute = Behavior { passes: Some(false), ..linux };
        for (a, b, wanted) in [
            (linux, linux, None),
            (linux, unknown, None),
            (steps(1), linux, Some((Part::Between(1), Part::Told))),
            (steps(1), unknown, Some((Part::Between(1), Part::Told))),
            (steps(1), cone, None),
            (steps(1), restricted, None),
            (steps(1), steps(-2), Some((Part::Next(1), Part::Next(-2)))),
            (steps(0), linux, None),
            (steps(1), random, None),
            (random, linux, Some((Part::Many, Part::Sweep))),
            (random, unknown, Some((Part::Many, Part::Sweep))),
            (random, cone, None),
            (random, random, None),
            (steps(1), mute, None),
        ] {
            let profile = |udp| Profile { udp, ..Profile::default() };
            let (a, b) = (profile(a), profile(b));
            assert_eq!(part(&a, &b).zip(part(&b, &a)), wanted, "{:?} {:?}", a.udp, b.udp);
            assert_eq!(part(&a, &b).is_some(), part(&b, &a).is_some(), "both or none");
        }
    }
}
