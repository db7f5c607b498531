//! How two members open a TCP connection through their NATs: one file per method of the theses.
//!
//! Every method is the same round of an [`Attempt`](crate::punch::tcp::Attempt) with other parameters: a fresh local port
//! that listens and is dialled from, endpoints of ours for the peer to dial, dials to the peer's endpoints at a moment that
//! the broker gives to both. What differs is when the dials begin, how far their first SYN gets, and how long they stay.
//! Fresh, because a failed round leaves entries at the NATs that spoil the port for two minutes.

pub mod low_ttl;
pub mod natblaster;
pub mod prediction;
pub mod simultaneous;
pub mod stunt1;
pub mod stunt2;

use std::time::Duration;

use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;

/// How a stream between two members came to be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Method {
    /// We dialled an address at which the peer always listens.
    Direct,
    /// The peer dialled an address at which we always listen: connection reversal (P2PWG white paper), if we asked.
    Reversal,
    /// [`simultaneous`].
    Simultaneous,
    /// [`prediction`]; over UDP a [`search`](crate::punch::search).
    Prediction,
    /// Over UDP alone: many sockets of one side and many guesses of the other ([`search`](crate::punch::search)).
    Birthday,
    /// [`low_ttl`].
    LowTtl,
    /// [`stunt2`].
    Stunt2,
    /// [`natblaster`].
    NatBlaster,
    /// [`stunt1`].
    Stunt1,
}

impl Method {
    /// Whether it is one of the rounds of a plan; the others go on beside them.
    #[must_use]
    pub const fn is_round(self) -> bool {
        !matches!(self, Self::Direct | Self::Reversal)
    }

    /// Its name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Reversal => "reversal",
            Self::Simultaneous => "p2pnat",
            Self::Prediction => "prediction",
            Self::Birthday => "birthday",
            Self::LowTtl => "p2pnat-low-ttl",
            Self::Stunt2 => "stunt-2",
            Self::NatBlaster => "natblaster",
            Self::Stunt1 => "stunt-1",
        }
    }
}

/// How a direct way was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct How {
    /// By which method.
    pub method: Method,
    /// In which round of its introduction, counted from 1; `None` where that took no round.
    pub round: Option<u8>,
}

/// Who answers the SYNs of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The peer's kernel.
    Peer,
    /// The broker, in the peer's name.
    Broker,
    /// The peer, by hand.
    Own,
}

/// What one side does in one round; times count from the common start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Round {
    /// The method that this is.
    pub method: Method,
    /// How many endpoints of ours the peer is told: one where it is known, several where it is guessed.
    pub guesses: u16,
    /// How many of the peer's endpoints are dialled.
    pub dials: usize,
    /// When.
    pub start: Duration,
    /// Time to live of the first SYN; `None` for the system's.
    pub ttl: Option<u8>,
    /// When it is raised to the system's.
    pub raise: Duration,
    /// When dials are given up and only the listener stays.
    pub abandon: Option<Duration>,
    /// When the round has failed.
    pub limit: Duration,
    /// Who answers.
    pub answer: Answer,
}

/// Guesses at the next ports of a NAT that steps: another session or four may come between the look and the dial.
pub const GUESSES: u16 = 5;
/// Dials of a side whose own NAT gives every destination a new port: each dial uses one up, so only the first few meet
/// what the peer expects.
const DIALS_WHEN_STEPPING: usize = 2;

impl Round {
    /// What all methods share, for a side whose TCP is treated like `own`.
    const fn of(method: Method, own: &Behavior) -> Self {
        let (guesses, dials) = match steps(own) {
            Some(_) => (GUESSES, DIALS_WHEN_STEPPING),
            None => (1, GUESSES as usize),
        };
        Self {
            method,
            guesses,
            dials,
            start: Duration::ZERO,
            ttl: None,
            raise: Duration::ZERO,
            abandon: None,
            limit: LIMIT,
            answer: Answer::Peer,
        }
    }
}

/// How long a round lasts. NatTrav found that a first SYN that got through is answered within 2 s.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether a NAT gives different destinations different ports.
#[must_use]
pub const fn depends(mapping: Mapping) -> bool {
    matches!(
        mapping,
        Mapping::AddressDependent | Mapping::AddressAndPortDependent | Mapping::SessionDependent
    )
}

/// By how much the outer ports of a NAT follow each other, if each destination gets one of its own and they do.
#[must_use]
pub const fn steps(own: &Behavior) -> Option<i16> {
    match own.ports {
        PortAssignment::Delta(step) if depends(own.mapping) && step != 0 => Some(step),
        _ => None,
    }
}

/// Whether the next outer port of a NAT can be told, or guessed.
#[must_use]
pub const fn is_predictable(tcp: &Behavior) -> bool {
    !depends(tcp.mapping) || !matches!(tcp.ports, PortAssignment::Random)
}

/// Whether a SYN from an address that was written to, but from another port than that, is let in.
#[must_use]
pub const fn lets_other_ports_in(tcp: &Behavior) -> bool {
    matches!(
        tcp.filtering,
        Filtering::Unknown | Filtering::Open | Filtering::EndpointIndependent | Filtering::AddressDependent
    )
}
