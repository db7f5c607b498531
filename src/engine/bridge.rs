//! Streams of a data thread that are not plain TCP: through a proxy, in TLS, in a WebSocket.
//!
//! A data thread moves bytes of plain sockets and nothing else. So a task here opens such a stream, gives the thread one
//! end of a socket pair, and carries bytes between the other end and the network. What is on its way is bounded: two
//! small socket buffers, one buffer for each direction, and what the kernel holds unsent for the network; whoever writes
//! more has to wait, and then the data thread drops whole messages, as with any other stream.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use crate::base::id::StreamId;
use crate::config::proxy::Proxies;
use crate::engine::dial;
use crate::engine::dial::Duplex;
use crate::engine::dial::GIVE_UP;
use crate::engine::dial::Reached;
use crate::engine::member::Command;
use crate::engine::member::Commands;
use crate::engine::tls;
use crate::wire::dress::Dress;
use crate::wire::enroll::BrokerAddr;

/// A stream over which nothing came for so long carries nothing any more: whoever is bound at a relay binds again every
/// 25 s, and is answered.
const IDLE: Duration = Duration::from_secs(120);
/// Bytes taken at a time in one direction: one frame of the largest kind.
const BUFFER: usize = 64 << 10;
/// Kernel's buffer at each end of a socket pair, bytes, as asked for; it takes twice that.
const PAIR_BUFFER: usize = 64 << 10;
/// Streams at a time. Each costs some 400 KiB when it is busy, and stands for one session at a relay.
const MAX_BRIDGES: usize = 64;

/// Opens streams for a member's data thread.
#[derive(Clone, Debug)]
pub struct Bridges {
    tls: Arc<ClientConfig>,
    proxies: Proxies,
    member: Commands,
    room: Arc<Semaphore>,
}

impl Bridges {
    /// Towards relays that the CA `ca` (DER) has signed.
    ///
    /// # Errors
    /// If `ca` is no CA certificate.
    pub fn new(ca: &[u8], proxies: Proxies, member: Commands) -> anyhow::Result<Self> {
        let room = Arc::new(Semaphore::new(MAX_BRIDGES));
        Ok(Self { tls: tls::relay_client(ca)?, proxies, member, room })
    }

    /// Opens stream `id` to the relay at `to`, in a task of its own; the member hears what becomes of it.
    pub fn open(&self, id: StreamId, to: SocketAddr) {
        let bridges = self.clone();
        tokio::spawn(async move {
            let outcome = match Arc::clone(&bridges.room).try_acquire_owned() {
                Ok(_room) => bridges.carry(id, to).await,
                Err(_) => Err(format!("{MAX_BRIDGES} streams through proxies or TLS are open already")),
            };
            if let Err(why) = outcome {
                bridges.member.send(Command::NotOpened(id, why));
            }
        });
    }

    async fn carry(&self, id: StreamId, to: SocketAddr) -> Result<(), String> {
        let proxy = self.proxies.route_addr(to).cloned();
        let way = Reached { at: BrokerAddr::Addr(to), proxy };
        let opened = tokio::time::timeout(GIVE_UP, self.dress(&way)).await;
        let far = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
            if error.kind() == io::ErrorKind::TimedOut {
                format!("{way} does not answer")
            } else {
                format!("{way}: {error}")
            }
        })?;
        tracing::debug!(%way, "a stream to a relay is open");
        let (near, theirs) = pair().map_err(|error| format!("no socket pair: {error}"))?;
        self.member.send(Command::Adopt(id, theirs));
        pump(near, far).await;
        Ok(())
    }

    /// A connection that looks as its port demands.
    async fn dress(&self, way: &Reached) -> io::Result<Box<dyn Duplex>> {
        let (stream, _) = dial::open(way).await?;
        if !Dress::of(way.at.port()).is_web() {
            return Ok(stream);
        }
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(tls::relay_name(), stream).await?;
        if tls.get_ref().1.alpn_protocol() != Some(tls::RELAY_ALPN) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "speaks TLS but is no relay"));
        }
        Ok(Box::new(tls))
    }
}

/// Two ends of one stream: for a task here, and for a data thread.
///
/// # Errors
/// When the kernel gives no more descriptors.
pub fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    for end in [&near, &far] {
        let socket = SockRef::from(end);
        socket.set_send_buffer_size(PAIR_BUFFER)?;
        socket.set_nonblocking(true)?;
    }
    Ok((UnixStream::from_std(near)?, OwnedFd::from(far)))
}

/// Carries bytes both ways until one side ends, fails, or says nothing for too long.
pub async fn pump<A, B>(a: A, b: B)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((read_a, write_a), (read_b, write_b)) = (tokio::io::split(a), tokio::io::split(b));
    tokio::select! {
        _ = one_way(read_a, write_b) => {}
        _ = one_way(read_b, write_a) => {}
    }
}

async fn one_way<R, W>(mut from: R, mut to: W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    while let count @ 1.. = tokio::time::timeout(IDLE, from.read(&mut buffer)).await?? {
        to.write_all(buffer.get(..count).unwrap_or_default()).await?;
        to.flush().await?;
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_one_side_writes_the_other_reads_and_an_end_ends_both() {
        let (near, theirs) = pair().unwrap();
        let (far, mut network) = tokio::io::duplex(1000);
        let task = tokio::spawn(pump(near, far));
        let std = std::os::unix::net::UnixStream::from(theirs);
        let mut thread = UnixStream::from_std(std).unwrap();
        let sent = vec![7; 300_000];
        let mut arrived = vec![0; sent.len()];
        let (wrote, read) = tokio::join!(thread.write_all(&sent), network.read_exact(&mut arrived));
        wrote.unwrap();
        read.unwrap();
        assert_eq!(arrived, sent);
        network.write_all(b"back").await.unwrap();
        drop(network);
        let mut back = Vec::new();
        thread.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"back");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_far_end_that_does_not_read_stops_the_near_one() {
        let (near, theirs) = pair().unwrap();
        let (far, _network) = tokio::io::duplex(1000);
        tokio::spawn(pump(near, far));
        let mut taken = 0;
        let std = std::os::unix::net::UnixStream::from(theirs);
        let thread = UnixStream::from_std(std).unwrap();
        // Until the kernel refuses more for a while in which the task had its turns.
        for _ in 0..200 {
            tokio::task::yield_now().await;
            while let Ok(count) = thread.try_write(&[0; 10_000]) {
                taken += count;
            }
        }
        assert!(taken > BUFFER && taken < 8 * BUFFER, "{taken} bytes are on their way");
    }
}
