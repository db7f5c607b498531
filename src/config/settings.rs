//! What the program does: every setting present, checked and in its final type. `build.rs` is the way here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use ipnetwork::Ipv4Network;
use tracing::Level;

use super::proxy::Proxies;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;
use crate::path::Transport;
use crate::relay::server;
use crate::wire::enroll::BrokerAddr;

/// Where the configuration is looked for unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/ntcp-overlay/overlay.toml";
/// Where keys, certificates and the broker's database live (FHS 5.8).
pub const DEFAULT_STATE_DIR: &str = "/var/lib/ntcp-overlay";
/// Where the daemon listens for commands (FHS 3.15).
pub const DEFAULT_CONTROL: &str = "/run/ntcp-overlay/control.sock";
/// The name of a network whose founder did not choose one.
pub const DEFAULT_NETWORK: &str = "overlay";
/// 65,534 members; 10.77/16 is rarely taken by home routers (192.168/16), clouds (10.0/16, 172.16/12) or Docker.
pub const DEFAULT_PREFIX: &str = "10.77.0.0/16";
/// The kernel replaces `%d` by the first free number, so several instances fit on one machine.
pub const DEFAULT_INTERFACE: &str = "ntcp%d";
/// What passes everywhere: 1500 of Ethernet less 8 (PPPoE), 40 (IPv6), 8 (UDP), 4 (relay channel) and 32 (WireGuard) is
/// 1408; 1380 leaves 28 for one more tunnel on the way.
pub const DEFAULT_MTU: u16 = 1380;
/// IPv6 needs 1280 (RFC 8200 5); more than 1420 does not fit into Ethernet together with the outer headers.
pub const MTU_RANGE: RangeInclusive<u16> = 1280..=1420;
/// The broker's port, TCP and UDP.
pub const BROKER_PORT: u16 = 6060;
/// TCP ports at which a relay's kernel splices sessions, two for each and source address. Reason: below the ports that Linux
/// dials from (32768 and up), above those that services are usually given.
pub const SPLICE_PORTS: RangeInclusive<u16> = 20_000..=20_999;
/// The relay's port, TCP and UDP.
pub const RELAY_PORT: u16 = 6061;
/// The STUN role's port (RFC 8489 18.6).
pub const STUN_PORT: u16 = 3478;
/// Members renew over the broker long before the end; a stolen laptop is locked out by revocation, not by expiry.
pub const DEFAULT_CERTIFICATE_TTL: Duration = Duration::from_secs(90 * 86_400);
/// An invite is carried by hand on the day it was made.
pub const DEFAULT_INVITE_TTL: Duration = Duration::from_secs(86_400);
/// A session costs the relay about 1 KiB, so this is 10 MiB.
pub const DEFAULT_MAX_SESSIONS: u32 = 10_000;

/// What flags and environment say; wins over the file.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Overrides {
    /// `--state-dir`, `NTCP_STATE_DIR`
    pub state_dir: Option<PathBuf>,
    /// `--control`, `NTCP_CONTROL`
    pub control: Option<PathBuf>,
    /// `--name`, `NTCP_NAME`
    pub name: Option<MemberName>,
    /// `--network`, `NTCP_NETWORK`
    pub network: Option<NetworkName>,
    /// `--join`, `NTCP_JOIN`, `NTCP_JOIN_FILE`
    pub join: Option<Secret>,
    /// `--advertise`, `NTCP_ADVERTISE`
    pub advertise: Vec<BrokerAddr>,
    /// `--hosts`
    pub hosts_file: bool,
}

/// A secret, or where it is kept. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The secret itself.
    Text(String),
    /// `file:PATH`: the content of that file, without the white space around it.
    File(PathBuf),
}

/// Name or pattern of the overlay's network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceName(String);

/// `[network]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Only if somebody chose one; a network that is joined has its own.
    pub name: Option<NetworkName>,
    /// IPv4 addresses of the members of a network that is created here.
    pub prefix: Ipv4Network,
}

/// `[member]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// This member's name, wanted or given.
    pub name: MemberName,
    /// The invite, if there is one; read by [`super::load::invite`].
    pub join: Option<Secret>,
    /// Instead of those that the invite names.
    pub brokers: Vec<BrokerAddr>,
    /// Name of the interface.
    pub interface: InterfaceName,
    /// MTU of the interface, bytes.
    pub mtu: u16,
    /// Port of the UDP data socket; 0 lets the kernel choose.
    pub listen_port: u16,
    /// Addresses at which the owner of the NAT forwards to `listen_port`.
    pub candidates: Vec<SocketAddr>,
    /// Servers inside the provider's network, which see the inner address of nested NATs.
    pub stun_servers: Vec<BrokerAddr>,
    /// Whether to keep the members' names in `/etc/hosts`.
    pub hosts_file: bool,
    /// Whether relays may carry traffic.
    pub relay: bool,
    /// Whether UDP may be used on the outside.
    pub udp: bool,
    /// Over what peers are reached directly.
    pub transport: Transport,
    /// Whether packets may cross the border between device and kernel in runs, where the kernel can do that.
    pub offload: bool,
    /// The same for the sockets alone.
    pub udp_offload: bool,
    /// Whether gateways are asked to forward a port (UPnP, NAT-PMP, PCP).
    pub port_mapping: bool,
    /// How the broker and relays are reached.
    pub proxy: ProxyChoice,
}

/// `member.proxy`
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProxyChoice {
    /// As `https_proxy`, `all_proxy` and `no_proxy` say.
    Environment,
    /// As written.
    Written(Proxies),
}

/// An address to listen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen {
    /// Where.
    pub addr: SocketAddr,
    /// Not having this address family is no error: for `[::]` on a host without IPv6.
    pub optional: bool,
}

/// `[broker]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broker {
    /// As written; without it, there is a broker if the state directory holds a broker's keys.
    pub enabled: Option<bool>,
    /// Where it listens, TCP and UDP.
    pub listen: Vec<Listen>,
    /// How others reach it, for invites.
    pub advertise: Vec<BrokerAddr>,
    /// The STUN servers that members are told of; without them, the STUN role of this process.
    pub stun_servers: Vec<BrokerAddr>,
    /// Validity of the certificates that it signs.
    pub certificate_ttl: Duration,
    /// Validity of invites that say nothing else.
    pub invite_ttl: Duration,
    /// Whether it answers TCP connections between two members in each other's name (STUNT-1).
    pub forge: bool,
}

/// `[relay]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relay {
    /// As written; without it, there is a relay if the state directory holds a relay's keys.
    pub enabled: Option<bool>,
    /// Where it listens, TCP and UDP.
    pub listen: Vec<Listen>,
    /// How others reach it; without it, the addresses that it listens on.
    pub advertise: Vec<BrokerAddr>,
    /// Sessions at a time.
    pub max_sessions: u32,
    /// Bytes a second and session; `None` is no limit.
    pub bytes_per_second: Option<u64>,
    /// TCP ports at which the kernel splices sessions; `None`: it does not.
    pub splice_ports: Option<RangeInclusive<u16>>,
    /// Whether a member on this machine carries others' traffic too, over its own sockets.
    pub serve: bool,
    /// Brokers to report to, if it does not live in a broker's process.
    pub brokers: Vec<BrokerAddr>,
}

impl Relay {
    /// What a relay here gives at most.
    #[must_use]
    pub fn limits(&self) -> server::Config {
        server::Config {
            max_sessions: usize::try_from(self.max_sessions).unwrap_or(usize::MAX),
            bytes_per_second: self.bytes_per_second.map(|rate| u32::try_from(rate).unwrap_or(u32::MAX)),
            ..server::Config::default()
        }
    }
}

/// `[stun]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stun {
    /// As written; without it, there is a STUN server if there is a broker.
    pub enabled: Option<bool>,
    /// Where it listens, UDP and TCP, everywhere at the same port.
    pub listen: Vec<Listen>,
    /// What others call those addresses, in the same order; empty if they are the same.
    pub advertise: Vec<IpAddr>,
    /// The second port that answers.
    pub alternate_port: Option<u16>,
    /// The TCP port that never answers.
    pub silent_port: Option<u16>,
}

/// One `[[wireguard_peer]]`: a stock WireGuard client.
#[derive(Clone, PartialEq, Eq)]
pub struct WireguardPeer {
    /// What `status` calls it.
    pub name: MemberName,
    /// Its key.
    pub public_key: WgPublic,
    /// Overlay addresses and networks behind it; at least one.
    pub addresses: Vec<IpNetwork>,
    /// Where it is; without it, it has to speak first.
    pub endpoint: Option<SocketAddr>,
    /// A key that both sides share in addition.
    pub preshared_key: Option<[u8; 32]>,
    /// Seconds between keepalives; `None` is never.
    pub persistent_keepalive: Option<u16>,
}

/// Everything that the program does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Keys, certificates, the broker's database.
    pub state_dir: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// What is logged unless `RUST_LOG` says otherwise.
    pub log: Level,
    /// The network.
    pub network: Network,
    /// This machine as a member.
    pub member: Member,
    /// `[[peer]]`: over what single peers are reached directly, whatever `member.transport` says.
    pub peers: BTreeMap<MemberName, Transport>,
    /// As a broker.
    pub broker: Broker,
    /// As a relay.
    pub relay: Relay,
    /// As a STUN server.
    pub stun: Stun,
    /// Stock WireGuard clients.
    pub wireguard_peers: Vec<WireguardPeer>,
}

impl Network {
    /// The name of a network that is created here.
    #[must_use]
    pub fn name_or_default(&self) -> NetworkName {
        self.name.clone().unwrap_or_else(|| DEFAULT_NETWORK.parse().expect("the default is a name"))
    }
}

impl Secret {
    /// `file:PATH` or the secret itself.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.trim().strip_prefix("file:") {
            Some(path) => Self::File(PathBuf::from(path)),
            None => Self::Text(text.trim().to_owned()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Secret(hidden)"),
            Self::File(path) => write!(f, "Secret(file:{})", path.display()),
        }
    }
}

impl fmt::Debug for WireguardPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WireguardPeer({} {:?} {:?})", self.name, self.public_key, self.addresses)
    }
}

impl InterfaceName {
    /// The name, possibly with one `%d` for a number that the kernel chooses.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InterfaceName {
    fn default() -> Self {
        Self(DEFAULT_INTERFACE.to_owned())
    }
}

impl FromStr for InterfaceName {
    type Err = &'static str;
    /// Linux's `dev_valid_name`, and nothing that needs quoting.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.replacen("%d", "0", 1);
        let fit = plain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if plain.is_empty() || text.len() > 15 || !fit || plain == "." || plain == ".." {
            return Err("an interface's name has 1 to 15 letters, digits, '-' or '_', and may hold one %d");
        }
        Ok(Self(text.to_owned()))
    }
}
