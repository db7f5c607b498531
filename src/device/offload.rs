//! The fast backend: a call carries a super-packet of up to 64 KiB in either direction.

use std::io;
use std::io::IoSlice;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;

use super::SuperPacket;
use super::TAILROOM;
use super::headers::HEADERS_MAX;
use super::merge::Group;
use super::merge::Merge;
use super::merge::PARTS;
use super::split;
use super::split::Gso;
use super::split::Split;
use super::split::Vnet;
use crate::base::transmit::PacketBatch;
use crate::sys::tun;
use crate::sys::tun::HEADER_LEN;
use crate::sys::tun::VnetTun;

/// Room for one read, bytes: the header, and the largest packet that the kernel makes (`GSO_MAX_SIZE`).
const ROOM: usize = HEADER_LEN + 65_536;

/// An open device, and the super-packet that is being given out.
#[derive(Debug)]
pub(super) struct Offload {
    tun: VnetTun,
    read: Vec<u8>,
    len: usize,
    split: Split,
    merge: Merge,
    /// What the kernel takes: super-packets at all, and of UDP.
    joins: bool,
    joins_udp: bool,
}

impl Offload {
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let tun = VnetTun::open(name)?;
        tun.set_offload(tun::CSUM)?;
        // One by one: what an old kernel does not know must not cost the rest.
        let mut has = tun::CSUM;
        for more in [tun::TSO4, tun::TSO6, tun::USO] {
            if tun.set_offload(has | more).is_ok() {
                has |= more;
            }
        }
        let joins = has & tun::TSO4 != 0 && has & tun::TSO6 != 0;
        Ok(Self {
            tun,
            read: vec![0; ROOM + TAILROOM],
            len: 0,
            split: Split::default(),
            merge: Merge::default(),
            joins,
            joins_udp: has & tun::USO != 0,
        })
    }

    /// Whether [`Self::recv`] has more without a call to the kernel.
    pub(super) fn is_pending(&self) -> bool {
        self.split.is_pending()
    }

    pub(super) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let whole = self.read.get(HEADER_LEN..self.len).unwrap_or_default();
            if let Some(len) = self.split.next(whole, buffer) {
                return Ok(Some(len));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// What was read, or is now, if it is a super-packet that nothing was cut of.
    pub(super) fn super_packet(&mut self) -> io::Result<Option<SuperPacket<'_>>> {
        if !self.split.is_pending() && !self.read()? {
            return Ok(None);
        }
        let Some(size) = self.split.uncut() else { return Ok(None) };
        let Some(buffer) = self.read.get_mut(HEADER_LEN..self.len + TAILROOM) else { return Ok(None) };
        Ok(Some(SuperPacket { buffer, len: self.len - HEADER_LEN, size }))
    }

    pub(super) fn take_super_packet(&mut self) {
        self.split = Split::default();
    }

    /// Takes the next packet from the kernel, if it has one.
    fn read(&mut self) -> io::Result<bool> {
        let room = self.read.get_mut(..ROOM).unwrap_or_default();
        match rustix::io::read(self.tun.as_fd(), room) {
            Ok(len) => self.len = len.max(HEADER_LEN),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        let vnet = self.read.first_chunk().and_then(Vnet::parse);
        self.split = vnet.map(Split::new).unwrap_or_default();
        Ok(true)
    }

    pub(super) fn send(&self, packet: &[u8]) -> io::Result<bool> {
        self.write(&[IoSlice::new(&Vnet::default().emit()), IoSlice::new(packet)])
    }

    /// Writes a batch, joined where that is possible. What the kernel has no room for is lost.
    pub(super) fn send_all(&mut self, packets: &PacketBatch) {
        if !self.joins || packets.len() < 2 {
            for index in 0..packets.len() {
                self.send_one(index, packets);
            }
            return;
        }
        // What is a super-packet already is like a packet of no flow: nothing passes it.
        let part = |index| if packets.segment(index).is_some() { &[] } else { packets.get(index) };
        self.merge.plan(packets.len(), part, self.joins_udp);
        let mut refused = false;
        for group in self.merge.groups() {
            let joined = !refused && self.send_group(group, packets);
            if joined {
                continue;
            }
            let mut taken = false;
            for index in self.merge.parts(group) {
                taken |= self.send_one(index, packets);
            }
            // Its parts are fine, so it is the joining that the kernel does not like.
            refused |= group.count > 1 && taken;
        }
        if refused {
            tracing::info!(
                name = self.tun.name(),
                "the kernel refuses joined packets; they are written one by one"
            );
            self.joins = false;
        }
    }

    /// Writes a group as one; false if it is no group, or if the kernel refuses it.
    fn send_group(&self, group: &Group, packets: &PacketBatch) -> bool {
        let mut head = [0; HEADERS_MAX];
        let Some((len, vnet)) = group.headers(packets.get(group.first), &mut head) else { return false };
        let vnet = vnet.emit();
        let mut slices = [IoSlice::new(&[]); PARTS + 2];
        let parts = self.merge.parts(group).map(|index| packets.get(index).get(len..).unwrap_or_default());
        let all = [vnet.as_slice(), head.get(..len).unwrap_or_default()].into_iter().chain(parts);
        for (slot, bytes) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(bytes);
        }
        slices.get(..group.count + 2).is_some_and(|slices| self.write(slices).is_ok())
    }

    /// Writes one packet of a batch as it is, or in pieces if it is a super-packet that the kernel refuses; false if it
    /// refuses all of it.
    fn send_one(&self, index: usize, packets: &PacketBatch) -> bool {
        let packet = packets.get(index);
        let Some(size) = packets.segment(index) else { return self.send(packet).is_ok() };
        let mut head = [0; HEADERS_MAX];
        let Some((len, vnet)) = split::whole(packet, size, &mut head) else { return false };
        let takes = match vnet.segment {
            Some((Gso::Udp, _)) => self.joins_udp,
            _ => self.joins,
        };
        let (vnet, body) = (vnet.emit(), packet.get(len..).unwrap_or_default());
        let slices = [vnet.as_slice(), head.get(..len).unwrap_or_default(), body].map(IoSlice::new);
        if takes && self.write(&slices).is_ok() {
            return true;
        }
        let mut taken = false;
        split::each(packet, size, |part| taken |= self.send(part).is_ok());
        taken
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<bool> {
        match rustix::io::writev(self.tun.as_fd(), slices) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.tun.name()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}
