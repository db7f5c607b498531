//! The data thread of a member: owns the node, the device and the sockets, and moves bytes and time between them.
//!
//! One thread, no hand-offs: what a readiness brings is handled at once, and what that gives out is sent in one batch.
//! The control half (link to the broker, control socket, netlink) lives on another thread and talks to this one by
//! values: [`Command`] in, [`News`] out.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::base::id::SocketId;
use crate::base::id::StreamId;
use crate::base::transmit::Dial;
use crate::base::transmit::Gone;
use crate::base::transmit::StreamEvent;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Why;
use crate::config::proxy::Proxies;
use crate::device::Tun;
use crate::engine::clock;
use crate::identity::revocation::RevocationList;
use crate::io::doors::Doors;
use crate::io::doors::Event;
use crate::io::doors::Waker;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::node::Config;
use crate::node::Me;
use crate::node::Node;
use crate::node::Ports;
use crate::node::output::Notice;
use crate::node::output::Order;
use crate::node::output::Output;
use crate::node::rendezvous::LinkUp;
use crate::node::request::Reply;
use crate::node::request::Request;
use crate::path::Transport;
use crate::wire::broker::FromBroker;
use crate::wire::broker::Register;
use crate::wire::broker::ToBroker;
use crate::wire::dress::Dress;

/// Packets read from the device before the sockets get their turn: a few super-packets, each counted by its segments.
const DEVICE_TURN: usize = 256;
/// What a super-packet that leaves whole counts for at least: four of them are a turn, and fit what a stream may queue.
const SUPER_PACKET: usize = DEVICE_TURN / 4;
/// Datagrams handled before the clock is read again. Reason: a look at both clocks costs 3 % of opening a datagram, and 16
/// of them take 20 microseconds.
const CLOCK_EVERY: u32 = 16;
/// Room for one packet of the device and its padding, bytes: the largest IP packet and then some.
const PACKET_ROOM: usize = 65_535 + 64;

/// From the control half to the data thread.
#[derive(Debug)]
pub enum Command {
    /// The link to the broker is up.
    LinkUp(Box<LinkUp>),
    /// It is down; why, in words.
    LinkDown(String),
    /// A message of the broker.
    Broker(Box<FromBroker>),
    /// The machine's addresses.
    Network(Vec<IpAddr>),
    /// How the NATs in front treat UDP and TCP, as far as it was measured.
    Profile(Box<Profile>),
    /// What the gateway forwards to us.
    Forwarded(Vec<Candidate>),
    /// An operator's question and the way back.
    Request(Request, oneshot::Sender<Reply>),
    /// A stream that was to be opened elsewhere is open, and this is its near end.
    Adopt(StreamId, OwnedFd),
    /// It could not be opened; why, in words.
    NotOpened(StreamId, String),
    /// End.
    Stop,
}

/// From the data thread to the control half. Unbounded, because it is: each comes from an event that is itself limited.
#[derive(Debug)]
pub enum News {
    /// Send to the broker.
    ToBroker(Box<ToBroker>),
    /// Say this at registration from now on.
    Register(Box<Register>),
    /// Store this certificate (DER) and use it.
    Certificate(Vec<u8>),
    /// Store this revocation list (signed bytes).
    Revocations(Vec<u8>),
    /// Open this stream to a relay through a proxy or in TLS, and answer [`Command::Adopt`] or [`Command::NotOpened`].
    Open(StreamId, SocketAddr),
    /// For people.
    Notice(Notice),
    /// The thread has ended; why, in words, if it was not asked to.
    Ended(Option<String>),
}

/// What the data thread starts with.
#[derive(Debug)]
pub struct Parts {
    /// Who we are.
    pub me: Me,
    /// How we behave.
    pub config: Config,
    /// The newest list that was stored.
    pub revocations: RevocationList,
    /// The device, configured.
    pub tun: Tun,
    /// Port of the data sockets; 0 for any.
    pub listen_port: u16,
    /// Whether datagrams may cross the border to the kernel in runs.
    pub offload: bool,
    /// The machine's addresses.
    pub addrs: Vec<IpAddr>,
    /// How relays are reached.
    pub proxies: Proxies,
}

/// Hands commands to a data thread.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: mpsc::Sender<Command>,
    waker: Waker,
}

impl Commands {
    /// Hands a command over.
    pub fn send(&self, command: Command) {
        let _ = self.queue.send(command);
        self.waker.wake();
    }
}

/// The control half's end of a data thread.
#[derive(Debug)]
pub struct Member {
    commands: Commands,
    thread: Option<JoinHandle<()>>,
    register: Register,
    ports: Ports,
}

struct Loop {
    node: Node,
    doors: Doors,
    tun: Tun,
    out: Output,
    streams: BTreeMap<StreamId, SocketAddr>,
    ports: Ports,
    news: UnboundedSender<News>,
    packet: Vec<u8>,
    proxies: Proxies,
}

impl Member {
    /// Opens the data sockets and starts the thread.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn start(parts: Parts, news: UnboundedSender<News>) -> anyhow::Result<Self> {
        let mut doors = Doors::new().context("opening the data sockets")?;
        doors.set_offload(parts.offload);
        doors.expect_super_packets();
        let ports = bind(&mut doors, parts.listen_port, &parts.config)?;
        doors.watch_device(parts.tun.as_fd()).context("watching the TUN device")?;
        let (queue, inbox) = mpsc::channel();
        let commands = Commands { queue, waker: doors.waker() };
        let now = clock::now();
        let node = Node::new(parts.me, parts.config, parts.revocations, clock::seed(), now);
        let out = Output::default();
        let packet = vec![0; PACKET_ROOM];
        let (streams, proxies) = (BTreeMap::new(), parts.proxies);
        let mut looped = Loop { node, doors, tun: parts.tun, out, streams, ports, news, packet, proxies };
        looped.node.handle_network(&parts.addrs, ports, now, &mut looped.out);
        let register = looped.node.register();
        let run = move || {
            let news = looped.news.clone();
            let why = looped.run(&inbox).err().map(|error| format!("{error:#}"));
            let _ = news.send(News::Ended(why));
        };
        let thread = std::thread::Builder::new().name("data".to_owned()).spawn(run)?;
        Ok(Self { commands, thread: Some(thread), register, ports })
    }

    /// What to say at the first registration.
    #[must_use]
    pub fn register(&self) -> Register {
        self.register.clone()
    }

    /// Ports of the data sockets and of the TCP listener.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Hands a command over.
    pub fn send(&self, command: Command) {
        self.commands.send(command);
    }

    /// Whoever has this can hand over commands too.
    #[must_use]
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// Ends the thread; the device goes with it.
    pub fn stop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Binds both families and both transports to one port where that can be had. IPv6 is optional: many hosts have none.
fn bind(doors: &mut Doors, port: u16, config: &Config) -> anyhow::Result<Ports> {
    let mut ports = Ports::default();
    let taken = |transport: &str| {
        format!(
            "binding {transport} port {port}: is another program using it? Choose another member.listen_port, or 0"
        )
    };
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    if config.udp {
        ports.udp_v4 = doors.bind_udp(SocketId::V4, (v4, port).into()).with_context(|| taken("UDP"))?.port();
        let same = doors.bind_udp(SocketId::V6, (v6, ports.udp_v4).into());
        let bound = same.or_else(|_| doors.bind_udp(SocketId::V6, (v6, 0).into()));
        let bound = bound.inspect_err(|error| tracing::debug!(%error, "no IPv6 data socket"));
        ports.udp_v6 = bound.map_or(0, |addr| addr.port());
    }
    let (usual, exceptions) = &config.transport;
    if exceptions.values().chain([usual]).any(|transport| *transport != Transport::Udp) {
        let wanted = if port == 0 { ports.udp_v4 } else { port };
        let bound = match doors.listen((v4, wanted).into()) {
            Err(_) if port == 0 => doors.listen((v4, 0).into()),
            bound => bound,
        };
        ports.tcp_v4 = bound.with_context(|| taken("TCP"))?.port();
        let bound = doors.listen((v6, ports.tcp_v4).into()).or_else(|_| doors.listen((v6, 0).into()));
        let bound = bound.inspect_err(|error| tracing::debug!(%error, "no IPv6 listener"));
        ports.tcp_v6 = bound.map_or(0, |addr| addr.port());
    }
    Ok(ports)
}

impl Loop {
    fn run(&mut self, inbox: &mpsc::Receiver<Command>) -> anyhow::Result<()> {
        loop {
            let now = clock::now();
            let (due, reason) = self.node.poll_timeout();
            if due <= now.instant {
                tracing::trace!(reason, "deadline");
                self.node.handle_timeout(now, &mut self.out);
                self.flush();
            }
            let (woken, readable) = self.wait()?;
            if readable {
                self.read_device()?;
            }
            if woken && self.obey(inbox) {
                return Ok(());
            }
            self.flush();
            self.doors
                .rest_device(self.tun.as_fd(), clock::now().instant)
                .context("watching the TUN device")?;
        }
    }

    /// Waits, and takes in what sockets and streams have; whether the waker called, whether the device is readable.
    fn wait(&mut self) -> anyhow::Result<(bool, bool)> {
        let (node, out, streams) = (&mut self.node, &mut self.out, &mut self.streams);
        let now = clock::now().instant;
        let timeout = node.poll_timeout().0.saturating_duration_since(now);
        let (mut woken, mut readable) = (false, false);
        let (mut moment, mut uses) = (None, 0);
        let mut on = |event: Event<'_>| match event {
            Event::Datagram { via, from, ecn, bytes } => {
                uses += 1;
                let fresh = moment.filter(|_| uses % CLOCK_EVERY != 0).unwrap_or_else(clock::now);
                moment = Some(fresh);
                node.handle_message(via, from, ecn, bytes, fresh, out);
            }
            Event::Stream { id, event } => {
                let closed = matches!(event, StreamEvent::Closed(_));
                if let Some(from) = streams.get(&id) {
                    node.handle_stream(id, event, *from, clock::now(), out);
                }
                if closed {
                    streams.remove(&id);
                }
            }
            Event::Device => readable = true,
            Event::Woken => woken = true,
            Event::Accepted { id, from, port, .. } => {
                streams.insert(id, from);
                node.handle_accepted(id, port, from, clock::now(), out);
            }
        };
        self.doors.wait(now, Some(timeout), &mut on).context("waiting for the sockets")?;
        Ok((woken, readable))
    }

    fn read_device(&mut self) -> anyhow::Result<()> {
        let now = clock::now();
        let mut count = 0;
        while count < DEVICE_TURN || self.tun.is_pending() {
            if let Some(whole) = self.tun.super_packet().context("reading the TUN device")? {
                let parts = whole.len / usize::from(whole.size.get());
                if self.node.handle_super_packet(whole.buffer, whole.len, whole.size, now, &mut self.out) {
                    self.tun.take_super_packet();
                    count += parts.max(SUPER_PACKET);
                    continue;
                }
            }
            count += 1;
            let room = PACKET_ROOM - 64;
            let Some(buffer) = self.packet.get_mut(..room) else { break };
            match self.tun.recv(buffer) {
                Ok(Some(len)) => self.node.handle_packet(&mut self.packet, len, now, &mut self.out),
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading the TUN device"),
            }
        }
        Ok(())
    }

    /// Carries out what the control half wants; true to stop.
    fn obey(&mut self, inbox: &mpsc::Receiver<Command>) -> bool {
        loop {
            let now = clock::now();
            let out = &mut self.out;
            match inbox.try_recv() {
                Ok(Command::LinkUp(up)) => self.node.handle_link_up(*up, now, out),
                Ok(Command::LinkDown(why)) => self.node.handle_link_down(why, now, out),
                Ok(Command::Broker(message)) => self.node.handle_broker(*message, now, out),
                Ok(Command::Network(addrs)) => self.node.handle_network(&addrs, self.ports, now, out),
                Ok(Command::Profile(profile)) => self.node.handle_profile(*profile, now, out),
                Ok(Command::Forwarded(candidates)) => self.node.handle_forwarded(candidates, out),
                Ok(Command::Request(request, reply)) => {
                    let _ = reply.send(self.node.handle_request(request, now, out));
                }
                Ok(Command::Adopt(id, fd)) => self.adopt(id, fd),
                Ok(Command::NotOpened(id, why)) => self.on_not_opened(id, why),
                Err(mpsc::TryRecvError::Empty) => return false,
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// Empties the output. Orders first: a message may be for a stream that an order opens.
    fn flush(&mut self) {
        while let Some(order) = self.out.orders.pop_front() {
            let news = match order {
                Order::Stream(order) => {
                    self.work_on_streams(order);
                    continue;
                }
                Order::Broker(message) => News::ToBroker(Box::new(message)),
                Order::Register(register) => News::Register(Box::new(register)),
                Order::StoreCertificate(der) => News::Certificate(der),
                Order::StoreRevocations(bytes) => News::Revocations(bytes),
            };
            let _ = self.news.send(news);
        }
        if !self.out.outbox.is_empty() {
            self.doors.send(&mut self.out.outbox);
        }
        if !self.out.packets.is_empty() {
            self.tun.send_all(&self.out.packets);
            self.out.packets.clear();
        }
        while let Some(notice) = self.out.notices.pop_front() {
            let _ = self.news.send(News::Notice(notice));
        }
    }

    /// Whether a stream is one to a relay that plain TCP does not reach.
    fn is_bridged(&self, dial: Dial) -> bool {
        let dressed = Dress::of(dial.to.port()).is_web();
        dial.to_relay && (dressed || self.proxies.route_addr(dial.to).is_some())
    }

    /// A stream was opened for us. It may not be wanted any more: then it is closed by being dropped.
    fn adopt(&mut self, id: StreamId, fd: OwnedFd) {
        let Some(to) = self.streams.get(&id).copied() else { return };
        match self.doors.adopt(id, fd) {
            Ok(()) => self.node.handle_stream(id, StreamEvent::Opened, to, clock::now(), &mut self.out),
            Err(error) => self.on_not_opened(id, error.to_string()),
        }
    }

    fn on_not_opened(&mut self, id: StreamId, why: String) {
        let Some(to) = self.streams.remove(&id) else { return };
        let gone = StreamEvent::Closed(Gone::new(Why::Unreachable, why));
        self.node.handle_stream(id, gone, to, clock::now(), &mut self.out);
    }

    fn work_on_streams(&mut self, order: StreamOrder) {
        match order {
            StreamOrder::Open(id, dial) => {
                self.streams.insert(id, dial.to);
                if self.is_bridged(dial) {
                    let _ = self.news.send(News::Open(id, dial.to));
                } else {
                    self.doors.connect(id, dial);
                }
            }
            StreamOrder::Close(id) => {
                self.streams.remove(&id);
                self.doors.close(id);
            }
            StreamOrder::RaiseTtl(id) => self.doors.raise_ttl(id),
            StreamOrder::Bind(port) => {
                let bound = self.doors.bind_port(port);
                self.node.handle_bound(port, bound, clock::now(), &mut self.out);
            }
            StreamOrder::Print(to, packet) => {
                if let Err(error) = self.doors.print(&packet, to) {
                    tracing::debug!(%error, "a segment made by hand was not sent");
                }
            }
            StreamOrder::Unbind(port) => self.doors.unbind_port(port),
            StreamOrder::OpenUdp(socket) => {
                // Whoever ordered it waits for an answer on it, for a while.
                if let Err(error) = self.doors.bind_udp(socket, (Ipv4Addr::UNSPECIFIED, 0).into()) {
                    tracing::debug!(%error, "no socket for a search for ports");
                }
            }
            StreamOrder::CloseUdp(socket) => self.doors.close_udp(socket),
        }
    }
}
