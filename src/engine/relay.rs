//! The relay's thread: moves bytes between its sockets and `relay::server`, and has the kernel splice what it orders.
//!
//! It runs apart from everything else, so that a busy relay delays no broker and no member in the same process, and the
//! other way round. Commands come through a channel and a wake-up; figures go out through a shared copy.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

use crate::base::id::SocketId;
use crate::base::transmit::Outbox;
use crate::base::transmit::StreamEvent;
use crate::engine::clock;
use crate::identity::keys::WgSecret;
use crate::io::doors::Doors;
use crate::io::doors::Event;
use crate::io::doors::Waker;
use crate::io::splice::Carried;
use crate::io::splice::Splicer;
use crate::io::splice::SplicerConfig;
use crate::relay::server::Config;
use crate::relay::server::Relay;
use crate::relay::server::SessionView;
use crate::relay::server::Stats;
use crate::relay::splices::Kernel;
use crate::relay::splices::Order;
use crate::wire::dress::Dress;

/// How long somebody who asks for the sessions waits for the relay's thread. Reason: a turn takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a relay needs to run.
#[derive(Debug)]
pub struct RelayConfig {
    /// Addresses to serve, each over UDP and over TCP. Port 0: any port, the same for both.
    pub listen: Vec<SocketAddr>,
    /// The secret of the X25519 key in the relay's certificate.
    pub secret: WgSecret,
    /// Ed25519 keys of the brokers whose tokens are good here; more may follow.
    pub broker_keys: Vec<[u8; 32]>,
    /// What it gives at most.
    pub limits: Config,
    /// TCP ports at which the kernel may splice sessions; `None`: it does not.
    pub splice_ports: Option<RangeInclusive<u16>>,
}

/// A relay that runs; it stops when this is dropped.
#[derive(Debug)]
pub struct Handle {
    addrs: Vec<SocketAddr>,
    commands: mpsc::Sender<Command>,
    waker: Waker,
    stats: Arc<Mutex<Stats>>,
    no_kernel: Option<String>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug)]
enum Command {
    AuthoriseBroker([u8; 32]),
    Adopt(OwnedFd, SocketAddr),
    List(usize, mpsc::Sender<Vec<SessionView>>),
    Count(mpsc::Sender<Carried>),
    Stop,
}

/// The relay role.
#[derive(Debug)]
pub struct RelayServer;

impl RelayServer {
    /// Opens the sockets and starts the thread.
    ///
    /// # Errors
    /// When there is no address to serve, or one of them cannot be had.
    pub fn start(config: RelayConfig) -> anyhow::Result<Handle> {
        anyhow::ensure!(
            !config.listen.is_empty(),
            "the relay has no address to listen on: set `relay.listen`"
        );
        let mut doors = Doors::new().context("the relay's sockets cannot be opened")?;
        doors.set_accepted_max(config.limits.max_streams);
        let mut addrs = Vec::new();
        for (id, addr) in (0..).zip(config.listen) {
            let hint =
                || format!("the relay cannot listen on {addr}: is the port taken, or the address not here?");
            let local = doors.bind_udp(SocketId(id), addr).with_context(hint)?;
            // Where only the web passes, the entry listens (`engine::entry`), and hands streams over.
            if !Dress::of(local.port()).is_web() {
                doors.listen(local).with_context(hint)?;
            }
            addrs.push(local);
        }
        let mut relay = Relay::new(config.limits, config.secret, clock::seed(), clock::now());
        config.broker_keys.into_iter().for_each(|key| relay.authorise_broker(key));

        let splicer = start_splicer(config.splice_ports, &addrs, config.limits.max_sessions);
        let no_kernel = splicer.as_ref().err().map(ToString::to_string);
        let splicer = splicer.ok();
        if let Some((splicer, kernel)) = &splicer {
            relay.set_kernel(kernel.clone());
            doors.watch_device(splicer.as_fd()).context("the relay's view of its network device")?;
            // The kernel looks at the first message of a train and would hand on all of it.
            doors.receive_singly();
        }
        let splicer = splicer.map(|(splicer, _)| splicer);

        let (commands, inbox) = mpsc::channel();
        let (waker, stats) = (doors.waker(), Arc::new(Mutex::new(Stats::default())));
        let shared = Arc::clone(&stats);
        let work = move || {
            let result = run(doors, relay, splicer.as_ref(), &inbox, &shared);
            if let Err(why) = &result {
                tracing::error!(error = format!("{why:#}"), "the relay has stopped");
            }
            result
        };
        let thread = std::thread::Builder::new().name("relay".to_owned()).spawn(work)?;
        tracing::info!(?addrs, "relay listens");
        Ok(Handle { addrs, commands, waker, stats, no_kernel, thread: Some(thread) })
    }
}

/// The kernel backend, and what the thinking half has to know of it; or why there is none.
fn start_splicer(
    ports: Option<RangeInclusive<u16>>,
    addrs: &[SocketAddr],
    sessions: usize,
) -> anyhow::Result<(Splicer, Kernel)> {
    let ports = ports.context("switched off by relay.splice_ports")?;
    let listen = addrs.iter().map(SocketAddr::ip).collect();
    let doors = addrs.to_vec();
    let splicer = Splicer::start(&SplicerConfig { listen, ports: ports.clone(), doors, sessions })
        .inspect_err(|error| tracing::info!(%error, "the relay copies in user space"))?;
    let (device, mtu) = splicer.device();
    tracing::info!(device, ?ports, "the relay's kernel splices TCP and carries UDP");
    let kernel = Kernel { ports, here: splicer.here().to_vec(), mtu, doors: addrs.to_vec() };
    Ok((splicer, kernel))
}

impl Handle {
    /// The addresses that are served, over UDP and over TCP.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// From now on, tokens signed by this Ed25519 key (of a broker's certificate) open sessions.
    pub fn authorise_broker(&self, key: [u8; 32]) {
        self.command(Command::AuthoriseBroker(key));
    }

    /// Serves a stream that somebody else has accepted from `from`, as if it had come in by TCP.
    pub fn adopt(&self, stream: OwnedFd, from: SocketAddr) {
        self.command(Command::Adopt(stream, from));
    }

    /// What was done so far, as of the last turn of the relay's loop.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the kernel splices no session here, if it does not.
    #[must_use]
    pub fn no_kernel(&self) -> Option<&str> {
        self.no_kernel.as_deref()
    }

    /// What carries which session, and why: at most `most` of them. Waits for the relay's thread, a moment at most.
    #[must_use]
    pub fn sessions(&self, most: usize) -> Vec<SessionView> {
        let (answer, answered) = mpsc::channel();
        self.command(Command::List(most, answer));
        answered.recv_timeout(PATIENCE).unwrap_or_default()
    }

    /// What the kernel has handed on since the start. Waits for the relay's thread, a moment at most.
    #[must_use]
    pub fn carried(&self) -> Carried {
        let (answer, answered) = mpsc::channel();
        self.command(Command::Count(answer));
        answered.recv_timeout(PATIENCE).unwrap_or_default()
    }

    /// Whether the thread is alive; if not, [`Handle::shutdown`] tells why.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Stops the thread and closes the sockets; members find out by themselves and ask their broker.
    ///
    /// # Errors
    /// Why the thread had ended before.
    pub fn shutdown(mut self) -> anyhow::Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.command(Command::Stop);
        thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the relay's thread has panicked")))
    }

    fn command(&self, command: Command) {
        // A thread that has ended takes no commands, and needs none.
        if self.commands.send(command).is_ok() {
            self.waker.wake();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The thread has logged its error itself.
        let _ = self.stop();
    }
}

fn run(
    mut doors: Doors,
    mut relay: Relay,
    splicer: Option<&Splicer>,
    inbox: &mpsc::Receiver<Command>,
    shared: &Mutex<Stats>,
) -> anyhow::Result<()> {
    let mut out = Outbox::default();
    let mut now = clock::now();
    loop {
        let timeout = relay.poll_timeout().map(|at| at.saturating_duration_since(now.instant));
        let (mut fresh, mut tapped) = (None, false);
        let mut on = |event: Event<'_>| {
            let now = *fresh.get_or_insert_with(clock::now);
            match event {
                Event::Datagram { via, from, ecn, bytes } => {
                    relay.handle_message(via, from, ecn, bytes, now, &mut out);
                }
                Event::Accepted { id, from, .. } => relay.handle_stream_accepted(id, from, now),
                Event::Stream { id, event } => match event {
                    StreamEvent::Dialled(_) | StreamEvent::Opened => {}
                    StreamEvent::Frame(bytes) => relay.handle_frame(id, bytes, now, &mut out),
                    StreamEvent::Closed(_) => relay.handle_stream_closed(id),
                },
                Event::Device => tapped = true,
                Event::Woken => {}
            }
        };
        doors.wait(now.instant, timeout, &mut on).context("waiting for the relay's sockets failed")?;
        now = fresh.unwrap_or_else(clock::now);
        if let Some(splicer) = splicer.filter(|_| tapped) {
            splicer.read(|packet| relay.handle_tapped(packet, now, &mut out));
        }
        while let Ok(command) = inbox.try_recv() {
            match command {
                Command::AuthoriseBroker(key) => relay.authorise_broker(key),
                Command::Adopt(stream, from) => {
                    // What is one too many is closed without a word, as at a listener.
                    if let Ok(id) = doors.adopt_accepted(stream) {
                        relay.handle_stream_accepted(id, from, now);
                    }
                }
                Command::List(most, answer) => {
                    // Whoever does not wait any more needs no answer.
                    let _ = answer.send(relay.sessions(most));
                }
                Command::Count(answer) => {
                    let carried = splicer.map(Splicer::carried).transpose();
                    let carried =
                        carried.inspect_err(|error| tracing::warn!(%error, "the kernel does not count"));
                    let _ = answer.send(carried.ok().flatten().unwrap_or_default());
                }
                Command::Stop => return Ok(()),
            }
        }
        relay.handle_timeout(now);
        if let Some(splicer) = splicer {
            obey(&mut relay, splicer);
        }
        // Before anything leaves: whoever has got a message finds it counted.
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = relay.stats();
        doors.send(&mut out);
        while let Some(id) = relay.poll_close() {
            doors.close(id);
        }
    }
}

/// Carries out what the relay orders of its kernel.
fn obey(relay: &mut Relay, splicer: &Splicer) {
    while let Some(order) = relay.poll_order() {
        match order {
            Order::Splice { number, pair } => {
                let done = splicer.splice(number, &pair);
                if let Err(error) = &done {
                    tracing::warn!(%error, "the kernel splices a session not: it is copied in user space");
                }
                relay.handle_spliced(number, done.is_ok());
            }
            Order::Release { number, pair } => {
                if let Err(error) = splicer.release(number, &pair) {
                    tracing::warn!(%error, "the kernel has kept a session that is over");
                }
            }
            Order::Join { number, flow } => {
                let done = splicer.join(number, &flow);
                if let Err(error) = &done {
                    tracing::warn!(%error, "the kernel carries a session's datagrams not: user space copies them");
                }
                relay.handle_joined(number, done.is_ok());
            }
            Order::Part { number, flow } => {
                if let Err(error) = splicer.part(number, &flow) {
                    tracing::warn!(%error, "the kernel has kept datagrams of a session that has moved or is over");
                }
            }
            Order::Send { to, packet } => {
                if let Err(error) = splicer.send(to, &packet) {
                    tracing::debug!(%error, "a packet of the relay's was not sent");
                }
            }
        }
    }
}
