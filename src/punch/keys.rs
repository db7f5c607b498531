//! The keys of one introduction, and the connectivity checks under them.
//!
//! A check is a STUN Binding with USERNAME = attempt id, side of the sender; MESSAGE-INTEGRITY-SHA256 under a key for
//! that direction. One key a direction, because with one for both an attacker could reflect a member's own checks to it
//! and pass for its peer. Transaction ids are numbered, because otherwise an attacker could send a check again from an
//! address of his own and pass for a peer that has moved there.

use std::net::SocketAddr;

use crate::base::id::AttemptId;
use crate::base::rng::Rng;
use crate::identity::agreement::Agreements;
use crate::identity::keys::WgPublic;
use crate::wire::stun;

/// What every check says that we can do.
const CAPABILITIES: stun::Attribute = stun::Attribute::Capabilities(stun::SUPER_PACKETS);

/// Which side of an introduction a member is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// Asked the broker for it.
    Asking,
    /// Was asked for.
    Asked,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Asking => Self::Asked,
            Self::Asked => Self::Asking,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Asking => 0,
            Self::Asked => 1,
        }
    }
}

/// Names a member's checks: 64 bits that count, 32 random ones. RFC 8489 5 wants all of them random against those who
/// guess answers; ours carry an integrity hash.
#[derive(Debug, Default)]
pub struct Numbers(u64);

impl Numbers {
    /// The next name.
    pub fn next(&mut self, rng: &mut Rng) -> stun::TransactionId {
        self.0 += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.0.to_be_bytes());
        id[8..].copy_from_slice(&rng.bytes::<4>());
        stun::TransactionId(id)
    }
}

/// The peer's requests of one introduction that were seen: each number counts once, and none counts that is older than
/// the last 128 (as WireGuard's window, RFC 6479).
#[derive(Debug, Default)]
pub struct Seen {
    newest: u64,
    // Bit n: `newest - n` was seen.
    before: u128,
}

impl Seen {
    /// Whether a request is a new one; remembers it.
    pub fn accept(&mut self, request: stun::TransactionId) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = request.0;
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        if let Some(ahead) = number.checked_sub(self.newest).filter(|ahead| *ahead > 0) {
            let shift = u32::try_from(ahead).unwrap_or(u32::MAX);
            self.before = self.before.checked_shl(shift).unwrap_or(0) | 1;
            self.newest = number;
            return true;
        }
        let bit = u32::try_from(self.newest - number).ok().and_then(|behind| 1u128.checked_shl(behind));
        let Some(bit) = bit else { return false };
        let fresh = self.before & bit == 0 && number > 0;
        self.before |= bit;
        fresh
    }
}

/// Both keys of one introduction, as one member holds them.
#[derive(Clone)]
pub struct PairKeys {
    attempt: AttemptId,
    side: Side,
    send: [u8; 32],
    receive: [u8; 32],
}

/// An authentic check of the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// It asks.
    Request(stun::TransactionId),
    /// It answers, and saw us at this address.
    Success(stun::TransactionId, SocketAddr),
}

impl std::fmt::Debug for PairKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PairKeys({} {:?})", self.attempt, self.side)
    }
}

impl PairKeys {
    /// The keys of `attempt` between the holder of `wg`, on `side`, and `peer`. `None` if the peer's key is of low order.
    #[must_use]
    pub fn new(wg: &mut Agreements, peer: WgPublic, attempt: AttemptId, side: Side) -> Option<Self> {
        let context = |sender: Side| [&attempt.0[..], &[sender.number()]].concat();
        let contexts = [&context(side)[..], &context(side.other())];
        let [send, receive] = wg.derive_all(peer, b"ntcp connectivity check", contexts)?;
        Some(Self { attempt, side, send, receive })
    }

    /// The introduction that these keys belong to.
    #[must_use]
    pub const fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// Which side of it we are.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }

    /// A check, `padding` bytes longer than it need be.
    #[must_use]
    pub fn request(&self, transaction: stun::TransactionId, padding: u16) -> Vec<u8> {
        let mut attributes = vec![stun::Attribute::Username(self.username(self.side)), CAPABILITIES];
        if padding > 0 {
            attributes.push(stun::Attribute::Padding(padding));
        }
        self.emit(stun::Class::Request, transaction, attributes)
    }

    /// A check that says how the tunnel's packets fare on its way.
    #[must_use]
    pub fn report(&self, transaction: stun::TransactionId, report: stun::Report) -> Vec<u8> {
        let attributes = vec![
            stun::Attribute::Username(self.username(self.side)),
            CAPABILITIES,
            stun::Attribute::Report(report),
        ];
        self.emit(stun::Class::Request, transaction, attributes)
    }

    /// A check that is a datagram of `len` bytes, or up to 3 more.
    #[must_use]
    pub fn request_of(&self, transaction: stun::TransactionId, len: usize) -> Vec<u8> {
        /// Bytes before an attribute's value (RFC 8489 14).
        const ATTRIBUTE: usize = 4;
        let padding = len.saturating_sub(self.request(transaction, 0).len() + ATTRIBUTE);
        self.request(transaction, u16::try_from(padding).unwrap_or(u16::MAX))
    }

    /// The answer to a check that came from `from`; where that is a way, with how the tunnel's packets fare there.
    #[must_use]
    pub fn success(
        &self,
        transaction: stun::TransactionId,
        from: SocketAddr,
        report: Option<stun::Report>,
    ) -> Vec<u8> {
        let mut attributes = vec![
            stun::Attribute::Username(self.username(self.side)),
            CAPABILITIES,
            stun::Attribute::XorMappedAddress(from),
        ];
        attributes.extend(report.map(stun::Attribute::Report));
        self.emit(stun::Class::Success, transaction, attributes)
    }

    /// What the peer says with `received`; `None` if it is not the peer who says it.
    #[must_use]
    pub fn judge(&self, received: &stun::Received<'_>) -> Option<Check> {
        let message = &received.message;
        let ours = message.method == stun::BINDING
            && message.username() == Some(&self.username(self.side.other()))
            && received.is_authentic(&self.receive);
        match message.class {
            _ if !ours => None,
            stun::Class::Request => Some(Check::Request(message.transaction)),
            stun::Class::Success => Some(Check::Success(message.transaction, message.mapped()?)),
            stun::Class::Indication | stun::Class::Error => None,
        }
    }

    fn username(&self, side: Side) -> Vec<u8> {
        let mut name = self.attempt.0.to_vec();
        name.push(side.number());
        name
    }

    fn emit(
        &self,
        class: stun::Class,
        transaction: stun::TransactionId,
        attributes: Vec<stun::Attribute>,
    ) -> Vec<u8> {
        stun::Message { class, method: stun::BINDING, transaction, attributes }
            .emit(stun::Integrity::Sha256(&self.send))
    }
}

/// The introduction that a check claims to belong to; believed only after [`PairKeys::judge`].
#[must_use]
pub fn attempt_of(message: &stun::Message) -> Option<AttemptId> {
    let (id, side) = message.username()?.split_first_chunk::<16>()?;
    (side.len() == 1).then_some(AttemptId(*id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::keys::WgSecret;

    const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9)), 99);
    const T: stun::TransactionId = stun::TransactionId([3; 12]);

    #[test]
    fn the_peer_is_understood_and_nobody_else() {
        let (a, b) = pair();
        let request = a.request(T, 0);
        assert_eq!(judge(&b, &request), Some(Check::Request(T)));
        assert_eq!(judge(&a, &b.success(T, FROM, None)), Some(Check::Success(T, FROM)));
        assert_eq!(judge(&a, &request), None, "its own check, reflected");
        let mut stranger = Agreements::new(WgSecret::new([9; 32]));
        let other = PairKeys::new(&mut stranger, WgSecret::new([2; 32]).public(), a.attempt, Side::Asking);
        assert_eq!(judge(&b, &other.unwrap().request(T, 0)), None);
    }

    #[test]
    fn a_number_counts_once_and_old_ones_never() {
        let id = |n: u64| {
            let mut id = [9; 12];
            id[..8].copy_from_slice(&n.to_be_bytes());
            stun::TransactionId(id)
        };
        let mut seen = Seen::default();
        for (n, fresh) in [
            (0, false),
            (1, true),
            (1, false),
            (3, true),
            (2, true),
            (2, false),
            (130, true),
            (3, false),
            (4, true),
            (4, false),
            (u64::MAX, true),
            (130, false),
            (u64::MAX, false),
            (u64::MAX - 127, true),
            (u64::MAX - 128, false),
        ] {
            assert_eq!(seen.accept(id(n)), fresh, "{n}");
        }
        let (mut numbers, mut rng) = (Numbers::default(), Rng::new(crate::base::rng::Seed([0; 32])));
        let mut seen = Seen::default();
        assert!((0..300).all(|_| seen.accept(numbers.next(&mut rng))));
    }

    #[test]
    fn padding_makes_a_check_longer_by_itself_and_a_header() {
        let (a, b) = pair();
        let padded = a.request(T, 1000);
        assert_eq!(padded.len(), a.request(T, 0).len() + 1004);
        assert_eq!(judge(&b, &padded), Some(Check::Request(T)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (a, b) = pair();
        let request = a.request(T, 0);
        // The last 8 bytes are the FINGERPRINT, which proves nothing and may be left out.
        for i in 0..request.len() - 8 {
            let mut bent = request.clone();
            bent[i] ^= 1;
            assert_eq!(judge(&b, &bent), None, "byte {i}");
        }
    }

    fn judge(keys: &PairKeys, bytes: &[u8]) -> Option<Check> {
        keys.judge(&stun::Received::parse(bytes).ok()?)
    }

    fn pair() -> (PairKeys, PairKeys) {
        let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
        let keys = |own: &WgSecret, peer: &WgSecret, side| {
            PairKeys::new(&mut Agreements::new(own.clone()), peer.public(), AttemptId([7; 16]), side).unwrap()
        };
        (keys(&a, &b, Side::Asking), keys(&b, &a, Side::Asked))
    }
}
