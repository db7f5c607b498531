//! IPv4 packets that the kernel would not make for us, sent as they are: raw(7). Needs CAP_NET_RAW.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;

use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

/// Sends packets as they are, whatever source they name.
#[derive(Debug)]
pub struct Printer(Socket);

impl Printer {
    /// A raw socket that takes nothing in.
    ///
    /// # Errors
    /// Without the privilege.
    pub fn open() -> io::Result<Self> {
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(protocol)).map(Self)
    }

    /// Whether this process may send such packets, and see its own as they leave (packet(7)).
    #[must_use]
    pub fn is_permitted() -> bool {
        Self::open().is_ok() && Socket::new(Domain::PACKET, Type::DGRAM, None).is_ok()
    }

    /// Sends a whole IP packet; does not block.
    ///
    /// # Errors
    /// As sendto(2).
    pub fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        self.0.send_to(packet, &SocketAddr::new(to, 0).into()).map(drop)
    }
}
