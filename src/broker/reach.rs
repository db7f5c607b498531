//! Where members, relays and the broker itself are reached, as far as the broker can tell.

use std::net::IpAddr;
use std::net::SocketAddr;

use crate::base::addr::is_candidate;
use crate::broker::candidates;
use crate::broker::registry::Action;
use crate::broker::registry::Broker;
use crate::broker::registry::Conn;
use crate::broker::registry::ConnId;
use crate::broker::relays::Delays;
use crate::broker::relays::Relay;
use crate::broker::relays::endpoints_for;
use crate::identity::names::MemberName;
use crate::nat::candidate::Candidate;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MAX_PLACES;
use crate::wire::broker::RelayPlace;

impl Broker {
    /// Where peers may try to reach a member. Who comes from this very machine is seen at an address that means nothing
    /// elsewhere; then the addresses count at which this broker is reached, because a one-to-one NAT in front of it
    /// serves the member beside it too.
    pub(super) fn candidates_of(&self, conn: &Conn) -> Vec<Candidate> {
        let claimed = conn.presence.as_ref().map_or(&[][..], |p| p.candidates.as_slice());
        let advertised = &self.settings.advertised_udp;
        let seen = conn.mapped.iter().flatten().flat_map(|mapped| {
            let here = mapped.ip().is_loopback();
            let elsewhere = advertised.iter().filter(move |a| here && a.is_ipv4() == mapped.is_ipv4());
            let elsewhere = elsewhere.map(|a| SocketAddr::new(a.ip(), mapped.port()));
            elsewhere.chain([*mapped]).filter(|addr| is_candidate(*addr))
        });
        candidates::with_mapped(claimed, seen)
    }

    /// Relays that could serve now.
    pub(super) fn relays(&self) -> Vec<Relay> {
        let local = self.local_relays.iter().map(|(certificate, endpoints)| Relay {
            certificate: certificate.clone(),
            endpoints: endpoints.clone(),
            seen_at: None,
            load: self.attempts.load_of(&certificate.subject.uri.name),
        });
        let remote = self.relaying.iter().filter_map(|name| {
            let (_, conn) = self.connection_of(name)?;
            let presence = conn.presence.as_ref().filter(|p| !p.relay.is_empty())?;
            let mut endpoints = presence.relay.clone();
            // From this very machine it is reached where this broker is reached. Behind any other address that nobody
            // else can use, an open endpoint means nothing.
            let here = conn.source.ip().is_loopback();
            let seen = here || is_candidate(conn.source);
            endpoints.retain(|endpoint| seen || !endpoint.addr.ip().is_unspecified());
            Some(Relay {
                certificate: conn.certificate.clone(),
                endpoints,
                seen_at: (!here).then(|| conn.source.ip()),
                load: self.attempts.load_of(name),
            })
        });
        local.chain(remote).collect()
    }

    /// How far the relays are from a member, if it has said so.
    pub(super) fn delays_of(&self, name: &MemberName) -> Option<&Delays> {
        let (_, conn) = self.connection_of(name)?;
        conn.presence.as_ref().map(|presence| &presence.delays)
    }

    /// Asks the members at `conns` how far the relays are. Not if there is but one: then there is nothing to choose.
    pub(super) fn tell_relays(&self, conns: &[ConnId], out: &mut Vec<Action>) {
        let relays = self.relays();
        if relays.len() < 2 {
            return;
        }
        for id in conns {
            let Some(conn) = self.conns.get(id).filter(|c| c.certificate.subject.roles.member) else {
                continue;
            };
            let place = |relay: &Relay| RelayPlace {
                name: relay.name().clone(),
                endpoints: endpoints_for(relay, conn.local.ip()),
            };
            let places = relays.iter().take(MAX_PLACES).map(place).collect();
            out.push(Action::Send(*id, FromBroker::Relays(places)));
        }
    }

    pub(super) fn is_inside(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(v4) => self.settings.prefix.contains(v4),
            IpAddr::V6(v6) => self.settings.prefix_v6.contains(v6),
        }
    }

    pub(super) fn udp_for(&self, local: SocketAddr) -> Vec<SocketAddr> {
        let mut all = self.settings.advertised_udp.clone();
        let here = self.settings.udp_port.map(|port| SocketAddr::new(local.ip(), port));
        all.extend(here.filter(|addr| !all.contains(addr)));
        all
    }
}
