//! One peer's WireGuard session: seal, open, tick. The only file that names boringtun.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::Packet;
use boringtun::noise::Tunn;
use boringtun::noise::TunnResult;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use crate::identity::keys::WgPublic;
use crate::identity::keys::WgSecret;

/// What a data message adds to its packet, bytes: type, index and counter 16, tag 16 (WireGuard 5.4.6).
pub const OVERHEAD: usize = 32;
/// Longest message that is not data, bytes: the handshake initiation (WireGuard 5.4.2).
pub const HANDSHAKE_LEN: usize = 148;
/// Packets are padded to a multiple of this many bytes (WireGuard 5.4.6), so that exact lengths do not show.
pub const PADDING: usize = 16;
/// Handshakes per second, for all peers together, above which cookies are asked for (WireGuard 5.3). Each initiation is
/// counted twice: when its sender is identified and when its session looks at it.
const HANDSHAKES_PER_SECOND: u64 = 400;

/// How often a session with something under way wants [`Session::tick`]: its timers are in whole seconds.
pub const TICK: Duration = Duration::from_millis(250);
/// Ticks after the last message that a session counts as having something under way, 16 s: what a message may ask for later
/// is due 15 s after it at most (WireGuard 6.5: KEEPALIVE-TIMEOUT + REKEY-TIMEOUT). What else there is runs for minutes.
const RESTS_AFTER: u8 = 64;

/// Our own half of every handshake, and the limiter that all sessions share.
pub struct Keys {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(hidden)")
    }
}

/// Names a session in the messages of its peer: 24 random bits. The low 8 bits of the index on the wire count
/// handshakes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionIndex(u32);

impl SessionIndex {
    /// From random bits.
    #[must_use]
    pub const fn new(random: u32) -> Self {
        Self(random & 0x00ff_ffff)
    }
}

/// What a message says before it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// A handshake from somebody who will name itself.
    Initiation,
    /// For one of our sessions: response, cookie or data.
    For(SessionIndex),
}

/// Who sent an initiation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Initiator {
    /// The holder of this key, if the rest of the handshake holds.
    Claims(WgPublic),
    /// We are under load: send this many bytes of `dst`, a cookie, and forget the message.
    Cookie(usize),
    /// Forged, malformed or over the limit: silence.
    Nobody,
}

/// What became of a packet to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sealed {
    /// A data message of this many bytes.
    Data(usize),
    /// No session yet: the packet waits in the session, and this many bytes are a handshake message to send.
    Handshake(usize),
    /// No session yet: the packet waits for the handshake under way.
    Waiting,
    /// Refused: `dst` was too small, or the session is out of order.
    Failed,
}

/// What was in a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// An IP packet, here in `dst`.
    Packet(Range<usize>),
    /// Nothing for the device; this many bytes of `dst` are to be sent back. Call [`Session::flush`] until it is empty.
    Answer(usize),
    /// Authentic and empty: a keep-alive.
    Nothing,
    /// Forged, replayed, stale, or malformed inside.
    Rejected,
}

/// What the passing of time asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tick {
    /// Nothing.
    Quiet,
    /// This many bytes of `dst` are to be sent: a handshake or a keep-alive.
    Send(usize),
    /// Nobody answered for too long (WireGuard 6.4: REKEY-ATTEMPT-TIME); waiting packets were dropped.
    Expired,
}

impl Keys {
    /// The shared half of all sessions of this member.
    #[must_use]
    pub fn new(secret: &WgSecret) -> Self {
        let secret = x25519::StaticSecret::from(*secret.expose());
        let public = x25519::PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Self { secret, public, limiter }
    }

    /// To be called once a second: the limiter counts per second but does not look at the clock by itself.
    pub fn every_second(&self) {
        self.limiter.reset_count();
    }

    /// Who sent this initiation? `source` stands for where it came from and is what a cookie is bound to; `dst` needs
    /// [`HANDSHAKE_LEN`] bytes.
    #[must_use]
    pub fn identify(&self, source: IpAddr, message: &[u8], dst: &mut [u8]) -> Initiator {
        match self.limiter.verify_packet(Some(source), message, dst) {
            Ok(Packet::HandshakeInit(init)) => parse_handshake_anon(&self.secret, &self.public, &init)
                .map_or(Initiator::Nobody, |half| Initiator::Claims(WgPublic(half.peer_static_public))),
            Err(TunnResult::WriteToNetwork(cookie)) => Initiator::Cookie(cookie.len()),
            Ok(_) | Err(_) => Initiator::Nobody,
        }
    }
}

/// Reads the header of a WireGuard message; `None` if it is none.
#[must_use]
pub fn header(message: &[u8]) -> Option<Header> {
    let for_index = |index: u32| Some(Header::For(SessionIndex(index >> 8)));
    match Tunn::parse_incoming_packet(message).ok()? {
        Packet::HandshakeInit(_) => Some(Header::Initiation),
        Packet::HandshakeResponse(p) => for_index(p.receiver_idx),
        Packet::PacketCookieReply(p) => for_index(p.receiver_idx),
        Packet::PacketData(p) => for_index(p.receiver_idx),
    }
}

/// The bytes behind the packet at `packet` in what was opened of a message of `message_len` bytes: as authentic as it.
#[must_use]
pub fn behind(packet: &Range<usize>, message_len: usize) -> Range<usize> {
    packet.end..(packet.start + message_len.saturating_sub(OVERHEAD)).max(packet.end)
}

/// Bytes to add to a packet of `len` bytes so that its length tells less; never beyond `mtu`.
#[must_use]
pub fn padding(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(PADDING).min(mtu.max(len)) - len
}

/// One peer's session.
pub struct Session {
    tunn: Tunn,
    established: bool,
    /// Ticks since the last message, up to [`RESTS_AFTER`].
    quiet: u8,
    /// The longest packet that may wait inside for the handshake.
    longest_waiting: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(established: {})", self.established)
    }
}

impl Session {
    /// A session with the holder of `peer`; nothing is sent yet.
    #[must_use]
    pub fn new(
        keys: &Keys,
        peer: WgPublic,
        preshared: Option<[u8; 32]>,
        keepalive: Option<u16>,
        index: SessionIndex,
    ) -> Self {
        let limiter = Arc::clone(&keys.limiter);
        let peer = x25519::PublicKey::from(peer.0);
        let tunn = Tunn::new(keys.secret.clone(), peer, preshared, keepalive, index.0, Some(limiter));
        Self { tunn, established: false, quiet: 0, longest_waiting: 0 }
    }

    /// Seals `packet` into `dst`, which needs [`OVERHEAD`] bytes more, and [`HANDSHAKE_LEN`] at least.
    pub fn seal(&mut self, packet: &[u8], dst: &mut [u8]) -> Sealed {
        if dst.len() < (packet.len() + OVERHEAD).max(HANDSHAKE_LEN) {
            return Sealed::Failed;
        }
        self.quiet = 0;
        let sealed = match self.tunn.encapsulate(packet, dst) {
            TunnResult::WriteToNetwork(message) if message.first() == Some(&4) => {
                return Sealed::Data(message.len());
            }
            TunnResult::WriteToNetwork(message) => Sealed::Handshake(message.len()),
            TunnResult::Done => Sealed::Waiting,
            TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Sealed::Failed
            }
        };
        self.longest_waiting = self.longest_waiting.max(packet.len());
        sealed
    }

    /// Opens `message` into `dst`, which needs as many bytes, and [`HANDSHAKE_LEN`] at least.
    pub fn open(&mut self, source: IpAddr, message: &[u8], dst: &mut [u8]) -> Opened {
        if message.is_empty() || dst.len() < message.len().max(HANDSHAKE_LEN) {
            return Opened::Rejected;
        }
        let base = dst.as_ptr().addr();
        let opened = match self.tunn.decapsulate(Some(source), message, dst) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                let start = packet.as_ptr().addr().saturating_sub(base);
                Opened::Packet(start..start + packet.len())
            }
            TunnResult::WriteToNetwork(answer) => Opened::Answer(answer.len()),
            TunnResult::Done => Opened::Nothing,
            TunnResult::Err(_) => Opened::Rejected,
        };
        if opened != Opened::Rejected {
            self.quiet = 0;
        }
        match opened {
            Opened::Packet(_) => self.established = true,
            // A keep-alive proves the session; a cookie (type 3), which also opens into nothing, does not.
            Opened::Nothing => self.established |= message.first() == Some(&4),
            // Only the answer to a response does: a keep-alive of ours.
            Opened::Answer(n) => self.established |= n == OVERHEAD,
            Opened::Rejected => {}
        }
        opened
    }

    /// Bytes that [`Self::flush`] needs.
    #[must_use]
    pub fn flush_room(&self) -> usize {
        (self.longest_waiting + OVERHEAD).max(HANDSHAKE_LEN)
    }

    /// The next packet that waited for the handshake, sealed into `dst`, which needs [`Self::flush_room`] bytes; 0 when
    /// none is left.
    pub fn flush(&mut self, dst: &mut [u8]) -> usize {
        if dst.len() < self.flush_room() {
            return 0;
        }
        match self.tunn.decapsulate(None, &[], dst) {
            TunnResult::WriteToNetwork(message) => message.len(),
            _ => 0,
        }
    }

    /// A handshake initiation, written into `dst` ([`HANDSHAKE_LEN`] bytes); `None` while one is under way, unless `force`.
    pub fn initiate(&mut self, dst: &mut [u8], force: bool) -> Option<usize> {
        if dst.len() < HANDSHAKE_LEN {
            return None;
        }
        self.quiet = 0;
        match self.tunn.format_handshake_initiation(dst, force) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Lets time pass; to be called each [`TICK`], or once a second while it rests. `dst` needs [`HANDSHAKE_LEN`] bytes.
    pub fn tick(&mut self, dst: &mut [u8]) -> Tick {
        self.quiet = (self.quiet + 1).min(RESTS_AFTER);
        match self.tunn.update_timers(dst) {
            TunnResult::WriteToNetwork(message) => {
                self.quiet = 0;
                Tick::Send(message.len())
            }
            TunnResult::Err(boringtun::noise::errors::WireGuardError::ConnectionExpired) => {
                self.established = false;
                Tick::Expired
            }
            _ => Tick::Quiet,
        }
    }

    /// Nothing is under way: no message for so long that none of its timers is near.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        self.quiet == RESTS_AFTER
    }

    /// Whether both sides have proved that they hold the session's keys.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// Since the last completed handshake.
    #[must_use]
    pub fn last_handshake(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn two_sessions_shake_hands_and_the_waiting_packet_arrives() {
        let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
        let (ka, kb) = (Keys::new(&a), Keys::new(&b));
        let mut sa = Session::new(&ka, b.public(), None, None, SessionIndex::new(5));
        let mut sb = Session::new(&kb, a.public(), None, None, SessionIndex::new(6));
        let packet = ipv4(40);
        let mut buf = [0; 256];
        let mut plain = [0; 256];

        assert_eq!(sa.seal(&packet, &mut buf), Sealed::Handshake(148));
        assert_eq!(header(&buf[..148]), Some(Header::Initiation));
        let mut cookie = [0; 256];
        assert_eq!(kb.identify(HERE, &buf[..148], &mut cookie), Initiator::Claims(a.public()));
        let init = buf;
        assert_eq!(sb.open(HERE, &init[..148], &mut plain), Opened::Answer(92));
        assert!(!sb.is_established());
        let response = plain;
        assert_eq!(header(&response[..92]), Some(Header::For(SessionIndex::new(5))));
        assert_eq!(sa.open(HERE, &response[..92], &mut buf), Opened::Answer(32));
        assert!(sa.is_established());
        let keepalive = buf;
        let n = sa.flush(&mut buf);
        assert_eq!(n, packet.len() + OVERHEAD);
        assert_eq!(sb.open(HERE, &keepalive[..32], &mut plain), Opened::Nothing);
        assert!(sb.is_established());
        let sealed = buf;
        assert_eq!(sb.open(HERE, &sealed[..n], &mut plain), Opened::Packet(0..40));
        assert_eq!(sb.open(HERE, &sealed[..n], &mut plain), Opened::Rejected, "a replay");
        assert_eq!(sa.flush(&mut buf), 0);
    }

    #[test]
    fn a_handshake_for_another_key_names_nobody() {
        let (a, b, c) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]), WgSecret::new([3; 32]));
        let mut to_b = Session::new(&Keys::new(&a), b.public(), None, None, SessionIndex::new(5));
        let (mut buf, mut dst) = ([0; 256], [0; 256]);
        let n = to_b.initiate(&mut buf, false).unwrap();
        assert_eq!(Keys::new(&c).identify(HERE, &buf[..n], &mut dst), Initiator::Nobody);
        buf[20] ^= 1;
        assert_eq!(Keys::new(&b).identify(HERE, &buf[..n], &mut dst), Initiator::Nobody);
    }

    #[test]
    fn short_buffers_are_refused_instead_of_panicking() {
        let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
        let mut s = Session::new(&Keys::new(&a), b.public(), None, None, SessionIndex::new(5));
        assert_eq!(s.seal(&[0; 100], &mut [0; 131]), Sealed::Failed);
        assert_eq!(s.open(HERE, &[4; 200], &mut [0; 199]), Opened::Rejected);
        assert_eq!(s.initiate(&mut [0; 147], true), None);
        for len in 0..200 {
            assert_eq!(header(&vec![9; len]), None);
        }
    }

    #[test]
    fn padding_stops_at_the_mtu() {
        for (len, mtu, pad) in
            [(0, 1380, 0), (1, 1380, 15), (16, 1380, 0), (1379, 1380, 1), (1380, 1380, 0), (2000, 1380, 0)]
        {
            assert_eq!(padding(len, mtu), pad, "{len} of {mtu}");
        }
    }

    fn ipv4(len: u8) -> Vec<u8> {
        let mut packet = vec![0; usize::from(len)];
        packet[0] = 0x45;
        packet[3] = len;
        packet
    }
}
