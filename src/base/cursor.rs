//! The one way to read and write bytes of the network: big-endian, bounds-checked, no indexing anywhere else.

/// The input ended before the value did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("truncated")]
pub struct Truncated;

/// Reads forward through a borrowed slice. Never panics; a failed read consumes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Truncated> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array::<1>().map(|[b]| b)
    }

    /// Two bytes, big-endian.
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(u64::from_be_bytes)
    }

    /// A reader over the next `n` bytes: nested lengths cannot run out of their frame.
    pub fn sub(&mut self, n: usize) -> Result<Self, Truncated> {
        self.take(n).map(Self)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Bytes left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// Whether everything was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends to a vector; the exact inverse of [`Reader`].
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Appends `bytes`.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }

    /// Appends two bytes, big-endian.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    /// Appends four bytes, big-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    /// Appends eight bytes, big-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    /// Overwrites two bytes at `at`, which were written before; nothing happens past the end.
    pub fn patch_u16(&mut self, at: usize, value: u16) {
        if let Some(slot) = self.0.get_mut(at..at.saturating_add(2)) {
            slot.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// Bytes written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_read_consumes_nothing() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(r.u32(), Err(Truncated));
        assert_eq!(r.u16(), Ok(0x0102));
        assert_eq!(r.rest(), &[3]);
        assert!(r.is_empty());
    }

    #[test]
    fn a_sub_reader_cannot_leave_its_frame() {
        let mut r = Reader::new(&[1, 2, 3, 4]);
        let mut inner = r.sub(2).unwrap();
        assert_eq!(inner.take(3), Err(Truncated));
        assert_eq!(inner.u16(), Ok(0x0102));
        assert_eq!(r.remaining(), 2);
    }

    #[test]
    fn what_a_writer_wrote_a_reader_reads() {
        let mut w = Writer::new();
        w.u8(1).u16(2).u32(3).u64(4).put(b"xy");
        w.patch_u16(1, 0x0506);
        let bytes = w.finish();
        let mut r = Reader::new(&bytes);
        assert_eq!((r.u8(), r.u16(), r.u32(), r.u64()), (Ok(1), Ok(0x0506), Ok(3), Ok(4)));
        assert_eq!(r.rest(), b"xy");
    }
}
