//! A snapshot of a member as plain data, for the control API, for logs and for tests.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::addr::OverlayAddrs;
use crate::base::time::UnixTime;
use crate::identity::keys::WgPublic;
use crate::identity::names::GroupName;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::node::methods::Count;
use crate::node::serve::Served;
use crate::path::Means;
use crate::path::RelayedBy;
use crate::punch::method::How;
use crate::punch::method::Method;

/// What carries traffic to a peer now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathKind {
    /// Datagrams straight to the peer.
    DirectUdp(SocketAddr),
    /// A stream straight to the peer, and how it came to be.
    DirectTcp(SocketAddr, Method),
    /// Through a relay.
    Relay {
        /// The relay's name.
        name: MemberName,
        /// How this side uses it.
        by: RelayedBy,
        /// The relay's endpoint.
        endpoint: SocketAddr,
    },
    /// Nothing.
    None,
}

impl PathKind {
    /// What it is, without anybody's address: for logs.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::DirectUdp(_) => "direct over UDP".to_owned(),
            Self::DirectTcp(_, method) => format!("direct over TCP ({})", method.name()),
            Self::Relay { name, by: RelayedBy::Udp, .. } => format!("relay {name} over UDP"),
            Self::Relay { name, by: RelayedBy::Tcp, .. } => format!("relay {name} over TCP"),
            Self::Relay { name, by: RelayedBy::Splice, .. } => {
                format!("relay {name}, spliced over TCP")
            }
            Self::None => "none".to_owned(),
        }
    }
}

/// What a peer is doing, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// Has a path and traffic within the last minutes.
    Active,
    /// Being introduced or punched, nothing carries yet.
    Connecting,
    /// Reachable as far as known, no traffic.
    Idle,
    /// Not connected to the broker.
    Offline,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Name; for a stock WireGuard peer the name from the configuration.
    pub name: MemberName,
    /// Overlay addresses.
    pub addrs: Vec<IpAddr>,
    /// WireGuard key.
    pub wg: WgPublic,
    /// Groups of its certificate.
    pub groups: Vec<GroupName>,
    /// Whether it is a `[[wireguard_peer]]`.
    pub stock: bool,
    /// What carries.
    pub path: PathKind,
    /// How that was opened, where it took more than checks of known addresses.
    pub how: Option<How>,
    /// What it is doing.
    pub activity: Activity,
    /// Smoothed round trip of the carrier.
    pub rtt: Option<Duration>,
    /// Share of the last path probes that went unanswered, 0 to 1.
    pub loss: Option<f64>,
    /// Payload bytes received, decrypted.
    pub rx_bytes: u64,
    /// Payload bytes sent.
    pub tx_bytes: u64,
    /// Since the last completed handshake.
    pub last_handshake: Option<Duration>,
    /// When the broker last saw it, if it is offline.
    pub last_seen: Option<UnixTime>,
    /// In words, where the path is not direct.
    pub why: Option<String>,
    /// In words, why UDP or TCP carries, where the path is direct.
    pub choice: Option<String>,
    /// A direct TCP connection that TCP traffic rides beside a `path` over UDP.
    pub beside: Option<(SocketAddr, Method)>,
    /// When the next try for a better path is due.
    pub next_try: Option<Duration>,
}

/// The connection to a broker.
#[derive(Clone, Debug)]
pub struct BrokerStatus {
    /// Its name, from its certificate; `None` while there is no connection.
    pub name: Option<MemberName>,
    /// Its address, as connected to.
    pub address: Option<SocketAddr>,
    /// Registered and alive.
    pub connected: bool,
    /// The last failure, or what is wrong although it is connected, in words.
    pub problem: Option<String>,
    /// Whether UDP registrations are answered; `None` if not tried yet.
    pub udp: Option<bool>,
    /// The mapped address of the data socket, as the broker sees it.
    pub mapped: Option<SocketAddr>,
    /// Round trip of UDP registrations or pings.
    pub rtt: Option<Duration>,
}

/// What a node has open for its peers, beside the data sockets and the listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holdings {
    /// Attempts at direct ways, over UDP and over TCP.
    pub attempts: usize,
    /// TCP streams, those of strangers and of relays too.
    pub streams: usize,
    /// TCP ports of attempts.
    pub ports: usize,
    /// UDP sockets of searches, and of ways that they found.
    pub sockets: usize,
}

/// What was dropped, and why; each counts packets or messages since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Datagrams of no known kind.
    pub unknown_kind: u64,
    /// Malformed messages of a known kind.
    pub malformed: u64,
    /// Messages that failed authentication, or came from nobody we know.
    pub unauthenticated: u64,
    /// Handshakes over the rate limit.
    pub rate_limited: u64,
    /// Inner packets whose source does not belong to the peer that sent them.
    pub spoofed: u64,
    /// Inner packets that the network marked as congested, but whose transport knows no marks (RFC 6040 4.2).
    pub congested: u64,
    /// Packets from the device without a peer to send them to.
    pub no_route: u64,
    /// Packets that waited too long or too many for a session.
    pub queue_full: u64,
}

/// Everything that `status` shows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The network.
    pub network: NetworkName,
    /// Own name.
    pub name: MemberName,
    /// Own overlay addresses.
    pub addrs: OverlayAddrs,
    /// Own WireGuard key.
    pub wg: WgPublic,
    /// End of the own certificate.
    pub certificate_until: UnixTime,
    /// Own candidates as last told to the broker.
    pub candidates: Vec<Candidate>,
    /// What is known of the NATs in front.
    pub profile: Profile,
    /// Brokers.
    pub brokers: Vec<BrokerStatus>,
    /// In order of name.
    pub peers: Vec<PeerStatus>,
    /// Whom the configuration has a rule for (`[[peer]]`), and nobody of that name was ever heard of.
    pub unknown_peers: Vec<MemberName>,
    /// Version of the revocation list in force.
    pub revocations: u64,
    /// What it does for others, if it is to.
    pub served: Option<Served>,
    /// What was dropped.
    pub counters: Counters,
    /// What opened direct paths, and how often.
    pub methods: Vec<(Means, Count)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_log_names_no_address() {
        let endpoint = "203.0.113.5:4242".parse().unwrap();
        let relay = PathKind::Relay { name: "hub".parse().unwrap(), by: RelayedBy::Tcp, endpoint };
        assert_eq!(relay.kind(), "relay hub over TCP");
        assert_eq!(PathKind::DirectUdp(endpoint).kind(), "direct over UDP");
    }
}
