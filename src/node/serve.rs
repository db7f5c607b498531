//! A member that carries others' traffic too, where everybody can reach it and its owner agrees (`relay.serve`): Liu's thesis
//! 3.6.3, Gaballo's super nodes.
//!
//! It relays over the very sockets that its own traffic uses. So what is known about them holds for the relay: what the
//! NAT in front lets in, what its mapping is, what the gateway forwards, what the owner wrote down.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Instant;

use crate::base::addr;
use crate::base::ecn::Ecn;
use crate::base::id::StreamId;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Via;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::MAX_CANDIDATES;
use crate::nat::candidate::Transport;
use crate::node::Node;
use crate::node::output::Order;
use crate::node::output::Output;
use crate::node::registration::Registration;
use crate::node::streams::Owner;
use crate::relay::server::Stats;
use crate::wire::demux;
use crate::wire::relay;
use crate::wire::stun;

/// What a member does for others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    /// Where others reach it; empty as long as strangers cannot.
    pub endpoints: Vec<SocketAddr>,
    /// What it has done.
    pub stats: Stats,
}

/// What a member knows about how others reach it.
pub(super) struct Reach<'a> {
    /// How the NATs in front treat it.
    pub(super) profile: &'a Profile,
    /// Where the broker sees its data sockets.
    pub(super) mapped: Vec<SocketAddr>,
    /// Addresses of its TCP listener.
    pub(super) doors: &'a [SocketAddr],
    /// Own addresses that are the same outside.
    pub(super) public: &'a [IpAddr],
    /// What it tells its peers.
    pub(super) candidates: Vec<Candidate>,
}

/// Where anybody reaches a member: ports that somebody opened for it, and those that the NAT and the firewall in front leave
/// open, as measured. What is unknown counts as shut.
pub(super) fn endpoints(reach: &Reach<'_>) -> Vec<Candidate> {
    let opened = |kind| matches!(kind, Kind::Forwarded | Kind::Configured);
    let opened = reach.candidates.iter().copied().filter(|candidate| opened(candidate.kind));
    let host = |transport| move |addr: SocketAddr| Candidate { transport, kind: Kind::Host, addr };
    let udp = reach.mapped.iter().copied().filter(|_| is_open(&reach.profile.udp)).map(host(Transport::Udp));
    let public = reach.doors.iter().copied().filter(|at| reach.public.contains(&at.ip()));
    let tcp = public.filter(|_| is_open(&reach.profile.tcp)).map(host(Transport::Tcp));
    let mut all: Vec<Candidate> = Vec::new();
    for candidate in opened.chain(udp).chain(tcp) {
        let known = all.iter().any(|k| (k.transport, k.addr) == (candidate.transport, candidate.addr));
        if addr::is_candidate(candidate.addr) && !known && all.len() < MAX_CANDIDATES {
            all.push(candidate);
        }
    }
    all
}

/// Whether strangers get in, at an endpoint that is the same for all of them.
const fn is_open(behavior: &Behavior) -> bool {
    matches!(behavior.filtering, Filtering::Open | Filtering::EndpointIndependent)
        && matches!(behavior.mapping, Mapping::None | Mapping::EndpointIndependent)
}

impl Node {
    /// Where this member relays for others; empty if it does not.
    pub(super) fn relay_endpoints(&self) -> Vec<Candidate> {
        if self.served.is_none() {
            return Vec::new();
        }
        endpoints(&Reach {
            profile: &self.profile,
            mapped: self.registrations.iter().filter_map(Registration::mapped).collect(),
            doors: &self.doors,
            public: &self.local.public,
            candidates: self.candidates(),
        })
    }

    /// What this member does for others, if it is to do anything.
    pub(super) fn served(&self) -> Option<Served> {
        let relay = self.served.as_ref()?;
        let endpoints = self.relay_endpoints().iter().map(|endpoint| endpoint.addr).collect();
        Some(Served { endpoints, stats: relay.stats() })
    }

    /// A message that may be for the relay that this member is. True if it was.
    pub(super) fn serve_message(
        &mut self,
        via: Via,
        from: SocketAddr,
        ecn: Ecn,
        bytes: &[u8],
        now: Now,
        out: &mut Outbox,
    ) -> bool {
        let Some(served) = self.served.as_mut() else { return false };
        // A relay of ours may be a member that we relay for: then its channel tells, which each of us draws at random.
        let ours = match demux::kind(bytes) {
            demux::Kind::Relay => {
                relay::split(bytes).is_ok_and(|(channel, _)| served.is_bound(via, from, channel))
            }
            demux::Kind::Stun => is_bind(bytes),
            demux::Kind::Noise | demux::Kind::Unknown => false,
        };
        if ours {
            served.handle_message(via, from, ecn, bytes, now, out);
        }
        ours
    }

    /// The first frame of a stream that came in: whoever binds over it is relayed for. True if that is so.
    pub(super) fn serve_stream(&mut self, id: StreamId, from: SocketAddr, bytes: &[u8], now: Now) -> bool {
        let Some(served) = self.served.as_mut().filter(|_| is_bind(bytes)) else { return false };
        served.handle_stream_accepted(id, from, now);
        self.streams.insert(id, Owner::Relayed);
        true
    }

    /// Tells the broker when others can reach this relay, or cannot any more.
    pub(super) fn announce_served(&mut self, out: &mut Output) {
        let endpoints = self.relay_endpoints();
        if self.serving != endpoints {
            tracing::info!(?endpoints, "this member relays for others");
            self.serving = endpoints;
            self.announce_candidates(out);
        }
    }

    /// Does what is due for those that are relayed for.
    pub(super) fn drive_served(&mut self, now: Now, out: &mut Output) {
        let Some(served) = self.served.as_mut() else { return };
        served.handle_timeout(now);
        while let Some(id) = served.poll_close() {
            self.streams.remove(&id);
            out.orders.push_back(Order::Stream(StreamOrder::Close(id)));
        }
    }

    pub(super) fn served_timeout(&self) -> Option<Instant> {
        self.served.as_ref().and_then(|served| served.poll_timeout())
    }
}

/// Whether a message asks for a place at a relay.
fn is_bind(bytes: &[u8]) -> bool {
    stun::Received::parse(bytes).is_ok_and(|received| {
        received.message.method == stun::RELAY_BIND && received.message.class == stun::Class::Request
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(mapping: Mapping, udp: Filtering, tcp: Filtering) -> Profile {
        let of = |filtering| Behavior { mapping, filtering, ..Behavior::default() };
        Profile { udp: of(udp), tcp: of(tcp), ..Profile::default() }
    }

    #[test]
    fn a_member_relays_where_everybody_reaches_it_and_nowhere_else() {
        use Filtering::AddressAndPortDependent as Strict;
        use Filtering::EndpointIndependent as Cone;
        use Filtering::Open;
        use Filtering::Unknown;
        let public: IpAddr = "192.0.2.5".parse().unwrap();
        let candidate =
            |transport, kind, addr: &str| Candidate { transport, kind, addr: addr.parse().unwrap() };
        let forwarded = candidate(Transport::Udp, Kind::Forwarded, "203.0.113.7:5000");
        let host = candidate(Transport::Udp, Kind::Host, "192.168.1.7:4000");
        for (case, profile, on_public, claims, wanted) in [
            ("unknown", profile(Mapping::Unknown, Unknown, Unknown), true, vec![host], vec![]),
            ("strict", profile(Mapping::EndpointIndependent, Strict, Strict), false, vec![host], vec![]),
            ("symmetric", profile(Mapping::AddressDependent, Cone, Cone), false, vec![], vec![]),
            (
                "cone",
                profile(Mapping::EndpointIndependent, Cone, Cone),
                false,
                vec![],
                vec!["203.0.113.7:4000"],
            ),
            (
                "public",
                profile(Mapping::None, Open, Open),
                true,
                vec![],
                vec!["203.0.113.7:4000", "192.0.2.5:4001"],
            ),
            ("no SYN gets in", profile(Mapping::None, Open, Strict), true, vec![], vec!["203.0.113.7:4000"]),
            (
                "forwarded",
                profile(Mapping::Unknown, Strict, Strict),
                false,
                vec![forwarded, host],
                vec!["203.0.113.7:5000"],
            ),
        ] {
            let doors = ["192.0.2.5:4001", "192.168.1.7:4001"].map(|at| at.parse().unwrap());
            let reach = Reach {
                profile: &profile,
                mapped: vec!["203.0.113.7:4000".parse().unwrap()],
                doors: &doors,
                public: if on_public { std::slice::from_ref(&public) } else { &[] },
                candidates: claims,
            };
            let got: Vec<String> = endpoints(&reach).iter().map(|e| e.addr.to_string()).collect();
            assert_eq!(got, wanted, "{case}");
        }
    }
}
