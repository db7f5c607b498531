//! What a node says about itself and its peers.

use std::net::IpAddr;

use crate::base::time::Now;
use crate::identity::names::MemberName;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::Profile;
use crate::node::Node;
use crate::node::directory::Known;
use crate::node::peers::Kind;
use crate::node::peers::Mesh;
use crate::node::peers::Peer;
use crate::node::registration::Registration;
use crate::node::status::Activity;
use crate::node::status::BrokerStatus;
use crate::node::status::PathKind;
use crate::node::status::PeerStatus;
use crate::node::status::Snapshot;
use crate::path::Carrier;
use crate::path::Path;
use crate::path::effort::Effort;
use crate::punch::keys::Side;
use crate::punch::plan;

impl Node {
    pub(super) fn snapshot(&self, now: Now) -> Snapshot {
        let mut peers: Vec<PeerStatus> =
            self.peers.iter().map(|(_, peer)| self.peer_status(peer, now)).collect();
        let others =
            self.directory.iter().filter(|known| self.peers.by_key(&known.certificate.subject.wg).is_none());
        peers.extend(others.map(stranger_status));
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Snapshot {
            network: self.me.anchor.network.clone(),
            name: self.me.certificate.subject.uri.name.clone(),
            addrs: self.me.addrs,
            wg: self.me.certificate.subject.wg,
            certificate_until: self.me.certificate.not_after,
            candidates: self.candidates(),
            profile: self.profile,
            brokers: vec![self.broker_status(now)],
            peers,
            unknown_peers: self.unknown_peers(),
            revocations: self.revocations.version,
            served: self.served(),
            counters: self.counters,
            methods: self.methods.counts(),
        }
    }

    /// Rules for members that may be misspelt.
    fn unknown_peers(&self) -> Vec<MemberName> {
        let (_, rules) = &self.config.transport;
        let known =
            |name: &MemberName| self.directory.get(name).is_some() || self.peers.by_name(name).is_some();
        rules.keys().filter(|name| !known(name)).cloned().collect()
    }

    fn broker_status(&self, now: Now) -> BrokerStatus {
        let up = self.link.up();
        let works: Vec<Option<bool>> = self.registrations.iter().map(Registration::works).collect();
        BrokerStatus {
            name: up.map(|up| up.name.clone()),
            address: up.map(|up| up.broker),
            connected: up.is_some(),
            problem: self.link.problem.clone().or_else(|| self.broker_clock?.complaint(now)),
            udp: works.iter().copied().flatten().max(),
            mapped: self.registrations.iter().find_map(Registration::mapped),
            rtt: self.registrations.iter().find_map(Registration::rtt),
        }
    }

    fn peer_status(&self, peer: &Peer, now: Now) -> PeerStatus {
        let known = self.directory.get(&peer.name);
        let path = match &peer.kind {
            Kind::Mesh(mesh) => Some(&mesh.path),
            Kind::Stock { .. } => None,
        };
        let offline = known.is_some_and(|known| !known.online);
        let (rtt, loss, why, next_try, groups, activity) = match &peer.kind {
            Kind::Stock { .. } => {
                let activity = if peer.session.is_established() { Activity::Active } else { Activity::Idle };
                (None, None, None, None, Vec::new(), activity)
            }
            Kind::Mesh(mesh) => {
                let (rtt, loss) = mesh.path.quality();
                let (why, next_try) = mesh.path.why(now.instant);
                let nat = nat_reason(&self.profile, mesh, self.local.udp_blocked, self.config.udp);
                // What the NATs do to UDP is no reason yet: TCP was tried too.
                let why = match (nat, mesh.path.no_stream()) {
                    (Some(nat), Some(tcp)) => Some(format!("{nat}; {tcp}")),
                    (nat, _) => nat.or(why),
                };
                let why = why.filter(|_| mesh.path.is_active(now.instant) && !mesh.path.is_direct());
                let groups = mesh.certificate.subject.groups.clone();
                (rtt, loss, why, next_try, groups, activity(mesh, offline, now))
            }
        };
        PeerStatus {
            name: peer.name.clone(),
            addrs: match &peer.kind {
                Kind::Mesh(_) => addrs(peer),
                Kind::Stock { .. } => {
                    let id = self.peers.by_key(&peer.wg);
                    id.map(|id| self.routes.of(id).map(|net| net.ip()).collect()).unwrap_or_default()
                }
            },
            wg: peer.wg,
            groups,
            stock: matches!(peer.kind, Kind::Stock { .. }),
            path: path_kind(peer),
            how: match &peer.kind {
                Kind::Mesh(mesh) => mesh.path.how(),
                Kind::Stock { .. } => None,
            },
            activity,
            rtt,
            loss,
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            last_handshake: peer.session.last_handshake(),
            last_seen: known.filter(|known| !known.online).map(|known| known.last_seen),
            why,
            choice: path.and_then(|path| path.choice(now.instant)),
            beside: path.and_then(Path::beside),
            next_try,
        }
    }
}

/// What carries to a peer.
pub(super) fn path_kind(peer: &Peer) -> PathKind {
    match &peer.kind {
        Kind::Mesh(mesh) => match mesh.path.carrier() {
            Carrier::DirectUdp(to) => PathKind::DirectUdp(to),
            Carrier::DirectTcp(to, method) => PathKind::DirectTcp(to, method),
            Carrier::Relay { name, by, endpoint } => PathKind::Relay { name: name.clone(), by, endpoint },
            Carrier::None => PathKind::None,
        },
        Kind::Stock { endpoint } => endpoint.map_or(PathKind::None, PathKind::DirectUdp),
    }
}

/// A member's overlay addresses.
pub(super) fn addrs(peer: &Peer) -> Vec<IpAddr> {
    match &peer.kind {
        Kind::Mesh(mesh) => mesh
            .certificate
            .subject
            .addrs
            .map(|a| vec![IpAddr::V4(a.v4), IpAddr::V6(a.v6)])
            .unwrap_or_default(),
        Kind::Stock { .. } => Vec::new(),
    }
}

fn activity(mesh: &Mesh, offline: bool, now: Now) -> Activity {
    if mesh.path.leg().is_some() {
        return Activity::Active;
    }
    let trying = matches!(mesh.path.effort(), Effort::Asking { .. } | Effort::Punching { .. });
    match (offline, trying && mesh.path.is_active(now.instant)) {
        (true, _) => Activity::Offline,
        (false, true) => Activity::Connecting,
        (false, false) => Activity::Idle,
    }
}

fn stranger_status(known: &Known) -> PeerStatus {
    let subject = &known.certificate.subject;
    PeerStatus {
        name: subject.uri.name.clone(),
        addrs: vec![IpAddr::V4(known.addrs.v4), IpAddr::V6(known.addrs.v6)],
        wg: subject.wg,
        groups: subject.groups.clone(),
        stock: false,
        path: PathKind::None,
        how: None,
        activity: if known.online { Activity::Idle } else { Activity::Offline },
        rtt: None,
        loss: None,
        rx_bytes: 0,
        tx_bytes: 0,
        last_handshake: None,
        last_seen: (!known.online).then_some(known.last_seen),
        why: None,
        choice: None,
        beside: None,
        next_try: None,
    }
}

/// What the two NATs say about why there is no direct path.
fn nat_reason(ours: &Profile, peer: &Mesh, blocked: bool, udp: bool) -> Option<String> {
    let per_destination = |mapping: Mapping| {
        matches!(
            mapping,
            Mapping::AddressDependent | Mapping::AddressAndPortDependent | Mapping::SessionDependent
        )
    };
    let theirs = &peer.profile;
    // Without UDP it is TCP that would have to do it.
    let no_udp = !udp || blocked || theirs.udp.passes == Some(false);
    let over_tcp = no_udp.then(|| plan::choose(ours, theirs, Side::Asking).err()).flatten();
    let reason = if !udp {
        "UDP is switched off here (member.udp = false)"
    } else if blocked {
        "this network lets no UDP out: ask its owner to open outgoing UDP, or stay on the relay"
    } else if theirs.udp.passes == Some(false) {
        "the peer's network lets no UDP out"
    } else if per_destination(ours.udp.mapping) && per_destination(theirs.udp.mapping) {
        "both NATs use another port for each destination: forward a UDP port at one of them (member.listen_port, member.candidates)"
    } else if per_destination(ours.udp.mapping) {
        "our NAT uses another port for each destination, and the peer's lets only known addresses in"
    } else if per_destination(theirs.udp.mapping) {
        "the peer's NAT uses another port for each destination, and ours lets only known addresses in"
    } else {
        return None;
    };
    Some(match over_tcp {
        Some(hopeless) => format!("{reason}; over TCP, {hopeless}"),
        None => reason.to_owned(),
    })
}
