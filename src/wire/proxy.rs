//! What is said to a proxy before it hands the connection over: HTTP `CONNECT` (RFC 9110 9.3.6) and SOCKS5 (RFC 1928,
//! RFC 1929). We are the client, and the proxy's answers are parsed as a stranger's.
//!
//! ```text
//! HTTP      CONNECT host:port HTTP/1.1, Host, Proxy-Authorization: Basic   ->   HTTP/1.x status reason, headers
//! SOCKS5    | 5, u8 | count, u8 | methods |                                ->   | 5, u8 | method, u8 |
//!           | 1, u8 | length, u8 | user | length, u8 | password |          ->   | 1, u8 | status, u8 |
//!           | 5, u8 | 1 (connect), u8 | 0, u8 | address | port, u16 |      ->   | 5, u8 | reply, u8 | 0, u8 | address | port, u16 |
//! address   | 1, u8 | 4 bytes |   | 3, u8 | length, u8 | name |   | 4, u8 | 16 bytes |
//! ```
//!
//! Names go to the proxy as names: it may know some that we do not, and a machine behind it often resolves none.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::WireError;
use super::enroll::BrokerAddr;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;

/// Longest answer to a `CONNECT` that is read, bytes: proxies send a few headers; 8 KiB is what servers commonly allow.
pub const MAX_ANSWER: usize = 8192;
/// Longest user name and longest password of RFC 1929, bytes.
pub const MAX_CREDENTIAL: usize = 255;
/// What of a proxy's own words is kept for people, characters.
const MAX_REASON: usize = 80;

/// What stands at the front of what a proxy has sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Front<T> {
    /// At least so many bytes are missing.
    Missing(usize),
    /// An answer, and how many bytes it takes.
    Whole(T, usize),
}

/// The answer to a `CONNECT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpAnswer {
    /// From 100 to 599; 2xx means that the connection is handed over.
    pub status: u16,
    /// The proxy's own words, fit to be printed.
    pub reason: String,
    /// Ways to authenticate that it offers, in lower case (`basic`, `ntlm`, ...).
    pub schemes: Vec<String>,
}

/// How a SOCKS5 proxy wants to be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Without a name.
    Open,
    /// With user name and password.
    Credentials,
}

/// What a SOCKS5 proxy made of the request (RFC 1928 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Connected.
    Granted,
    /// Reply 2: its rules forbid it.
    Forbidden,
    /// Replies 3, 4 and 6: no way there, or no answer from there.
    Unreachable,
    /// Reply 5: refused there.
    Refused,
    /// Reply 7 or 8: it cannot do that, or not with that kind of address.
    Unsupported,
    /// Anything else.
    Failed(u8),
}

/// `CONNECT` to `to`.
#[must_use]
pub fn connect(to: &BrokerAddr, credentials: Option<(&str, &str)>) -> Vec<u8> {
    let authorization = credentials.map(|(user, password)| {
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
    });
    let authorization = authorization.unwrap_or_default();
    format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n").into_bytes()
}

/// Reads the answer to a `CONNECT`: status line and headers.
///
/// # Errors
/// [`WireError::Invalid`] for what is no HTTP, [`WireError::TooLong`] above [`MAX_ANSWER`].
pub fn http_answer(bytes: &[u8]) -> Result<Front<HttpAnswer>, WireError> {
    const START: &[u8] = b"HTTP/1.";
    if !START.starts_with(bytes) && !bytes.starts_with(START) {
        return Err(WireError::Invalid);
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(head) = end.and_then(|end| bytes.get(..end)) else {
        return if bytes.len() < MAX_ANSWER { Ok(Front::Missing(1)) } else { Err(WireError::TooLong) };
    };
    if head.len() > MAX_ANSWER {
        return Err(WireError::TooLong);
    }
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let (_, rest) = status_line.split_once(' ').ok_or(WireError::Invalid)?;
    let (code, reason) = rest.trim_start().split_once(' ').unwrap_or_else(|| (rest.trim(), ""));
    let status = code.parse().ok().filter(|status| (100..600).contains(status)).ok_or(WireError::Invalid)?;
    let scheme = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let offered = name.trim().eq_ignore_ascii_case("Proxy-Authenticate");
        value.split_whitespace().next().filter(|_| offered).map(str::to_ascii_lowercase)
    };
    let printable = reason.chars().filter(|c| c.is_ascii_graphic() || *c == ' ');
    let answer = HttpAnswer {
        status,
        reason: printable.take(MAX_REASON).collect(),
        schemes: lines.filter_map(scheme).collect(),
    };
    Ok(Front::Whole(answer, head.len() + 4))
}

/// The first message to a SOCKS5 proxy.
#[must_use]
pub fn greeting(credentials: bool) -> &'static [u8] {
    if credentials { &[5, 2, 0, 2] } else { &[5, 1, 0] }
}

/// How it wants to go on.
///
/// # Errors
/// [`WireError::Unknown`] if it accepts nothing that we offered, [`WireError::Invalid`] for what is no SOCKS5.
pub fn method(bytes: &[u8]) -> Result<Front<Method>, WireError> {
    let mut reader = Reader::new(bytes);
    let Some([version, method]) = pair(&mut reader, 5)? else { return Ok(Front::Missing(2 - bytes.len())) };
    match (version, method) {
        (5, 0) => Ok(Front::Whole(Method::Open, 2)),
        (5, 2) => Ok(Front::Whole(Method::Credentials, 2)),
        (5, _) => Err(WireError::Unknown),
        _ => Err(WireError::Invalid),
    }
}

/// User name and password (RFC 1929); `None` if one of them is empty or longer than [`MAX_CREDENTIAL`].
#[must_use]
pub fn credentials(user: &str, password: &str) -> Option<Vec<u8>> {
    let mut writer = Writer::new();
    writer.u8(1);
    for text in [user, password] {
        let len = u8::try_from(text.len()).ok().filter(|len| *len != 0)?;
        writer.u8(len).put(text.as_bytes());
    }
    Some(writer.finish())
}

/// Whether it takes them.
///
/// # Errors
/// [`WireError::Invalid`] for what is no such answer.
pub fn accepted(bytes: &[u8]) -> Result<Front<bool>, WireError> {
    let mut reader = Reader::new(bytes);
    let Some([_, status]) = pair(&mut reader, 1)? else { return Ok(Front::Missing(2 - bytes.len())) };
    Ok(Front::Whole(status == 0, 2))
}

/// "Connect me to `to`."
#[must_use]
pub fn request(to: &BrokerAddr) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.put(&[5, 1, 0]);
    match to {
        BrokerAddr::Addr(addr) => match addr.ip().to_canonical() {
            IpAddr::V4(v4) => writer.u8(1).put(&v4.octets()),
            IpAddr::V6(v6) => writer.u8(4).put(&v6.octets()),
        }
        .u16(addr.port()),
        BrokerAddr::Host(host, port) => {
            // A host name that can be dialled has at most 253 bytes.
            let name: Vec<u8> = host.bytes().take(MAX_CREDENTIAL).collect();
            writer.u8(3).u8(u8::try_from(name.len()).unwrap_or(u8::MAX)).put(&name).u16(*port)
        }
    };
    writer.finish()
}

/// What it says to that. The address in the answer is the proxy's own and of no use.
///
/// # Errors
/// [`WireError::Invalid`] for what is no SOCKS5.
pub fn verdict(bytes: &[u8]) -> Result<Front<Verdict>, WireError> {
    let mut reader = Reader::new(bytes);
    let Some([_, reply]) = pair(&mut reader, 5)? else { return Ok(Front::Missing(5 - bytes.len())) };
    let (Ok(_), Ok(kind)) = (reader.u8(), reader.u8()) else { return Ok(Front::Missing(5 - bytes.len())) };
    let address = match kind {
        1 => 4,
        4 => 16,
        3 => match reader.u8() {
            Ok(len) => usize::from(len) + 1,
            Err(_) => return Ok(Front::Missing(5 - bytes.len())),
        },
        _ => return Err(WireError::Invalid),
    };
    let len = 4 + address + 2;
    if let Some(missing) = len.checked_sub(bytes.len()).filter(|missing| *missing > 0) {
        return Ok(Front::Missing(missing));
    }
    let verdict = match reply {
        0 => Verdict::Granted,
        2 => Verdict::Forbidden,
        3 | 4 | 6 => Verdict::Unreachable,
        5 => Verdict::Refused,
        7 | 8 => Verdict::Unsupported,
        other => Verdict::Failed(other),
    };
    Ok(Front::Whole(verdict, len))
}

/// The first two bytes, of which the first must be `version`.
fn pair(reader: &mut Reader<'_>, version: u8) -> Result<Option<[u8; 2]>, WireError> {
    let Ok(first) = reader.u8() else { return Ok(None) };
    if first != version {
        return Err(WireError::Invalid);
    }
    Ok(reader.u8().ok().map(|second| [first, second]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> BrokerAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_connect_names_the_host_twice_and_the_user_once() {
        let request = String::from_utf8(connect(&at("vpn.example:443"), Some(("al", "pw")))).unwrap();
        assert_eq!(
            request,
            "CONNECT vpn.example:443 HTTP/1.1\r\nHost: vpn.example:443\r\nProxy-Authorization: Basic YWw6cHc=\r\n\r\n"
        );
        let request = String::from_utf8(connect(&at("[2001:db8::1]:443"), None)).unwrap();
        assert_eq!(request, "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n");
    }

    #[test]
    fn the_answer_to_a_connect_is_read_to_its_empty_line() {
        let bytes = b"HTTP/1.0 407 Proxy \x1b[31mAuth\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate:  Basic realm=\"x\"\r\n\r\nrest";
        for cut in 0..bytes.len() - 4 {
            assert_eq!(http_answer(&bytes[..cut]), Ok(Front::Missing(1)), "{cut}");
        }
        let Ok(Front::Whole(answer, len)) = http_answer(bytes) else { panic!("no answer") };
        assert_eq!((answer.status, &bytes[len..]), (407, &b"rest"[..]));
        assert_eq!(
            (answer.reason.as_str(), answer.schemes),
            ("Proxy [31mAuth", vec!["ntlm".to_owned(), "basic".to_owned()])
        );
        let bare = http_answer(b"HTTP/1.1 200\r\n\r\n");
        assert!(matches!(bare, Ok(Front::Whole(HttpAnswer { status: 200, .. }, 16))), "{bare:?}");
    }

    #[test]
    fn what_is_no_http_is_refused_at_once_and_what_never_ends_in_time() {
        assert_eq!(http_answer(b"SSH-2.0"), Err(WireError::Invalid));
        assert_eq!(http_answer(b"HTTP/1.1 abc no\r\n\r\n"), Err(WireError::Invalid));
        assert_eq!(http_answer(b"HTTP/1.1 999 no\r\n\r\n"), Err(WireError::Invalid));
        let endless = [&b"HTTP/1.1 200 ok\r\n"[..], &[b'a'; MAX_ANSWER]].concat();
        assert_eq!(http_answer(&endless), Err(WireError::TooLong));
    }

    #[test]
    fn socks5_is_what_the_rfc_draws() {
        assert_eq!(greeting(true), [5, 2, 0, 2]);
        assert_eq!(method(&[5, 2]), Ok(Front::Whole(Method::Credentials, 2)));
        assert_eq!(method(&[5, 0xff]), Err(WireError::Unknown));
        assert_eq!(method(b"HT"), Err(WireError::Invalid));
        assert_eq!(credentials("al", "pw").unwrap(), [1, 2, b'a', b'l', 2, b'p', b'w']);
        assert_eq!((credentials("", "pw"), credentials("al", &"x".repeat(256))), (None, None));
        assert_eq!(accepted(&[1, 0]), Ok(Front::Whole(true, 2)));
        assert_eq!(accepted(&[1, 7]), Ok(Front::Whole(false, 2)));
        assert_eq!(request(&at("192.0.2.1:443")), [5, 1, 0, 1, 192, 0, 2, 1, 1, 0xbb]);
        assert_eq!(request(&at("vpn:258")), [5, 1, 0, 3, 3, b'v', b'p', b'n', 1, 2]);
        assert_eq!(request(&at("[::1]:1")).len(), 4 + 16 + 2);
    }

    #[test]
    fn a_verdict_is_whole_only_with_its_address() {
        let granted = [5, 0, 0, 3, 2, b'a', b'b', 0, 80];
        for cut in 0..granted.len() {
            assert!(matches!(verdict(&granted[..cut]), Ok(Front::Missing(n)) if n > 0), "{cut}");
        }
        assert_eq!(verdict(&granted), Ok(Front::Whole(Verdict::Granted, 9)));
        for (reply, said) in [
            (2, Verdict::Forbidden),
            (4, Verdict::Unreachable),
            (5, Verdict::Refused),
            (8, Verdict::Unsupported),
            (9, Verdict::Failed(9)),
        ] {
            let bytes = [5, reply, 0, 1, 0, 0, 0, 0, 0, 0];
            assert_eq!(verdict(&bytes), Ok(Front::Whole(said, 10)));
        }
        assert_eq!(verdict(&[5, 0, 0, 9, 0]), Err(WireError::Invalid));
        assert_eq!(verdict(&[4, 0]), Err(WireError::Invalid));
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_proxy_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (http_answer(&bytes), method(&bytes), accepted(&bytes), verdict(&bytes));
            let with_start = [&b"HTTP/1.1 "[..], &bytes, b"\r\n\r\n"].concat();
            let _ = http_answer(&with_start);
        }
    }
}
