//! UDP sockets that only answer: one thread each, every answer from the address at which the question arrived.

use std::io;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use socket2::Domain;
use socket2::Protocol;
use socket2::SockAddr;
use socket2::Socket;
use socket2::Type;

use crate::base::addr::canonical;
use crate::sys::option;
use crate::sys::pktinfo;

/// Largest datagram that is looked at: one with the 1500 bytes of PADDING that RFC 5780 7.6 is for. What is longer is cut, and
/// then no message of ours.
const MAX_DATAGRAM: usize = 2048;
/// Datagrams taken between two looks at the stop signal.
const BATCH: usize = 256;
/// Connections that wait to be accepted, per address.
const BACKLOG: i32 = 256;
/// How many ports are tried when the kernel chooses one that must be free for TCP and UDP both.
const PORT_TRIES: usize = 16;

/// Ends the threads that watch it, all at once and for ever.
#[derive(Clone, Debug)]
pub struct Stop(Arc<OwnedFd>);

impl AsFd for Stop {
    /// Readable from the signal on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stop {
    /// Not yet.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

    /// Now.
    pub fn signal(&self) {
        // It fails only when the counter overflows, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// Serves `socket` on a thread of its own until `stop`: `answer` gets a datagram, its source and the address that it was
/// sent to, and gives what goes back.
///
/// # Errors
/// If the socket or the thread cannot be had.
pub fn spawn(
    name: &str,
    socket: UdpSocket,
    stop: Stop,
    mut answer: impl FnMut(&[u8], SocketAddr, SocketAddr) -> Option<Vec<u8>> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let bound = canonical(socket.local_addr()?);
    option::receive_pktinfo(&socket, bound.is_ipv6())?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = serve(&socket, bound, &stop, &mut answer) {
            tracing::error!(%error, %bound, "a UDP socket failed and is not served any more");
        }
    })
}

fn serve(
    socket: &UdpSocket,
    bound: SocketAddr,
    stop: &Stop,
    answer: &mut impl FnMut(&[u8], SocketAddr, SocketAddr) -> Option<Vec<u8>>,
) -> io::Result<()> {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let mut doors = [PollFd::new(socket, PollFlags::IN), PollFd::new(&*stop.0, PollFlags::IN)];
        match rustix::event::poll(&mut doors, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [_, stopped] = &doors;
        if !stopped.revents().is_empty() {
            return Ok(());
        }
        for _ in 0..BATCH {
            let (len, from, local) = match pktinfo::receive(socket.as_fd(), &mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What the kernel reports here is about a datagram that was sent before (ICMP), not about this socket.
                Err(_) => continue,
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            let asked_at = SocketAddr::new(local.unwrap_or_else(|| bound.ip()), bound.port());
            if let Some(reply) = answer(bytes, canonical(from), canonical(asked_at)) {
                // A full send queue drops the answer; whoever asked asks again.
                let _ = pktinfo::send(socket.as_fd(), &reply, from, local);
            }
        }
    }
}

/// TCP and UDP on the same address and port, also when the kernel chooses the port. With `shared`, sockets that connect from
/// this port may be opened beside the listener.
///
/// # Errors
/// Which of the two cannot be had, and why.
pub fn open_pair(addr: SocketAddr, shared: bool) -> Result<(std::net::TcpListener, UdpSocket), OpenError> {
    let tries = if addr.port() == 0 { PORT_TRIES } else { 1 };
    let mut failed = io::ErrorKind::AddrInUse.into();
    for _ in 0..tries {
        let tcp =
            open(addr, Type::STREAM, Protocol::TCP, shared).map_err(|error| OpenError("TCP", addr, error))?;
        tcp.listen(BACKLOG).map_err(|error| OpenError("TCP", addr, error))?;
        let tcp = std::net::TcpListener::from(tcp);
        let bound = tcp.local_addr().map_err(|error| OpenError("TCP", addr, error))?;
        match open(bound, Type::DGRAM, Protocol::UDP, false) {
            Ok(udp) => return Ok((tcp, udp.into())),
            Err(error) => failed = error,
        }
    }
    Err(OpenError("UDP", addr, failed))
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {1} ({0}): {2}; is another server running there, or does the port need privileges?"
)]
pub struct OpenError(&'static str, SocketAddr, io::Error);

fn open(addr: SocketAddr, kind: Type, protocol: Protocol, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    if addr.is_ipv6() {
        // 0.0.0.0 and [::] are two sockets, so that each member has one spelling.
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // After a restart the old connections wait in TIME-WAIT for a minute.
        socket.set_reuse_address(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(addr))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_and_udp_share_a_port_that_the_kernel_chose() {
        let (tcp, udp) = open_pair("127.0.0.1:0".parse().unwrap(), false).unwrap();
        assert_eq!(tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let error = open_pair(tcp.local_addr().unwrap(), true).map(drop).unwrap_err();
        assert!(error.to_string().contains("another server"), "{error}");
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked_until_the_stop() {
        let (_tcp, udp) = open_pair("0.0.0.0:0".parse().unwrap(), false).unwrap();
        let port = udp.local_addr().unwrap().port();
        let stop = Stop::new().unwrap();
        let echo = |bytes: &[u8], _: SocketAddr, at: SocketAddr| {
            (bytes != b"hush").then(|| [bytes, at.to_string().as_bytes()].concat())
        };
        let thread = spawn("test", udp, stop.clone(), echo).unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        let asked_at = SocketAddr::from(([127, 0, 0, 3], port));
        asker.send_to(b"hush", asked_at).unwrap();
        asker.send_to(b"who? ", asked_at).unwrap();
        let mut buffer = [0; 100];
        let (len, from) = asker.recv_from(&mut buffer).unwrap();
        assert_eq!((from, &buffer[..len]), (asked_at, format!("who? {asked_at}").as_bytes()));
        stop.signal();
        thread.join().unwrap();
    }
}
