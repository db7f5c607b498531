//! The `[stun]` role: Binding answers for anybody, on UDP and TCP (RFC 8489), and nothing for whoever asks anything else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::base::addr::canonical;
use crate::broker::admission::Admission;
use crate::engine::clock;
use crate::engine::responder;
use crate::engine::responder::Stop;
use crate::stun::limiter::Limiter;
use crate::stun::server;
use crate::wire::enroll::BrokerAddr;
use crate::wire::frame::Front;
use crate::wire::stun;
use crate::wire::stun::Received;

/// How long a TCP client may be silent; it asks at once, or to keep a mapping that it measures (RFC 8489 6.2.2 lets the
/// client close).
const IDLE: Duration = Duration::from_secs(30);
/// Pause when accepting fails (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest request on TCP, bytes; a Binding with everything that RFC 5780 knows has below 200.
const MAX_REQUEST: usize = 1500;

/// The role.
#[derive(Debug)]
pub struct StunServer;

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    addrs: Vec<SocketAddr>,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: Stop,
}

/// What it did since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Requests answered.
    pub answered: u64,
    /// Messages and connections that deserved no answer: garbage, other protocols, too many.
    pub ignored: u64,
}

#[derive(Debug)]
struct Shared {
    /// For TCP; each UDP thread has its own.
    limiter: Mutex<Limiter>,
    /// Every connection counts as half open: nobody proves anything here.
    admission: Mutex<Admission>,
    answered: AtomicU64,
    ignored: AtomicU64,
}

impl StunServer {
    /// Opens the sockets, UDP and TCP on each address, and begins to serve, on the current tokio runtime.
    ///
    /// # Errors
    /// When one cannot be had, and what to do about it.
    pub fn start(addrs: Vec<SocketAddr>) -> anyhow::Result<Handle> {
        let now = clock::now().instant;
        let shared = Arc::new(Shared {
            limiter: Mutex::new(Limiter::new(now)),
            admission: Mutex::default(),
            answered: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
        });
        let stop = Stop::new().context("no event descriptor")?;
        let mut handle = Handle { addrs: Vec::new(), shared, tasks: Vec::new(), threads: Vec::new(), stop };
        for addr in addrs {
            let opened = responder::open_pair(addr);
            let (tcp, udp) = opened.context("the STUN server cannot start: see `listen` in [stun]")?;
            handle.addrs.push(tcp.local_addr()?);
            let (shared, mut limiter) = (Arc::clone(&handle.shared), Limiter::new(now));
            let thread = responder::spawn("stun-udp", udp, handle.stop.clone(), move |bytes, from, local| {
                let allow = |from| limiter.allow(from, clock::now().instant);
                shared.answer(bytes, from, local, allow)
            });
            handle.threads.push(thread.context("no thread for UDP")?);
            let tcp = TcpListener::from_std(tcp).context("the runtime cannot watch a socket")?;
            handle.tasks.push(tokio::spawn(listen(Arc::clone(&handle.shared), tcp)));
        }
        Ok(handle)
    }
}

/// The addresses of STUN servers; one that cannot be found is left out, with a word.
pub async fn look_up(servers: &[BrokerAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for server in servers {
        match server {
            BrokerAddr::Addr(addr) => all.push(*addr),
            BrokerAddr::Host(host, port) => match tokio::net::lookup_host((host.as_str(), *port)).await {
                Ok(found) => all.extend(found.take(1)),
                Err(error) => tracing::warn!(%error, host, "a STUN server's name cannot be looked up"),
            },
        }
    }
    all
}

impl Handle {
    /// Whether all its threads and tasks are alive.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.threads.iter().any(std::thread::JoinHandle::is_finished)
            && !self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Where it listens.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// What it did.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats { answered: read(&self.shared.answered), ignored: read(&self.shared.ignored) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.stop.signal();
    }
}

impl Shared {
    fn answer(
        &self,
        bytes: &[u8],
        from: SocketAddr,
        local: SocketAddr,
        mut allow: impl FnMut(SocketAddr) -> bool,
    ) -> Option<Vec<u8>> {
        let received = Received::parse(bytes).ok();
        let answer = received.filter(|_| allow(from)).and_then(|r| server::respond(&r, from, local));
        let counter = if answer.is_some() { &self.answered } else { &self.ignored };
        counter.fetch_add(1, Ordering::Relaxed);
        answer
    }
}

async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (ip, now) = (canonical(from).ip(), clock::now().instant);
        let admitted = shared.admission.lock().unwrap_or_else(PoisonError::into_inner).admit(ip, now);
        if admitted.is_err() {
            shared.ignored.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if serve(&shared, stream, canonical(from)).await.is_none() {
                shared.ignored.fetch_add(1, Ordering::Relaxed);
            }
            let mut admission = shared.admission.lock().unwrap_or_else(PoisonError::into_inner);
            admission.settled(ip);
            admission.sweep(clock::now().instant);
        });
    }
}

/// Answers one connection until its clean end; `None` if it ends otherwise.
async fn serve(shared: &Shared, mut stream: TcpStream, from: SocketAddr) -> Option<()> {
    let local = canonical(stream.local_addr().ok()?);
    let mut buffer = Vec::new();
    loop {
        while let Front::Whole(len) = stun::front(&buffer).ok()? {
            let message: Vec<u8> = buffer.drain(..len.min(buffer.len())).collect();
            let allow = |from| {
                let mut limiter = shared.limiter.lock().unwrap_or_else(PoisonError::into_inner);
                limiter.allow(from, clock::now().instant)
            };
            let answer = shared.answer(&message, from, local, allow)?;
            tokio::time::timeout(IDLE, stream.write_all(&answer)).await.ok()?.ok()?;
        }
        if buffer.len() > MAX_REQUEST {
            return None;
        }
        let read = tokio::time::timeout(IDLE, stream.read_buf(&mut buffer)).await.ok()?.ok()?;
        if read == 0 {
            return buffer.is_empty().then_some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;
    use crate::wire::stun::BINDING;
    use crate::wire::stun::Integrity;
    use crate::wire::stun::Message;
    use crate::wire::stun::TransactionId;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn start() -> (Handle, SocketAddr) {
        let handle = StunServer::start(vec!["127.0.0.1:0".parse().unwrap()]).unwrap();
        let addr = handle.addrs()[0];
        (handle, addr)
    }

    fn question(n: u8) -> Vec<u8> {
        Message::request(BINDING, TransactionId([n; 12])).emit(Integrity::None)
    }

    #[tokio::test]
    async fn udp_clients_learn_their_address() {
        let (handle, addr) = start();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"garbage", addr).await.unwrap();
        client.send_to(&question(1), addr).await.unwrap();
        let mut buffer = [0; 1500];
        let (len, from) =
            tokio::time::timeout(PATIENCE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
        let answer = Received::parse(&buffer[..len]).unwrap().message;
        assert_eq!((from, answer.mapped()), (addr, client.local_addr().ok()));
        assert_eq!(handle.stats(), Stats { answered: 1, ignored: 1 });
    }

    #[tokio::test]
    async fn tcp_clients_may_ask_twice_and_in_pieces() {
        let (_handle, addr) = start();
        let mut client = TcpStream::connect(addr).await.unwrap();
        let both = [question(1), question(2)].concat();
        let (head, tail) = both.split_at(27);
        client.write_all(head).await.unwrap();
        client.write_all(tail).await.unwrap();
        let mut bytes = vec![0; 64];
        tokio::time::timeout(PATIENCE, client.read_exact(&mut bytes)).await.unwrap().unwrap();
        for (n, answer) in bytes.chunks(32).enumerate() {
            let answer = Received::parse(answer).unwrap().message;
            let wanted = TransactionId([u8::try_from(n + 1).unwrap(); 12]);
            assert_eq!((answer.transaction, answer.mapped()), (wanted, client.local_addr().ok()));
        }
    }

    #[tokio::test]
    async fn whatever_is_no_question_ends_the_connection_in_silence() {
        let (handle, addr) = start();
        for (n, bytes) in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 3000], &[0; 20], b"\x00\x01"].iter().enumerate()
        {
            let mut client = TcpStream::connect(addr).await.unwrap();
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("an end");
            assert_eq!(answer, b"", "case {n}");
        }
        let counted = async {
            while handle.stats().ignored < 4 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, counted).await.expect("each is counted");
    }
}
