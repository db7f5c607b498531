//! All sockets of one data thread behind one wait: UDP sockets, framed TCP streams, listeners, the device, a waker.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::SocketId;
use crate::base::id::StreamId;
use crate::base::transmit::Outbox;
use crate::base::transmit::StreamEvent;
use crate::base::transmit::Via;

/// Something came in.
#[derive(Debug)]
pub enum Event<'a> {
    /// A datagram.
    Datagram {
        /// The socket.
        via: Via,
        /// Its source, IPv4-mapped addresses made plain.
        from: SocketAddr,
        /// Its bytes, writable so that they can be opened in place.
        bytes: &'a mut [u8],
    },
    /// A listener accepted a stream; `Opened` does not follow.
    Accepted {
        /// Numbered by the doors, from the top half of the range (bit 31 set).
        id: StreamId,
        /// Far end.
        from: SocketAddr,
        /// Near end.
        to: SocketAddr,
    },
    /// Something happened to a stream.
    Stream {
        /// Which.
        id: StreamId,
        /// What.
        event: StreamEvent<'a>,
    },
    /// The device can be read.
    Device,
    /// Somebody called [`Waker::wake`].
    Woken,
}

/// Wakes a thread that waits in [`Doors::wait`]; cheap to clone, safe to send.
#[derive(Clone, Debug)]
pub struct Waker(());

impl Waker {
    /// Makes the wait return.
    pub fn wake(&self) {}
}

/// The doors of one data thread.
#[derive(Debug)]
pub struct Doors(());

impl Doors {
    /// No door yet but the waker's.
    ///
    /// # Errors
    /// When the kernel gives no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// A handle that wakes this thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(())
    }

    /// Opens UDP socket `id`; answers the address that it got.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind_udp(&mut self, id: SocketId, addr: SocketAddr) -> io::Result<SocketAddr> {
        let _ = (id, addr);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Listens for streams; answers the address that it got.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let _ = addr;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Begins to open a stream; `Opened` or `Closed` follows.
    pub fn connect(&mut self, id: StreamId, to: SocketAddr) {
        let _ = (id, to);
    }

    /// Closes a stream; nothing follows.
    pub fn close(&mut self, id: StreamId) {
        let _ = id;
    }

    /// Adds the TUN device to the wait: readable gives [`Event::Device`].
    ///
    /// # Errors
    /// When epoll refuses it.
    pub fn watch_device(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let _ = fd;
        Ok(())
    }

    /// Sends everything and empties the outbox. Datagrams that the kernel refuses are dropped and counted; a stream whose
    /// buffer is over its bound drops the message (never the middle of one).
    pub fn send(&mut self, outbox: &mut Outbox) {
        outbox.clear();
    }

    /// Waits for events or for `timeout`, then hands out what is there: at most one batch per door, so that no door
    /// starves the others. A door with more to give is ready again at once.
    ///
    /// `now` is the time at the call: the streams' own deadlines (connect, first frame, unfinished frame) are kept on
    /// it. Returns early, with nothing, when one of them comes due: call again with the new time.
    ///
    /// # Errors
    /// Only when the wait itself fails: a bug.
    pub fn wait(
        &mut self,
        now: Instant,
        timeout: Option<Duration>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let _ = (now, timeout, on);
        Ok(())
    }
}
