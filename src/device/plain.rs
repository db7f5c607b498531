//! The backend that works everywhere: one packet a call, by the `tun-tap` crate.

use std::io;
use std::os::fd::BorrowedFd;

use tun_tap::Iface;
use tun_tap::Mode;

use super::split;
use crate::base::transmit::PacketBatch;
use crate::sys::descriptor;

#[derive(Debug)]
pub(super) struct Plain(Iface);

impl Plain {
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let iface = Iface::without_packet_info(name, Mode::Tun)?;
        iface.set_non_blocking()?;
        Ok(Self(iface))
    }

    pub(super) fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.recv(buffer) {
            Ok(len) => Ok(Some(len)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn send(&self, packet: &[u8]) -> io::Result<bool> {
        match self.0.send(packet) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Writes a batch, super-packets cut. What the kernel has no room for is lost.
    pub(super) fn send_all(&self, packets: &PacketBatch) {
        for (index, packet) in packets.iter().enumerate() {
            match packets.segment(index) {
                None => {
                    let _ = self.send(packet);
                }
                Some(size) => split::each(packet, size, |part| {
                    let _ = self.send(part);
                }),
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        self.0.name()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        descriptor::of_tun(&self.0)
    }
}
