//! What the member knows of the NATs in front of it: what a survey measured, and what its own registrations show.

use std::net::SocketAddr;

use crate::nat::behavior::Mapping;
use crate::nat::behavior::Profile;
use crate::nat::behavior::mapping_of;
use crate::node::Node;
use crate::node::output::Output;
use crate::node::peers::Kind;
use crate::node::registration::Registration;

impl Node {
    /// What a survey of the NATs has found by now; a later one replaces it. The broker hears what is new.
    pub fn handle_profile(&mut self, measured: Profile, out: &mut Output) {
        self.measured = measured;
        let before = self.profile;
        // The broker's answers to the data socket tell whether UDP passes better than those to any other.
        let passes = self.profile.udp.passes.or(measured.udp.passes);
        let learnt = self.profile.udp.mapping;
        self.profile = measured;
        self.profile.udp.passes = passes;
        if measured.udp.mapping == Mapping::Unknown {
            self.profile.udp.mapping = learnt;
        }
        if self.profile != before {
            self.announce_candidates(out);
        }
    }

    /// The network is another one: nothing is known of its NATs.
    pub(super) fn forget_profile(&mut self) {
        self.measured = Profile::default();
        self.profile = Profile::default();
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
