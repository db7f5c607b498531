//! The broker's TCP side: who may knock, TLS, then one task per connection. Whoever is not understood gets no answer.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::server::Accepted;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio_rustls::server::StartHandshake;
use tokio_rustls::server::TlsStream;

use crate::base::addr::canonical;
use crate::base::hidden::Hidden;
use crate::base::id::RequestId;
use crate::broker::admission::Source;
use crate::broker::registry::ConnId;
use crate::engine::broker::hub::Hub;
use crate::engine::broker::hub::Ticket;
use crate::engine::broker::look;
use crate::engine::broker::work::Work;
use crate::engine::clock;
use crate::engine::dial::Duplex;
use crate::engine::framed::FrameReader;
use crate::engine::framed::write_frame;
use crate::engine::tls;
use crate::engine::websocket;
use crate::wire::WireError;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MAX_AUTHENTICATED;
use crate::wire::broker::MAX_UNAUTHENTICATED;
use crate::wire::broker::Refusal;
use crate::wire::broker::ToBroker;
use crate::wire::dress::Dress;
use crate::wire::enroll::SigningRequest;

/// From the first byte to the first message: TLS needs three round trips, and 600 ms is a satellite's.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Silence after which a connection is closed: members ping every 20 s.
const IDLE: Duration = Duration::from_secs(90);
/// How long what is queued may take to leave when a connection ends.
const LINGER: Duration = Duration::from_secs(2);
/// Pause when accepting fails (no descriptors left): trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the task is aborted.
pub(super) async fn listen(hub: Arc<Hub>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, source)) => {
                let source = canonical(source);
                count(&hub.tcp_counters.accepted);
                if let Some(pass) = Pass::new(&hub, source.ip()) {
                    tokio::spawn(connection(Arc::clone(&hub), stream, source, pass));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the broker cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Counts a connection as half open while it lives.
pub(super) struct Pass {
    hub: Arc<Hub>,
    ip: IpAddr,
}

impl Pass {
    fn new(hub: &Arc<Hub>, ip: IpAddr) -> Option<Self> {
        let now = clock::now().instant;
        let admitted = hub.admission.lock().unwrap_or_else(PoisonError::into_inner).admit(ip, now);
        match admitted {
            Ok(()) => Some(Self { hub: Arc::clone(hub), ip }),
            Err(why) => {
                count(&hub.tcp_counters.denied);
                tracing::debug!(%ip, ?why, "a connection is turned away");
                None
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.hub.admission.lock().unwrap_or_else(PoisonError::into_inner).settled(self.ip);
    }
}

async fn connection(hub: Arc<Hub>, stream: TcpStream, source: SocketAddr, pass: Pass) {
    // A TLS record of a client begins with 22 (RFC 8446 5.1), a STUN request with 0 (RFC 8489 5).
    let mut first = [0];
    let peeked = tokio::time::timeout(HANDSHAKE, stream.peek(&mut first)).await;
    if matches!(peeked, Ok(Ok(1))) && first == [0] {
        return look::serve(&hub, stream, source, pass).await;
    }
    let Ok(local) = stream.local_addr() else { return };
    let Ok(Some((hello, stream))) = tokio::time::timeout(HANDSHAKE, hello(&hub, stream, local.port())).await
    else {
        return count(&hub.tcp_counters.garbage);
    };
    if let Some(relay) = hub.relay.get()
        && tls::asks_for(&hello, tls::RELAY_ALPN)
    {
        return relay.serve(hello, stream, source, move || drop(pass)).await;
    }
    let Ok(Some(tls)) = tokio::time::timeout(HANDSHAKE, handshake(&hub, hello, stream)).await else { return };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|der| der.to_vec());
    match certificate {
        None => guest(&hub, tls, source).await,
        Some(der) => member(&hub, tls, &der, (source, local), pass).await,
    }
}

/// What comes before TLS: a client hello that asks for something that is spoken here. Anything else gets no answer; on the
/// web's own port, that of a web server.
async fn hello(hub: &Hub, stream: TcpStream, port: u16) -> Option<(Accepted, Box<dyn Duplex>)> {
    stream.set_nodelay(true).ok()?;
    let mut stream: Box<dyn Duplex> = match Dress::of(port) {
        Dress::WebSocket => Box::new(websocket::accept(stream).await.ok()?),
        Dress::Tls | Dress::Plain => Box::new(stream),
    };
    let hello = tls::hello(&mut stream).await?;
    let spoken = tls::asks_for(&hello, tls::ALPN)
        || hub.relay.get().is_some() && tls::asks_for(&hello, tls::RELAY_ALPN);
    spoken.then_some((hello, stream))
}

async fn handshake(
    hub: &Hub,
    hello: Accepted,
    stream: Box<dyn Duplex>,
) -> Option<TlsStream<Box<dyn Duplex>>> {
    let tls = StartHandshake::from_parts(hello, stream).into_stream(hub.tls()).await;
    if let Err(error) = &tls {
        count(&hub.tcp_counters.handshake_failed);
        tracing::debug!(%error, "a TLS handshake failed");
    }
    tls.ok()
}

/// Somebody without a certificate: one message, one answer.
async fn guest(hub: &Hub, tls: TlsStream<Box<dyn Duplex>>, source: SocketAddr) {
    let (read, mut write) = tokio::io::split(tls);
    let mut reader = FrameReader::new(read, MAX_UNAUTHENTICATED);
    let first = tokio::time::timeout(HANDSHAKE, reader.next()).await;
    let message = match first {
        Ok(Ok(Some(bytes))) => ToBroker::parse(&bytes).ok(),
        _ => None,
    };
    let Some(ToBroker::Redeem { secret, request }) = message else {
        count(&hub.tcp_counters.malformed);
        return;
    };
    let answer = match redeem(hub, secret, &request, source.ip()).await {
        Ok(certificate) => {
            count(&hub.tcp_counters.enrolled);
            FromBroker::Enrolled { certificate }
        }
        Err((why, text)) => {
            count(&hub.tcp_counters.refused_guests);
            FromBroker::Refused { request: RequestId(0), why, text }
        }
    };
    if write_frame(&mut write, &answer.emit()).await.is_ok() {
        let _ = tokio::time::timeout(LINGER, write.shutdown()).await;
    }
}

async fn redeem(
    hub: &Hub,
    secret: Hidden<[u8; 32]>,
    request: &[u8],
    from: IpAddr,
) -> Result<Vec<u8>, (Refusal, String)> {
    let refuse = |why, text: &str| Err((why, text.to_owned()));
    let now = clock::now().instant;
    if !hub.redeems.lock().unwrap_or_else(PoisonError::into_inner).take(Source::of(from), now) {
        return refuse(Refusal::TooMany, "too many enrolments from your address: wait a minute");
    }
    let Ok(request) = SigningRequest::parse(request) else {
        return refuse(Refusal::Malformed, "the signing request is not one: versions differ too much?");
    };
    let (answer, answered) = oneshot::channel();
    hub.order(Work::Redeem { secret, request: Box::new(request), from, answer });
    match answered.await {
        Ok(answer) => answer,
        Err(_) => refuse(Refusal::NoAuthority, "the broker is shutting down: try again"),
    }
}

/// Somebody with a certificate, from registration to the end.
async fn member(
    hub: &Hub,
    tls: TlsStream<Box<dyn Duplex>>,
    der: &[u8],
    (source, local): (SocketAddr, SocketAddr),
    pass: Pass,
) {
    let key = tls.get_ref().1.export_keying_material([0; 32], tls::REGISTRATION_LABEL, None);
    let Ok(key) = key else { return };
    // TLS has checked the chain; this checks what TLS does not know: the network, the roles, our own clock.
    let certificate = match hub.anchor.verify(der, clock::now().unix) {
        Ok(certificate) if certificate.subject.roles.member || certificate.subject.roles.relay => certificate,
        Ok(_) => return turn_away(hub, tls, "your certificate is neither a member's nor a relay's").await,
        Err(why) => return turn_away(hub, tls, &format!("your certificate is not accepted: {why}")).await,
    };
    let name = certificate.subject.uri.name.clone();
    tracing::debug!(%name, %source, "connected");
    let Ticket { conn, mut queue } = hub.connected(certificate, source, local, key);
    let (read, mut write) = tokio::io::split(tls);
    let mut reader = FrameReader::new(read, MAX_AUTHENTICATED);
    let mut writing = std::pin::pin!(write_all(&mut queue, &mut write));
    let why = tokio::select! {
        why = &mut writing => why,
        why = read_all(hub, conn, &mut reader, pass) => {
            hub.on_closed(conn);
            // The queue ends by that; what is in it still leaves.
            let _ = tokio::time::timeout(LINGER, writing).await;
            why
        }
    };
    hub.on_closed(conn);
    tracing::debug!(%name, why, "disconnected");
}

async fn turn_away(hub: &Hub, mut tls: TlsStream<Box<dyn Duplex>>, text: &str) {
    count(&hub.tcp_counters.handshake_failed);
    let answer =
        FromBroker::Refused { request: RequestId(0), why: Refusal::Forbidden, text: text.to_owned() };
    if write_frame(&mut tls, &answer.emit()).await.is_ok() {
        let _ = tokio::time::timeout(LINGER, tls.shutdown()).await;
    }
}

async fn read_all(
    hub: &Hub,
    conn: ConnId,
    reader: &mut FrameReader<tokio::io::ReadHalf<TlsStream<Box<dyn Duplex>>>>,
    pass: Pass,
) -> &'static str {
    let mut pass = Some(pass);
    loop {
        let patience = if pass.is_some() { HANDSHAKE } else { IDLE };
        let frame = match tokio::time::timeout(patience, reader.next()).await {
            Err(_) => return "silent for too long",
            Ok(Ok(None)) => return "closed by the other side",
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                count(&hub.tcp_counters.malformed);
                return "a message over the cap, or broken TLS";
            }
            Ok(Err(_)) => return "the connection broke",
            Ok(Ok(Some(frame))) => frame,
        };
        match ToBroker::parse(&frame) {
            Ok(message) => hub.on_message(conn, message),
            // A newer program may say things that this one does not know.
            Err(WireError::Unknown) => count(&hub.tcp_counters.malformed),
            Err(_) => {
                count(&hub.tcp_counters.malformed);
                return "a message that makes no sense";
            }
        }
        pass = None;
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    queue: &mut mpsc::Receiver<Vec<u8>>,
    write: &mut W,
) -> &'static str {
    while let Some(message) = queue.recv().await {
        if write_frame(write, &message).await.is_err() {
            return "the other side does not read";
        }
    }
    let _ = tokio::time::timeout(LINGER, write.shutdown()).await;
    "closed by the broker"
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
