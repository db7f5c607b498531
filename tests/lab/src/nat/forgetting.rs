//! Connection tracking made to forget: one session after an ICMP error about it, or all of them at once.
//!
//! Netfilter keeps a mapping whatever ICMP says, and its rules cannot end one. So a thread sees the packets that come to
//! the router, as tcpdump would, and has conntrack delete what an error is about (ctnetlink, as conntrack(8) does). It does
//! so some tens of microseconds after the error has been forwarded.

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use anyhow::Context;
use anyhow::Result;
use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::net::AddressFamily;
use rustix::net::Protocol;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netlink;

use crate::ns::Namespace;

/// `ETH_P_IP` as packet(7) wants it: in network order.
const IPV4: u32 = 0x0800_u16.to_be() as u32;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A thread that makes one router forget; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Forgetting {
    thread: Option<JoinHandle<()>>,
    watch: Watch,
}

/// What it watches for.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    udp: AtomicBool,
    tcp: AtomicBool,
    stop: AtomicBool,
    bell: OwnedFd,
}

impl Watch {
    /// Whether ICMP errors end UDP's and TCP's mappings from now on.
    pub(super) fn set(&self, udp: bool, tcp: bool) {
        self.0.udp.store(udp, Ordering::Relaxed);
        self.0.tcp.store(tcp, Ordering::Relaxed);
    }

    fn concerns(&self, protocol: u8) -> bool {
        match protocol {
            TCP => self.0.tcp.load(Ordering::Relaxed),
            UDP => self.0.udp.load(Ordering::Relaxed),
            _ => false,
        }
    }
}

impl Forgetting {
    /// Watches a router; nothing is forgotten before [`Watch::set`] says so.
    pub(super) fn start(ns: &Namespace) -> Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared {
            udp: AtomicBool::default(),
            tcp: AtomicBool::default(),
            stop: AtomicBool::default(),
            bell,
        };
        let watch = Watch(Arc::new(shared));
        let sockets = ns.inside(|| io::Result::Ok((listener()?, conntrack()?)))?;
        let (packets, conntrack) = sockets.with_context(|| format!("cannot watch {}", ns.name()))?;
        let theirs = watch.clone();
        let work = move || attend(&theirs, &packets, &conntrack);
        let thread = thread::Builder::new().name("forgetting".to_owned()).spawn(work)?;
        Ok(Self { thread: Some(thread), watch })
    }

    pub(super) fn watch(&self) -> Watch {
        self.watch.clone()
    }
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        self.watch.0.stop.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.watch.0.bell, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The thread's loop.
fn attend(watch: &Watch, packets: &OwnedFd, conntrack: &OwnedFd) {
    let mut packet = [0; 128];
    while !watch.0.stop.load(Ordering::Relaxed) {
        let mut waiting = [PollFd::new(packets, PollFlags::IN), PollFd::new(&watch.0.bell, PollFlags::IN)];
        // A failed poll (EINTR) shows nothing ready: the loop simply goes round again.
        let _ = rustix::event::poll(&mut waiting, None);
        while let Ok((length, _)) = rustix::net::recv(packets, &mut packet[..], RecvFlags::DONTWAIT) {
            let packet = packet.get(..length).unwrap_or(&packet);
            let Some(quoted) = Quoted::in_icmp_error(packet) else { continue };
            if watch.concerns(quoted.protocol) {
                // It may have been begun on either side, or be gone.
                let _ = order(conntrack, &quoted.deletion(TUPLE_REPLY));
                let _ = order(conntrack, &quoted.deletion(TUPLE_ORIGINAL));
            }
        }
    }
}

/// A packet that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Quoted {
    protocol: u8,
    source: SocketAddrV4,
    destination: SocketAddrV4,
}

impl Quoted {
    /// From an IPv4 packet, if that is an ICMP error of the kind that says "this will not arrive": destination unreachable
    /// (3) but not "too big" (code 4), or time exceeded (11); RFC 792.
    fn in_icmp_error(packet: &[u8]) -> Option<Self> {
        let (protocol, icmp) = payload(packet)?;
        let (error, quotation) = icmp.split_at_checked(8)?;
        match (protocol, error) {
            (ICMP, [3, 4, ..]) => return None,
            (ICMP, [3 | 11, ..]) => {}
            _ => return None,
        }
        let (protocol, ports) = payload(quotation)?;
        let address = |at| Some(Ipv4Addr::from(*quotation.get(at..)?.first_chunk::<4>()?));
        let port = |at| Some(u16::from_be_bytes(*ports.get(at..)?.first_chunk()?));
        let source = SocketAddrV4::new(address(12)?, port(0)?);
        Some(Self { protocol, source, destination: SocketAddrV4::new(address(16)?, port(2)?) })
    }

    /// The order to delete its session, named by what answers to it look like.
    fn deletion(&self, tuple: u16) -> Vec<u8> {
        let (from, to) = (self.destination, self.source);
        let addresses = [attribute(1, &from.ip().octets()), attribute(2, &to.ip().octets())].concat();
        let ports = [
            attribute(1, &[self.protocol]),
            attribute(2, &from.port().to_be_bytes()),
            attribute(3, &to.port().to_be_bytes()),
        ];
        let both = [nest(1, &addresses), nest(2, &ports.concat())].concat();
        message(libc::AF_INET as u8, &nest(tuple, &both))
    }
}

/// Protocol and payload of an IPv4 packet.
fn payload(packet: &[u8]) -> Option<(u8, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    Some((*packet.get(9)?, packet.get(header..)?))
}

/// Clears the calling thread's namespace of all connections.
pub(super) fn everything() -> io::Result<()> {
    order(&conntrack()?, &message(libc::AF_UNSPEC as u8, &[]))
}

/// `CTA_TUPLE_ORIG` and `CTA_TUPLE_REPLY`.
const TUPLE_ORIGINAL: u16 = 1;

/// See [`TUPLE_ORIGINAL`].
const TUPLE_REPLY: u16 = 2;

/// A ctnetlink message: delete the connection that is named, or all if none is.
fn message(family: u8, attributes: &[u8]) -> Vec<u8> {
    const DELETE: u16 = (1 << 8) | 2; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
    const REQUEST_AND_ACK: u16 = 1 | 4; // NLM_F_REQUEST, NLM_F_ACK
    const HEADERS: usize = 16 + 4; // nlmsghdr, nfgenmsg
    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend_from_slice(&((HEADERS + attributes.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&DELETE.to_ne_bytes());
    message.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence number, port
    message.extend_from_slice(&[family, 0, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

fn nest(kind: u16, inner: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 0x8000;
    attribute(NESTED | kind, inner)
}

/// A netlink attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    attribute.extend_from_slice(&kind.to_ne_bytes());
    attribute.extend_from_slice(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Sends an order and returns what the kernel says to it.
fn order(conntrack: &OwnedFd, message: &[u8]) -> io::Result<()> {
    rustix::net::send(conntrack, message, SendFlags::empty())?;
    let mut answer = [0; 128];
    rustix::net::recv(conntrack, &mut answer[..], RecvFlags::empty())?;
    // An answer is a nlmsghdr and a negative error number: netlink(7).
    let error =
        answer.get(16..20).and_then(|bytes| bytes.first_chunk()).map_or(0, |b| i32::from_ne_bytes(*b));
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-error)) }
}

fn conntrack() -> io::Result<OwnedFd> {
    let netfilter = Some(netlink::NETFILTER);
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, netfilter)?)
}

/// A socket that gets a copy of each IPv4 packet that comes.
fn listener() -> io::Result<OwnedFd> {
    let ipv4 = std::num::NonZeroU32::new(IPV4).map(Protocol::from_raw);
    Ok(rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, ipv4)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time exceeded about a SYN from 20.0.2.2:1024 to 20.0.1.2:443.
    const ERROR: [u8; 56] = [
        0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 20, 0, 0, 1, 20, 0, 2, 2, // from a router, IPv4
        11, 0, 0, 0, 0, 0, 0, 0, // ICMP
        0x45, 0, 0, 40, 0, 0, 0, 0, 1, 6, 0, 0, 20, 0, 2, 2, 20, 0, 1, 2, // quoted: IPv4
        4, 0, 1, 187, 0, 0, 0, 1, // quoted: TCP's first eight bytes
    ];

    #[test]
    fn an_icmp_error_names_the_packet_that_did_not_arrive() {
        let quoted = Quoted::in_icmp_error(&ERROR).expect("this is one");
        assert_eq!(quoted.protocol, TCP);
        assert_eq!(quoted.source, "20.0.2.2:1024".parse().expect("an address"));
        assert_eq!(quoted.destination, "20.0.1.2:443".parse().expect("an address"));
    }

    #[test]
    fn a_packet_that_was_too_big_and_a_ping_end_nothing() {
        for (kind, code) in [(3, 4), (0, 0), (8, 0)] {
            let mut packet = ERROR;
            packet[20] = kind;
            packet[21] = code;
            assert_eq!(Quoted::in_icmp_error(&packet), None, "{kind}/{code}");
        }
    }

    #[test]
    fn an_error_cut_short_names_nothing() {
        for length in 0..ERROR.len() - 4 {
            assert_eq!(Quoted::in_icmp_error(&ERROR[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_deletion_says_how_long_it_is_and_names_what_answers_look_like() {
        let quoted = Quoted::in_icmp_error(&ERROR).expect("this is one");
        let message = quoted.deletion(TUPLE_REPLY);
        assert_eq!(message.len() % 4, 0);
        assert_eq!(message[..4], (message.len() as u32).to_ne_bytes());
        let ports = [[1, 187], [4, 0]].map(|port| message.windows(2).position(|bytes| bytes == port));
        assert!(ports[0] < ports[1] && ports[0].is_some(), "from 443 to 1024");
    }
}
