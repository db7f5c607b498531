//! Floor 3, acting: the TUN device, through which the kernel hands us packets for the overlay and takes those from it.
//!
//! One type, [`Tun`], over one of two backends. `offload` moves super-packets of up to 64 KiB in one call. Whoever can use
//! one whole takes it ([`Tun::super_packet`]); everybody else sees packets that fit the MTU with finished checksums, which
//! `split` cuts of it, and `merge` joins what the kernel takes. `plain` moves one packet a call, on every kernel that has
//! TUN at all, and cuts the super-packets that it is to write. Whatever backend serves, the device is
//! non-blocking, belongs to the process, and vanishes together with its addresses and routes when the [`Tun`] is dropped or
//! the process dies, so there is nothing to clean up. Addresses and routes are not this module's business: see
//! [`crate::io::netlink`].

mod headers;
pub mod merge;
mod offload;
#[cfg(test)]
mod offload_tests;
mod plain;
pub mod split;
mod sum;

use std::io;
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use self::offload::Offload;
use self::plain::Plain;
use crate::base::transmit::PacketBatch;

/// The name asked for if the user has no wish: the kernel puts the first free number in place of `%d`.
pub const DEFAULT_NAME: &str = "ntcp%d";
/// Longest name of an interface, bytes (`IFNAMSIZ` without its final zero).
const NAME_MAX: usize = 15;

/// Why there is no device. Each text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `/dev/net/tun` does not exist, or nothing stands behind it.
    #[error(
        "this kernel offers no TUN device (/dev/net/tun): run `modprobe tun` as root; in a container, start it with \
         `--device /dev/net/tun --cap-add NET_ADMIN`"
    )]
    Missing,
    /// The process may not create a device.
    #[error(
        "not permitted to create a TUN device: run as root (sudo), or give the process CAP_NET_ADMIN; in a container, \
         start it with `--device /dev/net/tun --cap-add NET_ADMIN`"
    )]
    NotPermitted,
    /// Another interface has this name.
    #[error(
        "an interface named {0} exists already: is another instance running? Stop it, or choose another device name"
    )]
    NameInUse(String),
    /// No interface may have this name.
    #[error(
        "{0:?} cannot be the name of an interface: 1 to 15 printable ASCII characters without `/`, `:`, `%` and spaces"
    )]
    BadName(String),
    /// Something else.
    #[error("cannot create a TUN device: {0}")]
    Other(#[source] io::Error),
}

/// One packet of the kernel that stands for many.
#[derive(Debug)]
pub struct SuperPacket<'a> {
    /// Its bytes, and [`TAILROOM`] behind them. The transport checksum is not finished.
    pub buffer: &'a mut [u8],
    /// How many of them are the packet.
    pub len: usize,
    /// Payload of each segment but the last, bytes.
    pub size: NonZeroU16,
}

/// Bytes that a [`SuperPacket`] has behind it for whoever seals it.
pub const TAILROOM: usize = 64;

/// A TUN device, non-blocking; it vanishes, with its addresses and routes, when dropped.
#[derive(Debug)]
pub struct Tun(Backend);

#[derive(Debug)]
enum Backend {
    Offload(Box<Offload>),
    Plain(Plain),
}

impl Tun {
    /// Opens a device named `name`, or the first free of `ntcp0`, `ntcp1`, ... It is down and has no address yet. With
    /// `offload` it moves super-packets, if the kernel can do that.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what to do.
    pub fn open(name: Option<&str>, offload: bool) -> Result<Self, OpenError> {
        if let Some(name) = name
            && !is_name(name)
        {
            return Err(OpenError::BadName(name.to_owned()));
        }
        let pattern = name.unwrap_or(DEFAULT_NAME);
        if offload {
            match Offload::open(pattern) {
                Ok(offload) => return Ok(Self(Backend::Offload(Box::new(offload)))),
                // If it is not about super-packets, the plain backend will fail in the same way.
                Err(error) => tracing::debug!(%error, "no TUN device with super-packets"),
            }
        }
        match Plain::open(pattern) {
            Ok(plain) => Ok(Self(Backend::Plain(plain))),
            Err(e) => Err(explain(e, name)),
        }
    }

    /// Reads one packet; `None` when there is none. A packet longer than `buffer` is cut: give it the MTU at least.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match &mut self.0 {
            Backend::Offload(offload) => offload.recv(buffer),
            Backend::Plain(plain) => plain.recv(buffer),
        }
    }

    /// The super-packet that the next [`Self::recv`] would begin to cut, if there is one: read now if nothing was read
    /// before. It stays until it is cut or [taken](Self::take_super_packet).
    ///
    /// # Errors
    /// When the device is gone.
    pub fn super_packet(&mut self) -> io::Result<Option<SuperPacket<'_>>> {
        match &mut self.0 {
            Backend::Offload(offload) => offload.super_packet(),
            Backend::Plain(_) => Ok(None),
        }
    }

    /// The super-packet was used as it is.
    pub fn take_super_packet(&mut self) {
        match &mut self.0 {
            Backend::Offload(offload) => offload.take_super_packet(),
            Backend::Plain(_) => {}
        }
    }

    /// Whether there are packets that the kernel has handed over already: these do not make the device readable.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        match &self.0 {
            Backend::Offload(offload) => offload.is_pending(),
            Backend::Plain(_) => false,
        }
    }

    /// Writes one packet; `false` when the kernel has no room for it and the packet is lost.
    ///
    /// # Errors
    /// When the device is gone or down, or when the packet is not IP.
    pub fn send(&self, packet: &[u8]) -> io::Result<bool> {
        match &self.0 {
            Backend::Offload(offload) => offload.send(packet),
            Backend::Plain(plain) => plain.send(packet),
        }
    }

    /// Writes all packets. Those that the kernel has no room for are lost, as on any interface, and so are those that it
    /// does not like.
    pub fn send_all(&mut self, packets: &PacketBatch) {
        match &mut self.0 {
            Backend::Offload(offload) => offload.send_all(packets),
            Backend::Plain(plain) => plain.send_all(packets),
        }
    }

    /// The name that the device got.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.0 {
            Backend::Offload(offload) => offload.name(),
            Backend::Plain(plain) => plain.name(),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Backend::Offload(offload) => offload.as_fd(),
            Backend::Plain(plain) => plain.as_fd(),
        }
    }
}

/// What the kernel takes as a name (`dev_valid_name`) or, with one `%d`, as a pattern for the first free number, and only
/// what a shell and a status table can show.
fn is_name(pattern: &str) -> bool {
    let name = pattern.replacen("%d", "0", 1);
    (1..=NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte))
}

/// Turns the kernel's number into what the user can do.
fn explain(error: io::Error, name: Option<&str>) -> OpenError {
    match (error.raw_os_error(), name) {
        (Some(libc::ENOENT | libc::ENODEV | libc::ENXIO), _) => OpenError::Missing,
        (Some(libc::EPERM | libc::EACCES), _) => OpenError::NotPermitted,
        // EBUSY: another process holds a TUN of this name. EINVAL: it is the name of something that is no TUN.
        (Some(libc::EBUSY | libc::EINVAL | libc::EEXIST), Some(name)) => {
            OpenError::NameInUse(name.to_owned())
        }
        _ => OpenError::Other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_cut_or_fill_in_are_refused_before_it_sees_them() {
        for bad in ["", "sixteen-letters-", "a b", "a/b", "a%d%d", "a:1", "a%s", ".", "..", "tün", "a\nb"] {
            assert!(
                matches!(Tun::open(Some(bad), true), Err(OpenError::BadName(name)) if name == bad),
                "{bad:?}"
            );
        }
        for good in ["ntcp0", "ntcp%d", "fifteen-letters", "x", "vpn.1", "a_b"] {
            assert!(is_name(good), "{good}");
        }
    }

    #[test]
    fn each_refusal_of_the_kernel_tells_the_user_what_to_do() {
        let cases = [
            (libc::ENOENT, Some("ntcp0"), "modprobe tun"),
            (libc::ENODEV, None, "modprobe tun"),
            (libc::EPERM, None, "CAP_NET_ADMIN"),
            (libc::EACCES, Some("ntcp0"), "sudo"),
            (libc::EBUSY, Some("ntcp0"), "an interface named ntcp0 exists already"),
            (libc::EINVAL, Some("eth0"), "an interface named eth0 exists already"),
            (libc::EMFILE, Some("ntcp0"), "cannot create a TUN device: Too many open files"),
        ];
        for (errno, name, words) in cases {
            let text = explain(io::Error::from_raw_os_error(errno), name).to_string();
            assert!(text.contains(words), "{errno}: {text}");
        }
    }
}
