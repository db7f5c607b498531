//! Messages of sockets and streams on their way in: tell the kind, authenticate, then believe.

use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use crate::base::ecn::Ecn;
use crate::base::id::AttemptId;
use crate::base::time::Now;
use crate::base::transmit::Via;
use crate::node::Node;
use crate::node::outbound::TAILROOM;
use crate::node::output::Order;
use crate::node::output::Output;
use crate::node::peers::Kind;
use crate::node::peers::Peer;
use crate::node::peers::PeerId;
use crate::node::registration::Registration;
use crate::node::streams::Owner;
use crate::path::Ctx;
use crate::path::Path;
use crate::path::leg::Leg;
use crate::punch::keys::attempt_of;
use crate::tunnel::session;
use crate::tunnel::session::HANDSHAKE_LEN;
use crate::tunnel::session::Header;
use crate::tunnel::session::Initiator;
use crate::tunnel::session::Opened;
use crate::wire::broker::ToBroker;
use crate::wire::demux;
use crate::wire::ip;
use crate::wire::relay;
use crate::wire::stun;
use crate::wire::super_packet;
use crate::wire::super_packet::Held;

/// Where a WireGuard message came from, and so where its answer goes.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A socket, a stream or a relay channel; and the congestion mark with which it came.
    Leg(Leg, Ecn),
    /// Through the broker, with an introduction, of this peer; the answer also goes straight to these addresses.
    Broker(AttemptId, PeerId, Vec<SocketAddr>),
}

impl Node {
    /// A datagram with its congestion mark, or a frame of a stream, which has none.
    pub fn handle_message(
        &mut self,
        via: Via,
        from: SocketAddr,
        ecn: Ecn,
        bytes: &mut [u8],
        now: Now,
        out: &mut Output,
    ) {
        if self.serve_message(via, from, ecn, bytes, now, &mut out.outbox) {
            return;
        }
        let direct = Leg { via, to: from, channel: None };
        match demux::kind(bytes) {
            demux::Kind::Stun => self.handle_stun(direct, bytes, now, out),
            demux::Kind::Noise => self.handle_noise(&Origin::Leg(direct, ecn), bytes, now, out),
            demux::Kind::Relay => match relay::split(bytes) {
                Ok((channel, inner)) => {
                    let leg = Leg { channel: Some(channel), ..direct };
                    match demux::kind(inner) {
                        demux::Kind::Stun => self.handle_stun(leg, inner, now, out),
                        demux::Kind::Noise => {
                            self.handle_noise(&Origin::Leg(leg, ecn), inner, now, out);
                        }
                        demux::Kind::Relay | demux::Kind::Unknown => self.counters.unknown_kind += 1,
                    }
                }
                Err(_) => self.counters.malformed += 1,
            },
            demux::Kind::Unknown => self.counters.unknown_kind += 1,
        }
    }

    fn handle_stun(&mut self, leg: Leg, bytes: &[u8], now: Now, out: &mut Output) {
        let Ok(received) = stun::Received::parse(bytes) else {
            self.counters.malformed += 1;
            return;
        };
        if !self.believe_stun(leg, &received, now, out) {
            self.counters.unauthenticated += 1;
        }
    }

    /// Finds who the message is for; false if it is for nobody or not authentic. Nothing is answered in that case.
    fn believe_stun(&mut self, leg: Leg, received: &stun::Received<'_>, now: Now, out: &mut Output) -> bool {
        let message = &received.message;
        if let Some(attempt) = attempt_of(message) {
            let Some(id) = self.peers.by_attempt(&attempt) else { return false };
            let authentic =
                self.with_path(id, now, out, |path, ctx| path.handle_check(leg, received, attempt, ctx));
            if authentic != Some(true) {
                return false;
            }
            if let Via::Stream(stream) = leg.via
                && leg.channel.is_none()
            {
                self.streams.insert(stream, Owner::Peer(id));
            }
            if message.class == stun::Class::Success {
                self.answer_pings(id, message.transaction, now, out);
            }
            self.pump(id, now, out);
            return true;
        }
        if leg.channel.is_some() {
            return false;
        }
        if message.method == stun::RELAY_BIND {
            let awaits = |peer: &Peer| match &peer.kind {
                Kind::Mesh(mesh) => mesh.path.awaits_relay_answer(leg.via, leg.to, message),
                Kind::Stock { .. } => false,
            };
            let ids = self.peers.iter().filter(|(_, peer)| awaits(peer)).map(|(id, _)| id);
            for id in ids.collect::<Vec<PeerId>>() {
                let answered = self.with_path(id, now, out, |path, ctx| {
                    path.handle_relay_answer(leg.via, leg.to, received, ctx)
                });
                if answered == Some(true) {
                    self.learn_mapping(out);
                    self.pump(id, now, out);
                    return true;
                }
            }
            return false;
        }
        if let Via::Udp(socket) = leg.via
            && let Some(owner) = self.sockets.get(&socket).copied()
        {
            let look = |path: &mut Path, ctx: &mut Ctx<'_>| path.handle_look(socket, leg.to, received, ctx);
            let known = self.with_path(owner, now, out, look);
            self.pump(owner, now, out);
            return known == Some(true);
        }
        let before: Vec<_> = self.registrations.iter().map(Registration::mapped).collect();
        let lifetime = self.profile.udp.lifetime;
        let registered =
            self.registrations.iter_mut().any(|r| r.handle_response(leg.to, received, lifetime, now.instant));
        if registered {
            self.local.udp_blocked = false;
            self.learn_mapping(out);
            if !self.registrations.iter().map(Registration::mapped).eq(before) {
                self.retry_indirect(now, out);
            }
            return true;
        }
        let observed = self.observers.handle_response(leg.to, received, now.instant);
        if observed == Some(true) {
            self.announce_candidates(out);
            self.retry_indirect(now, out);
        }
        observed.is_some()
    }

    /// A WireGuard message.
    pub(super) fn handle_noise(&mut self, origin: &Origin, message: &[u8], now: Now, out: &mut Output) {
        let source = source_of(origin);
        let Some(header) = session::header(message) else {
            self.counters.malformed += 1;
            return;
        };
        let id = match header {
            Header::For(index) => self.peers.by_index(index),
            Header::Initiation => self.initiator(origin, source, message, now, out),
        };
        let Some(id) = id else {
            self.counters.unauthenticated += 1;
            return;
        };
        if matches!(origin, Origin::Broker(_, sender, _) if *sender != id) {
            self.counters.unauthenticated += 1;
            return;
        }
        self.open(id, origin, source, message, now, out);
        self.pump(id, now, out);
    }

    fn initiator(
        &mut self,
        origin: &Origin,
        source: IpAddr,
        message: &[u8],
        now: Now,
        out: &mut Output,
    ) -> Option<PeerId> {
        if !self.gate.admit(source, now.instant) {
            self.counters.rate_limited += 1;
            return None;
        }
        let mut buffer = [0; HANDSHAKE_LEN];
        match self.keys.identify(source, message, &mut buffer) {
            Initiator::Claims(key) => self.peers.by_key(&key).or_else(|| {
                let known = self.directory.by_key(&key).cloned()?;
                Some(self.peer_of(&known, now, out))
            }),
            Initiator::Cookie(n) => {
                self.counters.rate_limited += 1;
                if let (Origin::Leg(leg, _), Some(cookie)) = (origin, buffer.get(..n)) {
                    leg.push(&mut out.outbox, cookie);
                }
                None
            }
            Initiator::Nobody => None,
        }
    }

    fn open(
        &mut self,
        id: PeerId,
        origin: &Origin,
        source: IpAddr,
        message: &[u8],
        now: Now,
        out: &mut Output,
    ) {
        let (routes, own, counters, mtu) =
            (&self.routes, &self.me.addrs, &mut self.counters, self.config.mtu);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let was_established = peer.session.is_established();
        let outer = match origin {
            Origin::Leg(_, ecn) => *ecn,
            Origin::Broker(..) => Ecn::NotCapable,
        };
        let mut opened = Opened::Rejected;
        let mut answer = [0; HANDSHAKE_LEN];
        let mut segment = None;
        let room = message.len().max(HANDSHAKE_LEN) + TAILROOM;
        let packet = out.packets.fill(room, |slot| {
            opened = peer.session.open(source, message, slot);
            match &opened {
                Opened::Packet(range) => {
                    let Ok(packet) = ip::Packet::parse(slot.get(range.clone())?) else {
                        counters.malformed += 1;
                        return None;
                    };
                    if routes.owner(packet.source()) != Some(id) || !own.contains(packet.destination()) {
                        counters.spoofed += 1;
                        return None;
                    }
                    let behind = slot.get(session::behind(range, message.len())).unwrap_or_default();
                    match super_packet::read(&packet, behind, mtu) {
                        Held::Packet => {}
                        Held::SuperPacket(size) => segment = Some(size),
                        Held::Impossible => {
                            counters.malformed += 1;
                            return None;
                        }
                    }
                    let (end, inner) = (range.start + packet.bytes().len(), packet.ecn());
                    let Some(mark) = inner.out_of(outer) else {
                        counters.congested += 1;
                        return None;
                    };
                    if mark != inner {
                        ip::set_mark(slot.get_mut(range.start..end)?, mark);
                    }
                    Some(range.start..end)
                }
                Opened::Answer(n) => {
                    answer.get_mut(..*n)?.copy_from_slice(slot.get(..*n)?);
                    None
                }
                Opened::Nothing | Opened::Rejected => None,
            }
        });
        if opened == Opened::Rejected {
            counters.unauthenticated += 1;
            return;
        }
        if let Some(range) = packet {
            peer.rx_bytes += range.len() as u64;
            if let Some(size) = segment {
                out.packets.mark_super(size);
            }
        }
        // Only now is it the peer who speaks.
        match (origin, &mut peer.kind) {
            (Origin::Leg(leg, _), Kind::Mesh(mesh)) => {
                if matches!(opened, Opened::Packet(_)) {
                    mesh.path.handle_packet(*leg, now.instant);
                } else {
                    mesh.path.handle_heard(*leg, now.instant);
                }
            }
            (Origin::Leg(Leg { via: Via::Udp(_), to, channel: None }, _), Kind::Stock { endpoint }) => {
                *endpoint = Some(*to);
            }
            (Origin::Leg(..) | Origin::Broker(..), _) => {}
        }
        if let Opened::Answer(n) = opened
            && let Some(answer) = answer.get(..n)
        {
            self.answer(id, origin, answer, out);
        }
        let established = self.peers.get(id).is_some_and(|peer| peer.session.is_established());
        if established && (!was_established || matches!(opened, Opened::Answer(_))) {
            self.flush_session(id, now, out);
        }
    }

    /// A handshake's answer goes back where the question came from.
    fn answer(&self, id: PeerId, origin: &Origin, answer: &[u8], out: &mut Output) {
        match origin {
            Origin::Leg(leg, _) => {
                let carrier = self.peers.get(id).and_then(Peer::leg);
                carrier.unwrap_or(*leg).push(&mut out.outbox, answer);
                // A response must reach whoever asked even if our own idea of the way is out of date.
                if carrier.is_some_and(|at| at != *leg) {
                    leg.push(&mut out.outbox, answer);
                }
            }
            Origin::Broker(attempt, _, direct) => {
                let convey = ToBroker::Convey { attempt: *attempt, noise: answer.to_vec() };
                out.orders.push_back(Order::Broker(convey));
                // The checks that open the way leave at the same moment: with them the answer saves a trip.
                for to in direct {
                    Leg::udp(*to).push(&mut out.outbox, answer);
                }
            }
        }
    }
}

/// What a handshake's cookie and rate limit are bound to. A relay's messages all come from one address, so the channel
/// stands in for it, in the discard-only prefix of RFC 6666.
fn source_of(origin: &Origin) -> IpAddr {
    match origin {
        Origin::Leg(Leg { to, channel: None, .. }, _) => to.ip(),
        Origin::Leg(Leg { channel: Some(channel), .. }, _) => {
            IpAddr::V6(Ipv6Addr::new(0x0100, 0, 0, channel.number(), 0, 0, 0, 1))
        }
        Origin::Broker(attempt, ..) => {
            let [a, b, ..] = attempt.0;
            IpAddr::V6(Ipv6Addr::new(0x0100, 0, 0, u16::from_be_bytes([a, b]), 0, 0, 0, 2))
        }
    }
}
