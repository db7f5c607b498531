//! From observations to words: what a few answers from outside say about a NAT.
//!
//! Each function takes what was seen and nothing else, and says "unknown" where that is not enough: two answers cannot
//! tell an address's share in a mapping from a port's, and silence on a line that passes nothing is no filter. What was
//! not seen is `None`.

use std::net::IpAddr;
use std::net::SocketAddr;

use super::behavior::Filtering;
use super::behavior::Mapping;
use super::behavior::PortAssignment;
use crate::base::addr::is_private;

/// How one inner port looked from outside, by the place that looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Views {
    /// From the server's first address and port.
    pub first: Option<SocketAddr>,
    /// From its first address, another port.
    pub other_port: Option<SocketAddr>,
    /// From its other address, the same port.
    pub other_address: Option<SocketAddr>,
    /// From its other address, another port.
    pub other_both: Option<SocketAddr>,
    /// TCP: from where [`Self::other_port`] looked, by a second connection after the first had ended.
    pub again: Option<SocketAddr>,
}

/// What an outer endpoint depends on (RFC 5780 4.3; Gaballo's thesis 4.5 and Figure 4.3 for TCP). `local` is the inner
/// endpoint.
#[must_use]
pub fn mapping(local: SocketAddr, views: &Views) -> Mapping {
    let Some(first) = views.first else { return Mapping::Unknown };
    let differs = |view: Option<SocketAddr>| view.is_some_and(|seen| seen != first);
    if first == local && !differs(views.other_port) && !differs(views.other_address) {
        return Mapping::None;
    }
    // A second connection to the very same place must look the same, unless every session gets a port of its own.
    if let (Some(before), Some(again)) = (views.other_port, views.again)
        && before != again
    {
        return Mapping::SessionDependent;
    }
    if differs(views.other_port) {
        return Mapping::AddressAndPortDependent;
    }
    match (views.other_address, views.other_both) {
        (Some(other), _) if other == first => Mapping::EndpointIndependent,
        (None, Some(both)) if both == first => Mapping::EndpointIndependent,
        (Some(other), Some(both)) if other == both => Mapping::AddressDependent,
        (Some(_), Some(_)) => Mapping::AddressAndPortDependent,
        // The port is known not to matter at the first address.
        (Some(_), None) | (None, Some(_)) if views.other_port.is_some() => Mapping::AddressDependent,
        // Two places cannot tell the address's share from the port's: assume the worse.
        (Some(_), None) | (None, Some(_)) => Mapping::AddressAndPortDependent,
        (None, None) => Mapping::Unknown,
    }
}

/// Who may send to a mapping. Whether packets came in ...
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// ... to a port that has no mapping.
    pub unmapped: Option<bool>,
    /// ... from an address that was never written to.
    pub other_address: Option<bool>,
    /// ... from a port that was never written to, of an address that was.
    pub other_port: Option<bool>,
    /// TCP: ... as a SYN from where a SYN went.
    pub crossing: Option<bool>,
}

/// Filtering of UDP (RFC 5780 4.4).
#[must_use]
pub fn udp_filtering(mapping: Mapping, passed: &Passed) -> Filtering {
    match (passed.other_address, passed.other_port) {
        (Some(true), _) if mapping == Mapping::None => Filtering::Open,
        (Some(true), _) => Filtering::EndpointIndependent,
        (Some(false), Some(true)) => Filtering::AddressDependent,
        // Whoever refuses another port of a known address refuses strangers.
        (_, Some(false)) => Filtering::AddressAndPortDependent,
        (Some(false) | None, None) | (None, Some(true)) => Filtering::Unknown,
    }
}

/// Filtering of TCP (Gaballo's thesis 4.5: the three tests of STUNT and the fourth that the thesis adds).
#[must_use]
pub fn tcp_filtering(passed: &Passed) -> Filtering {
    match (passed.unmapped, passed.other_address, passed.other_port, passed.crossing) {
        (Some(true), ..) => Filtering::Open,
        (_, Some(true), ..) => Filtering::EndpointIndependent,
        (_, Some(false), Some(true), _) => Filtering::AddressDependent,
        (.., Some(false), Some(true)) => Filtering::AddressAndPortDependent,
        (.., Some(false), Some(false)) => Filtering::InboundNever,
        _ => Filtering::Unknown,
    }
}

/// How outer ports follow each other, and how sure that is.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Ports {
    /// The pattern.
    pub assignment: PortAssignment,
    /// Which share of the samples obeys it, from 0 to 1; 0 if nothing is known.
    pub confidence: f64,
    /// Lowest and highest outer port that was seen.
    pub range: Option<(u16, u16)>,
}

/// Fewer samples than this say nothing.
pub const FEWEST_SAMPLES: usize = 3;
/// A larger step between two mappings is taken for chance: another host's traffic in between moves a counter by a few.
const LARGEST_STEP: u16 = 32;
/// The share of steps that must be equal. Below it a prediction misses more often than it hits.
const ENOUGH: f64 = 0.5;

/// The pattern behind samples of (inner port, outer port), in the order in which the mappings were made.
#[must_use]
pub fn ports(samples: &[(u16, u16)]) -> Ports {
    let outer: Vec<u16> = samples.iter().map(|(_, outer)| *outer).collect();
    let range = outer.iter().min().copied().zip(outer.iter().max().copied());
    if samples.len() < FEWEST_SAMPLES {
        return Ports { range, ..Ports::default() };
    }
    let kept = share(samples.iter().filter(|(inner, outer)| inner == outer).count(), samples.len());
    if kept > ENOUGH {
        return Ports { assignment: PortAssignment::Preserved, confidence: kept, range };
    }
    let steps: Vec<i16> =
        outer.windows(2).filter_map(|pair| Some(step(*pair.first()?, *pair.last()?))).collect();
    let count = |step: i16| steps.iter().filter(|other| **other == step).count();
    let common = steps.iter().copied().filter(|step| step.unsigned_abs() <= LARGEST_STEP && *step != 0);
    // Of equally frequent steps the smallest: the others may be two steps taken for one.
    let best = common.max_by_key(|step| (count(*step), std::cmp::Reverse(step.unsigned_abs())));
    let share_of_best = best.map_or(0.0, |step| share(count(step), steps.len()));
    match best {
        Some(step) if share_of_best > ENOUGH => {
            Ports { assignment: PortAssignment::Delta(step), confidence: share_of_best, range }
        }
        _ => Ports { assignment: PortAssignment::Random, confidence: 1.0 - share_of_best.max(kept), range },
    }
}

/// From one port to the next, around the end of the number space.
fn step(from: u16, to: u16) -> i16 {
    to.wrapping_sub(from).cast_signed()
}

#[expect(clippy::cast_precision_loss, reason = "a handful of samples")]
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Whether all mappings of one inside host have one outer address (RFC 4787 4.1). One sample says nothing.
#[must_use]
pub fn paired(outer: &[IpAddr]) -> Option<bool> {
    let (first, others) = outer.split_first()?;
    if others.is_empty() { None } else { Some(others.iter().all(|other| other == first)) }
}

/// How long an idle mapping is known to live: the longest of the waits (seconds, answered afterwards) that it survived,
/// if it survived all shorter ones too; 1 s, which the tests themselves take, if it did not survive the shortest.
#[must_use]
pub fn lifetime(waits: &[(u16, bool)]) -> Option<u16> {
    let mut waits = waits.to_vec();
    waits.sort_unstable();
    let survived = waits.iter().take_while(|(_, alive)| *alive).last();
    match (survived, waits.is_empty()) {
        (Some((seconds, _)), _) => Some(*seconds),
        (None, false) => Some(1),
        (None, true) => None,
    }
}

/// Routers on the way up to and with the own outermost NAT: those before the first with a public address. `routers` says
/// who reported a packet with this TTL expired; silent ones are left out. `None` if nobody public answered.
#[must_use]
pub fn hops(routers: &[(u8, IpAddr)]) -> Option<u8> {
    let first_public =
        routers.iter().filter(|(_, router)| !is_private(*router)).map(|(ttl, _)| *ttl).min()?;
    let has_inner = routers.iter().any(|(ttl, router)| *ttl < first_public && is_private(*router));
    has_inner.then(|| first_public - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_mapping_is_named_by_what_changes_it() {
        let local = at("192.168.1.2:40000");
        let view = |text: &str| (text != "-").then(|| at(&format!("20.0.0.1:{text}")));
        let none = Views { first: Some(local), other_address: Some(local), ..Views::default() };
        assert_eq!(mapping(local, &none), Mapping::None);
        for (first, other_port, other_address, other_both, again, wanted) in [
            ("-", "-", "-", "-", "-", Mapping::Unknown),
            ("1", "-", "-", "-", "-", Mapping::Unknown),
            ("1", "1", "-", "-", "-", Mapping::Unknown),
            ("1", "1", "1", "1", "1", Mapping::EndpointIndependent),
            ("1", "-", "1", "-", "-", Mapping::EndpointIndependent),
            ("1", "-", "-", "1", "-", Mapping::EndpointIndependent),
            ("1", "1", "2", "2", "1", Mapping::AddressDependent),
            ("1", "-", "2", "2", "-", Mapping::AddressDependent),
            ("1", "1", "2", "-", "-", Mapping::AddressDependent),
            ("1", "-", "2", "-", "-", Mapping::AddressAndPortDependent),
            ("1", "-", "2", "3", "-", Mapping::AddressAndPortDependent),
            ("1", "2", "3", "4", "2", Mapping::AddressAndPortDependent),
            ("1", "2", "3", "4", "5", Mapping::SessionDependent),
            ("1", "2", "-", "-", "3", Mapping::SessionDependent),
        ] {
            let views = Views {
                first: view(first),
                other_port: view(other_port),
                other_address: view(other_address),
                other_both: view(other_both),
                again: view(again),
            };
            assert_eq!(mapping(local, &views), wanted, "{views:?}");
        }
    }

    #[test]
    fn filters_are_named_by_whom_they_let_in() {
        let (yes, no) = (Some(true), Some(false));
        for (other_address, other_port, wanted) in [
            (yes, None, Filtering::EndpointIndependent),
            (yes, yes, Filtering::EndpointIndependent),
            (no, yes, Filtering::AddressDependent),
            (no, no, Filtering::AddressAndPortDependent),
            (None, no, Filtering::AddressAndPortDependent),
            (None, yes, Filtering::Unknown),
            (no, None, Filtering::Unknown),
            (None, None, Filtering::Unknown),
        ] {
            let passed = Passed { other_address, other_port, ..Passed::default() };
            assert_eq!(udp_filtering(Mapping::EndpointIndependent, &passed), wanted, "{passed:?}");
        }
        let passed = Passed { other_address: yes, ..Passed::default() };
        assert_eq!(udp_filtering(Mapping::None, &passed), Filtering::Open);
        for (unmapped, other_address, other_port, crossing, wanted) in [
            (yes, yes, yes, yes, Filtering::Open),
            (no, yes, yes, yes, Filtering::EndpointIndependent),
            (None, yes, None, None, Filtering::EndpointIndependent),
            (no, no, yes, yes, Filtering::AddressDependent),
            (no, no, no, yes, Filtering::AddressAndPortDependent),
            (None, None, no, yes, Filtering::AddressAndPortDependent),
            (no, no, no, no, Filtering::InboundNever),
            (no, no, no, None, Filtering::Unknown),
            (None, None, yes, None, Filtering::Unknown),
            (None, None, None, None, Filtering::Unknown),
        ] {
            let passed = Passed { unmapped, other_address, other_port, crossing };
            assert_eq!(tcp_filtering(&passed), wanted, "{passed:?}");
        }
    }

    #[test]
    fn ports_are_kept_step_or_jump() {
        use PortAssignment::Delta;
        use PortAssignment::Preserved;
        use PortAssignment::Random;
        use PortAssignment::Unknown;
        for (outer, wanted, confidence) in [
            (&[][..], Unknown, 0.0),
            (&[7, 8], Unknown, 0.0),
            (&[1001, 1002, 1003, 1004, 1005], Preserved, 1.0),
            (&[1001, 1002, 1003, 9, 1005], Preserved, 0.8),
            (&[20, 21, 22, 23, 24], Delta(1), 1.0),
            (&[20, 22, 24, 26, 28], Delta(2), 1.0),
            (&[20, 19, 18, 17, 16], Delta(-1), 1.0),
            (&[65534, 65535, 0, 1, 2], Delta(1), 1.0),
            (&[20, 21, 23, 24, 25], Delta(1), 0.75), // somebody else took 22
            (&[20, 21, 10, 11, 900], Random, 0.5),   // half of the steps is not enough
            (&[40_000, 1200, 33_000, 5000, 61_000], Random, 1.0),
            (&[20, 32_788, 20, 32_788, 20], Random, 1.0), // half of all ports away, forth and back
            (&[700, 700, 700, 700, 700], Random, 1.0),    // no NAT does this to ports in use: not a step
        ] {
            let samples: Vec<(u16, u16)> = (1001..).zip(outer.iter().copied()).collect();
            let found = ports(&samples);
            assert_eq!(found.assignment, wanted, "{outer:?}");
            assert!((found.confidence - confidence).abs() < 0.001, "{outer:?}: {}", found.confidence);
            assert_eq!(found.range, outer.iter().min().copied().zip(outer.iter().max().copied()));
        }
    }

    #[test]
    fn pools_and_lifetimes_need_more_than_one_observation() {
        let ip = |n: u8| IpAddr::from([20, 0, 0, n]);
        assert_eq!(paired(&[]), None);
        assert_eq!(paired(&[ip(1)]), None);
        assert_eq!(paired(&[ip(1), ip(1), ip(1)]), Some(true));
        assert_eq!(paired(&[ip(1), ip(2), ip(1)]), Some(false));
        for (waits, wanted) in [
            (&[][..], None),
            (&[(10, false)], Some(1)),
            (&[(10, true)], Some(10)),
            (&[(60, true), (10, true), (30, true)], Some(60)),
            (&[(60, true), (10, true), (30, false)], Some(10)), // by chance somebody else's mapping
        ] {
            assert_eq!(lifetime(waits), wanted, "{waits:?}");
        }
    }

    #[test]
    fn the_outermost_nat_is_the_last_router_without_a_public_address() {
        let via = |list: &[(u8, &str)]| -> Option<u8> {
            hops(&list.iter().map(|(ttl, ip)| (*ttl, ip.parse().unwrap())).collect::<Vec<_>>())
        };
        assert_eq!(via(&[(1, "192.168.1.1"), (2, "20.0.1.1")]), Some(1));
        assert_eq!(via(&[(1, "192.168.1.1"), (2, "100.64.0.1"), (3, "20.0.1.1"), (4, "20.0.2.2")]), Some(2));
        assert_eq!(via(&[(1, "192.168.1.1"), (4, "20.0.1.1")]), Some(3), "the silent ones may be NATs");
        assert_eq!(via(&[(1, "20.0.1.1")]), None, "no NAT at all");
        assert_eq!(via(&[(1, "10.0.0.1")]), None, "nobody public answered");
        assert_eq!(via(&[]), None);
    }
}
