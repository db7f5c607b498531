//! Our own SYNs as they leave: what stands in them only the kernel knows, which chose it.

use std::io;
use std::io::Read as _;
use std::net::SocketAddrV4;

use socket2::SockFilter;
use socket2::Socket;

use crate::sys::packet;

/// Bytes of the longest IPv4 packet without data.
const ROOM: usize = 120;

const LD_B: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const LD_H: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LD_W: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A socket that gets what leaves for `to` from local TCP port `from`; opened before the connection is.
///
/// # Errors
/// Without CAP_NET_RAW.
pub(super) fn open(from: u16, to: SocketAddrV4) -> io::Result<Socket> {
    packet::tap_all(&filter(from, to))
}

/// The first packet that it got.
pub(super) fn read(mut tap: &Socket) -> Option<Vec<u8>> {
    let mut buffer = [0; ROOM];
    let len = tap.read(&mut buffer).ok()?;
    buffer.get(..len).map(<[u8]>::to_vec)
}

/// A classic BPF program. Packets begin with their IPv4 header, which has no options in what a socket sends that did not
/// ask for any.
fn filter(from: u16, to: SocketAddrV4) -> [SockFilter; 12] {
    let load = |width: u16, offset: u32| SockFilter::new(width, 0, 0, offset);
    // Whatever differs jumps to the last line.
    let equal = |to_end: u8, value: u32| SockFilter::new(JEQ, 0, to_end, value);
    [
        load(LD_B, 0),
        equal(9, 0x45),
        load(LD_B, 9),
        equal(7, 6),
        load(LD_H, 20),
        equal(5, u32::from(from)),
        load(LD_H, 22),
        equal(3, u32::from(to.port())),
        load(LD_W, 16),
        equal(1, u32::from(*to.ip())),
        SockFilter::new(RET, 0, 0, ROOM as u32),
        SockFilter::new(RET, 0, 0, 0),
    ]
}
