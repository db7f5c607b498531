//! Socket options that neither rustix nor socket2 knows.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

/// Chooses whether datagrams may be fragmented on their way. With `unfragmented` they leave marked "don't fragment" and
/// the kernel ignores the path MTU that it has learnt, so that the datagram itself finds out what passes (ip(7),
/// `IP_PMTUDISC_PROBE`). Otherwise routers may cut them, and no path is a black hole for want of an ICMP message.
///
/// # Errors
/// As setsockopt(2).
pub fn unfragmented(socket: impl AsFd, ipv6: bool, unfragmented: bool) -> io::Result<()> {
    if ipv6 {
        let mode = if unfragmented { libc::IPV6_PMTUDISC_PROBE } else { libc::IPV6_PMTUDISC_WANT };
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, mode)?;
        // Without this the sender itself would cut what is larger than its device.
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, libc::c_int::from(unfragmented))
    } else {
        let mode = if unfragmented { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_DONT };
        set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
    }
}

/// Makes each received datagram come with the local address that it was sent to (`IP_PKTINFO`; RFC 3542 6.1).
///
/// # Errors
/// As setsockopt(2).
pub fn receive_pktinfo(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
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
