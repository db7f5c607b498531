//! A relay on real sockets: two members meet on it over every mix of transports, and strangers get nothing.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::time::Duration;

use ntcp_overlay::base::hidden::Hidden;
use ntcp_overlay::base::id::RelaySession;
use ntcp_overlay::base::id::SocketId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::time::Now;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::base::transmit::Dial;
use ntcp_overlay::base::transmit::Outbox;
use ntcp_overlay::base::transmit::StreamEvent;
use ntcp_overlay::base::transmit::Via;
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
use ntcp_overlay::io::doors;
use ntcp_overlay::io::doors::Doors;
use ntcp_overlay::nat::candidate::Candidate;
use ntcp_overlay::nat::candidate::Kind;
use ntcp_overlay::nat::candidate::Transport;
use ntcp_overlay::relay::client::Event;
use ntcp_overlay::relay::client::Lost;
use ntcp_overlay::relay::client::Order;
use ntcp_overlay::relay::client::Side;
use ntcp_overlay::relay::client::StreamNews;
use ntcp_overlay::relay::server::Config;
use ntcp_overlay::wire::broker::RelayOffer;
use ntcp_overlay::wire::demux;
use ntcp_overlay::wire::relay::Token;
use ntcp_overlay::wire::relay::split;
use ntcp_overlay::wire::stun;

#[test]
fn two_members_meet_over_udp() {
    meet(&[Transport::Udp], &[Transport::Udp], 1400);
}

#[test]
fn two_members_meet_over_tcp_and_may_send_super_packets() {
    meet(&[Transport::Tcp], &[Transport::Tcp], 65_000);
}

#[test]
fn one_member_on_udp_and_one_on_tcp_meet() {
    meet(&[Transport::Udp], &[Transport::Tcp], 1400);
    meet(&[Transport::Tcp], &[Transport::Udp], 1400);
}

#[test]
fn a_member_on_ipv4_and_one_on_ipv6_meet() {
    let relay = Running::start(&["127.0.0.1:0", "[::1]:0"]);
    let mut a = Member::new(&relay, 0, 0, &[Transport::Udp]);
    let mut b = Member::new(&relay, 1, 1, &[Transport::Udp]);
    bound(&mut a, &mut b);
    exchange(&mut a, &mut b, 1400);
}

#[test]
fn what_members_send_over_udp_is_carried_by_the_kernel_wherever_they_move() {
    ntcp_lab::lab::test(|lab| {
        for (family, [a, b, r], length) in [
            ("v4", ["192.0.2.1", "192.0.2.2", "192.0.2.3"], 24),
            ("v6", ["2001:db8::1", "2001:db8::2", "2001:db8::3"], 64),
        ] {
            let switch = lab.router(&format!("switch{family}"))?;
            switch.ip("link add br0 type bridge\nlink set br0 up")?;
            let mut hosts = Vec::new();
            for (name, address) in [("a", a), ("b", b), ("r", r)] {
                let host = lab.machine(&format!("{name}{family}"))?;
                ntcp_lab::wire::join((&host, "eth0"), (&switch, name), &ntcp_lab::Link::Plain)?;
                switch.ip(&format!("link set dev {name} master br0\nlink set dev {name} up"))?;
                let nodad = if length == 64 { " nodad" } else { "" };
                host.ip(&format!("addr add {address}/{length} dev eth0{nodad}\nlink set eth0 up"))?;
                hosts.push(host);
            }
            let listen = SocketAddr::new(r.parse()?, 6061).to_string();
            let (secret, broker) = (WgSecret::new([9; 32]), SigningKey::from_seed(&[7; 32]));
            let relay = hosts[2]
                .inside(move || Running::start_by(&[&listen], secret, broker, 60, Some(10_000..=10_099)))?;
            assert_eq!(relay.handle.no_kernel(), None);
            let to = relay.handle.addrs()[0];
            let member = |host: usize, number| -> anyhow::Result<Member> {
                let doors = hosts[host].inside(move || doors_to(to))?;
                Ok(Member { doors, ..Member::new(&relay, 0, number, &[Transport::Udp]) })
            };
            let (mut first, mut second) = (member(0, 0)?, member(1, 1)?);
            bound(&mut first, &mut second);
            until("the kernel has the session", || relay.handle.stats().joined == 1);
            exchange(&mut first, &mut second, 1400);
            let stats = relay.handle.stats();
            assert_eq!((stats.messages, stats.rejected()), (0, 0), "{family}: user space has seen something");
            let carried = relay.handle.carried();
            assert_eq!(carried.packets, 20, "{family}");
            assert!(carried.bytes > 20 * 1404, "{family}: {carried:?}");

            // A stranger on the same machine, by another port, with every channel there is: all of it reaches the
            // relay's process, which knows nobody there, and none of it the member.
            let stranger = hosts[0].inside(move || doors_to(to))?;
            let mut stranger = Member { doors: stranger, ..Member::new(&relay, 0, 0, &[Transport::Udp]) };
            for n in 0..0x1000_u16 {
                let [high, low] = (0x4000 | n).to_be_bytes();
                stranger.out.push(Via::udp_for(to), to, &[high, low, 0, 0, 1, 2, 3]);
                if n % 64 == 63 {
                    stranger.doors.send(&mut stranger.out);
                    until("the relay has refused it", || relay.handle.stats().unbound == u64::from(n) + 1);
                }
            }
            assert_eq!(relay.handle.carried(), carried, "{family}");
            exchange(&mut first, &mut second, 100);

            // Another socket of the same member: it is followed there.
            let mut first = member(0, 0)?;
            bound(&mut first, &mut second);
            exchange(&mut first, &mut second, 100);
            let stats = relay.handle.stats();
            assert_eq!((stats.joined, stats.messages), (1, 0), "{family}");
            assert_eq!(relay.handle.carried().packets, 60, "{family}: what was carried before stays counted");
        }
        Ok(())
    });
}

#[test]
fn what_is_sent_first_waits_for_the_member_that_comes_second() {
    let relay = Running::start(&["127.0.0.1:0"]);
    let mut a = Member::new(&relay, 0, 0, &[Transport::Udp]);
    until("a is bound", || {
        a.turn();
        a.side.bound().is_some()
    });
    a.say(b"are you there?");
    until("the relay holds it", || relay.handle.stats().held == 1);
    let mut b = Member::new(&relay, 0, 1, &[Transport::Tcp]);
    until("b has heard a", || {
        b.turn();
        b.heard == [b"are you there?"]
    });
}

#[test]
fn a_member_that_restarts_takes_its_seat_again_from_new_sockets() {
    let relay = Running::start(&["127.0.0.1:0"]);
    let mut a = Member::new(&relay, 0, 0, &[Transport::Udp]);
    let mut b = Member::new(&relay, 0, 1, &[Transport::Tcp]);
    bound(&mut a, &mut b);
    exchange(&mut a, &mut b, 100);
    let mut a = Member::new(&relay, 0, 0, &[Transport::Tcp]);
    bound(&mut a, &mut b);
    exchange(&mut a, &mut b, 100);
    let mut b = Member::new(&relay, 0, 1, &[Transport::Udp]);
    bound(&mut a, &mut b);
    exchange(&mut a, &mut b, 100);
    assert_eq!(relay.handle.stats().sessions, 1);
}

#[test]
fn a_relay_that_restarts_is_found_again() {
    let relay = Running::start(&["127.0.0.1:0"]);
    let mut a = Member::new(&relay, 0, 0, &[Transport::Udp]);
    let mut b = Member::new(&relay, 0, 1, &[Transport::Tcp]);
    bound(&mut a, &mut b);
    let Running { handle, secret, broker, token_secs } = relay;
    let addr = handle.addrs()[0].to_string();
    handle.shutdown().unwrap();
    let relay = Running::start_with(&[&addr], secret, broker, token_secs);
    until("b has lost its stream and found the relay again", || {
        b.turn();
        b.side.bound().is_some() && b.events.len() == 2
    });
    // A datagram socket notices nothing: its owner has to doubt.
    a.side.handle_doubt(clock::now());
    until("a is bound again", || {
        a.turn();
        relay.handle.stats().binds == 2
    });
    exchange(&mut a, &mut b, 100);
}

#[test]
fn strangers_get_no_answer_and_harm_nobody() {
    let relay = Running::start(&["127.0.0.1:0"]);
    let mut a = Member::new(&relay, 0, 0, &[Transport::Udp]);
    let mut b = Member::new(&relay, 0, 1, &[Transport::Tcp]);
    bound(&mut a, &mut b);
    let to = relay.handle.addrs()[0];

    // Over UDP: garbage, a foreign token, a question to a STUN server, every channel there is.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let foreign = SigningKey::from_seed(&[99; 32]);
    let mut forged = relay.offer(0, 0, &[Transport::Udp]);
    forged.token = Hidden(relay.token(0).with_signature(&foreign.sign(&relay.token(0).signed_part())));
    let mut side = side(&forged, &relay, 0);
    let (_, _, bind) = side.poll_transmit().unwrap();
    let binding = stun::Message {
        class: stun::Class::Request,
        method: stun::BINDING,
        transaction: stun::TransactionId([1; 12]),
        attributes: Vec::new(),
    };
    let before = relay.handle.stats();
    let mut sent = 3;
    for message in [vec![0xff; 60_000], bind, binding.emit(stun::Integrity::None)] {
        stranger.send_to(&message, to).unwrap();
    }
    for n in 0..0x1000_u16 {
        stranger.send_to(&[0x40 | (n >> 8) as u8, n as u8, 0, 0, 1, 2, 3], to).unwrap();
        sent += 1;
        if n % 64 == 0 {
            // Not faster than the relay reads: what the kernel drops proves nothing.
            until("the relay has looked at what came", || rejected(&relay) - before.rejected() >= sent);
        }
    }
    until("the relay has looked at it all", || rejected(&relay) - before.rejected() >= sent);

    // Over TCP: the wrong protocol, and a frame that holds no bind.
    let mut web = TcpStream::connect(to).unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    let mut closed = Vec::new();
    match web.read_to_end(&mut closed) {
        Ok(_) => assert_eq!(closed, b""),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
    let mut framed = TcpStream::connect(to).unwrap();
    framed.write_all(&[0, 0, 0, 3, 9, 9, 9]).unwrap();
    until("the frame was looked at", || rejected(&relay) - before.rejected() > sent);

    exchange(&mut a, &mut b, 1000);
    stranger.set_nonblocking(true).unwrap();
    assert_eq!(stranger.recv(&mut [0; 100]).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
    framed.set_nonblocking(true).unwrap();
    assert_eq!(framed.read(&mut [0; 100]).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
    let after = relay.handle.stats();
    assert_eq!((after.sessions, after.binds), (1, before.binds));
    assert_eq!((after.unbound - before.unbound, after.forged - before.forged), (0x1000, 1));
}

#[test]
fn a_broker_is_believed_from_the_moment_it_is_authorised() {
    let (secret, broker) = (WgSecret::new([9; 32]), SigningKey::from_seed(&[8; 32]));
    let mut relay = Running::start_with(&["127.0.0.1:0"], secret, SigningKey::from_seed(&[7; 32]), 60);
    relay.broker = broker;
    let mut a = Member::new(&relay, 0, 0, &[Transport::Udp]);
    until("the relay has refused", || {
        a.turn();
        relay.handle.stats().forged > 0
    });
    assert!(a.side.bound().is_none());
    relay.handle.authorise_broker(relay.broker.public());
    until("a is bound", || {
        a.turn();
        a.side.bound().is_some()
    });
}

#[test]
fn a_member_is_told_when_nobody_listens_over_tcp() {
    let relay = Running::start(&["127.0.0.1:0"]);
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut offer = relay.offer(0, 0, &[Transport::Tcp]);
    offer.endpoints[0].addr = free;
    let mut a = Member { side: side(&offer, &relay, 0), ..Member::new(&relay, 0, 0, &[Transport::Tcp]) };
    until("a gives up", || {
        a.turn();
        !a.events.is_empty()
    });
    let [Event::Lost(Lost::Silent { tcp })] = a.events.as_slice() else { panic!("{:?}", a.events) };
    assert!(tcp.contains("refused"), "{tcp}");
}

#[test]
fn an_address_that_is_taken_is_named_in_the_error() {
    let relay = Running::start(&["127.0.0.1:0"]);
    let addr = relay.handle.addrs()[0];
    let config = RelayConfig {
        listen: vec![addr],
        secret: WgSecret::new([9; 32]),
        broker_keys: Vec::new(),
        limits: Config::default(),
        splice_ports: None,
    };
    let error = format!("{:#}", RelayServer::start(config).unwrap_err());
    assert!(error.contains(&addr.to_string()), "{error}");
    relay.handle.shutdown().unwrap();
}

// Helpers.

fn meet(first: &[Transport], second: &[Transport], size: usize) {
    let relay = Running::start(&["127.0.0.1:0"]);
    let mut a = Member::new(&relay, 0, 0, first);
    let mut b = Member::new(&relay, 0, 1, second);
    bound(&mut a, &mut b);
    exchange(&mut a, &mut b, size);
    let stats = relay.handle.stats();
    assert_eq!((stats.sessions, stats.binds, stats.messages), (1, 2, 20));
}

fn bound(a: &mut Member, b: &mut Member) {
    until("both are bound", || {
        a.turn();
        b.turn();
        a.side.bound().is_some() && b.side.bound().is_some()
    });
}

/// Ten messages each way, in order, unharmed.
fn exchange(a: &mut Member, b: &mut Member, size: usize) {
    for n in 0..10 {
        let (ping, pong) = (vec![n; size], vec![100 + n; size]);
        a.heard.clear();
        b.heard.clear();
        a.say(&ping);
        until("b has heard a", || {
            b.turn();
            b.heard == [ping.clone()]
        });
        b.say(&pong);
        until("a has heard b", || {
            a.turn();
            a.heard == [pong.clone()]
        });
    }
}

/// Calls `done` until it says so; half a minute is more than any machine needs and less than anybody waits.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = clock::now().instant;
    while !done() {
        assert!(clock::now().instant - start < Duration::from_secs(30), "in vain: {what}");
        std::thread::yield_now();
    }
}

fn rejected(relay: &Running) -> u64 {
    relay.handle.stats().rejected()
}

/// A relay, and the broker whose tokens it believes.
struct Running {
    handle: Handle,
    secret: WgSecret,
    broker: SigningKey,
    token_secs: u64,
}

impl Running {
    fn start(listen: &[&str]) -> Self {
        Self::start_with(listen, WgSecret::new([9; 32]), SigningKey::from_seed(&[7; 32]), 60)
    }

    fn start_with(listen: &[&str], secret: WgSecret, broker: SigningKey, token_secs: u64) -> Self {
        Self::start_by(listen, secret, broker, token_secs, None)
    }

    fn start_by(
        listen: &[&str],
        secret: WgSecret,
        broker: SigningKey,
        token_secs: u64,
        splice_ports: Option<RangeInclusive<u16>>,
    ) -> Self {
        let config = RelayConfig {
            listen: listen.iter().map(|text| text.parse().unwrap()).collect(),
            secret: secret.clone(),
            broker_keys: vec![broker.public()],
            limits: Config::default(),
            splice_ports,
        };
        Self { handle: RelayServer::start(config).unwrap(), secret, broker, token_secs }
    }

    fn token(&self, side: u8) -> Token {
        Token {
            session: RelaySession([1; 16]),
            side,
            member: wg(side).public(),
            relay: self.secret.public(),
            expires: clock::now().unix.plus(Duration::from_secs(self.token_secs)),
        }
    }

    fn offer(&self, listener: usize, side: u8, over: &[Transport]) -> RelayOffer {
        let token = self.token(side);
        let candidate = |t: &Transport| Candidate {
            transport: *t,
            kind: Kind::Configured,
            addr: self.handle.addrs()[listener],
        };
        RelayOffer {
            certificate: Vec::new(),
            endpoints: over.iter().map(candidate).collect(),
            session: token.session,
            token: Hidden(token.with_signature(&self.broker.sign(&token.signed_part()))),
        }
    }
}

fn wg(side: u8) -> WgSecret {
    WgSecret::new([side + 1; 32])
}

fn side(offer: &RelayOffer, relay: &Running, number: u8) -> Side {
    let certificate = Certificate {
        subject: Subject {
            uri: "ntcp://home/relay".parse().unwrap(),
            roles: Roles::RELAY,
            addrs: None,
            groups: Vec::new(),
            wg: relay.secret.public(),
        },
        serial: Serial([1; 16]),
        not_before: UnixTime::from_secs(0),
        not_after: UnixTime::from_secs(u64::MAX / 2),
        key: [0; 32],
        der: Vec::new(),
    };
    Side::new(offer, &mut Agreements::new(wg(number)), &certificate, clock::now(), clock::seed()).unwrap()
}

/// Sockets of a member, in the namespace where this is called.
fn doors_to(relay: SocketAddr) -> Doors {
    let mut doors = Doors::new().unwrap();
    let (id, local) = if relay.is_ipv4() { (SocketId::V4, "0.0.0.0:0") } else { (SocketId::V6, "[::]:0") };
    doors.bind_udp(id, local.parse().unwrap()).unwrap();
    doors
}

/// One side with sockets of its own.
struct Member {
    doors: Doors,
    side: Side,
    out: Outbox,
    next_stream: u32,
    heard: Vec<Vec<u8>>,
    events: Vec<Event>,
}

impl Member {
    fn new(relay: &Running, listener: usize, number: u8, over: &[Transport]) -> Self {
        Self {
            doors: doors_to(relay.handle.addrs()[listener]),
            side: side(&relay.offer(listener, number, over), relay, number),
            out: Outbox::default(),
            next_stream: 0,
            heard: Vec::new(),
            events: Vec::new(),
        }
    }

    fn say(&mut self, payload: &[u8]) {
        assert!(self.side.wrap(payload, &mut self.out), "bound");
        self.doors.send(&mut self.out);
    }

    /// What an engine does, once.
    fn turn(&mut self) {
        let now = clock::now();
        let event = self.side.handle_timeout(now);
        self.events.extend(event);
        while let Some(order) = self.side.poll_order() {
            match order {
                Order::Open(to) => {
                    self.next_stream += 1;
                    let id = StreamId(self.next_stream);
                    self.side.on_stream_named(id);
                    self.doors.connect(id, Dial::plain(to));
                }
                Order::Close(id) => self.doors.close(id),
            }
        }
        while let Some((via, to, bytes)) = self.side.poll_transmit() {
            self.out.push(via, to, &bytes);
        }
        self.doors.send(&mut self.out);
        let Self { doors, side, heard, events, .. } = self;
        let mut on = |event: doors::Event<'_>| match event {
            doors::Event::Datagram { via, from, bytes, .. } => {
                events.extend(take_in(side, heard, via, from, bytes, now));
            }
            doors::Event::Stream { id, event: StreamEvent::Frame(bytes) } => {
                let Some(from) = side.stream_endpoint(id) else { return };
                events.extend(take_in(side, heard, Via::Stream(id), from, bytes, now));
            }
            doors::Event::Stream { id, event: StreamEvent::Opened } => {
                events.extend(side.handle_stream(id, StreamNews::Opened, now));
            }
            doors::Event::Stream { id, event: StreamEvent::Closed(gone) } => {
                events.extend(side.handle_stream(id, StreamNews::Closed(gone.text), now));
            }
            doors::Event::Stream { event: StreamEvent::Dialled(_), .. }
            | doors::Event::Accepted { .. }
            | doors::Event::Device
            | doors::Event::Woken => {}
        };
        doors.wait(now.instant, Some(Duration::from_millis(5)), &mut on).unwrap();
    }
}

fn take_in(
    side: &mut Side,
    heard: &mut Vec<Vec<u8>>,
    via: Via,
    from: SocketAddr,
    bytes: &[u8],
    now: Now,
) -> Option<Event> {
    match demux::kind(bytes) {
        demux::Kind::Stun => side.handle_response(via, from, &stun::Received::parse(bytes).unwrap(), now),
        demux::Kind::Relay => {
            let (channel, payload) = split(bytes).unwrap();
            assert!(side.carries(via, from, channel), "{via:?} {from} {channel:?}");
            heard.push(payload.to_vec());
            None
        }
        demux::Kind::Noise | demux::Kind::Unknown => panic!("a relay sends no such thing: {bytes:?}"),
    }
}
