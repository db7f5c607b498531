//! The broker and the relays of the world, all real values, and the little that an engine does around them.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Instant;

use ntcp_overlay::base::ecn::Ecn;
use ntcp_overlay::base::id::RegistrationId;
use ntcp_overlay::base::id::SocketId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::base::time::Now;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::base::transmit::Outbox;
use ntcp_overlay::base::transmit::Via;
use ntcp_overlay::broker::directory::Directory;
use ntcp_overlay::broker::registry::Action;
use ntcp_overlay::broker::registry::Broker;
use ntcp_overlay::broker::registry::ConnId;
use ntcp_overlay::broker::registry::Ended;
use ntcp_overlay::broker::registry::Settings;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::identity::authority::CA_LIFETIME;
use ntcp_overlay::identity::authority::validity;
use ntcp_overlay::identity::certificate::Certificate;
use ntcp_overlay::identity::certificate::Roles;
use ntcp_overlay::identity::certificate::Serial;
use ntcp_overlay::identity::certificate::Subject;
use ntcp_overlay::identity::keys::SigningKey;
use ntcp_overlay::identity::keys::WgSecret;
use ntcp_overlay::identity::revocation::RevocationList;
use ntcp_overlay::nat::candidate::Candidate;
use ntcp_overlay::nat::candidate::Kind;
use ntcp_overlay::nat::candidate::Transport;
use ntcp_overlay::relay::server::Config;
use ntcp_overlay::relay::server::Relay;
use ntcp_overlay::relay::server::Stats;
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::ToBroker;
use ntcp_overlay::wire::stun;

use crate::Who;
use crate::secs;
use crate::tcp::Host;
use crate::tcp::News;
use crate::tcp::Segment;

/// The broker, for control connections and for registrations.
pub const BROKER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 6060);
/// The first relay; further ones follow at the next addresses.
pub const RELAY: SocketAddr = relay_addr(0);
/// Where a relay would be that is announced and dead.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 200)), 6061);

const fn relay_addr(n: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2 + n)), 6061)
}

/// Whether a server has this address.
#[must_use]
pub fn is_here(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.octets()[..3] == [192, 0, 2] && (1..100).contains(&v4.octets()[3]))
}

/// Something for a member.
pub(crate) enum Sent {
    Datagram { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Message(Who, u32, FromBroker),
    Reset(Who, u32),
    Segment { from: SocketAddr, to: SocketAddr, segment: Segment },
}

/// The broker and the relays.
pub struct Server {
    /// The broker; `None` while its program is not running.
    pub broker: Option<Broker>,
    relays: Vec<RelayHost>,
    announced: Vec<(Certificate, SocketAddr)>,
    offered: bool,
    known: BTreeMap<String, Certificate>,
    conns: BTreeMap<ConnId, (Who, u32)>,
    of: BTreeMap<Who, ConnId>,
    next_conn: u64,
    lives: u8,
    registrations: HashMap<RegistrationId, ([u8; 32], u64)>,
    keys: BTreeMap<Who, [u8; 32]>,
    /// The broker's TCP, for those who ask what theirs looks like, and where they are.
    looks: Host,
    sources: BTreeMap<StreamId, SocketAddr>,
    actions: Vec<Action>,
    outbox: Outbox,
    sent: VecDeque<Sent>,
    second: Instant,
}

/// A relay, and the TCP of its machine.
struct RelayHost {
    at: SocketAddr,
    relay: Option<Relay>,
    lives: u8,
    tcp: Host,
}

impl Server {
    pub(crate) fn new(authority: &Authority, now: Now) -> Self {
        let mut server = Self {
            broker: None,
            relays: Vec::new(),
            announced: Vec::new(),
            offered: true,
            known: BTreeMap::new(),
            conns: BTreeMap::new(),
            of: BTreeMap::new(),
            next_conn: 1,
            lives: 0,
            registrations: HashMap::new(),
            keys: BTreeMap::new(),
            looks: Host::default(),
            sources: BTreeMap::new(),
            actions: Vec::new(),
            outbox: Outbox::default(),
            sent: VecDeque::new(),
            second: now.instant,
        };
        server.start_broker(authority, now);
        server.add_relay(authority, now);
        server
    }

    /// One more relay, which introductions name from now on.
    pub fn add_relay(&mut self, authority: &Authority, now: Now) {
        let n = u8::try_from(self.relays.len()).expect("a few relays");
        let (secret, at) = (relay_secret(n), relay_addr(n));
        let name = if n == 0 { "relay".to_owned() } else { format!("relay-{n}") };
        let certificate = relay_certificate(authority, &name, &secret, now.unix);
        self.announced.push((certificate, at));
        self.relays.push(RelayHost { at, relay: None, lives: 0, tcp: Host::default() });
        self.start_relay(usize::from(n), now);
        self.announce_relays();
    }

    /// The first relay's program ends and starts anew: it remembers nobody.
    pub fn restart_relay(&mut self, now: Now) {
        self.stop_relay(0);
        self.start_relay(0, now);
    }

    /// A relay's program ends.
    pub fn stop_relay(&mut self, n: usize) {
        let host = &mut self.relays[n];
        host.relay = None;
        host.tcp.end();
    }

    /// A relay's program starts: it knows nobody.
    pub fn start_relay(&mut self, n: usize, now: Now) {
        let secret = relay_secret(u8::try_from(n).expect("a few relays"));
        let host = &mut self.relays[n];
        host.lives += 1;
        let mut relay = Relay::new(Config::default(), secret, Seed([host.lives; 32]), now);
        relay.authorise_broker(broker_key().public());
        host.relay = Some(relay);
        host.tcp.listen(host.at.port());
    }

    /// How many relays there are.
    #[must_use]
    pub fn relays(&self) -> usize {
        self.relays.len()
    }

    /// TCP connections that all servers hold, open or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        let hosts = self.relays.iter().map(|host| &host.tcp).chain([&self.looks]);
        hosts.map(|host| host.count()).map(|(_, half_open, open)| half_open + open).sum()
    }

    /// What the running relays hold.
    #[must_use]
    pub fn relay_stats(&self) -> Vec<Stats> {
        self.relays.iter().filter_map(|host| host.relay.as_ref()).map(Relay::stats).collect()
    }

    /// Whether introductions name the relays.
    pub fn offer_relay(&mut self, offered: bool) {
        self.offered = offered;
        self.announce_relays();
    }

    /// Introductions name another relay first, at which nobody answers.
    pub fn offer_dead_relay(&mut self, authority: &Authority, now: UnixTime) {
        let certificate = relay_certificate(authority, "a-relay", &WgSecret::new([98; 32]), now);
        self.announced.push((certificate, NOWHERE));
        self.announce_relays();
    }

    fn announce_relays(&mut self) {
        let Some(broker) = &mut self.broker else { return };
        for (certificate, addr) in &self.announced {
            let at = |transport| Candidate { transport, kind: Kind::Configured, addr: *addr };
            let both = [at(Transport::Udp), at(Transport::Tcp)];
            broker.handle_local_relay(certificate.clone(), if self.offered { &both } else { &[] });
        }
    }

    /// Whether the broker's program is running.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.broker.is_some()
    }

    /// Ends the broker's program.
    pub(crate) fn stop_broker(&mut self) {
        self.broker = None;
        self.looks.end();
        self.of.clear();
        self.registrations.clear();
        self.actions.clear();
        for (who, link) in std::mem::take(&mut self.conns).into_values() {
            self.sent.push_back(Sent::Reset(who, link));
        }
    }

    /// Starts it, with the directory that it had on disk.
    pub(crate) fn start_broker(&mut self, authority: &Authority, now: Now) {
        let settings = Settings {
            key: broker_key(),
            prefix: authority.anchor().prefix,
            prefix_v6: authority.anchor().overlay_prefix_v6(),
            advertised_udp: vec![BROKER],
            udp_port: None,
            forge: false,
        };
        let mut directory = Directory::default();
        for certificate in self.known.values() {
            let _ = directory.learn(certificate.clone(), now.unix);
        }
        self.lives += 1;
        let none = RevocationList::default();
        self.broker = Some(Broker::new(settings, directory, none, Vec::new(), Seed([self.lives; 32])));
        self.looks.listen(BROKER.port());
        self.announce_relays();
    }

    pub(crate) fn connect(&mut self, who: Who, link: u32, certificate: Certificate, source: SocketAddr) {
        let Some(broker) = &mut self.broker else { return };
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.known.insert(certificate.subject.uri.to_string(), certificate.clone());
        let registration = broker.handle_connected(conn, certificate, source, BROKER, &mut self.actions);
        self.conns.insert(conn, (who, link));
        self.of.insert(who, conn);
        if let Some(registration) = registration {
            let mut key = [7; 32];
            key[..8].copy_from_slice(&self.next_conn.to_le_bytes());
            self.registrations.insert(registration, (key, 0));
            self.keys.insert(who, key);
        }
    }

    /// The broker notices that connection number `link` of a member is gone.
    pub(crate) fn disconnect(&mut self, who: Who, link: u32, now: Now) {
        let Some(conn) = self.of.get(&who).copied() else { return };
        if self.conns.get(&conn) == Some(&(who, link))
            && let Some(broker) = &mut self.broker
        {
            self.of.remove(&who);
            self.conns.remove(&conn);
            broker.handle_closed(conn, now, &mut self.actions);
        }
    }

    pub(crate) fn key_of(&self, who: Who) -> [u8; 32] {
        self.keys.get(&who).copied().unwrap_or_default()
    }

    /// A newer revocation list reaches the broker.
    pub fn revoke(&mut self, list: RevocationList, signed: Vec<u8>, now: Now) {
        if let Some(broker) = &mut self.broker {
            broker.handle_revocations(list, signed, now, &mut self.actions);
        }
    }

    pub(crate) fn handle_message(&mut self, from: Who, message: ToBroker, now: Now) {
        if let (Some(conn), Some(broker)) = (self.of.get(&from), &mut self.broker) {
            broker.handle_message(*conn, message, now, &mut self.actions);
        }
    }

    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8], now: Now) {
        if to == BROKER {
            return self.register(from, bytes, now);
        }
        let Some(n) = self.relays.iter().position(|host| host.at == to) else { return };
        if let Some(relay) = &mut self.relays[n].relay {
            relay.handle_message(Via::Udp(SocketId::V4), from, Ecn::NotCapable, bytes, now, &mut self.outbox);
        }
        self.take_outbox(n, now);
    }

    fn register(&mut self, from: SocketAddr, bytes: &[u8], now: Now) {
        let Some(broker) = &mut self.broker else { return };
        let Ok(received) = stun::Received::parse(bytes) else { return };
        let message = &received.message;
        let is_binding = (message.class, message.method) == (stun::Class::Request, stun::BINDING);
        if message.username().is_none() && is_binding {
            let answer = message.success().with(stun::Attribute::XorMappedAddress(from));
            let bytes = answer.emit(stun::Integrity::None);
            return self.sent.push_back(Sent::Datagram { from: BROKER, to: from, bytes });
        }
        let Some(id) = message.username().and_then(|name| name.try_into().ok()) else { return };
        let id = RegistrationId(u64::from_be_bytes(id));
        let Some((key, last)) = self.registrations.get_mut(&id) else { return };
        let Some(stamp) = message.timestamp().filter(|stamp| *stamp > *last) else { return };
        if !received.is_authentic(&*key) {
            return;
        }
        *last = stamp;
        let answer = message.success().with(stun::Attribute::XorMappedAddress(from));
        let bytes = answer.emit(stun::Integrity::Sha256(&*key));
        self.sent.push_back(Sent::Datagram { from: BROKER, to: from, bytes });
        broker.handle_mapped(id, from, now, &mut self.actions);
    }

    pub(crate) fn handle_segment(&mut self, from: SocketAddr, to: SocketAddr, segment: Segment, now: Now) {
        if to.ip() == BROKER.ip() {
            self.looks.handle_segment(from, to, segment.kind, now.instant);
            self.answer_looks(now);
        } else if let Some(n) = self.relays.iter().position(|host| host.at.ip() == to.ip()) {
            self.relays[n].tcp.handle_segment(from, to, segment.kind, now.instant);
            self.take_news(n, now);
        }
    }

    /// Whoever asks over TCP what the connection looks like is told, if he is registered.
    fn answer_looks(&mut self, now: Now) {
        while let Some(news) = self.looks.poll_news() {
            match news {
                News::Accepted { id, from, .. } => drop(self.sources.insert(id, from)),
                News::Frame(id, bytes) => match self.looked_at(id, &bytes) {
                    Some(answer) => self.looks.send(id, answer, now.instant),
                    None => self.looks.close(id),
                },
                News::Closed(id, _) => drop(self.sources.remove(&id)),
                News::Opened(_) => {}
            }
        }
    }

    fn looked_at(&self, id: StreamId, bytes: &[u8]) -> Option<Vec<u8>> {
        let received = stun::Received::parse(bytes).ok()?;
        let name = received.message.username()?.try_into().ok()?;
        let (key, _) = self.registrations.get(&RegistrationId(u64::from_be_bytes(name)))?;
        let source = self.sources.get(&id).filter(|_| received.is_authentic(key))?;
        let answer = received.message.success().with(stun::Attribute::XorMappedAddress(*source));
        Some(answer.emit(stun::Integrity::Sha256(key)))
    }

    /// What became of streams to a relay.
    fn take_news(&mut self, n: usize, now: Now) {
        let host = &mut self.relays[n];
        while let Some(news) = host.tcp.poll_news() {
            let Some(relay) = &mut host.relay else { continue };
            match news {
                News::Accepted { id, from, .. } => relay.handle_stream_accepted(id, from, now),
                News::Frame(id, bytes) => relay.handle_frame(id, &bytes, now, &mut self.outbox),
                News::Closed(id, _) => relay.handle_stream_closed(id),
                News::Opened(_) => {}
            }
        }
        self.take_outbox(n, now);
    }

    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let relays = self.relays.iter().filter_map(|host| host.relay.as_ref()?.poll_timeout()).min();
        let hosts = self.relays.iter_mut().map(|host| &mut host.tcp).chain([&mut self.looks]);
        hosts.filter_map(Host::deadline).chain(relays).chain([self.second]).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) {
        if self.second <= now.instant {
            self.second = now.instant + secs(1);
            if let Some(broker) = &mut self.broker {
                broker.handle_timeout(now, &mut self.actions);
            }
        }
        for n in 0..self.relays.len() {
            let host = &mut self.relays[n];
            host.tcp.handle_timeout(now.instant);
            if let Some(relay) = &mut host.relay {
                relay.handle_timeout(now);
            }
            self.take_news(n, now);
        }
        self.looks.handle_timeout(now.instant);
        self.answer_looks(now);
    }

    fn take_outbox(&mut self, n: usize, now: Now) {
        let host = &mut self.relays[n];
        for transmit in self.outbox.sends() {
            let bytes = self.outbox.bytes(transmit.range.clone()).to_vec();
            match transmit.via {
                Via::Udp(_) => {
                    self.sent.push_back(Sent::Datagram { from: host.at, to: transmit.to, bytes });
                }
                Via::Stream(id) => host.tcp.send(id, bytes, now.instant),
            }
        }
        self.outbox.clear();
    }

    pub(crate) fn take_sent(&mut self) -> Vec<Sent> {
        for host in &mut self.relays {
            while let Some(id) = host.relay.as_mut().and_then(Relay::poll_close) {
                host.tcp.close(id);
            }
        }
        let hosts = self.relays.iter_mut().map(|host| &mut host.tcp).chain([&mut self.looks]);
        for host in hosts {
            while let Some((from, to, segment)) = host.poll_sent() {
                self.sent.push_back(Sent::Segment { from, to, segment });
            }
        }
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Send(conn, message) => {
                    if let Some((who, link)) = self.conns.get(&conn) {
                        self.sent.push_back(Sent::Message(*who, *link, message));
                    }
                }
                Action::Close(conn, why) => {
                    if let Some((who, link)) = self.conns.remove(&conn) {
                        if self.of.get(&who) == Some(&conn) {
                            self.of.remove(&who);
                        }
                        // A revoked member's program ends: it does not dial again.
                        if why != Ended::Revoked {
                            self.sent.push_back(Sent::Reset(who, link));
                        }
                    }
                }
                Action::Remember(_) | Action::Gone(..) | Action::Forge { .. } | Action::Renew { .. } => {}
            }
        }
        self.sent.drain(..).collect()
    }
}

/// What signs the tokens of relays.
pub(crate) fn broker_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn relay_secret(n: u8) -> WgSecret {
    WgSecret::new([99 + n; 32])
}

fn relay_certificate(authority: &Authority, name: &str, secret: &WgSecret, now: UnixTime) -> Certificate {
    let subject = Subject {
        uri: format!("ntcp://home/{name}").parse().expect("a name"),
        roles: Roles::RELAY,
        addrs: None,
        groups: Vec::new(),
        wg: secret.public(),
    };
    let (from, until) = validity(now, CA_LIFETIME);
    let mut seed = [2; 32];
    seed[..name.len().min(32)].copy_from_slice(&name.as_bytes()[..name.len().min(32)]);
    let key = SigningKey::from_seed(&seed).public();
    authority.sign(&subject, &key, Serial::generate(), from, until).expect("the CA may sign relays")
}
