//! The peers that a node has a session with or wants one, and the indexes by which they are found.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::time::UnixTime;
use crate::identity::certificate::Certificate;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberName;
use crate::nat::behavior::Profile;
use crate::path::Path;
use crate::path::leg::Leg;
use crate::tunnel::session::HANDSHAKE_LEN;
use crate::tunnel::session::Session;
use crate::tunnel::session::SessionIndex;

/// Packets that wait for a path to one peer, at most.
const MAX_WAITING: usize = 32;
/// A packet that waited longer is of no use to anybody.
const WAITS_FOR: Duration = Duration::from_secs(3);
/// The answer to a handshake that rode on an introduction comes within this, or packets start another. Beginning one
/// earlier would make boringtun forget the first, and two members that ask at once would cross for ever.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// Introductions of one peer that are still looked up by name.
const MAX_ATTEMPTS: usize = 8;

/// Number of a peer in this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u32);

/// A way that `status` and the log were told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announced {
    /// The way.
    pub leg: Leg,
    /// Whether it was a direct one then.
    pub direct: bool,
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: MemberName,
    /// Its key.
    pub wg: WgPublic,
    /// Its tunnel.
    pub session: Session,
    /// How it is reached.
    pub kind: Kind,
    /// Payload bytes received.
    pub rx_bytes: u64,
    /// Payload bytes sent.
    pub tx_bytes: u64,
    /// What `status` and the log were last told.
    pub announced: Option<Announced>,
    index: SessionIndex,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    initiated: Option<Instant>,
    attempts: VecDeque<AttemptId>,
    /// Its place among the deadlines, and whether that may be out of date.
    due: Option<Instant>,
    touched: bool,
}

/// How a peer is reached.
#[derive(Debug)]
pub enum Kind {
    /// A member of the network: by introduction.
    Mesh(Box<Mesh>),
    /// A stock WireGuard peer: where it says, or where it was last heard.
    Stock {
        /// Its endpoint, configured or learnt from authentic messages.
        endpoint: Option<SocketAddr>,
    },
}

/// A member.
#[derive(Debug)]
pub struct Mesh {
    /// Its certificate, verified.
    pub certificate: Certificate,
    /// Which way.
    pub path: Path,
    /// What its NATs do, by its own word.
    pub profile: Profile,
    /// When its certificate was last believed.
    pub verified: UnixTime,
}

impl Peer {
    /// A peer that nothing was exchanged with.
    #[must_use]
    pub fn new(name: MemberName, wg: WgPublic, kind: Kind, session: Session, index: SessionIndex) -> Self {
        Self {
            name,
            wg,
            session,
            kind,
            rx_bytes: 0,
            tx_bytes: 0,
            announced: None,
            index,
            waiting: VecDeque::new(),
            initiated: None,
            attempts: VecDeque::new(),
            due: None,
            touched: false,
        }
    }

    /// Where messages to it leave.
    #[must_use]
    pub fn leg(&self) -> Option<Leg> {
        match &self.kind {
            Kind::Mesh(mesh) => mesh.path.leg(),
            Kind::Stock { endpoint } => endpoint.map(Leg::udp),
        }
    }

    /// Its path, if it is a member.
    pub fn path_mut(&mut self) -> Option<&mut Path> {
        match &mut self.kind {
            Kind::Mesh(mesh) => Some(&mut mesh.path),
            Kind::Stock { .. } => None,
        }
    }

    /// Where packets to it leave, if nothing is to be waited for: the session may be about to come up.
    #[must_use]
    pub fn ready_leg(&self, tcp: bool, now: Instant) -> Option<Leg> {
        let soon = self.initiated.is_some_and(|at| now < at + ANSWERED_WITHIN);
        let leg = match &self.kind {
            Kind::Mesh(mesh) if tcp => mesh.path.leg_for_tcp(),
            Kind::Mesh(_) | Kind::Stock { .. } => self.leg(),
        };
        leg.filter(|_| self.session.is_established() || !soon)
    }

    /// A handshake message to ride on an introduction.
    pub fn initiate(&mut self, now: Instant) -> Vec<u8> {
        let mut buffer = [0; HANDSHAKE_LEN];
        let len = self.session.initiate(&mut buffer, true).unwrap_or(0);
        self.initiated = Some(now);
        buffer.get(..len).unwrap_or_default().to_vec()
    }

    /// Keeps a packet until there is a path; the oldest goes when there are too many. True if one had to go.
    pub fn keep(&mut self, packet: &[u8], now: Instant) -> bool {
        let full = self.waiting.len() == MAX_WAITING;
        if full {
            self.waiting.pop_front();
        }
        self.waiting.push_back((now, packet.to_vec()));
        full
    }

    /// The next kept packet that is still worth sending.
    pub fn next_kept(&mut self, now: Instant) -> Option<Vec<u8>> {
        while let Some((since, packet)) = self.waiting.pop_front() {
            if now < since + WAITS_FOR {
                return Some(packet);
            }
        }
        None
    }

    /// Whether packets wait.
    #[must_use]
    pub fn has_kept(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// When time alone changes something: its path's deadline, or the end of the wait for a session that was to come up.
    fn deadline(&self) -> Option<Instant> {
        let path = match &self.kind {
            Kind::Mesh(mesh) => mesh.path.poll_timeout(),
            Kind::Stock { .. } => None,
        };
        let ready = self.initiated.filter(|_| self.has_kept() && self.leg().is_some());
        path.into_iter().chain(ready.map(|at| at + ANSWERED_WITHIN)).min()
    }
}

/// All peers; one owner of every index, so that they cannot disagree.
///
/// A deadline is worked out again only for those that something happened to, so an event costs the same among a thousand
/// peers as among two.
#[derive(Debug, Default)]
pub struct Peers {
    next: u32,
    peers: BTreeMap<PeerId, Peer>,
    by_key: BTreeMap<WgPublic, PeerId>,
    by_index: BTreeMap<SessionIndex, PeerId>,
    by_attempt: BTreeMap<AttemptId, PeerId>,
    deadlines: BTreeSet<(Instant, PeerId)>,
    touched: Vec<PeerId>,
}

impl Peers {
    /// Adds a peer; one with the same key is replaced.
    pub fn insert(&mut self, peer: Peer) -> PeerId {
        if let Some(old) = self.by_key.get(&peer.wg).copied() {
            let _ = self.remove(old);
        }
        let id = PeerId(self.next);
        self.next += 1;
        self.by_key.insert(peer.wg, id);
        self.by_index.insert(peer.index, id);
        self.peers.insert(id, peer);
        let _ = self.get_mut(id);
        id
    }

    /// Removes a peer and every trace of it.
    pub fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let peer = self.peers.remove(&id)?;
        self.by_key.remove(&peer.wg);
        self.by_index.remove(&peer.index);
        if let Some(due) = peer.due {
            self.deadlines.remove(&(due, id));
        }
        for attempt in &peer.attempts {
            self.by_attempt.remove(attempt);
        }
        Some(peer)
    }

    /// Remembers that `attempt` introduced `id`; the oldest of too many is forgotten.
    pub fn introduce(&mut self, id: PeerId, attempt: AttemptId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.attempts.len() == MAX_ATTEMPTS
            && let Some(old) = peer.attempts.pop_front()
        {
            self.by_attempt.remove(&old);
        }
        peer.attempts.push_back(attempt);
        self.by_attempt.insert(attempt, id);
    }

    /// A peer by number.
    #[must_use]
    pub fn get(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(&id)
    }

    /// A peer by number, of which anything may change.
    pub fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let peer = self.peers.get_mut(&id)?;
        if !peer.touched {
            peer.touched = true;
            self.touched.push(id);
        }
        Some(peer)
    }

    /// The earliest deadline of them all.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        self.refresh();
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Those whose deadline has come.
    #[must_use]
    pub fn due(&mut self, now: Instant) -> Vec<PeerId> {
        self.refresh();
        self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }

    fn refresh(&mut self) {
        for id in self.touched.drain(..) {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            peer.touched = false;
            let due = peer.deadline();
            if due == peer.due {
                continue;
            }
            self.deadlines.extend(due.map(|at| (at, id)));
            if let Some(old) = std::mem::replace(&mut peer.due, due) {
                self.deadlines.remove(&(old, id));
            }
        }
    }

    /// The sessions of all, whose own timers no deadline here depends on.
    pub fn sessions_mut(&mut self) -> impl Iterator<Item = (PeerId, &mut Session)> {
        self.peers.iter_mut().map(|(id, peer)| (*id, &mut peer.session))
    }

    /// By WireGuard key.
    #[must_use]
    pub fn by_key(&self, key: &WgPublic) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// By the index in a message for one of our sessions.
    #[must_use]
    pub fn by_index(&self, index: SessionIndex) -> Option<PeerId> {
        self.by_index.get(&index).copied()
    }

    /// By introduction.
    #[must_use]
    pub fn by_attempt(&self, attempt: &AttemptId) -> Option<PeerId> {
        self.by_attempt.get(attempt).copied()
    }

    /// By name.
    #[must_use]
    pub fn by_name(&self, name: &MemberName) -> Option<PeerId> {
        self.peers.iter().find(|(_, peer)| peer.name == *name).map(|(id, _)| *id)
    }

    /// Whether an index is taken.
    #[must_use]
    pub fn has_index(&self, index: SessionIndex) -> bool {
        self.by_index.contains_key(&index)
    }

    /// All numbers.
    #[must_use]
    pub fn ids(&self) -> Vec<PeerId> {
        self.peers.keys().copied().collect()
    }

    /// All peers.
    pub fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        self.peers.iter().map(|(id, peer)| (*id, peer))
    }
}
