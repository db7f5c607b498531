//! What comes to the silent port, and packets that the kernel would not send for us: needs CAP_NET_RAW. IPv4 alone.

use std::io;
use std::io::Read as _;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use super::sockets::filter;
use crate::engine::responder::Stop;
use crate::io::printer::Printer;
use crate::wire::stun::captured;
use crate::wire::stun::stunt::Segment;

/// IPv4, as packet sockets name it (ethertype 0x0800, in network order).
const ETH_P_IP: u16 = 0x0800;
/// Room for the headers of a segment with all options that there can be.
const ROOM: usize = 160;
/// Segments taken at once, and the pause after so many: a flood to the silent port costs no more than 50,000 looks a second.
const BATCH: usize = 256;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// A tap on what arrives at `port`, and a printer.
///
/// # Errors
/// Without the privilege.
pub(super) fn open(port: u16) -> io::Result<(Socket, Printer)> {
    let printer = Printer::open()?;
    let protocol = Protocol::from(i32::from(ETH_P_IP.to_be()));
    let tap = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(protocol))?;
    tap.attach_filter(&filter::tcp_to(port))?;
    Ok((tap, printer))
}

/// Hands every segment that `tap` catches to `heard`, on a thread of its own, until `stop`.
///
/// # Errors
/// If the thread cannot be had.
pub(super) fn spawn(
    mut tap: Socket,
    stop: Stop,
    mut heard: impl FnMut(SocketAddr, SocketAddr, Segment) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("stun-tap".to_owned()).spawn(move || {
        let mut buffer = [0; ROOM];
        loop {
            let mut doors = [PollFd::new(&tap, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
            match rustix::event::poll(&mut doors, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "the silent port is not watched any more");
                    return;
                }
                Ok(_) => {}
            }
            let [_, stopped] = &doors;
            if !stopped.revents().is_empty() {
                return;
            }
            let mut taken = 0;
            // An error is about a device that went down; the next look tells.
            while let (true, Ok(len)) = (taken < BATCH, tap.read(&mut buffer)) {
                taken += 1;
                if let Ok((from, to, segment)) = captured::read(buffer.get(..len).unwrap_or_default()) {
                    heard(from, to, segment);
                }
            }
            if taken == BATCH {
                let _ = rustix::event::poll(&mut [PollFd::new(&stop, PollFlags::IN)], Some(&PAUSE));
            }
        }
    })
}
