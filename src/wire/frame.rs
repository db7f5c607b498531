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
use crate::base::cursor::Reader;
use crate::base::transmit::STREAM_HEADROOM;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 4;
/// Largest payload, bytes: a 64 KiB packet (65,535), WireGuard's 32, a relay header's 4, rounded up.
pub const MAX_PAYLOAD: usize = 65_600;

const _: () = assert!(HEADER_LEN == STREAM_HEADROOM, "the outbox leaves this much room");

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
    let mut reader = Reader::new(buffer);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_says_the_length() {
        assert_eq!(header(0), Some([0, 0, 0, 0]));
        assert_eq!(header(0x1_0001), Some([0, 1, 0, 1]));
        assert_eq!(header(MAX_PAYLOAD), Some([0, 1, 0, 0x40]));
        assert_eq!(header(MAX_PAYLOAD + 1), None);
    }

    #[test]
    fn the_front_is_whole_missing_or_impossible() {
        for (buffer, result) in [
            (&[][..], Ok(Front::Missing(4))),
            (&[0, 0, 0], Ok(Front::Missing(1))),
            (&[0, 0, 0, 0], Ok(Front::Whole(0))),
            (&[0, 0, 0, 2], Ok(Front::Missing(2))),
            (&[0, 0, 0, 2, 9], Ok(Front::Missing(1))),
            (&[0, 0, 0, 2, 9, 9], Ok(Front::Whole(2))),
            (&[0, 0, 0, 2, 9, 9, 0, 0], Ok(Front::Whole(2))),
            (&[0, 1, 0, 0x41], Err(WireError::TooLong)),
            (&[0, 0xff, 0xff, 0xff], Err(WireError::TooLong)),
            (&[1, 0, 0, 0], Err(WireError::Unknown)),
            (b"GET / HTTP/1.1", Err(WireError::Unknown)),
        ] {
            assert_eq!(front(buffer), result, "{buffer:?}");
        }
    }

    proptest! {
        #[test]
        fn a_stream_of_messages_comes_out_as_it_went_in(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..10),
            piece in 1usize..50,
        ) {
            let mut stream = Vec::new();
            for message in &messages {
                stream.extend(header(message.len()).unwrap());
                stream.extend(message);
            }
            let (mut buffer, mut out) = (Vec::new(), Vec::new());
            for bytes in stream.chunks(piece) {
                buffer.extend_from_slice(bytes);
                while let Front::Whole(len) = front(&buffer).unwrap() {
                    out.push(buffer[HEADER_LEN..HEADER_LEN + len].to_vec());
                    buffer.drain(..HEADER_LEN + len);
                }
            }
            prop_assert_eq!(out, messages);
            prop_assert!(buffer.is_empty());
        }
    }
}
