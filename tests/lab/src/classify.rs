//! What a NAT does, found out with plain sockets by somebody inside and somebody outside, for UDP and for TCP.
//!
//! This knows sockets and nothing else: neither how the lab's NATs are made nor anything of the product. The outside
//! somebody has three addresses: one to be dialled on two ports, a second one to be dialled, and a stranger's.

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;
use serde_json::Value;

use crate::interrupt;
use crate::ns::Namespace;
use crate::probe;
use crate::topology::Host;

/// How long an answer may take before it counts as none; many times any round trip over plain links.
const PATIENCE: Duration = Duration::from_millis(600);

/// The inner port that is examined; TCP's and UDP's are different things.
const INNER: u16 = 41_000;

/// Two ports that are dialled.
const DIALLED: [u16; 2] = [3478, 3479];

/// A port that packets come from although nobody dialled it.
const OTHER: u16 = 3490;

/// Ports where SYNs are noted and dropped, so that the inner socket stays half open.
const SILENT: [u16; 2] = [3500, 3501];

/// An outer port that no mapping has: below everything that NATs give out, and nobody's service.
const UNMAPPED: u16 = 777;

/// What an outer port depends on, besides the inner endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depends {
    /// Nothing.
    Nothing,
    /// The destination's address.
    Address,
    /// The destination's address and port.
    AddressAndPort,
    /// The session; cannot be told from the destination's address and port for UDP.
    Session,
}

/// What becomes of a packet from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It arrives.
    Passes,
    /// Nothing.
    Silence,
    /// Its sender gets a RST.
    Reset,
    /// Its sender gets the ICMP error "port unreachable".
    Unreachable,
    /// Its sender gets another ICMP error, such as "communication administratively prohibited".
    Prohibited,
}

/// What was seen of one inner port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The outer endpoints towards: a first server, another port of it, another address of it; in this order.
    pub mapped: [SocketAddrV4; 3],
    /// For TCP: the outer endpoint of a second connection to the first server's other port, after the first had ended.
    pub again: Option<SocketAddrV4>,
    /// A packet to the first mapping from a port of the first server that was never written to.
    pub from_other_port: Fate,
    /// A packet to the first mapping from an address that was never written to.
    pub from_stranger: Fate,
    /// For TCP: a SYN to a half open mapping from where its own SYN went.
    pub from_dialled: Option<Fate>,
    /// For TCP: the same after the inner socket has given up dialling and the port only listens; what passes is a
    /// connection, so the answer got out.
    pub reversed: Option<Fate>,
    /// A packet to a port that has no mapping.
    pub unmapped: Fate,
}

/// What a NAT is like: what was seen, without the addresses that happened to be in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Character {
    /// What an outer port depends on.
    pub depends: Depends,
    /// Whether the first outer port is the inner one.
    pub keeps_port: bool,
    /// How far the next port is from the last one, if ports differ and that is near.
    pub step: Option<u16>,
    /// See [`Seen::from_other_port`].
    pub from_other_port: Fate,
    /// See [`Seen::from_stranger`].
    pub from_stranger: Fate,
    /// See [`Seen::from_dialled`].
    pub from_dialled: Option<Fate>,
    /// See [`Seen::reversed`].
    pub reversed: Option<Fate>,
    /// See [`Seen::unmapped`].
    pub unmapped: Fate,
}

impl Seen {
    /// What it tells about the NAT.
    pub fn character(&self) -> Character {
        /// A distance beyond this is taken for chance.
        const NEAR: u16 = 8;
        let [first, other_port, other_address] = self.mapped;
        let step = other_address.port().checked_sub(other_port.port());
        Character {
            depends: if self.again.is_some_and(|again| again != other_port) {
                Depends::Session
            } else if first == other_port && other_port == other_address {
                Depends::Nothing
            } else if first == other_port {
                Depends::Address
            } else {
                Depends::AddressAndPort
            },
            keeps_port: first.port() == INNER,
            step: step.filter(|step| (1..=NEAR).contains(step)),
            from_other_port: self.from_other_port,
            from_stranger: self.from_stranger,
            from_dialled: self.from_dialled,
            reversed: self.reversed,
            unmapped: self.unmapped,
        }
    }
}

/// A public host from which NATs are looked at.
#[derive(Debug)]
pub struct Vantage {
    ns: Namespace,
    addresses: [Ipv4Addr; 2],
    stranger: Ipv4Addr,
}

impl Vantage {
    /// Gives a public host what it needs: two more addresses, and a filter that notes and counts.
    pub fn new(host: &Host) -> Result<Self> {
        let addresses = [host.v4, host.more_address(9)?];
        let stranger = host.more_address(10)?;
        host.ns.nft(&format!(
            "table inet watch {{
  set dialled {{ type inet_service . ipv4_addr . inet_service; }}
  counter unreachable {{ }}
  chain input {{
    type filter hook input priority -200;
    icmp type destination-unreachable counter name unreachable
    tcp dport {{ {}, {} }} tcp flags & (syn | ack) == syn add @dialled {{ tcp dport . ip saddr . tcp sport }} drop
  }}
}}
",
            SILENT[0], SILENT[1]
        ))?;
        Ok(Self { ns: host.ns.clone(), addresses, stranger })
    }

    /// Its two addresses that may be dialled, as a STUN server has them.
    pub fn addresses(&self) -> [Ipv4Addr; 2] {
        self.addresses
    }

    /// Examines what the NAT in front of `inner` does with UDP.
    pub fn udp(&self, inner: &Host) -> Result<Seen> {
        let [first, second] = self.addresses;
        let on = |address, port| probe::socket(&self.ns, SocketAddrV4::new(address, port).into());
        let servers = [on(first, DIALLED[0])?, on(first, DIALLED[1])?, on(second, DIALLED[0])?];
        let client = probe::socket(&inner.ns, SocketAddrV4::new(inner.v4, INNER).into())?;
        let map = |server: &UdpSocket| probe::mapped(&client, server).and_then(v4);
        let mapped = [map(&servers[0])?, map(&servers[1])?, map(&servers[2])?];
        let fate = |from: UdpSocket, to: SocketAddrV4| -> Result<Fate> {
            from.connect(to)?;
            from.send(b"let me in")?;
            if arrives(&client, from.local_addr()?) {
                return Ok(Fate::Passes);
            }
            Ok(match from.recv(&mut [0; 64]).map_err(|error| error.kind()) {
                Err(io::ErrorKind::ConnectionRefused) => Fate::Unreachable,
                Err(io::ErrorKind::HostUnreachable) => Fate::Prohibited,
                _ => Fate::Silence,
            })
        };
        let [home, ..] = mapped;
        let unmapped = SocketAddrV4::new(*home.ip(), UNMAPPED);
        Ok(Seen {
            mapped,
            again: None,
            from_stranger: fate(on(self.stranger, OTHER)?, home)?,
            from_other_port: fate(on(first, OTHER)?, home)?,
            from_dialled: None,
            reversed: None,
            unmapped: fate(on(self.stranger, OTHER + 1)?, unmapped)?,
        })
    }

    /// Examines what the NAT in front of `inner` does with TCP.
    pub fn tcp(&self, inner: &Host) -> Result<Seen> {
        let [first, second] = self.addresses;
        let on = |address, port| listen(&self.ns, SocketAddrV4::new(address, port));
        let servers = [on(first, DIALLED[0])?, on(first, DIALLED[1])?, on(second, DIALLED[0])?];
        let home = SocketAddrV4::new(inner.v4, INNER);
        let _listening = listen(&inner.ns, home)?;
        let map = |server: &TcpListener| -> Result<(TcpStream, SocketAddrV4)> {
            let to = v4(server.local_addr()?)?;
            let stream = dial(&inner.ns, home, to).with_context(|| format!("dialling {to} from inside"))?;
            let stream = stream.with_context(|| format!("{to} does not answer"))?;
            Ok((stream, v4(server.accept()?.1)?))
        };
        let (_kept, to_first) = map(&servers[0])?;
        let (ended, to_other_port) = map(&servers[1])?;
        let (_kept_too, to_other_address) = map(&servers[2])?;
        hang_up(&ended)?; // with a RST, so that the router forgets the session at once
        let (_, again) = map(&servers[1])?;
        let unmapped = SocketAddrV4::new(*to_first.ip(), UNMAPPED);
        // What connects stays until the end: a RST from outside may end the mapping for all.
        let (from_stranger, _connected) = self.syn(self.stranger, OTHER, to_first)?;
        let (from_other_port, _connected_too) = self.syn(first, OTHER, to_first)?;
        let (from_dialled, _crossed) = self.crossing(inner, true)?;
        let (reversed, _reversed) = self.crossing(inner, false)?;
        let (unmapped, _) = self.syn(self.stranger, OTHER + 1, unmapped)?;
        Ok(Seen {
            mapped: [to_first, to_other_port, to_other_address],
            again: Some(again),
            from_stranger,
            from_other_port,
            from_dialled: Some(from_dialled),
            reversed: Some(reversed),
            unmapped,
        })
    }

    /// What becomes of a SYN to a mapping whose own SYN went where this one comes from, while the inner socket still dials
    /// or after it has given up.
    fn crossing(&self, inner: &Host, dialling: bool) -> Result<(Fate, Option<TcpStream>)> {
        let [first, _] = self.addresses;
        let silent = if dialling { SILENT[0] } else { SILENT[1] };
        let half_open =
            begin_dialling(&inner.ns, SocketAddrV4::new(inner.v4, INNER), SocketAddrV4::new(first, silent))?;
        let to = interrupt::wait_for("a SYN out of the NAT", PATIENCE * 5, || self.dialled(silent))?;
        if !dialling {
            hang_up(&half_open)?;
        }
        self.syn(first, silent, to)
    }

    /// From where a silent port has been dialled, as `nft` lists it.
    fn dialled(&self, silent: u16) -> Result<Option<SocketAddrV4>> {
        let listed: Value =
            serde_json::from_str(&self.ns.run(&["nft", "-j", "list", "set", "inet", "watch", "dialled"])?)?;
        let elements =
            listed.pointer("/nftables/1/set/elem").and_then(Value::as_array).cloned().unwrap_or_default();
        let concats = elements.iter().filter_map(|element| element.get("concat")?.as_array().cloned());
        let mut parts = concats.filter_map(|concat| match concat.as_slice() {
            [port, address, source] => {
                Some((port.as_u64()?, address.as_str()?.parse().ok()?, source.as_u64()?))
            }
            _ => None,
        });
        let found = parts.find(|(port, ..)| *port == u64::from(silent));
        found.map(|(_, address, source)| Ok(SocketAddrV4::new(address, source.try_into()?))).transpose()
    }

    /// What becomes of a SYN from one of the outside addresses, and the connection if it becomes one.
    fn syn(&self, from: Ipv4Addr, port: u16, to: SocketAddrV4) -> Result<(Fate, Option<TcpStream>)> {
        let before = self.unreachable()?;
        let fate = match dial(&self.ns, SocketAddrV4::new(from, port), to) {
            Ok(Some(stream)) => return Ok((Fate::Passes, Some(stream))),
            Ok(None) => Fate::Silence,
            Err(error) if error.kind() == io::ErrorKind::HostUnreachable => Fate::Prohibited,
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
                return Err(error).with_context(|| format!("dialling {to} from outside"));
            }
            Err(_) if self.unreachable()? > before => Fate::Unreachable,
            Err(_) => Fate::Reset,
        };
        Ok((fate, None))
    }

    /// How many ICMP errors have come: `connect` reports them as it does a RST.
    fn unreachable(&self) -> Result<u64> {
        let said = self.ns.run(&["nft", "-j", "list", "counter", "inet", "watch", "unreachable"])?;
        let listed: Value = serde_json::from_str(&said)?;
        listed.pointer("/nftables/1/counter/packets").and_then(Value::as_u64).context("nft lists no counter")
    }
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(v4) => Ok(v4),
        SocketAddr::V6(_) => anyhow::bail!("{address} is not IPv4"),
    }
}

/// Whether a datagram from `source` comes.
fn arrives(socket: &UdpSocket, source: SocketAddr) -> bool {
    matches!(socket.recv_from(&mut [0; 64]), Ok((_, from)) if from == source)
}

/// A TCP socket whose port others on the same machine may share.
fn shared(ns: &Namespace, at: SocketAddrV4) -> io::Result<OwnedFd> {
    // Without CLOEXEC, commands that the lab starts meanwhile would hold the connection open.
    let open =
        || rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = ns.inside(open);
    let socket = socket.map_err(io::Error::other)??;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &at)?;
    Ok(socket)
}

fn listen(ns: &Namespace, at: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = shared(ns, at)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket.into())
}

/// A socket that has sent a SYN and waits.
fn begin_dialling(ns: &Namespace, from: SocketAddrV4, to: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = shared(ns, from)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Ends a connection or an attempt at once, though a command that another thread is starting may still share the socket:
/// a connection with a RST, an attempt in silence.
fn hang_up(socket: &impl AsFd) -> io::Result<()> {
    Ok(rustix::net::connect_unspec(socket)?)
}

/// A connection that ends with a RST; `None` if there is no answer.
fn dial(ns: &Namespace, from: SocketAddrV4, to: SocketAddrV4) -> io::Result<Option<TcpStream>> {
    let socket = shared(ns, from)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    // This bounds connect() too: socket(7).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) => Ok(Some(socket.into())),
        Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
