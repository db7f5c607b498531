//! What kind of message is this? The one table of first bytes; the same on UDP and inside a TCP frame.
//!
//! | first bytes | kind | source |
//! |---|---|---|
//! | 0x00..=0x03, length and cookie of STUN | STUN | RFC 8489 5 |
//! | 0x01..=0x04, 0, 0, 0 | WireGuard | WireGuard 5.4 |
//! | 0x40..=0x4f | relayed | `wire::relay` |
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
        [0x40..=0x4f, ..] => Kind::Relay,
        _ => Kind::Unknown,
    }
}
