//! The relay's door for those who can only reach the web: TLS on port 443, TLS in a WebSocket on port 80, and inside it the
//! frames that the relay speaks on plain TCP.
//!
//! Beside a broker in the same process the relay needs no port of its own: the broker's listeners hand over whoever asks
//! for the relay's protocol (ALPN) there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::server::Accepted;
use socket2::Domain;
use socket2::Protocol;
use socket2::SockRef;
use socket2::Socket;
use socket2::Type;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio_rustls::server::StartHandshake;

use crate::base::addr::canonical;
use crate::broker::admission::Admission;
use crate::engine::bridge;
use crate::engine::clock;
use crate::engine::dial;
use crate::engine::relay;
use crate::engine::tls;
use crate::engine::websocket;
use crate::identity::credentials::Credentials;
use crate::wire::dress::Dress;

/// From the connection's start to the end of TLS: three round trips, and 600 ms is a satellite's.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause when accepting fails (no descriptors left): trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that may wait in the kernel for their turn.
const BACKLOG: i32 = 1024;

/// The door.
#[derive(Debug)]
pub struct Entry {
    relay: Arc<relay::Handle>,
    tls: RwLock<Arc<ServerConfig>>,
    admission: Mutex<Admission>,
}

/// Listens on one address and one family.
///
/// # Errors
/// When the address cannot be had; how to go on.
pub fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let open = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().with_context(|| {
        format!("the relay cannot listen on TCP {addr}: is the port taken, by a web server say, or the address not here?")
    })
}

impl Entry {
    /// To this relay, whose certificate is shown.
    ///
    /// # Errors
    /// If the credentials do not fit together.
    pub fn new(relay: Arc<relay::Handle>, credentials: &Credentials) -> anyhow::Result<Self> {
        let tls = RwLock::new(tls::relay_server(credentials)?);
        Ok(Self { relay, tls, admission: Mutex::default() })
    }

    /// Shows a newer certificate from now on.
    pub fn renew(&self, credentials: &Credentials) {
        match tls::relay_server(credentials) {
            Ok(tls) => *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the relay's new certificate is not used")
            }
        }
    }

    /// Accepts connections until the task is aborted. The listener's port says how they are dressed.
    pub async fn listen(self: Arc<Self>, listener: TcpListener) {
        let dress = listener.local_addr().map_or(Dress::Tls, |at| Dress::of(at.port()));
        loop {
            match listener.accept().await {
                Ok((stream, source)) => {
                    let (source, now) = (canonical(source), clock::now().instant);
                    let admitted = self.admission().admit(source.ip(), now);
                    if admitted.is_ok() {
                        let entry = Arc::clone(&self);
                        tokio::spawn(async move { entry.connection(stream, source, dress).await });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the relay cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes over somebody whose hello asks for the relay: TLS, and then bytes until the end. `settled` is called when the
    /// handshake is over.
    pub async fn serve<S>(&self, hello: Accepted, stream: S, source: SocketAddr, settled: impl FnOnce())
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner));
        let handshake = StartHandshake::from_parts(hello, stream).into_stream(config);
        let done = tokio::time::timeout(HANDSHAKE, handshake).await;
        settled();
        let Ok(Ok(tls)) = done else { return };
        match bridge::pair() {
            Ok((near, theirs)) => {
                self.relay.adopt(theirs, source);
                bridge::pump(near, tls).await;
            }
            Err(error) => tracing::warn!(%error, "the relay cannot take in a stream"),
        }
    }

    async fn connection(&self, stream: TcpStream, source: SocketAddr, dress: Dress) {
        let settled = || self.admission().settled(source.ip());
        if stream.set_nodelay(true).and_then(|()| dial::tune(&SockRef::from(&stream))).is_err() {
            return settled();
        }
        let opening = async {
            let mut stream: Box<dyn dial::Duplex> = match dress {
                Dress::WebSocket => Box::new(websocket::accept(stream).await.ok()?),
                Dress::Tls | Dress::Plain => Box::new(stream),
            };
            let hello = tls::hello(&mut stream).await?;
            tls::asks_for(&hello, tls::RELAY_ALPN).then_some((hello, stream))
        };
        match tokio::time::timeout(HANDSHAKE, opening).await {
            Ok(Some((hello, stream))) => self.serve(hello, stream, source, settled).await,
            Ok(None) | Err(_) => settled(),
        }
    }

    fn admission(&self) -> std::sync::MutexGuard<'_, Admission> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
