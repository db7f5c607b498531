//! ICMP errors about what a socket has sent: recvmsg(2) with `MSG_ERRQUEUE` (ip(7), `IP_RECVERR`).

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;

/// Room for the control message: a header, the error, and the reporter's socket address.
const ROOM: usize = 128;

/// Control messages must be aligned as `cmsghdr` is.
#[repr(C, align(8))]
struct Room([u8; ROOM]);

/// An ICMP error (RFC 792, RFC 4443).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reported {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The router or host that reported it.
    pub by: IpAddr,
}

/// Takes the oldest error without waiting. `None` if there is none, or the machine itself found it. The socket must have
/// asked for them ([`crate::sys::option::receive_errors`]).
///
/// # Errors
/// As recvmsg(2).
pub fn take(socket: impl AsFd) -> io::Result<Option<Reported>> {
    let mut room = Room([0; ROOM]);
    // SAFETY: all-zero bytes are a valid `msghdr`: integers and pointers that may be null.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_control = room.0.as_mut_ptr().cast();
    header.msg_controllen = ROOM as _;
    // SAFETY: the descriptor is open (it is borrowed). The header points to a control buffer with the size that it says,
    // and to nothing else; it lives until the call returns.
    let got = unsafe {
        libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    Ok(reported(&header))
}

fn reported(header: &libc::msghdr) -> Option<Reported> {
    // SAFETY: the kernel has filled the control buffer and set its length; the macros walk it within that length. What is
    // read is checked against the message's length before.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            let error_size = size_of::<libc::sock_extended_err>();
            let holds = |size: usize| {
                let size = libc::c_uint::try_from(size).unwrap_or(libc::c_uint::MAX);
                (*message).cmsg_len as usize >= libc::CMSG_LEN(size) as usize
            };
            // The reporter's address stands behind the error (`SO_EE_OFFENDER`).
            let offender = data.wrapping_add(error_size);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_RECVERR)
                    if holds(error_size + size_of::<libc::sockaddr_in>()) =>
                {
                    let address = offender.cast::<libc::sockaddr_in>().read_unaligned();
                    let known = i32::from(address.sin_family) == libc::AF_INET;
                    let by = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into();
                    let error = data.cast::<libc::sock_extended_err>().read_unaligned();
                    return known.then_some(Reported { kind: error.ee_type, code: error.ee_code, by });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
                    if holds(error_size + size_of::<libc::sockaddr_in6>()) =>
                {
                    let address = offender.cast::<libc::sockaddr_in6>().read_unaligned();
                    let known = i32::from(address.sin6_family) == libc::AF_INET6;
                    let by = Ipv6Addr::from(address.sin6_addr.s6_addr).into();
                    let error = data.cast::<libc::sock_extended_err>().read_unaligned();
                    return known.then_some(Reported { kind: error.ee_type, code: error.ee_code, by });
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::sys::option;

    #[test]
    fn who_refused_a_datagram_can_be_told() {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        option::receive_errors(&socket, true).unwrap();
        assert_eq!(take(&socket).unwrap(), None, "nothing was sent yet");
        socket.send_to(b"anybody?", gone).unwrap();
        let refusal = Reported { kind: 3, code: 3, by: "127.0.0.1".parse().unwrap() };
        assert_eq!(take(&socket).unwrap(), Some(refusal));
        assert_eq!(take(&socket).unwrap(), None, "it is told once");
    }
}
