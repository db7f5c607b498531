//! What to expect of the rest of the world: the NATs of 2005 by their share of the market, and with which of them a NAT
//! like ours can hold a direct TCP connection.
//!
//! The shares of mappings are Gaballo's Table 3.3, the share that refuses an inbound SYN after an outbound one is Table 5.1
//! (both from Guha and Francis, IMC 2005). The source does not say how the two go together: here all boxes that refuse SYNs
//! have endpoint-independent mapping. All of them filter by address and port.

use super::behavior::Behavior;
use super::behavior::Filtering;
use super::behavior::Mapping;
use super::behavior::PortAssignment;

/// One kind of NAT and its share of the market, per cent.
const MARKET_OF_2005: [(f64, Mapping, Filtering); 5] = [
    (59.8, Mapping::EndpointIndependent, Filtering::AddressAndPortDependent),
    (16.1, Mapping::EndpointIndependent, Filtering::InboundNever),
    (18.7, Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent),
    (2.9, Mapping::SessionDependent, Filtering::AddressAndPortDependent),
    (2.5, Mapping::AddressDependent, Filtering::AddressAndPortDependent),
];

/// Which share of peers behind the NATs of 2005 a member whose NAT treats TCP like `ours` can meet directly, per cent; how
/// sure its next port is counts (`confidence`, from 0 to 1, see [`super::classify::Ports`]). `None` where not enough is
/// known.
#[must_use]
pub fn direct_tcp(ours: &Behavior, confidence: f64) -> Option<f64> {
    let shares = MARKET_OF_2005.iter().map(|(share, mapping, filtering)| {
        let theirs = Behavior {
            passes: Some(true),
            mapping: *mapping,
            filtering: *filtering,
            ports: PortAssignment::Delta(1),
            ..Behavior::default()
        };
        let certainty = if is_predictable(ours) == Some(Need::Pattern) { confidence } else { 1.0 };
        Some(if meets(ours, &theirs)? { share * certainty } else { 0.0 })
    });
    shares.sum()
}

/// Whether two NATs let a direct TCP connection happen when both sides dial at the same time from ports that the other
/// knows or predicts. `None` where that is unknown.
#[must_use]
pub fn meets(a: &Behavior, b: &Behavior) -> Option<bool> {
    if a.passes == Some(false) || b.passes == Some(false) {
        return Some(false);
    }
    // Where anybody may connect to a known endpoint, the other side just dials.
    if is_dialable(a) || is_dialable(b) {
        return Some(true);
    }
    let blind = |one: &Behavior| Some(is_predictable(one)? == Need::Luck);
    // Only a filter that looks at addresses alone lets in who dials from an unknown port of a known address.
    let lenient =
        |one: &Behavior| one.filtering == Filtering::AddressDependent && one.mapping != Mapping::Unknown;
    if (blind(a)? && !lenient(b)) || (blind(b)? && !lenient(a)) {
        return Some(false);
    }
    // The SYNs cross: one side at least must take the other's.
    match (a.filtering, b.filtering) {
        (Filtering::Unknown, _) | (_, Filtering::Unknown) => None,
        (Filtering::InboundNever, Filtering::InboundNever) => Some(false),
        _ => Some(true),
    }
}

/// What it takes to know the next outer port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    /// Nothing: it is the one that was seen.
    Nothing,
    /// That the pattern holds.
    Pattern,
    /// Chance.
    Luck,
}

fn is_predictable(behavior: &Behavior) -> Option<Need> {
    match (behavior.mapping, behavior.ports) {
        (Mapping::Unknown, _) => None,
        (Mapping::None | Mapping::EndpointIndependent, _) => Some(Need::Nothing),
        (_, PortAssignment::Preserved | PortAssignment::Delta(_)) => Some(Need::Pattern),
        (_, PortAssignment::Random) => Some(Need::Luck),
        (_, PortAssignment::Unknown) => None,
    }
}

/// Whether strangers may dial an endpoint that a server has seen.
fn is_dialable(behavior: &Behavior) -> bool {
    let known = matches!(behavior.mapping, Mapping::None | Mapping::EndpointIndependent);
    known && matches!(behavior.filtering, Filtering::Open | Filtering::EndpointIndependent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat(mapping: Mapping, ports: PortAssignment, filtering: Filtering) -> Behavior {
        Behavior { passes: Some(true), mapping, ports, filtering, ..Behavior::default() }
    }

    #[test]
    fn the_expectation_is_the_sum_of_the_shares_that_can_be_met() {
        use PortAssignment::Delta;
        use PortAssignment::Preserved;
        use PortAssignment::Random;
        let strict = Filtering::AddressAndPortDependent;
        for (text, ours, confidence, wanted) in [
            ("linux", nat(Mapping::EndpointIndependent, Preserved, strict), 1.0, Some(100.0)),
            (
                "never takes a SYN: not among its like",
                nat(Mapping::EndpointIndependent, Preserved, Filtering::InboundNever),
                1.0,
                Some(83.9),
            ),
            ("steps", nat(Mapping::SessionDependent, Delta(1), strict), 1.0, Some(100.0)),
            ("steps, mostly", nat(Mapping::SessionDependent, Delta(1), strict), 0.75, Some(75.0)),
            ("random", nat(Mapping::SessionDependent, Random, strict), 1.0, Some(0.0)),
            ("public", nat(Mapping::None, Preserved, Filtering::Open), 1.0, Some(100.0)),
            (
                "full cone",
                nat(Mapping::EndpointIndependent, Random, Filtering::EndpointIndependent),
                1.0,
                Some(100.0),
            ),
            ("blocked", Behavior { passes: Some(false), ..Behavior::default() }, 1.0, Some(0.0)),
            ("nothing known", Behavior::default(), 0.0, None),
            ("no filter known", nat(Mapping::EndpointIndependent, Preserved, Filtering::Unknown), 1.0, None),
        ] {
            let found = direct_tcp(&ours, confidence);
            let near = found.zip(wanted).is_some_and(|(a, b)| (a - b).abs() < 0.01);
            assert!(near || found == wanted, "{text}: {found:?}");
        }
    }

    #[test]
    fn a_random_nat_meets_those_who_let_strangers_in() {
        let random =
            nat(Mapping::SessionDependent, PortAssignment::Random, Filtering::AddressAndPortDependent);
        for (filtering, wanted) in [
            (Filtering::Open, true),
            (Filtering::EndpointIndependent, true),
            (Filtering::AddressDependent, true),
            (Filtering::AddressAndPortDependent, false),
            (Filtering::InboundNever, false),
        ] {
            let other = nat(Mapping::EndpointIndependent, PortAssignment::Preserved, filtering);
            assert_eq!(meets(&random, &other), Some(wanted), "{filtering:?}");
            assert_eq!(meets(&other, &random), Some(wanted), "{filtering:?}");
        }
        assert_eq!(meets(&random, &random), Some(false));
    }

    #[test]
    fn the_shares_are_the_whole_market() {
        let sum: f64 = MARKET_OF_2005.iter().map(|(share, ..)| share).sum();
        assert!((sum - 100.0).abs() < 0.001);
    }
}
