//! From what a node says to what is printed: apart from each other, because scripts depend on the latter.

use std::time::Duration;

use crate::control::api::Broker;
use crate::control::api::Candidate;
use crate::control::api::Dropped;
use crate::control::api::Kind;
use crate::control::api::Nat;
use crate::control::api::Path;
use crate::control::api::Peer;
use crate::control::api::Pong;
use crate::control::api::RelayDelay;
use crate::control::api::RelayRole;
use crate::control::api::State;
use crate::control::api::Status;
use crate::control::api::Treatment;
use crate::control::api::Tried;
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
