//! TCP at the level of its segments: SYNs, what answers them, and whole messages after that.
//!
//! | module | one line |
//! |---|---|
//! | `segment` | what crosses the network |
//! | `socket` | one end of a connection: states, repetitions, keep-alives, limits |
//! | `host` | all sockets of a machine, as the program on it sees them |
//! | [`nat`] | what a NAT does with segments |
//! | `survey` | what a member is told of its NATs |
//!
//! A stream to a peer, to a relay, or to the broker that tells what it looks like from there goes the same way: out of its
//! host, outward through NATs, across the middle, inward through NATs, to whoever has the address; and any of these may
//! drop or refuse it. Hops count, so that a SYN with a low time to live opens its own NAT and gets no further.
//!
//! What is left out: bytes and windows (a message is one segment, whatever its length), congestion, TIME_WAIT, and the
//! member's connection to the broker, which `link` keeps by other means.

mod host;
pub mod nat;
mod segment;
mod socket;
mod survey;

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

pub(crate) use host::Host;
pub(crate) use host::News;
pub use nat::Refusal;
pub use nat::Tcp;
pub use segment::Kind;
pub use segment::Segment;

use crate::Who;
use crate::ms;
use crate::net::INTERNET;
use crate::net::Owner;
use crate::net::Realm;
use crate::net::Sent;
use crate::server::BROKER;
use crate::world::Arrival;
use crate::world::World;

/// Routers between any two access lines.
const HOPS_ACROSS: u8 = 6;
/// From a router near by, there and back.
const NEARBY: Duration = ms(5);

impl World {
    /// Sends a segment of a machine: onto its LAN, or through its NATs into the world.
    pub(crate) fn send_segment(&mut self, who: Who, from: SocketAddr, to: SocketAddr, segment: Segment) {
        let machine = &self.machines[who.0];
        // A socket keeps its address when the machine has moved; nothing comes of it.
        if from.ip() != machine.inside.ip() {
            return;
        }
        let (realm, no_tcp) = (self.net.behind(machine.nat), machine.no_tcp);
        let outside = realm == INTERNET || self.net.owner(realm, to.ip()).is_none();
        if no_tcp && outside && to != BROKER {
            if let Kind::Syn(number) = segment.kind {
                let segment = Segment::new(Kind::Unreachable(number));
                self.schedule(NEARBY, Arrival::Segment { realm, from: to, to: from, segment });
            }
            return;
        }
        self.route_segment(realm, from, to, segment);
    }

    /// Sends a segment from `from` in `realm`.
    pub(crate) fn route_segment(
        &mut self,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
        mut segment: Segment,
    ) {
        let now = self.now.instant;
        let (kind, mut at, mut died) = (segment.kind.clone(), (realm, from), false);
        let hops = &mut segment.ttl;
        let way = self.net.route(realm, from, to, &mut self.rng, |nat, outside, source| {
            died = *hops <= 1;
            if died {
                return None;
            }
            *hops -= 1;
            let source = nat.tcp.outward(&nat.behavior, source, to, &kind, now)?;
            at = (outside, source);
            Some(source)
        });
        let (realm, source) = at;
        self.trace.segment(now - self.start, source, to, &kind);
        if self.records {
            self.segments.push(SeenSegment { at: now, from: source, to, kind: kind.clone() });
        }
        died |= way.is_some_and(|way| way.crosses) && segment.ttl <= HOPS_ACROSS;
        if let (true, Kind::Syn(number)) = (died, &kind) {
            let segment = Segment::new(Kind::Expired(*number));
            self.schedule(NEARBY, Arrival::Segment { realm, from: to, to: source, segment });
        }
        if let Some(Sent { from, realm, after: Some(after) }) = way.map(|way| way.sent).filter(|_| !died) {
            self.schedule(after, Arrival::Segment { realm, from, to, segment });
        }
    }

    /// A segment arrives for `to` in `realm`.
    pub(crate) fn deliver_segment(
        &mut self,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
        segment: Segment,
    ) {
        let now = self.now;
        let (kind, mut refused) = (&segment.kind, None);
        let got = self.net.admit(realm, to, |nat, outside, port| {
            match nat.tcp.inward(&nat.behavior, from, port, kind, now.instant) {
                nat::Inward::To(inside) => return Some(inside),
                nat::Inward::Refused(kind) => {
                    refused = Some((outside, SocketAddr::new(nat.public.into(), port), kind));
                }
                nat::Inward::Dropped => {}
            }
            None
        });
        if let Some((outside, at, kind)) = refused {
            return self.route_segment(outside, at, from, Segment::new(kind));
        }
        match got {
            Ok((Owner::Server, to)) => {
                self.trace.event(now.instant - self.start, usize::MAX, 3);
                self.server.handle_segment(from, to, segment, now);
                self.collect_server();
            }
            Ok((Owner::Machine(who), to)) if self.machines[who.0].node.is_some() => {
                self.trace.event(now.instant - self.start, who.0, 3);
                self.at_member(who, |m| m.handle_segment(from, to, segment.kind, now));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// A segment as it crossed the middle of the internet, or a LAN.
#[derive(Clone, Debug)]
pub struct SeenSegment {
    /// When it was sent.
    pub at: Instant,
    /// Its source, after the NATs on its way out.
    pub from: SocketAddr,
    /// Its destination, before the NATs on its way in.
    pub to: SocketAddr,
    /// What it says.
    pub kind: Kind,
}
