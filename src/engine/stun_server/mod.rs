//! The `[stun]` role: what a NAT does with UDP and TCP, told to anybody who asks, and done to nobody else.
//!
//! UDP: RFC 8489 and RFC 5780, and clients of RFC 3489 ([`crate::stun::discovery_server`]). TCP: the same Binding answers,
//! and STUNT ([`crate::stunt::server`]). Two addresses and two ports are needed for all tests; what is missing is not
//! announced. Everything works without privileges but the silent port, for which some kernels want CAP_NET_ADMIN, and what
//! only CAP_NET_RAW can do: watching that port, and forged answers there.
//!
//! One thread per UDP socket, one for the tap on the silent port, one task per connection, around two values behind locks
//! that are held for microseconds.

mod knock;
mod sockets;
mod stream;
mod wiretap;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use socket2::Socket;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::sockets::Outlets;
use self::sockets::Sockets;
use crate::base::rng::Rng;
use crate::engine::clock;
use crate::engine::responder;
use crate::engine::responder::Stop;
use crate::io::printer::Printer;
use crate::stun::discovery_server::DiscoveryServer;
use crate::stunt::server::Means;
use crate::stunt::server::StuntServer;
use crate::stunt::server::Ticket;
use crate::wire::enroll::BrokerAddr;
use crate::wire::stun::stunt::Outcome;

/// Where it shall be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    /// Addresses, all with the same port; port 0 is whichever is free.
    pub listen: Vec<SocketAddr>,
    /// What the world calls them, in the same order, behind a one-to-one NAT.
    pub advertise: Vec<IpAddr>,
    /// The other port that answers.
    pub alternate: Option<u16>,
    /// The port that answers nothing.
    pub silent: Option<u16>,
}

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
    /// Their listening keeps the kernel from answering with RST.
    _silent: Vec<Socket>,
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
    discovery: Mutex<DiscoveryServer>,
    stunt: Mutex<StuntServer>,
    outlets: Outlets,
    printer: Option<Printer>,
    /// Who waits for what the tap tells.
    watched: Mutex<BTreeMap<Ticket, oneshot::Sender<Outcome>>>,
    answered: AtomicU64,
    ignored: AtomicU64,
}

impl StunServer {
    /// Opens the sockets and begins to serve, on the current tokio runtime.
    ///
    /// # Errors
    /// When one cannot be had, and what to do about it.
    pub fn start(places: &Places) -> anyhow::Result<Handle> {
        let now = clock::now().instant;
        let sockets = Sockets::open(places)?;
        let raw = sockets.grid.silent().and_then(|port| {
            wiretap::open(port)
                .inspect_err(|error| {
                    tracing::info!(%error, "without CAP_NET_RAW the STUN server offers no forged answers and no view of its silent port");
                })
                .ok()
        });
        let (tap, printer) = raw.map_or((None, None), |(tap, printer)| (Some(tap), Some(printer)));
        let means = Means { own_syn: true, raw: printer.is_some() };
        let grid = sockets.grid.clone();
        let shared = Arc::new(Shared {
            discovery: Mutex::new(DiscoveryServer::new(grid.clone(), now)),
            stunt: Mutex::new(StuntServer::new(grid, means, Rng::new(clock::seed()), now)),
            outlets: sockets.outlets().context("too few file descriptors")?,
            printer,
            watched: Mutex::default(),
            answered: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
        });
        let stop = Stop::new().context("no event descriptor")?;
        let mut handle = Handle {
            addrs: Vec::new(),
            shared: Arc::clone(&shared),
            tasks: Vec::new(),
            threads: Vec::new(),
            stop: stop.clone(),
            _silent: sockets.silent,
        };
        let port = sockets.grid.port();
        for (bound, socket) in sockets.udp {
            if bound.port() == port {
                handle.addrs.push(bound);
            }
            let shared = Arc::clone(&shared);
            let thread = responder::spawn("stun-udp", socket, stop.clone(), move |bytes, from, local| {
                shared.on_datagram(bytes, from, local);
                None
            });
            handle.threads.push(thread.context("no thread for UDP")?);
        }
        for listener in sockets.tcp {
            let listener = TcpListener::from_std(listener).context("the runtime cannot watch a socket")?;
            handle.tasks.push(tokio::spawn(stream::listen(Arc::clone(&shared), listener)));
        }
        if let Some(tap) = tap {
            let heard = move |from, to, segment| {
                let mut stunt = shared.stunt();
                stunt.handle_segment(from, to, segment, clock::now().instant);
                while let Some((ticket, outcome)) = stunt.poll_outcome() {
                    if let Some(tell) = shared.watched().remove(&ticket) {
                        let _ = tell.send(outcome);
                    }
                }
            };
            handle.threads.push(wiretap::spawn(tap, stop, heard).context("no thread for the silent port")?);
        }
        Ok(handle)
    }
}

/// The addresses of STUN servers, one of each family of a name; one that cannot be found is left out, with a word.
pub async fn look_up(servers: &[BrokerAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for server in servers {
        match server {
            BrokerAddr::Addr(addr) => all.push(*addr),
            BrokerAddr::Host(host, port) => match tokio::net::lookup_host((host.as_str(), *port)).await {
                Ok(found) => {
                    let (ipv4, ipv6): (Vec<SocketAddr>, Vec<SocketAddr>) =
                        found.partition(SocketAddr::is_ipv4);
                    all.extend(ipv4.into_iter().take(1).chain(ipv6.into_iter().take(1)));
                }
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
    fn on_datagram(&self, bytes: &[u8], from: SocketAddr, local: SocketAddr) {
        let reply = self.discovery().handle_datagram(bytes, from, local, clock::now().instant);
        let counter = if reply.is_some() { &self.answered } else { &self.ignored };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(reply) = reply {
            self.outlets.send(&reply);
        }
    }

    fn discovery(&self) -> MutexGuard<'_, DiscoveryServer> {
        self.discovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stunt(&self) -> MutexGuard<'_, StuntServer> {
        self.stunt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<Ticket, oneshot::Sender<Outcome>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
