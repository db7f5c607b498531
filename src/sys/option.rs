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

/// Lets the kernel hand over neighbouring datagrams of one flow as one (`UDP_GRO`, udp(7)), or forbids it.
///
/// # Errors
/// As setsockopt(2); a kernel before 5.0 does not know the option.
pub fn receive_merged(socket: impl AsFd, merged: bool) -> io::Result<()> {
    set(&socket, libc::SOL_UDP, libc::UDP_GRO, libc::c_int::from(merged))
}

/// Makes each received datagram come with its congestion mark (`IP_RECVTOS`, ip(7); `IPV6_RECVTCLASS`, RFC 3542 6.5).
///
/// # Errors
/// As setsockopt(2).
pub fn receive_marks(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)
    } else {
        set(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)
    }
}

/// Whether the kernel cuts one large message into datagrams (`UDP_SEGMENT`, udp(7)): since 4.18. An older one would send
/// the message as it is.
#[must_use]
pub fn can_segment(socket: impl AsFd) -> bool {
    // Setting it to "no segments" changes nothing, and is refused where the option is unknown.
    set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Sets the time to live (IPv6: hop limit) of everything that a socket sends from now on; `None` for the system's own.
///
/// # Errors
/// As setsockopt(2).
pub fn set_ttl(socket: impl AsFd, ipv4: bool, ttl: Option<u8>) -> io::Result<()> {
    // -1 stands for the system's own (ip(7), RFC 3493 5.1).
    let ttl = ttl.map_or(-1, libc::c_int::from);
    if ipv4 {
        set(&socket, libc::IPPROTO_IP, libc::IP_TTL, ttl)
    } else {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl)
    }
}

/// Makes a TCP socket deaf to ICMP errors about packets that died on their way: a router quotes them with a time to live
/// of 1 or 0, and the kernel drops errors whose quoted packet has less than this minimum (`IP_MINTTL`, RFC 5082's
/// `IPV6_MINHOPCOUNT`). Without it the first such error ends connect(2). Needs no privilege.
///
/// # Errors
/// As setsockopt(2).
pub fn ignore_dead_on_the_way(socket: impl AsFd, ipv4: bool) -> io::Result<()> {
    if ipv4 {
        set(&socket, libc::IPPROTO_IP, libc::IP_MINTTL, 2)
    } else {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, 2)
    }
}

/// Keeps the ICMP errors about what a socket sent, for [`crate::sys::errors`] to take (`IP_RECVERR`, ip(7)).
///
/// # Errors
/// As setsockopt(2).
pub fn receive_errors(socket: impl AsFd, ipv4: bool) -> io::Result<()> {
    if ipv4 {
        set(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
    } else {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
    }
}

/// The initial sequence number of a connection on which nothing was sent yet, by way of `TCP_REPAIR`; needs
/// CAP_NET_ADMIN. Nothing is sent, and the connection goes on as before, except that another socket may no longer share
/// its port without `SO_REUSEPORT`.
///
/// # Errors
/// As setsockopt(2) and getsockopt(2).
pub fn initial_sequence(socket: impl AsFd) -> io::Result<u32> {
    const SEND_QUEUE: libc::c_int = 2;
    const OFF_WITHOUT_PROBE: libc::c_int = -1;
    set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
    let next = set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)
        .and_then(|()| get(&socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ));
    set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, OFF_WITHOUT_PROBE)?;
    // The SYN took one number.
    next.map(|next| next.cast_unsigned().wrapping_sub(1))
}

/// Makes connections that this listener accepts keep the headers of their SYN (`TCP_SAVE_SYN`, Linux 4.2).
///
/// # Errors
/// As setsockopt(2).
pub fn save_syn(listener: impl AsFd) -> io::Result<()> {
    set(&listener, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 1)
}

/// The SYN of an accepted connection, IP header first; empty if it was not kept. It is told once.
///
/// # Errors
/// As getsockopt(2).
pub fn saved_syn(stream: impl AsFd) -> io::Result<Vec<u8>> {
    /// IPv6 header and the largest TCP header (RFC 9293 3.1), rounded up.
    const ROOM: usize = 128;
    let mut buffer = vec![0_u8; ROOM];
    let mut len = libc::socklen_t::try_from(ROOM).expect("a few bytes");
    // SAFETY: the descriptor is open (it is borrowed); the kernel writes at most `len` bytes, the size of `buffer`, into it
    // and the length that it wrote into `len`. Both live until the call returns.
    let status = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SAVED_SYN,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.truncate(usize::try_from(len).unwrap_or(0));
    Ok(buffer)
}

/// Leaves UDP checksums out (`SO_NO_CHECK`): the kernel does not segment such datagrams.
#[cfg(test)]
pub(crate) fn skip_checksums(socket: impl AsFd) -> io::Result<()> {
    set(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

pub(super) fn set(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).expect("an int has 4 bytes");
    // SAFETY: the descriptor is open (it is borrowed), and the kernel reads `len` bytes, the size of `value`, from a
    // pointer to `value`, which lives until the call returns.
    let status =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(socket: &impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of_val(&value)).expect("an int has 4 bytes");
    // SAFETY: the descriptor is open (it is borrowed), and the kernel writes at most `len` bytes, the size of `value`, to
    // a pointer to `value`, and the length to a pointer to `len`; both live until the call returns.
    let status = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    };
    if status == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
