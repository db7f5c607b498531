//! A machine with a member on it: what an engine, a kernel and a user do around a node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::addr::OverlayAddrs;
use ntcp_overlay::base::ecn::Ecn;
use ntcp_overlay::base::id::SocketId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::base::schedule::Backoff;
use ntcp_overlay::base::time::Now;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::base::transmit::StreamEvent;
use ntcp_overlay::base::transmit::StreamOrder;
use ntcp_overlay::base::transmit::Via;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::identity::authority::MEMBER_LIFETIME;
use ntcp_overlay::identity::authority::validity;
use ntcp_overlay::identity::certificate::Certificate;
use ntcp_overlay::identity::certificate::Roles;
use ntcp_overlay::identity::certificate::Serial;
use ntcp_overlay::identity::certificate::Subject;
use ntcp_overlay::identity::certificate::TrustAnchor;
use ntcp_overlay::identity::keys::SigningKey;
use ntcp_overlay::identity::keys::WgSecret;
use ntcp_overlay::identity::names::MemberUri;
use ntcp_overlay::identity::revocation::RevocationList;
use ntcp_overlay::nat::behavior::Profile;
use ntcp_overlay::nat::candidate::Candidate;
use ntcp_overlay::node::Config;
use ntcp_overlay::node::Me;
use ntcp_overlay::node::Node;
use ntcp_overlay::node::Ports;
use ntcp_overlay::node::StockPeer;
use ntcp_overlay::node::output::Notice;
use ntcp_overlay::node::output::Order;
use ntcp_overlay::node::output::Output;
use ntcp_overlay::node::rendezvous::LinkUp;
use ntcp_overlay::node::request::Reply;
use ntcp_overlay::node::request::Request;
use ntcp_overlay::node::status::PathKind;
use ntcp_overlay::node::status::PeerStatus;
use ntcp_overlay::node::status::Snapshot;
use ntcp_overlay::path::Transport;
use ntcp_overlay::relay::server;
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::Offer;
use ntcp_overlay::wire::broker::ToBroker;

use crate::Who;
use crate::link;
use crate::ms;
use crate::net::NatId;
use crate::oracle::Carrier;
use crate::server::BROKER;
use crate::server::broker_key;
use crate::tcp::Host;
use crate::tcp::Kind;
use crate::tcp::News;
use crate::tcp::Segment;
use crate::trace::Trace;
use crate::world::Arrival;
use crate::world::World;

/// Ports of UDP sockets that the system chooses: the first, and how many.
const FIRST_SOCKET: u16 = 56_000;
const SOCKETS: u16 = 4_000;

/// What a machine sends.
pub(crate) enum Sent {
    Datagram { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Segment { from: SocketAddr, to: SocketAddr, segment: Segment },
    Broker(ToBroker),
}

/// What a kernel holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sockets {
    /// UDP sockets of searches and of ways that they found.
    pub udp: usize,
    /// TCP ports of attempts.
    pub ports: usize,
    /// TCP connections that are not open yet.
    pub half_open: usize,
    /// Open ones.
    pub streams: usize,
}

/// A packet that came out of the device.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When.
    pub at: Instant,
    /// What was in it.
    pub payload: Vec<u8>,
}

/// A machine with a member on it.
pub struct Machine {
    /// The member's name.
    pub name: String,
    /// The NAT before it.
    pub nat: Option<NatId>,
    /// Its address on its own network, and the data socket's port.
    pub inside: SocketAddr,
    /// Its overlay addresses.
    pub addrs: OverlayAddrs,
    /// Its certificate.
    pub certificate: Certificate,
    /// Its tunnel key.
    pub wg: WgSecret,
    /// The member, if the machine is on.
    pub node: Option<Node>,
    /// Its network lets no datagrams out.
    pub no_udp: bool,
    /// Its network lets no streams out but the broker's.
    pub no_tcp: bool,
    /// Peers may be met over TCP too: it listens, and knows what its NATs do.
    pub tcp: bool,
    /// Its owner has switched UDP off.
    pub udp_off: bool,
    /// Never hears who is in the network, as in one that is larger than a directory.
    pub uninformed: bool,
    /// Whether it carries others' traffic where it can.
    pub serves: bool,
    /// Where it told the broker that it does.
    relay: Vec<Candidate>,
    /// Its clock shows an earlier time by so much.
    pub late: Duration,
    /// Counts how often it was switched on or off.
    pub life: u32,
    /// Packets that came out of the device.
    pub packets: Vec<Packet>,
    /// What it told people.
    pub notices: Vec<(Instant, Notice)>,
    /// Stock WireGuard peers in its configuration.
    pub stock: Vec<StockPeer>,
    /// What was said to the broker.
    pub said: Vec<ToBroker>,
    /// Introductions that came.
    pub offers: Vec<Offer>,
    /// How many answers to its questions came.
    pub answers: u64,
    /// Counts its connections to the broker.
    pub(crate) link: u32,
    /// What waits for the site to be connected again.
    pub(crate) held: Vec<Arrival>,
    pub(crate) backoff: Backoff,
    pub(crate) alarm: Option<Instant>,
    /// The far ends of the member's streams, as in `engine::member`.
    streams: BTreeMap<StreamId, SocketAddr>,
    host: Host,
    /// UDP sockets beside the data socket.
    sockets: BTreeMap<SocketId, u16>,
    next_socket: u16,
    spun: (Option<Instant>, u32),
    anchor: TrustAnchor,
    out: Output,
    online: bool,
}

impl Machine {
    pub(crate) fn new(
        authority: &Authority,
        name: &str,
        n: u16,
        nat: Option<NatId>,
        roles: Roles,
        now: UnixTime,
    ) -> Self {
        let [high, low] = n.to_be_bytes();
        let (mut seed, mut secret) = ([low; 32], [low; 32]);
        // Not the first byte: X25519 clears some of its bits (RFC 7748 5), and keys would be equal.
        (seed[1], secret[1]) = (high, high);
        let wg = WgSecret::new(secret);
        let addrs = authority.anchor().overlay_addrs(Ipv4Addr::new(10, 77, high, low));
        let subject = Subject {
            uri: MemberUri { network: "home".parse().expect("a name"), name: name.parse().expect("a name") },
            roles,
            addrs: Some(addrs),
            groups: Vec::new(),
            wg: wg.public(),
        };
        let (from, until) = validity(now, MEMBER_LIFETIME);
        let key = SigningKey::from_seed(&seed).public();
        let ip = match (nat, high) {
            (Some(_), 0) => Ipv4Addr::new(192, 168, 1, low),
            (Some(_), _) => Ipv4Addr::new(172, 16, high, low),
            (None, 0) => Ipv4Addr::new(198, 51, 100, low),
            (None, _) => Ipv4Addr::new(46, 0, high, low),
        };
        Self {
            name: name.to_owned(),
            nat,
            inside: SocketAddr::from((ip, 5000 + n % 50_000)),
            addrs,
            certificate: authority
                .sign(&subject, &key, Serial::generate(), from, until)
                .expect("the CA may sign members"),
            wg,
            node: None,
            no_udp: false,
            no_tcp: false,
            tcp: false,
            udp_off: false,
            life: 0,
            packets: Vec::new(),
            notices: Vec::new(),
            stock: Vec::new(),
            said: Vec::new(),
            offers: Vec::new(),
            uninformed: false,
            serves: roles.relay,
            relay: Vec::new(),
            late: Duration::ZERO,
            answers: 0,
            link: 0,
            held: Vec::new(),
            backoff: link::backoff(),
            alarm: None,
            streams: BTreeMap::new(),
            host: Host::default(),
            sockets: BTreeMap::new(),
            next_socket: 0,
            spun: (None, 0),
            anchor: authority.anchor().clone(),
            out: Output::default(),
            online: false,
        }
    }

    /// The moment as the machine sees it.
    #[must_use]
    pub fn clock(&self, now: Now) -> Now {
        Now { unix: UnixTime::from_epoch(now.unix.since(UnixTime::from_epoch(self.late))), ..now }
    }

    /// The member, which must be on.
    #[must_use]
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("the machine is on")
    }

    /// Counts how often it was woken at `at` before.
    pub(crate) fn wakes(&mut self, at: Instant) -> u32 {
        let (last, spins) = self.spun;
        self.spun = (Some(at), if last == Some(at) { spins + 1 } else { 0 });
        self.spun.1
    }

    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let due = self.node.as_mut().map(|node| node.poll_timeout().0)?;
        Some(self.host.deadline().map_or(due, |host| due.min(host)))
    }

    pub(crate) fn why_awake(&mut self) -> Option<(Instant, &'static str)> {
        self.node.as_mut().map(Node::poll_timeout)
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) {
        self.host.handle_timeout(now.instant);
        let now = self.clock(now);
        self.with(|node, out| node.handle_timeout(now, out));
    }

    pub(crate) fn handle_datagram(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        mut bytes: Vec<u8>,
        near: bool,
        now: Now,
    ) {
        let now = self.clock(now);
        let own = self.sockets.iter().find(|(_, port)| **port == to.port()).map(|(id, _)| *id);
        let data = (to.port() == self.inside.port()).then_some(SocketId::V4);
        if let Some(socket) = data.or(own).filter(|_| near || !self.no_udp) {
            self.with(|node, out| {
                node.handle_message(Via::Udp(socket), from, Ecn::NotCapable, &mut bytes, now, out)
            });
        }
    }

    pub(crate) fn handle_segment(&mut self, from: SocketAddr, to: SocketAddr, kind: Kind, now: Now) {
        self.host.handle_segment(from, to, kind, now.instant);
    }

    /// What became of streams is told to the member; false if there is nothing to tell.
    fn take_news(&mut self, now: Now) -> bool {
        let now = self.clock(now);
        let mut any = false;
        while let Some(news) = self.host.poll_news() {
            any = true;
            let (id, event) = match news {
                News::Accepted { id, port, from } => {
                    self.streams.insert(id, from);
                    self.with(|node, out| node.handle_accepted(id, port, from, now, out));
                    continue;
                }
                News::Opened(id) => (id, StreamEvent::Opened),
                News::Closed(id, gone) => (id, StreamEvent::Closed(gone)),
                News::Frame(id, mut bytes) => {
                    if let Some(from) = self.streams.get(&id).copied() {
                        let event = StreamEvent::Frame(&mut bytes);
                        self.with(|node, out| node.handle_stream(id, event, from, now, out));
                    }
                    continue;
                }
            };
            let over = matches!(event, StreamEvent::Closed(_));
            if let Some(from) = self.streams.get(&id).copied() {
                self.with(|node, out| node.handle_stream(id, event, from, now, out));
            }
            if over {
                self.streams.remove(&id);
            }
        }
        any
    }

    /// What a survey of its NATs has found.
    pub(crate) fn handle_profile(&mut self, profile: Profile, now: Now) {
        let now = self.clock(now);
        self.with(|node, out| node.handle_profile(profile, now, out));
    }

    /// The connection to the broker is gone.
    pub(crate) fn handle_link_down(&mut self, why: &str, now: Now) {
        let now = self.clock(now);
        self.online = false;
        self.with(|node, out| node.handle_link_down(why.to_owned(), now, out));
    }

    /// A message of the broker; `key` is that of UDP registrations.
    pub fn handle_broker(&mut self, message: FromBroker, key: [u8; 32], now: Now) {
        let now = self.clock(now);
        match message {
            FromBroker::Registered(registered) => {
                self.online = true;
                self.backoff.reset();
                let name = "broker".parse().expect("a name");
                let up = LinkUp { broker: BROKER, name, key, signer: broker_key().public(), registered };
                self.with(|node, out| node.handle_link_up(up, now, out));
            }
            FromBroker::Changed(_) | FromBroker::Listing { .. } if self.uninformed => {}
            other => {
                if let FromBroker::Offer(offer) = &other {
                    self.offers.push(offer.clone());
                }
                self.with(|node, out| node.handle_broker(other, now, out));
            }
        }
    }

    /// A packet of the machine's programs.
    pub fn handle_packet(&mut self, packet: &[u8], now: Now) {
        let now = self.clock(now);
        let mut buffer = packet.to_vec();
        buffer.resize(packet.len() + 16, 0);
        self.with(|node, out| node.handle_packet(&mut buffer, packet.len(), now, out));
    }

    /// Lets something happen to the member, if the machine is on.
    pub fn with(&mut self, what: impl FnOnce(&mut Node, &mut Output)) {
        if let Some(node) = &mut self.node {
            what(node, &mut self.out);
        }
    }

    /// What has to leave the machine; its programs answer what came for them.
    pub(crate) fn take_sent(
        &mut self,
        now: Now,
        records: bool,
        trace: &mut Trace,
        start: Instant,
    ) -> Vec<Sent> {
        let mut sent = Vec::new();
        loop {
            // As in `engine::member`, orders first: a message may be for a stream that an order opens.
            self.take_orders(&mut sent, records, now);
            self.take_messages(&mut sent, now);
            while let Some((from, to, segment)) = self.host.poll_sent() {
                sent.push(Sent::Segment { from, to, segment });
            }
            let notices = std::mem::take(&mut self.out.notices);
            if records {
                self.notices.extend(notices.into_iter().map(|notice| (now.instant, notice)));
            }
            let mut echoes = Vec::new();
            for bytes in self.out.packets.iter() {
                let from = IpAddr::V4(Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]));
                let payload = &bytes[20..];
                trace.packet(now.instant - start, usize::from(self.inside.port()), payload);
                if let Some(question) = payload.strip_prefix(b"ping ") {
                    echoes.push(ipv4(self.addrs.v4.into(), from, &[b"pong ", question].concat()));
                }
                self.answers += u64::from(payload.starts_with(b"pong "));
                if records {
                    self.packets.push(Packet { at: now.instant, payload: payload.to_vec() });
                }
            }
            self.out.packets.clear();
            let told = self.take_news(now);
            if echoes.is_empty() && !told {
                return sent;
            }
            echoes.iter().for_each(|echo| self.handle_packet(echo, now));
        }
    }

    /// Throws away what was to leave the machine; how many messages that were.
    pub fn discard_sent(&mut self) -> usize {
        let messages = self.out.outbox.sends().len();
        self.out.outbox.clear();
        messages + self.out.orders.drain(..).count()
    }

    fn take_messages(&mut self, sent: &mut Vec<Sent>, now: Now) {
        for transmit in self.out.outbox.sends() {
            let bytes = self.out.outbox.bytes(transmit.range.clone()).to_vec();
            match transmit.via {
                Via::Udp(socket) => {
                    let port = self.sockets.get(&socket).copied().unwrap_or(self.inside.port());
                    let from = SocketAddr::new(self.inside.ip(), port);
                    sent.push(Sent::Datagram { from, to: transmit.to, bytes });
                }
                Via::Stream(id) => self.host.send(id, bytes, now.instant),
            }
        }
        self.out.outbox.clear();
    }

    fn take_orders(&mut self, sent: &mut Vec<Sent>, records: bool, now: Now) {
        while let Some(order) = self.out.orders.pop_front() {
            match order {
                Order::Stream(order) => self.work_on_streams(order, now),
                Order::Broker(ToBroker::List { .. }) if self.uninformed => {}
                Order::Broker(message) => {
                    if records {
                        self.said.push(message.clone());
                    }
                    if self.online {
                        sent.push(Sent::Broker(message));
                    }
                }
                Order::Register(register) if self.online => {
                    let relayed = std::mem::replace(&mut self.relay, register.relay.clone());
                    let (candidates, profile) = (register.candidates.clone(), register.profile);
                    let same = relayed == register.relay;
                    sent.push(Sent::Broker(if same {
                        ToBroker::Update { candidates, profile }
                    } else {
                        ToBroker::Register(register)
                    }));
                }
                Order::Register(_) | Order::StoreCertificate(_) | Order::StoreRevocations(_) => {}
            }
        }
    }

    fn work_on_streams(&mut self, order: StreamOrder, now: Now) {
        match order {
            StreamOrder::Open(id, dial) => {
                self.streams.insert(id, dial.to);
                self.host.open(id, dial, self.inside.ip(), now.instant);
            }
            StreamOrder::Close(id) => {
                self.streams.remove(&id);
                self.host.close(id);
            }
            StreamOrder::RaiseTtl(id) => self.host.raise_ttl(id),
            StreamOrder::Bind(port) => {
                let (bound, now) = (self.host.bind(port), self.clock(now));
                self.with(|node, out| node.handle_bound(port, bound, now, out));
            }
            StreamOrder::Unbind(port) => self.host.unbind(port),
            StreamOrder::OpenUdp(id) => {
                self.sockets.insert(id, FIRST_SOCKET + self.next_socket);
                self.next_socket = (self.next_socket + 1) % SOCKETS;
            }
            StreamOrder::CloseUdp(id) => drop(self.sockets.remove(&id)),
            StreamOrder::Print(..) => {}
        }
    }

    /// What its kernel holds for the member, beside the data socket and the listener.
    #[must_use]
    pub fn sockets(&self) -> Sockets {
        let (ports, half_open, streams) = self.host.count();
        Sockets { udp: self.sockets.len(), ports, half_open, streams }
    }

    /// Where the member can be met.
    fn ports(&self) -> Ports {
        let port = self.inside.port();
        Ports {
            udp_v4: if self.udp_off { 0 } else { port },
            tcp_v4: if self.tcp { port } else { 0 },
            ..Ports::default()
        }
    }
}

impl World {
    /// Switches a machine on, or off and on again: a new node with the old keys.
    pub fn switch_on(&mut self, who: Who) {
        let now = self.now;
        let machine = &mut self.machines[who.0];
        machine.life += 1;
        machine.online = false;
        machine.out = Output::default();
        machine.streams.clear();
        machine.sockets.clear();
        machine.host.clear();
        if machine.tcp {
            machine.host.listen(machine.inside.port());
        }
        machine.backoff = link::backoff();
        let me = Me {
            anchor: machine.anchor.clone(),
            certificate: machine.certificate.clone(),
            addrs: machine.addrs,
            wg: machine.wg.clone(),
        };
        let overlay = vec![machine.anchor.prefix.into(), machine.anchor.overlay_prefix_v6().into()];
        let config = Config {
            software: "sim".to_owned(),
            mtu: 1380,
            udp: !machine.udp_off,
            transport: (if machine.tcp { Transport::Auto } else { Transport::Udp }, BTreeMap::new()),
            directory: false,
            relay: true,
            serve: machine.serves.then(server::Config::default),
            by_hand: false,
            overlay,
            configured: Vec::new(),
            observers: Vec::new(),
            csr: Vec::new(),
            stock: machine.stock.clone(),
        };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(who.0 as u64).to_le_bytes());
        seed[8..12].copy_from_slice(&machine.life.to_le_bytes());
        let now = machine.clock(now);
        let mut node = Node::new(me, config, RevocationList::default(), Seed(seed), now);
        node.handle_network(&[machine.inside.ip()], machine.ports(), now, &mut machine.out);
        machine.node = Some(node);
        self.dial(who);
        self.collect(who);
    }

    /// The power fails. The broker notices at once, or not at all.
    pub fn switch_off(&mut self, who: Who, noticed: bool) {
        let machine = &mut self.machines[who.0];
        let link = machine.link;
        machine.node = None;
        machine.life += 1;
        machine.link += 1;
        machine.held.clear();
        machine.out = Output::default();
        machine.host.clear();
        machine.streams.clear();
        if noticed {
            self.server.disconnect(who, link, self.now);
        }
        self.collect_server();
        self.collect(who);
    }

    /// The machine turns up in another place, on another address and behind another NAT. Its connection to the broker
    /// lives on, as if it went another way.
    pub fn move_to(&mut self, who: Who, nat: Option<NatId>, ip: Ipv4Addr) {
        let now = self.now;
        let machine = &self.machines[who.0];
        self.net.unplug(self.net.behind(machine.nat), machine.inside.ip());
        self.net.plug_in(self.net.behind(nat), ip.into(), who);
        let machine = &mut self.machines[who.0];
        machine.nat = nat;
        machine.inside.set_ip(ip.into());
        let (ip, ports) = (machine.inside.ip(), machine.ports());
        self.at_member(who, |m| m.with(|node, out| node.handle_network(&[ip], ports, now, out)));
    }

    /// The same as people do it: the connection to the broker breaks, and is made anew.
    pub fn roam(&mut self, who: Who, nat: Option<NatId>, ip: Ipv4Addr) {
        self.move_to(who, nat, ip);
        if self.machines[who.0].node.is_some() {
            let now = self.now;
            self.at_member(who, |m| m.handle_link_down("the network changed", now));
            self.dial(who);
        }
    }

    /// One packet with `text` in it from `a` to `b`.
    pub fn say(&mut self, a: Who, b: Who, text: &str) {
        let to = self.machines[b.0].addrs.v4;
        self.say_to(a, to, text);
    }

    /// One packet with `text` in it from `a` to an overlay address.
    pub fn say_to(&mut self, a: Who, to: Ipv4Addr, text: &str) {
        let packet = ipv4(self.machines[a.0].addrs.v4.into(), to.into(), text.as_bytes());
        let now = self.now;
        self.at_member(a, |m| m.handle_packet(&packet, now));
    }

    /// Asks `b` and waits for the answer; how long it took.
    pub fn ask(&mut self, a: Who, b: Who, patience: Duration) -> Option<Duration> {
        let question = format!("{:?}", self.since_start());
        self.say(a, b, &format!("ping {question}"));
        let answer = format!("pong {question}");
        self.run_until(patience, |w| w.heard(a, &answer))
    }

    /// Asks every 200 ms for `time`; how many questions were answered, and the longest time without an answer.
    pub fn converse(&mut self, a: Who, b: Who, time: Duration) -> (usize, Duration) {
        let (start, before) = (self.now.instant, self.machines[a.0].packets.len());
        let end = start + time;
        let mut n = 0;
        while self.now.instant < end {
            n += 1;
            self.say(a, b, &format!("ping c{n}"));
            self.run(ms(200));
        }
        let answers = &self.machines[a.0].packets[before..];
        let times: Vec<Instant> = [start].into_iter().chain(answers.iter().map(|p| p.at)).collect();
        let gap = times.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(time);
        (answers.len(), gap)
    }

    /// Whether a packet with exactly this text came to a machine.
    #[must_use]
    pub fn heard(&self, who: Who, text: &str) -> bool {
        self.machines[who.0].packets.iter().any(|p| p.payload == text.as_bytes())
    }

    /// What `status` would show.
    pub fn snapshot(&mut self, who: Who) -> Snapshot {
        let machine = &mut self.machines[who.0];
        let now = machine.clock(self.now);
        match machine.node.as_mut().expect("the machine is on").handle_request(
            Request::Status,
            now,
            &mut machine.out,
        ) {
            Reply::Status(snapshot) => *snapshot,
            other => unreachable!("{other:?}"),
        }
    }

    /// What `status` shows of one peer.
    pub fn peer(&mut self, who: Who, of: Who) -> PeerStatus {
        let name = self.machines[of.0].name.clone();
        self.snapshot(who).peers.into_iter().find(|p| p.name.as_str() == name).expect("a peer")
    }

    /// What carries to one peer.
    pub fn path(&mut self, who: Who, of: Who) -> PathKind {
        self.peer(who, of).path
    }

    /// What each sends to the other by, if that is the same.
    pub fn carrier(&mut self, a: Who, b: Who) -> Option<Carrier> {
        let of = |path: PathKind| match path {
            PathKind::DirectUdp(_) => Some(Carrier::Udp),
            PathKind::DirectTcp(..) => Some(Carrier::Tcp),
            PathKind::Relay { .. } => Some(Carrier::Relay),
            PathKind::None => None,
        };
        let there = of(self.path(a, b));
        there.filter(|there| of(self.path(b, a)) == Some(*there))
    }

    /// Whether each sends to the other directly.
    pub fn is_direct(&mut self, a: Who, b: Who) -> bool {
        matches!(self.path(a, b), PathKind::DirectUdp(_)) && matches!(self.path(b, a), PathKind::DirectUdp(_))
    }

    /// Whether each sends to the other through a relay.
    pub fn is_relayed(&mut self, a: Who, b: Who) -> bool {
        matches!(self.path(a, b), PathKind::Relay { .. }) && matches!(self.path(b, a), PathKind::Relay { .. })
    }
}

/// A small IPv4 packet of an unknown protocol.
#[must_use]
pub fn ipv4(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { unreachable!("IPv4 alone") };
    let len = u16::try_from(20 + payload.len()).expect("a small packet");
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}
