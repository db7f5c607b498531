//! Textual encoding of DER (RFC 7468), as `openssl` writes and reads it; what passes through here may be a secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Characters a line of base64 (RFC 7468 2).
const LINE: usize = 64;

/// `-----BEGIN label-----`, the bytes in base64, `-----END label-----`.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() * 66 / LINE + 2 * label.len() + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The bytes of the first block with that label; text around it is skipped. `None` if there is none or its base64 is
/// broken.
#[must_use]
pub fn decode(label: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let mut packed = Zeroizing::new(String::with_capacity(body.len()));
    packed.extend(body.split_ascii_whitespace());
    STANDARD.decode(packed.as_bytes()).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_have_64_characters_and_the_label_must_match() {
        let text = encode("CERTIFICATE", &[7; 50]);
        let lines: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(lines, [27, 64, 4, 25]);
        assert_eq!(decode("PRIVATE KEY", &text), None);
        assert_eq!(
            decode("CERTIFICATE", &format!("a comment\r\n{}", text.replace('\n', "\r\n"))).unwrap()[..],
            [7; 50]
        );
        assert_eq!(decode("CERTIFICATE", &text.replace("BwcH", "Bw!H")), None);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(bytes: Vec<u8>) {
            prop_assert_eq!(&decode("X", &encode("X", &bytes)).unwrap()[..], &bytes[..]);
        }

        #[test]
        fn any_text_is_refused_or_read_without_a_panic(text: String) {
            let _ = decode("X", &text);
            let _ = decode("X", &format!("-----BEGIN X-----{text}-----END X-----"));
        }
    }
}
