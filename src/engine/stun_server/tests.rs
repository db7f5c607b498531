//! The role on loopback: real sockets, two addresses, no NAT. What needs a privilege says so if it cannot run.

use std::net::Ipv4Addr;
use std::time::Duration;

use socket2::SockRef;
use socket2::Type;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;

use super::*;
use crate::wire::frame::Front;
use crate::wire::stun;
use crate::wire::stun::Attribute;
use crate::wire::stun::BINDING;
use crate::wire::stun::Integrity;
use crate::wire::stun::Message;
use crate::wire::stun::Received;
use crate::wire::stun::STUNT_PROBE;
use crate::wire::stun::STUNT_SEEN;
use crate::wire::stun::TransactionId;
use crate::wire::stun::stunt;
use crate::wire::stun::stunt::Action;
use crate::wire::stun::stunt::Event;
use crate::wire::stun::stunt::Port;
use crate::wire::stun::stunt::Probe;

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// Two addresses, three ports each.
fn start() -> Handle {
    let places = Places {
        listen: vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()],
        advertise: vec![],
        alternate: Some(0),
        silent: Some(0),
    };
    StunServer::start(&places).unwrap()
}

fn question(n: u8) -> Message {
    Message::request(BINDING, TransactionId([n; 12]))
}

#[tokio::test]
async fn udp_clients_learn_their_address_and_may_ask_for_an_answer_from_elsewhere() {
    let handle = start();
    let addr = handle.addrs()[0];
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(b"garbage", addr).await.unwrap();
    for (ip, port) in [(false, false), (true, false), (false, true), (true, true)] {
        let request = question(1).with(Attribute::ChangeRequest { ip, port });
        client.send_to(&request.emit(Integrity::None), addr).await.unwrap();
        let mut buffer = [0; 1500];
        let (len, from) =
            tokio::time::timeout(PATIENCE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
        let answer = Received::parse(&buffer[..len]).unwrap().message;
        assert_eq!((answer.mapped(), answer.origin()), (client.local_addr().ok(), Some(from)));
        assert_eq!((from.ip() != addr.ip(), from.port() != addr.port()), (ip, port));
        let other = answer.other_address().unwrap();
        assert!(other.ip() != addr.ip() && other.port() != addr.port());
    }
    assert_eq!(handle.stats(), Stats { answered: 4, ignored: 1 });
}

#[tokio::test]
async fn tcp_clients_may_ask_twice_and_in_pieces_on_every_port() {
    let handle = start();
    let alternate = Client::connect(handle.addrs()[0]).await.offer().await.alternate.unwrap();
    for addr in handle.addrs() {
        for port in [addr.port(), alternate] {
            let mut client = TcpStream::connect((addr.ip(), port)).await.unwrap();
            let both = [question(1).emit(Integrity::None), question(2).emit(Integrity::None)].concat();
            let (head, tail) = both.split_at(27);
            client.write_all(head).await.unwrap();
            client.write_all(tail).await.unwrap();
            let local = client.local_addr().ok();
            let mut client = Client { stream: client, buffer: Vec::new() };
            for n in 1..=2 {
                let answer = client.hear().await.unwrap();
                assert_eq!((answer.transaction, answer.mapped()), (TransactionId([n; 12]), local));
            }
        }
    }
}

#[tokio::test]
async fn whatever_is_no_question_ends_the_connection_in_silence() {
    let handle = start();
    let cases = [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 3000], &[0; 20], b"\x00\x01"];
    for (n, bytes) in cases.iter().enumerate() {
        let mut client = TcpStream::connect(handle.addrs()[0]).await.unwrap();
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

#[tokio::test]
async fn stunt_is_for_connections_alone() {
    let handle = start();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let probe = Message::request(STUNT_PROBE, TransactionId([1; 12])).with(Attribute::StuntProbe(connect()));
    client.send_to(&probe.emit(Integrity::None), handle.addrs()[0]).await.unwrap();
    client.send_to(&question(2).emit(Integrity::None), handle.addrs()[0]).await.unwrap();
    let mut buffer = [0; 1500];
    let len = tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Received::parse(&buffer[..len]).unwrap().message;
    assert_eq!(answer.transaction, TransactionId([2; 12]), "the first got none");
}

#[tokio::test]
async fn the_server_connects_back_from_wherever_it_is_asked_to_and_closes_in_peace() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let offer = client.offer().await;
    assert_eq!(offer.addresses, handle.addrs().iter().map(SocketAddr::ip).collect::<Vec<_>>());
    let listener = client.listen_beside();
    for (address, port, from) in [
        (0, Port::Alternate, SocketAddr::new(offer.addresses[0], offer.alternate.unwrap())),
        (1, Port::Main, SocketAddr::new(offer.addresses[1], offer.port)),
        (1, Port::Alternate, SocketAddr::new(offer.addresses[1], offer.alternate.unwrap())),
        (1, Port::Any, SocketAddr::new(offer.addresses[1], 0)),
    ] {
        let answer = client.probe(Probe { address, port, ..connect() }).await;
        let (accepted, seen) = listener.accept().unwrap();
        assert_eq!(answer.stunt_outcome().map(|outcome| outcome.event), Some(Event::Connected), "{from}");
        assert_eq!(answer.origin(), Some(seen));
        assert_eq!(answer.mapped(), client.stream.local_addr().ok());
        assert!(seen.ip() == from.ip() && (from.port() == 0 || seen.port() == from.port()));
        accepted.set_nonblocking(true).unwrap();
        let mut accepted = TcpStream::from_std(accepted).unwrap();
        let end = tokio::time::timeout(PATIENCE, accepted.read(&mut [0; 9])).await;
        assert_eq!(end.unwrap().unwrap(), 0, "not a byte, then FIN");
    }
}

#[tokio::test]
async fn what_a_closed_port_a_silent_one_and_a_busy_one_do_is_told_apart() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let closed = client.probe(Probe { port: Port::Alternate, ..connect() }).await;
    assert_eq!(closed.stunt_outcome().map(|outcome| outcome.event), Some(Event::Reset), "nobody listens");

    let silent = client.listen_beside();
    if SockRef::from(&silent).attach_filter(&[sockets::filter::DROP]).is_ok() {
        let quiet = client.probe(Probe { port: Port::Alternate, ..connect() }).await.stunt_outcome().unwrap();
        assert_eq!((quiet.event, quiet.after >= SHORT), (Event::Silence, true));
    } else {
        eprintln!("NOT RUN: a silent client needs CAP_NET_ADMIN on this kernel");
    }

    let busy = client.probe(connect()).await; // from where the connection itself goes to
    assert_eq!(busy.error().map(|(code, _)| code), Some(409));
    let nowhere = client.probe(Probe { address: 2, ..connect() }).await;
    assert_eq!(nowhere.error().map(|(code, _)| code), Some(403));
}

/// Gaballo's fourth test: a SYN went to the silent port, and one comes back from there.
#[tokio::test]
async fn a_syn_to_the_silent_port_gets_silence_and_then_a_syn() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let offer = client.offer().await;
    let Some(silent) = offer.silent.map(|port| SocketAddr::new(offer.addresses[1], port)) else {
        assert!(!offer.can.silent);
        eprintln!("NOT RUN: a silent port needs CAP_NET_ADMIN on this kernel");
        return;
    };
    let dialled = client.dial_beside(silent);
    tokio::time::sleep(SHORT).await;
    assert!(dialled.peer_addr().is_err(), "neither connected nor refused");
    assert!(dialled.take_error().unwrap().is_none());
    let answer = client.probe(Probe { address: 1, port: Port::Silent, ..connect() }).await;
    assert_eq!(answer.stunt_outcome().map(|outcome| outcome.event), Some(Event::Connected));
    assert_eq!(dialled.peer_addr().unwrap().as_socket(), Some(silent), "both have dialled each other");
}

#[tokio::test]
async fn a_crossing_syn_of_the_client_is_not_taken_for_an_answer() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let offer = client.offer().await;
    let Some(silent) = offer.silent.map(|port| SocketAddr::new(offer.addresses[1], port)) else {
        assert!(!offer.can.silent);
        eprintln!("NOT RUN: a silent port needs CAP_NET_ADMIN on this kernel");
        return;
    };
    let dialled = client.dial_beside(silent);
    // A NAT that lets nothing in; the client's kernel repeats its SYN after a second.
    dialled.attach_filter(&[sockets::filter::DROP]).unwrap();
    let watch = Duration::from_millis(1500);
    let answer = client.probe(Probe { address: 1, port: Port::Silent, watch, ..connect() }).await;
    assert_eq!(answer.stunt_outcome().map(|outcome| outcome.event), Some(Event::Silence));
}

#[tokio::test]
async fn the_server_tells_what_the_syn_of_the_connection_looked_like() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let seen = client.ask(Message::request(STUNT_SEEN, TransactionId([5; 12]))).await;
    let segment = seen.stunt_segments().next().unwrap();
    assert_eq!(segment.flags & (stunt::SYN | stunt::ACK), stunt::SYN);
    assert_eq!(Some(segment.source), client.stream.local_addr().ok().map(|addr| addr.port()));
    assert_eq!(segment.destination, handle.addrs()[0].port());
    assert!(segment.ttl > 1 && segment.mss().is_some());
}

#[tokio::test]
async fn with_the_privilege_the_server_answers_a_syn_with_whatever_it_is_asked_for() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let offer = client.offer().await;
    if !offer.can.forge {
        assert_eq!(client.probe(forged(Action::Reset)).await.error().map(|(code, _)| code), Some(403));
        eprintln!("NOT RUN: forged answers need CAP_NET_RAW");
        return;
    }
    let silent = SocketAddr::new(offer.addresses[1], offer.silent.unwrap());
    assert_eq!(client.probe(forged(Action::Reset)).await.error().map(|(code, _)| code), Some(404));
    for (action, wanted) in [
        (Action::Reset, std::io::ErrorKind::ConnectionRefused),
        (Action::Icmp { kind: 11, code: 0 }, std::io::ErrorKind::HostUnreachable),
        (Action::Icmp { kind: 3, code: 3 }, std::io::ErrorKind::ConnectionRefused),
    ] {
        let dialled = fresh(silent);
        let from = dialled.local_addr().unwrap().as_socket().unwrap();
        client.until_seen(from.port()).await;
        let answer = client.probe(forged(action)).await;
        let event = answer.stunt_outcome().map(|outcome| outcome.event);
        assert_eq!(event, Some(Event::Sent), "{action:?}: {:?}", answer.error());
        assert_eq!((answer.origin(), answer.mapped()), (Some(silent), Some(from)));
        let stream = TcpStream::from_std(dialled.into()).unwrap();
        tokio::time::timeout(PATIENCE, stream.writable()).await.unwrap().unwrap();
        assert_eq!(stream.take_error().unwrap().map(|error| error.kind()), Some(wanted), "{action:?}");
    }
    let dialled = fresh(silent);
    client.until_seen(dialled.local_addr().unwrap().as_socket().unwrap().port()).await;
    let answer = client.probe(forged(Action::SynAck)).await;
    assert_eq!(answer.stunt_outcome().map(|outcome| outcome.event), Some(Event::Connected));
    assert_eq!(dialled.peer_addr().unwrap().as_socket(), Some(silent));
    SockRef::from(&dialled).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn a_wait_is_answered_when_its_time_has_come_and_others_overtake_it() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let wait = Probe { action: Action::Wait { seconds: 1 }, ..connect() };
    let asked = Message::request(STUNT_PROBE, TransactionId([1; 12])).with(Attribute::StuntProbe(wait));
    client.stream.write_all(&asked.emit(Integrity::None)).await.unwrap();
    assert!(client.ask(question(2)).await.mapped().is_some());
    let answer = client.hear().await.unwrap();
    assert_eq!(answer.transaction, TransactionId([1; 12]));
    assert_eq!(answer.stunt_outcome().map(|outcome| outcome.event), Some(Event::Sent));
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_hears_what_it_asked_for_and_then_the_end() {
    let handle = start();
    let mut client = Client::connect(handle.addrs()[0]).await;
    let wait = Probe { action: Action::Wait { seconds: 0 }, watch: Duration::ZERO, ..connect() };
    let request = Message::request(STUNT_PROBE, TransactionId([5; 12])).with(Attribute::StuntProbe(wait));
    client.stream.write_all(&request.emit(Integrity::None)).await.unwrap();
    client.stream.shutdown().await.unwrap();
    let answer = client.hear().await.unwrap();
    assert_eq!(answer.stunt_outcome().unwrap().event, Event::Sent);
    assert_eq!(client.hear().await, None);
}

#[tokio::test]
async fn one_address_and_one_port_offer_what_they_can() {
    let listen = vec!["0.0.0.0:0".parse().unwrap()];
    let places = Places { listen, ..Places::default() };
    let handle = StunServer::start(&places).unwrap();
    let mut client = Client::connect((Ipv4Addr::LOCALHOST, handle.addrs()[0].port()).into()).await;
    let answer = client.ask(question(1)).await;
    assert_eq!(answer.other_address(), None);
    let offer = answer.stunt_server().unwrap();
    let wanted = stunt::Capabilities { connect: true, own_syn: true, ..stunt::Capabilities::default() };
    assert_eq!((offer.can, offer.alternate, offer.silent), (wanted, None, None));
    assert_eq!(offer.addresses, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    for port in [Port::Alternate, Port::Silent] {
        let refused = client.probe(Probe { port, ..connect() }).await;
        assert_eq!(refused.error().map(|(code, _)| code), Some(403));
    }
    let _listener = client.listen_beside();
    let answer = client.probe(Probe { port: Port::Any, ..connect() }).await;
    assert_eq!(answer.stunt_outcome().map(|outcome| outcome.event), Some(Event::Connected));
}

fn connect() -> Probe {
    Probe { action: Action::Connect, address: 0, port: Port::Main, target: None, watch: SHORT }
}

fn forged(action: Action) -> Probe {
    Probe { action, address: 1, port: Port::Silent, watch: PATIENCE, ..connect() }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// From a port that other sockets may share.
    async fn connect(to: SocketAddr) -> Self {
        let socket = sharing("127.0.0.1:0".parse().unwrap());
        let stream = tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await.unwrap();
        Self { stream, buffer: Vec::new() }
    }

    async fn offer(&mut self) -> stunt::Server {
        self.ask(question(9)).await.stunt_server().unwrap().clone()
    }

    async fn probe(&mut self, probe: Probe) -> Message {
        self.ask(Message::request(STUNT_PROBE, TransactionId([4; 12])).with(Attribute::StuntProbe(probe)))
            .await
    }

    async fn ask(&mut self, request: Message) -> Message {
        self.stream.write_all(&request.emit(Integrity::None)).await.unwrap();
        let answer = self.hear().await.unwrap();
        assert_eq!(answer.transaction, request.transaction);
        answer
    }

    async fn hear(&mut self) -> Option<Message> {
        loop {
            if let Front::Whole(len) = stun::front(&self.buffer).unwrap() {
                let bytes: Vec<u8> = self.buffer.drain(..len).collect();
                return Some(Received::parse(&bytes).unwrap().message);
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
            if read.unwrap().unwrap() == 0 {
                return None;
            }
        }
    }

    /// Until the server has seen a segment from `port` at its silent port.
    async fn until_seen(&mut self, port: u16) {
        loop {
            let seen = self.ask(Message::request(STUNT_SEEN, TransactionId([3; 12]))).await;
            if seen.stunt_segments().any(|segment| segment.source == port && segment.address == 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A listener on the port that the connection comes from.
    fn listen_beside(&self) -> std::net::TcpListener {
        let socket = sharing(self.stream.local_addr().unwrap());
        socket.set_nonblocking(false).unwrap();
        socket.listen(8).unwrap();
        socket.into()
    }

    /// A socket on the same port that sends a SYN.
    fn dial_beside(&self, to: SocketAddr) -> Socket {
        let socket = sharing(self.stream.local_addr().unwrap());
        let _ = socket.connect(&to.into());
        socket
    }
}

/// A socket on a port of its own that sends a SYN.
fn fresh(to: SocketAddr) -> Socket {
    let socket = sharing("127.0.0.1:0".parse().unwrap());
    let _ = socket.connect(&to.into());
    socket
}

fn sharing(at: SocketAddr) -> Socket {
    let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket
}
