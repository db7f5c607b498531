//! Local TCP ports of attempts at direct connections: each listens and is dialled from at the same time.
//!
//! The sockets of one port all bind the unspecified address, with both options for sharing: a socket that binds one
//! address beside it would be refused, or take a share of its connections.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::epoll;
use rustix::event::epoll::EventFlags;
use rustix::net::SocketFlags;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use super::Door;
use super::stream;
use crate::base::id::PortId;
use crate::base::transmit::Bound;

/// Connections that may wait to be accepted at one port. Reason: one peer dials it, a few times at most.
const BACKLOG: i32 = 16;

/// Which of the two listeners of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    /// For IPv4.
    V4,
    /// For IPv6.
    V6,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeMap<PortId, Port>);

#[derive(Debug)]
struct Port {
    v4: Option<(Socket, u16)>,
    v6: Option<(Socket, u16)>,
}

impl Ports {
    pub(super) fn bind(&mut self, epoll: &OwnedFd, id: PortId) -> Bound {
        self.unbind(id);
        let listen = |ip: std::net::IpAddr, port: u16, family: Family| {
            let socket = listener(SocketAddr::new(ip, port))?;
            let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            epoll::add(epoll, &socket, Door::Port(id, family).data(), EventFlags::IN)?;
            io::Result::Ok((socket, local.port()))
        };
        let v4 = listen(Ipv4Addr::UNSPECIFIED.into(), 0, Family::V4).ok();
        // The same number in both families is easier on whoever reads logs; any other will do.
        let same = v4.as_ref().map_or(0, |(_, port)| *port);
        let any = Ipv6Addr::UNSPECIFIED.into();
        let v6 = listen(any, same, Family::V6).or_else(|_| listen(any, 0, Family::V6)).ok();
        let port = Port { v4, v6 };
        let bound = Bound { v4: port.v4.as_ref().map(|p| p.1), v6: port.v6.as_ref().map(|p| p.1) };
        self.0.insert(id, port);
        bound
    }

    pub(super) fn unbind(&mut self, id: PortId) {
        self.0.remove(&id);
    }

    /// What a socket that dials `to` from this port binds to.
    pub(super) fn local(&self, id: PortId, to: SocketAddr) -> Option<SocketAddr> {
        let port = self.0.get(&id)?;
        let (family, any) = match to {
            SocketAddr::V4(_) => (&port.v4, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (&port.v6, Ipv6Addr::UNSPECIFIED.into()),
        };
        family.as_ref().map(|(_, number)| SocketAddr::new(any, *number))
    }

    /// The next connection that came in; `None` if none waits, and after an error, which will show again.
    pub(super) fn accept(&self, id: PortId, family: Family) -> Option<Socket> {
        let port = self.0.get(&id)?;
        let (listener, _) = match family {
            Family::V4 => port.v4.as_ref()?,
            Family::V6 => port.v6.as_ref()?,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::accept_with(listener, flags).ok().map(Socket::from)
    }
}

fn listener(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    stream::tune(&socket)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    stream::share(&socket, addr)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
