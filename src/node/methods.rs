//! What opened direct paths: counters for people, and a memory by pairs of NATs.
//!
//! Which method opens a pair of NATs depends on what the two do, not on who stands behind them. So what worked once between
//! two that were measured alike is where the next attempt of such a pair begins. Both members remember the same, and if
//! only one does, it leads: a side that is ready for a later round draws the other one along (`punch::tcp`). A memory that
//! did not work is forgotten, and the next attempt begins with the first round again.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use crate::nat::behavior::Behavior;
use crate::nat::behavior::Forged;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::Profile;
use crate::path::Means;
use crate::path::Outcome;
use crate::punch::method::Method;

/// Pairs of NATs that are remembered: more than one machine meets. Whoever was not met for the longest time goes first.
const MAX_PAIRS: usize = 64;

/// How often a means was used to open a direct path, and how often it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Times that it was tried.
    pub tried: u64,
    /// Times that it led to a proven way.
    pub opened: u64,
    /// Of these, at the first introduction.
    pub first: u64,
}

/// Counters and memory.
#[derive(Debug, Default)]
pub(super) struct Methods {
    counts: BTreeMap<Means, Count>,
    /// The latest last.
    memory: VecDeque<(Pair, Method)>,
}

/// What two members' NATs do: ours first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pair(Profile, Profile);

impl Methods {
    /// Something came of an attempt between NATs that do `own` and `peer`.
    pub(super) fn learn(&mut self, outcome: Outcome, own: &Profile, peer: &Profile) {
        match outcome {
            Outcome::Tried(means) => self.counts.entry(means).or_default().tried += 1,
            Outcome::Opened { means, first } => {
                let count = self.counts.entry(means).or_default();
                count.opened += 1;
                count.first += u64::from(first);
                if let (Means::Tcp(method), Some(pair)) = (means, Pair::of(own, peer))
                    && method.is_round()
                {
                    self.forget(&pair);
                    self.memory.push_back((pair, method));
                    if self.memory.len() > MAX_PAIRS {
                        self.memory.pop_front();
                    }
                }
            }
            Outcome::Exhausted => {
                if let Some(pair) = Pair::of(own, peer) {
                    self.forget(&pair);
                }
            }
        }
    }

    /// What worked the last time between such NATs.
    pub(super) fn remembered(&self, own: &Profile, peer: &Profile) -> Option<Method> {
        let wanted = Pair::of(own, peer)?;
        self.memory.iter().find(|(pair, _)| *pair == wanted).map(|(_, method)| *method)
    }

    /// Every means that was ever tried.
    pub(super) fn counts(&self) -> Vec<(Means, Count)> {
        self.counts.iter().map(|(means, count)| (*means, *count)).collect()
    }

    fn forget(&mut self, pair: &Pair) {
        self.memory.retain(|(known, _)| known != pair);
    }
}

impl Pair {
    /// `None` if one of them has not been measured: everybody would be alike.
    fn of(own: &Profile, peer: &Profile) -> Option<Self> {
        let known = |profile: &Profile| profile.tcp.mapping != Mapping::Unknown;
        (known(own) && known(peer)).then(|| Self(fingerprint(own), fingerprint(peer)))
    }
}

/// What a NAT does, without what differs between two of the same kind: how far away it is, how long its mappings have been
/// seen to live, and what the broker does.
fn fingerprint(profile: &Profile) -> Profile {
    let timeless = |behavior: Behavior| Behavior { lifetime: None, ..behavior };
    Profile {
        udp: timeless(profile.udp),
        tcp: timeless(profile.tcp),
        hops: None,
        forged: Forged::Never,
        ..*profile
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUNT2: Outcome = Outcome::Opened { means: Means::Tcp(Method::Stunt2), first: false };

    #[test]
    fn what_worked_is_remembered_for_the_kind_of_nat_and_forgotten_when_it_fails() {
        let mut methods = Methods::default();
        let (ours, theirs) = (measured(Mapping::EndpointIndependent), measured(Mapping::AddressDependent));
        methods.learn(STUNT2, &ours, &theirs);
        let twin = Profile { hops: Some(7), tcp: Behavior { lifetime: Some(99), ..theirs.tcp }, ..theirs };
        assert_eq!(methods.remembered(&ours, &twin), Some(Method::Stunt2));
        assert_eq!(methods.remembered(&theirs, &ours), None, "the other way round is another pair");
        assert_eq!(methods.remembered(&ours, &ours), None);
        methods.learn(Outcome::Exhausted, &ours, &theirs);
        assert_eq!(methods.remembered(&ours, &theirs), None);
    }

    #[test]
    fn nothing_is_remembered_of_nats_that_nobody_measured_nor_of_what_is_no_round() {
        let mut methods = Methods::default();
        let (unknown, known) = (Profile::default(), measured(Mapping::EndpointIndependent));
        methods.learn(STUNT2, &known, &unknown);
        methods.learn(Outcome::Opened { means: Means::Udp, first: true }, &known, &known);
        methods.learn(Outcome::Opened { means: Means::Tcp(Method::Reversal), first: true }, &known, &known);
        assert_eq!((methods.memory.len(), methods.remembered(&unknown, &unknown)), (0, None));
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_was_met_last() {
        let mut methods = Methods::default();
        let own = measured(Mapping::EndpointIndependent);
        let kind = |n: i16| {
            let ports = crate::nat::behavior::PortAssignment::Delta(n);
            Profile { tcp: Behavior { ports, ..own.tcp }, ..own }
        };
        for n in 0..100 {
            methods.learn(STUNT2, &own, &kind(n));
            methods.learn(STUNT2, &own, &kind(0));
        }
        assert_eq!(methods.memory.len(), MAX_PAIRS);
        assert!(
            methods.remembered(&own, &kind(0)).is_some() && methods.remembered(&own, &kind(99)).is_some()
        );
        assert_eq!(methods.remembered(&own, &kind(5)), None);
    }

    #[test]
    fn counters_say_how_often_each_means_was_tried_and_worked() {
        let mut methods = Methods::default();
        let own = measured(Mapping::EndpointIndependent);
        let udp = Means::Udp;
        for outcome in [Outcome::Tried(udp), Outcome::Opened { means: udp, first: true }, Outcome::Tried(udp)]
        {
            methods.learn(outcome, &own, &own);
        }
        methods.learn(Outcome::Tried(Means::Tcp(Method::Stunt2)), &own, &own);
        let stunt2 = (Means::Tcp(Method::Stunt2), Count { tried: 1, opened: 0, first: 0 });
        assert_eq!(methods.counts(), [(udp, Count { tried: 2, opened: 1, first: 1 }), stunt2]);
    }

    fn measured(mapping: Mapping) -> Profile {
        Profile { tcp: Behavior { mapping, ..Behavior::default() }, ..Profile::default() }
    }
}
