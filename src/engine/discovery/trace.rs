//! Packets that expire on their way, so that routers tell of themselves.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use super::Tasks;
use super::failed;
use super::tcp;
use crate::discovery::probe::Finding;
use crate::discovery::question::Question;
use crate::sys::errors;
use crate::sys::option;
use crate::wire::stun::Integrity;
use crate::wire::stun::Message;

/// How long routers have to say that a packet expired.
const WAIT: Duration = Duration::from_millis(1000);

/// Sends one packet for each TTL, each from a port of its own, and collects who says that it expired.
pub(super) fn start(
    question: Question,
    local: IpAddr,
    to: SocketAddr,
    message: Option<Message>,
    hops: u8,
    tasks: &mut Tasks,
) {
    let bytes = message.map(|message| message.emit(Integrity::None));
    let sent: io::Result<Vec<(u8, Socket)>> =
        (1..=hops).map(|ttl| Ok((ttl, expiring(local, to, bytes.as_deref(), ttl)?))).collect();
    tasks.spawn(async move {
        let finding = match sent {
            Ok(sockets) => {
                tokio::time::sleep(WAIT).await;
                let who = |(ttl, socket)| Some((ttl, errors::take(socket).ok()??.by));
                Finding::Routers(sockets.into_iter().filter_map(who).collect())
            }
            Err(error) => failed("a packet that expires", &error),
        };
        (question, finding)
    });
}

fn expiring(local: IpAddr, to: SocketAddr, datagram: Option<&[u8]>, ttl: u8) -> io::Result<Socket> {
    let at = SocketAddr::new(local, 0);
    let socket = if datagram.is_some() {
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.bind(&at.into())?;
        socket
    } else {
        tcp::shared(at)?
    };
    option::set_ttl(&socket, to.is_ipv4(), Some(ttl))?;
    option::receive_errors(&socket, to.is_ipv4())?;
    match datagram {
        Some(bytes) => socket.send_to(bytes, &to.into()).map(|_| socket),
        None => tcp::begin(socket, to),
    }
}
