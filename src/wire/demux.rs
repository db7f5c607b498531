//! What kind of message is this? The one table of first bytes; the same on UDP and inside a TCP frame.
//!
//! | first bytes | kind | source |
//! |---|---|---|
//! | 0x00..=0x03, length and cookie of STUN | STUN | RFC 8489 5 |
//! | 0x01..=0x04, 0, 0, 0 | WireGuard | WireGuard 5.4 |
//! | 0x40..=0x4f, any, 0, 0 | relayed | `wire::relay` |
//!
//! STUN is told by cookie *and* length: a WireGuard sender index may equal the cookie by chance, but then the "length
//! field" in its reserved bytes is zero and the message is longer than 20 bytes.

/// A kind of message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// RFC 8489.
    Stun,
    /// WireGuard's own message.
    Noise,
    /// A relayed message.
    Relay,
    /// None of these: dropped and counted.
    Unknown,
}

/// Tells the kind of a message from its first bytes.
#[must_use]
pub fn kind(message: &[u8]) -> Kind {
    match message {
        [0..=3, _, hi, lo, 0x21, 0x12, 0xa4, 0x42, ..]
            if usize::from(u16::from_be_bytes([*hi, *lo])) + 20 == message.len() =>
        {
            Kind::Stun
        }
        [1..=4, 0, 0, 0, ..] => Kind::Noise,
        [0x40..=0x4f, _, 0, 0, ..] => Kind::Relay,
        _ => Kind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::relay::Channel;
    use crate::wire::stun::BINDING;
    use crate::wire::stun::Integrity;
    use crate::wire::stun::Message;
    use crate::wire::stun::RELAY_BIND;
    use crate::wire::stun::TransactionId;

    #[test]
    fn each_kind_is_told_by_its_first_bytes() {
        let stun = |method| Message::request(method, TransactionId([7; 12])).emit(Integrity::Sha256(b"key"));
        let noise = |kind: u8, len: usize| [&[kind, 0, 0, 0][..], &vec![7; len - 4]].concat();
        for (message, is) in [
            (stun(BINDING), Kind::Stun),
            (stun(RELAY_BIND), Kind::Stun),
            (Message::request(BINDING, TransactionId([0; 12])).emit(Integrity::None), Kind::Stun),
            (noise(1, 148), Kind::Noise),
            (noise(2, 92), Kind::Noise),
            (noise(3, 64), Kind::Noise),
            (noise(4, 32), Kind::Noise),
            (noise(5, 32), Kind::Unknown),
            (noise(0, 32), Kind::Unknown),
            (Channel::new(0).header().to_vec(), Kind::Relay),
            (Channel::new(0xfff).header().to_vec(), Kind::Relay),
            (vec![], Kind::Unknown),
            (vec![1], Kind::Unknown),
            (b"GET / HTTP/1.1".to_vec(), Kind::Unknown),
        ] {
            assert_eq!(kind(&message), is, "{message:?}");
        }
    }

    #[test]
    fn a_sender_index_that_equals_the_cookie_by_chance_is_still_a_handshake() {
        for (first, len) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
            let mut message = vec![7; len];
            message[..8].copy_from_slice(&[first, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
            assert_eq!(kind(&message), Kind::Noise, "type {first}");
        }
    }

    #[test]
    fn stun_that_is_cut_or_prolonged_is_not_stun() {
        let whole = Message::request(BINDING, TransactionId([7; 12])).emit(Integrity::Sha256(b"key"));
        for n in 0..whole.len() {
            assert_ne!(kind(&whole[..n]), Kind::Stun, "cut at {n}");
        }
        assert_eq!(kind(&[&whole[..], &[0]].concat()), Kind::Unknown);
    }
}
