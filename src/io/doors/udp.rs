//! UDP sockets of the data plane: opened for throughput and honest sizes, read and written by the batch.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use rustix::net::sockopt;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use super::Counters;
use crate::base::transmit::Outbox;
use crate::base::transmit::Transmit;
use crate::sys::batch::BATCH;
use crate::sys::batch::SendBatch;
use crate::sys::option;

/// Buffer that we ask for in each direction, bytes. Reason: 4 MiB is 30 ms at 1 Gbit/s, longer than the longest pause of
/// a busy two-core machine. Without CAP_NET_ADMIN the kernel grants `net.core.rmem_max` at most.
const BUFFER: usize = 4 << 20;

/// Destinations that one report of too large datagrams holds; further ones are only counted.
const TOO_BIG_MAX: usize = 64;

/// One open UDP socket.
#[derive(Debug)]
pub(super) struct UdpDoor {
    socket: Socket,
    /// What the kernel granted: receive and send buffer, bytes.
    pub(super) buffers: (usize, usize),
    /// The address that it got.
    pub(super) local: SocketAddr,
}

/// Datagrams that no device on the way out takes: destination and smallest size that was refused.
pub(super) type TooBig = BTreeMap<SocketAddr, usize>;

impl UdpDoor {
    pub(super) fn open(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        option::unfragmented(&socket, addr.is_ipv6(), false)?;
        let buffers = enlarge(&socket)?;
        socket.bind(&addr.into())?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { socket, buffers, local })
    }

    /// Sends a run of messages that all leave by this socket.
    ///
    /// One datagram makes one entry of the batch. This is the place where neighbours with equal destination and size,
    /// which lie next to each other in the arena, can become one entry with `UDP_SEGMENT`.
    pub(super) fn send(
        &self,
        outbox: &Outbox,
        run: &[Transmit],
        batch: &mut SendBatch,
        counters: &mut Counters,
        too_big: &mut TooBig,
    ) {
        let mut rest = run;
        while let Some(first) = rest.first() {
            let alike = rest.iter().take_while(|message| message.unfragmented == first.unfragmented).count();
            let (run, later) = rest.split_at(alike);
            rest = later;
            // Rare: a few probes per path. The socket belongs to this thread, so the mode is only ours for the moment.
            let probe = first.unfragmented
                && option::unfragmented(self.socket.as_fd(), first.to.is_ipv6(), true).is_ok();
            self.send_alike(outbox, run, batch, counters, too_big);
            if probe {
                let _ = option::unfragmented(self.socket.as_fd(), first.to.is_ipv6(), false);
            }
        }
    }

    fn send_alike(
        &self,
        outbox: &Outbox,
        mut run: &[Transmit],
        batch: &mut SendBatch,
        counters: &mut Counters,
        too_big: &mut TooBig,
    ) {
        while let Some(first) = run.first() {
            let entries = run.iter().map(|message| (message.to, outbox.bytes(message.range.clone())));
            let (sent, lost) = match batch.send(self.socket.as_fd(), entries) {
                Ok(sent) if sent > 0 => (sent, 0),
                Ok(_) => (0, 1),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (0, 0),
                // The send buffer is full: the network is slower than we are. Waiting would only add delay.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => (0, run.len().min(BATCH)),
                Err(e) => {
                    if e.raw_os_error() == Some(libc::EMSGSIZE) {
                        counters.too_big += 1;
                        note_too_big(too_big, first);
                    }
                    (0, 1)
                }
            };
            counters.datagrams_out += sent as u64;
            counters.datagrams_refused += lost as u64;
            run = run.get(sent + lost..).unwrap_or_default();
        }
    }
}

impl AsFd for UdpDoor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Enlarges both buffers as far as the kernel lets us; answers what we got.
fn enlarge(socket: &Socket) -> io::Result<(usize, usize)> {
    // The forced form passes the system's limit and needs CAP_NET_ADMIN; the plain form is cut to the limit silently.
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    // The kernel doubles what it grants, for its own bookkeeping (socket(7)).
    Ok((socket.recv_buffer_size()? / 2, socket.send_buffer_size()? / 2))
}

fn note_too_big(too_big: &mut TooBig, message: &Transmit) {
    if too_big.len() < TOO_BIG_MAX || too_big.contains_key(&message.to) {
        let size = message.range.len();
        too_big.entry(message.to).and_modify(|least| *least = size.min(*least)).or_insert(size);
    }
}
