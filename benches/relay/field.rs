//! The place where it is measured: two members, a relay, a switch; and how a connection is made by each means.

use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Namespace;
use ntcp_lab::Process;
use ntcp_lab::wire;
use ntcp_overlay::base::hidden::Hidden;
use ntcp_overlay::base::id::RelaySession;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::engine::clock;
use ntcp_overlay::engine::relay::Handle;
use ntcp_overlay::engine::relay::RelayConfig;
use ntcp_overlay::engine::relay::RelayServer;
use ntcp_overlay::identity::agreement::Agreements;
use ntcp_overlay::identity::certificate::Certificate;
use ntcp_overlay::identity::certificate::Roles;
use ntcp_overlay::identity::certificate::Serial;
use ntcp_overlay::identity::certificate::Subject;
use ntcp_overlay::identity::keys::SigningKey;
use ntcp_overlay::identity::keys::WgSecret;
use ntcp_overlay::nat::candidate::Candidate;
use ntcp_overlay::nat::candidate::Kind;
use ntcp_overlay::nat::candidate::Transport;
use ntcp_overlay::relay::client::Order;
use ntcp_overlay::relay::client::Side;
use ntcp_overlay::relay::client::StreamNews;
use ntcp_overlay::relay::server::Config;
use ntcp_overlay::wire::broker::RelayOffer;
use ntcp_overlay::wire::frame;
use ntcp_overlay::wire::relay::Token;
use ntcp_overlay::wire::stun;
use rustix::pipe::SpliceFlags;

use crate::CHUNK;
use crate::datagrams::Post;
use crate::means::Means;
use crate::turn;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const R: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// Port of the relay, and of the forwarders.
const PORT: u16 = 6061;
/// Port at which the far member waits, where the near one can reach it.
const SINK: u16 = 5001;
/// Gates: enough for many sessions of one source, below the ports that the members dial from.
const PORTS: std::ops::RangeInclusive<u16> = 10_000..=31_999;
/// Payload of a relayed frame: a super-packet.
const FRAME: usize = 65_000;
/// Bytes of a pipe.
const PIPE: usize = 1 << 20;

/// The members' namespaces and the relay's.
pub(crate) struct Field {
    a: Namespace,
    b: Namespace,
    r: Namespace,
}

/// Connections by one means.
pub(crate) struct Open {
    pub(crate) pipes: Vec<Pipe>,
    /// Whatever serves them, until it is dropped.
    pub(crate) serving: Serving,
}

/// What runs at the relay's machine beside its kernel.
pub(crate) enum Serving {
    /// Nothing, or a thread that ends with its connections.
    Nothing,
    /// Ours, in this process.
    Ours(#[expect(dead_code, reason = "it serves until it is dropped")] Handle),
    /// Another program.
    Process(Process),
}

/// One connection.
pub(crate) struct Pipe {
    pub(crate) near: TcpStream,
    pub(crate) far: TcpStream,
    /// What is written again and again.
    pub(crate) chunk: Vec<u8>,
    /// What one byte looks like when it is sent there, and back.
    pub(crate) small: [Vec<u8>; 2],
    /// What it looks like when it arrives.
    pub(crate) arrived: [usize; 2],
}

impl Pipe {
    fn plain(near: TcpStream, far: TcpStream) -> Self {
        Self { near, far, chunk: vec![0x5a; CHUNK], small: [vec![1], vec![1]], arrived: [1, 1] }
    }
}

/// A relay of ours that runs.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    secret: WgSecret,
    broker: SigningKey,
}

impl Field {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let switch = lab.router("switch")?;
        switch.ip("link add br0 type bridge\nlink set br0 up")?;
        let mut hosts = Vec::new();
        for (name, address) in [("a", A), ("b", B), ("r", R)] {
            let host = lab.machine(name)?;
            wire::join((&host, "eth0"), (&switch, name), &Link::Plain)?;
            switch.ip(&format!("link set dev {name} master br0\nlink set dev {name} up"))?;
            host.ip(&format!("addr add {address}/24 dev eth0\nlink set eth0 up"))?;
            hosts.push(host);
        }
        let [a, b, r] = <[Namespace; 3]>::try_from(hosts).map_err(|_| anyhow::anyhow!("three hosts"))?;
        // Members reach each other's second address through the relay's machine alone.
        for (host, own, other) in [(&a, "198.51.100.1", "198.51.100.2"), (&b, "198.51.100.2", "198.51.100.1")]
        {
            host.ip(&format!("addr add {own}/32 dev lo\nroute add {other} via {R} src {own}"))?;
        }
        r.ip(&format!("route add 198.51.100.1 via {A}\nroute add 198.51.100.2 via {B}"))?;
        for key in ["all", "default", "eth0"] {
            r.sysctl(&format!("net/ipv4/conf/{key}/send_redirects"), "0")?;
            r.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
        }
        Ok(Self { a, b, r })
    }

    /// So many connections by this means.
    pub(crate) fn open(&self, means: Means, connections: usize) -> Result<Open> {
        let forwards = matches!(means, Means::Router | Means::Nat);
        self.r.sysctl("net/ipv4/ip_forward", if forwards { "1" } else { "0" })?;
        match means {
            Means::Router | Means::Nat => {
                // Connection tracking remembers what was translated, so the rules stay until the next.
                let nat =
                    "table ip nat {\nchain out {\ntype nat hook postrouting priority 100\nmasquerade\n}\n}\n";
                self.r.nft(&format!("flush ruleset\n{}", if means == Means::Nat { nat } else { "" }))?;
                let pipes = self.dial_sink(connections, SocketAddr::from(([198, 51, 100, 2], SINK)))?;
                Ok(Open { pipes, serving: Serving::Nothing })
            }
            Means::Splice2 | Means::Copy => {
                self.r.nft("flush ruleset\n")?;
                self.forward(means == Means::Splice2, connections)?;
                let to = SocketAddr::from((R, PORT));
                // The forwarder joins each connection with the next.
                let pipes = (0..connections).map(|_| Ok(Pipe::plain(dial(&self.a, to)?, dial(&self.b, to)?)));
                Ok(Open { pipes: pipes.collect::<Result<_>>()?, serving: Serving::Nothing })
            }
            Means::Coturn => {
                self.r.nft("flush ruleset\n")?;
                let server = turn::start(&self.r, R)?;
                let at = SocketAddr::from((R, turn::PORT));
                let mut pipes = Vec::new();
                for _ in 0..connections {
                    let (mut near, mut far) = (dial(&self.a, at)?, dial(&self.b, at)?);
                    turn::join(&mut near, &mut far)?;
                    // Between its two allocations it sends datagrams.
                    let (chunk, small) = (turn::message(1200).repeat(54), turn::message(4));
                    let arrived = [small.len(); 2];
                    pipes.push(Pipe { near, far, chunk, small: [small.clone(), small], arrived });
                }
                Ok(Open { pipes, serving: Serving::Process(server) })
            }
            Means::Kernel => {
                self.r.nft("flush ruleset\n")?;
                let relay = self.relay(true)?;
                let pipes = (0..connections).map(|n| self.spliced(&relay, n)).collect::<Result<_>>()?;
                Ok(Open { pipes, serving: Serving::Ours(relay.handle) })
            }
            Means::Userspace => {
                self.r.nft("flush ruleset\n")?;
                let relay = self.relay(false)?;
                let mut pipes = Vec::new();
                for n in 0..connections {
                    let (near, a) = channel(&self.a, &relay, n, 0)?;
                    let (far, b) = channel(&self.b, &relay, n, 1)?;
                    let (chunk, small) = (framed(a, FRAME).repeat(4), [framed(a, 1), framed(b, 1)]);
                    let arrived = [small[0].len(), small[1].len()];
                    pipes.push(Pipe { near, far, chunk, small, arrived });
                }
                Ok(Open { pipes, serving: Serving::Ours(relay.handle) })
            }
        }
    }

    /// A way for datagrams by this means, and what serves it.
    pub(crate) fn post(&self, means: Means) -> Result<(Post, Serving)> {
        let open = |ns: &Namespace, port: u16| -> Result<UdpSocket> {
            Ok(ns.inside(move || UdpSocket::bind(("0.0.0.0", port)))??)
        };
        let plain = |payload: usize| vec![0x5a; payload];
        match means {
            Means::Router | Means::Nat => {
                drop(self.open(means, 0)?);
                let (near, far) = (open(&self.a, 0)?, open(&self.b, SINK)?);
                near.connect(("198.51.100.2", SINK))?;
                Ok((Post { near, far, wrap: Box::new(plain) }, Serving::Nothing))
            }
            Means::Kernel | Means::Userspace => {
                self.r.nft("flush ruleset\n")?;
                let relay = self.relay(means == Means::Kernel)?;
                let ((near, a), (far, _)) =
                    (self.bound(&self.a, &relay, 0, 0)?, self.bound(&self.b, &relay, 0, 1)?);
                near.connect((R, PORT))?;
                let header = a.bound().context("not bound")?.channel.header();
                let wrap = move |payload| [&header[..], &plain(payload)].concat();
                Ok((Post { near, far, wrap: Box::new(wrap) }, Serving::Ours(relay.handle)))
            }
            Means::Coturn => {
                self.r.nft("flush ruleset\n")?;
                let server = turn::start(&self.r, R)?;
                let at = SocketAddr::from((R, turn::PORT));
                let (mut near, mut far) = (turn::socket(&self.a, at)?, turn::socket(&self.b, at)?);
                turn::join(&mut near, &mut far)?;
                Ok((Post { near, far, wrap: Box::new(turn::message) }, Serving::Process(server)))
            }
            Means::Splice2 | Means::Copy => anyhow::bail!("carries no datagrams"),
        }
    }

    /// One session, spliced by the relay's kernel.
    pub(crate) fn spliced(&self, relay: &Running, session: usize) -> Result<Pipe> {
        let (a, b) = (self.gate(&self.a, relay, session, 0)?, self.gate(&self.b, relay, session, 1)?);
        let from = self.a.clone();
        let near = thread::spawn(move || dial(&from, a));
        let far = dial(&self.b, b)?;
        let near = near.join().map_err(|_| anyhow::anyhow!("dialling has panicked"))??;
        Ok(Pipe::plain(near, far))
    }

    /// Our relay, with or without its kernel backend.
    pub(crate) fn relay(&self, kernel: bool) -> Result<Running> {
        let (secret, broker) = (WgSecret::new([9; 32]), SigningKey::from_seed(&[7; 32]));
        let config = RelayConfig {
            listen: vec![SocketAddr::from((R, PORT))],
            secret: secret.clone(),
            broker_keys: vec![broker.public()],
            limits: Config {
                max_sessions: 20_000,
                max_sessions_per_member: usize::MAX,
                max_idle_streams: 4096,
                max_idle_streams_per_source: 4096,
                bind_burst: 100_000,
                ..Config::default()
            },
            splice_ports: kernel.then_some(PORTS),
        };
        let handle = self.r.inside(move || RelayServer::start(config))??;
        if let Some(why) = handle.no_kernel().filter(|_| kernel) {
            anyhow::bail!("no kernel backend: {why}");
        }
        Ok(Running { handle, secret, broker })
    }

    /// Binds one side over UDP; where it is to dial.
    fn gate(&self, ns: &Namespace, relay: &Running, session: usize, side: u8) -> Result<SocketAddr> {
        let (_, client) = self.bound(ns, relay, session, side)?;
        let bound = client.bound().context("not bound")?;
        Ok(SocketAddr::new(IpAddr::V4(R), bound.gate.context("no gate")?.port))
    }

    /// Binds one side over UDP.
    fn bound(&self, ns: &Namespace, relay: &Running, session: usize, side: u8) -> Result<(UdpSocket, Side)> {
        let socket = ns.inside(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut client = relay.side(session, side, Transport::Udp)?;
        let (via, to, bind) = client.poll_transmit().context("no bind")?;
        let mut buffer = [0; 2048];
        // A relay checks only so many new tokens a second, and says nothing to what is beyond.
        let mut ask = || {
            socket.send_to(&bind, to)?;
            socket.recv_from(&mut buffer)
        };
        let answer = (0..20).map(|_| ask()).find(Result::is_ok).context("the relay does not answer")?;
        let (len, from) = answer?;
        let answer = stun::Received::parse(buffer.get(..len).unwrap_or_default())?;
        client.handle_response(via, from, &answer, clock::now());
        client.bound().context("not bound")?;
        Ok((socket, client))
    }

    /// A process that joins each connection with the next, like any relay in user space; it ends with its connections.
    fn forward(&self, splice: bool, pairs: usize) -> Result<()> {
        let listener = self.r.inside(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into())?;
            socket.listen(1024)?;
            Ok::<_, std::io::Error>(TcpListener::from(socket))
        })??;
        thread::spawn(move || -> Result<()> {
            for _ in 0..pairs {
                let (a, b) = (listener.accept()?.0, listener.accept()?.0);
                for (from, to) in [(a.try_clone()?, b.try_clone()?), (b, a)] {
                    to.set_nodelay(true)?;
                    thread::spawn(move || if splice { splice_all(&from, &to) } else { copy_all(from, to) });
                }
            }
            Ok(())
        });
        Ok(())
    }

    fn dial_sink(&self, connections: usize, to: SocketAddr) -> Result<Vec<Pipe>> {
        let listener = self.b.inside(move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], to.port())).into())?;
            socket.listen(1024)?;
            Ok::<_, std::io::Error>(TcpListener::from(socket))
        })??;
        (0..connections).map(|_| Ok(Pipe::plain(dial(&self.a, to)?, listener.accept()?.0))).collect()
    }
}

impl Running {
    fn side(&self, session: usize, side: u8, over: Transport) -> Result<Side> {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(session as u64).to_be_bytes());
        let member = WgSecret::new([side + 1; 32]);
        let token = Token {
            session: RelaySession(id),
            side,
            member: member.public(),
            relay: self.secret.public(),
            expires: clock::now().unix.plus(Duration::from_secs(60)),
        };
        let endpoint =
            Candidate { transport: over, kind: Kind::Configured, addr: SocketAddr::from((R, PORT)) };
        let offer = RelayOffer {
            certificate: Vec::new(),
            endpoints: vec![endpoint],
            session: token.session,
            token: Hidden(token.with_signature(&self.broker.sign(&token.signed_part()))),
        };
        let certificate = Certificate {
            subject: Subject {
                uri: "ntcp://home/relay".parse()?,
                roles: Roles::RELAY,
                addrs: None,
                groups: Vec::new(),
                wg: self.secret.public(),
            },
            serial: Serial([1; 16]),
            not_before: UnixTime::from_secs(0),
            not_after: UnixTime::from_secs(u64::MAX / 2),
            key: [0; 32],
            der: Vec::new(),
        };
        Ok(Side::new(&offer, &mut Agreements::new(member), &certificate, clock::now(), clock::seed())?)
    }
}

/// Binds one side over TCP: the stream, and the header of its channel.
fn channel(ns: &Namespace, relay: &Running, session: usize, side: u8) -> Result<(TcpStream, [u8; 4])> {
    let mut client = relay.side(session, side, Transport::Tcp)?;
    client.handle_timeout(clock::now());
    let Some(Order::Open(to)) = client.poll_order() else { anyhow::bail!("no stream is ordered") };
    let mut stream = dial(ns, to)?;
    client.on_stream_named(StreamId(1));
    client.handle_stream(StreamId(1), StreamNews::Opened, clock::now());
    let (via, to, bind) = client.poll_transmit().context("no bind")?;
    stream.write_all(&[&frame::header(bind.len()).unwrap_or_default()[..], &bind].concat())?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(header))?];
    stream.read_exact(&mut answer)?;
    client.handle_response(via, to, &stun::Received::parse(&answer)?, clock::now());
    Ok((stream, client.bound().context("not bound")?.channel.header()))
}

/// A relayed message in its frame.
fn framed(channel: [u8; 4], payload: usize) -> Vec<u8> {
    let mut bytes = frame::header(4 + payload).unwrap_or_default().to_vec();
    bytes.extend(channel);
    bytes.resize(bytes.len() + payload, 0x5a);
    bytes
}

fn dial(ns: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    let stream = ns.inside(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    let stream = stream.with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn copy_all(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn splice_all(from: &TcpStream, to: &TcpStream) {
    let Ok((out, into)) = rustix::pipe::pipe() else { return };
    let _ = rustix::pipe::fcntl_setpipe_size(&into, PIPE);
    let flags = SpliceFlags::MOVE | SpliceFlags::MORE;
    while let Ok(mut waiting @ 1..) = rustix::pipe::splice(from, None, &into, None, PIPE, SpliceFlags::MOVE) {
        while waiting > 0 {
            let flags = if waiting < 4096 { SpliceFlags::MOVE } else { flags };
            match rustix::pipe::splice(&out, None, to, None, waiting, flags) {
                Ok(n @ 1..) => waiting -= n,
                _ => return,
            }
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
