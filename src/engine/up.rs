//! `up`: a member of the mesh.
//!
//! The control half runs here, on one tokio thread: the link to the broker, the control socket, netlink, signals, and the
//! server roles if this machine has some. Packets never pass through it; they live on the data thread
//! ([`crate::engine::member`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use ipnetwork::Ipv4Network;
use ipnetwork::Ipv6Network;
use sd_notify::NotifyState;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::base::addr::OverlayAddrs;
use crate::config::credentials;
use crate::config::exit::Exit;
use crate::config::exit::Failure;
use crate::config::load;
use crate::config::proxy::Proxies;
use crate::config::settings::Settings;
use crate::control::api;
use crate::control::server::Ask;
use crate::control::server::ControlServer;
use crate::device::OpenError;
use crate::device::Tun;
use crate::engine::bridge::Bridges;
use crate::engine::cleanup;
use crate::engine::clock;
use crate::engine::discovery::surveyor::Surveyor;
use crate::engine::enroll;
use crate::engine::gateway;
use crate::engine::link::Link;
use crate::engine::link::LinkConfig;
use crate::engine::link::LinkEvent;
use crate::engine::link::LinkHandle;
use crate::engine::member::Command;
use crate::engine::member::Member;
use crate::engine::member::News;
use crate::engine::member::Parts;
use crate::engine::membership;
use crate::engine::membership::MEMBER;
use crate::engine::membership::Standing;
use crate::engine::relay_delays::RelayDelays;
use crate::engine::roles::HEALTH;
use crate::engine::roles::Servers;
use crate::engine::stun_server;
use crate::identity::certificate::Roles;
use crate::identity::credentials::Credentials;
use crate::identity::names::MemberName;
use crate::io::hosts;
use crate::io::netlink::Netlink;
use crate::io::printer::Printer;
use crate::node;
use crate::node::Me;
use crate::node::StockPeer;
use crate::node::output::Notice;
use crate::node::rendezvous::LinkUp;
use crate::node::request::PeerRef;
use crate::node::request::Reply;
use crate::node::request::Request;
use crate::node::request::Ticket;
use crate::wire::broker::FromBroker;
use crate::wire::broker::ToBroker;
use crate::wire::enroll::BrokerAddr;
use crate::wire::enroll::Invite;
use crate::wire::enroll::SigningRequest;

/// Changes of the network come in bursts (link, address, route): what counts is how things are after the last.
const CALM: Duration = Duration::from_millis(500);
/// The start counts as done when the broker has been tried for this long, answered or not.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the control socket outlives the decision to stop, for the last answer to leave.
pub(super) const FAREWELL: Duration = Duration::from_millis(100);

/// What a start has to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Announcement {
    /// A line for people, on stdout.
    Say(String),
    /// The interface is up and the control socket answers: whoever waits for the start may go on.
    Ready,
}

/// Runs until SIGTERM, SIGINT or `down`.
///
/// # Errors
/// Whatever keeps it from starting or going on; a `config::exit::Failure` in the chain sets the exit code.
pub fn run(
    settings: &Settings,
    join: Option<Invite>,
    announce: &mut dyn FnMut(Announcement),
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_async(settings, join, announce))
}

async fn run_async(
    settings: &Settings,
    join: Option<Invite>,
    announce: &mut dyn FnMut(Announcement),
) -> anyhow::Result<Exit> {
    let control = ControlServer::bind(&settings.control)?;
    let tun = Tun::open(Some(settings.member.interface.as_str()), settings.member.offload)
        .map_err(explain_device)?;
    let netlink = Netlink::open()?;

    let standing = membership::standing(&settings.state_dir, join, clock::now().unix)?;
    let founded = matches!(standing, Standing::Founder);
    if founded {
        // Before there is anything to regret: the wanted prefix must be free.
        netlink.check_prefix_free(settings.network.prefix, unused_v6(), Some(tun.name())).await?;
    }
    let mut servers = Servers::start(settings, founded, None).await?;
    let proxies = load::proxies(settings);
    let own = enrol(settings, standing, &servers, &proxies).await?;
    let addrs = own.certificate.subject.addrs.context(
        "this machine's certificate is not a member's: sign one with `ntcp-overlay cert sign --role member`",
    )?;
    if settings.relay.serve && !own.certificate.subject.roles.relay {
        tracing::warn!(
            "relay.serve = \"network\" has no effect: this machine's certificate does not allow it. Join again with an invite of `ntcp-overlay invite --may-relay`"
        );
    }
    let (v4, v6) = (own.anchor.prefix, own.anchor.overlay_prefix_v6());
    netlink.check_prefix_free(v4, v6, Some(tun.name())).await?;
    configure(&netlink, &tun, addrs, v4, v6, settings.member.mtu).await?;
    let interface = tun.name().to_owned();

    let (news_in, news) = mpsc::unbounded_channel();
    let brokers = broker_addresses(settings, &servers)?;
    let local = netlink.local_addresses(Some(&interface)).await?;
    let observers = stun_server::look_up(&settings.member.stun_servers).await;
    let mut surveyor = Surveyor::new();
    surveyor.handle_network(&local);
    let parts = parts(settings, &own, addrs, tun, local, observers, proxies.clone())?;
    let member = Member::start(parts, news_in)?;
    let bridges = Bridges::new(&own.anchor.der, proxies.clone(), member.commands())?;
    let (link_in, link_events) = mpsc::channel(256);
    let ports = member.ports();
    let gateway =
        settings.member.port_mapping.then(|| gateway::spawn(ports.udp_v4, ports.tcp_v4, member.commands()));
    let proxy = proxies.describe();
    let delays = RelayDelays::new(proxies.clone(), vec![v4.into(), v6.into()]);
    let link_config = LinkConfig { brokers, proxies, credentials: own.clone(), register: member.register() };
    let link = Link::spawn(link_config, link_in);

    announce(Announcement::Say(format!(
        "{} is up in network {}: {} {} on {interface}",
        own.certificate.subject.uri.name, own.anchor.network, addrs.v4, addrs.v6
    )));
    if founded {
        let invite = servers.create_invite(None, Vec::new(), None, Roles::MEMBER).await?;
        announce(Announcement::Say(founder_text(&invite.to_text(), settings)));
    }

    let mut running = Running {
        settings,
        own,
        interface,
        member,
        bridges,
        gateway,
        proxy,
        link,
        servers: &mut servers,
        pings: BTreeMap::new(),
        next_ticket: 0,
        hosts_written: false,
        connected: false,
        surveyor,
        delays,
    };
    let outcome = running.serve(control, link_events, news, &netlink, announce).await;
    if let Some(gateway) = &running.gateway {
        gateway.stop().await;
    }
    running.finish();
    servers.shutdown().await;
    outcome
}

struct Running<'a> {
    settings: &'a Settings,
    own: Credentials,
    interface: String,
    member: Member,
    bridges: Bridges,
    gateway: Option<gateway::Handle>,
    proxy: Option<String>,
    link: LinkHandle,
    servers: &'a mut Servers,
    pings: BTreeMap<Ticket, oneshot::Sender<api::Reply>>,
    next_ticket: u64,
    hosts_written: bool,
    connected: bool,
    surveyor: Surveyor,
    delays: RelayDelays,
}

impl Running<'_> {
    async fn serve(
        &mut self,
        control: ControlServer,
        mut link_events: mpsc::Receiver<LinkEvent>,
        mut news: mpsc::UnboundedReceiver<News>,
        netlink: &Netlink,
        announce: &mut dyn FnMut(Announcement),
    ) -> anyhow::Result<Exit> {
        let (asks_in, mut asks) = mpsc::channel(32);
        let socket = tokio::spawn(control.run(asks_in));
        let mut changes = Netlink::watch()?;
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut ready_at = Some(tokio::time::Instant::now() + PATIENCE);
        let mut changed_at: Option<tokio::time::Instant> = None;
        let mut health = tokio::time::interval(HEALTH);
        let outcome = loop {
            tokio::select! {
                _ = term.recv() => break Ok(Exit::Ok),
                _ = int.recv() => break Ok(Exit::Ok),
                Some(event) = link_events.recv() => {
                    self.on_link(event);
                    if ready_at.take().is_some() {
                        self.ready(announce);
                    }
                }
                item = news.recv() => {
                    // A thread that panicked says nothing: its end of the channel is gone.
                    let item = item.unwrap_or_else(|| News::Ended(Some("it panicked, see above".to_owned())));
                    if let Err(error) = self.on_news(item) {
                        break Err(error);
                    }
                },
                _ = health.tick() => if let Err(error) = self.servers.health() {
                    break Err(error);
                },
                delays = self.delays.next() => {
                    let _ = self.link.send(ToBroker::Delays(delays));
                }
                profile = self.surveyor.next() => self.member.send(Command::Profile(Box::new(profile))),
                Some(ask) = asks.recv() => if self.on_ask(ask).await { break Ok(Exit::Ok) },
                Some(()) = changes.next() => changed_at = Some(tokio::time::Instant::now() + CALM),
                () = sleep_until(changed_at) => {
                    changed_at = None;
                    self.on_network(netlink).await;
                }
                () = sleep_until(ready_at) => {
                    ready_at = None;
                    self.ready(announce);
                }
            }
        };
        // Whoever said `down` is still to read that it is done.
        tokio::time::sleep(FAREWELL).await;
        socket.abort();
        outcome
    }

    fn ready(&self, announce: &mut dyn FnMut(Announcement)) {
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&self.summary())]);
        announce(Announcement::Ready);
    }

    fn summary(&self) -> String {
        let state = if self.connected { "Connected" } else { "No broker reached yet" };
        let addr = self.own.certificate.subject.addrs.map(|a| a.v4.to_string()).unwrap_or_default();
        format!("{state}; {} {addr}", self.own.certificate.subject.uri)
    }

    fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up {
                broker, broker_name, broker_cert, registration_key, registered, proxied, ..
            } => {
                self.connected = true;
                self.surveyor.set_servers(&registered.stun);
                self.delays.on_reached(broker.ip().is_loopback());
                if let Some(gateway) = &self.gateway {
                    let here = proxied || broker.ip().is_loopback();
                    gateway.on_reached((!here).then_some(registered.observed.ip()));
                }
                let (name, key, signer) = (broker_name, registration_key, broker_cert.key);
                let up = LinkUp { broker, name, key, signer, registered };
                self.member.send(Command::LinkUp(Box::new(up)));
            }
            LinkEvent::Message(FromBroker::Relays(relays)) => self.delays.on_asked(relays),
            LinkEvent::Message(message) => self.member.send(Command::Broker(Box::new(message))),
            LinkEvent::Down { why, retry_in, fatal } => {
                self.connected = false;
                if fatal {
                    tracing::warn!(why, "not connected to the broker");
                } else {
                    tracing::info!(why, ?retry_in, "not connected to the broker");
                }
                self.member.send(Command::LinkDown(why));
            }
        }
        let _ = sd_notify::notify(&[NotifyState::Status(&self.summary())]);
    }

    fn on_news(&mut self, news: News) -> anyhow::Result<()> {
        let dir = self.settings.state_dir.join(MEMBER);
        match news {
            News::ToBroker(message) => {
                if !self.link.send(*message) {
                    tracing::debug!("the link's queue is full: message dropped");
                }
            }
            News::Register(register) => {
                let _ = self.link.set_register(*register);
            }
            News::Certificate(der) => match credentials::replace_certificate(&dir, &der) {
                Ok(own) => {
                    let _ = self.link.replace_certificate(own.certificate.clone());
                    self.own = own;
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the renewed certificate cannot be stored")
                }
            },
            News::Revocations(bytes) => {
                if let Err(error) = credentials::store_revocations(&dir, &bytes) {
                    tracing::error!(error = format!("{error:#}"), "the revocation list cannot be stored");
                }
            }
            News::Open(id, to) => self.bridges.open(id, to),
            News::Notice(notice) => return self.on_notice(notice),
            News::Ended(why) => {
                anyhow::bail!(
                    "the data thread has ended: {}",
                    why.unwrap_or_else(|| "without a word".to_owned())
                );
            }
        }
        Ok(())
    }

    fn on_notice(&mut self, notice: Notice) -> anyhow::Result<()> {
        match notice {
            Notice::Path { peer, path, why } => {
                tracing::info!(%peer, path = path.kind(), why, "path");
                tracing::debug!(%peer, ?path, "path");
            }
            Notice::Broker { connected, what } => tracing::info!(connected, what, "broker"),
            Notice::Pong(pong) => {
                if let Some(reply) = self.pings.remove(&pong.ticket) {
                    let _ = reply.send(api::Reply::Pong(pong.into()));
                }
            }
            Notice::Directory(names) => self.write_hosts(&names),
            Notice::Expelled(why) => return Err(Failure::new(Exit::Permission, why).into()),
        }
        Ok(())
    }

    fn write_hosts(&mut self, names: &[(MemberName, OverlayAddrs)]) {
        if !self.settings.member.hosts_file {
            return;
        }
        let names: Vec<(String, OverlayAddrs)> =
            names.iter().map(|(name, addrs)| (name.to_string(), *addrs)).collect();
        match hosts::write_block(Path::new(cleanup::HOSTS), self.own.anchor.network.as_str(), &names) {
            Ok(()) => self.hosts_written = true,
            Err(error) => {
                tracing::warn!(%error, "the members' names cannot be written to {}", cleanup::HOSTS)
            }
        }
    }

    async fn on_network(&mut self, netlink: &Netlink) {
        match netlink.local_addresses(Some(&self.interface)).await {
            Ok(addrs) => {
                self.surveyor.handle_network(&addrs);
                self.delays.on_network();
                self.member.send(Command::Network(addrs));
                if let Some(gateway) = &self.gateway {
                    gateway.on_network();
                }
                if !self.connected {
                    let _ = self.link.retry_now();
                }
            }
            Err(error) => tracing::warn!(%error, "the machine's addresses cannot be read"),
        }
    }

    /// Answers a command; true if the command is to end.
    async fn on_ask(&mut self, ask: Ask) -> bool {
        let Ask { request, reply } = ask;
        let answer = match request {
            api::Request::Status {} => self.status().await,
            api::Request::Ping { peer, .. } => {
                self.ping(&peer, reply).await;
                return false;
            }
            api::Request::Down {} => {
                let _ = reply.send(api::Reply::Done { message: "stopping".to_owned() });
                return true;
            }
            other => self.servers.answer(other).await,
        };
        let _ = reply.send(answer);
        false
    }

    async fn status(&self) -> api::Reply {
        let (to, answer) = oneshot::channel();
        self.member.send(Command::Request(Request::Status, to));
        let Ok(Reply::Status(snapshot)) = answer.await else {
            return api::Reply::refused(api::Reason::Failed, "the data thread does not answer");
        };
        let mut status = api::Status::from(*snapshot);
        status.interface = Some(self.interface.clone());
        status.stun_servers = self.surveyor.servers().to_vec();
        status.relay_delays = self.delays.known().iter().map(api::RelayDelay::from).collect();
        status.proxy.clone_from(&self.proxy);
        status.gateway = self.gateway.as_ref().map(|gateway| gateway.report().into());
        self.servers.describe(&mut status).await;
        api::Reply::Status(Box::new(status))
    }

    async fn ping(&mut self, peer: &str, reply: oneshot::Sender<api::Reply>) {
        let whom = match (peer.parse::<IpAddr>(), peer.parse::<MemberName>()) {
            (Ok(addr), _) => PeerRef::Addr(addr),
            (_, Ok(name)) => PeerRef::Name(name),
            (Err(_), Err(_)) => {
                let text = format!("{peer:?} is neither a member's name nor an address");
                let _ = reply.send(api::Reply::refused(api::Reason::Malformed, text));
                return;
            }
        };
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let (to, answer) = oneshot::channel();
        self.member.send(Command::Request(Request::Ping { peer: whom, ticket }, to));
        match answer.await {
            Ok(Reply::Accepted) => {
                self.pings.retain(|_, waiting| !waiting.is_closed());
                self.pings.insert(ticket, reply);
            }
            Ok(Reply::Refused(why)) => {
                let _ = reply.send(api::Reply::refused(api::Reason::Failed, why));
            }
            Ok(Reply::Status(_)) | Err(_) => {}
        }
    }

    /// Takes everything back; the device goes with the data thread.
    fn finish(&mut self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        self.member.stop();
        if self.hosts_written
            && let Err(error) =
                hosts::remove_block(Path::new(cleanup::HOSTS), self.own.anchor.network.as_str())
        {
            tracing::warn!(%error, "the members' names stay in {}: run `ntcp-overlay down --cleanup`", cleanup::HOSTS);
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Makes this machine a member, if it is not one yet.
async fn enrol(
    settings: &Settings,
    standing: Standing,
    servers: &Servers,
    proxies: &Proxies,
) -> anyhow::Result<Credentials> {
    let dir = settings.state_dir.join(MEMBER);
    let mut name = settings.member.name.clone();
    let invite = match standing {
        Standing::Member(own) => return Ok(*own),
        Standing::Invited(invite) => invite,
        Standing::InvitedAgain(invite, old) => {
            name = old.certificate.subject.uri.name.clone();
            invite
        }
        Standing::Founder => {
            let name = settings.member.name.clone();
            servers.create_invite(Some(name), Vec::new(), None, Roles::MEMBER).await?
        }
    };
    let (key, wg) = credentials::keys_or_new(&dir)?;
    let request = SigningRequest::new(&name, &key, wg.public());
    let (anchor, certificate) = enroll::redeem(&invite, &request, proxies).await?;
    anyhow::ensure!(
        certificate.subject.roles.member,
        "this invite is for a relay: use one of its kind with `ntcp-overlay serve --join`, or ask for a member's (`ntcp-overlay invite`)"
    );
    membership::remember_brokers(&dir, &invite.brokers)?;
    if credentials::is_enrolled(&dir) {
        credentials::replace_certificate(&dir, &certificate.der)
    } else {
        credentials::store_new(&dir, &anchor, &certificate)
    }
}

/// Where our brokers are: our own first, then the configured ones, or else the remembered ones.
fn broker_addresses(settings: &Settings, servers: &Servers) -> anyhow::Result<Vec<BrokerAddr>> {
    let mut all: Vec<BrokerAddr> = servers.broker_loopback().into_iter().map(BrokerAddr::Addr).collect();
    if settings.member.brokers.is_empty() {
        all.extend(membership::brokers(&settings.state_dir.join(MEMBER))?);
    } else {
        all.extend(settings.member.brokers.iter().cloned());
    }
    all.dedup();
    anyhow::ensure!(
        !all.is_empty(),
        "no broker is known: set member.brokers in the configuration, or join again with a new invite"
    );
    Ok(all)
}

async fn configure(
    netlink: &Netlink,
    tun: &Tun,
    addrs: OverlayAddrs,
    v4: Ipv4Network,
    v6: Ipv6Network,
    mtu: u16,
) -> anyhow::Result<()> {
    let v4 = Ipv4Network::new(addrs.v4, v4.prefix()).context("the network's prefix")?;
    let v6 = Ipv6Network::new(addrs.v6, v6.prefix()).context("the network's prefix")?;
    let configured = netlink.configure(tun.name(), v4, v6, u32::from(mtu)).await?;
    if !configured.ipv6 {
        tracing::info!(
            "IPv6 is switched off on this machine: members are reached at their IPv4 addresses only"
        );
    }
    Ok(())
}

fn parts(
    settings: &Settings,
    own: &Credentials,
    addrs: OverlayAddrs,
    tun: Tun,
    local: Vec<IpAddr>,
    observers: Vec<SocketAddr>,
    proxies: Proxies,
) -> anyhow::Result<Parts> {
    let request = SigningRequest::new(&own.certificate.subject.uri.name, &own.key, own.wg.public());
    let stock = settings.wireguard_peers.iter().map(|peer| StockPeer {
        name: peer.name.clone(),
        wg: peer.public_key,
        allowed: peer.addresses.clone(),
        endpoint: peer.endpoint,
        preshared: peer.preshared_key,
        keepalive: peer.persistent_keepalive,
    });
    let config = node::Config {
        software: concat!("ntcp-overlay ", env!("CARGO_PKG_VERSION")).to_owned(),
        mtu: usize::from(settings.member.mtu),
        udp: settings.member.udp,
        transport: (settings.member.transport, settings.peers.clone()),
        directory: settings.member.hosts_file,
        relay: settings.member.relay,
        serve: settings.relay.serve.then(|| settings.relay.limits()),
        by_hand: Printer::is_permitted(),
        overlay: vec![own.anchor.prefix.into(), own.anchor.overlay_prefix_v6().into()],
        configured: settings.member.candidates.clone(),
        observers,
        csr: request.emit(),
        stock: stock.collect(),
    };
    let me =
        Me { anchor: own.anchor.clone(), certificate: own.certificate.clone(), addrs, wg: own.wg.clone() };
    let revocations = credentials::load_revocations(&settings.state_dir.join(MEMBER), &own.anchor)?;
    let (listen_port, offload) = (settings.member.listen_port, settings.member.udp_offload);
    Ok(Parts { me, config, revocations, tun, listen_port, offload, addrs: local, proxies })
}

fn explain_device(error: OpenError) -> anyhow::Error {
    let exit = match error {
        OpenError::Missing | OpenError::NotPermitted => Exit::Permission,
        OpenError::NameInUse(_) | OpenError::BadName(_) | OpenError::Other(_) => Exit::Failed,
    };
    Failure::new(exit, error.to_string()).into()
}

/// Any unique local prefix: only the IPv4 prefix of a network to be founded can be checked before it exists.
fn unused_v6() -> Ipv6Network {
    Ipv6Network::from(std::net::Ipv6Addr::new(0xfdff, 0xffff, 0xffff, 0xffff, 0, 0, 0, 1))
}

fn founder_text(token: &str, settings: &Settings) -> String {
    let port = settings.broker.listen.first().map_or(6060, |listen| listen.addr.port());
    format!(
        "This machine has founded the network and introduces its members. On the next machine run:\n\n  \
         sudo ntcp-overlay up --join {token}\n\n\
         The invite works once. More of them: `ntcp-overlay invite`. If a firewall stands before this machine, open TCP \
         and UDP {port} and {} in it.",
        settings.relay.listen.first().map_or(6061, |listen| listen.addr.port())
    )
}
