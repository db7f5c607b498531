//! The TCP ports of a survey: connections, listeners and half open sockets that share them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::Domain;
use socket2::Protocol;
use socket2::SockRef;
use socket2::Socket;
use socket2::Type;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;

use super::Tasks;
use super::failed;
use crate::discovery::probe::Ask;
use crate::discovery::probe::Dial;
use crate::discovery::probe::End;
use crate::discovery::probe::Finding;
use crate::discovery::probe::Heard;
use crate::discovery::probe::PATIENCE;
use crate::discovery::probe::Probe;
use crate::discovery::probe::Slot;
use crate::discovery::question::Question;
use crate::sys::option;
use crate::wire::frame::Front;
use crate::wire::segment;
use crate::wire::stun;
use crate::wire::stun::Integrity;
use crate::wire::stun::MAX_STREAM_MESSAGE;
use crate::wire::stun::Message;
use crate::wire::stun::Received;
use crate::wire::stun::TransactionId;
use crate::wire::stun::stunt;

/// Connections that may wait at a listener: one test is one connection.
const BACKLOG: i32 = 4;
/// Any number will do for a port that does not look at it.
const ACKNOWLEDGMENT: u32 = 1;

/// The ports, and the connections that are kept.
pub(super) struct Lines {
    local: IpAddr,
    /// Bound and never used, so that the port stays ours.
    ports: BTreeMap<Slot, (u16, Socket)>,
    /// Still dialling, by where they dial.
    half_open: BTreeMap<SocketAddr, Socket>,
    listeners: JoinSet<()>,
    kept: Arc<Mutex<BTreeMap<Question, Line>>>,
}

impl Lines {
    pub(super) fn new(local: IpAddr) -> Self {
        Self {
            local,
            ports: BTreeMap::new(),
            half_open: BTreeMap::new(),
            listeners: JoinSet::new(),
            kept: Arc::default(),
        }
    }

    /// Carries out a probe that belongs here; what takes time goes on in a task.
    pub(super) fn start(&mut self, question: Question, probe: Probe, tasks: &mut Tasks) {
        let (what, done) = match probe {
            Probe::Dial(dial) => return self.dial(question, dial, tasks),
            Probe::Ask(ask) => return self.ask(question, ask, tasks),
            Probe::Listen(slot) => ("listening", self.listen(slot).map(Some)),
            Probe::Syn { from, to, goes_on } => (
                "dialling",
                self.connect(from, to).map(|socket| {
                    // The one before is given up: its repetitions would be taken for this one's SYN.
                    self.half_open.remove(&to);
                    if goes_on {
                        self.half_open.insert(to, socket);
                    }
                    None
                }),
            ),
            Probe::SynAck { from, to, sequence } => {
                ("a segment made by hand", self.syn_ack(from, to, sequence).map(|()| None))
            }
            Probe::Udp(_) | Probe::Trace { .. } | Probe::Wait(_) => ("", Ok(None)),
        };
        let finding = done.map_or_else(|error| failed(what, &error), Finding::Done);
        tasks.spawn(async move { (question, finding) });
    }

    fn dial(&mut self, question: Question, dial: Dial, tasks: &mut Tasks) {
        // Here and not in the task: the order of the SYNs counts.
        let socket =
            if dial.after.is_zero() { self.connect(dial.from, dial.to) } else { self.socket(dial.from) };
        let kept = Arc::clone(&self.kept);
        tasks.spawn(async move {
            let socket = match socket {
                Ok(socket) if !dial.after.is_zero() => {
                    tokio::time::sleep(dial.after).await;
                    begin(socket, dial.to)
                }
                begun => begun,
            };
            let finding = match socket {
                Ok(socket) => converse(question, socket, dial, &kept).await,
                Err(error) => failed("dialling", &error),
            };
            (question, finding)
        });
    }

    fn ask(&self, question: Question, ask: Ask, tasks: &mut Tasks) {
        let line = locked(&self.kept).get(&ask.on).map(Line::share);
        tasks.spawn(async move {
            let Some(shared) = line else {
                return (question, Finding::Failed("the connection is gone".to_owned()));
            };
            tokio::time::sleep(ask.after).await;
            (question, shared.ask(&ask.message, ask.wait, None, false).await)
        });
    }

    fn listen(&mut self, slot: Slot) -> io::Result<SocketAddr> {
        let socket = self.socket(slot)?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let local = listener.local_addr()?;
        // Being connected is all that is tested: each is closed at once.
        self.listeners.spawn(async move {
            loop {
                let _ = listener.accept().await;
            }
        });
        Ok(local)
    }

    fn syn_ack(&mut self, from: Slot, to: SocketAddr, sequence: u32) -> io::Result<()> {
        let source = SocketAddr::new(self.local, self.port(from)?);
        let (SocketAddr::V4(source), SocketAddr::V4(to)) = (source, to) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let flags = stunt::SYN | stunt::ACK;
        let bytes = segment::emit(source, to, sequence, ACKNOWLEDGMENT, flags);
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        raw.bind(&SocketAddr::new(self.local, 0).into())?;
        raw.send_to(&bytes, &SocketAddr::from(to).into()).map(drop)
    }

    /// A socket that has begun to dial.
    fn connect(&mut self, from: Slot, to: SocketAddr) -> io::Result<Socket> {
        begin(self.socket(from)?, to)
    }

    /// One more socket on a slot's port.
    fn socket(&mut self, slot: Slot) -> io::Result<Socket> {
        let port = self.port(slot)?;
        shared(SocketAddr::new(self.local, port))
    }

    fn port(&mut self, slot: Slot) -> io::Result<u16> {
        if let Some((port, _)) = self.ports.get(&slot) {
            return Ok(*port);
        }
        let holder = shared(SocketAddr::new(self.local, 0))?;
        let port = holder.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?.port();
        self.ports.insert(slot, (port, holder));
        Ok(port)
    }
}

/// Begins to dial.
pub(super) fn begin(socket: Socket, to: SocketAddr) -> io::Result<Socket> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Ok(socket)
        }
        done => done.map(|()| socket),
    }
}

/// A TCP socket whose port others may share, also one that listens.
pub(super) fn shared(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// Sees a connection through: established, asked, answered, ended or kept.
async fn converse(
    question: Question,
    socket: Socket,
    dial: Dial,
    kept: &Mutex<BTreeMap<Question, Line>>,
) -> Finding {
    let stream = match tokio::time::timeout(PATIENCE, established(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return match error.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable => Finding::Refused,
                _ => failed("dialling", &error),
            };
        }
        Err(_) => return Finding::Silence,
    };
    let Some(message) = dial.message else { return Finding::Connected };
    let sequence = dial.sequence.then(|| option::initial_sequence(&stream));
    let sequence = sequence.and_then(|sequence| {
        sequence.inspect_err(|error| tracing::debug!(%error, "the kernel tells no sequence numbers")).ok()
    });
    let _ = stream.set_nodelay(true);
    let line = Line::new(stream);
    let is_last = dial.end == End::Half;
    let finding = line.share().ask(&message, PATIENCE + dial.wait, sequence, is_last).await;
    match dial.end {
        End::Keep => {
            locked(kept).insert(question, line);
        }
        End::Half => drop(line),
        End::Close => line.close(false).await,
        End::Reset => line.close(true).await,
    }
    finding
}

async fn established(socket: Socket) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        None => Ok(stream),
        Some(error) => Err(error),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection on which questions are asked; answers come as they are ready.
struct Line {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

struct Shared {
    stream: TcpStream,
    writing: tokio::sync::Mutex<()>,
    waiting: Mutex<BTreeMap<TransactionId, oneshot::Sender<Message>>>,
    /// Whether the connection ended with a RST.
    reset: AtomicBool,
}

impl Line {
    fn new(stream: TcpStream) -> Self {
        let shared = Arc::new(Shared {
            stream,
            writing: tokio::sync::Mutex::default(),
            waiting: Mutex::default(),
            reset: AtomicBool::new(false),
        });
        let reader = tokio::spawn(read(Arc::clone(&shared)));
        Self { shared, reader }
    }

    fn share(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Ends it, and returns when it has ended: the same port may be used for the next at once.
    async fn close(mut self, reset: bool) {
        if reset {
            let _ = SockRef::from(&self.shared.stream).set_linger(Some(Duration::ZERO));
        }
        self.reader.abort();
        let _ = (&mut self.reader).await;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    /// Asks, and waits for the answer; if nothing more will be asked, this side of the connection ends.
    async fn ask(&self, message: &Message, wait: Duration, sequence: Option<u32>, is_last: bool) -> Finding {
        let (answered, answer) = oneshot::channel();
        locked(&self.waiting).insert(message.transaction, answered);
        if let Err(error) = self.write(&message.emit(Integrity::None)).await {
            return failed("asking", &error);
        }
        if is_last && let Err(error) = SockRef::from(&self.stream).shutdown(Shutdown::Write) {
            return failed("ending a connection", &error);
        }
        let (Ok(source), Ok(local)) = (self.stream.peer_addr(), self.stream.local_addr()) else {
            return Finding::Failed("the connection has ended".to_owned());
        };
        match tokio::time::timeout(wait, answer).await {
            Ok(Ok(message)) => Finding::Heard(Heard { source, local, message, sequence }),
            Ok(Err(_)) if self.reset.load(Ordering::Relaxed) => Finding::Refused,
            Ok(Err(_)) => Finding::Failed("the server has ended the connection".to_owned()),
            Err(_) => Finding::Silence,
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().await;
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Hands each message to whoever waits for it, until the connection ends or says what cannot be understood.
async fn read(shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    let mut chunk = [0; MAX_STREAM_MESSAGE];
    loop {
        while let Ok(Front::Whole(len)) = stun::front(&buffer) {
            let rest = buffer.split_off(len);
            let Ok(received) = Received::parse(&buffer) else { return end(&shared) };
            if let Some(waiting) = locked(&shared.waiting).remove(&received.message.transaction) {
                let _ = waiting.send(received.message);
            }
            buffer = rest;
        }
        if stun::front(&buffer).is_err() || shared.stream.readable().await.is_err() {
            return end(&shared);
        }
        match shared.stream.try_read(&mut chunk) {
            Ok(0) => return end(&shared),
            Ok(len) => buffer.extend_from_slice(chunk.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                shared.reset.store(error.kind() == io::ErrorKind::ConnectionReset, Ordering::Relaxed);
                return end(&shared);
            }
        }
    }
}

/// Nobody will be answered any more.
fn end(shared: &Shared) {
    locked(&shared.waiting).clear();
}
