//! TCP connections to the STUN role: requests in, answers as they are ready, tests meanwhile.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Shared;
use super::knock::knock;
use crate::base::addr::canonical;
use crate::engine::clock;
use crate::stunt::server::Done;
use crate::stunt::server::Order;
use crate::stunt::server::Ticket;
use crate::stunt::server::Verdict;
use crate::sys::option;
use crate::wire::frame::Front;
use crate::wire::stun;
use crate::wire::stun::BINDING;
use crate::wire::stun::Received;
use crate::wire::stun::captured;
use crate::wire::stun::stunt::Event;
use crate::wire::stun::stunt::Outcome;
use crate::wire::stun::stunt::Segment;

/// How long a client may be silent while nothing of his runs. Discovery asks at once and is done in 15 s; whoever wants his
/// mapping to live for a punch asks again, or has a wait running.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take to read an answer, and the network to acknowledge it.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Pause when accepting fails (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest request, bytes; one with everything that RFC 5780 and STUNT know has below 200.
const MAX_REQUEST: usize = 1500;

/// One client's connection.
struct Client {
    shared: Arc<Shared>,
    from: SocketAddr,
    local: SocketAddr,
    /// Its SYN, and when the connection came.
    syn: Option<(Segment, Instant)>,
}

/// A probe that runs; gives it up when it is dropped before its end.
struct Probing {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.shared.watched().remove(&self.ticket);
        self.shared.stunt().handle_abandoned(self.ticket);
    }
}

/// Accepts for ever.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (from, now) = (canonical(from), clock::now().instant);
        if !shared.stunt().handle_connected(from, now) {
            shared.ignored.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if serve(Arc::clone(&shared), stream, from, now).await.is_none() {
                shared.ignored.fetch_add(1, Ordering::Relaxed);
            }
            shared.stunt().handle_closed(from);
        });
    }
}

/// Answers one connection until its clean end; `None` if it ends otherwise.
async fn serve(shared: Arc<Shared>, mut stream: TcpStream, from: SocketAddr, now: Instant) -> Option<()> {
    let local = canonical(stream.local_addr().ok()?);
    SockRef::from(&stream).set_tcp_user_timeout(Some(READ_WITHIN)).ok()?;
    stream.set_nodelay(true).ok()?;
    let saved = option::saved_syn(stream.as_fd()).unwrap_or_default();
    let syn = captured::read(&saved).ok().map(|(.., segment)| (segment, now));
    let client = Client { shared, from, local, syn };
    let (mut reader, mut writer) = stream.split();
    let (mut buffer, mut probes) = (Vec::new(), JoinSet::new());
    // A client that ends its side still hears what it has asked for: so it learns what its NAT keeps after a FIN.
    let mut is_ended = false;
    loop {
        while let Front::Whole(len) = stun::front(&buffer).ok()? {
            let message: Vec<u8> = buffer.drain(..len.min(buffer.len())).collect();
            match client.heard(&message)? {
                Verdict::Answer(answer) => {
                    tokio::time::timeout(READ_WITHIN, writer.write_all(&answer)).await.ok()?.ok()?;
                }
                Verdict::Act(ticket, order) => {
                    let probing = Probing { shared: Arc::clone(&client.shared), ticket };
                    probes.spawn(act(probing, order));
                }
            }
        }
        if buffer.len() > MAX_REQUEST {
            return None;
        }
        tokio::select! {
            read = reader.read_buf(&mut buffer), if !is_ended => {
                if read.ok()? == 0 {
                    if !buffer.is_empty() {
                        return None;
                    }
                    is_ended = true;
                }
            }
            Some(answer) = probes.join_next() => {
                if let Ok(Some(answer)) = answer {
                    tokio::time::timeout(READ_WITHIN, writer.write_all(&answer)).await.ok()?.ok()?;
                }
            }
            () = tokio::time::sleep(IDLE), if probes.is_empty() => return None,
        }
        if is_ended && probes.is_empty() {
            return Some(());
        }
    }
}

impl Client {
    /// What to do with a message; `None` if the connection deserves no more.
    fn heard(&self, message: &[u8]) -> Option<Verdict> {
        let now = clock::now().instant;
        let received = Received::parse(message).ok()?;
        let verdict = if received.message.method == BINDING {
            let offers = self.shared.stunt().offers(self.local);
            let server = self.shared.discovery();
            server.answer_on_stream(&received, self.from, self.local, Some(offers)).map(Verdict::Answer)?
        } else {
            let syn = self
                .syn
                .as_ref()
                .map(|(segment, at)| Segment { age: now.saturating_duration_since(*at), ..segment.clone() });
            let ends = (self.from, self.local);
            self.shared.stunt().handle_request(&received, ends, syn.as_ref(), now)?
        };
        self.shared.answered.fetch_add(1, Ordering::Relaxed);
        Some(verdict)
    }
}

/// Carries an order out; the answer to its request.
async fn act(probing: Probing, order: Order) -> Option<Vec<u8>> {
    let done = match order {
        Order::Connect { from, to, watch } => knock(from, to, watch).await,
        Order::Wait(wait) => {
            tokio::time::sleep(wait).await;
            ended(Event::Sent, wait)
        }
        Order::Send { packet, to, watch } => {
            let (tell, told) = oneshot::channel();
            probing.shared.watched().insert(probing.ticket, tell);
            let sent = probing.shared.printer.as_ref().map(|printer| printer.send(&packet, to));
            match (sent, watch) {
                (Some(Ok(())), None) => ended(Event::Sent, Duration::ZERO),
                (Some(Ok(())), Some(watch)) => match tokio::time::timeout(watch, told).await {
                    Ok(Ok(outcome)) => Done::Outcome { from: UNNAMED, outcome },
                    Ok(Err(_)) | Err(_) => ended(Event::Silence, watch),
                },
                (Some(Err(_)) | None, _) => Done::Failed,
            }
        }
    };
    probing.shared.stunt().handle_done(probing.ticket, done)
}

/// In place of an endpoint that the order has named.
const UNNAMED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

fn ended(event: Event, after: Duration) -> Done {
    Done::Outcome { from: UNNAMED, outcome: Outcome { event, after } }
}
