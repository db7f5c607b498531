//! Bytes inside a WebSocket (RFC 6455), for networks where only HTTP passes. The messages' borders mean nothing.

use std::io;

use futures_util::SinkExt as _;
use futures_util::StreamExt as _;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::server::ErrorResponse;
use tokio_tungstenite::tungstenite::handshake::server::Request;
use tokio_tungstenite::tungstenite::handshake::server::Response;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::wire::dress::SUBPROTOCOL;

/// Bytes on their way between TLS and the WebSocket, each way: what one frame of the data plane takes.
const PIPE: usize = 64 << 10;
/// Largest message that is taken, bytes. Ours hold [`PIPE`] at most; a proxy in between may join some.
const MAX_MESSAGE: usize = 4 * PIPE;

/// Asks the far end of `stream`, which is called `host`, for a WebSocket.
///
/// # Errors
/// What the stream says; `InvalidData` if the far end is none of ours, in words.
pub async fn connect<S>(stream: S, host: &str) -> io::Result<DuplexStream>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::builder()
        .uri(format!("ws://{host}/"))
        .header("Host", host)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .body(())
        .map_err(io::Error::other)?;
    let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(limits()))
        .await
        .map_err(explain)?;
    Ok(unwrap(socket))
}

/// Answers somebody who asks for a WebSocket of ours; everybody else learns that there is no such page.
///
/// # Errors
/// What the stream says; `InvalidData` for whoever wanted something else.
pub async fn accept<S>(stream: S) -> io::Result<DuplexStream>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = tokio_tungstenite::accept_hdr_async_with_config(stream, admit, Some(limits()))
        .await
        .map_err(explain)?;
    Ok(unwrap(socket))
}

#[expect(clippy::result_large_err, reason = "the library's callback is so")]
fn admit(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let asked = request.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    if asked.is_some_and(|names| names.split(',').any(|name| name.trim() == SUBPROTOCOL)) {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        return Ok(response);
    }
    let mut nothing = ErrorResponse::new(None);
    *nothing.status_mut() = StatusCode::NOT_FOUND;
    Err(nothing)
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .max_write_buffer_size(MAX_MESSAGE * 2)
}

/// The bytes inside; a task carries them until one side ends.
fn unwrap<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (near, far) = tokio::io::duplex(PIPE);
    tokio::spawn(carry(socket, far));
    near
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<S>, bytes: DuplexStream) {
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(bytes);
    let outwards = async {
        let mut buffer = vec![0; PIPE];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            let piece = buffer.get(..count).unwrap_or_default().to_vec();
            if sink.send(Message::binary(piece)).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    };
    let inwards = async {
        while let Some(Ok(message)) = source.next().await {
            let written = match message {
                Message::Binary(piece) => write.write_all(&piece).await,
                // The library answers pings itself.
                Message::Ping(_) | Message::Pong(_) => Ok(()),
                Message::Text(_) | Message::Close(_) | Message::Frame(_) => return,
            };
            if written.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = outwards => {}
        () = inwards => {}
    }
}

fn explain(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::Http(answer) => {
            let words = format!("answers HTTP with {}, so it is no server of this network", answer.status());
            io::Error::new(io::ErrorKind::InvalidData, words)
        }
        other => {
            let words = format!("does not speak WebSocket as expected ({other}): does the network allow it?");
            io::Error::new(io::ErrorKind::InvalidData, words)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_an_end_ends_the_other_side() {
        let (client, server) = tokio::io::duplex(PIPE);
        let (client, server) = tokio::join!(connect(client, "vpn.example"), accept(server));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        let long: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut arrived = vec![0; long.len()];
        let (sent, read) = tokio::join!(client.write_all(&long), server.read_exact(&mut arrived));
        sent.unwrap();
        read.unwrap();
        assert_eq!(arrived, long);
        server.write_all(b"back").await.unwrap();
        drop(server);
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"back");
    }

    #[tokio::test]
    async fn a_browser_finds_nothing_and_a_web_server_is_not_taken_for_ours() {
        let (mut browser, server) = tokio::io::duplex(PIPE);
        browser.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").await.unwrap();
        assert!(accept(server).await.is_err());
        let mut answer = String::new();
        browser.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");

        let (client, mut server) = tokio::io::duplex(PIPE);
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let error = connect(client, "x").await.unwrap_err();
        assert!(error.to_string().contains("200"), "{error}");
    }
}
