//! The broker and the relay of the world, both the real values, and the little that an engine does around them.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Instant;

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
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::ToBroker;
use ntcp_overlay::wire::stun;

use super::Who;
use super::secs;

pub(crate) const BROKER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 6060);
pub(crate) const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 6061);

pub(crate) fn is_here(ip: IpAddr) -> bool {
    ip == BROKER.ip() || ip == RELAY.ip()
}

/// Something for a member.
pub(crate) enum Sent {
    Datagram { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Message(Who, FromBroker),
    Frame(Who, StreamId, Vec<u8>),
    Close(Who, StreamId),
}

pub(crate) struct Server {
    pub(crate) broker: Broker,
    pub(crate) relay: Relay,
    relay_certificate: Certificate,
    conns: BTreeMap<ConnId, Who>,
    of: BTreeMap<Who, ConnId>,
    next_conn: u64,
    registrations: BTreeMap<RegistrationId, ([u8; 32], u64)>,
    keys: BTreeMap<Who, [u8; 32]>,
    streams: BTreeMap<StreamId, (Who, StreamId, SocketAddr)>,
    next_stream: u32,
    actions: Vec<Action>,
    outbox: Outbox,
    sent: VecDeque<Sent>,
    second: Instant,
}

impl Server {
    pub(crate) fn new(authority: &Authority, now: Now) -> Self {
        let key = SigningKey::from_seed(&[1; 32]);
        let secret = WgSecret::new([99; 32]);
        let subject = Subject {
            uri: "ntcp://home/relay".parse().unwrap(),
            roles: Roles::RELAY,
            addrs: None,
            groups: Vec::new(),
            wg: secret.public(),
        };
        let (from, until) = validity(now.unix, CA_LIFETIME);
        let relay_key = SigningKey::from_seed(&[2; 32]).public();
        let certificate = authority.sign(&subject, &relay_key, Serial::generate(), from, until).unwrap();
        let mut relay = Relay::new(Config::default(), secret, Seed([7; 32]), now);
        relay.authorise_broker(key.public());
        let settings = Settings {
            key,
            prefix: authority.anchor().prefix,
            prefix_v6: authority.anchor().overlay_prefix_v6(),
            advertised_udp: vec![BROKER],
            udp_port: None,
        };
        let none = RevocationList::default();
        let broker = Broker::new(settings, Directory::default(), none, Vec::new(), Seed([8; 32]));
        let mut server = Self {
            broker,
            relay,
            relay_certificate: certificate,
            conns: BTreeMap::new(),
            of: BTreeMap::new(),
            next_conn: 1,
            registrations: BTreeMap::new(),
            keys: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 1,
            actions: Vec::new(),
            outbox: Outbox::default(),
            sent: VecDeque::new(),
            second: now.instant,
        };
        server.offer_relay(true);
        server
    }

    /// The relay's program ends and starts anew: it remembers nobody.
    pub(crate) fn restart_relay(&mut self, now: Now) {
        self.relay = Relay::new(Config::default(), WgSecret::new([99; 32]), Seed([77; 32]), now);
        self.relay.authorise_broker(SigningKey::from_seed(&[1; 32]).public());
        for (_, (who, theirs, _)) in std::mem::take(&mut self.streams) {
            self.sent.push_back(Sent::Close(who, theirs));
        }
    }

    /// Whether introductions name the relay.
    pub(crate) fn offer_relay(&mut self, offered: bool) {
        let at = |transport| Candidate { transport, kind: Kind::Configured, addr: RELAY };
        let both = [at(Transport::Udp), at(Transport::Tcp)];
        let endpoints = if offered { &both[..] } else { &[] };
        self.broker.handle_local_relay(self.relay_certificate.clone(), endpoints);
    }

    /// Introductions name another relay first, at which nobody answers.
    pub(crate) fn offer_dead_relay(&mut self, authority: &Authority, now: UnixTime) {
        let subject = Subject {
            uri: "ntcp://home/a-relay".parse().unwrap(),
            wg: WgSecret::new([98; 32]).public(),
            ..self.relay_certificate.subject.clone()
        };
        let (from, until) = validity(now, CA_LIFETIME);
        let key = SigningKey::from_seed(&[3; 32]).public();
        let certificate = authority.sign(&subject, &key, Serial::generate(), from, until).unwrap();
        let nowhere = SocketAddr::from(([192, 0, 2, 200], 6061));
        let at = |transport| Candidate { transport, kind: Kind::Configured, addr: nowhere };
        self.broker.handle_local_relay(certificate, &[at(Transport::Udp), at(Transport::Tcp)]);
    }

    pub(crate) fn connect(&mut self, who: Who, certificate: Certificate, source: SocketAddr) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let registration = self.broker.handle_connected(conn, certificate, source, BROKER, &mut self.actions);
        self.conns.insert(conn, who);
        self.of.insert(who, conn);
        if let Some(registration) = registration {
            let key = [u8::try_from(self.next_conn % 251).unwrap(); 32];
            self.registrations.insert(registration, (key, 0));
            self.keys.insert(who, key);
        }
    }

    pub(crate) fn disconnect(&mut self, who: Who, now: Now) {
        if let Some(conn) = self.of.remove(&who) {
            self.conns.remove(&conn);
            self.broker.handle_closed(conn, now, &mut self.actions);
        }
    }

    pub(crate) fn key_of(&self, who: Who) -> [u8; 32] {
        self.keys.get(&who).copied().unwrap_or_default()
    }

    pub(crate) fn revoke(&mut self, list: RevocationList, signed: Vec<u8>, now: Now) {
        self.broker.handle_revocations(list, signed, now, &mut self.actions);
    }

    pub(crate) fn handle_message(&mut self, from: Who, message: ToBroker, now: Now) {
        if let Some(conn) = self.of.get(&from) {
            self.broker.handle_message(*conn, message, now, &mut self.actions);
        }
    }

    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8], now: Now) {
        if to == RELAY {
            self.relay.handle_message(Via::Udp(SocketId::V4), from, bytes, now, &mut self.outbox);
        } else if to == BROKER {
            self.register(from, bytes, now);
        }
    }

    fn register(&mut self, from: SocketAddr, bytes: &[u8], now: Now) {
        let Ok(received) = stun::Received::parse(bytes) else { return };
        let message = &received.message;
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
        self.broker.handle_mapped(id, from, now, &mut self.actions);
    }

    pub(crate) fn accept(&mut self, from: Who, theirs: StreamId, source: SocketAddr, now: Now) {
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        self.streams.insert(id, (from, theirs, source));
        self.relay.handle_stream_accepted(id, source, now);
    }

    pub(crate) fn handle_frame(&mut self, from: Who, theirs: StreamId, bytes: &[u8], now: Now) {
        if let Some(id) = self.ours(from, theirs) {
            self.relay.handle_frame(id, bytes, now, &mut self.outbox);
        }
    }

    pub(crate) fn handle_closed(&mut self, from: Who, theirs: StreamId) {
        if let Some(id) = self.ours(from, theirs) {
            self.streams.remove(&id);
            self.relay.handle_stream_closed(id);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.relay.poll_timeout().into_iter().chain([self.second]).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) {
        if self.second <= now.instant {
            self.second = now.instant + secs(1);
            self.broker.handle_timeout(now, &mut self.actions);
        }
        self.relay.handle_timeout(now);
    }

    pub(crate) fn take_sent(&mut self) -> Vec<Sent> {
        for transmit in self.outbox.sends() {
            let bytes = self.outbox.bytes(transmit.range.clone()).to_vec();
            match transmit.via {
                Via::Udp(_) => {
                    self.sent.push_back(Sent::Datagram { from: RELAY, to: transmit.to, bytes });
                }
                Via::Stream(id) => {
                    if let Some((who, theirs, _)) = self.streams.get(&id) {
                        self.sent.push_back(Sent::Frame(*who, *theirs, bytes));
                    }
                }
            }
        }
        self.outbox.clear();
        while let Some(id) = self.relay.poll_close() {
            if let Some((who, theirs, _)) = self.streams.remove(&id) {
                self.sent.push_back(Sent::Close(who, theirs));
            }
        }
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Send(conn, message) => {
                    if let Some(who) = self.conns.get(&conn) {
                        self.sent.push_back(Sent::Message(*who, message));
                    }
                }
                Action::Close(conn, _) => {
                    if let Some(who) = self.conns.remove(&conn)
                        && self.of.get(&who) == Some(&conn)
                    {
                        self.of.remove(&who);
                    }
                }
                Action::Remember(_) | Action::Gone(..) | Action::Renew { .. } => {}
            }
        }
        self.sent.drain(..).collect()
    }

    fn ours(&self, from: Who, theirs: StreamId) -> Option<StreamId> {
        self.streams.iter().find(|(_, (who, id, _))| *who == from && *id == theirs).map(|(id, _)| *id)
    }
}
