//! Packets of the device on their way out: route, seal, send; or wait for a path.

use std::num::NonZeroU16;

use crate::base::time::Now;
use crate::node::Node;
use crate::node::output::Output;
use crate::node::peers::Kind;
use crate::node::peers::Peer;
use crate::node::peers::PeerId;
use crate::path::Load;
use crate::path::leg::Leg;
use crate::tunnel::session;
use crate::tunnel::session::HANDSHAKE_LEN;
use crate::tunnel::session::Sealed;
use crate::wire::ip;
use crate::wire::super_packet;

/// Room that a packet's buffer must have behind it, for padding.
pub(super) const TAILROOM: usize = session::PADDING;
/// Longest packet, bytes (RFC 791).
const MAX_PACKET: usize = 65_535;
/// Largest TCP segment offered to peers until larger packets are known to pass: 1,280 bytes (the least that IPv6
/// networks carry, RFC 8200 5) less IPv6 40, UDP 8, WireGuard 32, relay header 4, padding to 16, inner IPv6 40 and TCP 20.
/// A path of that MTU then never sees a packet that does not fit, so ssh does not hang after login.
const SAFE_MSS: u16 = 1280 - 40 - 8 - 32 - 4 - 12 - 60;
/// TCP packets from this size on are bulk, bytes. Acknowledgements of what the other side sends are many too, but loss does
/// not hold them up; keystrokes are smaller as well.
const BULK: usize = 576;
/// Packets for an address that the broker is being asked about.
const MAX_UNKNOWN: (usize, usize) = (64, 8);

impl Node {
    /// A packet of the device: the first `len` bytes of `buffer`, which should be 16 bytes longer (padding).
    pub fn handle_packet(&mut self, buffer: &mut [u8], len: usize, now: Now, out: &mut Output) {
        let Some(packet) = buffer.get_mut(..len) else { return };
        let Ok(view) = ip::Packet::parse(packet) else {
            self.counters.malformed += 1;
            return;
        };
        let (to, tcp) = (view.destination(), view.protocol() == ip::TCP);
        let Some(id) = self.routes.owner(to) else { return self.handle_unrouted(to, packet, now, out) };
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Some(path) = peer.path_mut() {
            path.handle_demand(now.instant);
        }
        let size = match &peer.kind {
            Kind::Mesh(mesh) => mesh.path.size(self.config.mtu),
            Kind::Stock { .. } => None,
        };
        let mss = size.map_or(SAFE_MSS, |size| mss_of(size, to.is_ipv6()));
        let _ = ip::clamp_mss(packet, mss);
        let padded = len + session::padding(len, self.config.mtu);
        let padded = if padded <= buffer.len() { padded } else { len };
        if let Some(pad) = buffer.get_mut(len..padded) {
            pad.fill(0);
        }
        let Some(packet) = buffer.get(..padded) else { return };
        self.send(id, packet, len, tcp, now, out);
    }

    /// A super-packet of the device: the first `len` bytes of `buffer`, which should be 18 bytes longer. It is sealed as one
    /// message where it can leave as one, whole. False if it cannot: then whoever has it cuts it, and its packets come to
    /// [`Self::handle_packet`].
    pub fn handle_super_packet(
        &mut self,
        buffer: &mut [u8],
        len: usize,
        size: NonZeroU16,
        now: Now,
        out: &mut Output,
    ) -> bool {
        let Some(packet) = buffer.get(..len).filter(|_| len <= MAX_PACKET) else { return false };
        let Ok(view) = ip::Packet::parse(packet) else { return false };
        let (to, tcp) = (view.destination(), view.protocol() == ip::TCP);
        let Some(id) = self.routes.owner(to) else { return false };
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let whole = |kind: &Kind| matches!(kind, Kind::Mesh(mesh) if mesh.path.carries_super_packets(tcp));
        if !peer.session.is_established() || !whole(&peer.kind) {
            return false;
        }
        if let Some(path) = peer.path_mut() {
            path.handle_demand(now.instant);
        }
        let padded = (len + super_packet::TRAILER_LEN).next_multiple_of(session::PADDING);
        let Some(behind) = buffer.get_mut(len..padded) else { return false };
        behind.fill(0);
        if let Some(place) = behind.first_chunk_mut() {
            *place = super_packet::trailer(size);
        }
        let Some(packet) = buffer.get(..padded) else { return false };
        self.send(id, packet, len, tcp, now, out);
        true
    }

    /// Seals `packet` for `id`, of which `len` bytes count, and sends it, or keeps it.
    fn send(&mut self, id: PeerId, packet: &[u8], len: usize, tcp: bool, now: Now, out: &mut Output) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        match peer.ready_leg(tcp, now.instant) {
            Some(leg) => {
                let sealed = seal(peer, leg, packet, out);
                let mut load = Load::default();
                if matches!(sealed, Sealed::Data(_)) {
                    peer.tx_bytes += len as u64;
                    load = Load { messages: 1, bulk: if tcp && len >= BULK { len as u64 } else { 0 } };
                }
                if matches!(sealed, Sealed::Data(_) | Sealed::Handshake(_))
                    && let Some(path) = peer.path_mut()
                {
                    path.handle_sent(leg, load, now.instant);
                }
            }
            None => {
                self.counters.queue_full += u64::from(peer.keep(packet, now.instant));
                self.pump(id, now, out);
            }
        }
    }

    /// Sends what waited for a path, now that there is one.
    pub(super) fn send_kept(&mut self, id: PeerId, now: Now, out: &mut Output) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(leg) = peer.ready_leg(false, now.instant).filter(|_| peer.has_kept()) else { return };
        let mut load = Load::default();
        while let Some(packet) = peer.next_kept(now.instant) {
            if matches!(seal(peer, leg, &packet, out), Sealed::Data(_)) {
                peer.tx_bytes += packet.len() as u64;
                load.messages += 1;
            }
        }
        if let Some(path) = peer.path_mut() {
            path.handle_sent(leg, load, now.instant);
        }
    }

    /// Sends the messages of a session that has just come up: what waited inside it.
    pub(super) fn flush_session(&mut self, id: PeerId, now: Now, out: &mut Output) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(leg) = peer.leg().filter(|_| peer.session.is_established()) else { return };
        let before = out.outbox.sends().len();
        let (room, mut load) = (peer.session.flush_room(), Load::default());
        loop {
            let sent =
                leg.fill(&mut out.outbox, room, |slot| Some(peer.session.flush(slot)).filter(|n| *n > 0));
            let Some(n) = sent else { break };
            peer.tx_bytes += n.saturating_sub(session::OVERHEAD) as u64;
            load.messages += 1;
        }
        if out.outbox.sends().len() > before
            && let Some(path) = peer.path_mut()
        {
            path.handle_sent(leg, load, now.instant);
        }
    }

    /// Nobody owns the destination: a member that we have nothing to do with yet, or nobody at all.
    fn handle_unrouted(&mut self, to: std::net::IpAddr, packet: &mut [u8], now: Now, out: &mut Output) {
        let _ = ip::clamp_mss(packet, SAFE_MSS);
        if !self.config.overlay.iter().any(|net| net.contains(to)) || self.me.addrs.contains(to) {
            self.counters.no_route += 1;
            return;
        }
        if let Some(known) = self.directory.by_addr(to).cloned() {
            let id = self.peer_of(&known, now, out);
            if let Some(peer) = self.peers.get_mut(id) {
                let _ = peer.keep(packet, now.instant);
                if let Some(path) = peer.path_mut() {
                    path.handle_demand(now.instant);
                }
            }
            return self.pump(id, now, out);
        }
        let (addresses, packets) = MAX_UNKNOWN;
        if !self.unknown.contains_key(&to) && self.unknown.len() >= addresses {
            self.counters.no_route += 1;
            return;
        }
        let asked = self.unknown.contains_key(&to);
        let (_, waiting) = self.unknown.entry(to).or_insert_with(|| (now.instant, Vec::new()));
        if waiting.len() < packets {
            waiting.push(packet.to_vec());
        }
        if !asked {
            self.look_up(to, out);
        }
    }
}

/// The TCP segment size that fits packets of `mtu` bytes.
fn mss_of(mtu: usize, is_v6: bool) -> u16 {
    let headers = if is_v6 { 60 } else { 40 };
    u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX)
}

/// Seals a packet into the outbox. The datagram bears the congestion mark of its packet, so that queues on the way may mark
/// instead of drop (RFC 6040 4.1, normal mode), if the peer is known to bring marks back in.
fn seal(peer: &mut Peer, leg: Leg, packet: &[u8], out: &mut Output) -> Sealed {
    let mut sealed = Sealed::Failed;
    let room = (packet.len() + session::OVERHEAD).max(HANDSHAKE_LEN);
    let _ = leg.fill(&mut out.outbox, room, |slot| {
        sealed = peer.session.seal(packet, slot);
        match sealed {
            Sealed::Data(n) | Sealed::Handshake(n) => Some(n),
            Sealed::Waiting | Sealed::Failed => None,
        }
    });
    if matches!((sealed, &peer.kind), (Sealed::Data(_), Kind::Mesh(_))) {
        out.outbox.mark(ip::mark_of(packet));
    }
    sealed
}
