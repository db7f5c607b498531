//! The broker's acting half: TLS connections, UDP sockets, the database, around the value [`crate::broker`].
//!
//! Four kinds of activity share one `hub`: tasks of the tokio runtime (listeners, one task per connection), one thread
//! per UDP socket (`udp`), and one thread that signs and writes the database (`work`, [`store`]), so that no
//! connection waits for the disk. The thinking value stands behind one lock that is held for microseconds; UDP
//! registrations that change nothing do not take it.
//!
//! Everything that a member is told was on disk before: an invite is used up and its member inserted in one transaction.
//! What is lost with the process is presence, and members bring that back when they reconnect.

mod hub;
mod look;
mod server;
pub mod store;
mod udp;
mod work;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::bail;
use ipnetwork::IpNetwork;
use ipnetwork::Ipv4Network;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::base::hidden::Hidden;
use crate::broker::directory::Directory;
use crate::broker::registry::Broker;
use crate::broker::registry::Settings;
use crate::config::credentials;
use crate::config::settings::Listen;
use crate::engine::broker::hub::Hub;
use crate::engine::broker::store::Grant;
use crate::engine::broker::store::Store;
use crate::engine::broker::work::Work;
use crate::engine::broker::work::Worker;
use crate::engine::broker::work::ask;
use crate::engine::clock;
use crate::engine::entry::Entry;
use crate::engine::responder;
use crate::engine::responder::Stop;
use crate::engine::tls;
use crate::identity::authority::Authority;
use crate::identity::authority::default_lifetime;
use crate::identity::authority::validity;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Roles;
use crate::identity::certificate::Serial;
use crate::identity::certificate::Subject;
use crate::identity::certificate::TrustAnchor;
use crate::identity::credentials::Credentials;
use crate::identity::names::GroupName;
use crate::identity::names::MemberName;
use crate::identity::names::MemberUri;
use crate::identity::names::NetworkName;
use crate::identity::revocation::RevocationList;
use crate::io::netlink::Netlink;
use crate::io::printer::Printer;
use crate::nat::candidate::Candidate;
use crate::wire::dress::Dress;
use crate::wire::enroll::BrokerAddr;
use crate::wire::enroll::Invite;

/// The database's name in the broker's directory.
pub const DATABASE: &str = "broker.redb";
/// Between two looks at what has run out.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at the broker's own certificate.
const RENEWAL_TICKS: u64 = 3600;
/// Addresses in one invite.
const MAX_ADVERTISED: usize = 16;

/// What a broker needs.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where it listens, TCP and UDP.
    pub listen: Vec<Listen>,
    /// How others reach it; empty for "at the addresses of this machine".
    pub advertise: Vec<BrokerAddr>,
    /// Its directory, where the database lies beside the keys.
    pub dir: PathBuf,
    /// Who it is.
    pub credentials: Credentials,
    /// The CA, if this broker may sign.
    pub authority: Option<Authority>,
    /// How long the certificates that it signs for members are valid.
    pub certificate_ttl: Duration,
    /// Whether it forges SYN-ACKs for pairs of members that ask for it; without CAP_NET_RAW it does not, and says so.
    pub forge: bool,
}

/// A member, for the administrator's eyes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberInfo {
    /// Its newest certificate.
    pub certificate: Certificate,
    /// Whether it is connected.
    pub online: bool,
    /// When it last was; the epoch if never.
    pub last_seen: crate::base::time::UnixTime,
}

/// What a broker did since it started, and what it holds now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Members and relays that are registered now.
    pub online: u64,
    /// Connections with a certificate now.
    pub connections: u64,
    /// TCP connections that came in.
    pub accepted: u64,
    /// Closed at once: too many, or too fast.
    pub denied: u64,
    /// Closed without an answer: what came first was no hello to a broker.
    pub garbage: u64,
    /// TLS that failed, mostly over certificates.
    pub handshake_failed: u64,
    /// Messages that made no sense, or came from guests and were no `Redeem`.
    pub malformed: u64,
    /// Connections cut because they did not read.
    pub slow: u64,
    /// Machines enrolled.
    pub enrolled: u64,
    /// Machines not enrolled.
    pub refused_guests: u64,
    /// Registrations of members and relays.
    pub registered: u64,
    /// Introductions.
    pub introduced: u64,
    /// Handshake messages handed on.
    pub conveyed: u64,
    /// Pairs of forged answers.
    pub forged: u64,
    /// Requests over a member's rate.
    pub rate_limited: u64,
    /// UDP registrations accepted.
    pub udp_registrations: u64,
    /// Plain Binding requests answered.
    pub udp_bindings: u64,
    /// UDP messages that deserved no answer: forged, replayed, of nobody connected.
    pub udp_refused: u64,
    /// Binding requests over a source's rate.
    pub udp_limited: u64,
    /// Datagrams that were no STUN.
    pub udp_garbage: u64,
}

/// Starts brokers.
#[derive(Debug)]
pub struct BrokerServer;

/// A running broker. Dropping it stops the broker too, but does not wait for it.
#[derive(Debug)]
pub struct Handle {
    hub: Arc<Hub>,
    anchor: TrustAnchor,
    advertise: Vec<BrokerAddr>,
    listen: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: Stop,
}

impl BrokerServer {
    /// Opens the database and the sockets and begins to serve, on the current tokio runtime. When this returns, members
    /// can connect.
    ///
    /// # Errors
    /// Which address cannot be listened on or what is wrong with the database, and what to do about it.
    pub async fn start(config: BrokerConfig) -> anyhow::Result<Handle> {
        let BrokerConfig { listen, advertise, dir, credentials, authority, certificate_ttl, forge } = config;
        if !credentials.certificate.subject.roles.broker {
            bail!("the certificate in {} does not grant the broker's role", dir.display());
        }
        let anchor = credentials.anchor.clone();
        // After a crash the database may have to be repaired, which takes as long as it takes.
        let (path, ca, own) = (dir.join(DATABASE), anchor.clone(), credentials.certificate.clone());
        let opened = tokio::task::spawn_blocking(move || open_database(&path, ca, &own)).await;
        // A damaged file makes the database's library panic at some places.
        let opened = opened.unwrap_or_else(|panicked| Err(panicked.into()));
        let (store, directory, (revocations, signed)) = opened.with_context(|| {
            format!(
                "the broker's database cannot be used; if it is damaged, restore it, or move {} away: members come back \
                 by themselves, but invites and revocations are lost with it",
                dir.join(DATABASE).display()
            )
        })?;
        let (tcp, udp) = open_sockets(&listen)?;
        let addresses = tcp.iter().map(std::net::TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;

        let printer = forge.then(open_printer).flatten();
        let settings = Settings {
            key: credentials.key.clone(),
            prefix: anchor.prefix,
            prefix_v6: anchor.overlay_prefix_v6(),
            advertised_udp: advertised_udp(&advertise, &addresses),
            udp_port: addresses.first().map(SocketAddr::port),
            forge: printer.is_some(),
        };
        let broker = Broker::new(settings, directory, revocations, signed, clock::seed());
        let (work, orders) = std::sync::mpsc::channel();
        let hub = Arc::new(Hub::new(broker, anchor.clone(), tls::server(&credentials)?, work, printer));
        let stop = Stop::new().context("no event descriptor")?;

        let mut handle = Handle {
            hub: Arc::clone(&hub),
            anchor,
            advertise,
            listen: addresses,
            tasks: Vec::new(),
            threads: Vec::new(),
            stop: stop.clone(),
        };
        let worker =
            Worker { hub: Arc::clone(&hub), store, authority, credentials, dir, lifetime: certificate_ttl };
        handle.threads.push(work::spawn(worker, orders).context("no thread for the database")?);
        for socket in udp {
            let thread = udp::spawn(Arc::clone(&hub), socket, stop.clone());
            handle.threads.push(thread.context("no thread for UDP")?);
        }
        for listener in tcp {
            let listener = TcpListener::from_std(listener).context("the runtime cannot watch a socket")?;
            handle.tasks.push(tokio::spawn(server::listen(Arc::clone(&hub), listener)));
        }
        handle.tasks.push(tokio::spawn(tick(hub)));
        Ok(handle)
    }
}

impl Handle {
    /// Makes an invite: a machine that shows it becomes a member (with `roles.relay`, also or only a relay) of `groups`,
    /// named `name` or as it likes, if it does so within `ttl`.
    ///
    /// # Errors
    /// If this broker cannot sign, knows no address to put into it, or cannot write its database.
    pub async fn create_invite(
        &self,
        name: Option<MemberName>,
        mut groups: Vec<GroupName>,
        roles: Roles,
        ttl: Duration,
    ) -> anyhow::Result<Invite> {
        if roles.broker || !(roles.member || roles.relay) {
            bail!("an invite is for a member or a relay; a broker's certificate comes from `cert sign`");
        }
        groups.sort();
        groups.dedup();
        let brokers = self.reachable_at().await?;
        let secret: [u8; 32] = clock::random();
        let grant = Grant { name, groups, roles, expires: clock::now().unix.plus(ttl) };
        ask(&self.hub.work, |answer| Work::AddInvite {
            secret: Hidden(secret),
            grant: Box::new(grant),
            answer,
        })
        .await?;
        Ok(Invite { network: self.anchor.network.clone(), ca: self.anchor.fingerprint(), secret, brokers })
    }

    /// Takes a member's certificates back: it is cut off, its name is free, and everybody hears of it. Answers the
    /// version of the new list.
    ///
    /// # Errors
    /// If there is no such member, this broker cannot sign, or it cannot write its database.
    pub async fn revoke(&self, name: MemberName) -> anyhow::Result<u64> {
        ask(&self.hub.work, |answer| Work::Revoke { name, answer }).await
    }

    /// Puts a revocation list into force that was signed elsewhere. Answers its version.
    ///
    /// # Errors
    /// If the CA did not sign it, it is not newer, or the database cannot be written.
    pub async fn import_revocations(&self, signed: Vec<u8>) -> anyhow::Result<u64> {
        ask(&self.hub.work, |answer| Work::Import { signed, answer }).await
    }

    /// Every member and relay, in order of name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn members(&self) -> anyhow::Result<Vec<MemberInfo>> {
        // The worker answers in order, so whatever was written before is seen.
        let stored = ask(&self.hub.work, |answer| Work::Members { answer }).await?;
        let online: BTreeSet<MemberName> = self.hub.with_broker(|broker, _, _| {
            broker.members().filter(|(.., online)| *online).map(|(name, ..)| name.clone()).collect()
        });
        let members = stored.into_iter().filter(|m| !m.certificate.subject.roles.broker).map(|member| {
            let online = online.contains(&member.certificate.subject.uri.name);
            MemberInfo { online, last_seen: member.last_seen, certificate: member.certificate }
        });
        Ok(members.collect())
    }

    /// Offers members a relay that runs in this process. An unspecified address in `endpoints` stands for the address at
    /// which a member reached this broker.
    pub fn add_local_relay(&self, certificate: Certificate, endpoints: &[Candidate]) {
        self.hub.order(Work::Remember(Box::new(certificate.clone())));
        self.hub.with_broker(|broker, _, _| broker.handle_local_relay(certificate, endpoints));
    }

    /// Tells members from now on where STUN servers are. An unspecified address stands for the one at which a member
    /// reached this broker.
    pub fn set_stun_servers(&self, servers: Vec<SocketAddr>) {
        self.hub.with_broker(|broker, _, _| broker.handle_stun_servers(servers));
    }

    /// Hands over to `entry` whoever asks this broker's listeners for the relay.
    pub fn open_relay(&self, entry: Arc<Entry>) {
        let _ = self.hub.relay.set(entry);
    }

    /// Signs anew for another server role of this process, if it is time and this broker can.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub async fn renew_server(&self, credentials: Credentials) -> anyhow::Result<Option<Certificate>> {
        let credentials = Box::new(credentials);
        ask(&self.hub.work, |answer| Work::RenewServer { credentials, answer }).await
    }

    /// Whether all its threads and tasks are alive. They end only when they are told to, or fail.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.threads.iter().any(std::thread::JoinHandle::is_finished)
            && !self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// The addresses that it listens on; ports are final.
    #[must_use]
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// The ports among these that pass where only the web does.
    #[must_use]
    pub fn web_ports(&self) -> BTreeSet<u16> {
        self.listen.iter().map(SocketAddr::port).filter(|port| Dress::of(*port).is_web()).collect()
    }

    /// Where to tell others to reach it: as configured, otherwise the addresses of this machine.
    ///
    /// # Errors
    /// If there is none.
    pub async fn reachable_at(&self) -> anyhow::Result<Vec<BrokerAddr>> {
        let mut all = self.advertise.clone();
        if all.is_empty() {
            let (open, fixed): (Vec<SocketAddr>, Vec<SocketAddr>) =
                self.listen.iter().partition(|addr| addr.ip().is_unspecified());
            all.extend(fixed.into_iter().map(BrokerAddr::Addr));
            if !open.is_empty() {
                let local = Netlink::open()?.local_addresses(None).await?;
                let overlay = [self.anchor.prefix.into(), self.anchor.overlay_prefix_v6().into()];
                all.extend(addresses_for(&open, &local, overlay).map(BrokerAddr::Addr));
            }
        }
        all.truncate(MAX_ADVERTISED);
        if all.is_empty() {
            bail!(
                "this machine has no address that others could reach: connect it to a network, or set `advertise` in [broker] (or --advertise) to the broker's address"
            );
        }
        Ok(all)
    }

    /// What it did and holds.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let hub = &self.hub;
        let (tcp, udp) = (&hub.tcp_counters, &hub.udp_counters);
        let (online, counters) = hub.with_broker(|broker, _, _| (broker.online(), broker.counters()));
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let size = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Stats {
            online: size(online),
            connections: size(hub.connections()),
            accepted: read(&tcp.accepted),
            denied: read(&tcp.denied),
            garbage: read(&tcp.garbage),
            handshake_failed: read(&tcp.handshake_failed),
            malformed: read(&tcp.malformed),
            slow: read(&tcp.slow),
            enrolled: read(&tcp.enrolled),
            refused_guests: read(&tcp.refused_guests),
            registered: counters.registered,
            introduced: counters.introduced,
            conveyed: counters.conveyed,
            forged: counters.forged,
            rate_limited: counters.rate_limited,
            udp_registrations: read(&udp.registrations),
            udp_bindings: read(&udp.bindings),
            udp_refused: read(&udp.refused),
            udp_limited: read(&udp.limited),
            udp_garbage: read(&udp.garbage),
        }
    }

    /// Closes everything and waits until the database is closed: another broker may use it then.
    pub async fn shutdown(mut self) {
        self.stop();
        for task in std::mem::take(&mut self.tasks) {
            let _ = task.await;
        }
        let threads = std::mem::take(&mut self.threads);
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(join).await;
    }

    fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.hub.close_all();
        self.hub.order(Work::Stop);
        self.stop.signal();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Founds a network on this machine: a CA, a broker and a relay, each with keys and certificate, in `state_dir/broker`
/// (which gets the CA's key too) and `state_dir/relay`. What an interrupted founding left is completed; the broker's
/// certificate comes last, so that whoever has it has all.
///
/// # Errors
/// If a directory holds an identity already, or cannot be written.
pub fn create_network(
    state_dir: &Path,
    network: &NetworkName,
    prefix: Ipv4Network,
) -> anyhow::Result<(Authority, Credentials, Credentials)> {
    let (broker, relay) = (state_dir.join("broker"), state_dir.join("relay"));
    let begun = if credentials::is_enrolled(&broker) { None } else { credentials::load_authority(&broker)? };
    let authority = match begun {
        Some(authority) => authority,
        None => credentials::create_authority(&broker, network, prefix, clock::now().unix)?,
    };
    let relay = if credentials::is_enrolled(&relay) {
        credentials::load(&relay)?
    } else {
        create_server(&relay, &authority, "relay", Roles::RELAY)?
    };
    anyhow::ensure!(
        relay.anchor.fingerprint() == authority.anchor().fingerprint(),
        "{} holds the keys of another network's relay: move it away",
        state_dir.join("relay").display()
    );
    let broker = create_server(&broker, &authority, "broker", Roles::BROKER)?;
    Ok((authority, broker, relay))
}

fn create_server(dir: &Path, authority: &Authority, name: &str, roles: Roles) -> anyhow::Result<Credentials> {
    let (key, wg) = credentials::keys_or_new(dir)?;
    let network = authority.anchor().network.clone();
    let uri = MemberUri { network, name: name.parse().context("a server's name")? };
    let subject = Subject { uri, roles, addrs: None, groups: Vec::new(), wg: wg.public() };
    let (from, until) = validity(clock::now().unix, default_lifetime(roles));
    let certificate = authority.sign(&subject, &key.public(), Serial::generate(), from, until)?;
    credentials::store_new(dir, authority.anchor(), &certificate)
}

async fn tick(hub: Arc<Hub>) {
    let mut ticks: u64 = 0;
    loop {
        if ticks.is_multiple_of(RENEWAL_TICKS) {
            hub.order(Work::RenewOwn);
        }
        ticks += 1;
        tokio::time::sleep(TICK).await;
        let now = clock::now().instant;
        hub.admission.lock().unwrap_or_else(PoisonError::into_inner).sweep(now);
        hub.redeems.lock().unwrap_or_else(PoisonError::into_inner).sweep(now);
        hub.with_broker(|broker, now, out| broker.handle_timeout(now, out));
    }
}

type Opened = (Store, Directory, (RevocationList, Vec<u8>));

/// Everything that is read before the start.
fn open_database(path: &Path, ca: TrustAnchor, own: &Certificate) -> anyhow::Result<Opened> {
    let store = Store::open(path, ca)?;
    store.remember(own, clock::now().unix)?;
    let (directory, revocations) = (store.directory()?, store.revocations()?);
    Ok((store, directory, revocations))
}

type Sockets = (Vec<std::net::TcpListener>, Vec<std::net::UdpSocket>);

/// For packets in others' names; says why there are none.
fn open_printer() -> Option<Printer> {
    Printer::open()
        .inspect_err(|error| {
            let what =
                "broker.forge = true, but packets cannot be made by hand: give the process CAP_NET_RAW";
            tracing::warn!(%error, "{what}");
        })
        .ok()
}

fn open_sockets(listen: &[Listen]) -> anyhow::Result<Sockets> {
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for Listen { addr, optional } in listen {
        match responder::open_pair(*addr, false) {
            Ok((listener, socket)) => {
                tcp.push(listener);
                udp.push(socket);
            }
            Err(error) if *optional => tracing::debug!(%error, "not listened on"),
            Err(error) => return Err(error).context("the broker cannot start: see `listen` in [broker]"),
        }
    }
    if tcp.is_empty() {
        bail!("the broker has no address to listen on");
    }
    Ok((tcp, udp))
}

/// Where members are told to send UDP registrations: literal advertised addresses, with the port that UDP has here.
fn advertised_udp(advertise: &[BrokerAddr], listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_served = |port: u16| listen.iter().any(|addr| addr.port() == port);
    let literal = advertise.iter().filter_map(|addr| match addr {
        BrokerAddr::Addr(addr) => Some(*addr),
        BrokerAddr::Host(..) => None,
    });
    // Behind a port forwarding that knows only TCP 443, UDP stays at its own port.
    let port = listen.first().map_or(0, SocketAddr::port);
    literal.map(|addr| if is_served(addr.port()) { addr } else { SocketAddr::new(addr.ip(), port) }).collect()
}

/// The machine's addresses for sockets that listen on all of them; public ones first, because a guest tries in order.
fn addresses_for(
    open: &[SocketAddr],
    local: &[IpAddr],
    overlay: [IpNetwork; 2],
) -> impl Iterator<Item = SocketAddr> {
    let outside = |ip: &IpAddr| !overlay.iter().any(|net| net.contains(*ip));
    let mut all: Vec<SocketAddr> = Vec::new();
    for socket in open {
        let same_family = local.iter().filter(|ip| ip.is_ipv4() == socket.is_ipv4() && outside(ip));
        all.extend(same_family.map(|ip| SocketAddr::new(*ip, socket.port())));
    }
    all.retain(|addr| crate::base::addr::is_candidate(*addr));
    all.sort_by_key(|addr| crate::base::addr::is_private(addr.ip()));
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn an_invite_names_every_address_of_the_machine_public_ones_first() {
        let local: Vec<IpAddr> =
            ["127.0.0.1", "192.168.1.5", "10.77.0.1", "203.0.113.9", "fe80::1", "2001:db8::9", "fd12::1"]
                .iter()
                .map(|ip| ip.parse().unwrap())
                .collect();
        let overlay = ["10.77.0.0/16".parse().unwrap(), "fd12::/64".parse().unwrap()];
        let got: Vec<SocketAddr> =
            addresses_for(&addrs(&["0.0.0.0:6060", "[::]:6060"]), &local, overlay).collect();
        assert_eq!(got, addrs(&["203.0.113.9:6060", "[2001:db8::9]:6060", "192.168.1.5:6060"]));
    }

    #[test]
    fn udp_is_advertised_at_a_port_that_is_served() {
        let advertise = [
            BrokerAddr::Addr("203.0.113.1:6060".parse().unwrap()),
            BrokerAddr::Addr("203.0.113.2:8443".parse().unwrap()),
            BrokerAddr::Host("broker.example.org".to_owned(), 6060),
        ];
        let got = advertised_udp(&advertise, &addrs(&["0.0.0.0:6060"]));
        assert_eq!(got, addrs(&["203.0.113.1:6060", "203.0.113.2:6060"]));
    }

    #[tokio::test]
    async fn a_broker_that_has_lost_a_thread_says_that_it_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = "10.9.0.0/24".parse().unwrap();
        let (authority, own, _) = create_network(dir.path(), &"home".parse().unwrap(), prefix).unwrap();
        let config = BrokerConfig {
            listen: vec![Listen { addr: "127.0.0.1:0".parse().unwrap(), optional: false }],
            advertise: vec![],
            dir: dir.path().join("broker"),
            credentials: own,
            authority: Some(authority),
            certificate_ttl: Duration::from_secs(3600),
            forge: false,
        };
        let broker = BrokerServer::start(config).await.unwrap();
        assert!(broker.is_running());
        broker.hub.order(Work::Stop);
        while broker.is_running() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_damaged_database_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = "10.9.0.0/24".parse().unwrap();
        let (authority, own, _) = create_network(dir.path(), &"home".parse().unwrap(), prefix).unwrap();
        let path = dir.path().join("broker").join(DATABASE);
        drop(Store::open(&path, authority.anchor().clone()).unwrap());
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for damaged in 1..8 {
            let mut bytes = whole.clone();
            bytes.iter_mut().skip(damaged * 4096).take(600).for_each(|byte| *byte ^= 0x5a);
            std::fs::write(&path, bytes).unwrap();
            let config = BrokerConfig {
                listen: vec![Listen { addr: "127.0.0.1:0".parse().unwrap(), optional: false }],
                advertise: vec![],
                dir: dir.path().join("broker"),
                credentials: own.clone(),
                authority: None,
                certificate_ttl: Duration::from_secs(3600),
                forge: false,
            };
            if let Err(error) = BrokerServer::start(config).await {
                assert!(format!("{error:#}").contains("restore it, or move"), "{error:#}");
                refused += 1;
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn a_founding_that_was_interrupted_anywhere_goes_on() {
        let (name, prefix) = ("home".parse().unwrap(), "10.9.0.0/24".parse().unwrap());
        let left: [&[&str]; 5] = [
            &["broker/identity.crt"],
            &["broker/identity.crt", "broker/identity.key", "broker/wg.key"],
            &["broker/identity.crt", "relay/identity.crt"],
            &["broker/identity.crt", "relay/identity.crt", "relay/ca.crt", "relay/wg.key"],
            &["broker/identity.crt", "broker/ca.crt", "relay/identity.crt", "relay/ca.crt"],
        ];
        for missing in left {
            let dir = tempfile::tempdir().unwrap();
            create_network(dir.path(), &name, prefix).unwrap();
            missing.iter().for_each(|file| std::fs::remove_file(dir.path().join(file)).unwrap());
            let (authority, broker, relay) = create_network(dir.path(), &name, prefix).unwrap();
            for own in [broker, relay] {
                assert_eq!(own.anchor.fingerprint(), authority.anchor().fingerprint(), "{missing:?}");
            }
        }
    }

    #[test]
    fn a_founded_network_is_whole_and_is_not_founded_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (name, prefix) = ("home".parse().unwrap(), "10.9.0.0/24".parse().unwrap());
        let (authority, broker, relay) = create_network(dir.path(), &name, prefix).unwrap();
        assert_eq!(broker.certificate.subject.roles, Roles::BROKER);
        assert_eq!(relay.certificate.subject.roles, Roles::RELAY);
        assert_eq!(authority.anchor().prefix, prefix);
        let loaded = credentials::load(&dir.path().join("broker")).unwrap();
        assert_eq!(loaded.certificate, broker.certificate);
        assert!(credentials::load_authority(&dir.path().join("broker")).unwrap().is_some());
        assert!(create_network(dir.path(), &name, prefix).is_err());
    }
}
