//! One framed TCP stream: connecting, whole messages in, whole messages out, never more memory than the far end earned.

use std::io;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::TcpKeepalive;
use socket2::Type;

use super::Counters;
use super::queue::Queue;
use crate::base::transmit::Dial;
use crate::base::transmit::Framing;
use crate::base::transmit::Gone;
use crate::base::transmit::Outbox;
use crate::base::transmit::STREAM_HEADROOM;
use crate::base::transmit::Transmit;
use crate::base::transmit::Why;
use crate::sys::option;
use crate::wire::WireError;
use crate::wire::frame;
use crate::wire::frame::Front;
use crate::wire::stun;

/// How long a connect may take. Reason: two SYN retransmissions (1 s, 3 s) and a round trip.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an accepted stream may keep silent before its first whole frame.
const FIRST_FRAME_LIMIT: Duration = Duration::from_secs(5);
/// How long a frame may stay unfinished. Checked at this interval, so a stalled stream lasts up to twice as long.
const UNFINISHED_LIMIT: Duration = Duration::from_secs(10);

/// Keepalive after this much silence. Reason: below the 30 s of the most impatient middleboxes.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// Between unanswered keepalives.
const KEEPALIVE_GAP: Duration = Duration::from_secs(5);
/// How long sent data may stay unacknowledged before the stream is dead, so that a lost path is noticed in time.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Unsent bytes that the kernel may hold. Reason: two frames of 64 KiB; what is not in the kernel can still be dropped.
const NOTSENT_LOWAT: u32 = 128 << 10;

/// Frames handed out per turn.
const TURN: usize = 64;
/// Bytes handed out per turn. Reason: what is made of them is written in one go, and should still lie in the processor's
/// cache then.
const TURN_BYTES: usize = 256 << 10;
/// Size of a fresh receive buffer, bytes; it doubles as bytes really arrive.
const INBOX_FIRST: usize = 4 << 10;
/// Largest receive buffer, bytes, unless somebody says otherwise: one frame of the largest kind.
pub(super) const INBOX_FULL: usize = frame::HEADER_LEN + frame::MAX_PAYLOAD;
/// Largest receive buffer where super-packets come, bytes: several of them a read.
pub(super) const INBOX_BULK: usize = 4 * INBOX_FULL;

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    state: State,
    framing: Framing,
    /// Whether its packets have another time to live than the system's.
    short: bool,
    inbox: Inbox,
    /// What the kernel has not taken.
    queue: Queue,
    /// Whole frames received so far.
    frames: u64,
    /// `frames` when the unfinished-frame clock was started.
    marked: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Ours, on its way.
    Connecting,
    /// Ours, open.
    Connected,
    /// Theirs, open.
    Accepted,
}

/// How a turn of reading ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// The kernel has nothing more.
    Drained,
    /// There may be more; its turn comes again.
    More,
}

impl Stream {
    /// Begins to connect, from `local` if that is given: a port that is shared with others.
    pub(super) fn connect(dial: Dial, local: Option<SocketAddr>) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(dial.to), kind, Some(Protocol::TCP))?;
        tune(&socket)?;
        if let Some(local) = local {
            share(&socket, local)?;
        }
        if let Some(ttl) = dial.ttl {
            set_ttl(&socket, dial.to, Some(ttl))?;
            option::ignore_dead_on_the_way(socket.as_fd(), dial.to.is_ipv4())?;
        }
        match socket.connect(&dial.to.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
            _ => Ok(Self { short: dial.ttl.is_some(), ..Self::new(socket, State::Connecting, dial.framing) }),
        }
    }

    /// Takes over a socket that a tuned, non-blocking listener accepted; it has inherited the options.
    pub(super) fn accepted(socket: Socket) -> Self {
        Self::new(socket, State::Accepted, Framing::Frames)
    }

    /// Takes over a socket that is connected already and needs no tuning.
    pub(super) fn adopted(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::new(socket, State::Connected, Framing::Frames))
    }

    fn new(socket: Socket, state: State, framing: Framing) -> Self {
        Self {
            socket,
            state,
            framing,
            short: false,
            inbox: Inbox::default(),
            queue: Queue::default(),
            frames: 0,
            marked: 0,
        }
    }

    /// The system's time to live from now on.
    pub(super) fn raise_ttl(&self) -> io::Result<()> {
        let to = self.socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        set_ttl(&self.socket, to, None)
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// Whether the far end has connected to us.
    pub(super) fn is_accepted(&self) -> bool {
        self.state == State::Accepted
    }

    /// Whether readiness to write is of interest.
    pub(super) fn wants_to_write(&self) -> bool {
        self.is_connecting() || !self.queue.is_empty()
    }

    /// The wait for the connect is over, one way or the other.
    pub(super) fn finish_connect(&mut self) -> Result<(), Gone> {
        match self.socket.take_error() {
            Ok(None) => {
                self.state = State::Connected;
                // The segments that opened the NATs need not arrive, but what follows must.
                if std::mem::take(&mut self.short) {
                    self.raise_ttl().map_err(|e| cannot_connect(&e))?;
                }
                Ok(())
            }
            Ok(Some(e)) | Err(e) => Err(cannot_connect(&e)),
        }
    }

    /// How long the stream may stay as it is, if there is a limit; notes what "as it is" means.
    pub(super) fn limit(&mut self) -> Option<Duration> {
        self.marked = self.frames;
        match self.state {
            State::Connecting => Some(CONNECT_LIMIT),
            State::Accepted if self.frames == 0 => Some(FIRST_FRAME_LIMIT),
            State::Accepted | State::Connected => self.is_to_be_watched().then_some(UNFINISHED_LIMIT),
        }
    }

    /// That time has passed: whether the stream has used it. If it was idle, it needs less memory from here on.
    pub(super) fn check_limit(&mut self, counters: &mut Counters) -> Result<(), Gone> {
        match self.state {
            State::Connecting => {
                let text = format!("cannot connect: no answer within {} s", CONNECT_LIMIT.as_secs());
                Err(Gone::new(Why::Silent, text))
            }
            State::Accepted if self.frames == 0 => {
                counters.silent_streams += 1;
                let text = format!("sent no message within {} s", FIRST_FRAME_LIMIT.as_secs());
                Err(Gone::new(Why::Lost, text))
            }
            State::Accepted | State::Connected if self.is_unfinished() && self.marked == self.frames => {
                counters.silent_streams += 1;
                let text = format!("left a message unfinished for {} s", UNFINISHED_LIMIT.as_secs());
                Err(Gone::new(Why::Lost, text))
            }
            State::Accepted | State::Connected => {
                if self.marked == self.frames {
                    self.inbox = Inbox::default();
                }
                if self.queue.is_empty() {
                    self.queue = Queue::default();
                }
                Ok(())
            }
        }
    }

    /// Whether somebody has to look after the stream in a while: it has begun a frame, or holds much memory.
    pub(super) fn is_to_be_watched(&self) -> bool {
        self.is_unfinished() || self.memory() > INBOX_FIRST
    }

    /// Bytes of memory for what comes in and goes out.
    pub(super) fn memory(&self) -> usize {
        self.inbox.bytes.len() + self.queue.memory()
    }

    /// Whether a frame has begun that has not ended.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.inbox.waiting().is_empty()
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Hands out what is there, at most [`TURN`] frames and about [`TURN_BYTES`]; the receive buffer may grow to `full`
    /// bytes, at least [`INBOX_FULL`].
    pub(super) fn read(
        &mut self,
        full: usize,
        counters: &mut Counters,
        mut on_frame: impl FnMut(&mut [u8]),
    ) -> Result<Turn, Gone> {
        let (mut handed, mut bytes, mut drained) = (0, 0, false);
        loop {
            match front(self.framing, self.inbox.waiting()) {
                Ok(Front::Whole(_)) if handed == TURN || bytes >= TURN_BYTES => return Ok(Turn::More),
                Ok(Front::Whole(len)) => {
                    self.frames += 1;
                    counters.frames_in += 1;
                    handed += 1;
                    bytes += len;
                    on_frame(self.inbox.take(header(self.framing), len));
                }
                Ok(Front::Missing(_)) if drained => return Ok(Turn::Drained),
                // The kernel has more, but it is somebody else's turn.
                Ok(Front::Missing(_)) if bytes >= TURN_BYTES => return Ok(Turn::Drained),
                Ok(Front::Missing(missing)) => {
                    let room = self.inbox.room(missing, full);
                    let size = room.len();
                    match self.socket.read(room) {
                        Ok(0) => return Err(Gone::new(Why::Lost, "closed by the far end")),
                        Ok(got) => {
                            self.inbox.filled(got);
                            drained = got < size;
                        }
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Drained),
                        Err(e) => return Err(Gone::new(Why::Lost, format!("lost: {e}"))),
                    }
                }
                Err(e) => {
                    counters.bad_frames += 1;
                    return Err(Gone::new(Why::Lost, format!("sent what is no message: {e}")));
                }
            }
        }
    }

    /// Sends a run of messages that all leave by this stream; their headers are in the headroom already.
    pub(super) fn send(
        &mut self,
        outbox: &Outbox,
        mut run: &[Transmit],
        counters: &mut Counters,
    ) -> Result<(), Gone> {
        while let [first, ..] = run {
            if first.range.len() > frame::MAX_PAYLOAD {
                counters.stream_messages_dropped += 1;
                run = &run[1..];
            } else if self.wants_to_write() {
                self.enqueue(outbox, first, counters);
                run = &run[1..];
            } else {
                run = self.write_run(outbox, run, counters)?;
            }
        }
        Ok(())
    }

    /// Writes the neighbours at the front of `run` by one call; answers what of `run` was not begun.
    fn write_run<'a>(
        &mut self,
        outbox: &Outbox,
        run: &'a [Transmit],
        counters: &mut Counters,
    ) -> Result<&'a [Transmit], Gone> {
        let framing = self.framing;
        let framed = |message| extent(framing, message);
        let neighbours = 1 + run.windows(2).take_while(|pair| are_neighbours(framing, pair)).count();
        let (now, later) = run.split_at(neighbours);
        let (Some(first), Some(last)) = (now.first(), now.last()) else { return Ok(later) };
        let bytes = outbox.bytes(framed(first).start..last.range.end);
        let written = write(&self.socket, bytes)?;
        let end = framed(first).start + written;
        // Whatever has begun must go to its end: only messages that have not begun may be dropped.
        let begun = now.iter().take_while(|message| framed(message).start < end).count();
        counters.frames_out += begun as u64;
        if let Some(rest) = begun.checked_sub(1).and_then(|last| now.get(last)) {
            self.queue.begin(outbox.bytes(end..rest.range.end));
        }
        if written < bytes.len() && self.queue.is_empty() {
            // The kernel took whole messages only: the next one waits for its turn.
            if let Some(next) = now.get(begun) {
                self.enqueue(outbox, next, counters);
            }
            return Ok(run.get(begun + 1..).unwrap_or_default());
        }
        Ok(run.get(begun..).unwrap_or_default())
    }

    fn enqueue(&mut self, outbox: &Outbox, message: &Transmit, counters: &mut Counters) {
        counters.stream_messages_dropped += self.queue.push(outbox.bytes(extent(self.framing, message)));
        counters.frames_out += 1;
    }

    /// The kernel takes bytes again.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        while !self.queue.is_empty() {
            let written = write(&self.socket, self.queue.front())?;
            if written == 0 {
                break;
            }
            self.queue.advance(written);
        }
        Ok(())
    }

    /// Until when the device should rest because too much waits here, if at all.
    pub(super) fn rest_until(&mut self, now: Instant) -> Option<Instant> {
        self.queue.rest_until(now)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sets what every stream of the data plane wants. A listener hands these down to what it accepts.
pub(super) fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_GAP);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    // Not every kernel has it, and not everybody may choose it. Reason: TCP inside TCP needs an outer control that does
    // not take random loss for congestion; with cubic outside, 0.5 % loss at 80 ms leaves 2 % of the rate.
    let _ = socket.set_tcp_congestion(b"bbr");
    Ok(())
}

/// Writes what the kernel takes now; 0 when nothing.
fn write(socket: &Socket, bytes: &[u8]) -> Result<usize, Gone> {
    loop {
        match socket.send_with_flags(bytes, libc::MSG_NOSIGNAL) {
            Ok(written) => return Ok(written),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(e) => return Err(Gone::new(Why::Lost, format!("lost: {e}"))),
        }
    }
}

/// Looks at the front of what has arrived; what a whole message counts does not include [`header`].
fn front(framing: Framing, waiting: &[u8]) -> Result<Front, WireError> {
    match framing {
        Framing::Frames => frame::front(waiting),
        Framing::Stun => stun::front(waiting),
    }
}

/// Bytes before a message that belong to the framing alone.
const fn header(framing: Framing) -> usize {
    match framing {
        Framing::Frames => frame::HEADER_LEN,
        Framing::Stun => 0,
    }
}

/// Where a message lies in the arena, with its header.
fn extent(framing: Framing, message: &Transmit) -> std::ops::Range<usize> {
    let headroom = match framing {
        Framing::Frames => STREAM_HEADROOM,
        Framing::Stun => 0,
    };
    message.range.start - headroom..message.range.end
}

/// Whether the second of two messages begins where the first one ends, so that one write takes both.
fn are_neighbours(framing: Framing, pair: &[Transmit]) -> bool {
    match pair {
        [a, b] => a.range.end == extent(framing, b).start && b.range.len() <= frame::MAX_PAYLOAD,
        _ => false,
    }
}

/// Why an attempt to connect ended.
pub(super) fn cannot_connect(error: &io::Error) -> Gone {
    let why = match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => Why::Refused,
        Some(libc::EADDRNOTAVAIL) => Why::Taken,
        Some(libc::ETIMEDOUT) => Why::Silent,
        Some(_) | None => Why::Unreachable,
    };
    Gone::new(why, format!("cannot connect: {error}"))
}

/// Binds to a port that other sockets of this process have too (`SO_REUSEPORT` besides `SO_REUSEADDR`: one of them
/// listens).
pub(super) fn share(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&local.into())
}

/// Sets the time to live (hop limit) of what is sent; `None` for the system's own.
fn set_ttl(socket: &Socket, to: SocketAddr, ttl: Option<u8>) -> io::Result<()> {
    option::set_ttl(socket.as_fd(), to.is_ipv4(), ttl)
}

/// A receive buffer: bytes that wait lie in one piece, and grow only as bytes arrive.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read filled all the room.
    pressed: bool,
}

impl Inbox {
    /// What has arrived and was not taken.
    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Takes `len` bytes behind a header.
    fn take(&mut self, header: usize, len: usize) -> &mut [u8] {
        let from = self.start + header;
        self.start = from + len;
        self.bytes.get_mut(from..from + len).unwrap_or_default()
    }

    /// Where the next bytes go: never empty while a frame is unfinished, of which `missing` bytes are to come at least.
    fn room(&mut self, missing: usize, full: usize) -> &mut [u8] {
        // An unfinished frame moves only when its end would not fit: most do not have to.
        if self.start == self.end || self.bytes.len() - self.end < missing {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if (self.pressed || self.end == self.bytes.len()) && self.bytes.len() < full {
            let grown = (self.bytes.len() * 2).clamp(INBOX_FIRST, full);
            self.bytes.resize(grown, 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `got` bytes were put there.
    fn filled(&mut self, got: usize) {
        self.end += got;
        self.pressed = self.end == self.bytes.len();
    }
}
