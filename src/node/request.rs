//! What an operator may ask of a node, and what it answers.

use std::net::IpAddr;
use std::time::Duration;

use crate::identity::names::MemberName;
use crate::node::status::PathKind;
use crate::node::status::Snapshot;

/// Whom a ping is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerRef {
    /// By name.
    Name(MemberName),
    /// By overlay address.
    Addr(IpAddr),
}

/// Ticket of a request whose answer comes later, chosen by the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A snapshot.
    Status,
    /// One probe of the carrier to a peer, connecting first if need be; answered as a `Notice::Pong`.
    Ping {
        /// Whom.
        peer: PeerRef,
        /// Echoed in the answer.
        ticket: Ticket,
    },
}

/// An immediate answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To `Status`.
    Status(Box<Snapshot>),
    /// To `Ping`: the answer comes later, or never.
    Accepted,
    /// Cannot be done, in words.
    Refused(String),
}

/// The late answer to a ping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pong {
    /// Of the request.
    pub ticket: Ticket,
    /// Who answered.
    pub name: MemberName,
    /// Its overlay IPv4 address.
    pub addr: IpAddr,
    /// By which path.
    pub path: PathKind,
    /// How long it took; `Err` says in words why there was no answer.
    pub rtt: Result<Duration, String>,
}
