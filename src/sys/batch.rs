//! Datagrams by the batch: recvmmsg(2) and sendmmsg(2), up to [`BATCH`] a call.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::net::SocketAddrV6;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

/// Datagrams a call. Reason: at 64 the cost of the call itself is below 2 % of the work per datagram, and more only adds
/// delay for the other doors.
pub const BATCH: usize = 64;

/// Room for one incoming datagram, bytes: the largest that UDP has (65,507), and what a merged receive may hold.
const ROOM: usize = 65_536;
/// Distance between two rooms, bytes. Not a power of two: the heads of all datagrams would fall into the same few sets of
/// the processor's caches and push each other out.
const STRIDE: usize = ROOM + 25 * 64;

/// Memory for one batch of incoming datagrams. The 4 MiB are address space: the kernel backs a page when it is written,
/// so at usual sizes it is one page a datagram.
pub struct RecvBatch {
    arena: Vec<u8>,
    headers: Headers,
    filled: usize,
}

impl RecvBatch {
    /// Reserves the memory.
    #[must_use]
    pub fn new() -> Self {
        Self { arena: vec![0; BATCH * STRIDE], headers: Headers::new(), filled: 0 }
    }

    /// Takes what the socket has, up to [`BATCH`] datagrams, without waiting; answers how many.
    ///
    /// # Errors
    /// As recvmmsg(2), except that "nothing there" is `Ok(0)`.
    pub fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.filled = 0;
        for (index, room) in self.arena.chunks_exact_mut(STRIDE).enumerate() {
            self.headers.aim(index, None, room.as_mut_ptr(), ROOM);
        }
        // SAFETY: `aim` has just set all `BATCH` headers: each points to one I/O vector, which describes `ROOM` bytes
        // inside its own chunk of the arena, and to an address slot of `size_of::<Name>()` bytes. All of them live in
        // `self`, which is borrowed mutably until the call returns, and do not overlap. No time limit is passed.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.messages.as_mut_ptr(),
                COUNT,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(got) {
            Ok(got) => self.filled = got.min(BATCH),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
        Ok(self.filled)
    }

    /// The datagrams of the last [`RecvBatch::recv`], in order.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8])> {
        let parts = self.arena.chunks_exact_mut(STRIDE).zip(&self.headers.messages).zip(&self.headers.names);
        parts.take(self.filled).filter_map(|((room, message), name)| {
            let len = usize::try_from(message.msg_len).ok()?;
            Some((name.get()?, room.get_mut(..len)?))
        })
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBatch({} of {BATCH})", self.filled)
    }
}

/// Memory for the headers of one batch of outgoing datagrams; the datagrams themselves are sent from where they lie.
pub struct SendBatch {
    headers: Headers,
}

impl SendBatch {
    /// Reserves the memory.
    #[must_use]
    pub fn new() -> Self {
        Self { headers: Headers::new() }
    }

    /// Sends the first datagrams of `datagrams`, at most [`BATCH`], without waiting; answers how many of them went.
    ///
    /// # Errors
    /// As sendmsg(2) of the *first* datagram; nothing was sent then.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = (SocketAddr, &'a [u8])>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for (to, bytes) in datagrams.take(BATCH) {
            // The kernel only reads through this pointer: sendmmsg takes the same header as recvmmsg.
            self.headers.aim(count, Some(to), bytes.as_ptr().cast_mut(), bytes.len());
            count += 1;
        }
        // SAFETY: `aim` has just set the first `count` headers: each points to one I/O vector, which describes exactly
        // one of the slices that are borrowed for `'a`, so until after the call, and to an address slot that `aim`
        // filled. Vectors and slots live in `self`, which is borrowed mutably. The kernel writes only into the headers.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.messages.as_mut_ptr(),
                libc::c_uint::try_from(count).unwrap_or(COUNT),
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendBatch")
    }
}

#[expect(clippy::cast_possible_truncation, reason = "64 fits")]
const COUNT: libc::c_uint = BATCH as libc::c_uint;

/// What recvmmsg and sendmmsg read and write: per datagram a header, an I/O vector and an address.
struct Headers {
    messages: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<Name>,
}

// SAFETY: the pointers inside are only ever used by a system call right after `aim` has set them, under the mutable
// borrow that set them. Between calls they are dead numbers, so it does not matter which thread holds them.
unsafe impl Send for Headers {}

impl Headers {
    fn new() -> Self {
        // SAFETY: all fields of both structures are integers and raw pointers, for which zero is a valid value.
        let (message, vector) = unsafe { (std::mem::zeroed::<libc::mmsghdr>(), std::mem::zeroed()) };
        Self { messages: vec![message; BATCH], vectors: vec![vector; BATCH], names: vec![Name::NONE; BATCH] }
    }

    /// Aims header `index` (below [`BATCH`]) at `len` bytes from `base`, and at its address slot, which gets `name`.
    fn aim(&mut self, index: usize, name: Option<SocketAddr>, base: *mut u8, len: usize) {
        let (message, vector, slot) =
            (&mut self.messages[index], &mut self.vectors[index], &mut self.names[index]);
        *vector = libc::iovec { iov_base: base.cast(), iov_len: len };
        let name_len = match name {
            Some(name) => slot.set(name),
            None => size_of::<Name>(),
        };
        message.msg_len = 0;
        message.msg_hdr.msg_name = (&raw mut *slot).cast();
        message.msg_hdr.msg_namelen = libc::socklen_t::try_from(name_len).expect("28 fits");
        message.msg_hdr.msg_iov = &raw mut *vector;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_flags = 0;
    }
}

/// Room for a socket address of either family, as the kernel lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

const AF_INET: libc::sa_family_t = libc::AF_INET.cast_unsigned() as libc::sa_family_t;
const AF_INET6: libc::sa_family_t = libc::AF_INET6.cast_unsigned() as libc::sa_family_t;

impl Name {
    // SAFETY: all fields are integers or arrays of them, for which zero is a valid value. The largest member is `v6`, so
    // every byte of the union is initialised from here on.
    const NONE: Self = Self { v6: unsafe { std::mem::zeroed() } };

    /// Stores `addr`; answers how many bytes of the slot it takes.
    fn set(&mut self, addr: SocketAddr) -> usize {
        match addr {
            SocketAddr::V4(addr) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: AF_INET,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(addr) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: AF_INET6,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                size_of::<libc::sockaddr_in6>()
            }
        }
    }

    /// The address that the kernel stored, or `None` for a family that is neither.
    fn get(&self) -> Option<SocketAddr> {
        // SAFETY: every byte of the union is initialised (`NONE`, and the kernel and `set` only overwrite), every member
        // is plain integers for which any bits are valid, and the family stands first in all of them.
        unsafe {
            match self.family {
                AF_INET => {
                    let ip = Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes());
                    Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(self.v4.sin_port))))
                }
                AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let (port, scope) = (u16::from_be(self.v6.sin6_port), self.v6.sin6_scope_id);
                    Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
                }
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    fn pair(ip: &str) -> (UdpSocket, UdpSocket) {
        (UdpSocket::bind((ip, 0)).unwrap(), UdpSocket::bind((ip, 0)).unwrap())
    }

    #[test]
    fn a_batch_goes_out_and_comes_in_with_sizes_and_sources_on_both_families() {
        for ip in ["127.0.0.1", "::1"] {
            let (a, b) = pair(ip);
            let to = b.local_addr().unwrap();
            let sizes = [0_usize, 1, 1400, 65_000, 7];
            let all: Vec<Vec<u8>> = sizes.iter().map(|n| vec![u8::try_from(n % 251).unwrap(); *n]).collect();
            let sent =
                SendBatch::new().send(a.as_fd(), all.iter().map(|bytes| (to, bytes.as_slice()))).unwrap();
            assert_eq!(sent, sizes.len());
            let mut batch = RecvBatch::new();
            let mut got = Vec::new();
            while got.len() < sizes.len() {
                batch.recv(b.as_fd()).unwrap();
                got.extend(batch.datagrams().map(|(from, bytes)| (from, bytes.to_vec())));
            }
            let from = a.local_addr().unwrap();
            assert_eq!(got, all.into_iter().map(|bytes| (from, bytes)).collect::<Vec<_>>());
            assert_eq!(batch.recv(b.as_fd()).unwrap(), 0, "nothing more is not an error");
            assert_eq!(batch.datagrams().count(), 0);
        }
    }

    #[test]
    fn an_error_is_about_the_first_datagram_and_later_ones_wait_for_their_turn() {
        let (a, b) = pair("127.0.0.1");
        let (good, bad): (&[u8], &[u8]) = (&[1], &[0; 65_530]);
        let to = b.local_addr().unwrap();
        let mut batch = SendBatch::new();
        assert_eq!(batch.send(a.as_fd(), [(to, good), (to, bad), (to, good)].into_iter()).unwrap(), 1);
        let error = batch.send(a.as_fd(), [(to, bad), (to, good)].into_iter()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(batch.send(a.as_fd(), std::iter::empty()).unwrap(), 0);
    }

    #[test]
    fn never_more_than_a_batch_is_taken_from_the_iterator() {
        let (a, b) = pair("127.0.0.1");
        let to = b.local_addr().unwrap();
        let many = std::iter::repeat_n((to, &b"x"[..]), BATCH + 5);
        assert_eq!(SendBatch::new().send(a.as_fd(), many).unwrap(), BATCH);
    }

    #[test]
    fn addresses_survive_the_kernel_layout() {
        for text in ["192.0.2.1:65535", "[2001:db8::1]:1", "[fe80::1%7]:9"] {
            let addr: SocketAddr = text.parse().unwrap();
            let mut name = Name::NONE;
            name.set(addr);
            assert_eq!(name.get(), Some(addr));
        }
        assert_eq!(Name::NONE.get(), None);
    }
}
