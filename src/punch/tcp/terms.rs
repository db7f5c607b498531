//! What passes between an attempt and its owner.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::rng::Rng;
use crate::nat::behavior::Behavior;
use crate::punch::look::Observer;
use crate::punch::method::Round;
use crate::punch::turn::Turn;

/// What the broker is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// For which round, counted from 1.
    pub round: u8,
    /// Where we are, or will be, the likeliest first.
    pub endpoints: Vec<SocketAddr>,
    /// Our round trip to the broker.
    pub rtt: Duration,
}

/// What the broker is to be told of a SYN of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dialled {
    /// Of which round, counted from 1.
    pub round: u8,
    /// Whether the broker is to answer it.
    pub forge: bool,
    /// Where it comes from, as the broker saw the port.
    pub from: SocketAddr,
    /// Its TCP header.
    pub syn: Vec<u8>,
}

/// What an attempt needs from around it for the length of one call.
pub struct Hands<'a> {
    /// The moment.
    pub now: Instant,
    /// Chance.
    pub rng: &'a mut Rng,
    /// Number of the next stream, port or socket.
    pub next: &'a mut u32,
    /// Who may use up ports of a NAT that steps.
    pub turn: &'a mut Turn,
}

impl Hands<'_> {
    pub(in crate::punch) fn number(&mut self) -> u32 {
        let number = *self.next;
        // The top half of the range is the doors' own, for accepted streams.
        // 0 and 1 are the data sockets.
        *self.next = ((number + 1) & 0x7fff_ffff).max(2);
        number
    }
}

/// What an opened stream wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// This message to the broker.
    Ask(SocketAddr, Vec<u8>),
    /// A check to the peer, whose number is then told by [`super::Attempt::greeted`].
    Greet(SocketAddr),
    /// Nothing.
    Nothing,
}

/// What both members know before they begin.
#[derive(Debug)]
pub struct Plan {
    /// How our TCP is treated.
    pub own: Behavior,
    /// Addresses of ours that are the same outside.
    pub public: Vec<IpAddr>,
    /// Who looks at us from outside.
    pub observer: Option<Observer>,
    /// Where the peer always listens.
    pub targets: Vec<SocketAddr>,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// With which to begin, counted from 0: what worked before. The peer is drawn along.
    pub first: usize,
}
