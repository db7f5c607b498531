//! The `[stun]` role.

use std::net::SocketAddr;

/// The role.
#[derive(Debug)]
pub struct StunServer;

/// A server that runs.
#[derive(Debug)]
pub struct Handle {
    addrs: Vec<SocketAddr>,
}

impl StunServer {
    /// Opens the sockets.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn start(addrs: Vec<SocketAddr>) -> anyhow::Result<Handle> {
        let _ = addrs;
        anyhow::bail!("not built yet")
    }
}

impl Handle {
    /// Where it listens.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
}
