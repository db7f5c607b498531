//! What passes between a path and its owner.

use std::net::SocketAddr;

use crate::base::id::AttemptId;
use crate::base::rng::Rng;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::identity::certificate::Certificate;
use crate::identity::keys::WgSecret;
use crate::identity::names::MemberName;
use crate::nat::candidate::Candidate;
use crate::punch::keys::Side;
use crate::punch::plan;
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
    pub wg: &'a WgSecret,
    /// Our own end.
    pub local: &'a plan::Local,
    /// Number of the next stream.
    pub next_stream: &'a mut u32,
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
    /// Relays, best first.
    pub relays: Vec<RelayGrant>,
}

/// A relay session that we may use.
#[derive(Clone, Debug)]
pub struct RelayGrant {
    /// The relay's certificate, verified.
    pub certificate: Certificate,
    /// As the broker offered it.
    pub offer: RelayOffer,
}

/// What carries, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Carrier<'a> {
    /// Straight to the peer, over UDP.
    DirectUdp(SocketAddr),
    /// Straight to the peer, over TCP.
    DirectTcp(SocketAddr),
    /// Through a relay.
    Relay {
        /// The relay's name.
        name: &'a MemberName,
        /// Whether we reach it over TCP.
        tcp: bool,
        /// Its endpoint.
        endpoint: SocketAddr,
    },
    /// Nothing.
    None,
}
