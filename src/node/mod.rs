//! Floor 5: a whole member of the mesh as one value.
//!
//! [`Node`] is what the engine, the tests and the simulator drive. Six ways in: a packet of the device, a message of a
//! socket or stream, an event of a stream, an event of the link to the broker, a change of the local network, a request
//! of an operator; and time. Everything that comes out is put into an [`Output`]; nothing is called back.
//!
//! The parts: `peers` (the table and its indexes), `methods` (what opened direct paths), `directory` (who is in the network), `routes` (who owns which inner
//! address), `registration` (the data socket's mapping), and one file per direction of travel: `outbound`, `inbound`,
//! `rendezvous`. The order of events is the caller's; the node keeps deadlines and asks to be woken for them.
//!
//! What a node refuses to do: answer a message that is not authentic, believe a broker about an identity, accept an inner
//! packet from an address that does not belong to its sender, keep more than bounded queues.

pub mod directory;
mod inbound;
pub mod methods;
mod nat;
mod observers;
mod outbound;
pub mod output;
pub mod peers;
mod pings;
pub mod registration;
pub mod rendezvous;
pub mod request;
pub mod routes;
pub mod serve;
mod snapshot;
pub mod status;
mod streams;
mod upkeep;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ipnetwork::IpNetwork;

use crate::base::addr;
use crate::base::addr::OverlayAddrs;
use crate::base::id::PortId;
use crate::base::id::RequestId;
use crate::base::id::SocketId;
use crate::base::id::StreamId;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::base::time::Now;
use crate::base::transmit::StreamOrder;
use crate::identity::agreement::Agreements;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::TrustAnchor;
use crate::identity::keys::WgPublic;
use crate::identity::keys::WgSecret;
use crate::identity::names::MemberName;
use crate::identity::revocation::RevocationList;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind as CandidateKind;
use crate::nat::candidate::MAX_CANDIDATES;
use crate::nat::candidate::Transport;
use crate::node::directory::Directory;
use crate::node::directory::Known;
use crate::node::methods::Methods;
use crate::node::observers::Observers;
use crate::node::output::Notice;
use crate::node::output::Order;
use crate::node::output::Output;
use crate::node::peers::Announced;
use crate::node::peers::Kind;
use crate::node::peers::Mesh;
use crate::node::peers::Peer;
use crate::node::peers::PeerId;
use crate::node::peers::Peers;
use crate::node::registration::Registration;
use crate::node::request::Reply;
use crate::node::request::Request;
use crate::node::routes::Routes;
use crate::node::status::Counters;
use crate::node::status::Holdings;
use crate::node::streams::Owner;
use crate::path;
use crate::path::Ctx;
use crate::path::Path;
use crate::punch::plan;
use crate::punch::tcp::Dialled;
use crate::punch::tcp::Ready;
use crate::punch::turn::Turn;
use crate::relay::server;
use crate::relay::server::Relay;
use crate::tunnel::gate::SourceGate;
use crate::tunnel::session::Keys;
use crate::tunnel::session::Session;
use crate::tunnel::session::SessionIndex;
use crate::tunnel::session::TICK;
use crate::wire::broker::Register;
use crate::wire::broker::ToBroker;

/// How often certificates are looked at again.
const AUDIT: Duration = Duration::from_secs(30);

/// Ports at which a member can be met; 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ports {
    /// Of the data socket for IPv4.
    pub udp_v4: u16,
    /// Of the data socket for IPv6.
    pub udp_v6: u16,
    /// Of the TCP listener for IPv4.
    pub tcp_v4: u16,
    /// Of the TCP listener for IPv6.
    pub tcp_v6: u16,
}

/// Who this member is.
#[derive(Debug)]
pub struct Me {
    /// Whom to believe.
    pub anchor: TrustAnchor,
    /// What the CA says about us.
    pub certificate: Certificate,
    /// Our overlay addresses, from the certificate.
    pub addrs: OverlayAddrs,
    /// The tunnel key.
    pub wg: WgSecret,
}

/// How this member behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Version of the program, told to the broker.
    pub software: String,
    /// MTU of the device, bytes.
    pub mtu: usize,
    /// Whether UDP may be used.
    pub udp: bool,
    /// Over what peers may be reached directly, and those with a rule of their own.
    pub transport: (path::Transport, BTreeMap<MemberName, path::Transport>),
    /// Whether to tell who is in the network, as [`Notice::Directory`], at every change.
    pub directory: bool,
    /// Whether relays may be used.
    pub relay: bool,
    /// What this member gives others as a relay, if it is to serve as one and its certificate allows that.
    pub serve: Option<server::Config>,
    /// Whether packets may be made and read by hand (CAP_NET_RAW).
    pub by_hand: bool,
    /// The network's IPv4 and IPv6 prefix.
    pub overlay: Vec<IpNetwork>,
    /// Addresses that the owner wrote down.
    pub configured: Vec<SocketAddr>,
    /// STUN servers that show inner addresses.
    pub observers: Vec<SocketAddr>,
    /// A signing request of our own keys, for renewal.
    pub csr: Vec<u8>,
    /// `[[wireguard_peer]]`.
    pub stock: Vec<StockPeer>,
}

/// A stock WireGuard peer.
#[derive(Clone, Debug)]
pub struct StockPeer {
    /// Its name, for people.
    pub name: MemberName,
    /// Its key.
    pub wg: WgPublic,
    /// What it may send from and is sent to.
    pub allowed: Vec<IpNetwork>,
    /// Where it is, if that is known.
    pub endpoint: Option<SocketAddr>,
    /// Preshared key.
    pub preshared: Option<[u8; 32]>,
    /// Seconds between keep-alives.
    pub keepalive: Option<u16>,
}

/// A member.
#[derive(Debug)]
pub struct Node {
    me: Me,
    config: Config,
    rng: Rng,
    keys: Keys,
    wg: Agreements,
    gate: SourceGate,
    peers: Peers,
    directory: Directory,
    /// Certificates of relays whose signatures were checked, the latest first.
    relays: Vec<Certificate>,
    routes: Routes,
    link: rendezvous::Link,
    registrations: Vec<Registration>,
    observers: Observers,
    local: plan::Local,
    /// Where the data sockets are, by the machine's own addresses.
    hosts: Vec<SocketAddr>,
    forwarded: Vec<Candidate>,
    /// The same of the TCP listener.
    doors: Vec<SocketAddr>,
    /// What the last survey of the NATs found.
    measured: Profile,
    /// What is known of them in all.
    profile: Profile,
    revocations: RevocationList,
    pings: Vec<pings::Ping>,
    counters: Counters,
    /// What opened direct paths.
    methods: Methods,
    /// Open streams and whose they are.
    streams: BTreeMap<StreamId, Owner>,
    ports: BTreeMap<PortId, PeerId>,
    /// The relay that this member is for others.
    served: Option<Box<Relay>>,
    /// Where the broker was told that it is.
    serving: Vec<Candidate>,
    next_stream: u32,
    turn: Turn,
    /// Whose sockets beside the data sockets are.
    sockets: BTreeMap<SocketId, PeerId>,
    next_request: RequestId,
    tick: Instant,
    second: Instant,
    audit: Instant,
    renewal: Option<Instant>,
    broker_clock: Option<rendezvous::BrokerClock>,
    unknown: BTreeMap<IpAddr, (Instant, Vec<Vec<u8>>)>,
}

impl Node {
    /// A member that knows nobody yet. `revocations` is the newest list that was stored.
    #[must_use]
    pub fn new(me: Me, config: Config, revocations: RevocationList, seed: Seed, now: Now) -> Self {
        let keys = Keys::new(&me.wg);
        let wg = Agreements::new(me.wg.clone());
        let local =
            plan::Local { overlay: config.overlay.clone(), udp: config.udp, ..plan::Local::default() };
        let mut node = Self {
            keys,
            wg,
            gate: SourceGate::new(now.instant),
            peers: Peers::default(),
            directory: Directory::default(),
            relays: Vec::new(),
            routes: Routes::default(),
            link: rendezvous::Link::default(),
            registrations: Vec::new(),
            observers: Observers::default(),
            local,
            hosts: Vec::new(),
            forwarded: Vec::new(),
            doors: Vec::new(),
            measured: Profile::default(),
            profile: Profile::default(),
            revocations,
            pings: Vec::new(),
            counters: Counters::default(),
            methods: Methods::default(),
            streams: BTreeMap::new(),
            ports: BTreeMap::new(),
            served: None,
            serving: Vec::new(),
            // 0 and 1 are the data sockets.
            next_stream: 2,
            turn: Turn::default(),
            sockets: BTreeMap::new(),
            next_request: RequestId(1),
            tick: now.instant,
            second: now.instant,
            audit: now.instant,
            renewal: None,
            broker_clock: None,
            unknown: BTreeMap::new(),
            rng: Rng::new(seed),
            me,
            config,
        };
        if let Some(limits) = node.config.serve.filter(|_| node.me.certificate.subject.roles.relay) {
            node.served = Some(Box::new(Relay::new(limits, node.me.wg.clone(), node.rng.fork(), now)));
        }
        if node.config.udp {
            node.observers = Observers::new(&node.config.observers, now.instant);
        }
        for stock in node.config.stock.clone() {
            node.add_stock(&stock);
        }
        node
    }

    /// The machine's addresses, and the ports at which it can be met; told at the start and after each change.
    pub fn handle_network(&mut self, addrs: &[IpAddr], ports: Ports, now: Now, out: &mut Output) {
        let fit = |ip: &&IpAddr| !self.config.overlay.iter().any(|net| net.contains(**ip));
        let at = |v4: u16, v6: u16| -> Vec<SocketAddr> {
            let with_port = |ip: &IpAddr| SocketAddr::new(*ip, if ip.is_ipv4() { v4 } else { v6 });
            addrs.iter().filter(fit).map(with_port).filter(|at| addr::is_candidate(*at)).collect()
        };
        let (hosts, doors) = (at(ports.udp_v4, ports.udp_v6), at(ports.tcp_v4, ports.tcp_v6));
        self.local.has_v4 = ports.udp_v4 != 0 && self.config.udp;
        self.local.has_v6 = ports.udp_v6 != 0 && self.config.udp && hosts.iter().any(SocketAddr::is_ipv6);
        self.local.tcp = ports.tcp_v4 != 0 || ports.tcp_v6 != 0;
        let reachable =
            |ip: &&IpAddr| !addr::is_private(**ip) && addr::is_candidate(SocketAddr::new(**ip, 1));
        self.local.public = addrs.iter().filter(fit).filter(reachable).copied().collect();
        let first = self.hosts.is_empty() && self.doors.is_empty();
        if (&hosts, &doors) == (&self.hosts, &self.doors) && !first {
            return;
        }
        (self.hosts, self.doors) = (hosts, doors);
        for registration in &mut self.registrations {
            registration.refresh(now.instant);
        }
        self.observers.refresh(now.instant);
        if !first {
            self.forget_profile();
            for id in self.peers.ids() {
                self.with_path(id, now, out, Path::handle_network_change);
            }
        }
        self.announce_candidates(out);
        self.handle_timeout(now, out);
    }

    /// What the gateway forwards to us now, of the kinds [`CandidateKind::Forwarded`] and [`CandidateKind::Inner`].
    pub fn handle_forwarded(&mut self, candidates: Vec<Candidate>, out: &mut Output) {
        if candidates != self.forwarded {
            self.forwarded = candidates;
            self.announce_candidates(out);
        }
    }

    /// An operator asks.
    pub fn handle_request(&mut self, request: Request, now: Now, out: &mut Output) -> Reply {
        match request {
            Request::Status => Reply::Status(Box::new(self.snapshot(now))),
            Request::Ping { peer, ticket } => self.begin_ping(&peer, ticket, now, out),
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now, out: &mut Output) {
        let second = self.second <= now.instant;
        if second {
            self.second = now.instant + Duration::from_secs(1);
            self.keys.every_second();
            self.unknown.retain(|_, (since, _)| now.instant < *since + Duration::from_secs(3));
            self.expire_pings(now, out);
            self.announce_served(out);
        }
        if second || self.tick <= now.instant {
            let busy = self.tick_sessions(second, now, out);
            self.tick = if busy { now.instant + TICK } else { self.second };
        }
        if self.audit <= now.instant {
            self.audit = now.instant + AUDIT;
            self.audit_certificates(now, out);
            self.forget_idle_peers(now, out);
        }
        self.drive_registrations(now, out);
        self.drive_served(now, out);
        if self.observers.handle_timeout(now.instant, &mut out.outbox, &mut self.rng) {
            self.announce_candidates(out);
        }
        for id in self.peers.due(now.instant) {
            self.with_path(id, now, out, Path::handle_timeout);
            self.pump(id, now, out);
        }
    }

    /// When to call [`Self::handle_timeout`], and what for (for the log).
    #[must_use]
    pub fn poll_timeout(&mut self) -> (Instant, &'static str) {
        let paths = self.peers.next_deadline().map(|at| (at, "path"));
        let registrations =
            self.registrations.iter().map(Registration::poll_timeout).min().map(|at| (at, "registration"));
        let own = [(self.tick, "tick"), (self.second, "second"), (self.audit, "audit")];
        let observers = self.observers.poll_timeout().map(|at| (at, "STUN server"));
        own.into_iter()
            .chain(paths)
            .chain(registrations)
            .chain(observers)
            .chain(self.served_timeout().map(|at| (at, "relay")))
            .min_by_key(|(at, _)| *at)
            .unwrap_or((self.tick, "tick"))
    }

    /// Members and stock peers that there is a session with, or was lately.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.peers.iter().count()
    }

    /// What is open beside the data sockets and the listener: nothing, once everybody has been silent for long.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let paths = self.peers.iter().filter_map(|(_, peer)| match &peer.kind {
            Kind::Mesh(mesh) => Some(&mesh.path),
            Kind::Stock { .. } => None,
        });
        Holdings {
            attempts: paths.map(Path::attempts).sum(),
            streams: self.streams.len(),
            ports: self.ports.len(),
            sockets: self.sockets.len(),
        }
    }

    /// What the link should say about us when it comes up.
    #[must_use]
    pub fn register(&self) -> Register {
        Register {
            software: self.config.software.clone(),
            candidates: self.candidates(),
            profile: self.profile,
            relay: self.relay_endpoints(),
            revocations: self.revocations.version,
            watch: true,
        }
    }

    fn add_stock(&mut self, stock: &StockPeer) {
        let index = self.fresh_index();
        let session = Session::new(&self.keys, stock.wg, stock.preshared, stock.keepalive, index);
        let kind = Kind::Stock { endpoint: stock.endpoint };
        let id = self.peers.insert(Peer::new(stock.name.clone(), stock.wg, kind, session, index));
        for prefix in &stock.allowed {
            self.routes.insert(*prefix, id);
        }
    }

    /// The peer for a known member, made if need be.
    fn peer_of(&mut self, known: &Known, now: Now, out: &mut Output) -> PeerId {
        let subject = &known.certificate.subject;
        if let Some(id) = self.peers.by_key(&subject.wg) {
            if let Some(Peer { kind: Kind::Mesh(mesh), .. }) = self.peers.get_mut(id)
                && mesh.certificate.not_before <= known.certificate.not_before
            {
                mesh.certificate = known.certificate.clone();
                mesh.verified = now.unix;
            }
            return id;
        }
        // The name may have belonged to other keys before.
        if let Some(old) = self.peers.by_name(&subject.uri.name)
            && matches!(self.peers.get(old).map(|p| &p.kind), Some(Kind::Mesh(_)))
        {
            self.drop_peer(old, now, out);
        }
        let index = self.fresh_index();
        let session = Session::new(&self.keys, subject.wg, None, None, index);
        let mesh = Mesh {
            certificate: known.certificate.clone(),
            path: Path::new(
                subject.wg,
                self.me.certificate.subject.wg,
                self.transport_to(&subject.uri.name),
                now.instant,
            ),
            profile: Profile::default(),
            verified: now.unix,
        };
        let kind = Kind::Mesh(Box::new(mesh));
        let id = self.peers.insert(Peer::new(subject.uri.name.clone(), subject.wg, kind, session, index));
        for addr in [IpAddr::V4(known.addrs.v4), IpAddr::V6(known.addrs.v6)] {
            self.routes.insert(addr.into(), id);
        }
        id
    }

    /// Forgets a peer and closes everything that it has open.
    fn drop_peer(&mut self, id: PeerId, now: Now, out: &mut Output) {
        self.routes.remove(id);
        if let Some(path) = self.peers.get_mut(id).and_then(Peer::path_mut) {
            path.close(now.instant);
            while let Some(order) = path.poll_order() {
                if let StreamOrder::Close(stream) = order {
                    self.streams.remove(&stream);
                }
                out.orders.push_back(Order::Stream(order));
            }
        }
        // Those too that the peer had dialled in vain.
        for (stream, _) in self.streams.extract_if(.., |_, owner| *owner == Owner::Peer(id)) {
            out.orders.push_back(Order::Stream(StreamOrder::Close(stream)));
        }
        self.ports.retain(|_, owner| *owner != id);
        self.sockets.retain(|_, owner| *owner != id);
        let _ = self.peers.remove(id);
    }

    fn transport_to(&self, peer: &MemberName) -> path::Transport {
        let (usual, exceptions) = &self.config.transport;
        exceptions.get(peer).copied().unwrap_or(*usual)
    }

    fn fresh_index(&mut self) -> SessionIndex {
        loop {
            let index = SessionIndex::new(self.rng.u32());
            if !self.peers.has_index(index) {
                return index;
            }
        }
    }

    /// Runs `f` on the path of `id`, with everything that a path needs from around it.
    fn with_path<R>(
        &mut self,
        id: PeerId,
        now: Now,
        out: &mut Output,
        f: impl FnOnce(&mut Path, &mut Ctx<'_>) -> R,
    ) -> Option<R> {
        let path = self.peers.get_mut(id)?.path_mut()?;
        // Paths need the calendar for relays alone.
        let mut ctx = Ctx {
            now: self.broker_clock.map_or(now, |clock| clock.judged(now)),
            outbox: &mut out.outbox,
            rng: &mut self.rng,
            wg: &mut self.wg,
            local: &self.local,
            next_stream: &mut self.next_stream,
            turn: &mut self.turn,
            mtu: self.config.mtu,
            profile: &self.profile,
            observer: self.link.observer(),
            view: self.registrations.iter().find_map(Registration::view),
        };
        Some(f(path, &mut ctx))
    }

    /// After anything happened to a peer: carry out its path's orders, ask for an introduction, send what waited, tell
    /// what changed.
    fn pump(&mut self, id: PeerId, now: Now, out: &mut Output) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Kind::Mesh(mesh) = &mut peer.kind {
            while let Some(outcome) = mesh.path.poll_outcome() {
                self.methods.learn(outcome, &self.profile, &mesh.profile);
            }
        }
        let wants = peer.path_mut().is_some_and(|path| {
            while let Some(order) = path.poll_order() {
                match order {
                    StreamOrder::Open(stream, _) => drop(self.streams.insert(stream, Owner::Peer(id))),
                    StreamOrder::Close(stream) => drop(self.streams.remove(&stream)),
                    StreamOrder::Bind(port) => drop(self.ports.insert(port, id)),
                    StreamOrder::Unbind(port) => drop(self.ports.remove(&port)),
                    StreamOrder::OpenUdp(socket) => drop(self.sockets.insert(socket, id)),
                    StreamOrder::CloseUdp(socket) => drop(self.sockets.remove(&socket)),
                    StreamOrder::RaiseTtl(_) | StreamOrder::Print(..) => {}
                }
                out.orders.push_back(Order::Stream(order));
            }
            while let Some((attempt, Ready { round, endpoints, rtt })) = path.poll_ready() {
                let rtt = u16::try_from(rtt.as_millis()).unwrap_or(u16::MAX);
                out.orders.push_back(Order::Broker(ToBroker::Ready { attempt, round, endpoints, rtt }));
            }
            while let Some((attempt, Dialled { round, forge, from, syn })) = path.poll_dialled() {
                out.orders.push_back(Order::Broker(ToBroker::Dialled { attempt, round, forge, from, syn }));
            }
            path.wants_introduction(now.instant)
        });
        if self.peers.get_mut(id).and_then(Peer::path_mut).is_some_and(Path::take_lost_forgeries) {
            self.miss_forged(out);
        }
        if wants {
            self.ask_for_introduction(id, now, out);
        }
        self.send_kept(id, now, out);
        self.send_pings(id, now, out);
        if self.announce_path(id, now, out) {
            // Packets may wait inside the session since it came up over the broker, when nothing carried.
            self.flush_session(id, now, out);
        }
    }

    /// True if something carries that did not before.
    fn announce_path(&mut self, id: PeerId, now: Now, out: &mut Output) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let leg = peer.leg();
        if peer.announced.map(|old| old.leg) == leg {
            return false;
        }
        let direct = matches!(&peer.kind, Kind::Mesh(mesh) if mesh.path.is_direct());
        let idle = matches!(&peer.kind, Kind::Mesh(mesh) if !mesh.path.is_active(now.instant));
        let why = match (peer.announced, leg) {
            (None, _) => "connected",
            (Some(_), None) if idle => "idle: no traffic lately",
            (Some(_), None) => "no way left that answers",
            (Some(Announced { direct: true, .. }), Some(_)) if !direct => "the direct path went silent",
            (Some(Announced { direct: false, .. }), Some(_)) if direct => "a direct path was found",
            (Some(_), Some(_)) => "a better way was found",
        };
        peer.announced = leg.map(|leg| Announced { leg, direct });
        let path = snapshot::path_kind(peer);
        out.notices.push_back(Notice::Path { peer: peer.name.clone(), path, why: why.to_owned() });
        leg.is_some()
    }

    /// Where others may try to reach us. The broker adds what it sees itself.
    fn candidates(&self) -> Vec<Candidate> {
        let of = |transport: Transport, kind: CandidateKind| {
            move |addr: &SocketAddr| Candidate { transport, kind, addr: *addr }
        };
        let (udp, tcp) = (Transport::Udp, Transport::Tcp);
        let configured = &self.config.configured;
        let configured_tcp =
            configured.iter().map(of(tcp, CandidateKind::Configured)).filter(|_| self.local.tcp);
        let forwarded = |transport| self.forwarded.iter().copied().filter(move |c| c.transport == transport);
        let doors = self.doors.iter().map(of(tcp, CandidateKind::Host));
        let tcp = configured_tcp.chain(forwarded(tcp).filter(|_| self.local.tcp)).chain(doors);
        let inner: Vec<SocketAddr> = self.observers.mapped().filter(|at| addr::is_candidate(*at)).collect();
        let inner = inner.iter().filter(|at| !self.hosts.contains(at)).map(of(udp, CandidateKind::Inner));
        let configured =
            configured.iter().map(of(udp, CandidateKind::Configured)).filter(|_| self.config.udp);
        let hosts = self.hosts.iter().map(of(udp, CandidateKind::Host)).filter(|_| self.config.udp);
        // Half for each transport at least; the broker adds two that it sees.
        let tcp: Vec<Candidate> = tcp.take(MAX_CANDIDATES / 2 - 1).collect();
        let forwarded = forwarded(udp).filter(|_| self.config.udp);
        configured
            .chain(forwarded)
            .chain(inner)
            .chain(hosts)
            .take(MAX_CANDIDATES - 2 - tcp.len())
            .chain(tcp)
            .collect()
    }
}
