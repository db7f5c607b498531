//! The relay role of a process: its keys, where it is told to be, how it stays known to its broker and its certificate
//! young.
//!
//! Beside a broker in the same process the relay is simply handed over. A relay on a machine of its own keeps a link to its
//! broker as a member does, and learns from it whose tokens are good.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::base::addr;
use crate::base::id::RequestId;
use crate::config::credentials;
use crate::config::proxy::Proxies;
use crate::config::settings::RELAY_PORT;
use crate::config::settings::Settings;
use crate::engine::broker;
use crate::engine::clock;
use crate::engine::enroll;
use crate::engine::entry;
use crate::engine::entry::Entry;
use crate::engine::link::Link;
use crate::engine::link::LinkConfig;
use crate::engine::link::LinkEvent;
use crate::engine::link::LinkHandle;
use crate::engine::membership;
use crate::engine::membership::RELAY;
use crate::engine::relay;
use crate::engine::relay::RelayConfig;
use crate::engine::relay::RelayServer;
use crate::engine::roles::usable;
use crate::identity::credentials::Credentials;
use crate::identity::revocation::RevocationList;
use crate::io::netlink::Netlink;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::MAX_CANDIDATES;
use crate::nat::candidate::Transport;
use crate::wire::broker::FromBroker;
use crate::wire::broker::Register;
use crate::wire::broker::ToBroker;
use crate::wire::dress::Dress;
use crate::wire::enroll::BrokerAddr;
use crate::wire::enroll::Invite;
use crate::wire::enroll::SigningRequest;

/// Between looks at the own certificate's age. It lives for a year.
const AUDIT: Duration = Duration::from_secs(3600);

/// A relay that runs.
#[derive(Debug)]
pub struct RunningRelay {
    /// The relay.
    pub handle: Arc<relay::Handle>,
    upkeep: JoinHandle<()>,
    doors: Vec<JoinHandle<()>>,
}

/// The broker of the same process.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The broker.
    pub broker: Arc<broker::Handle>,
    /// Its Ed25519 key, which signs tokens.
    pub key: [u8; 32],
}

impl RunningRelay {
    /// Whether its thread and its upkeep are alive.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let alive = |task: &JoinHandle<()>| !task.is_finished();
        self.handle.is_running() && alive(&self.upkeep) && self.doors.iter().all(alive)
    }

    /// Ends it.
    pub async fn stop(self) {
        self.doors.iter().for_each(JoinHandle::abort);
        self.upkeep.abort();
        let _ = self.upkeep.await;
    }
}

/// Starts the relay if the settings or the keys on this machine say so; `None` if it is to be none.
///
/// # Errors
/// When it is asked for and cannot run.
pub async fn start(
    settings: &Settings,
    join: Option<&Invite>,
    beside: Option<Beside>,
) -> anyhow::Result<Option<RunningRelay>> {
    let dir = settings.state_dir.join(RELAY);
    if settings.relay.enabled == Some(false) {
        return Ok(None);
    }
    if let Some(invite) = join
        && needs_enrolment(&dir, invite)?
    {
        enrol(settings, &dir, invite).await?;
    }
    if !credentials::is_enrolled(&dir) {
        anyhow::ensure!(
            settings.relay.enabled.is_none(),
            "relay.enabled = true, but {} holds no relay's keys: ask the broker's admin for `ntcp-overlay invite --relay` and start with `serve --join TOKEN`, or make keys with `ntcp-overlay cert init --relay NAME`",
            dir.display()
        );
        return Ok(None);
    }
    let own = credentials::load(&dir)?;
    anyhow::ensure!(
        own.certificate.subject.roles.relay,
        "the certificate in {} is not a relay's: sign one with `cert sign --role relay`",
        dir.display()
    );
    let limits = settings.relay.limits();
    let mut listen = usable(&settings.relay.listen);
    if let Some(beside) = &beside {
        // One port for both: the broker's listener hands over who asks for the relay.
        listen.retain(|at| !beside.broker.web_ports().contains(&at.port()));
    }
    let splice_ports = settings.relay.splice_ports.clone();
    let config =
        RelayConfig { listen, secret: own.wg.clone(), broker_keys: Vec::new(), limits, splice_ports };
    let handle = Arc::new(RelayServer::start(config)?);
    let entry = Arc::new(Entry::new(Arc::clone(&handle), &own)?);
    let web = handle.addrs().iter().filter(|at| Dress::of(at.port()).is_web());
    let doors = web.map(|at| Ok(tokio::spawn(Arc::clone(&entry).listen(entry::bind(*at)?))));
    let doors = doors.collect::<anyhow::Result<Vec<_>>>()?;
    let wanted = addresses(settings);
    let upkeep = match beside {
        Some(beside) => {
            handle.authorise_broker(beside.key);
            let mut endpoints =
                if wanted.is_empty() { everywhere(handle.addrs()) } else { endpoints(&wanted).await };
            endpoints.extend(handed_over(settings, &beside.broker).await);
            endpoints.truncate(MAX_CANDIDATES);
            beside.broker.add_local_relay(own.certificate.clone(), &endpoints);
            beside.broker.open_relay(Arc::clone(&entry));
            tokio::spawn(keep_young(dir, own, endpoints, beside.broker, entry))
        }
        None => {
            let mut brokers = settings.relay.brokers.clone();
            brokers.extend(membership::brokers(&dir)?);
            anyhow::ensure!(!brokers.is_empty(), "the relay knows no broker: set relay.brokers");
            let wanted = if wanted.is_empty() { own_addresses(handle.addrs()).await? } else { wanted };
            let endpoints = endpoints(&wanted).await;
            tokio::spawn(keep_registered(dir, own, brokers, endpoints, Arc::clone(&handle), entry))
        }
    };
    Ok(Some(RunningRelay { handle, upkeep, doors }))
}

/// Whether an invite is to be used: there is no certificate yet, or none of worth.
fn needs_enrolment(dir: &Path, invite: &Invite) -> anyhow::Result<bool> {
    if !credentials::is_enrolled(dir) {
        return Ok(true);
    }
    let own = credentials::load(dir)?;
    Ok(invite.ca == own.anchor.fingerprint() && membership::is_worthless(dir, &own, clock::now().unix)?)
}

/// Becomes a relay of the network that invited this machine, or becomes one again.
async fn enrol(settings: &Settings, dir: &Path, invite: &Invite) -> anyhow::Result<()> {
    let (key, wg) = credentials::keys_or_new(dir)?;
    let again = credentials::is_enrolled(dir);
    let name = if again {
        credentials::load(dir)?.certificate.subject.uri.name
    } else {
        settings.member.name.clone()
    };
    let request = SigningRequest::new(&name, &key, wg.public());
    let (anchor, certificate) = enroll::redeem(invite, &request, &Proxies::none()).await?;
    anyhow::ensure!(
        certificate.subject.roles.relay,
        "this invite is for a member: use it with `ntcp-overlay up --join`, or ask for one of `ntcp-overlay invite --relay`"
    );
    membership::remember_brokers(dir, &invite.brokers)?;
    if again {
        credentials::replace_certificate(dir, &certificate.der)?;
    } else {
        credentials::store_new(dir, &anchor, &certificate)?;
    }
    tracing::info!(name = %certificate.subject.uri, "this machine is a relay now");
    Ok(())
}

/// Beside its broker: hands over a new certificate when it is time.
async fn keep_young(
    dir: PathBuf,
    mut own: Credentials,
    endpoints: Vec<Candidate>,
    broker: Arc<broker::Handle>,
    entry: Arc<Entry>,
) {
    loop {
        tokio::time::sleep(AUDIT).await;
        match broker.renew_server(own.clone()).await {
            Ok(Some(certificate)) => match credentials::replace_certificate(&dir, &certificate.der) {
                Ok(renewed) => {
                    entry.renew(&renewed);
                    broker.add_local_relay(renewed.certificate.clone(), &endpoints);
                    own = renewed;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the relay's certificate cannot be stored")
                }
            },
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the relay's certificate cannot be renewed")
            }
        }
    }
}

/// On its own: stays registered, knows whose tokens are good, renews its certificate.
async fn keep_registered(
    dir: PathBuf,
    mut own: Credentials,
    brokers: Vec<BrokerAddr>,
    endpoints: Vec<Candidate>,
    relay: Arc<relay::Handle>,
    entry: Arc<Entry>,
) {
    let register = Register {
        software: concat!("ntcp-overlay ", env!("CARGO_PKG_VERSION")).to_owned(),
        candidates: Vec::new(),
        profile: Profile::default(),
        relay: endpoints,
        revocations: 0,
        watch: false,
    };
    let (events_in, mut events) = mpsc::channel(64);
    let link = Link::spawn(
        LinkConfig { brokers, proxies: Proxies::none(), credentials: own.clone(), register },
        events_in,
    );
    let mut audit = tokio::time::interval(AUDIT);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = audit.tick() => {
                ask_for_renewal(&own, &link);
                continue;
            }
        };
        match event {
            Some(LinkEvent::Up { broker_name, broker_cert, .. }) => {
                tracing::info!(broker = %broker_name, "relay registered");
                relay.authorise_broker(broker_cert.key);
                ask_for_renewal(&own, &link);
            }
            Some(LinkEvent::Message(FromBroker::Renewed { certificate, .. })) => {
                match credentials::replace_certificate(&dir, &certificate) {
                    Ok(renewed) => {
                        entry.renew(&renewed);
                        let _ = link.replace_certificate(renewed.certificate.clone());
                        own = renewed;
                    }
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the renewed certificate is not stored")
                    }
                }
            }
            Some(LinkEvent::Message(FromBroker::Revocations(signed))) => {
                // Kept for the next start alone, which has to know whether the own certificate is on it.
                if RevocationList::parse_signed(&signed, &own.anchor).is_ok()
                    && let Err(error) = credentials::store_revocations(&dir, &signed)
                {
                    tracing::warn!(error = format!("{error:#}"), "the revocation list is not stored");
                }
            }
            Some(LinkEvent::Message(_)) => {}
            Some(LinkEvent::Down { why, .. }) => tracing::warn!(why, "the relay is not registered"),
            None => return,
        }
    }
}

fn ask_for_renewal(own: &Credentials, link: &LinkHandle) {
    if clock::now().unix < own.certificate.renew_at() {
        return;
    }
    let csr = SigningRequest::new(&own.certificate.subject.uri.name, &own.key, own.wg.public()).emit();
    let _ = link.send(ToBroker::Renew { request: RequestId(1), csr });
}

/// What the owner wrote about where the relay is; beside a broker with a public name, it is at that name too.
fn addresses(settings: &Settings) -> Vec<BrokerAddr> {
    if !settings.relay.advertise.is_empty() {
        return settings.relay.advertise.clone();
    }
    let port = settings.relay.listen.first().map_or(RELAY_PORT, |listen| listen.addr.port());
    let at_port = |at: &BrokerAddr| match at {
        BrokerAddr::Addr(addr) => BrokerAddr::Addr(SocketAddr::new(addr.ip(), port)),
        BrokerAddr::Host(host, _) => BrokerAddr::Host(host.clone(), port),
    };
    let mut all: Vec<BrokerAddr> = settings.broker.advertise.iter().map(at_port).collect();
    // A broker at two ports of one host.
    all.dedup();
    all
}

/// Where the broker beside takes members for the relay too: its ports that pass where only the web does. An address is
/// known from what the owner wrote about the broker, or else about the relay, or is wherever a member reached the broker.
async fn handed_over(settings: &Settings, broker: &broker::Handle) -> Vec<Candidate> {
    let tcp = |addr| Candidate { transport: Transport::Tcp, kind: Kind::Host, addr };
    let ports = broker.web_ports();
    let written = &settings.broker.advertise;
    if !written.is_empty() {
        let web: Vec<BrokerAddr> = written.iter().filter(|at| ports.contains(&at.port())).cloned().collect();
        return endpoints(&web).await.into_iter().filter(|c| c.transport == Transport::Tcp).collect();
    }
    if settings.relay.advertise.is_empty() {
        let here = broker.listen().iter().filter(|at| ports.contains(&at.port()));
        return here.map(|at| tcp(*at)).collect();
    }
    let known = endpoints(&settings.relay.advertise).await;
    let mut ips: Vec<IpAddr> = known.iter().map(|candidate| candidate.addr.ip()).collect();
    ips.dedup();
    ips.into_iter().flat_map(|ip| ports.iter().map(move |port| tcp(SocketAddr::new(ip, *port)))).collect()
}

/// Every address of this machine that is listened on.
async fn own_addresses(listen: &[SocketAddr]) -> anyhow::Result<Vec<BrokerAddr>> {
    let own = Netlink::open()?.local_addresses(None).await.context(
        "the machine's addresses cannot be read: set relay.advertise to where others reach this relay",
    )?;
    let mut all = Vec::new();
    for at in listen {
        let same_family = own.iter().filter(|ip| ip.is_ipv4() == at.is_ipv4());
        let here: Vec<SocketAddr> = if at.ip().is_unspecified() {
            same_family.map(|ip| SocketAddr::new(*ip, at.port())).collect()
        } else {
            vec![*at]
        };
        all.extend(here.into_iter().filter(|at| addr::is_candidate(*at)).map(BrokerAddr::Addr));
    }
    all.truncate(MAX_CANDIDATES / 2);
    Ok(all)
}

/// A relay's endpoints when it is wherever the broker of this process was reached.
fn everywhere(listen: &[SocketAddr]) -> Vec<Candidate> {
    listen.iter().flat_map(|addr| both(*addr)).collect()
}

/// A relay's endpoints, names looked up.
async fn endpoints(advertised: &[BrokerAddr]) -> Vec<Candidate> {
    let mut all = Vec::new();
    for at in advertised {
        let found: Vec<SocketAddr> = match at {
            BrokerAddr::Addr(at) => vec![*at],
            BrokerAddr::Host(host, port) => match tokio::net::lookup_host((host.as_str(), *port)).await {
                Ok(found) => found.collect(),
                Err(error) => {
                    tracing::warn!(%error, host, "the relay's advertised name cannot be looked up");
                    Vec::new()
                }
            },
        };
        all.extend(found.into_iter().flat_map(both));
    }
    all.truncate(MAX_CANDIDATES);
    all
}

fn both(addr: SocketAddr) -> [Candidate; 2] {
    [Transport::Udp, Transport::Tcp].map(|transport| Candidate { transport, kind: Kind::Host, addr })
}
