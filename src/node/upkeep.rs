//! What time brings to a node: sessions' own timers, certificates that end, peers that nobody needs any more.

use std::time::Duration;

use crate::base::time::Now;
use crate::identity::certificate::Certificate;
use crate::node::Node;
use crate::node::output::Notice;
use crate::node::output::Output;
use crate::node::peers::Kind;
use crate::node::peers::Peer;
use crate::node::peers::PeerId;
use crate::path::Load;
use crate::tunnel::session::HANDSHAKE_LEN;
use crate::tunnel::session::Tick;

/// Peers that are kept although nothing was exchanged with them lately; each costs some KiB and a look each second.
const MAX_IDLE_PEERS: usize = 128;

impl Node {
    /// Lets time pass in the sessions that have something under way, or in `all`. Whether there are such.
    pub(super) fn tick_sessions(&mut self, all: bool, now: Now, out: &mut Output) -> bool {
        let mut buffer = [0; HANDSHAKE_LEN];
        let mut said: Vec<(PeerId, Vec<u8>)> = Vec::new();
        let mut busy = false;
        for (id, session) in self.peers.sessions_mut().filter(|(_, session)| all || !session.is_resting()) {
            match session.tick(&mut buffer) {
                Tick::Send(n) => said.extend(buffer.get(..n).map(|message| (id, message.to_vec()))),
                Tick::Quiet | Tick::Expired => {}
            }
            busy |= !session.is_resting();
        }
        for (id, message) in said {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            let Some(leg) = peer.leg() else { continue };
            leg.push(&mut out.outbox, &message);
            if let Some(path) = peer.path_mut() {
                path.handle_sent(leg, Load::default(), now.instant);
            }
        }
        busy
    }

    /// Certificates end and are taken back while sessions run.
    pub(super) fn audit_certificates(&mut self, now: Now, out: &mut Output) {
        // Their signatures were checked when they came; only time and revocation can change what they are worth.
        let revocations = &self.revocations;
        let believed = |certificate: &Certificate| {
            !revocations.contains(&certificate.serial) && now.unix <= certificate.not_after
        };
        let doomed: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| matches!(&peer.kind, Kind::Mesh(mesh) if !believed(&mesh.certificate)))
            .map(|(id, _)| id)
            .collect();
        let gone = self.directory.retain(|known| believed(&known.certificate));
        for id in doomed {
            if let Some(peer) = self.peers.get(id) {
                tracing::info!(peer = %peer.name, "dropped: its certificate is no longer valid");
            }
            self.drop_peer(id, now, out);
        }
        if !gone.is_empty() {
            self.announce_directory(out);
        }
        if self.revocations.contains(&self.me.certificate.serial) {
            out.notices.push_back(Notice::Expelled(
                "this machine's certificate was revoked: ask the network's admin for a new invite".to_owned(),
            ));
        }
        self.renew(now, out);
    }

    /// Peers that nothing was exchanged with lately keep their figures and their session for a while; with too many of
    /// them those go whose session is the oldest. All of it comes back when it is needed.
    pub(super) fn forget_idle_peers(&mut self, now: Now, out: &mut Output) {
        let pinged = |id: PeerId| self.pings.iter().any(|ping| ping.peer == id);
        let is_idle = |peer: &Peer| match &peer.kind {
            Kind::Mesh(mesh) => {
                !mesh.path.is_active(now.instant) && mesh.path.leg().is_none() && !peer.has_kept()
            }
            Kind::Stock { .. } => false,
        };
        let mut idle: Vec<(Duration, PeerId)> = self
            .peers
            .iter()
            .filter(|(id, peer)| is_idle(peer) && !pinged(*id))
            .map(|(id, peer)| (peer.session.last_handshake().unwrap_or(Duration::MAX), id))
            .collect();
        idle.sort_unstable();
        for (_, id) in idle.into_iter().skip(MAX_IDLE_PEERS) {
            self.drop_peer(id, now, out);
        }
    }
}
