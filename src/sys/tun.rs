//! A TUN device that takes and gives super-packets: open(2) of `/dev/net/tun` and its ioctls.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;

/// Bytes of `struct virtio_net_hdr` before each packet.
pub const HEADER_LEN: usize = 10;

/// The kernel leaves checksums to us, and we to it.
pub const CSUM: u32 = libc::TUN_F_CSUM;
/// TCP over IPv4 in super-packets.
pub const TSO4: u32 = libc::TUN_F_TSO4;
/// TCP over IPv6 in super-packets.
pub const TSO6: u32 = libc::TUN_F_TSO6;
/// UDP in super-packets, both families: since 6.2, and only together.
pub const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// An open device.
#[derive(Debug)]
pub struct VnetTun {
    fd: OwnedFd,
    name: String,
}

impl VnetTun {
    /// Opens a device of this name (or pattern, with `%d`), non-blocking, without packet information, with a
    /// `virtio_net_hdr` before each packet.
    ///
    /// # Errors
    /// As open(2) and `TUNSETIFF`; `InvalidInput` for a name that is too long.
    pub fn open(name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        // SAFETY: all-zero bytes are a valid `ifreq`: arrays of integers, and a union of integers and pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() || name.bytes().any(|byte| byte == 0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which lives until the call returns.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = request.ifr_name.map(|letter| letter as u8);
        let name = CStr::from_bytes_until_nul(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        let name = name.to_str().map_err(|_| io::ErrorKind::InvalidData)?.to_owned();
        let size = libc::c_int::try_from(HEADER_LEN).expect("ten");
        // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one `int`, which lives until the call returns.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const size) };
        if status == 0 { Ok(Self { fd, name }) } else { Err(io::Error::last_os_error()) }
    }

    /// Tells the kernel which super-packets it may give us.
    ///
    /// # Errors
    /// As `TUNSETOFFLOAD`: `EINVAL` if it does not know one of them; nothing has changed then.
    pub fn set_offload(&self, what: u32) -> io::Result<()> {
        // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
        let status =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(what)) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The name that the device got.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for VnetTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
