//! Messages inside a TCP stream of the data plane: a length before each.
//!
//! ```text
//! +---------------+-----------------------------------------------+
//! | kind, 0       | length of the payload, 24 bits                |
//! +---------------+-----------------------------------------------+
//! | payload: what would be a datagram on UDP                      |
//! ```
//!
//! 24 bits, because a sealed 64 KiB super-packet does not fit 16.

use super::WireError;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 4;
/// Largest payload, bytes: a 64 KiB packet (65,535), WireGuard's 32, a relay header's 4, rounded up.
pub const MAX_PAYLOAD: usize = 65_600;

const _: () =
    assert!(HEADER_LEN == crate::base::transmit::STREAM_HEADROOM, "the outbox leaves this much room");

/// The header of a payload of `len` bytes; `None` above [`MAX_PAYLOAD`].
#[must_use]
pub fn header(len: usize) -> Option<[u8; HEADER_LEN]> {
    if len > MAX_PAYLOAD {
        return None;
    }
    let [_, a, b, c] = u32::try_from(len).ok()?.to_be_bytes();
    Some([0, a, b, c])
}

/// What stands at the front of a receive buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Front {
    /// A whole message of this many bytes behind the header.
    Whole(usize),
    /// This many bytes are missing at least.
    Missing(usize),
}

/// Looks at the front of a receive buffer.
///
/// # Errors
/// [`WireError`] for a kind or a length that cannot be: the stream is beyond repair.
pub fn front(buffer: &[u8]) -> Result<Front, WireError> {
    let mut reader = crate::base::cursor::Reader::new(buffer);
    let Ok([kind, a, b, c]) = reader.array::<4>() else {
        return Ok(Front::Missing(HEADER_LEN - buffer.len()));
    };
    let len = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
    if kind != 0 {
        return Err(WireError::Unknown);
    }
    if len > MAX_PAYLOAD {
        return Err(WireError::TooLong);
    }
    match len.checked_sub(reader.remaining()) {
        None | Some(0) => Ok(Front::Whole(len)),
        Some(missing) => Ok(Front::Missing(missing)),
    }
}
