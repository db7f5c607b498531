//! Datagrams by the batch: recvmmsg(2) and sendmmsg(2), up to [`BATCH`] messages a call, each of one datagram or of a run
//! of them that lie one behind the other (`UDP_SEGMENT` and `UDP_GRO`, udp(7)), with its congestion mark (`IP_TOS`, ip(7);
//! `IPV6_TCLASS`, RFC 3542 6.5).

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::net::SocketAddrV6;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use super::control::Control;
use crate::base::ecn::Ecn;

/// Messages a call. Reason: at 64 the cost of the call itself is below 2 % of the work per datagram, and more only adds
/// delay for the other doors.
pub const BATCH: usize = 64;

/// Datagrams in one message at most: `UDP_MAX_SEGMENTS` of kernels before 6.8; later ones take 128.
pub const SEGMENTS: usize = 64;
/// Bytes in one message at most: what fits an IP packet's length, with room for all headers.
pub const RUN_MAX: usize = 65_000;

/// Messages a call while the kernel merges datagrams. Reason: each may hold 64 KiB then, and what is opened of a call should
/// still lie in the processor's cache, and the other doors have had their turn, before the next one.
const MERGED_BATCH: usize = 8;

/// Room for one incoming message, bytes: the largest that UDP has (65,507), and what a merged receive may hold.
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
    most: usize,
}

impl RecvBatch {
    /// Reserves the memory.
    #[must_use]
    pub fn new() -> Self {
        Self { arena: vec![0; BATCH * STRIDE], headers: Headers::new(), filled: 0, most: BATCH }
    }

    /// Takes what the socket has, up to [`BATCH`] messages, without waiting; answers how many.
    ///
    /// # Errors
    /// As recvmmsg(2), except that "nothing there" is `Ok(0)`.
    pub fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.filled = 0;
        for (index, room) in self.arena.chunks_exact_mut(STRIDE).take(self.most).enumerate() {
            self.headers.aim(index, None, room.as_mut_ptr(), ROOM, Beside::Received);
        }
        // SAFETY: `aim` has just set the first `most` headers, of `BATCH`: each points to one I/O vector, which describes `ROOM` bytes
        // inside its own chunk of the arena, to an address slot of `size_of::<Name>()` bytes and to a control slot with
        // its size. All of them live in `self`, which is borrowed mutably until the call returns, and do not overlap. No
        // time limit is passed.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.messages.as_mut_ptr(),
                libc::c_uint::try_from(self.most).unwrap_or(COUNT),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(got) {
            Ok(got) => self.filled = got.min(self.most),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
        let mut filled = self.headers.messages.iter().take(self.filled);
        let merged = filled.any(|message| Told::by(&message.msg_hdr).segment.is_some());
        self.most = if merged { MERGED_BATCH } else { BATCH };
        Ok(self.filled)
    }

    /// The datagrams of the last [`RecvBatch::recv`], in order; those that came merged into one message one by one. The
    /// kernel merges only what is marked alike. Without [`crate::sys::option::receive_marks`] none seems to be marked.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (SocketAddr, Ecn, &mut [u8])> {
        let parts = self.arena.chunks_exact_mut(STRIDE).zip(&self.headers.messages).zip(&self.headers.names);
        parts.take(self.filled).flat_map(|((room, message), name)| {
            let len = usize::try_from(message.msg_len).unwrap_or(ROOM).min(ROOM);
            let Told { segment, ecn } = Told::by(&message.msg_hdr);
            let size = segment.filter(|size| *size > 0).unwrap_or_else(|| len.max(1));
            // An empty datagram is one, too.
            let (first, rest) = room.split_at_mut(len).0.split_at_mut(size.min(len));
            let datagrams = std::iter::once(first).chain(rest.chunks_mut(size));
            datagrams.filter_map(move |bytes| Some((name.get()?, ecn, bytes)))
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

/// One message to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The destination.
    pub to: SocketAddr,
    /// One datagram or several, one behind the other.
    pub bytes: &'a [u8],
    /// Bytes of each datagram but the last, which may be shorter; `None` if there is only one.
    pub segment: Option<u16>,
    /// The mark that all of them leave with.
    pub ecn: Ecn,
}

/// Memory for the headers of one batch of outgoing messages; the messages themselves are sent from where they lie.
pub struct SendBatch {
    headers: Headers,
}

impl SendBatch {
    /// Reserves the memory.
    #[must_use]
    pub fn new() -> Self {
        Self { headers: Headers::new() }
    }

    /// Sends the first of `messages`, at most [`BATCH`], without waiting; answers how many of them went.
    ///
    /// # Errors
    /// As sendmsg(2) of the *first* message; nothing was sent then.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        messages: impl Iterator<Item = Message<'a>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for Message { to, bytes, segment, ecn } in messages.take(BATCH) {
            // The kernel only reads through this pointer: sendmmsg takes the same header as recvmmsg.
            let base = bytes.as_ptr().cast_mut();
            self.headers.aim(count, Some(to), base, bytes.len(), Beside::Sent(segment, ecn));
            count += 1;
        }
        // SAFETY: `aim` has just set the first `count` headers: each points to one I/O vector, which describes exactly
        // one of the slices that are borrowed for `'a`, so until after the call, to an address slot that `aim` filled,
        // and to nothing or to a control slot that `aim` filled. Vectors and slots live in `self`, which is borrowed
        // mutably. The kernel writes only into the headers.
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

/// What recvmmsg and sendmmsg read and write: per message a header, an I/O vector, an address and control messages.
struct Headers {
    messages: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
}

/// What the control messages of a header are for.
#[derive(Clone, Copy)]
enum Beside {
    /// The kernel writes there how long the merged datagrams are, and how they are marked.
    Received,
    /// It reads there how long it shall cut them, and how to mark them.
    Sent(Option<u16>, Ecn),
}

// SAFETY: the pointers inside are only ever used by a system call right after `aim` has set them, under the mutable
// borrow that set them. Between calls they are dead numbers, so it does not matter which thread holds them.
unsafe impl Send for Headers {}

impl Headers {
    fn new() -> Self {
        // SAFETY: all fields of both structures are integers and raw pointers, for which zero is a valid value.
        let (message, vector) = unsafe { (std::mem::zeroed::<libc::mmsghdr>(), std::mem::zeroed()) };
        Self {
            messages: vec![message; BATCH],
            vectors: vec![vector; BATCH],
            names: vec![Name::NONE; BATCH],
            controls: vec![Control::EMPTY; BATCH],
        }
    }

    /// Aims header `index` (below [`BATCH`]) at `len` bytes from `base`, and at its address slot, which gets `name`.
    fn aim(&mut self, index: usize, name: Option<SocketAddr>, base: *mut u8, len: usize, beside: Beside) {
        let (message, vector) = (&mut self.messages[index], &mut self.vectors[index]);
        let (slot, control) = (&mut self.names[index], &mut self.controls[index]);
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
        control.clear(&mut message.msg_hdr);
        let Beside::Sent(segment, ecn) = beside else { return control.offer(&mut message.msg_hdr) };
        if let Some(size) = segment {
            control.put(&mut message.msg_hdr, libc::SOL_UDP, libc::UDP_SEGMENT, size);
        }
        if ecn != Ecn::NotCapable {
            let (level, kind) = match name {
                Some(SocketAddr::V6(_)) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
                Some(SocketAddr::V4(_)) | None => (libc::IPPROTO_IP, libc::IP_TOS),
            };
            control.put(&mut message.msg_hdr, level, kind, libc::c_int::from(ecn.bits()));
        }
    }
}

/// What the kernel told beside a received message.
#[derive(Clone, Copy, Default)]
struct Told {
    /// Bytes of each datagram but the last, if it has merged several.
    segment: Option<usize>,
    /// Their mark.
    ecn: Ecn,
}

impl Told {
    fn by(header: &libc::msghdr) -> Self {
        let mut told = Self::default();
        // SAFETY: the kernel has filled the control slot that the header points to and set its length; the macros walk it
        // within that length. The types of the data follow from level and type, and are checked against the message's
        // length before they are read.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            while !message.is_null() {
                let data = libc::CMSG_DATA(message);
                let holds = |size: usize| {
                    let size = libc::c_uint::try_from(size).unwrap_or(libc::c_uint::MAX);
                    (*message).cmsg_len as usize >= libc::CMSG_LEN(size) as usize
                };
                match ((*message).cmsg_level, (*message).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) if holds(size_of::<libc::c_int>()) => {
                        told.segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                    }
                    (libc::IPPROTO_IP, libc::IP_TOS) if holds(1) => told.ecn = Ecn::of(data.read()),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if holds(size_of::<libc::c_int>()) => {
                        let [class, ..] = data.cast::<libc::c_int>().read_unaligned().to_le_bytes();
                        told.ecn = Ecn::of(class);
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
        told
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

    fn one(to: SocketAddr, bytes: &[u8]) -> Message<'_> {
        Message { to, bytes, segment: None, ecn: Ecn::NotCapable }
    }

    #[test]
    fn a_batch_goes_out_and_comes_in_with_sizes_and_sources_on_both_families() {
        for ip in ["127.0.0.1", "::1"] {
            let (a, b) = pair(ip);
            let to = b.local_addr().unwrap();
            let sizes = [0_usize, 1, 1400, 65_000, 7];
            let all: Vec<Vec<u8>> = sizes.iter().map(|n| vec![u8::try_from(n % 251).unwrap(); *n]).collect();
            let sent = SendBatch::new().send(a.as_fd(), all.iter().map(|bytes| one(to, bytes))).unwrap();
            assert_eq!(sent, sizes.len());
            let mut batch = RecvBatch::new();
            let mut got = Vec::new();
            while got.len() < sizes.len() {
                batch.recv(b.as_fd()).unwrap();
                got.extend(batch.datagrams().map(|(from, _, bytes)| (from, bytes.to_vec())));
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
        assert_eq!(
            batch.send(a.as_fd(), [good, bad, good].map(|bytes| one(to, bytes)).into_iter()).unwrap(),
            1
        );
        let error = batch.send(a.as_fd(), [bad, good].map(|bytes| one(to, bytes)).into_iter()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(batch.send(a.as_fd(), std::iter::empty()).unwrap(), 0);
    }

    #[test]
    fn a_run_leaves_as_one_message_and_arrives_as_its_datagrams() {
        for ip in ["127.0.0.1", "::1"] {
            for merged in [false, true] {
                let (a, b) = pair(ip);
                if !crate::sys::option::can_segment(&a) {
                    eprintln!("not run: this kernel has no UDP_SEGMENT");
                    return;
                }
                crate::sys::option::receive_merged(&b, merged).unwrap();
                let to = b.local_addr().unwrap();
                let bytes: Vec<u8> = (0..2 * 1000 + 300).map(|i| u8::try_from(i % 251).unwrap()).collect();
                let run = Message { to, bytes: &bytes, segment: Some(1000), ecn: Ecn::NotCapable };
                let messages = [one(to, b"before"), run, one(to, b""), one(to, b"after")];
                assert_eq!(SendBatch::new().send(a.as_fd(), messages.into_iter()).unwrap(), 4);
                let (mut batch, mut got) = (RecvBatch::new(), Vec::new());
                while got.len() < 6 {
                    batch.recv(b.as_fd()).unwrap();
                    got.extend(batch.datagrams().map(|(_, _, bytes)| bytes.to_vec()));
                }
                let parts = bytes.chunks(1000).map(<[u8]>::to_vec);
                let all = std::iter::once(b"before".to_vec()).chain(parts).chain([vec![], b"after".to_vec()]);
                assert_eq!(got, all.collect::<Vec<_>>(), "{ip} {merged}");
            }
        }
    }

    #[test]
    fn marks_arrive_with_their_datagrams_and_with_each_of_a_run() {
        for (ip, ipv6) in [("127.0.0.1", false), ("::1", true)] {
            let (a, b) = pair(ip);
            crate::sys::option::receive_marks(&b, ipv6).unwrap();
            let merges = crate::sys::option::can_segment(&a);
            crate::sys::option::receive_merged(&b, merges).unwrap();
            let to = b.local_addr().unwrap();
            let all = [Ecn::Capable0, Ecn::NotCapable, Ecn::Congested, Ecn::Capable1];
            let marked = |ecn| Message { ecn, ..one(to, b"abcdefg") };
            let run = Message { segment: merges.then_some(3), ..marked(Ecn::Capable0) };
            let messages = all.map(marked).into_iter().chain([run]);
            assert_eq!(SendBatch::new().send(a.as_fd(), messages).unwrap(), 5);
            let (mut batch, mut got) = (RecvBatch::new(), Vec::new());
            let last = if merges { "g" } else { "abcdefg" };
            while got.len() < 5 || got.last().is_none_or(|(_, bytes)| bytes != last.as_bytes()) {
                batch.recv(b.as_fd()).unwrap();
                got.extend(batch.datagrams().map(|(_, ecn, bytes)| (ecn, bytes.to_vec())));
            }
            let marks: Vec<Ecn> = got.iter().map(|(ecn, _)| *ecn).collect();
            assert_eq!(marks[..4], all, "{ip}");
            assert!(marks[4..].iter().all(|ecn| *ecn == Ecn::Capable0), "{ip} {got:?}");
        }
    }

    #[test]
    fn never_more_than_a_batch_is_taken_from_the_iterator() {
        let (a, b) = pair("127.0.0.1");
        let to = b.local_addr().unwrap();
        let many = std::iter::repeat_n(one(to, b"x"), BATCH + 5);
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
