//! How a stream of ours looks to the networks that it passes: its port says it.
//!
//! ```text
//! port 443    TLS 1.3, and the protocol inside
//! port 80     HTTP/1.1 upgraded to a WebSocket (RFC 6455), and in its binary messages the bytes of TLS as on 443
//! any other   what the service speaks there: a broker TLS, a relay its frames (`frame`)
//! ```
//!
//! Firewalls and proxies that let out nothing but the web go by these two ports, and the stricter ones by what is spoken
//! there. What matters is sealed in any case: on port 80, TLS runs inside of what the network can read, end to end.

/// How a stream is dressed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Dress {
    /// As the service likes.
    #[default]
    Plain,
    /// In TLS.
    Tls,
    /// In TLS inside a WebSocket.
    WebSocket,
}

/// Port of HTTPS (RFC 9110 4.2.2).
pub const TLS_PORT: u16 = 443;
/// Port of HTTP (RFC 9110 4.2.1).
pub const WEB_SOCKET_PORT: u16 = 80;
/// The subprotocol that a WebSocket of ours is asked for and confirms (RFC 6455 1.9).
pub const SUBPROTOCOL: &str = "ntcp";

impl Dress {
    /// What is worn at this port.
    #[must_use]
    pub const fn of(port: u16) -> Self {
        match port {
            TLS_PORT => Self::Tls,
            WEB_SOCKET_PORT => Self::WebSocket,
            _ => Self::Plain,
        }
    }

    /// Whether it passes where only the web does.
    #[must_use]
    pub const fn is_web(self) -> bool {
        !matches!(self, Self::Plain)
    }
}
