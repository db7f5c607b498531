//! All sockets of one data thread behind one wait: UDP sockets, framed TCP streams, listeners, the device, a waker.
//!
//! [`Doors`] moves bytes and decides nothing about what they mean. What it does decide is how much of this machine a far
//! end may use, before anybody has authenticated it:
//!
//! - A listener answers nothing, ever. A stream that sends no whole frame in time, leaves one unfinished, or sends what is
//!   no frame, is closed without a byte.
//! - A stream's receive buffer grows with bytes that have arrived, not with lengths that were announced.
//! - What waits for a slow far end is bounded; above the bound whole messages are dropped and counted, as a network would.
//! - Each turn takes one batch from each door, so that none starves the others.
//!
//! The clock is the caller's: [`Doors::wait`] takes the time and starts every deadline that came up since the last wait.
//! So a deadline is late by the length of one turn at most, and never early.

mod deadlines;
mod event;
mod listener;
mod port;
mod queue;
mod stream;
mod tap;
mod udp;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustix::event::EventfdFlags;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::event::epoll::EventFlags;
use rustix::event::eventfd;
use socket2::Socket;

use self::deadlines::Deadlines;
pub use self::event::Counters;
pub use self::event::Event;
use self::listener::ACCEPT_TURN;
pub use self::listener::ACCEPTED_MAX;
use self::listener::Accept;
use self::listener::Listeners;
use self::port::Family;
use self::port::Ports;
use self::stream::INBOX_BULK;
use self::stream::INBOX_FULL;
use self::stream::Stream;
use self::stream::Turn;
use self::udp::TooBig;
use self::udp::UdpDoor;
use crate::base::addr::canonical;
use crate::base::id::PortId;
use crate::base::id::SocketId;
use crate::base::id::StreamId;
use crate::base::transmit::Bound;
use crate::base::transmit::Dial;
use crate::base::transmit::Gone;
use crate::base::transmit::Outbox;
use crate::base::transmit::STREAM_HEADROOM;
use crate::base::transmit::StreamEvent;
use crate::base::transmit::Via;
use crate::base::transmit::Why;
use crate::io::printer::Printer;
use crate::sys::batch::RecvBatch;
use crate::sys::batch::SendBatch;
use crate::wire::frame;

/// Doors reported ready per turn; others follow in the next.
const EVENTS: usize = 256;

/// Wakes a thread that waits in [`Doors::wait`]; cheap to clone, safe to send.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Makes the wait return, or the next one if nobody waits now. Several calls may make one [`Event::Woken`].
    pub fn wake(&self) {
        // Refused only if 2^64 calls are pending, and then the thread wakes up anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// The doors of one data thread.
pub struct Doors {
    epoll: OwnedFd,
    waker: Waker,
    udp: BTreeMap<SocketId, UdpDoor>,
    recv: RecvBatch,
    send: SendBatch,
    offload: bool,
    too_big: TooBig,
    listeners: Listeners,
    ports: Ports,
    streams: BTreeMap<StreamId, Stream>,
    /// What waits for the SYN of a stream that is to be told of it.
    taps: BTreeMap<StreamId, Socket>,
    printer: Option<Printer>,
    /// Streams for which something waits.
    backlogged: BTreeSet<StreamId>,
    /// Until when the device rests, if it does.
    rest: Option<Instant>,
    /// Largest receive buffer of a stream, bytes.
    inbox_full: usize,
    deadlines: Deadlines,
    /// Streams that hold whole frames already, for the next turn.
    unread: Vec<StreamId>,
    /// Streams that ended outside of a wait, for the next one to tell.
    ended: Vec<(StreamId, Gone)>,
    counters: Counters,
}

impl Doors {
    /// No door yet but the waker's.
    ///
    /// # Errors
    /// When the kernel gives no more descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &waker, Door::Waker.data(), EventFlags::IN)?;
        Ok(Self {
            epoll,
            waker: Waker(Arc::new(waker)),
            udp: BTreeMap::new(),
            recv: RecvBatch::new(),
            send: SendBatch::new(),
            offload: true,
            too_big: TooBig::new(),
            listeners: Listeners::new(),
            ports: Ports::default(),
            streams: BTreeMap::new(),
            taps: BTreeMap::new(),
            printer: None,
            backlogged: BTreeSet::new(),
            rest: None,
            inbox_full: INBOX_FULL,
            deadlines: Deadlines::default(),
            unread: Vec::new(),
            ended: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// A handle that wakes this thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Opens UDP socket `id`, in place of the one that had this id (which is closed first, so that its port can be had
    /// again); answers the address that it got.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind_udp(&mut self, id: SocketId, addr: SocketAddr) -> io::Result<SocketAddr> {
        self.udp.remove(&id);
        let mut door = UdpDoor::open(addr)?;
        door.set_offload(self.offload);
        epoll::add(&self.epoll, &door, Door::Udp(id).data(), EventFlags::IN)?;
        let local = door.local;
        self.udp.insert(id, door);
        Ok(local)
    }

    /// Closes UDP socket `id`; datagrams that wait in it are lost.
    pub fn close_udp(&mut self, id: SocketId) {
        self.udp.remove(&id);
    }

    /// Whether datagrams may cross the border to the kernel in runs (`UDP_SEGMENT`, `UDP_GRO`) where it can do that; they
    /// may, unless somebody says otherwise.
    pub fn set_offload(&mut self, offload: bool) {
        self.offload = offload;
        for door in self.udp.values_mut() {
            door.set_offload(offload);
        }
    }

    /// From now on datagrams come one by one at the sockets that are open, each as it was sent.
    pub fn receive_singly(&mut self) {
        self.udp.values().for_each(|door| door.set_merged(false));
    }

    /// The address that UDP socket `id` got.
    #[must_use]
    pub fn udp_address(&self, id: SocketId) -> Option<SocketAddr> {
        self.udp.get(&id).map(|door| door.local)
    }

    /// What the kernel granted UDP socket `id`: bytes of receive buffer and of send buffer. Less than 4 MiB means that
    /// `net.core.rmem_max` or `wmem_max` is lower and that the process has no CAP_NET_ADMIN.
    #[must_use]
    pub fn udp_buffers(&self, id: SocketId) -> Option<(usize, usize)> {
        self.udp.get(&id).map(|door| door.buffers)
    }

    /// Listens for streams; answers the address that it got.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        self.listeners.open(&self.epoll, addr)
    }

    /// How many accepted streams there may be at a time; [`ACCEPTED_MAX`] if nobody says otherwise.
    pub fn set_accepted_max(&mut self, max: usize) {
        self.listeners.max = max;
    }

    /// Takes a free port for `id` and listens on it, for IPv4 and, if it can be had, for IPv6. An older one of this id is
    /// given back.
    pub fn bind_port(&mut self, id: PortId) -> Bound {
        self.ports.bind(&self.epoll, id)
    }

    /// Gives a port back; its streams live on.
    pub fn unbind_port(&mut self, id: PortId) {
        self.ports.unbind(id);
    }

    /// The system's time to live for a stream that was opened with another.
    pub fn raise_ttl(&mut self, id: StreamId) {
        let raised = self.streams.get(&id).map(Stream::raise_ttl);
        debug_assert!(!matches!(raised, Some(Err(_))), "the time to live of a socket can always be set");
    }

    /// Gives streams receive buffers for several super-packets, four times the usual; they still grow only with what
    /// arrives.
    pub fn expect_super_packets(&mut self) {
        self.inbox_full = INBOX_BULK;
    }

    /// Begins to open a stream; `Opened` or `Closed` follows. An older stream of this id is closed.
    pub fn connect(&mut self, id: StreamId, dial: Dial) {
        self.close(id);
        let local = match dial.from.map(|port| self.ports.local(port, dial.to)) {
            Some(None) => {
                let text = "cannot connect: no local port of that address family";
                return self.ended.push((id, Gone::new(Why::Unreachable, text)));
            }
            local => local.flatten(),
        };
        let begun =
            self.tap(id, dial, local).and_then(|()| Stream::connect(dial, local)).and_then(|stream| {
                epoll::add(&self.epoll, &stream, Door::Stream(id).data(), EventFlags::OUT)?;
                Ok(stream)
            });
        match begun {
            Ok(stream) => {
                self.streams.insert(id, stream);
                self.deadlines.start(id);
            }
            Err(e) => {
                self.taps.remove(&id);
                self.ended.push((id, stream::cannot_connect(&e)));
            }
        }
    }

    /// Waits for the SYN of a stream that is to be told of it.
    fn tap(&mut self, id: StreamId, dial: Dial, local: Option<SocketAddr>) -> io::Result<()> {
        if let (true, Some(from), SocketAddr::V4(to)) = (dial.told, local, dial.to) {
            let tap = tap::open(from.port(), to)?;
            epoll::add(&self.epoll, &tap, Door::Tap(id).data(), EventFlags::IN)?;
            self.taps.insert(id, tap);
        }
        Ok(())
    }

    /// Sends an IPv4 packet that was made by hand.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, and as sendto(2).
    pub fn print(&mut self, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
        let printer = match self.printer.take() {
            Some(printer) => printer,
            None => Printer::open()?,
        };
        self.printer.insert(printer).send(packet, to.into())
    }

    /// Takes over a stream that somebody else has opened, a socket pair to a task of this process, say. It is open: no
    /// `Opened` follows. An older stream of this id is closed.
    ///
    /// # Errors
    /// When epoll refuses it.
    pub fn adopt(&mut self, id: StreamId, fd: OwnedFd) -> io::Result<()> {
        self.close(id);
        let stream = Stream::adopted(Socket::from(fd))?;
        epoll::add(&self.epoll, &stream, Door::Stream(id).data(), EventFlags::IN)?;
        self.streams.insert(id, stream);
        Ok(())
    }

    /// Takes over a stream that somebody else has accepted, and that is treated as if a listener had; answers its number.
    ///
    /// # Errors
    /// When epoll refuses it, or there are too many streams already.
    pub fn adopt_accepted(&mut self, fd: OwnedFd) -> io::Result<StreamId> {
        if self.listeners.open_now >= self.listeners.max {
            self.counters.accept_refused += 1;
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let socket = Socket::from(fd);
        socket.set_nonblocking(true)?;
        self.admit(Stream::accepted(socket))
    }

    /// Closes a stream; nothing follows. What was queued for it is lost.
    pub fn close(&mut self, id: StreamId) {
        self.forget(id);
        self.ended.retain(|(ended, _)| *ended != id);
    }

    /// Adds the TUN device to the wait: readable gives [`Event::Device`]. It leaves by itself when it is closed.
    ///
    /// # Errors
    /// When epoll refuses it.
    pub fn watch_device(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, Door::Device.data(), EventFlags::IN)?)
    }

    /// Lets the device rest while streams that drain quickly have too much to send, or ends the rest. What waits in the
    /// kernel's queue of the device meanwhile costs nobody a retransmission, and a far end that stays slow stops nobody
    /// else (see `queue`).
    ///
    /// # Errors
    /// When epoll refuses it: a device that is not [watched](Self::watch_device).
    pub fn rest_device(&mut self, device: BorrowedFd<'_>, now: Instant) -> io::Result<()> {
        let (streams, before) = (&mut self.streams, self.rest);
        let mut rest: Option<Instant> = None;
        self.backlogged.retain(|id| {
            let Some(stream) = streams.get_mut(id).filter(|stream| stream.wants_to_write()) else {
                return false;
            };
            rest = rest.max(stream.rest_until(now));
            true
        });
        self.rest = rest;
        if rest.is_some() != before.is_some() {
            let interest = if rest.is_some() { EventFlags::empty() } else { EventFlags::IN };
            epoll::modify(&self.epoll, device, Door::Device.data(), interest)?;
        }
        Ok(())
    }

    /// Sends everything and empties the outbox. Datagrams that the kernel refuses are dropped and counted; a stream whose
    /// buffer is over its bound drops the message (never the middle of one). A stream that is still connecting queues.
    pub fn send(&mut self, outbox: &mut Outbox) {
        write_frame_headers(outbox);
        let mut sends = outbox.sends();
        while let Some(first) = sends.first() {
            let same = sends.iter().take_while(|message| message.via == first.via).count();
            let (run, later) = sends.split_at(same);
            sends = later;
            match first.via {
                Via::Udp(id) => match self.udp.get_mut(&id) {
                    Some(door) => {
                        door.send(outbox, run, &mut self.send, &mut self.counters, &mut self.too_big);
                    }
                    None => self.counters.datagrams_refused += run.len() as u64,
                },
                Via::Stream(id) => {
                    let Some(stream) = self.streams.get_mut(&id) else {
                        self.counters.stream_messages_dropped += run.len() as u64;
                        continue;
                    };
                    let wanted = stream.wants_to_write();
                    match stream.send(outbox, run, &mut self.counters) {
                        Ok(()) if wanted == stream.wants_to_write() => {}
                        Ok(()) => {
                            watch(&self.epoll, id, stream);
                            self.backlogged.insert(id);
                        }
                        Err(gone) => self.end_later(id, gone),
                    }
                }
            }
        }
        outbox.clear();
    }

    /// What the doors have done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Destinations for which a datagram was too large for the device on the way out, since the last call, each with the
    /// smallest size that was refused.
    #[must_use]
    pub fn take_too_big(&mut self) -> Vec<(SocketAddr, usize)> {
        std::mem::take(&mut self.too_big).into_iter().collect()
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
        self.keep_deadlines(now);
        let ended = std::mem::take(&mut self.ended);
        let unread = std::mem::take(&mut self.unread);
        // Whoever was told something wants to act on it before anybody sleeps.
        let told = !ended.is_empty() || !unread.is_empty();
        for (id, gone) in ended {
            on(Event::Stream { id, event: StreamEvent::Closed(gone) });
        }
        for id in &unread {
            self.read_stream(*id, on);
        }

        let until_due = self.next_deadline().map(|at| at.saturating_duration_since(now));
        let timeout = match (timeout, until_due) {
            _ if told => Some(Duration::ZERO),
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let timeout = timeout.map(Timespec::try_from).transpose().unwrap_or_default();
        let mut room = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let ready = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((ready, _)) => &*ready,
            Err(rustix::io::Errno::INTR) => &[],
            Err(e) => return Err(e.into()),
        };
        for event in ready {
            match Door::from_data(event.data) {
                Some(Door::Waker) => {
                    let _ = rustix::io::read(&self.waker.0, &mut [0; 8]);
                    on(Event::Woken);
                }
                Some(Door::Udp(id)) => self.read_udp(id, on),
                Some(Door::Stream(id)) => {
                    let flags = event.flags;
                    self.on_stream_ready(id, flags, &unread, on);
                }
                Some(Door::Listener(index)) => self.accept(index, on),
                Some(Door::Port(id, family)) => self.accept_at(id, family, on),
                Some(Door::Tap(id)) => {
                    if let Some(packet) = self.taps.remove(&id).as_ref().and_then(tap::read) {
                        on(Event::Stream { id, event: StreamEvent::Dialled(&packet) });
                    }
                }
                Some(Door::Device) => on(Event::Device),
                None => {}
            }
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next().into_iter().chain(self.listeners.resume_at()).chain(self.rest).min()
    }

    /// Starts the clocks that came up since the last wait, and acts on those that have run out.
    fn keep_deadlines(&mut self, now: Instant) {
        self.listeners.keep_pause(&self.epoll, now);
        for id in self.deadlines.take_due(now) {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            match stream.check_limit(&mut self.counters) {
                Ok(()) => self.deadlines.start(id),
                Err(gone) => self.end_later(id, gone),
            }
        }
        for id in self.deadlines.take_fresh() {
            if let Some(limit) = self.streams.get_mut(&id).and_then(Stream::limit) {
                self.deadlines.set(id, now + limit);
            }
        }
    }

    fn read_udp(&mut self, id: SocketId, on: &mut dyn FnMut(Event<'_>)) {
        let Some(door) = self.udp.get(&id) else { return };
        // An error here is an old one of the socket, told once and gone: datagrams that wait are told in the next turn.
        if self.recv.recv(door.as_fd()).is_err() {
            return;
        }
        for (from, ecn, bytes) in self.recv.datagrams() {
            self.counters.datagrams_in += 1;
            on(Event::Datagram { via: Via::Udp(id), from, ecn, bytes });
        }
    }

    fn on_stream_ready(
        &mut self,
        id: StreamId,
        flags: EventFlags,
        served: &[StreamId],
        on: &mut dyn FnMut(Event<'_>),
    ) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let connecting = stream.is_connecting();
        if connecting {
            match stream.finish_connect() {
                Ok(()) => {
                    self.deadlines.stop(id);
                    on(Event::Stream { id, event: StreamEvent::Opened });
                }
                Err(gone) => return self.end(id, gone, on),
            }
        }
        if flags.contains(EventFlags::OUT) {
            match stream.flush() {
                Ok(()) if stream.wants_to_write() && !connecting => {}
                Ok(()) => watch(&self.epoll, id, stream),
                Err(gone) => return self.end(id, gone, on),
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && !served.contains(&id) {
            self.read_stream(id, on);
        }
    }

    fn read_stream(&mut self, id: StreamId, on: &mut dyn FnMut(Event<'_>)) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let turn = stream.read(self.inbox_full, &mut self.counters, |frame| {
            on(Event::Stream { id, event: StreamEvent::Frame(frame) });
        });
        match turn {
            Ok(Turn::Drained) if stream.is_to_be_watched() => self.deadlines.start(id),
            Ok(Turn::Drained) => {}
            Ok(Turn::More) => self.unread.push(id),
            Err(gone) => self.end(id, gone, on),
        }
    }

    fn accept(&mut self, index: u32, on: &mut dyn FnMut(Event<'_>)) {
        for _ in 0..ACCEPT_TURN {
            match self.listeners.accept(&self.epoll, index) {
                // An error about one stream (it is gone already) is no reason to look away from the others.
                Accept::Stream(socket) => {
                    let _ = self.take_in(socket, None, on);
                }
                Accept::OneTooMany => self.counters.accept_refused += 1,
                Accept::Stillborn => {}
                Accept::Enough => return,
            }
        }
    }

    fn accept_at(&mut self, id: PortId, family: Family, on: &mut dyn FnMut(Event<'_>)) {
        for _ in 0..ACCEPT_TURN {
            let Some(socket) = self.ports.accept(id, family) else { return };
            if self.listeners.open_now >= self.listeners.max {
                self.counters.accept_refused += 1;
            } else {
                let _ = self.take_in(socket, Some(id), on);
            }
        }
    }

    fn take_in(
        &mut self,
        socket: Socket,
        port: Option<PortId>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let from = socket.peer_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let to = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let id = self.admit(Stream::accepted(socket))?;
        on(Event::Accepted { id, from: canonical(from), to, port });
        Ok(())
    }

    /// Numbers and watches an accepted stream.
    fn admit(&mut self, stream: Stream) -> io::Result<StreamId> {
        let id = self.listeners.number(|id| self.streams.contains_key(&id));
        epoll::add(&self.epoll, &stream, Door::Stream(id).data(), EventFlags::IN)?;
        self.streams.insert(id, stream);
        self.deadlines.start(id);
        self.listeners.open_now += 1;
        self.counters.accepted += 1;
        Ok(id)
    }

    /// Ends a stream; the wait will tell.
    fn end_later(&mut self, id: StreamId, gone: Gone) {
        self.forget(id);
        self.ended.push((id, gone));
    }

    /// Ends a stream and tells it.
    fn end(&mut self, id: StreamId, gone: Gone, on: &mut dyn FnMut(Event<'_>)) {
        self.forget(id);
        on(Event::Stream { id, event: StreamEvent::Closed(gone) });
    }

    fn forget(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_some_and(|stream| stream.is_accepted()) {
            self.listeners.open_now -= 1;
        }
        self.taps.remove(&id);
        self.deadlines.stop(id);
        self.backlogged.remove(&id);
        self.unread.retain(|unread| *unread != id);
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Doors");
        out.field("udp", &self.udp).field("listeners", &self.listeners).field("counters", &self.counters);
        out.finish_non_exhaustive()
    }
}

/// Matches the kernel's interest in a stream with ours.
fn watch(epoll: &OwnedFd, id: StreamId, stream: &Stream) {
    let mut interest = EventFlags::IN;
    interest.set(EventFlags::OUT, stream.wants_to_write());
    let changed = epoll::modify(epoll, stream, Door::Stream(id).data(), interest);
    debug_assert!(changed.is_ok(), "the stream was added when it was made");
}

/// Writes the frame header into the headroom of each message for a stream.
fn write_frame_headers(outbox: &mut Outbox) {
    for index in 0..outbox.sends().len() {
        let Some(message) = outbox.sends().get(index) else { return };
        if !matches!(message.via, Via::Stream(_)) {
            continue;
        }
        let (start, len) = (message.range.start, message.range.len());
        let headroom =
            start.checked_sub(STREAM_HEADROOM).and_then(|from| outbox.arena_mut().get_mut(from..start));
        if let (Some(header), Some(headroom)) = (frame::header(len), headroom) {
            headroom.copy_from_slice(&header);
        }
    }
}

/// What a descriptor in epoll is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Door {
    Waker,
    Device,
    Udp(SocketId),
    Stream(StreamId),
    Listener(u32),
    Port(PortId, Family),
    Tap(StreamId),
}

impl Door {
    fn data(self) -> epoll::EventData {
        let (kind, number): (u64, u32) = match self {
            Self::Waker => (0, 0),
            Self::Device => (1, 0),
            Self::Udp(SocketId(id)) => (2, id),
            Self::Stream(StreamId(id)) => (3, id),
            Self::Listener(index) => (4, index),
            Self::Port(PortId(id), Family::V4) => (5, id),
            Self::Port(PortId(id), Family::V6) => (6, id),
            Self::Tap(StreamId(id)) => (7, id),
        };
        epoll::EventData::new_u64(kind << 32 | u64::from(number))
    }

    fn from_data(data: epoll::EventData) -> Option<Self> {
        let (kind, number) = (data.u64() >> 32, u32::try_from(data.u64() & u64::from(u32::MAX)).ok()?);
        match kind {
            0 => Some(Self::Waker),
            1 => Some(Self::Device),
            2 => Some(Self::Udp(SocketId(number))),
            3 => Some(Self::Stream(StreamId(number))),
            4 => Some(Self::Listener(number)),
            5 => Some(Self::Port(PortId(number), Family::V4)),
            6 => Some(Self::Port(PortId(number), Family::V6)),
            7 => Some(Self::Tap(StreamId(number))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
