//! Room for the control messages beside a datagram (cmsg(3)).

use std::os::raw::c_int;

/// Words of the room, so that it is aligned as `cmsghdr` wants: the largest message is an IPv6 error with its reporter,
/// 16 + 16 + 28 bytes; two numbers need 24 each.
const WORDS: usize = 8;

/// What a call needs besides the datagram itself.
#[derive(Clone, Copy)]
pub(super) struct Control {
    room: [usize; WORDS],
    /// Bytes of it that hold messages to be sent.
    used: usize,
}

impl Control {
    pub(super) const EMPTY: Self = Self { room: [0; WORDS], used: 0 };

    /// Points the header to the whole room, for the kernel to write to.
    pub(super) fn offer(&mut self, header: &mut libc::msghdr) {
        header.msg_control = self.room.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&self.room) as _;
    }

    /// Forgets all messages, and points the header to none.
    pub(super) fn clear(&mut self, header: &mut libc::msghdr) {
        self.used = 0;
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
    }

    /// Writes one control message behind those that are there, and points the header to them.
    pub(super) fn put<T>(&mut self, header: &mut libc::msghdr, level: c_int, kind: c_int, value: T) {
        let size = libc::c_uint::try_from(size_of::<T>()).expect("a few bytes");
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size), libc::CMSG_LEN(size)) };
        let at = self.used;
        self.used += usize::try_from(space).expect("a few bytes");
        assert!(self.used <= size_of_val(&self.room), "the buffer is too small");
        header.msg_control = self.room.as_mut_ptr().cast();
        header.msg_controllen = self.used as _;
        // SAFETY: `at` is 0 or a sum of CMSG_SPACEs, so what lies there is aligned for `cmsghdr` as the room is, and, as was
        // just asserted, there is room for one message of this size: CMSG_DATA has `size_of::<T>()` bytes after it.
        // `write_unaligned` asks for no alignment of those.
        unsafe {
            let message = self.room.as_mut_ptr().byte_add(at).cast::<libc::cmsghdr>();
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = len as _;
            libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
        }
    }
}
