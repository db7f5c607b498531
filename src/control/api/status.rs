//! What `status --json` prints.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::Serialize;

use crate::control::api::SCHEMA;

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
