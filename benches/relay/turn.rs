//! coturn as a relay, and as much of a TURN client (RFC 8656) as it takes to measure it: one allocation for each member,
//! each with a channel to the other's.

use std::io::Read as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use ntcp_lab::Namespace;
use ntcp_lab::Process;

/// `turnserver`'s port.
pub(crate) const PORT: u16 = 3478;
/// Methods and attributes (RFC 8656 17, 18).
const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;
const CHANNEL_NUMBER: u16 = 0x000c;
const PEER_ADDRESS: u16 = 0x0012;
const RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;
/// RFC 8489 5.
const COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();
/// The channel of both sides.
const CHANNEL: u16 = 0x4000;

/// Starts it at `address`, for anybody.
pub(crate) fn start(ns: &Namespace, address: Ipv4Addr) -> Result<Process> {
    let (address, port) = (address.to_string(), PORT.to_string());
    let mut server = ns.spawn(&[
        "turnserver",
        "-n",
        "--no-auth",
        "--no-cli",
        "--no-tls",
        "--no-dtls",
        "--simple-log",
        "--log-file=stdout",
        "--pidfile=/run/turnserver.pid",
        "--userdb=/run/turndb",
        "-L",
        &address,
        "-E",
        &address,
        "-p",
        &port,
    ])?;
    server.wait_for_line("Total General servers", Duration::from_secs(10))?;
    Ok(server)
}

/// How a client speaks with it.
pub(crate) trait Line {
    /// Sends a request and reads its answer.
    fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>>;
}

impl Line for TcpStream {
    fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.set_read_timeout(Some(Duration::from_secs(5)))?;
        self.write_all(request)?;
        let mut answer = vec![0; 20];
        self.read_exact(&mut answer)?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([answer[2], answer[3]]))];
        self.read_exact(&mut body)?;
        answer.extend(body);
        Ok(answer)
    }
}

impl Line for UdpSocket {
    fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.set_read_timeout(Some(Duration::from_secs(5)))?;
        self.send(request)?;
        let mut answer = vec![0; 2048];
        let len = self.recv(&mut answer)?;
        answer.truncate(len);
        Ok(answer)
    }
}

/// Gives both members an allocation and joins the two.
pub(crate) fn join(a: &mut impl Line, b: &mut impl Line) -> Result<()> {
    let (at_a, at_b) = (allocate(a)?, allocate(b)?);
    bind(a, &at_b)?;
    bind(b, &at_a)
}

/// What a message of `payload` bytes looks like on the channel; multiples of four need no padding on a stream.
pub(crate) fn message(payload: usize) -> Vec<u8> {
    let len = u16::try_from(payload).unwrap_or(u16::MAX);
    let mut bytes = [CHANNEL.to_be_bytes(), len.to_be_bytes()].concat();
    bytes.resize(4 + payload, 0x5a);
    bytes
}

/// The relayed address, as the attribute has it.
fn allocate(line: &mut impl Line) -> Result<Vec<u8>> {
    let answer = line.ask(&request(ALLOCATE, &[(REQUESTED_TRANSPORT, vec![17, 0, 0, 0])]))?;
    let mut rest = answer.get(20..).unwrap_or_default();
    while let [k0, k1, l0, l1, more @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let value = more.get(..len).context("a short attribute")?;
        if u16::from_be_bytes([*k0, *k1]) == RELAYED_ADDRESS {
            return Ok(value.to_vec());
        }
        rest = more.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    anyhow::bail!("no allocation: {answer:02x?}")
}

fn bind(line: &mut impl Line, peer: &[u8]) -> Result<()> {
    let number = [&CHANNEL.to_be_bytes()[..], &[0, 0]].concat();
    let answer =
        line.ask(&request(CHANNEL_BIND, &[(CHANNEL_NUMBER, number), (PEER_ADDRESS, peer.to_vec())]))?;
    anyhow::ensure!(answer.first() == Some(&1) && answer.get(1) == Some(&9), "no channel: {answer:02x?}");
    Ok(())
}

fn request(method: u16, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend((value.len() as u16).to_be_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let head = [&method.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), &COOKIE, &[7; 12]].concat();
    [head, body].concat()
}

/// A datagram socket of a member that is connected to it.
pub(crate) fn socket(ns: &Namespace, server: SocketAddr) -> Result<UdpSocket> {
    let socket = ns.inside(move || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        Ok(socket)
    })??;
    Ok(socket)
}
