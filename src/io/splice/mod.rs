//! The kernel as a relay: packets of one TCP connection, or of two UDP endpoints, are readdressed on their way in and leave
//! again at once.
//!
//! [`Splicer`] is told which two connections are one, and whose messages are whose, and puts that into the maps of its
//! table (`rules`); it hands out the SYNs that arrive (which the rules drop, so nothing on this machine answers them) and
//! sends packets that somebody else has made. It decides nothing: who may dial, who belongs to whom and what the answers say comes from above.
//!
//! The table goes when the splicer goes. A process that was killed leaves it behind: the next start replaces it, and
//! [`remove_leftovers`] takes it away. What is in the maps meanwhile keeps connecting the members that it connected.
//!
//! It serves one network device: the one with the address that is listened on, or that leads to the world.

mod elements;
mod filter;
mod route;
mod rules;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use self::elements::Element;
use self::elements::Elements;
use self::elements::octets;
use self::route::Device;
use self::route::Routes;
use self::route::Way;
use self::rules::Rules;
use crate::sys::packet;
use crate::wire::relay::Flow;
use crate::wire::syn::Pair;
use crate::wire::syn::Syn;

/// Packets read from the tap a turn.
const TURN: usize = 256;
/// Bytes of a tapped packet.
const PACKET: usize = 2048;
/// The maps whose elements count.
const COUNTING: [&str; 4] = ["id4", "id6", "ud4", "ud6"];
/// Added to the directions of UDP flows: those of TCP connections are below.
const UDP: u32 = 1 << 31;
/// States of `/proc/net/tcp`: a listener.
const LISTENING: &str = "0A";

/// What a splicer is made with.
#[derive(Clone, Debug)]
pub struct SplicerConfig {
    /// The relay's addresses, unspecified ones included.
    pub listen: Vec<IpAddr>,
    /// TCP ports for sessions.
    pub ports: RangeInclusive<u16>,
    /// The relay's UDP sockets.
    pub doors: Vec<SocketAddr>,
    /// Sessions that there may be.
    pub sessions: usize,
}

/// The kernel backend, running.
#[derive(Debug)]
pub struct Splicer {
    elements: Elements,
    routes: Routes,
    device: Device,
    tap: Socket,
    raw4: Socket,
    raw6: Option<Socket>,
    here: Vec<IpAddr>,
    /// What was carried for those that are released.
    past: Cell<Carried>,
}

/// What the kernel has handed on, as IP packets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Carried {
    /// How many; a train that the kernel handled as one counts once.
    pub packets: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
}

impl std::ops::Add for Carried {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { packets: self.packets + more.packets, bytes: self.bytes + more.bytes }
    }
}

impl Splicer {
    /// Loads the table and begins to listen for SYNs. Needs CAP_NET_ADMIN, CAP_NET_RAW and the `nft` tool.
    ///
    /// # Errors
    /// In words for the owner of the relay, when something of it cannot be had: the relay then copies in user space.
    pub fn start(config: &SplicerConfig) -> io::Result<Self> {
        check_ports(&config.ports)?;
        let routes = Routes::open()?;
        let device = routes.device(&config.listen)?;
        if !rules::is_plain(&device.name) {
            return Err(io::Error::other("the network device's name has characters that nft cannot take"));
        }
        let here = routes.here()?;
        let not_permitted = |e: io::Error| match e.kind() {
            io::ErrorKind::PermissionDenied => io::Error::other(
                "not permitted: run as root, or give the process CAP_NET_ADMIN and CAP_NET_RAW",
            ),
            _ => e,
        };
        let tap = packet::tap(device.index, &filter::program(&config.ports)).map_err(not_permitted)?;
        let raw =
            |domain| Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)));
        let (raw4, raw6) = (raw(Domain::IPV4).map_err(not_permitted)?, raw(Domain::IPV6).ok());
        let elements = Elements::open()?;
        let (name, addresses) = (&device.name, &device.addresses);
        let doors: BTreeSet<u16> = config.doors.iter().map(SocketAddr::port).collect();
        let doors: Vec<u16> = doors.into_iter().collect();
        let sessions = config.sessions;
        let table = Rules { device: name, here: addresses, ports: &config.ports, doors: &doors, sessions };
        rules::load(&table.text())?;
        Ok(Self { elements, routes, device, tap, raw4, raw6, here, past: Cell::default() })
    }

    /// Every address of this machine.
    #[must_use]
    pub fn here(&self) -> &[IpAddr] {
        &self.here
    }

    /// The device's name and its largest packet, bytes.
    #[must_use]
    pub fn device(&self) -> (&str, u16) {
        (&self.device.name, self.device.mtu)
    }

    /// Hands out packets that have arrived: SYNs for the port range, words about packets that were too big. One turn; more
    /// may wait.
    pub fn read(&self, mut on: impl FnMut(&[u8])) {
        let mut buffer = [const { MaybeUninit::uninit() }; PACKET];
        for _ in 0..TURN {
            match rustix::net::recv(&self.tap, &mut buffer, rustix::net::RecvFlags::DONTWAIT) {
                Ok(((packet, _), _)) => on(packet),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Makes one connection of two; `number` is below 2^30 and in use for no other pair.
    ///
    /// # Errors
    /// When a member is reached by another device, or the kernel refuses.
    pub fn splice(&self, number: u32, pair: &Pair) -> io::Result<()> {
        let (to_first, to_second) = (self.way(pair.first.from)?, self.way(pair.second.from)?);
        let mut all = direction(number * 2 + 1, &pair.first, &pair.second, to_second.hop);
        all.extend(direction(number * 2 + 2, &pair.second, &pair.first, to_first.hop));
        self.elements.add(&all)
    }

    /// Carries the messages of two endpoints; `number` is below 2^30 and in use for no other flow.
    ///
    /// # Errors
    /// As [`Self::splice`]; and when the relay's socket would answer the two from different addresses.
    pub fn join(&self, number: u32, flow: &Flow) -> io::Result<()> {
        let (to_first, to_second) = (self.way(flow.first)?, self.way(flow.second)?);
        if flow.at.ip().is_unspecified() && to_first.from != to_second.from {
            return Err(io::Error::other("the members use two addresses of this machine"));
        }
        self.elements.add(&exchange(number, flow, [to_first.hop, to_second.hop]))
    }

    /// Ends what [`Self::join`] began.
    ///
    /// # Errors
    /// When it is not there.
    pub fn part(&self, number: u32, flow: &Flow) -> io::Result<()> {
        self.remove(&exchange(number, flow, [flow.first.ip(), flow.second.ip()]))
    }

    /// What was carried since the start.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn carried(&self) -> io::Result<Carried> {
        COUNTING.iter().try_fold(self.past.get(), |sum, map| Ok(sum + self.elements.count(map, None)?))
    }

    /// Ends what [`Self::splice`] began.
    ///
    /// # Errors
    /// When it is not there.
    pub fn release(&self, number: u32, pair: &Pair) -> io::Result<()> {
        // Where packets went does not matter any more: a key is enough.
        let mut all = direction(number * 2 + 1, &pair.first, &pair.second, pair.second.from.ip());
        all.extend(direction(number * 2 + 2, &pair.second, &pair.first, pair.first.from.ip()));
        self.remove(&all)
    }

    /// Takes elements out, and remembers what they have counted.
    fn remove(&self, all: &[Element]) -> io::Result<()> {
        for element in all.iter().filter(|element| COUNTING.contains(&element.map)) {
            // Without an answer the count is short, and nothing else is wrong.
            let counted = self.elements.count(element.map, Some(&element.key)).unwrap_or_default();
            self.past.set(self.past.get() + counted);
        }
        self.elements.remove(all)
    }

    fn way(&self, to: SocketAddr) -> io::Result<Way> {
        let way = self.routes.way(to.ip())?;
        if way.device == self.device.index {
            Ok(way)
        } else {
            Err(io::Error::other(format!("a member is not reached by {}", self.device.name)))
        }
    }

    /// Sends a whole IP packet.
    ///
    /// # Errors
    /// As sendto(2).
    pub fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
        let socket = if to.is_ipv4() { Some(&self.raw4) } else { self.raw6.as_ref() };
        let socket = socket.ok_or(io::ErrorKind::Unsupported)?;
        socket.send_to(packet, &SocketAddr::new(to, 0).into()).map(|_| ())
    }
}

impl AsFd for Splicer {
    /// Readable when a packet waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

impl Drop for Splicer {
    fn drop(&mut self) {
        if let Err(error) = rules::load(&rules::removal()) {
            tracing::warn!(%error, "the relay's table in nf_tables stays; `down --cleanup` removes it");
        }
    }
}

/// Removes the table of a relay that was killed; whether there was one.
///
/// # Errors
/// When the kernel or the `nft` tool refuses.
pub fn remove_leftovers() -> io::Result<bool> {
    // Without the tool there never was one.
    if !rules::has_tool() || !rules::is_loaded()? {
        return Ok(false);
    }
    rules::load(&rules::removal()).map(|()| true)
}

/// What packets from `own`'s side need to become packets to `other`'s.
fn direction(mark: u32, own: &Syn, other: &Syn, hop: IpAddr) -> Vec<Element> {
    let v4 = own.from.is_ipv4();
    let key = mark.to_ne_bytes().to_vec();
    let name = |v4_name, v6_name| if v4 { v4_name } else { v6_name };
    let element = |map, value: Vec<u8>| Element { map, key: key.clone(), value };
    vec![
        element(name("da4", "da6"), octets(other.from.ip())),
        element(name("nh4", "nh6"), octets(hop)),
        element("dp", other.from.port().to_be_bytes().to_vec()),
        element("sp", other.to.port().to_be_bytes().to_vec()),
        Element {
            map: name("id4", "id6"),
            key: elements::flow(own.from.ip(), own.from.port(), own.to.port()),
            value: key.clone(),
        },
    ]
}

/// What messages of both sides need to become each other's; `hops` to the first and to the second.
fn exchange(number: u32, flow: &Flow, hops: [IpAddr; 2]) -> Vec<Element> {
    let [to_first, to_second] = hops;
    let mut all = message(UDP + number * 2 + 1, flow, flow.first, flow.second, to_second);
    all.extend(message(UDP + number * 2 + 2, flow, flow.second, flow.first, to_first));
    all
}

fn message(mark: u32, flow: &Flow, from: SocketAddr, to: SocketAddr, hop: IpAddr) -> Vec<Element> {
    let v4 = from.is_ipv4();
    let key = mark.to_ne_bytes().to_vec();
    let name = |v4_name, v6_name| if v4 { v4_name } else { v6_name };
    let element = |map, value: Vec<u8>| Element { map, key: key.clone(), value };
    let mut recognised = elements::flow(from.ip(), from.port(), flow.at.port());
    recognised.extend(flow.channel.header());
    vec![
        element(name("da4", "da6"), octets(to.ip())),
        element(name("nh4", "nh6"), octets(hop)),
        element("dp", to.port().to_be_bytes().to_vec()),
        Element { map: name("ud4", "ud6"), key: recognised, value: key.clone() },
    ]
}

/// The rules take every packet to these ports: nothing else may live there.
fn check_ports(ports: &RangeInclusive<u16>) -> io::Result<()> {
    let (low, high) = (ports.start(), ports.end());
    let ephemeral = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = ephemeral.split_whitespace().filter_map(|word| word.parse::<u16>().ok());
    if let (Some(from), Some(to)) = (ends.next(), ends.next())
        && *low <= to
        && from <= *high
    {
        return Err(io::Error::other(format!(
            "ports {low}-{high} overlap those that this machine dials from ({from}-{to}): set relay.splice_ports to others"
        )));
    }
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        if let Some(port) = text.lines().filter_map(listener).find(|port| ports.contains(port)) {
            return Err(io::Error::other(format!(
                "port {port} of {low}-{high} is in use by another program: set relay.splice_ports to others"
            )));
        }
    }
    Ok(())
}

/// The port of a line of `/proc/net/tcp` that is about a listener.
fn listener(line: &str) -> Option<u16> {
    let mut words = line.split_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    (state == LISTENING).then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_count_as_users_of_a_port() {
        let listening =
            "   0: 00000000:17AC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 1 1";
        let open = "   1: 0100007F:17AC 0100007F:D431 01 00000000:00000000 00:00000000 00000000  0 0 1 1";
        assert_eq!(listener(listening), Some(6060));
        assert_eq!(listener(open), None);
        assert_eq!(listener("  sl  local_address rem_address   st tx_queue"), None);
        assert_eq!(listener(""), None);
    }

    #[test]
    fn ports_that_this_machine_dials_from_are_refused() {
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let from: u16 = text.split_whitespace().next().unwrap().parse().unwrap();
        let error = check_ports(&(from..=from)).unwrap_err().to_string();
        assert!(error.contains("overlap"), "{error}");
    }
}
