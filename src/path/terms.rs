//! What passes between a path and its owner.

use std::net::SocketAddr;

use crate::base::id::AttemptId;
use crate::base::rng::Rng;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::identity::agreement::Agreements;
use crate::identity::certificate::Certificate;
use crate::identity::names::MemberName;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::path::leg::Leg;
use crate::punch::keys::Side;
use crate::punch::look::Observer;
use crate::punch::method::Method;
use crate::punch::plan;
use crate::punch::tcp::Hands;
use crate::punch::turn::Turn;
use crate::wire::broker::RelayOffer;

/// What a path needs from around it for the length of one call.
pub struct Ctx<'a> {
    /// The moment.
    pub now: Now,
    /// Where messages leave.
    pub outbox: &'a mut Outbox,
    /// Chance.
    pub rng: &'a mut Rng,
    /// Our own key.
    pub wg: &'a mut Agreements,
    /// Our own end.
    pub local: &'a plan::Local,
    /// Number of the next stream, port or socket.
    pub next_stream: &'a mut u32,
    /// Who may use up ports of a NAT that steps.
    pub turn: &'a mut Turn,
    /// MTU of the device, bytes.
    pub mtu: usize,
    /// What our own NATs do.
    pub profile: &'a Profile,
    /// Who tells what our TCP connections look like from outside.
    pub observer: Option<Observer>,
    /// Who does so over UDP, and where it sees the data socket.
    pub view: Option<View>,
}

impl Ctx<'_> {
    /// How long our own NAT is known to keep what `leg` goes through while it is idle, s.
    pub(super) fn lifetime(&self, leg: Leg) -> Option<u16> {
        match leg.via {
            Via::Udp(_) => self.profile.udp.lifetime,
            Via::Stream(_) => self.profile.tcp.lifetime,
        }
    }

    /// What an attempt at TCP or a search needs of it.
    pub(super) fn hands(&mut self) -> Hands<'_> {
        Hands { now: self.now.instant, rng: self.rng, next: self.next_stream, turn: self.turn }
    }
}

/// What somebody outside sees of a socket of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// Who.
    pub from: SocketAddr,
    /// The outer endpoint.
    pub mapped: SocketAddr,
}

/// Over what a peer may be reached directly. Relays are reached over whatever gets there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// Over UDP where it works, otherwise over TCP.
    #[default]
    Auto,
    /// Over TCP alone.
    Tcp,
    /// Over UDP alone.
    Udp,
}

/// By what a direct path is opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Means {
    /// Checks over UDP.
    Udp,
    /// A TCP connection, and how.
    Tcp(Method),
}

impl Means {
    /// Its name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp(method) => method.name(),
        }
    }
}

/// What came of an attempt at a direct path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was tried.
    Tried(Means),
    /// It gave a proven way.
    Opened {
        /// By what.
        means: Means,
        /// At the first introduction.
        first: bool,
    },
    /// All rounds of TCP punching were tried in vain.
    Exhausted,
}

/// One offer of the broker, with everything in it verified.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Its name.
    pub attempt: AttemptId,
    /// Which side we are.
    pub side: Side,
    /// The peer's addresses.
    pub candidates: Vec<Candidate>,
    /// What the peer's NATs do.
    pub profile: Profile,
    /// Relays, best first.
    pub relays: Vec<RelayGrant>,
    /// The method of TCP punching that worked between such NATs before.
    pub remembered: Option<Method>,
}

/// A relay session that we may use.
#[derive(Clone, Debug)]
pub struct RelayGrant {
    /// The relay's certificate, verified.
    pub certificate: Certificate,
    /// As the broker offered it.
    pub offer: RelayOffer,
}

/// How a relay is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayedBy {
    /// Its channel, over UDP.
    Udp,
    /// Its channel, over TCP.
    Tcp,
    /// One TCP connection to the peer, which the relay's kernel readdresses.
    Splice,
}

impl RelayedBy {
    /// One word, for people and for programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Splice => "splice",
        }
    }
}

/// What carries, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Carrier<'a> {
    /// Straight to the peer, over UDP.
    DirectUdp(SocketAddr),
    /// Straight to the peer, over TCP.
    DirectTcp(SocketAddr, Method),
    /// Through a relay.
    Relay {
        /// The relay's name.
        name: &'a MemberName,
        /// How.
        by: RelayedBy,
        /// Its endpoint.
        endpoint: SocketAddr,
    },
    /// Nothing.
    None,
}
