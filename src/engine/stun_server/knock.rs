//! One connection back to a client: opened, watched, closed in peace.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::Socket;
use tokio::io::AsyncReadExt as _;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::sockets;
use crate::engine::clock;
use crate::stunt::server::Done;
use crate::sys::errors;
use crate::sys::option;
use crate::wire::stun::stunt::Event;
use crate::wire::stun::stunt::Outcome;

/// How long the client may take to close a connection before we do. Who closes first keeps the pair of endpoints busy for a
/// minute (RFC 9293 3.6.1, TIME-WAIT), and here that is a well-known port.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Connects from `from` to `to` and tells what came back within `watch`.
pub(super) async fn knock(from: SocketAddr, to: SocketAddr, watch: Duration) -> Done {
    match dial(from, to) {
        Ok(socket) => match observe(socket, from, watch).await {
            Ok(done) => done,
            Err(error) => {
                tracing::debug!(%error, "a connection back cannot be watched");
                Done::Failed
            }
        },
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Done::Taken,
        Err(error) => {
            tracing::debug!(%error, "a connection back cannot be opened");
            Done::Failed
        }
    }
}

fn dial(from: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
    let socket = sockets::dialler(from)?;
    option::receive_errors(&socket, to.is_ipv4())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Ok(socket)
        }
        other => other.map(|()| socket),
    }
}

async fn observe(socket: Socket, from: SocketAddr, watch: Duration) -> io::Result<Done> {
    let began = clock::now().instant;
    let stream = TcpStream::from_std(socket.into())?;
    let local = stream.local_addr().unwrap_or(from);
    let told = tokio::time::timeout(watch, stream.async_io(Interest::WRITABLE, || verdict(&stream))).await;
    let after = clock::now().instant.saturating_duration_since(began);
    let event = match told {
        Ok(event) => event?,
        Err(_) => Some(Event::Silence),
    };
    let Some(event) = event else { return Ok(Done::Failed) };
    if event == Event::Connected {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CLOSE_WITHIN, until_closed(stream)).await;
        });
    }
    Ok(Done::Outcome { from: local, outcome: Outcome { event, after } })
}

/// What came back; `None` if this machine itself could not reach the other one.
fn verdict(stream: &TcpStream) -> io::Result<Option<Event>> {
    // An ICMP error is told apart from a RST by standing in the queue.
    let told = errors::take(stream)?;
    match (told, stream.take_error()?) {
        (Some(told), _) => Ok(Some(Event::Icmp { kind: told.kind, code: told.code })),
        (None, Some(error)) => Ok(match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Some(Event::Reset),
            io::ErrorKind::TimedOut => Some(Event::Silence),
            _ => None,
        }),
        (None, None) if stream.peer_addr().is_ok() => Ok(Some(Event::Connected)),
        (None, None) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Waits for the client's end of the connection; what it sends is thrown away.
async fn until_closed(mut stream: TcpStream) {
    let mut buffer = [0; 512];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}
