//! Datagrams with the address at which they arrived: recvmsg(2) and sendmsg(2) with `IP_PKTINFO` (ip(7), RFC 3542 6).

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;

use socket2::SockAddr;
use socket2::SockAddrStorage;

use super::control::Control;

/// Takes one datagram without waiting: its length, its sender, and the local address that it was sent to (`None` if the
/// socket does not tell, see [`crate::sys::option::receive_pktinfo`]). What does not fit `buffer` is lost.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    let mut name = SockAddrStorage::zeroed();
    let mut control = Control::EMPTY;
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`: integers and pointers that may be null.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = name.size_of();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    control.offer(&mut header);
    // SAFETY: the descriptor is open (it is borrowed). The header points to a name, one vector and a control buffer with
    // the sizes that it says; the vector describes `buffer`. All live until the call returns and nothing else uses them.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written a socket address of `msg_namelen` bytes into `name`.
    let from = unsafe { SockAddr::new(name, header.msg_namelen) };
    let from = from.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((len, from, local_address(&header)))
}

/// Sends one datagram to `to` without waiting, from the local address `from` if one is given.
///
/// # Errors
/// As sendmsg(2).
pub fn send(
    socket: BorrowedFd<'_>,
    datagram: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
) -> io::Result<usize> {
    let name = SockAddr::from(to);
    let mut control = Control::EMPTY;
    // The kernel only reads through this pointer: sendmsg takes the same header as recvmsg.
    let mut vector = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`: integers and pointers that may be null.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_ptr().cast_mut().cast();
    header.msg_namelen = name.len();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    match from {
        None => {}
        Some(IpAddr::V4(v4)) => {
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: source,
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            control.put(&mut header, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(v6)) => {
            let source = libc::in6_addr { s6_addr: v6.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
            control.put(&mut header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }
    // SAFETY: the descriptor is open (it is borrowed). The header points to a name, one vector that describes `datagram`,
    // and a control buffer with one message, all with the sizes that it says. All live until the call returns, and the
    // kernel reads them only.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The destination address in the control messages of a received datagram.
fn local_address(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel has filled the control buffer and set its length; the macros walk it within that length. The
    // types of the data follow from level and type, and are checked against the message's length before they are read.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            let holds = |size: usize| {
                let size = libc::c_uint::try_from(size).unwrap_or(libc::c_uint::MAX);
                (*message).cmsg_len as usize >= libc::CMSG_LEN(size) as usize
            };
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if holds(size_of::<libc::in_pktinfo>()) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if holds(size_of::<libc::in6_pktinfo>()) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
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
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::option::receive_pktinfo;

    fn answers_from_where_it_was_asked(any: &str, asked_at: &str, asker: &str) {
        let server = UdpSocket::bind(any).unwrap();
        receive_pktinfo(&server, server.local_addr().unwrap().is_ipv6()).unwrap();
        let asked_at = SocketAddr::new(asked_at.parse().unwrap(), server.local_addr().unwrap().port());
        let asker = UdpSocket::bind(asker).unwrap();
        asker.send_to(b"question", asked_at).unwrap();

        let mut buffer = [0; 100];
        let (len, from, local) = receive(server.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"question"[..], asker.local_addr().unwrap()));
        assert_eq!(local, Some(asked_at.ip()));
        assert_eq!(send(server.as_fd(), b"answer", from, local).unwrap(), 6);
        let (len, from) = asker.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"answer"[..], asked_at));
    }

    #[test]
    fn an_ipv4_answer_leaves_from_where_the_question_arrived() {
        answers_from_where_it_was_asked("0.0.0.0:0", "127.0.0.2", "127.0.0.1:0");
    }

    #[test]
    fn an_ipv6_answer_leaves_from_where_the_question_arrived() {
        if UdpSocket::bind("[::1]:0").is_err() {
            eprintln!("not run: this machine has no IPv6");
            return;
        }
        answers_from_where_it_was_asked("[::]:0", "::1", "[::1]:0");
    }

    #[test]
    fn an_empty_socket_would_block_and_a_long_datagram_is_cut() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffer = [0; 4];
        assert_eq!(receive(server.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.send_to(b"too long", server.local_addr().unwrap()).unwrap();
        let (len, _, local) = receive(server.as_fd(), &mut buffer).unwrap();
        assert_eq!((len, local), (4, None), "the option is off");
        assert_eq!(&buffer, b"too ");
    }
}
