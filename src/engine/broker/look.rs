//! Members that ask over TCP what their connection looks like from here: STUN Bindings on the broker's own port.
//!
//! A member does so from the port of an attempt at a direct connection, and keeps the connection while the attempt lasts:
//! it keeps the NAT's mapping. Authenticated like a UDP registration; anybody else gets no byte.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::engine::broker::hub::Hub;
use crate::engine::broker::server::Pass;
use crate::engine::broker::server::count;
use crate::engine::broker::udp;
use crate::wire::frame::Front;
use crate::wire::stun;
use crate::wire::stun::Attribute;
use crate::wire::stun::Integrity;
use crate::wire::stun::MAX_STREAM_MESSAGE;
use crate::wire::stun::Received;

/// From the connection's start to its first whole message.
const FIRST: Duration = Duration::from_secs(5);
/// How long a connection may stay in all. Reason: an introduction is forgotten after 30 s.
const LIFE: Duration = Duration::from_secs(30);

/// Answers until the member leaves or its time is over.
pub(super) async fn serve(hub: &Hub, mut stream: TcpStream, source: SocketAddr, pass: Pass) {
    let mut buffer = Vec::new();
    let first = tokio::time::timeout(FIRST, next(&mut stream, &mut buffer)).await;
    let Ok(Some(first)) = first else { return count(&hub.tcp_counters.garbage) };
    let look = Received::parse(&first).ok().and_then(|received| udp::look(&hub.registrations, &received));
    let Some(look) = look else { return count(&hub.tcp_counters.refused_guests) };
    drop(pass);
    hub.on_looked(look.member(), source);
    let answers = async {
        let mut request = Some(first);
        while let Some(bytes) = request {
            let Ok(received) = Received::parse(&bytes) else { return };
            if !received.is_authentic(look.key()) {
                return;
            }
            let answer = received.message.success().with(Attribute::XorMappedAddress(source));
            if stream.write_all(&answer.emit(Integrity::Sha256(look.key()))).await.is_err() {
                return;
            }
            request = next(&mut stream, &mut buffer).await;
        }
    };
    let _ = tokio::time::timeout(LIFE, answers).await;
}

/// The next whole message; `None` at the end of the stream, and when what came is no STUN.
async fn next(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        match stun::front(buffer) {
            Ok(Front::Whole(len)) => return Some(buffer.drain(..len).collect()),
            Ok(Front::Missing(_)) if buffer.len() < MAX_STREAM_MESSAGE => {}
            Ok(Front::Missing(_)) | Err(_) => return None,
        }
        let mut chunk = [0; 512];
        let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        buffer.extend_from_slice(chunk.get(..read)?);
    }
}
