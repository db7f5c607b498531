//! What all parts of a running broker share: the thinking value behind its lock, and where its actions go.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustls::ServerConfig;
use tokio::sync::mpsc;

use crate::base::id::RegistrationId;
use crate::base::time::Now;
use crate::broker::admission::Admission;
use crate::broker::admission::Rates;
use crate::broker::registry::Action;
use crate::broker::registry::Broker;
use crate::broker::registry::ConnId;
use crate::engine::broker::udp::Registrations;
use crate::engine::broker::udp::UdpCounters;
use crate::engine::broker::work::Work;
use crate::engine::clock;
use crate::engine::entry::Entry;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::TrustAnchor;
use crate::io::printer::Printer;
use crate::wire::broker::ToBroker;

/// Messages that wait for one connection. A listing page is the largest; whoever reads slower than this is cut off.
const QUEUE: usize = 256;

/// What came in on TCP, each since the start.
#[derive(Debug, Default)]
pub(super) struct TcpCounters {
    pub(super) accepted: AtomicU64,
    pub(super) denied: AtomicU64,
    pub(super) garbage: AtomicU64,
    pub(super) handshake_failed: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) slow: AtomicU64,
    pub(super) enrolled: AtomicU64,
    pub(super) refused_guests: AtomicU64,
}

/// Shared by the listeners, the connections, the UDP threads, the worker and the handle.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) anchor: TrustAnchor,
    pub(super) tls: RwLock<Arc<ServerConfig>>,
    pub(super) admission: Mutex<Admission>,
    pub(super) redeems: Mutex<Rates>,
    pub(super) registrations: Registrations,
    pub(super) udp_counters: UdpCounters,
    pub(super) tcp_counters: TcpCounters,
    pub(super) work: std::sync::mpsc::Sender<Work>,
    /// For packets in others' names.
    printer: Option<Printer>,
    /// The door of the relay in the same process.
    pub(super) relay: OnceLock<Arc<Entry>>,
    core: Mutex<Core>,
}

/// Behind the lock.
#[derive(Debug)]
struct Core {
    broker: Broker,
    outlets: BTreeMap<ConnId, Outlet>,
    next: u64,
}

#[derive(Debug)]
struct Outlet {
    queue: mpsc::Sender<Vec<u8>>,
    registration: RegistrationId,
}

/// A connection as its task sees it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) conn: ConnId,
    /// Ends when the connection shall be closed.
    pub(super) queue: mpsc::Receiver<Vec<u8>>,
}

impl Hub {
    pub(super) fn new(
        broker: Broker,
        anchor: TrustAnchor,
        tls: Arc<ServerConfig>,
        work: std::sync::mpsc::Sender<Work>,
        printer: Option<Printer>,
    ) -> Self {
        let core = Core { broker, outlets: BTreeMap::new(), next: 0 };
        Self {
            anchor,
            tls: RwLock::new(tls),
            admission: Mutex::default(),
            // Redeeming costs a signature and a disk write; guessing 256 bits is hopeless at any rate.
            redeems: Mutex::new(Rates::new(16, 0.5)),
            registrations: Registrations::default(),
            udp_counters: UdpCounters::default(),
            tcp_counters: TcpCounters::default(),
            work,
            printer,
            relay: OnceLock::new(),
            core: Mutex::new(core),
        }
    }

    /// The TLS configuration for the next connection.
    pub(super) fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection with a verified certificate begins. Its queue may end at once: then it is refused.
    pub(super) fn connected(
        &self,
        certificate: Certificate,
        source: SocketAddr,
        local: SocketAddr,
        key: [u8; 32],
    ) -> Ticket {
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut core = self.core();
        core.next += 1;
        let conn = ConnId(core.next);
        let mut actions = Vec::new();
        let registration = core.broker.handle_connected(conn, certificate, source, local, &mut actions);
        if let Some(registration) = registration {
            self.registrations.allow(registration, key);
        }
        let registration = registration.unwrap_or(RegistrationId(0));
        core.outlets.insert(conn, Outlet { queue: sender, registration });
        self.dispatch(&mut core, actions);
        Ticket { conn, queue }
    }

    /// A message came in.
    pub(super) fn on_message(&self, conn: ConnId, message: ToBroker) {
        self.with_broker(|broker, now, out| broker.handle_message(conn, message, now, out));
    }

    /// A connection is gone.
    pub(super) fn on_closed(&self, conn: ConnId) {
        let mut core = self.core();
        self.drop_outlet(&mut core, conn);
        let mut actions = Vec::new();
        core.broker.handle_closed(conn, clock::now(), &mut actions);
        self.dispatch(&mut core, actions);
    }

    /// A UDP registration came from a new source.
    pub(super) fn on_mapped(&self, registration: RegistrationId, source: SocketAddr) {
        self.with_broker(|broker, now, out| broker.handle_mapped(registration, source, now, out));
    }

    /// A member asked what a TCP connection of its own looks like.
    pub(super) fn on_looked(&self, registration: RegistrationId, source: SocketAddr) {
        self.with_broker(|broker, now, _| broker.handle_looked(registration, source, now));
    }

    /// Lets the broker do something, and does what it orders.
    pub(super) fn with_broker<T>(&self, act: impl FnOnce(&mut Broker, Now, &mut Vec<Action>) -> T) -> T {
        let mut core = self.core();
        let mut actions = Vec::new();
        let answer = act(&mut core.broker, clock::now(), &mut actions);
        self.dispatch(&mut core, actions);
        answer
    }

    /// Connections with a certificate.
    pub(super) fn connections(&self) -> usize {
        self.core().outlets.len()
    }

    /// Ends all connections.
    pub(super) fn close_all(&self) {
        let mut core = self.core();
        let all: Vec<ConnId> = core.outlets.keys().copied().collect();
        for conn in all {
            self.drop_outlet(&mut core, conn);
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // A panic elsewhere leaves the value usable: each action is complete in itself.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dispatch(&self, core: &mut Core, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(conn, message) => {
                    let Some(outlet) = core.outlets.get(&conn) else { continue };
                    if outlet.queue.try_send(message.emit()).is_err() {
                        self.tcp_counters.slow.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(?conn, "closed: reads too slowly");
                        self.drop_outlet(core, conn);
                        let mut more = Vec::new();
                        core.broker.handle_closed(conn, clock::now(), &mut more);
                        actions.extend(more);
                    }
                }
                Action::Close(conn, why) => {
                    tracing::debug!(?conn, ?why, "closed by the broker");
                    self.drop_outlet(core, conn);
                }
                Action::Remember(certificate) => self.order(Work::Remember(certificate)),
                Action::Forge { pair: [a, b], packets } => {
                    tracing::info!(%a, %b, "forged the answers to their connections");
                    for (to, packet) in &packets {
                        if let Some(Err(error)) =
                            self.printer.as_ref().map(|printer| printer.send(packet, *to))
                        {
                            tracing::warn!(%error, "a forged answer was not sent");
                        }
                    }
                }
                Action::Gone(name, at) => self.order(Work::Seen(name, at)),
                Action::Renew { conn, request, subject, key } => {
                    self.order(Work::Renew { conn, request, subject, key });
                }
            }
        }
    }

    /// Gives the worker something to do. It is gone only while the broker shuts down, when nothing counts any more.
    pub(super) fn order(&self, work: Work) {
        let _ = self.work.send(work);
    }

    /// The task of the connection sends what is queued and closes.
    fn drop_outlet(&self, core: &mut Core, conn: ConnId) {
        if let Some(outlet) = core.outlets.remove(&conn) {
            self.registrations.forget(outlet.registration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Seed;
    use crate::broker::directory::Directory;
    use crate::broker::registry::Settings;
    use crate::engine::broker::create_network;
    use crate::engine::tls;
    use crate::identity::authority::validity;
    use crate::identity::certificate::Roles;
    use crate::identity::certificate::Serial;
    use crate::identity::certificate::Subject;
    use crate::identity::keys::SigningKey;
    use crate::identity::keys::WgPublic;
    use crate::identity::revocation::RevocationList;
    use crate::nat::behavior::Profile;
    use crate::wire::broker::Register;

    fn register() -> Register {
        Register {
            software: "test".to_owned(),
            candidates: vec![],
            profile: Profile::default(),
            relay: vec![],
            revocations: 0,
            watch: false,
        }
    }

    #[test]
    fn whoever_does_not_read_is_cut_off_when_the_queue_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = "10.77.0.0/16".parse().unwrap();
        let (authority, own, _) = create_network(dir.path(), &"home".parse().unwrap(), prefix).unwrap();
        let anchor = authority.anchor().clone();
        let settings = Settings {
            key: own.key.clone(),
            prefix,
            prefix_v6: anchor.overlay_prefix_v6(),
            advertised_udp: vec![],
            udp_port: None,
            forge: false,
        };
        let (directory, list) = (Directory::default(), RevocationList::default());
        let broker = Broker::new(settings, directory, list, vec![], Seed([1; 32]));
        let (work, _orders) = std::sync::mpsc::channel();
        let hub = Hub::new(broker, anchor, tls::server(&own).unwrap(), work, None);

        let subject = Subject {
            uri: "ntcp://home/anna".parse().unwrap(),
            roles: Roles::RELAY,
            addrs: None,
            groups: vec![],
            wg: WgPublic([1; 32]),
        };
        let (from, until) = validity(clock::now().unix, std::time::Duration::from_secs(3600));
        let key = SigningKey::generate().public();
        let certificate = authority.sign(&subject, &key, Serial::generate(), from, until).unwrap();
        let here = "127.0.0.1:1".parse().unwrap();
        let mut ticket = hub.connected(certificate, here, here, [0; 32]);
        hub.on_message(ticket.conn, ToBroker::Register(register()));
        assert!(ticket.queue.try_recv().is_ok());
        for nonce in 0..u32::try_from(QUEUE).unwrap() {
            hub.on_message(ticket.conn, ToBroker::Ping { nonce });
        }
        assert_eq!(hub.connections(), 1);
        hub.on_message(ticket.conn, ToBroker::Ping { nonce: 0 });
        assert_eq!((hub.connections(), hub.tcp_counters.slow.load(Ordering::Relaxed)), (0, 1));
        let mut queued = 0;
        while ticket.queue.try_recv().is_ok() {
            queued += 1;
        }
        assert_eq!(queued, QUEUE, "what was queued still leaves, then the queue ends");
    }
}
