//! The server roles of this process: broker, relay, STUN server. `serve` runs them alone, `up` beside a member.
//!
//! Which of them run follows from the configuration and from whose keys lie in the state directory.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::credentials;
use crate::config::settings::Listen;
use crate::config::settings::Settings;
use crate::control::api;
use crate::control::api::Reason;
use crate::engine::broker;
use crate::engine::broker::BrokerConfig;
use crate::engine::broker::BrokerServer;
use crate::engine::membership;
use crate::engine::membership::BROKER;
use crate::engine::relay_role;
use crate::engine::relay_role::Beside;
use crate::engine::relay_role::RunningRelay;
use crate::engine::stun_server;
use crate::engine::stun_server::Places;
use crate::engine::stun_server::StunServer;
use crate::identity::certificate::Roles;
use crate::identity::credentials::Credentials;
use crate::identity::names::GroupName;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;
use crate::relay::server::SessionView;
use crate::wire::enroll::Invite;

/// Sessions of the relay that a status lists: what a person can read.
const SESSIONS_SHOWN: usize = 100;

/// Between two looks whether every role still runs.
pub(super) const HEALTH: Duration = Duration::from_secs(1);

/// The roles that run.
#[derive(Debug, Default)]
pub struct Servers {
    network: Option<NetworkName>,
    broker: Option<RunningBroker>,
    relay: Option<RunningRelay>,
    stun: Option<stun_server::Handle>,
}

#[derive(Debug)]
struct RunningBroker {
    handle: Arc<broker::Handle>,
    credentials: Credentials,
    signs: bool,
    invite_ttl: Duration,
}

impl Servers {
    /// Starts what the settings and this machine's keys say. With `found`, a network is founded first, and this machine
    /// becomes its broker and relay; with `join`, it becomes a relay of that network, if it is not one yet.
    ///
    /// # Errors
    /// When a role that was asked for cannot start.
    pub async fn start(settings: &Settings, found: bool, join: Option<&Invite>) -> anyhow::Result<Self> {
        let mut servers = Self::default();
        // A start that was interrupted after founding goes on from there.
        if found && !membership::has_broker(&settings.state_dir) {
            let forbidden = settings.broker.enabled == Some(false);
            anyhow::ensure!(
                !forbidden,
                "this machine is in no network yet: join one with `ntcp-overlay up --join TOKEN`, or let it found one by removing broker.enabled = false"
            );
            let _ = broker::create_network(
                &settings.state_dir,
                &settings.network.name_or_default(),
                settings.network.prefix,
            )
            .context("founding the network")?;
        }
        servers.start_broker(settings).await?;
        servers.start_relay(settings, join).await?;
        servers.start_stun(settings)?;
        servers.tell_of_stun(settings).await;
        Ok(servers)
    }

    /// Whether any role runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.broker.is_none() && self.relay.is_none() && self.stun.is_none()
    }

    /// How processes on this machine reach the broker of this process.
    #[must_use]
    pub fn broker_loopback(&self) -> Option<SocketAddr> {
        let listen = self.broker.as_ref()?.handle.listen();
        let any = listen.iter().find(|at| at.ip().is_unspecified() || at.ip().is_loopback());
        any.map(|at| SocketAddr::new(loopback_of(at.ip()), at.port())).or_else(|| listen.first().copied())
    }

    /// A new invite.
    ///
    /// # Errors
    /// When this process is no broker, or its broker may not sign.
    pub async fn create_invite(
        &self,
        name: Option<MemberName>,
        groups: Vec<GroupName>,
        ttl: Option<Duration>,
        roles: Roles,
    ) -> anyhow::Result<Invite> {
        let broker = self.broker.as_ref().context(NO_BROKER)?;
        anyhow::ensure!(broker.signs, "{NO_AUTHORITY}");
        broker.handle.create_invite(name, groups, roles, ttl.unwrap_or(broker.invite_ttl)).await
    }

    /// Answers what an operator asks of the roles.
    pub async fn answer(&self, request: api::Request) -> api::Reply {
        let outcome = match request {
            api::Request::Version {} => {
                return api::Reply::Version {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    pid: std::process::id(),
                };
            }
            api::Request::Invite { name, groups, ttl_s, relay, may_relay } => {
                let roles = Roles { member: !relay, relay: relay || may_relay, ..Roles::default() };
                self.invite(name, groups, ttl_s, roles).await
            }
            api::Request::Revoke { name } => self.revoke(&name).await,
            api::Request::ImportRevocations { base64 } => self.import(&base64).await,
            api::Request::Ping { .. } => Err(anyhow::anyhow!(
                "this process runs server roles and is no member: ping from a machine where `ntcp-overlay up` runs"
            )),
            api::Request::Status {} | api::Request::Down {} => {
                Err(anyhow::anyhow!("not a question to the roles"))
            }
        };
        outcome.unwrap_or_else(|error| api::Reply::refused(Reason::Failed, format!("{error:#}")))
    }

    /// Adds the roles to a status.
    pub async fn describe(&self, status: &mut api::Status) {
        if status.network.is_none() {
            status.network = self.network.as_ref().map(ToString::to_string);
        }
        if let Some(broker) = &self.broker {
            let mut members = broker.handle.members().await.unwrap_or_default();
            members.retain(|member| member.certificate.subject.roles.member); // relays enrol too
            status.broker = Some(api::BrokerRole {
                listen: broker.handle.listen().to_vec(),
                members: members.len() as u64,
                online: members.iter().filter(|member| member.online).count() as u64,
                signs: broker.signs,
            });
        }
        if let Some(relay) = &self.relay {
            let stats = relay.handle.stats();
            status.relay = Some(api::RelayRole {
                listen: relay.handle.addrs().to_vec(),
                sessions: stats.sessions as u64,
                bytes: stats.bytes,
                spliced: stats.spliced as u64,
                joined: stats.joined as u64,
                kernel_bytes: relay.handle.carried().bytes,
                no_kernel: relay.handle.no_kernel().map(str::to_owned),
                carried: relay.handle.sessions(SESSIONS_SHOWN).iter().map(relayed_session).collect(),
            });
        }
        if let Some(stun) = &self.stun {
            status.stun = Some(api::StunRole { listen: stun.addrs().to_vec() });
        }
    }

    /// Whether every role that was started still runs. A role whose thread is gone serves nobody, and nothing but a new
    /// start brings it back: the process should end, so that whoever watches over it starts it again.
    ///
    /// # Errors
    /// Which one does not.
    pub fn health(&self) -> anyhow::Result<()> {
        let broken = [
            ("broker", self.broker.as_ref().is_some_and(|broker| !broker.handle.is_running())),
            ("relay", self.relay.as_ref().is_some_and(|relay| !relay.is_running())),
            ("STUN server", self.stun.as_ref().is_some_and(|stun| !stun.is_running())),
        ];
        match broken.iter().find(|(_, broken)| *broken) {
            Some((role, _)) => {
                anyhow::bail!("a thread of the {role} has ended: see the log above, and start again")
            }
            None => Ok(()),
        }
    }

    /// Ends all roles.
    pub async fn shutdown(self) {
        // The relay's task holds the broker too.
        if let Some(relay) = self.relay {
            relay.stop().await;
        }
        if let Some(broker) = self.broker.and_then(|broker| Arc::into_inner(broker.handle)) {
            broker.shutdown().await;
        }
    }

    async fn invite(
        &self,
        name: Option<String>,
        groups: Vec<String>,
        ttl_s: Option<u64>,
        roles: Roles,
    ) -> anyhow::Result<api::Reply> {
        let name = name.map(|name| name.parse()).transpose().context("the wanted name")?;
        let groups = groups.iter().map(|group| group.parse()).collect::<Result<_, _>>().context("a group")?;
        let ttl = ttl_s.map(Duration::from_secs);
        let invite = self.create_invite(name, groups, ttl, roles).await?;
        let default = self.broker.as_ref().map(|broker| broker.invite_ttl).unwrap_or_default();
        Ok(api::Reply::Invite { token: invite.to_text(), ttl_s: ttl.unwrap_or(default).as_secs() })
    }

    async fn revoke(&self, name: &str) -> anyhow::Result<api::Reply> {
        let broker = self.broker.as_ref().context(NO_BROKER)?;
        anyhow::ensure!(broker.signs, "{NO_AUTHORITY}");
        let name: MemberName = name.parse().context("the member's name")?;
        let version = broker.handle.revoke(name.clone()).await?;
        Ok(api::Reply::Done {
            message: format!("{name} is revoked (list version {version}); members hear of it now"),
        })
    }

    async fn import(&self, base64: &str) -> anyhow::Result<api::Reply> {
        let broker = self.broker.as_ref().context(NO_BROKER)?;
        let bytes = STANDARD.decode(base64).context("the list is not base64")?;
        let version = broker.handle.import_revocations(bytes).await?;
        Ok(api::Reply::Done { message: format!("revocation list version {version} is in force") })
    }

    async fn start_broker(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let dir = settings.state_dir.join(BROKER);
        let has_keys = membership::has_broker(&settings.state_dir);
        match (settings.broker.enabled, has_keys) {
            (Some(false), _) | (None, false) => return Ok(()),
            (Some(true), false) => anyhow::bail!(
                "broker.enabled = true, but {} holds no broker's keys: make them with `ntcp-overlay cert init --broker NAME`",
                dir.display()
            ),
            (Some(true) | None, true) => {}
        }
        let own = credentials::load(&dir)?;
        anyhow::ensure!(
            own.certificate.subject.roles.broker,
            "the certificate in {} is not a broker's: sign one with `cert sign --role broker`",
            dir.display()
        );
        self.network = Some(own.anchor.network.clone());
        let authority = credentials::load_authority(&dir)?;
        let signs = authority.is_some();
        let config = BrokerConfig {
            listen: settings.broker.listen.clone(),
            advertise: settings.broker.advertise.clone(),
            dir,
            credentials: own.clone(),
            authority,
            certificate_ttl: settings.broker.certificate_ttl,
            forge: settings.broker.forge,
        };
        let handle = Arc::new(BrokerServer::start(config).await?);
        self.broker =
            Some(RunningBroker { handle, credentials: own, signs, invite_ttl: settings.broker.invite_ttl });
        Ok(())
    }

    async fn start_relay(&mut self, settings: &Settings, join: Option<&Invite>) -> anyhow::Result<()> {
        let beside = self.broker.as_ref().map(|broker| Beside {
            broker: Arc::clone(&broker.handle),
            key: broker.credentials.certificate.key,
        });
        self.relay = relay_role::start(settings, join, beside).await?;
        if self.network.is_none() && self.relay.is_some() {
            let own = credentials::load_anchor(&settings.state_dir.join(membership::RELAY))?;
            self.network = Some(own.network);
        }
        Ok(())
    }

    fn start_stun(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let stun = &settings.stun;
        let wanted = stun.enabled.unwrap_or_else(|| self.broker.is_some());
        if !wanted {
            return Ok(());
        }
        let places = Places {
            listen: usable(&stun.listen),
            advertise: stun.advertise.clone(),
            alternate: stun.alternate_port,
            silent: stun.silent_port,
        };
        match StunServer::start(&places) {
            Ok(running) => self.stun = Some(running),
            // Members do without it, if nobody has asked for it.
            Err(error) if stun.enabled.is_none() => {
                tracing::warn!(
                    "no STUN server runs beside the broker: {error:#}; set stun.enabled = false if that is as it should be"
                );
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Members hear from their broker where they can measure their NATs.
    async fn tell_of_stun(&self, settings: &Settings) {
        let Some(broker) = &self.broker else { return };
        let servers = match (&self.stun, settings.broker.stun_servers.as_slice()) {
            (Some(own), []) => own.addrs().to_vec(),
            (_, named) => stun_server::look_up(named).await,
        };
        broker.handle.set_stun_servers(servers);
    }
}

const NO_BROKER: &str = "this process is no broker: ask on the machine where the broker runs";
const NO_AUTHORITY: &str = "this broker does not hold the CA's key: use `ntcp-overlay cert sign` and `cert revoke --ca` where the key is, and bring the result here";

/// Addresses that can be bound here: an optional one, such as the IPv6 default on a host without IPv6, is tried first.
pub(super) fn usable(listen: &[Listen]) -> Vec<SocketAddr> {
    let bindable = |at: &&Listen| !at.optional || std::net::UdpSocket::bind((at.addr.ip(), 0)).is_ok();
    listen.iter().filter(bindable).map(|at| at.addr).collect()
}

fn loopback_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

fn relayed_session(session: &SessionView) -> api::RelayedSession {
    api::RelayedSession {
        sides: session.sides.iter().flatten().map(|(_, addr)| *addr).collect(),
        backend: session.backend.word().to_owned(),
        why: session.why.to_string(),
    }
}
