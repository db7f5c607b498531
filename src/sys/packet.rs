//! What network devices receive, before anything else on this machine sees it, and what they send: packet(7).

use std::io;
use std::os::fd::AsRawFd as _;

use socket2::Domain;
use socket2::SockAddr;
use socket2::SockAddrStorage;
use socket2::SockFilter;
use socket2::Socket;
use socket2::Type;

/// A socket that gets a copy of each packet which device `index` receives (not of what it sends) and `filter` lets through,
/// from the IP header on. Does not block. Needs CAP_NET_RAW.
///
/// # Errors
/// As socket(2), setsockopt(2) and bind(2).
pub fn tap(index: u32, filter: &[SockFilter]) -> io::Result<Socket> {
    let socket = deaf(filter)?;
    let one: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&one)).expect("an int has 4 bytes");
    // SAFETY: the descriptor is open, and the kernel reads `len` bytes, the size of `one`, from a pointer to `one`, which
    // lives until the call returns.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const one).cast(),
            len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    listen(&socket, index)?;
    Ok(socket)
}

/// The same of what any device receives or sends.
///
/// # Errors
/// As [`tap`].
pub fn tap_all(filter: &[SockFilter]) -> io::Result<Socket> {
    const ANY: u32 = 0;
    let socket = deaf(filter)?;
    listen(&socket, ANY)?;
    Ok(socket)
}

/// Without a protocol nothing is received until the filter stands and the device is chosen.
fn deaf(filter: &[SockFilter]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)?;
    socket.attach_filter(filter)?;
    Ok(socket)
}

fn listen(socket: &Socket, index: u32) -> io::Result<()> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`, which is an array of integers, and the storage is larger and as
    // well aligned as any address.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("20 bytes");
    // SAFETY: the storage holds a `sockaddr_ll` of that many bytes.
    let address = unsafe { SockAddr::new(storage, len) };
    socket.bind(&address)
}
