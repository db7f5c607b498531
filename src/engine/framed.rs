//! Messages on a control connection: two bytes of length, big-endian, then the message.

use std::io;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;

/// How long a write may take before the other side counts as gone: its kernel has stopped taking bytes.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

const LENGTH: usize = 2;

/// Reads messages. Holds no more than was received: a length that somebody claims allocates nothing.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: Vec<u8>,
    cap: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `inner`, messages of at most `cap` bytes.
    pub const fn new(inner: R, cap: usize) -> Self {
        Self { inner, buffer: Vec::new(), cap }
    }

    /// The next message; `None` at a clean end. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// `InvalidData` for a message over the cap, `UnexpectedEof` for an end within one, and what the stream says.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                let clean = self.buffer.is_empty();
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    fn whole(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*head));
        if len > self.cap {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message over the cap"));
        }
        let Some(message) = rest.get(..len).map(<[u8]>::to_vec) else { return Ok(None) };
        self.buffer.drain(..LENGTH + len);
        Ok(Some(message))
    }
}

/// A message with its length before it; `None` if it is too long for that.
#[must_use]
pub fn frame(message: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(message.len()).ok()?;
    Some([&len.to_be_bytes(), message].concat())
}

/// Sends one message.
///
/// # Errors
/// `TimedOut` after [`WRITE_TIMEOUT`], `InvalidInput` for a message that is too long, and what the stream says.
pub async fn write_frame<W: AsyncWrite + Unpin>(to: &mut W, message: &[u8]) -> io::Result<()> {
    let Some(bytes) = frame(message) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message too long for its frame"));
    };
    let write = async {
        to.write_all(&bytes).await?;
        to.flush().await
    };
    tokio::time::timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_out_as_they_went_in_wherever_the_stream_is_cut() {
        let bytes = [frame(b"one").unwrap(), frame(b"").unwrap(), frame(b"three").unwrap()].concat();
        for cut in 0..=bytes.len() {
            let (a, b) = bytes.split_at(cut);
            let mut reader = FrameReader::new(a.chain(b), 10);
            for wanted in [&b"one"[..], b"", b"three"] {
                assert_eq!(reader.next().await.unwrap().unwrap(), wanted, "cut at {cut}");
            }
            assert!(reader.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_message_over_the_cap_is_refused_before_it_has_arrived() {
        let mut reader = FrameReader::new(&[0, 11][..], 10);
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_end_within_a_message_is_not_a_clean_end() {
        let mut reader = FrameReader::new(&[0, 3, 1, 2][..], 10);
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
