//! Room for one control message beside a datagram (cmsg(3)).

use std::os::raw::c_int;

/// Words of the room, so that it is aligned as `cmsghdr` wants: the largest message is an IPv6 error with its reporter,
/// 16 + 16 + 28 bytes.
const WORDS: usize = 8;

/// What a call needs besides the datagram itself.
#[derive(Clone, Copy)]
pub(super) struct Control([usize; WORDS]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; WORDS]);

    /// Points the header to the whole room, for the kernel to write to.
    pub(super) fn offer(&mut self, header: &mut libc::msghdr) {
        header.msg_control = self.0.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&self.0) as _;
    }

    /// Writes one control message and points the header to it.
    pub(super) fn put<T>(&mut self, header: &mut libc::msghdr, level: c_int, kind: c_int, value: T) {
        let size = libc::c_uint::try_from(size_of::<T>()).expect("a few bytes");
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size), libc::CMSG_LEN(size)) };
        assert!(
            usize::try_from(space).is_ok_and(|space| space <= size_of_val(&self.0)),
            "the buffer is too small"
        );
        header.msg_control = self.0.as_mut_ptr().cast();
        header.msg_controllen = space as _;
        // SAFETY: the header describes a buffer that is aligned for `cmsghdr` and, as was just asserted, has room for
        // one message of this size, so CMSG_FIRSTHDR is not null and CMSG_DATA has `size_of::<T>()` bytes after it.
        // `write_unaligned` asks for no alignment of those.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(header);
            (*first).cmsg_level = level;
            (*first).cmsg_type = kind;
            (*first).cmsg_len = len as _;
            libc::CMSG_DATA(first).cast::<T>().write_unaligned(value);
        }
    }
}
