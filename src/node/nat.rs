//! What the member knows of the NATs in front of it: what a survey measured, and what its own registrations show.

use std::net::SocketAddr;

use crate::base::time::Now;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Forged;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::Profile;
use crate::nat::behavior::mapping_of;
use crate::node::Node;
use crate::node::output::Output;
use crate::node::peers::Kind;
use crate::node::peers::Peer;
use crate::node::registration::Registration;
use crate::punch::method::depends;

impl Node {
    /// What a survey of the NATs has found by now; a later one replaces it. The broker hears what is new.
    pub fn handle_profile(&mut self, measured: Profile, now: Now, out: &mut Output) {
        self.measured = measured;
        let before = self.profile;
        // The broker's answers to the data socket tell whether UDP passes better than those to any other.
        let passes = self.profile.udp.passes.or(measured.udp.passes);
        let learnt = self.profile.udp.mapping;
        self.profile = Profile { forged: before.forged, ..measured };
        self.profile.udp.passes = passes;
        if measured.udp.mapping == Mapping::Unknown {
            self.profile.udp.mapping = learnt;
        }
        if self.profile != before {
            self.announce_candidates(out);
        }
        let searched = |udp: Behavior| depends(udp.mapping).then_some(udp.ports);
        let by_hand = |profile: Profile| profile.segments.synack_out == Some(true);
        let ports = |profile: Profile| {
            (profile.tcp.mapping, profile.tcp.ports, searched(profile.udp), by_hand(profile))
        };
        if ports(self.profile) != ports(before) {
            // Whoever is being punched on wrong assumptions, or was in vain, is punched anew.
            self.retry_indirect(now, out);
        }
    }

    /// Something of ours became known that peers need: whoever is not reached directly is asked for again.
    pub(super) fn retry_indirect(&mut self, now: Now, out: &mut Output) {
        for id in self.peers.ids() {
            if let Some(path) = self.peers.get_mut(id).and_then(Peer::path_mut) {
                path.handle_new_candidates(now.instant);
            }
            self.pump(id, now, out);
        }
    }

    /// The network is another one: nothing is known of its NATs.
    pub(super) fn forget_profile(&mut self) {
        self.measured = Profile::default();
        self.profile = Profile { forged: self.forged(), ..Profile::default() };
    }

    /// The broker is another one: whether it forges, and what arrives of that, is to be seen.
    pub(super) fn expect_forged(&mut self, out: &mut Output) {
        self.set_forged(self.forged(), out);
    }

    /// Answers in a peer's name were sent to us, and none came.
    pub(super) fn miss_forged(&mut self, out: &mut Output) {
        self.set_forged(Forged::Lost, out);
    }

    fn set_forged(&mut self, forged: Forged, out: &mut Output) {
        if std::mem::replace(&mut self.profile.forged, forged) != forged {
            self.announce_candidates(out);
        }
    }

    fn forged(&self) -> Forged {
        let forges = self.link.up().is_some_and(|up| up.registered.forge);
        match (forges, self.config.by_hand) {
            (false, _) => Forged::Never,
            (true, true) => Forged::Able,
            (true, false) => Forged::Unable,
        }
    }

    /// A registration was answered, or a bind at a relay: perhaps we learnt something about our NAT. Two views are less
    /// than a survey's, and count only until there is one.
    pub(super) fn learn_mapping(&mut self, out: &mut Output) {
        let Some(mapped) = self.registrations.iter().find_map(Registration::mapped) else { return };
        let local = self.hosts.iter().find(|host| host.ip() == mapped.ip() && host.port() == mapped.port());
        let relay = self.peers.iter().find_map(|(_, peer)| match &peer.kind {
            Kind::Mesh(mesh) => mesh.path.relay_mapped(),
            Kind::Stock { .. } => None,
        });
        let same_family = relay.filter(|seen| seen.is_ipv4() == mapped.is_ipv4());
        let seen =
            mapping_of(local.copied().unwrap_or_else(|| SocketAddr::from(([0; 4], 0))), mapped, same_family);
        let before = self.profile;
        self.profile.udp.passes = Some(true);
        if self.measured.udp.mapping == Mapping::Unknown && seen != Mapping::Unknown {
            self.profile.udp.mapping = seen;
        }
        if self.profile != before {
            self.announce_candidates(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::keys::SigningKey;
    use crate::identity::keys::WgSecret;
    use crate::node::output::Order;
    use crate::node::rendezvous::tests::SIGNED;
    use crate::node::rendezvous::tests::at;
    use crate::node::rendezvous::tests::authority;
    use crate::node::rendezvous::tests::node;

    #[test]
    fn what_was_measured_is_announced_once_and_what_the_data_socket_knows_is_not_forgotten() {
        let mut node = node(&authority(), &SigningKey::generate(), &WgSecret::generate());
        node.profile.udp =
            Behavior { passes: Some(true), mapping: Mapping::AddressAndPortDependent, ..Behavior::default() };
        let tcp =
            Behavior { passes: Some(true), mapping: Mapping::EndpointIndependent, ..Behavior::default() };
        let early = Profile { udp: Behavior::default(), tcp, ..Profile::default() };
        assert_eq!(announced(&mut node, early), Some(Profile { udp: node.profile.udp, ..early }));
        assert_eq!(announced(&mut node, early), None, "nothing is new");

        let udp = Behavior { passes: Some(false), mapping: Mapping::AddressDependent, ..Behavior::default() };
        let told = announced(&mut node, Profile { udp, ..early }).unwrap();
        assert_eq!(told.udp.mapping, Mapping::AddressDependent, "a survey has more views");
        assert_eq!(told.udp.passes, Some(true), "the broker answers the data socket");
        node.forget_profile();
        assert_eq!(node.profile, Profile::default());
    }

    fn announced(node: &mut Node, measured: Profile) -> Option<Profile> {
        let mut out = Output::default();
        node.handle_profile(measured, at(SIGNED), &mut out);
        out.orders.iter().find_map(|order| match order {
            Order::Register(register) => Some(register.profile),
            _ => None,
        })
    }
}
