//! Socket options that neither rustix nor socket2 knows.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

/// Sets "don't fragment" on every datagram and makes the kernel ignore the path MTU it has learnt, so that only the
/// device's own MTU refuses a datagram, with `EMSGSIZE` (ip(7), `IP_PMTUDISC_PROBE`).
///
/// # Errors
/// As setsockopt(2).
pub fn probe_mtu(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        // Without this the sender itself would cut what is larger than its device.
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
    } else {
        set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    }
}

fn set(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).expect("an int has 4 bytes");
    // SAFETY: the descriptor is open (it is borrowed), and the kernel reads `len` bytes, the size of `value`, from a
    // pointer to `value`, which lives until the call returns.
    let status =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
