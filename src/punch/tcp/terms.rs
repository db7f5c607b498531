//! What passes between an attempt and its owner.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::rng::Rng;
use crate::nat::behavior::Behavior;
use crate::punch::look::Observer;
use crate::punch::method::Round;

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

/// What the attempt needs from around it for the length of one call.
pub struct Hands<'a> {
    /// The moment.
    pub now: Instant,
    /// Chance.
    pub rng: &'a mut Rng,
    /// Number of the next stream or port.
    pub next: &'a mut u32,
}

impl Hands<'_> {
    pub(super) fn number(&mut self) -> u32 {
        let number = *self.next;
        // The top half of the range is the doors' own, for accepted streams.
        *self.next = (number + 1) & 0x7fff_ffff;
        number
    }
}

/// What an opened stream wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// This message to the broker.
    Ask(SocketAddr, Vec<u8>),
    /// A check to the peer, whose number is then told by [`Attempt::greeted`].
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
}
