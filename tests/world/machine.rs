//! A machine with a member on it: what an engine, a kernel and a user do around a node.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::addr::OverlayAddrs;
use ntcp_overlay::base::id::SocketId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::base::time::Now;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::base::transmit::Gone;
use ntcp_overlay::base::transmit::StreamEvent;
use ntcp_overlay::base::transmit::StreamOrder;
use ntcp_overlay::base::transmit::Via;
use ntcp_overlay::base::transmit::Why;
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
use ntcp_overlay::node::Config;
use ntcp_overlay::node::Me;
use ntcp_overlay::node::Node;
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
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::Offer;
use ntcp_overlay::wire::broker::ToBroker;

use super::NatId;
use super::Who;
use super::World;
use super::ms;
use super::server::BROKER;
use super::server::RELAY;

/// What a machine sends.
pub(crate) enum Sent {
    Datagram { to: SocketAddr, bytes: Vec<u8> },
    Frame { id: StreamId, bytes: Vec<u8> },
    Open { id: StreamId, to: SocketAddr },
    Close(StreamId),
    Broker(ToBroker),
}

/// A packet that came out of the device.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) at: Instant,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) nat: Option<NatId>,
    pub(crate) inside: SocketAddr,
    pub(crate) addrs: OverlayAddrs,
    pub(crate) certificate: Certificate,
    pub(crate) wg: WgSecret,
    pub(crate) node: Option<Node>,
    pub(crate) no_udp: bool,
    pub(crate) no_tcp: bool,
    /// Its owner has switched UDP off.
    pub(crate) udp_off: bool,
    /// Counts how often it was switched on.
    pub(crate) life: u32,
    pub(crate) packets: Vec<Packet>,
    pub(crate) notices: Vec<(Instant, Notice)>,
    pub(crate) stock: Vec<StockPeer>,
    /// What was said to the broker.
    pub(crate) said: Vec<ToBroker>,
    /// Introductions that came.
    pub(crate) offers: Vec<Offer>,
    /// Never hears who is in the network, as in one that is larger than a directory.
    pub(crate) uninformed: bool,
    /// Its clock shows an earlier time by so much.
    pub(crate) late: Duration,
    anchor: TrustAnchor,
    out: Output,
    online: bool,
}

impl Machine {
    pub(crate) fn new(authority: &Authority, name: &str, n: u8, nat: Option<NatId>, now: UnixTime) -> Self {
        let wg = WgSecret::new([n; 32]);
        let addrs = authority.anchor().overlay_addrs(Ipv4Addr::new(10, 77, 0, n));
        let subject = Subject {
            uri: MemberUri { network: "home".parse().unwrap(), name: name.parse().unwrap() },
            roles: Roles::MEMBER,
            addrs: Some(addrs),
            groups: Vec::new(),
            wg: wg.public(),
        };
        let (from, until) = validity(now, MEMBER_LIFETIME);
        let key = SigningKey::from_seed(&[n; 32]).public();
        let ip = if nat.is_some() { Ipv4Addr::new(192, 168, 1, n) } else { Ipv4Addr::new(198, 51, 100, n) };
        Self {
            name: name.to_owned(),
            nat,
            inside: SocketAddr::from((ip, 5000 + u16::from(n))),
            addrs,
            certificate: authority.sign(&subject, &key, Serial::generate(), from, until).unwrap(),
            wg,
            node: None,
            no_udp: false,
            no_tcp: false,
            udp_off: false,
            life: 0,
            packets: Vec::new(),
            notices: Vec::new(),
            stock: Vec::new(),
            said: Vec::new(),
            offers: Vec::new(),
            uninformed: false,
            late: Duration::ZERO,
            anchor: authority.anchor().clone(),
            out: Output::default(),
            online: false,
        }
    }

    /// The moment as the machine sees it.
    pub(crate) fn clock(&self, now: Now) -> Now {
        Now { unix: UnixTime::from_epoch(now.unix.since(UnixTime::from_epoch(self.late))), ..now }
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.node.as_ref().map(|node| node.poll_timeout().0)
    }

    pub(crate) fn why_awake(&self) -> Option<(Instant, &'static str)> {
        self.node.as_ref().map(Node::poll_timeout)
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) {
        let now = self.clock(now);
        self.with(|node, out| node.handle_timeout(now, out));
    }

    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, mut bytes: Vec<u8>, now: Now) {
        let now = self.clock(now);
        if !self.no_udp || matches!(from.ip(), IpAddr::V4(v4) if v4.is_private()) {
            self.with(|node, out| node.handle_message(Via::Udp(SocketId::V4), from, &mut bytes, now, out));
        }
    }

    pub(crate) fn handle_opened(&mut self, id: StreamId, now: Now) {
        let now = self.clock(now);
        self.with(|node, out| node.handle_stream(id, StreamEvent::Opened, RELAY, now, out));
    }

    pub(crate) fn handle_closed(&mut self, id: StreamId, why: &str, now: Now) {
        let now = self.clock(now);
        let event = StreamEvent::Closed(Gone::new(Why::Lost, why));
        self.with(|node, out| node.handle_stream(id, event, RELAY, now, out));
    }

    pub(crate) fn handle_frame(&mut self, id: StreamId, mut bytes: Vec<u8>, now: Now) {
        let now = self.clock(now);
        self.with(|node, out| node.handle_stream(id, StreamEvent::Frame(&mut bytes), RELAY, now, out));
    }

    pub(crate) fn handle_broker(&mut self, message: FromBroker, key: [u8; 32], now: Now) {
        let now = self.clock(now);
        match message {
            FromBroker::Registered(registered) => {
                self.online = true;
                let name = "broker".parse().unwrap();
                let up = LinkUp { broker: BROKER, name, key, registered };
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

    pub(crate) fn handle_packet(&mut self, packet: &[u8], now: Now) {
        let now = self.clock(now);
        let mut buffer = packet.to_vec();
        buffer.resize(packet.len() + 16, 0);
        self.with(|node, out| node.handle_packet(&mut buffer, packet.len(), now, out));
    }

    pub(crate) fn with(&mut self, what: impl FnOnce(&mut Node, &mut Output)) {
        if let Some(node) = &mut self.node {
            what(node, &mut self.out);
        }
    }

    pub(crate) fn take_sent(&mut self, now: Now) -> Vec<Sent> {
        let mut sent = Vec::new();
        for transmit in self.out.outbox.sends() {
            let bytes = self.out.outbox.bytes(transmit.range.clone()).to_vec();
            sent.push(match transmit.via {
                Via::Udp(_) => Sent::Datagram { to: transmit.to, bytes },
                Via::Stream(id) => Sent::Frame { id, bytes },
            });
        }
        self.out.outbox.clear();
        while let Some(order) = self.out.orders.pop_front() {
            match order {
                Order::Stream(StreamOrder::Open(id, dial)) => sent.push(Sent::Open { id, to: dial.to }),
                Order::Stream(StreamOrder::Close(id)) => sent.push(Sent::Close(id)),
                Order::Stream(StreamOrder::RaiseTtl(_) | StreamOrder::Bind(_) | StreamOrder::Unbind(_)) => {}
                Order::Broker(message) => {
                    self.said.push(message.clone());
                    sent.push(Sent::Broker(message));
                }
                Order::Register(register) if self.online => {
                    let (candidates, profile) = (register.candidates, register.profile);
                    sent.push(Sent::Broker(ToBroker::Update { candidates, profile }));
                }
                Order::Register(_) | Order::StoreCertificate(_) | Order::StoreRevocations(_) => {}
            }
        }
        self.notices.extend(self.out.notices.drain(..).map(|notice| (now.instant, notice)));
        let mut echoes = Vec::new();
        for bytes in self.out.packets.iter() {
            let from = IpAddr::V4(Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]));
            let payload = bytes[20..].to_vec();
            if let Some(question) = payload.strip_prefix(b"ping ") {
                echoes.push(ipv4(self.addrs.v4.into(), from, &[b"pong ", question].concat()));
            }
            self.packets.push(Packet { at: now.instant, payload });
        }
        self.out.packets.clear();
        for echo in echoes {
            self.handle_packet(&echo, now);
            sent.extend(self.take_sent(now));
        }
        sent
    }
}

impl World {
    /// Switches a machine on, or off and on again: a new node with the old keys.
    pub(crate) fn switch_on(&mut self, who: Who) {
        self.server.disconnect(who, self.now);
        let now = self.now;
        let source = SocketAddr::new(self.outside(who), 41_000);
        let machine = &mut self.machines[who.0];
        machine.life += 1;
        machine.online = false;
        machine.out = Output::default();
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
            relay: true,
            overlay,
            configured: Vec::new(),
            observers: Vec::new(),
            csr: Vec::new(),
            stock: machine.stock.clone(),
        };
        let mut seed = [0; 32];
        seed[0] = u8::try_from(who.0).unwrap() + 1;
        seed[1] = u8::try_from(machine.life).unwrap();
        let now = machine.clock(now);
        let mut node = Node::new(me, config, RevocationList::default(), Seed(seed), now);
        let (ip, port) = (machine.inside.ip(), machine.inside.port());
        let port = if machine.udp_off { 0 } else { port };
        node.handle_network(&[ip], (port, 0), now, &mut machine.out);
        let register = node.register();
        machine.node = Some(node);
        let certificate = machine.certificate.clone();
        let now = self.now;
        self.server.connect(who, certificate, source);
        self.server.handle_message(who, ToBroker::Register(register), now);
        self.collect_server();
        self.collect(who);
    }

    /// The power fails. The broker notices at once, or not at all.
    pub(crate) fn switch_off(&mut self, who: Who, noticed: bool) {
        self.machines[who.0].node = None;
        self.machines[who.0].life += 1;
        if noticed {
            self.server.disconnect(who, self.now);
            self.collect_server();
        }
    }

    /// The machine turns up in another place, on another address and behind another NAT.
    pub(crate) fn move_to(&mut self, who: Who, nat: Option<NatId>, ip: Ipv4Addr) {
        let now = self.now;
        let machine = &mut self.machines[who.0];
        machine.nat = nat;
        machine.inside.set_ip(ip.into());
        let (ip, port) = (machine.inside.ip(), machine.inside.port());
        self.at_member(who, |m| m.with(|node, out| node.handle_network(&[ip], (port, 0), now, out)));
    }

    /// One packet with `text` in it from `a` to `b`.
    pub(crate) fn say(&mut self, a: Who, b: Who, text: &str) {
        let to = self.machines[b.0].addrs.v4;
        self.say_to(a, to, text);
    }

    pub(crate) fn say_to(&mut self, a: Who, to: Ipv4Addr, text: &str) {
        let packet = ipv4(self.machines[a.0].addrs.v4.into(), to.into(), text.as_bytes());
        let now = self.now;
        self.at_member(a, |m| m.handle_packet(&packet, now));
    }

    /// Asks `b` and waits for the answer; how long it took.
    pub(crate) fn ask(&mut self, a: Who, b: Who, patience: Duration) -> Option<Duration> {
        let question = format!("{:?}", self.since_start());
        self.say(a, b, &format!("ping {question}"));
        let answer = format!("pong {question}");
        self.run_until(patience, |w| w.heard(a, &answer))
    }

    /// Asks every 200 ms for `time`; how many questions were answered, and the longest time without an answer.
    pub(crate) fn converse(&mut self, a: Who, b: Who, time: Duration) -> (usize, Duration) {
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

    pub(crate) fn heard(&self, who: Who, text: &str) -> bool {
        self.machines[who.0].packets.iter().any(|p| p.payload == text.as_bytes())
    }

    pub(crate) fn snapshot(&mut self, who: Who) -> Snapshot {
        let machine = &mut self.machines[who.0];
        let now = machine.clock(self.now);
        match machine.node.as_mut().unwrap().handle_request(Request::Status, now, &mut machine.out) {
            Reply::Status(snapshot) => *snapshot,
            other => unreachable!("{other:?}"),
        }
    }

    pub(crate) fn peer(&mut self, who: Who, of: Who) -> PeerStatus {
        let name = self.machines[of.0].name.clone();
        self.snapshot(who).peers.into_iter().find(|p| p.name.as_str() == name).unwrap()
    }

    pub(crate) fn path(&mut self, who: Who, of: Who) -> PathKind {
        self.peer(who, of).path
    }

    pub(crate) fn is_direct(&mut self, a: Who, b: Who) -> bool {
        matches!(self.path(a, b), PathKind::DirectUdp(_)) && matches!(self.path(b, a), PathKind::DirectUdp(_))
    }

    pub(crate) fn is_relayed(&mut self, a: Who, b: Who) -> bool {
        matches!(self.path(a, b), PathKind::Relay { .. }) && matches!(self.path(b, a), PathKind::Relay { .. })
    }
}

/// A small IPv4 packet of an unknown protocol.
pub(crate) fn ipv4(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { unreachable!("IPv4 alone") };
    let len = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}
