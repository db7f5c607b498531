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
use crate::sys::batch::Message;
use crate::sys::batch::RUN_MAX;
use crate::sys::batch::SEGMENTS;
use crate::sys::batch::SendBatch;
use crate::sys::option;
use crate::wire::relay::may_follow;

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
    /// Whether the kernel cuts runs of datagrams for us.
    segments: bool,
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
        // Where it is refused, no datagram seems to be marked.
        let _ = option::receive_marks(&socket, addr.is_ipv6());
        let buffers = enlarge(&socket)?;
        socket.bind(&addr.into())?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { socket, buffers, local, segments: false })
    }

    /// Allows runs of datagrams as one message in both directions, as far as the kernel knows them, or forbids them.
    pub(super) fn set_offload(&mut self, offload: bool) {
        self.segments = offload && option::can_segment(self.socket.as_fd());
        self.set_merged(offload);
    }

    /// Chooses whether datagrams may come in runs.
    pub(super) fn set_merged(&self, merged: bool) {
        // Where it is refused, they come one by one.
        let _ = option::receive_merged(self.socket.as_fd(), merged);
    }

    /// Sends a run of messages that all leave by this socket. Neighbours with equal destination, mark and size, which
    /// lie next to each other in the arena, leave as one.
    pub(super) fn send(
        &mut self,
        outbox: &Outbox,
        run: &[Transmit],
        batch: &mut SendBatch,
        counters: &mut Counters,
        too_big: &mut TooBig,
    ) {
        for run in run.chunk_by(|a, b| a.unfragmented == b.unfragmented) {
            let Some(first) = run.first() else { continue };
            // Rare: a few probes per path. The socket belongs to this thread, so the mode is only ours for the moment.
            let probe = first.unfragmented
                && option::unfragmented(self.socket.as_fd(), first.to.is_ipv6(), true).is_ok();
            let merge = self.segments && !first.unfragmented;
            self.send_alike(outbox, run, merge, batch, counters, too_big);
            if probe {
                let _ = option::unfragmented(self.socket.as_fd(), first.to.is_ipv6(), false);
            }
        }
    }

    fn send_alike(
        &mut self,
        outbox: &Outbox,
        mut rest: &[Transmit],
        merge: bool,
        batch: &mut SendBatch,
        counters: &mut Counters,
        too_big: &mut TooBig,
    ) {
        while let Some(first) = rest.first() {
            let runs = Runs { outbox, rest, merge };
            let one = runs.clone().next().unwrap_or_default();
            let entries = runs.clone().map(|run| message(outbox, run));
            let done = match batch.send(self.socket.as_fd(), entries) {
                Ok(0) => {
                    counters.datagrams_refused += 1;
                    1
                }
                Ok(sent) => {
                    let sent = runs.take(sent);
                    counters.runs_out += sent.clone().filter(|run| run.len() > 1).count() as u64;
                    let datagrams = sent.map(<[Transmit]>::len).sum();
                    counters.datagrams_out += datagrams as u64;
                    datagrams
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                // The send buffer is full: the network is slower than we are. Waiting would only add delay.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let lost = runs.take(BATCH).map(<[Transmit]>::len).sum();
                    counters.datagrams_refused += lost as u64;
                    lost
                }
                // Not as one message, so one by one. A device that cannot do checksums (EIO) never will; other refusals
                // are about this run: its datagrams do not fit the path unfragmented, for one (EINVAL).
                Err(e) if one.len() > 1 => {
                    counters.runs_refused += 1;
                    self.segments &= !matches!(e.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP));
                    self.send_alike(outbox, one, false, batch, counters, too_big);
                    one.len()
                }
                Err(e) => {
                    if e.raw_os_error() == Some(libc::EMSGSIZE) {
                        counters.too_big += 1;
                        note_too_big(too_big, first);
                    }
                    counters.datagrams_refused += 1;
                    1
                }
            };
            rest = rest.get(done..).unwrap_or_default();
        }
    }
}

/// Cuts a queue into the parts that leave as one message each.
#[derive(Clone, Debug)]
struct Runs<'a> {
    outbox: &'a Outbox,
    rest: &'a [Transmit],
    merge: bool,
}

impl<'a> Iterator for Runs<'a> {
    type Item = &'a [Transmit];

    /// Datagrams of one size and mark to one destination, one behind the other in the arena; the last may be shorter. Those
    /// for different members behind one relay do not go together.
    fn next(&mut self) -> Option<&'a [Transmit]> {
        let first = self.rest.first()?;
        let size = first.range.len();
        let most = if self.merge && size > 0 { SEGMENTS.min(RUN_MAX / size) } else { 1 };
        let mut count = 1;
        for (before, next) in self.rest.iter().zip(self.rest.iter().skip(1)).take(most.saturating_sub(1)) {
            let fits = next.to == first.to
                && next.ecn == first.ecn
                && next.range.start == before.range.end
                && before.range.len() == size
                && (1..=size).contains(&next.range.len())
                && may_follow(self.outbox.bytes(before.range.clone()), self.outbox.bytes(next.range.clone()));
            if !fits {
                break;
            }
            count += 1;
        }
        let (run, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(run)
    }
}

fn message<'a>(outbox: &'a Outbox, run: &[Transmit]) -> Message<'a> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        unreachable!("a run has a first message");
    };
    let segment = (run.len() > 1).then(|| u16::try_from(first.range.len()).unwrap_or(u16::MAX));
    let bytes = outbox.bytes(first.range.start..last.range.end);
    Message { to: first.to, bytes, segment, ecn: first.ecn }
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

#[cfg(test)]
impl UdpDoor {
    /// Leaves UDP checksums out (`SO_NO_CHECK`).
    pub(super) fn skip_checksums(&self) {
        option::skip_checksums(&self.socket).expect("any socket has the option");
    }
}
