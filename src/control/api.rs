//! What commands and daemon say to each other, and what `--json` prints. Schema 1: fields are only ever added.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::candidate;
use crate::nat::candidate::Transport;
use crate::node::methods::Count;
use crate::node::request;
use crate::node::serve::Served;
use crate::node::status::Activity;
use crate::node::status::BrokerStatus;
use crate::node::status::Counters;
use crate::node::status::PathKind;
use crate::node::status::PeerStatus;
use crate::node::status::Snapshot;
use crate::path::Means;
use crate::wire::broker;

/// Version of everything here.
pub const SCHEMA: u32 = 1;

/// One line from a command to the daemon.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`SCHEMA`] of the sender.
    pub schema: u32,
    /// What it wants.
    pub request: Request,
}

/// What a command may want. Written as `{"op": "status"}`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Everything; answered by [`Reply::Status`].
    Status {},
    /// Which program is running; answered by [`Reply::Version`].
    Version {},
    /// One probe of the path to a peer, connecting first if need be; answered by [`Reply::Pong`].
    Ping {
        /// Name or overlay address.
        peer: String,
        /// How long to wait, milliseconds.
        timeout_ms: u64,
    },
    /// A new invite; answered by [`Reply::Invite`].
    Invite {
        /// The name that the invited machine will get; without it, the one it asks for.
        name: Option<String>,
        /// Groups that its certificate will name.
        groups: Vec<String>,
        /// Validity in seconds; without it, what the configuration says.
        ttl_s: Option<u64>,
        /// Whether the invited machine becomes a relay, and no member.
        relay: bool,
        /// Whether the invited member may carry others' traffic too.
        #[serde(default)]
        may_relay: bool,
    },
    /// Takes a member's certificates back; answered by [`Reply::Done`].
    Revoke {
        /// Its name.
        name: String,
    },
    /// Puts a revocation list into force that was signed elsewhere; answered by [`Reply::Done`].
    ImportRevocations {
        /// The signed list.
        base64: String,
    },
    /// Ends the daemon; answered by [`Reply::Done`] before it ends.
    Down {},
}

impl Request {
    /// Whether it changes anything, so that only root and the daemon's own user may ask it. A ping makes traffic and
    /// nothing else.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        match self {
            Self::Status {} | Self::Version {} | Self::Ping { .. } => false,
            Self::Invite { .. } | Self::Revoke { .. } | Self::ImportRevocations { .. } | Self::Down {} => {
                true
            }
        }
    }

    /// How long the daemon may take for it.
    #[must_use]
    pub const fn time_limit(&self) -> Duration {
        match self {
            Self::Ping { timeout_ms, .. } => Duration::from_millis(*timeout_ms).saturating_add(SLACK),
            _ => LIMIT,
        }
    }
}

/// Answers come from memory or one database transaction; a daemon that needs longer is stuck.
const LIMIT: Duration = Duration::from_secs(10);
/// On top of a ping's own limit, for the way through the socket.
const SLACK: Duration = Duration::from_secs(2);

/// One line from the daemon to a command.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Version`].
    Version {
        /// As in `Cargo.toml`.
        version: String,
        /// Process id of the daemon.
        pid: u32,
    },
    /// To [`Request::Ping`].
    Pong(Pong),
    /// To [`Request::Invite`].
    Invite {
        /// What the invited machine passes to `up --join`.
        token: String,
        /// Validity in seconds.
        ttl_s: u64,
    },
    /// It is done, in words.
    Done {
        /// What was done.
        message: String,
    },
    /// It is not done.
    Refused {
        /// Whose fault it is.
        reason: Reason,
        /// In words, with the next thing to do.
        message: String,
    },
}

/// Why a request was refused, as far as a script may care.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It could not be done.
    Failed,
    /// The request makes no sense.
    Malformed,
    /// The asker may not.
    Permission,
    /// Nobody answered in time.
    Timeout,
}

impl Reply {
    /// A refusal in words.
    #[must_use]
    pub fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::Refused { reason, message: message.into() }
    }
}

/// The answer to a ping.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Pong {
    /// Who.
    pub name: String,
    /// Its overlay address.
    pub address: IpAddr,
    /// By which path.
    #[serde(flatten)]
    pub path: Path,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why there was no answer, if there was none.
    pub problem: Option<String>,
}

/// What carries traffic, as in the `path`, `endpoint`, `relay` and `relay_transport` fields of a peer.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// The kind.
    #[serde(rename = "path")]
    pub kind: Kind,
    /// The far end on the outside: the peer's, or the relay's.
    pub endpoint: Option<SocketAddr>,
    /// How a direct TCP connection came to be: `direct`, `reversal`, `p2pnat`, `prediction`, `p2pnat-low-ttl`, `stunt-2`.
    /// Over UDP `prediction`, where ports had to be found.
    #[serde(default)]
    pub method: Option<String>,
    /// In which round of its introduction that was, counted from 1, where it took rounds.
    #[serde(default)]
    pub round: Option<u8>,
    /// The relay's name.
    pub relay: Option<String>,
    /// `udp` or `tcp`: how this side reaches the relay; `splice`: one TCP connection to the peer, which the relay's kernel
    /// readdresses.
    pub relay_transport: Option<String>,
}

/// The kind of a path.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Datagrams straight to the peer.
    DirectUdp,
    /// A stream straight to the peer.
    DirectTcp,
    /// Through a relay.
    Relay,
    /// Nothing.
    None,
}

impl Kind {
    /// Whether nobody stands between the two members.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::DirectUdp | Self::DirectTcp)
    }
}

/// What `status --json` prints.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the daemon.
    pub version: String,
    /// The network.
    pub network: Option<String>,
    /// Own name.
    pub name: Option<String>,
    /// Own overlay addresses; empty for a daemon that only serves.
    pub addresses: Vec<IpAddr>,
    /// Own WireGuard key.
    pub public_key: Option<String>,
    /// Name of the network interface.
    pub interface: Option<String>,
    /// End of the own certificate, seconds since 1970.
    pub certificate_until: Option<u64>,
    /// Where this member may be reached.
    pub candidates: Vec<Candidate>,
    /// What is known of the NATs in front.
    pub nat: Nat,
    /// The proxy through which broker and relays are reached, without its password.
    #[serde(default)]
    pub proxy: Option<String>,
    /// The router in front, and what it forwards; `null` where it is not asked (`member.port_mapping`).
    #[serde(default)]
    pub gateway: Option<Gateway>,
    /// STUN servers that the broker names, to measure NATs with.
    #[serde(default)]
    pub stun_servers: Vec<SocketAddr>,
    /// How far the network's relays are, once it has two: the broker chooses by that.
    #[serde(default)]
    pub relay_delays: Vec<RelayDelay>,
    /// Brokers.
    pub brokers: Vec<Broker>,
    /// In order of name.
    pub peers: Vec<Peer>,
    /// Names in `[[peer]]` of the configuration that no member was ever heard of by.
    #[serde(default)]
    pub unknown_peers: Vec<String>,
    /// Version of the revocation list in force.
    pub revocations: u64,
    /// Packets and messages that were dropped since the start, by reason.
    pub dropped: Dropped,
    /// By what direct paths were opened since the start.
    #[serde(default)]
    pub methods: Vec<Tried>,
    /// The broker in this process, if there is one.
    pub broker: Option<BrokerRole>,
    /// The relay in this process, if there is one.
    pub relay: Option<RelayRole>,
    /// The STUN server in this process, if there is one.
    pub stun: Option<StunRole>,
}

/// One peer.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Peer {
    /// Name.
    pub name: String,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// WireGuard key.
    pub public_key: String,
    /// Groups of its certificate.
    pub groups: Vec<String>,
    /// Whether it is a stock WireGuard client of the configuration.
    pub wireguard: bool,
    /// `active`, `connecting`, `idle` or `offline`.
    pub state: State,
    /// What carries.
    #[serde(flatten)]
    pub path: Path,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Share of unanswered probes, 0 to 1.
    pub loss: Option<f64>,
    /// Payload bytes received.
    pub rx_bytes: u64,
    /// Payload bytes sent.
    pub tx_bytes: u64,
    /// Seconds since the last handshake.
    pub last_handshake_s: Option<u64>,
    /// When the broker last saw it if it is offline, seconds since 1970.
    pub last_seen: Option<u64>,
    /// Why the path is not direct.
    pub why: Option<String>,
    /// Why UDP or TCP carries, where the path is direct.
    #[serde(default)]
    pub choice: Option<String>,
    /// The far end of a direct TCP connection that TCP traffic rides beside a path over UDP.
    #[serde(default)]
    pub beside_endpoint: Option<SocketAddr>,
    /// How that came to be, as `method`.
    #[serde(default)]
    pub beside_method: Option<String>,
    /// Seconds until the next try for a better path.
    pub next_try_s: Option<u64>,
}

/// What a peer is doing.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Has a path and traffic.
    Active,
    /// Being introduced or punched.
    Connecting,
    /// Reachable as far as known.
    Idle,
    /// Not connected to the broker.
    Offline,
}

/// The connection to one broker.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Broker {
    /// Its name; absent while there is no connection.
    pub name: Option<String>,
    /// Its address; absent while there is no connection.
    pub address: Option<SocketAddr>,
    /// Registered and alive.
    pub connected: bool,
    /// The last failure, or what is wrong although it is connected.
    pub problem: Option<String>,
    /// Whether UDP reaches it; `null` if not tried yet.
    pub udp: Option<bool>,
    /// Outside address of the data socket.
    pub mapped: Option<SocketAddr>,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// One own address.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// `udp` or `tcp`.
    pub transport: String,
    /// `host`, `forwarded`, `configured`, `inner` or `mapped`.
    pub kind: String,
    /// The address.
    pub address: SocketAddr,
}

/// The way to one relay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RelayDelay {
    /// Its name.
    pub name: String,
    /// Round trip, milliseconds; `null` if it cannot be reached from here.
    pub rtt_ms: Option<u16>,
}

/// The router in front.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct Gateway {
    /// Its address; `null` if there is none.
    pub address: Option<Ipv4Addr>,
    /// The ports that it forwards here on our request.
    pub forwarded: Vec<Forwarded>,
    /// Why it forwards nothing, or not everything, in words.
    pub problem: Option<String>,
}

/// A port that the router forwards.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// `udp` or `tcp`.
    pub transport: String,
    /// `pcp`, `nat-pmp` or `upnp`.
    pub protocol: String,
    /// The port here.
    pub internal: u16,
    /// Where others would reach it, as the router says.
    pub external: SocketAddr,
    /// `public`; `nested` or `elsewhere` if another NAT stands outside, so that only others inside of that can use it;
    /// `nothing` if nobody can.
    pub worth: String,
}

/// What the NATs in front do.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct Nat {
    /// To UDP.
    pub udp: Treatment,
    /// To TCP.
    pub tcp: Treatment,
}

/// How one transport is treated, in the words of RFC 4787.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct Treatment {
    /// Whether it gets out at all; `null` if not measured.
    pub passes: Option<bool>,
    /// `none`, `endpoint-independent`, `address-dependent`, `address-and-port-dependent`, `session-dependent`.
    pub mapping: Option<String>,
    /// `open`, `endpoint-independent`, `address-dependent`, `address-and-port-dependent`, `inbound-never`.
    pub filtering: Option<String>,
    /// `preserved`, `delta N`, `random`.
    pub ports: Option<String>,
}

/// What was dropped.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(default)]
#[allow(missing_docs, reason = "node::status::Counters documents the same fields")]
pub struct Dropped {
    pub unknown_kind: u64,
    pub malformed: u64,
    pub unauthenticated: u64,
    pub rate_limited: u64,
    pub spoofed: u64,
    pub congested: u64,
    pub no_route: u64,
    pub queue_full: u64,
}

/// A means to open a direct path, and how often it did.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Tried {
    /// `udp`, or as `method` of a peer.
    pub method: String,
    /// Times that it was tried.
    pub tried: u64,
    /// Times that it led to a proven way.
    pub opened: u64,
    /// Of these, at the first introduction.
    pub first: u64,
}

/// A broker, seen from inside.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct BrokerRole {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Members in its database.
    pub members: u64,
    /// Connected now.
    pub online: u64,
    /// Whether it holds the CA key, so that it can make invites and renew certificates.
    pub signs: bool,
}

/// A relay, seen from inside.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct RelayRole {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Sessions now.
    pub sessions: u64,
    /// Bytes forwarded since the start, without those that the kernel forwards.
    pub bytes: u64,
    /// Sessions whose TCP connection the kernel carries now.
    #[serde(default)]
    pub spliced: u64,
    /// Sessions whose UDP messages the kernel carries now.
    #[serde(default)]
    pub joined: u64,
    /// Bytes of IP packets that the kernel has forwarded since the start.
    #[serde(default)]
    pub kernel_bytes: u64,
    /// Why the kernel carries none here, if it cannot.
    #[serde(default)]
    pub no_kernel: Option<String>,
    /// The sessions, or the first of them.
    #[serde(default)]
    pub carried: Vec<RelayedSession>,
}

/// A session at a relay.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct RelayedSession {
    /// Where its two sides are bound from, as far as they are.
    pub sides: Vec<SocketAddr>,
    /// `kernel` or `userspace`.
    pub backend: String,
    /// Why.
    pub why: String,
}

/// A STUN server, seen from inside.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct StunRole {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
}

impl Status {
    /// A daemon without a member: what `serve` runs.
    #[must_use]
    pub fn serving() -> Self {
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            network: None,
            name: None,
            addresses: Vec::new(),
            public_key: None,
            interface: None,
            certificate_until: None,
            candidates: Vec::new(),
            nat: Nat::default(),
            proxy: None,
            gateway: None,
            stun_servers: Vec::new(),
            relay_delays: Vec::new(),
            brokers: Vec::new(),
            peers: Vec::new(),
            unknown_peers: Vec::new(),
            revocations: 0,
            dropped: Dropped::default(),
            methods: Vec::new(),
            broker: None,
            relay: None,
            stun: None,
        }
    }
}

impl From<Snapshot> for Status {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            network: Some(snapshot.network.to_string()),
            name: Some(snapshot.name.to_string()),
            addresses: vec![snapshot.addrs.v4.into(), snapshot.addrs.v6.into()],
            public_key: Some(snapshot.wg.to_string()),
            certificate_until: Some(snapshot.certificate_until.secs()),
            candidates: snapshot.candidates.into_iter().map(Candidate::from).collect(),
            nat: Nat { udp: snapshot.profile.udp.into(), tcp: snapshot.profile.tcp.into() },
            brokers: snapshot.brokers.into_iter().map(Broker::from).collect(),
            peers: snapshot.peers.into_iter().map(Peer::from).collect(),
            unknown_peers: snapshot.unknown_peers.iter().map(ToString::to_string).collect(),
            revocations: snapshot.revocations,
            dropped: snapshot.counters.into(),
            methods: snapshot.methods.into_iter().map(Tried::from).collect(),
            relay: snapshot.served.map(RelayRole::from),
            ..Self::serving()
        }
    }
}

impl From<Served> for RelayRole {
    fn from(served: Served) -> Self {
        Self {
            listen: served.endpoints,
            sessions: served.stats.sessions as u64,
            bytes: served.stats.bytes,
            spliced: 0,
            joined: 0,
            kernel_bytes: 0,
            no_kernel: Some("a member copies (relay.serve)".to_owned()),
            carried: Vec::new(),
        }
    }
}

impl From<PeerStatus> for Peer {
    fn from(peer: PeerStatus) -> Self {
        Self {
            name: peer.name.to_string(),
            addresses: peer.addrs,
            public_key: peer.wg.to_string(),
            groups: peer.groups.iter().map(ToString::to_string).collect(),
            wireguard: peer.stock,
            state: peer.activity.into(),
            path: Path {
                method: peer.how.map(|how| how.method.name().to_owned()),
                round: peer.how.and_then(|how| how.round),
                ..peer.path.into()
            },
            rtt_ms: peer.rtt.map(millis),
            loss: peer.loss,
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            last_handshake_s: peer.last_handshake.map(|age| age.as_secs()),
            // The epoch: never, as far as the broker knows.
            last_seen: peer.last_seen.map(|time| time.secs()).filter(|secs| *secs > 0),
            why: peer.why,
            choice: peer.choice,
            beside_endpoint: peer.beside.map(|(endpoint, _)| endpoint),
            beside_method: peer.beside.map(|(_, method)| method.name().to_owned()),
            next_try_s: peer.next_try.map(|wait| wait.as_secs()),
        }
    }
}

impl From<(Means, Count)> for Tried {
    fn from((means, count): (Means, Count)) -> Self {
        let Count { tried, opened, first } = count;
        Self { method: means.name().to_owned(), tried, opened, first }
    }
}

impl From<Activity> for State {
    fn from(activity: Activity) -> Self {
        match activity {
            Activity::Active => Self::Active,
            Activity::Connecting => Self::Connecting,
            Activity::Idle => Self::Idle,
            Activity::Offline => Self::Offline,
        }
    }
}

impl From<&broker::RelayDelay> for RelayDelay {
    fn from(measured: &broker::RelayDelay) -> Self {
        Self { name: measured.name.to_string(), rtt_ms: measured.rtt }
    }
}

impl From<PathKind> for Path {
    fn from(path: PathKind) -> Self {
        let none = Self {
            kind: Kind::None,
            endpoint: None,
            method: None,
            round: None,
            relay: None,
            relay_transport: None,
        };
        match path {
            PathKind::DirectUdp(addr) => Self { kind: Kind::DirectUdp, endpoint: Some(addr), ..none },
            PathKind::DirectTcp(addr, method) => Self {
                kind: Kind::DirectTcp,
                endpoint: Some(addr),
                method: Some(method.name().to_owned()),
                ..none
            },
            PathKind::Relay { name, by, endpoint } => Self {
                kind: Kind::Relay,
                endpoint: Some(endpoint),
                relay: Some(name.to_string()),
                relay_transport: Some(by.word().to_owned()),
                ..none
            },
            PathKind::None => none,
        }
    }
}

impl From<request::Pong> for Pong {
    fn from(pong: request::Pong) -> Self {
        let (rtt_ms, problem) = match pong.rtt {
            Ok(rtt) => (Some(millis(rtt)), None),
            Err(problem) => (None, Some(problem)),
        };
        Self { name: pong.name.to_string(), address: pong.addr, path: pong.path.into(), rtt_ms, problem }
    }
}

impl From<BrokerStatus> for Broker {
    fn from(broker: BrokerStatus) -> Self {
        Self {
            name: broker.name.map(|name| name.to_string()),
            address: broker.address,
            connected: broker.connected,
            problem: broker.problem,
            udp: broker.udp,
            mapped: broker.mapped,
            rtt_ms: broker.rtt.map(millis),
        }
    }
}

impl From<candidate::Candidate> for Candidate {
    fn from(candidate: candidate::Candidate) -> Self {
        let transport = match candidate.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let kind = match candidate.kind {
            candidate::Kind::Host => "host",
            candidate::Kind::Forwarded => "forwarded",
            candidate::Kind::Configured => "configured",
            candidate::Kind::Inner => "inner",
            candidate::Kind::Mapped => "mapped",
        };
        Self { transport: transport.to_owned(), kind: kind.to_owned(), address: candidate.addr }
    }
}

impl From<Behavior> for Treatment {
    fn from(behavior: Behavior) -> Self {
        let mapping = match behavior.mapping {
            Mapping::Unknown => None,
            Mapping::None => Some("none"),
            Mapping::EndpointIndependent => Some("endpoint-independent"),
            Mapping::AddressDependent => Some("address-dependent"),
            Mapping::AddressAndPortDependent => Some("address-and-port-dependent"),
            Mapping::SessionDependent => Some("session-dependent"),
        };
        let filtering = match behavior.filtering {
            Filtering::Unknown => None,
            Filtering::Open => Some("open"),
            Filtering::EndpointIndependent => Some("endpoint-independent"),
            Filtering::AddressDependent => Some("address-dependent"),
            Filtering::AddressAndPortDependent => Some("address-and-port-dependent"),
            Filtering::InboundNever => Some("inbound-never"),
        };
        let ports = match behavior.ports {
            PortAssignment::Unknown => None,
            PortAssignment::Preserved => Some("preserved".to_owned()),
            PortAssignment::Delta(step) => Some(format!("delta {step}")),
            PortAssignment::Random => Some("random".to_owned()),
        };
        Self {
            passes: behavior.passes,
            mapping: mapping.map(str::to_owned),
            filtering: filtering.map(str::to_owned),
            ports,
        }
    }
}

impl From<Counters> for Dropped {
    fn from(counters: Counters) -> Self {
        let Counters {
            unknown_kind,
            malformed,
            unauthenticated,
            rate_limited,
            spoofed,
            congested,
            no_route,
            queue_full,
        } = counters;
        Self {
            unknown_kind,
            malformed,
            unauthenticated,
            rate_limited,
            spoofed,
            congested,
            no_route,
            queue_full,
        }
    }
}

/// Milliseconds with three digits after the point: microseconds are noise in a ping.
fn millis(duration: Duration) -> f64 {
    let micros = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    f64::from(micros) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::OverlayAddrs;
    use crate::base::time::UnixTime;
    use crate::identity::keys::WgPublic;
    use crate::nat::behavior::Profile;
    use crate::path::RelayedBy;
    use crate::punch::method::Method;
    use crate::relay::server::Stats;

    fn snapshot() -> Snapshot {
        let peer = PeerStatus {
            name: "nas".parse().unwrap(),
            addrs: vec!["10.77.0.2".parse().unwrap()],
            wg: WgPublic([7; 32]),
            groups: vec!["home".parse().unwrap()],
            stock: false,
            path: PathKind::Relay {
                name: "hub".parse().unwrap(),
                by: RelayedBy::Udp,
                endpoint: "203.0.113.1:6061".parse().unwrap(),
            },
            how: None,
            activity: Activity::Active,
            rtt: Some(Duration::from_micros(12_345)),
            loss: Some(0.25),
            rx_bytes: 1,
            tx_bytes: 2,
            last_handshake: Some(Duration::from_secs(3)),
            last_seen: None,
            why: Some("udp: no answer".to_owned()),
            choice: Some("UDP works".to_owned()),
            beside: Some(("203.0.113.5:4242".parse().unwrap(), Method::Simultaneous)),
            next_try: Some(Duration::from_secs(9)),
        };
        Snapshot {
            network: "home".parse().unwrap(),
            name: "laptop".parse().unwrap(),
            addrs: OverlayAddrs { v4: "10.77.0.1".parse().unwrap(), v6: "fd00::a4d:1".parse().unwrap() },
            wg: WgPublic([8; 32]),
            certificate_until: UnixTime::from_secs(5),
            candidates: vec![candidate::Candidate {
                transport: Transport::Udp,
                kind: candidate::Kind::Mapped,
                addr: "192.0.2.1:4".parse().unwrap(),
            }],
            profile: Profile::default(),
            brokers: Vec::new(),
            peers: vec![peer],
            unknown_peers: vec!["nsa".parse().unwrap()],
            revocations: 4,
            served: Some(Served {
                endpoints: vec!["192.0.2.1:4".parse().unwrap()],
                stats: Stats { sessions: 3, ..Stats::default() },
            }),
            counters: Counters { spoofed: 6, ..Counters::default() },
            methods: vec![(Means::Udp, Count { tried: 9, opened: 8, first: 7 })],
        }
    }

    #[test]
    fn status_json_keeps_the_names_that_scripts_rely_on() {
        let json = serde_json::to_value(Status::from(snapshot())).unwrap();
        for (pointer, value) in [
            ("/schema", "1"),
            ("/name", "\"laptop\""),
            ("/addresses/0", "\"10.77.0.1\""),
            ("/candidates/0/kind", "\"mapped\""),
            ("/dropped/spoofed", "6"),
            ("/methods/0", "{\"first\":7,\"method\":\"udp\",\"opened\":8,\"tried\":9}"),
            ("/unknown_peers/0", "\"nsa\""),
            ("/relay/sessions", "3"),
            ("/relay/listen/0", "\"192.0.2.1:4\""),
            ("/peers/0/name", "\"nas\""),
            ("/peers/0/addresses/0", "\"10.77.0.2\""),
            ("/peers/0/path", "\"relay\""),
            ("/peers/0/endpoint", "\"203.0.113.1:6061\""),
            ("/peers/0/relay", "\"hub\""),
            ("/peers/0/relay_transport", "\"udp\""),
            ("/peers/0/rtt_ms", "12.345"),
            ("/peers/0/loss", "0.25"),
            ("/peers/0/rx_bytes", "1"),
            ("/peers/0/tx_bytes", "2"),
            ("/peers/0/last_handshake_s", "3"),
            ("/peers/0/why", "\"udp: no answer\""),
            ("/peers/0/choice", "\"UDP works\""),
            ("/peers/0/beside_endpoint", "\"203.0.113.5:4242\""),
            ("/peers/0/beside_method", "\"p2pnat\""),
        ] {
            assert_eq!(json.pointer(pointer).map(ToString::to_string).as_deref(), Some(value), "{pointer}");
        }
    }

    #[test]
    fn replies_read_back() {
        let pong = request::Pong {
            ticket: request::Ticket(1),
            name: "nas".parse().unwrap(),
            addr: "10.77.0.2".parse().unwrap(),
            path: PathKind::DirectUdp("203.0.113.5:4242".parse().unwrap()),
            rtt: Err("no answer".to_owned()),
        };
        for reply in [
            Reply::Status(Box::new(Status::from(snapshot()))),
            Reply::Pong(pong.into()),
            Reply::Invite { token: "ntcp1-x".to_owned(), ttl_s: 5 },
            Reply::refused(Reason::Timeout, "too slow"),
        ] {
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply, "{text}");
        }
    }

    #[test]
    fn requests_are_short_json_and_unknown_ones_are_errors() {
        let text = r#"{"schema":1,"request":{"op":"ping","peer":"nas","timeout_ms":5}}"#;
        let envelope: Envelope = serde_json::from_str(text).unwrap();
        assert_eq!(envelope.request, Request::Ping { peer: "nas".to_owned(), timeout_ms: 5 });
        assert_eq!(serde_json::to_string(&envelope).unwrap(), text);
        for bad in [
            r#"{"schema":1,"request":{"op":"dance"}}"#,
            r#"{"schema":1,"request":{"op":"status","path":"/etc/shadow"}}"#,
            r#"{"request":{"op":"status"}}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Envelope>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whatever_changes_something_is_a_write() {
        for (request, write) in [
            (Request::Status {}, false),
            (Request::Ping { peer: String::new(), timeout_ms: 0 }, false),
            (Request::Down {}, true),
            (
                Request::Invite {
                    name: None,
                    groups: Vec::new(),
                    ttl_s: None,
                    relay: false,
                    may_relay: false,
                },
                true,
            ),
            (Request::Revoke { name: String::new() }, true),
            (Request::ImportRevocations { base64: String::new() }, true),
        ] {
            assert_eq!(request.is_write(), write, "{request:?}");
        }
    }
}
