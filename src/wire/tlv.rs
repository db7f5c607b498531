//! Self-describing fields: what broker messages are made of.
//!
//! ```text
//! +---------------+-------------------------------+---------------
//! | tag, u8       | length of the value, u16      | value ...
//! +---------------+-------------------------------+---------------
//! ```
//!
//! A reader skips tags that it does not know, so an older program understands what it can of a newer one's message. A
//! list is a tag that repeats; a tag that is no list must not repeat. A field whose value is its default (empty, false,
//! zero) is not written, so that every value has exactly one spelling.

use super::WireError;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;

/// Bytes before a value.
pub(super) const FIELD_HEADER: usize = 3;
/// Longest text, bytes of UTF-8: a line for people.
pub const MAX_TEXT: usize = 255;

/// The fields of one message or record, all known to end where they say.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Checks the lengths of all fields once.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            next(&mut reader)?;
        }
        Ok(Self(bytes))
    }

    fn values(self, tag: u8) -> impl Iterator<Item = &'a [u8]> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || next(&mut reader).ok())
            .filter(move |(found, _)| *found == tag)
            .map(|(_, value)| value)
    }

    /// The value of a field that need not be there.
    pub(super) fn optional(self, tag: u8) -> Result<Option<&'a [u8]>, WireError> {
        let mut values = self.values(tag);
        let first = values.next();
        if values.next().is_some() { Err(WireError::Invalid) } else { Ok(first) }
    }

    /// The value of a field that must be there.
    pub(super) fn required(self, tag: u8) -> Result<&'a [u8], WireError> {
        self.optional(tag)?.ok_or(WireError::Missing)
    }

    /// The values of a list of at most `cap` elements.
    pub(super) fn list(self, tag: u8, cap: usize) -> Result<impl Iterator<Item = &'a [u8]>, WireError> {
        if self.values(tag).nth(cap).is_some() {
            return Err(WireError::TooLong);
        }
        Ok(self.values(tag))
    }

    /// A required value of exactly `N` bytes.
    pub(super) fn array<const N: usize>(self, tag: u8) -> Result<[u8; N], WireError> {
        exactly(self.required(tag)?)
    }

    /// A required byte.
    pub(super) fn byte(self, tag: u8) -> Result<u8, WireError> {
        self.array::<1>(tag).map(|[byte]| byte)
    }

    /// A required value of at most `max` bytes.
    pub(super) fn bytes(self, tag: u8, max: usize) -> Result<Vec<u8>, WireError> {
        bounded(self.required(tag)?, max)
    }

    /// A required value of 1 to `max` bytes.
    pub(super) fn nonempty(self, tag: u8, max: usize) -> Result<Vec<u8>, WireError> {
        let value = self.bytes(tag, max)?;
        if value.is_empty() { Err(WireError::Missing) } else { Ok(value) }
    }

    /// A value of at most `max` bytes; empty if it is not there.
    pub(super) fn bytes_or_empty(self, tag: u8, max: usize) -> Result<Vec<u8>, WireError> {
        bounded(self.optional(tag)?.unwrap_or_default(), max)
    }

    /// A text, made [`printable`] (and cut again if that makes it longer); empty if it is not there.
    pub(super) fn text(self, tag: u8) -> Result<String, WireError> {
        let value = self.optional(tag)?.unwrap_or_default();
        if value.len() > MAX_TEXT {
            return Err(WireError::TooLong);
        }
        let text = std::str::from_utf8(value).map(printable).map_err(|_| WireError::Invalid)?;
        Ok(cut(&text).to_owned())
    }

    /// Yes or no; no if it is not there.
    pub(super) fn flag(self, tag: u8) -> Result<bool, WireError> {
        match self.optional(tag)? {
            None | Some([0]) => Ok(false),
            Some([1]) => Ok(true),
            Some(_) => Err(WireError::Invalid),
        }
    }
}

fn next<'a>(reader: &mut Reader<'a>) -> Result<(u8, &'a [u8]), WireError> {
    let tag = reader.u8()?;
    let len = usize::from(reader.u16()?);
    Ok((tag, reader.take(len)?))
}

fn exactly<const N: usize>(value: &[u8]) -> Result<[u8; N], WireError> {
    value.try_into().map_err(|_| WireError::Invalid)
}

fn bounded(value: &[u8], max: usize) -> Result<Vec<u8>, WireError> {
    if value.len() > max { Err(WireError::TooLong) } else { Ok(value.to_vec()) }
}

/// The first [`MAX_TEXT`] bytes, or a little less, so that the last character is whole.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT)).rfind(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// Writes fields; the inverse of [`Fields`].
pub(super) struct Emitter(Writer);

impl Emitter {
    /// A message of this kind.
    pub(super) fn message(kind: u8) -> Self {
        let mut writer = Writer::new();
        writer.u8(kind);
        Self(writer)
    }

    /// A record inside a field.
    pub(super) fn record() -> Self {
        Self(Writer::new())
    }

    /// One field. A value that does not fit a field is left out: its reader will miss it.
    pub(super) fn field(&mut self, tag: u8, value: &[u8]) -> &mut Self {
        if let Ok(len) = u16::try_from(value.len()) {
            self.0.u8(tag).u16(len).put(value);
        }
        self
    }

    /// One field, unless it is empty.
    pub(super) fn unless_empty(&mut self, tag: u8, value: &[u8]) -> &mut Self {
        if value.is_empty() { self } else { self.field(tag, value) }
    }

    /// A text, cut at [`MAX_TEXT`], unless it is empty.
    pub(super) fn text(&mut self, tag: u8, text: &str) -> &mut Self {
        self.unless_empty(tag, cut(text).as_bytes())
    }

    /// Yes, or nothing.
    pub(super) fn flag(&mut self, tag: u8, yes: bool) -> &mut Self {
        if yes { self.field(tag, &[1]) } else { self }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes.
    pub(super) fn finish(self) -> Vec<u8> {
        self.0.finish()
    }
}

/// A text from the network, fit for a terminal and a log line: whatever is not printable (control characters, changes of
/// writing direction, ...) is shown as an escape. Printable text comes back unchanged.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = matches!(c, '"' | '\'' | '\\').then_some(c);
            plain.into_iter().chain(plain.is_none().then(|| c.escape_debug()).into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_tags_are_skipped_and_known_ones_must_not_repeat() {
        let mut e = Emitter::record();
        e.field(200, b"news from the future").field(1, b"a").field(2, b"x").field(2, b"y");
        let bytes = e.finish();
        let fields = Fields::new(&bytes).unwrap();
        assert_eq!(fields.required(1), Ok(&b"a"[..]));
        assert_eq!(fields.required(2), Err(WireError::Invalid));
        assert_eq!(fields.required(3), Err(WireError::Missing));
        assert_eq!(fields.list(2, 2).unwrap().collect::<Vec<_>>(), [b"x", b"y"]);
        assert_eq!(fields.list(2, 1).map(|_| ()), Err(WireError::TooLong));
    }

    #[test]
    fn a_field_cannot_reach_beyond_its_message() {
        assert_eq!(Fields::new(&[1, 0, 2, 9]).map(|_| ()), Err(WireError::Truncated));
        assert_eq!(Fields::new(&[1, 0]).map(|_| ()), Err(WireError::Truncated));
    }

    #[test]
    fn text_is_cut_between_characters_and_escaped() {
        let mut e = Emitter::record();
        e.text(1, &"ä".repeat(200)).text(2, "a\x1b[31m\u{202e}\"\\ü");
        let bytes = e.finish();
        let fields = Fields::new(&bytes).unwrap();
        assert_eq!(fields.text(1), Ok("ä".repeat(127)));
        let shown = fields.text(2).unwrap();
        assert_eq!(shown, "a\\u{1b}[31m\\u{202e}\"\\ü");
        assert_eq!(printable(&shown), shown, "what is printable stays");
        assert_eq!(Fields::new(&[1, 0, 1, 0xff]).unwrap().text(1), Err(WireError::Invalid));
    }
}
