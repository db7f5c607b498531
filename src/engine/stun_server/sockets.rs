//! The sockets of the STUN role: UDP and TCP on two ports of each address, and a port that says nothing.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use anyhow::ensure;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use super::Places;
use crate::base::grid::Grid;
use crate::base::grid::Home;
use crate::engine::responder;
use crate::stun::discovery_server::Reply;
use crate::sys::option;
use crate::sys::pktinfo;

/// How often a port that the kernel chose for one address is tried at the others.
const PORT_TRIES: usize = 16;

/// What was opened.
pub(super) struct Sockets {
    pub(super) grid: Grid,
    pub(super) udp: Vec<(SocketAddr, UdpSocket)>,
    pub(super) tcp: Vec<TcpListener>,
    /// Nobody reads them; they must stay open.
    pub(super) silent: Vec<Socket>,
}

/// UDP sockets by the endpoint that they are bound to.
#[derive(Debug)]
pub(super) struct Outlets(Vec<(SocketAddr, UdpSocket)>);

impl Outlets {
    /// Sends an answer from the endpoint that it names.
    pub(super) fn send(&self, reply: &Reply) {
        let exact = self.0.iter().find(|(bound, _)| *bound == reply.from);
        let open = |(bound, _): &&(SocketAddr, UdpSocket)| {
            bound.ip().is_unspecified()
                && bound.is_ipv4() == reply.from.is_ipv4()
                && bound.port() == reply.from.port()
        };
        if let Some((_, socket)) = exact.or_else(|| self.0.iter().find(open)) {
            // A full send queue drops the answer; whoever asked asks again.
            let _ = pktinfo::send(socket.as_fd(), &reply.bytes, reply.to, Some(reply.from.ip()));
        }
    }
}

impl Sockets {
    /// Opens everything. The alternate and the silent port are left out, with a word, where they cannot be had.
    ///
    /// # Errors
    /// Which address cannot be listened on, and what to do about it.
    pub(super) fn open(places: &Places) -> anyhow::Result<Self> {
        let first = places.listen.first().context("the STUN server has no address to listen on")?;
        let port = first.port();
        ensure!(
            places.listen.iter().all(|at| at.port() == port),
            "the STUN server needs the same port on every address: see `listen` in [stun]"
        );
        let ips: Vec<IpAddr> = places.listen.iter().map(SocketAddr::ip).collect();
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        let mut answer_on = |port: u16| -> anyhow::Result<u16> {
            let (opened, port) = on_every(&ips, port, |at| Ok(responder::open_pair(at, true)?))?;
            for (listener, socket) in opened {
                option::save_syn(&listener)?;
                udp.push((socket.local_addr()?, socket));
                tcp.push(listener);
            }
            Ok(port)
        };
        let port = answer_on(port).context("the STUN server cannot start: see `listen` in [stun]")?;
        let alternate = places.alternate.and_then(|port| {
            answer_on(port)
                .inspect_err(|error| {
                    tracing::warn!(%error, "the STUN server does without its alternate port, and so without most tests; see `alternate_port` in [stun]");
                })
                .ok()
        });
        let silent = places.silent.and_then(|port| {
            on_every(&ips, port, |at| Ok(listen_in_silence(at)?))
                .inspect_err(|error| {
                    tracing::warn!(%error, "the STUN server does without its silent port, and so without some tests for TCP; see `silent_port` in [stun]");
                })
                .ok()
        });
        let (silent, silent_port) =
            silent.map_or((Vec::new(), None), |(sockets, port)| (sockets, Some(port)));
        let seen = |(n, bound): (usize, &IpAddr)| places.advertise.get(n).copied().unwrap_or(*bound);
        let homes = ips.iter().enumerate().map(|(n, bound)| Home { bound: *bound, seen: seen((n, bound)) });
        let grid = Grid::new(homes.collect(), port, alternate, silent_port);
        Ok(Self { grid, udp, tcp, silent })
    }

    /// Second handles to the UDP sockets, to answer from another one than was asked.
    pub(super) fn outlets(&self) -> io::Result<Outlets> {
        let clone = |(bound, socket): &(SocketAddr, UdpSocket)| Ok((*bound, socket.try_clone()?));
        self.udp.iter().map(clone).collect::<io::Result<_>>().map(Outlets)
    }
}

/// Opens the same port on every address; port 0 is one that is free on all of them.
fn on_every<T>(
    ips: &[IpAddr],
    port: u16,
    open: impl Fn(SocketAddr) -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<T>, u16)>
where
    T: Bound,
{
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let mut opened: Vec<T> = Vec::new();
        let mut chosen = port;
        let all: anyhow::Result<()> = ips.iter().try_for_each(|ip| {
            let one = open(SocketAddr::new(*ip, chosen))?;
            chosen = one.port()?;
            opened.push(one);
            Ok(())
        });
        match all {
            Ok(()) => return Ok((opened, chosen)),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

/// Something with a port.
trait Bound {
    fn port(&self) -> io::Result<u16>;
}

impl Bound for (TcpListener, UdpSocket) {
    fn port(&self) -> io::Result<u16> {
        Ok(self.0.local_addr()?.port())
    }
}

impl Bound for Socket {
    fn port(&self) -> io::Result<u16> {
        Ok(self.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?.port())
    }
}

/// A listener that answers nothing, neither with SYN-ACK nor with RST: its filter drops whatever comes. Some kernels want
/// CAP_NET_ADMIN for a filter; 6.18 does.
fn listen_in_silence(at: SocketAddr) -> io::Result<Socket> {
    let socket = sharing(at)?;
    socket.attach_filter(&[filter::DROP])?;
    socket.listen(1)?;
    Ok(socket)
}

/// A TCP socket bound to `at`, beside a listener there, which ignores SYNs: connections that it opens answer a crossing SYN
/// of the other side with silence, so that only an answer to its own SYN counts. That matters at the silent port, and where
/// there is one, filters are allowed.
pub(super) fn dialler(at: SocketAddr) -> io::Result<Socket> {
    let socket = sharing(at)?;
    let _ = socket.attach_filter(&filter::NO_BARE_SYN);
    Ok(socket)
}

fn sharing(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// Classic BPF (the kernel's Documentation/networking/filter.rst): code, jump if true, jump if false, operand.
pub(super) mod filter {
    use socket2::SockFilter;

    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_HALF_INDEXED: u16 = 0x48;
    const INDEX_BY_IP_HEADER: u16 = 0xb1;
    const AND: u16 = 0x54;
    const IF_EQUAL: u16 = 0x15;
    const IF_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;

    /// Nothing passes.
    pub(in super::super) const DROP: SockFilter = SockFilter::new(RETURN, 0, 0, 0);
    const PASS: SockFilter = SockFilter::new(RETURN, 0, 0, u32::MAX);

    /// On a TCP socket, where the data begins with the TCP header: everything passes but SYN without ACK.
    pub(in super::super) const NO_BARE_SYN: [SockFilter; 5] = [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(IF_EQUAL, 0, 1, 0x02),
        DROP,
        PASS,
    ];

    /// On a packet socket, where the data begins with the IPv4 header: unfragmented TCP to `port` passes.
    pub(in super::super) fn tcp_to(port: u16) -> [SockFilter; 9] {
        [
            SockFilter::new(LOAD_BYTE, 0, 0, 9),
            SockFilter::new(IF_EQUAL, 0, 6, 6),
            SockFilter::new(LOAD_HALF, 0, 0, 6),
            SockFilter::new(IF_ANY_BIT, 4, 0, 0x3fff), // more fragments, or an offset
            SockFilter::new(INDEX_BY_IP_HEADER, 0, 0, 0),
            SockFilter::new(LOAD_HALF_INDEXED, 0, 0, 2),
            SockFilter::new(IF_EQUAL, 0, 1, port as u32),
            PASS,
            DROP,
        ]
    }
}
