//! Any bytes as a stream of frames that arrives in pieces: each step consumes or waits, and the frames are the same
//! whatever the pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::wire::frame::Front;
use ntcp_overlay::wire::frame::HEADER_LEN;
use ntcp_overlay::wire::frame::MAX_PAYLOAD;
use ntcp_overlay::wire::frame::front;

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let in_pieces = frames(stream, usize::from(*piece).max(1));
    let at_once = frames(stream, usize::MAX);
    assert_eq!(in_pieces, at_once);
});

/// The payloads, and whether the stream was found broken.
fn frames(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut buffer, mut out) = (Vec::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            match front(&buffer) {
                Ok(Front::Whole(len)) => {
                    assert!(len <= MAX_PAYLOAD);
                    out.push(buffer[HEADER_LEN..HEADER_LEN + len].to_vec());
                    buffer.drain(..HEADER_LEN + len);
                }
                Ok(Front::Missing(n)) => {
                    assert!(n > 0 && buffer.len() + n <= HEADER_LEN + MAX_PAYLOAD);
                    break;
                }
                Err(_) => return (out, true),
            }
        }
    }
    (out, false)
}
