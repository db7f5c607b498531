//! The way from what was written to what is done: defaults filled in, every value checked.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use ipnetwork::Ipv4Network;
use tracing::Level;

use super::file;
use super::file::ConfigError;
use super::file::Parsed;
use super::proxy::Proxies;
use super::proxy::Proxy;
use super::settings::BROKER_PORT;
use super::settings::Broker;
use super::settings::DEFAULT_CERTIFICATE_TTL;
use super::settings::DEFAULT_CONTROL;
use super::settings::DEFAULT_INVITE_TTL;
use super::settings::DEFAULT_MAX_SESSIONS;
use super::settings::DEFAULT_MTU;
use super::settings::DEFAULT_PREFIX;
use super::settings::DEFAULT_STATE_DIR;
use super::settings::Listen;
use super::settings::MTU_RANGE;
use super::settings::Member;
use super::settings::Network;
use super::settings::Overrides;
use super::settings::ProxyChoice;
use super::settings::RELAY_PORT;
use super::settings::Relay;
use super::settings::SPLICE_PORTS;
use super::settings::STUN_PORT;
use super::settings::Secret;
use super::settings::Settings;
use super::settings::Stun;
use super::settings::WireguardPeer;
use super::units;
use crate::base::addr;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;
use crate::path::Transport;
use crate::wire::enroll::BrokerAddr;

/// Configured candidates leave room for the found ones ([`crate::nat::candidate::MAX_CANDIDATES`]).
const MAX_CONFIGURED_CANDIDATES: usize = 8;
/// An invite names at most 16 brokers, and a member tries them all.
const MAX_BROKERS: usize = 16;
/// Each STUN server costs a packet every 25 s.
const MAX_STUN_SERVERS: usize = 8;
/// Each listen address costs two sockets.
const MAX_LISTEN: usize = 16;
/// Shorter than this and members spend their time renewing.
const CERTIFICATE_TTL_RANGE: (Duration, Duration) =
    (Duration::from_secs(3600), Duration::from_secs(3650 * 86_400));
/// Shorter cannot be typed, longer is a password.
const INVITE_TTL_RANGE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(30 * 86_400));

/// What is outside file and flags.
pub struct Surroundings<'a> {
    /// The machine's own name.
    pub hostname: &'a str,
    /// Reads a file that holds a secret; the error is in words.
    pub read: &'a dyn Fn(&Path) -> Result<String, String>,
}

impl Settings {
    /// Fills in the defaults and checks everything.
    ///
    /// # Errors
    /// The first value that cannot be used, with its place and what to write instead.
    pub fn build(parsed: &Parsed, over: Overrides, around: &Surroundings<'_>) -> Result<Self, ConfigError> {
        let from = Source { parsed };
        let file = &parsed.file;
        let settings = Self {
            state_dir: over.state_dir.unwrap_or_else(|| path(file.state_dir.as_ref(), DEFAULT_STATE_DIR)),
            control: over.control.unwrap_or_else(|| path(file.control.socket.as_ref(), DEFAULT_CONTROL)),
            log: from.log(&file.log)?,
            network: from.network(&file.network, over.network)?,
            member: from.member(&file.member, over.name, over.join, over.hosts_file, around)?,
            peers: from.peers(file.member.udp.unwrap_or(true))?,
            broker: from.broker(&file.broker, over.advertise)?,
            relay: from.relay(&file.relay)?,
            stun: from.stun(&file.stun)?,
            wireguard_peers: from.wireguard_peers(around)?,
        };
        from.peers_are_distinct(&settings)?;
        Ok(settings)
    }
}

/// The file, to find values and their places by name.
struct Source<'a> {
    parsed: &'a Parsed,
}

impl Source<'_> {
    fn log(&self, log: &file::Log) -> Result<Level, ConfigError> {
        let level = log.level.as_deref().unwrap_or("info");
        match level {
            "error" => Ok(Level::ERROR),
            "warn" => Ok(Level::WARN),
            "info" => Ok(Level::INFO),
            "debug" => Ok(Level::DEBUG),
            "trace" => Ok(Level::TRACE),
            _ => Err(self.wrong("log.level", "must be one of error, warn, info, debug, trace")),
        }
    }

    fn network(&self, network: &file::Network, over: Option<NetworkName>) -> Result<Network, ConfigError> {
        let name = match over {
            Some(name) => Some(name),
            None => self.parsed("network.name", network.name.as_ref())?,
        };
        let prefix = network.prefix.as_deref().unwrap_or(DEFAULT_PREFIX);
        let prefix = parse_prefix(prefix).map_err(|problem| self.wrong("network.prefix", &problem))?;
        Ok(Network { name, prefix })
    }

    fn member(
        &self,
        member: &file::Member,
        name: Option<MemberName>,
        join: Option<Secret>,
        hosts_file: bool,
        around: &Surroundings<'_>,
    ) -> Result<Member, ConfigError> {
        let name = match name {
            Some(name) => name,
            None => self
                .parsed("member.name", member.name.as_ref())?
                .unwrap_or_else(|| MemberName::nearest(around.hostname)),
        };
        let mtu = member.mtu.unwrap_or(DEFAULT_MTU);
        if !MTU_RANGE.contains(&mtu) {
            return Err(self.wrong(
                "member.mtu",
                &format!("must be from {} to {}, and this is {mtu}", MTU_RANGE.start(), MTU_RANGE.end()),
            ));
        }
        let udp = member.udp.unwrap_or(true);
        let offload = member.offload.unwrap_or(true);
        Ok(Member {
            name,
            join: join.or_else(|| member.join.as_deref().map(Secret::parse)),
            brokers: self.endpoints("member.brokers", member.brokers.as_deref(), BROKER_PORT, MAX_BROKERS)?,
            interface: self.parsed("member.interface", member.interface.as_ref())?.unwrap_or_default(),
            mtu,
            listen_port: member.listen_port.unwrap_or(0),
            candidates: self.candidates(member.candidates.as_deref().unwrap_or_default())?,
            stun_servers: self.endpoints(
                "member.stun_servers",
                member.stun_servers.as_deref(),
                STUN_PORT,
                MAX_STUN_SERVERS,
            )?,
            port_mapping: member.port_mapping.unwrap_or(true),
            proxy: self.proxy(member.proxy.as_deref(), around)?,
            hosts_file: hosts_file || member.hosts_file.unwrap_or(false),
            relay: member.relay.unwrap_or(true),
            udp,
            transport: self.transport("member.transport", member.transport.as_deref(), udp)?,
            offload,
            udp_offload: member.udp_offload.unwrap_or(offload),
        })
    }

    fn transport(&self, key: &str, text: Option<&str>, udp: bool) -> Result<Transport, ConfigError> {
        match (text, udp) {
            (None | Some("auto"), _) => Ok(Transport::Auto),
            (Some("tcp"), _) => Ok(Transport::Tcp),
            (Some("udp"), true) => Ok(Transport::Udp),
            (Some("udp"), false) => Err(self.wrong(key, "is \"udp\", but `udp` is false")),
            (Some(_), _) => Err(self.wrong(key, "must be \"auto\", \"tcp\" or \"udp\"")),
        }
    }

    fn peers(&self, udp: bool) -> Result<BTreeMap<MemberName, Transport>, ConfigError> {
        let mut peers = BTreeMap::new();
        for (index, peer) in self.parsed.file.peer.iter().enumerate() {
            let key = |name: &str| format!("peer.{index}.{name}");
            let name: Option<MemberName> = self.parsed(&key("name"), peer.name.as_ref())?;
            let (Some(name), Some(transport)) = (name, &peer.transport) else {
                return Err(self.wrong(&format!("peer.{index}"), "needs a `name` and a `transport`"));
            };
            let transport = self.transport(&key("transport"), Some(transport), udp)?;
            if peers.insert(name, transport).is_some() {
                return Err(self.wrong(&key("name"), "stands in another [[peer]] too: keep one"));
            }
        }
        Ok(peers)
    }

    fn proxy(&self, text: Option<&str>, around: &Surroundings<'_>) -> Result<ProxyChoice, ConfigError> {
        const KEY: &str = "member.proxy";
        let text = match (text, text.map(Secret::parse)) {
            (None | Some(""), _) | (_, None) => return Ok(ProxyChoice::Environment),
            (Some("none"), _) => return Ok(ProxyChoice::Written(Proxies::none())),
            (_, Some(Secret::Text(text))) => text,
            (_, Some(Secret::File(path))) => {
                (around.read)(&path).map_err(|problem| self.wrong(KEY, &problem))?.trim().to_owned()
            }
        };
        let proxy: Proxy = text.parse().map_err(|problem: String| self.wrong(KEY, &problem))?;
        Ok(ProxyChoice::Written(Proxies::fixed(proxy)))
    }

    fn candidates(&self, texts: &[String]) -> Result<Vec<SocketAddr>, ConfigError> {
        const KEY: &str = "member.candidates";
        self.at_most(KEY, texts.len(), MAX_CONFIGURED_CANDIDATES)?;
        let parse = |text: &String| {
            let parsed = text.parse().ok().map(addr::canonical).filter(|addr| addr::is_candidate(*addr));
            parsed.ok_or_else(|| {
                self.wrong(KEY, &format!("holds {text:?}, which is not the IP:PORT of a reachable machine"))
            })
        };
        texts.iter().map(parse).collect()
    }

    fn broker(&self, broker: &file::Broker, over: Vec<BrokerAddr>) -> Result<Broker, ConfigError> {
        let advertise = if over.is_empty() {
            self.endpoints("broker.advertise", broker.advertise.as_deref(), BROKER_PORT, MAX_BROKERS)?
        } else {
            over
        };
        Ok(Broker {
            enabled: broker.enabled,
            listen: self.listen("broker.listen", broker.listen.as_deref(), BROKER_PORT)?,
            advertise,
            stun_servers: self.endpoints(
                "broker.stun_servers",
                broker.stun_servers.as_deref(),
                STUN_PORT,
                MAX_STUN_SERVERS,
            )?,
            certificate_ttl: self.ttl(
                "broker.certificate_ttl",
                broker.certificate_ttl.as_deref(),
                DEFAULT_CERTIFICATE_TTL,
                CERTIFICATE_TTL_RANGE,
            )?,
            invite_ttl: self.ttl(
                "broker.invite_ttl",
                broker.invite_ttl.as_deref(),
                DEFAULT_INVITE_TTL,
                INVITE_TTL_RANGE,
            )?,
            forge: broker.forge.unwrap_or(false),
        })
    }

    fn relay(&self, relay: &file::Relay) -> Result<Relay, ConfigError> {
        let max_sessions = relay.max_sessions.unwrap_or(DEFAULT_MAX_SESSIONS);
        if max_sessions == 0 {
            return Err(
                self.wrong("relay.max_sessions", "must be at least 1; `enabled = false` switches it off")
            );
        }
        Ok(Relay {
            enabled: relay.enabled,
            listen: self.listen("relay.listen", relay.listen.as_deref(), RELAY_PORT)?,
            advertise: self.endpoints(
                "relay.advertise",
                relay.advertise.as_deref(),
                RELAY_PORT,
                MAX_BROKERS,
            )?,
            max_sessions,
            bytes_per_second: relay.bytes_per_second.filter(|rate| *rate != 0),
            splice_ports: self.splice_ports(relay.splice_ports.as_deref())?,
            serve: match relay.serve.as_deref() {
                None | Some("none") => false,
                Some("network") => true,
                Some(_) => return Err(self.wrong("relay.serve", "must be \"network\" or \"none\"")),
            },
            brokers: self.endpoints("relay.brokers", relay.brokers.as_deref(), BROKER_PORT, MAX_BROKERS)?,
        })
    }

    fn splice_ports(&self, text: Option<&str>) -> Result<Option<RangeInclusive<u16>>, ConfigError> {
        let Some(text) = text else { return Ok(Some(SPLICE_PORTS)) };
        if text == "none" {
            return Ok(None);
        }
        let ends = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
        match ends {
            Some((low, high)) if 1024 <= low && low < high => Ok(Some(low..=high)),
            _ => Err(self.wrong("relay.splice_ports", "must be \"LOW-HIGH\", 1024 or above, or \"none\"")),
        }
    }

    fn stun(&self, stun: &file::Stun) -> Result<Stun, ConfigError> {
        let listen = self.listen("stun.listen", stun.listen.as_deref(), STUN_PORT)?;
        let port = listen.first().map_or(STUN_PORT, |at| at.addr.port());
        if listen.iter().any(|at| at.addr.port() != port) {
            return Err(self.wrong("stun.listen", "must hold the same port with every address"));
        }
        for family in [SocketAddr::is_ipv4, SocketAddr::is_ipv6] {
            let ours: Vec<&Listen> = listen.iter().filter(|at| family(&at.addr)).collect();
            if ours.len() > 1 && ours.iter().any(|at| at.addr.ip().is_unspecified()) {
                return Err(self.wrong(
                    "stun.listen",
                    "holds every address of the machine and one of them: name those that others can reach",
                ));
            }
        }
        let advertise = stun.advertise.as_deref().unwrap_or_default();
        if !advertise.is_empty() && advertise.len() != listen.len() {
            return Err(
                self.wrong("stun.advertise", "must name one address for each in `listen`, in the same order")
            );
        }
        let parse = |text: &String| {
            let problem =
                |_| self.wrong("stun.advertise", &format!("holds {text:?}, which is no IP address"));
            text.parse::<IpAddr>().map_err(problem)
        };
        let advertise: Vec<IpAddr> = advertise.iter().map(parse).collect::<Result<_, _>>()?;
        if listen.iter().zip(&advertise).any(|(at, seen)| at.addr.is_ipv4() != seen.is_ipv4()) {
            return Err(self.wrong("stun.advertise", "must name addresses of the same family as `listen`"));
        }
        // As written, or the ports behind the first one; 0 is none.
        let other = |written: Option<u16>, step: u16| {
            written.or_else(|| port.checked_add(step).filter(|_| port != 0)).filter(|other| *other != 0)
        };
        let (alternate_port, silent_port) = (other(stun.alternate_port, 1), other(stun.silent_port, 2));
        if alternate_port == Some(port)
            || silent_port == Some(port)
            || (silent_port.is_some() && alternate_port == silent_port)
        {
            let key = if alternate_port == Some(port) { "stun.alternate_port" } else { "stun.silent_port" };
            return Err(self.wrong(key, "must be another port; 0 is none"));
        }
        Ok(Stun { enabled: stun.enabled, listen, advertise, alternate_port, silent_port })
    }

    fn wireguard_peers(&self, around: &Surroundings<'_>) -> Result<Vec<WireguardPeer>, ConfigError> {
        let peers = self.parsed.file.wireguard_peer.iter().enumerate();
        peers.map(|(index, peer)| self.wireguard_peer(index, peer, around)).collect()
    }

    fn wireguard_peer(
        &self,
        index: usize,
        peer: &file::WireguardPeer,
        around: &Surroundings<'_>,
    ) -> Result<WireguardPeer, ConfigError> {
        let key = |name: &str| format!("wireguard_peer.{index}.{name}");
        let name = self.parsed(&key("name"), peer.name.as_ref())?;
        let public_key = self.parsed(&key("public_key"), peer.public_key.as_ref())?;
        let (Some(name), Some(public_key)) = (name, public_key) else {
            return Err(self.wrong(&format!("wireguard_peer.{index}"), "needs a `name` and a `public_key`"));
        };
        let addresses = peer.addresses.iter().flatten();
        let addresses: Vec<IpNetwork> = addresses
            .map(|text| parse_network(text).map_err(|problem| self.wrong(&key("addresses"), &problem)))
            .collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(self.wrong(
                &format!("wireguard_peer.{index}"),
                "needs `addresses`: at least one overlay address, like [\"10.77.255.1\"]",
            ));
        }
        let endpoint = match &peer.endpoint {
            None => None,
            Some(text) => {
                let addr =
                    text.parse().ok().map(addr::canonical).filter(|addr: &SocketAddr| addr.port() != 0);
                Some(addr.ok_or_else(|| {
                    self.wrong(&key("endpoint"), "must be IP:PORT; names are not looked up")
                })?)
            }
        };
        let preshared_key = match (&peer.preshared_key, &peer.preshared_key_file) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                return Err(
                    self.wrong(&key("preshared_key"), "and `preshared_key_file` are both there: keep one")
                );
            }
            (Some(text), None) => Some(self.preshared_key(&key("preshared_key"), text)?),
            (None, Some(path)) => {
                let key = key("preshared_key_file");
                let text = (around.read)(Path::new(path)).map_err(|problem| self.wrong(&key, &problem))?;
                Some(self.preshared_key(&key, text.trim())?)
            }
        };
        Ok(WireguardPeer {
            name,
            public_key,
            addresses,
            endpoint,
            preshared_key,
            persistent_keepalive: peer.persistent_keepalive.filter(|secs| *secs != 0),
        })
    }

    fn preshared_key(&self, key: &str, text: &str) -> Result<[u8; 32], ConfigError> {
        // The same 44 characters of base64 as a public key. The text itself must not get into an error message.
        let parsed =
            text.parse::<WgPublic>().map_err(|_| self.wrong(key, "must hold what `wg genpsk` prints"))?;
        Ok(parsed.0)
    }

    fn peers_are_distinct(&self, settings: &Settings) -> Result<(), ConfigError> {
        for (index, peer) in self.parsed.file.peer.iter().enumerate() {
            let named = |name: &MemberName| peer.name.as_deref() == Some(name.as_str());
            let problem = match settings.wireguard_peers.iter().any(|peer| named(&peer.name)) {
                true => "is a [[wireguard_peer]]: those are reached over UDP",
                false if named(&settings.member.name) => "is this machine: name another member",
                false => continue,
            };
            return Err(self.wrong(&format!("peer.{index}.name"), problem));
        }
        let peers = &settings.wireguard_peers;
        for (index, peer) in peers.iter().enumerate() {
            let before = peers.get(..index).unwrap_or_default();
            let key = |name: &str| format!("wireguard_peer.{index}.{name}");
            if peer.name == settings.member.name || before.iter().any(|other| other.name == peer.name) {
                return Err(
                    self.wrong(&key("name"), &format!("is taken: there is another \"{}\"", peer.name))
                );
            }
            if let Some(twin) = before.iter().find(|other| other.public_key == peer.public_key) {
                return Err(self.wrong(&key("public_key"), &format!("is also that of \"{}\"", twin.name)));
            }
            let clash = before
                .iter()
                .find(|other| other.addresses.iter().any(|address| peer.addresses.contains(address)));
            if let Some(other) = clash {
                return Err(self.wrong(&key("addresses"), &format!("holds an address of \"{}\"", other.name)));
            }
        }
        Ok(())
    }

    /// Reads a value by its type's own rules.
    fn parsed<T>(&self, key: &str, text: Option<&String>) -> Result<Option<T>, ConfigError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let parse = |text: &String| {
            text.parse().map_err(|error: T::Err| self.wrong(key, &format!("cannot be {text:?}: {error}")))
        };
        text.map(parse).transpose()
    }

    fn endpoints(
        &self,
        key: &str,
        texts: Option<&[String]>,
        default_port: u16,
        most: usize,
    ) -> Result<Vec<BrokerAddr>, ConfigError> {
        let texts = texts.unwrap_or_default();
        self.at_most(key, texts.len(), most)?;
        let parse = |text: &String| {
            units::parse_endpoint(text, default_port)
                .map_err(|problem| self.wrong(key, &format!("holds {problem}")))
        };
        texts.iter().map(parse).collect()
    }

    fn listen(&self, key: &str, texts: Option<&[String]>, port: u16) -> Result<Vec<Listen>, ConfigError> {
        let everywhere = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        let addrs: Vec<SocketAddr> = match texts {
            None => everywhere.map(|ip| SocketAddr::new(ip, port)).into(),
            Some([]) => return Err(self.wrong(key, "must hold at least one address")),
            Some(texts) => {
                self.at_most(key, texts.len(), MAX_LISTEN)?;
                let parse = |text: &String| {
                    text.parse().map_err(|_| {
                        let problem =
                            format!("holds {text:?}, which is not IP:PORT: write it like \"0.0.0.0:{port}\" or \"[::]:{port}\"");
                        self.wrong(key, &problem)
                    })
                };
                texts.iter().map(parse).collect::<Result<_, _>>()?
            }
        };
        let any_v6 = |addr: SocketAddr| addr.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let alone = addrs.iter().all(|addr| any_v6(*addr));
        Ok(addrs.iter().map(|addr| Listen { addr: *addr, optional: any_v6(*addr) && !alone }).collect())
    }

    fn ttl(
        &self,
        key: &str,
        text: Option<&str>,
        default: Duration,
        (least, most): (Duration, Duration),
    ) -> Result<Duration, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let ttl = units::parse_duration(text)
            .map_err(|problem| self.wrong(key, &format!("is wrong: {problem}")))?;
        if ttl < least || ttl > most {
            let (least, most) = (units::duration_text(least), units::duration_text(most));
            return Err(self.wrong(key, &format!("must be from {least} to {most}")));
        }
        Ok(ttl)
    }

    fn at_most(&self, key: &str, count: usize, most: usize) -> Result<(), ConfigError> {
        if count > most {
            return Err(self.wrong(key, &format!("holds {count} entries; {most} are the most")));
        }
        Ok(())
    }

    /// The key and what is wrong with it, at the place of the key.
    fn wrong(&self, key: &str, problem: &str) -> ConfigError {
        let shown = match key.rsplit_once('.') {
            Some((section @ ("peer" | "wireguard_peer"), _)) => format!("[[{section}]]"),
            Some((_, last)) => format!("`{last}`"),
            None => format!("`{key}`"),
        };
        ConfigError { place: self.parsed.places.get(key).copied(), problem: format!("{shown} {problem}") }
    }
}

/// A prefix that a network may be built on: private, canonical, with room.
///
/// # Errors
/// In words, what a prefix looks like.
pub fn parse_prefix(text: &str) -> Result<Ipv4Network, String> {
    let wrong = |why: &str| format!("cannot be {text:?}: {why}");
    let network: Ipv4Network = text
        .contains('/')
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| wrong("write it like \"10.77.0.0/16\""))?;
    if network.ip() != network.network() {
        return Err(wrong(&format!("write \"{}/{}\"", network.network(), network.prefix())));
    }
    if !(8..=29).contains(&network.prefix()) {
        return Err(wrong("its length must be from /8 to /29"));
    }
    let private = [network.network(), network.broadcast()].map(|ip| addr::is_private(ip.into()));
    if private != [true, true] {
        return Err(wrong("choose one in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"));
    }
    Ok(network)
}

fn parse_network(text: &str) -> Result<IpNetwork, String> {
    let network: IpNetwork = text.parse().map_err(|_| {
        format!(
            "holds {text:?}, which is not an address: write it like \"10.77.255.1\" or \"192.168.7.0/24\""
        )
    })?;
    if network.ip() != network.network() {
        return Err(format!("holds {text:?}: write \"{}/{}\"", network.network(), network.prefix()));
    }
    Ok(network)
}

fn path(text: Option<&String>, default: &str) -> PathBuf {
    text.map_or_else(|| PathBuf::from(default), PathBuf::from)
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
