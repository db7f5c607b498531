//! Listeners of one data thread: how many streams they let in, their numbers, and rest when descriptors run out.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use rustix::event::epoll;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use super::Door;
use super::stream;
use crate::base::id::StreamId;

/// Accepted streams at a time, unless somebody says otherwise. Reason: at most 64 KiB each, so 256 MiB.
pub const ACCEPTED_MAX: usize = 4096;
/// Streams accepted per turn and listener.
pub(super) const ACCEPT_TURN: usize = 64;
/// How long listeners rest when the process has no descriptor left. Reason: they would be ready again at once, forever.
const PAUSE: Duration = Duration::from_secs(1);
/// Connections that may wait in the kernel for their turn.
const BACKLOG: i32 = 1024;
/// Accepted streams are numbered from here.
const NUMBERS_FROM: u32 = 1 << 31;

/// All listeners.
#[derive(Debug)]
pub(super) struct Listeners {
    sockets: Vec<Socket>,
    /// Accepted streams that are open.
    pub(super) open_now: usize,
    /// How many of them there may be.
    pub(super) max: usize,
    next: u32,
    /// They rest; until when, once the next wait has told the time.
    pause: Option<Option<Instant>>,
}

/// What one accept gave.
#[derive(Debug)]
pub(super) enum Accept {
    /// A stream.
    Stream(Socket),
    /// A stream above the limit; closed already.
    OneTooMany,
    /// A stream that ended before it was accepted.
    Stillborn,
    /// No more for now.
    Enough,
}

impl Listeners {
    pub(super) fn new() -> Self {
        Self { sockets: Vec::new(), open_now: 0, max: ACCEPTED_MAX, next: NUMBERS_FROM, pause: None }
    }

    pub(super) fn open(&mut self, epoll: &OwnedFd, addr: SocketAddr) -> io::Result<SocketAddr> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
        stream::tune(&socket)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let door = Door::Listener(u32::try_from(self.sockets.len()).unwrap_or(u32::MAX));
        epoll::add(epoll, &socket, door.data(), EventFlags::IN)?;
        self.sockets.push(socket);
        Ok(local)
    }

    pub(super) fn accept(&mut self, epoll: &OwnedFd, index: u32) -> Accept {
        let Some(listener) = usize::try_from(index).ok().and_then(|at| self.sockets.get(at)) else {
            return Accept::Enough;
        };
        match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(_) if self.open_now >= self.max => Accept::OneTooMany,
            Ok(fd) => Accept::Stream(Socket::from(fd)),
            Err(Errno::AGAIN) => Accept::Enough,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.pause = Some(None);
                self.listen_for(epoll, EventFlags::empty());
                Accept::Enough
            }
            Err(_) => Accept::Stillborn,
        }
    }

    /// A number for an accepted stream, none that is `taken`.
    pub(super) fn number(&mut self, taken: impl Fn(StreamId) -> bool) -> StreamId {
        loop {
            let id = StreamId(self.next);
            self.next = self.next.wrapping_add(1) | NUMBERS_FROM;
            if !taken(id) {
                return id;
            }
        }
    }

    /// When the rest ends, if they rest.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.pause.flatten()
    }

    /// Starts the clock of a rest that has begun, ends one that is over.
    pub(super) fn keep_pause(&mut self, epoll: &OwnedFd, now: Instant) {
        match self.pause {
            Some(None) => self.pause = Some(Some(now + PAUSE)),
            Some(Some(at)) if at <= now => {
                self.pause = None;
                self.listen_for(epoll, EventFlags::IN);
            }
            Some(Some(_)) | None => {}
        }
    }

    fn listen_for(&self, epoll: &OwnedFd, interest: EventFlags) {
        for (index, socket) in (0..).zip(&self.sockets) {
            let changed = epoll::modify(epoll, socket, Door::Listener(index).data(), interest);
            debug_assert!(changed.is_ok(), "the listener was added when it was made");
        }
    }
}
