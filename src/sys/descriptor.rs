//! Descriptors inside types that know only the raw number.

use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

/// The descriptor of a TUN interface.
#[must_use]
pub fn of_tun(iface: &tun_tap::Iface) -> BorrowedFd<'_> {
    // SAFETY: an `Iface` owns its `File` for as long as it lives and gives it away only by value (`IntoRawFd`), so the
    // number stays that of an open file while `iface` is borrowed. The number of an open file is never -1.
    unsafe { BorrowedFd::borrow_raw(iface.as_raw_fd()) }
}
