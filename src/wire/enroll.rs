//! How a machine comes into a network: the invite that a person carries, and the signing request that answers it.
//!
//! An invite is a text: `ntcp1-` and these bytes in base64url without padding (RFC 4648 5):
//!
//! ```text
//! +--------+- - - - - +-----------------+-------------+-------+- - - - - +---------+
//! | length | network  | CA fingerprint  |   secret    | count | brokers  | CRC-32  |
//! |   1    | (length) |       32        |     32      |   1   |          |    4    |
//! +--------+- - - - - +-----------------+-------------+-------+- - - - - +---------+
//!
//! broker:
//! +---+---------+------+   +---+---------+------+   +---+--------+- - - - - +------+
//! | 4 | address | port |   | 6 | address | port |   | 1 | length |   host   | port |
//! | 1 |    4    |  2   |   | 1 |   16    |  2   |   | 1 |   1    | (length) |  2   |
//! +---+---------+------+   +---+---------+------+   +---+--------+- - - - - +------+
//! ```
//!
//! The CRC covers everything before it. It keeps nobody out; it tells a token that lost a character on its way through a
//! chat window from one that is expired.
//!
//! A signing request:
//!
//! ```text
//! 0            8        9
//! +------------+--------+- - - - - +-------------+------------+---------------------+
//! | "NTCPCSR1" | length |   name   | Ed25519 key | X25519 key | Ed25519 signature   |
//! |     8      |   1    | (length) |     32      |     32     |   64, of all before |
//! +------------+--------+- - - - - +-------------+------------+---------------------+
//! ```

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::WireError;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgPublic;
use crate::identity::keys::verify_signature;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;

/// How an invite's text begins: the kind of thing and the version of its layout.
pub const INVITE_PREFIX: &str = "ntcp1-";
/// Brokers in one invite: it must still be possible to copy it by hand.
pub const MAX_BROKERS: usize = 16;
/// Longest text that is looked at, characters: above what 16 brokers with the longest host names need.
const MAX_TEXT: usize = 8192;
/// Longest host name (RFC 1035 2.3.4, in text form).
const MAX_HOST: usize = 253;

const ADDR_V4: u8 = 4;
const ADDR_V6: u8 = 6;
const HOST: u8 = 1;

const REQUEST_MAGIC: &[u8; 8] = b"NTCPCSR1";

/// What an invite says. As text: `ntcp1-` and base64url without padding. Its `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// The network it leads into.
    pub network: NetworkName,
    /// SHA-256 of the CA certificate: whoever answers must show that CA.
    pub ca: [u8; 32],
    /// One-use secret.
    pub secret: [u8; 32],
    /// Where brokers listen, TCP. 1 to 16.
    pub brokers: Vec<BrokerAddr>,
}

/// An address of a broker: literal or to be looked up. As text `HOST:PORT`, IPv6 in brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BrokerAddr {
    /// A literal address.
    Addr(SocketAddr),
    /// A host name and port.
    Host(String, u16),
}

/// "Sign this": made and self-signed by the machine that holds the keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SigningRequest {
    /// The wanted name.
    pub name: MemberName,
    /// Ed25519 public key.
    pub key: [u8; 32],
    /// X25519 public key.
    pub wg: WgPublic,
    /// Ed25519 over everything before it, by `key`: the requester holds it.
    pub signature: [u8; 64],
}

impl Invite {
    /// The token as text. Brokers beyond the sixteenth are left out, and those that nobody could dial.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut w = Writer::new();
        put_name(&mut w, self.network.as_str());
        w.put(&self.ca).put(&self.secret);
        let brokers: Vec<_> =
            self.brokers.iter().filter(|broker| broker.is_sound()).take(MAX_BROKERS).collect();
        w.u8(u8::try_from(brokers.len()).unwrap_or(u8::MAX));
        brokers.iter().for_each(|broker| broker.put(&mut w));
        let crc = crc32fast::hash(w.as_slice());
        w.u32(crc);
        format!("{INVITE_PREFIX}{}", URL_SAFE_NO_PAD.encode(w.finish()))
    }

    /// Reads a token, with white space around it forgiven.
    ///
    /// # Errors
    /// [`WireError::Unknown`] for a text that is no token or of a later version; [`WireError::Integrity`] for one that
    /// was damaged on the way; anything else if the program that made it was wrong.
    pub fn from_text(text: &str) -> Result<Self, WireError> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(WireError::TooLong);
        }
        let packed = text.strip_prefix(INVITE_PREFIX).ok_or(WireError::Unknown)?;
        let bytes = URL_SAFE_NO_PAD.decode(packed).map_err(|_| WireError::Integrity)?;
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(WireError::Truncated)?;
        if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return Err(WireError::Integrity);
        }
        let mut r = Reader::new(body);
        let network = take_name(&mut r)?;
        let (ca, secret) = (r.array()?, r.array()?);
        let count = usize::from(r.u8()?);
        if count == 0 {
            return Err(WireError::Missing);
        }
        if count > MAX_BROKERS {
            return Err(WireError::TooLong);
        }
        let brokers = (0..count).map(|_| BrokerAddr::take(&mut r)).collect::<Result<_, _>>()?;
        if r.is_empty() { Ok(Self { network, ca, secret, brokers }) } else { Err(WireError::TooLong) }
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invite({} via {:?}, secret hidden)", self.network, self.brokers)
    }
}

impl BrokerAddr {
    fn put(&self, w: &mut Writer) {
        match self {
            Self::Addr(SocketAddr::V4(addr)) => w.u8(ADDR_V4).put(&addr.ip().octets()).u16(addr.port()),
            Self::Addr(SocketAddr::V6(addr)) => w.u8(ADDR_V6).put(&addr.ip().octets()).u16(addr.port()),
            Self::Host(host, port) => {
                put_name(w.u8(HOST), host);
                w.u16(*port)
            }
        };
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let kind = r.u8()?;
        let broker = match kind {
            ADDR_V4 => Self::Addr(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(r.array::<4>()?)), r.u16()?)),
            ADDR_V6 => Self::Addr(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(r.array::<16>()?)), r.u16()?)),
            HOST => {
                let length = r.u8()?.into();
                let host = std::str::from_utf8(r.take(length)?).map_err(|_| WireError::Invalid)?;
                Self::Host(checked_host(host)?.to_owned(), r.u16()?)
            }
            _ => return Err(WireError::Unknown),
        };
        if broker.port() == 0 { Err(WireError::Invalid) } else { Ok(broker) }
    }

    fn is_sound(&self) -> bool {
        self.port() != 0 && !matches!(self, Self::Host(host, _) if checked_host(host).is_err())
    }

    /// The TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl fmt::Display for BrokerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for BrokerAddr {
    type Err = WireError;
    /// `192.0.2.1:6060`, `[2001:db8::1]:6060` or `vpn.example.org:6060`.
    fn from_str(text: &str) -> Result<Self, WireError> {
        let broker = match text.parse() {
            Ok(addr) => Self::Addr(addr),
            Err(_) => {
                let (host, port) = text.rsplit_once(':').ok_or(WireError::Missing)?;
                Self::Host(checked_host(host)?.to_owned(), port.parse().map_err(|_| WireError::Invalid)?)
            }
        };
        if broker.port() == 0 { Err(WireError::Invalid) } else { Ok(broker) }
    }
}

impl SigningRequest {
    /// A request for `name`, signed by the key that it asks a certificate for.
    #[must_use]
    pub fn new(name: &MemberName, key: &SigningKey, wg: WgPublic) -> Self {
        let signature = key.sign(&Self::signed_part(name, &key.public(), wg));
        Self { name: name.clone(), key: key.public(), wg, signature }
    }

    /// The bytes that the signature covers.
    #[must_use]
    pub fn signed_part(name: &MemberName, key: &[u8; 32], wg: WgPublic) -> Vec<u8> {
        let mut w = Writer::new();
        w.put(REQUEST_MAGIC);
        put_name(&mut w, name.as_str());
        w.put(key).put(&wg.0);
        w.finish()
    }

    /// The request's bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = Self::signed_part(&self.name, &self.key, self.wg);
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// Whatever is wrong with it; [`WireError::Integrity`] for the signature.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        if r.array()? != *REQUEST_MAGIC {
            return Err(WireError::Unknown);
        }
        let name = take_name(&mut r)?;
        let (key, wg, signature) = (r.array()?, WgPublic(r.array()?), r.array()?);
        if !r.is_empty() {
            return Err(WireError::TooLong);
        }
        let request = Self { name, key, wg, signature };
        let signed = Self::signed_part(&request.name, &request.key, request.wg);
        if verify_signature(&request.key, &signed, &signature) {
            Ok(request)
        } else {
            Err(WireError::Integrity)
        }
    }
}

fn put_name(w: &mut Writer, name: &str) {
    w.u8(u8::try_from(name.len()).expect("names have at most 63 characters, checked hosts 253"))
        .put(name.as_bytes());
}

fn take_name<N: FromStr>(r: &mut Reader<'_>) -> Result<N, WireError> {
    let length = r.u8()?.into();
    let text = std::str::from_utf8(r.take(length)?).map_err(|_| WireError::Invalid)?;
    text.parse().map_err(|_| WireError::Invalid)
}

/// A host name goes to a resolver and onto a terminal: letters, digits, '-', '_' and '.' only.
fn checked_host(host: &str) -> Result<&str, WireError> {
    let fit = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if host.is_empty() {
        return Err(WireError::Missing);
    }
    if host.len() > MAX_HOST {
        return Err(WireError::TooLong);
    }
    if host.bytes().all(fit) { Ok(host) } else { Err(WireError::Invalid) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn invite() -> Invite {
        Invite {
            network: "home".parse().unwrap(),
            ca: [1; 32],
            secret: [2; 32],
            brokers: ["192.0.2.1:6060", "[2001:db8::1]:443", "vpn.example.org:6060"]
                .map(|b| b.parse().unwrap())
                .into(),
        }
    }

    fn bytes_of(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text.strip_prefix(INVITE_PREFIX).unwrap()).unwrap()
    }

    /// A token of these bytes, with the checksum that belongs to them.
    fn text_of(body: &[u8]) -> String {
        let bytes = [body, &crc32fast::hash(body).to_be_bytes()].concat();
        format!("{INVITE_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    #[test]
    fn an_invite_survives_being_carried_by_a_person() {
        let text = invite().to_text();
        assert!(
            text.starts_with("ntcp1-")
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        );
        assert_eq!(Invite::from_text(&format!("  {text}\r\n")), Ok(invite()));
        assert!(!format!("{:?}", invite()).contains("2, 2"), "the secret is not for logs");
    }

    #[test]
    fn the_bytes_of_an_invite_are_those_of_the_drawing() {
        let bytes = bytes_of(&invite().to_text());
        assert_eq!(bytes[..5], *b"\x04home");
        assert_eq!((bytes[5..37].to_vec(), bytes[37..69].to_vec()), (vec![1; 32], vec![2; 32]));
        assert_eq!(bytes[69..77], [3, 4, 192, 0, 2, 1, 0x17, 0xac]);
        assert_eq!(bytes[77..82], [6, 0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(bytes[96..98], [1, 15]);
        assert_eq!(bytes[98..115], *b"vpn.example.org\x17\xac");
        assert_eq!(bytes.len(), 119);
    }

    #[test]
    fn a_token_that_lost_or_changed_a_character_says_that_it_is_damaged() {
        let text = invite().to_text();
        for at in 0..text.len() {
            assert!(Invite::from_text(&text[..at]).is_err(), "cut at {at}");
            let mut bad = text.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let answer = Invite::from_text(std::str::from_utf8(&bad).unwrap());
            let expected = if at < INVITE_PREFIX.len() { WireError::Unknown } else { WireError::Integrity };
            assert_eq!(answer, Err(expected), "changed at {at}");
        }
        assert_eq!(Invite::from_text(&"A".repeat(MAX_TEXT + 1)), Err(WireError::TooLong));
    }

    #[test]
    fn an_invite_with_an_honest_checksum_and_wrong_content_is_refused() {
        let good = bytes_of(&invite().to_text());
        let body = &good[..good.len() - 4];
        for cut in 0..body.len() {
            assert!(Invite::from_text(&text_of(&body[..cut])).is_err(), "cut at {cut}");
        }
        let with = |at: usize, value: u8| {
            let mut body = body.to_vec();
            body[at] = value;
            text_of(&body)
        };
        for (what, text, answer) in [
            ("something behind the end", text_of(&[body, &[0]].concat()), WireError::TooLong),
            ("an upper-case network", with(1, b'H'), WireError::Invalid),
            ("no broker", text_of(&[&body[..69], &[0]].concat()), WireError::Missing),
            ("too many brokers", with(69, 17), WireError::TooLong),
            ("an unknown kind of address", with(70, 9), WireError::Unknown),
            ("a host name that could be a command", with(98, b'$'), WireError::Invalid),
            ("port 0", text_of(&[&body[..70], &[4, 192, 0, 2, 1, 0, 0]].concat()), WireError::Invalid),
        ] {
            assert_eq!(Invite::from_text(&text), Err(answer), "{what}");
        }
    }

    #[test]
    fn brokers_that_nobody_could_dial_stay_out_of_the_token() {
        let mut odd = invite();
        odd.brokers.extend([BrokerAddr::Host("x".repeat(300), 1), BrokerAddr::Host("x".into(), 0)]);
        assert_eq!(Invite::from_text(&odd.to_text()), Ok(invite()));
    }

    #[test]
    fn a_brokers_address_reads_as_people_write_it() {
        for (text, fine) in [
            ("192.0.2.1:6060", true),
            ("[2001:db8::1]:6060", true),
            ("vpn.example.org:443", true),
            ("vpn.example.org", false),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            (":6060", false),
            ("vpn:0", false),
            ("vpn:65536", false),
            ("a b:1", false),
        ] {
            let read = text.parse::<BrokerAddr>();
            assert_eq!(
                read.as_ref().map(ToString::to_string).ok().as_deref(),
                fine.then_some(text),
                "{text}"
            );
        }
    }

    #[test]
    fn a_signing_request_proves_that_its_maker_holds_the_key() {
        let key = SigningKey::from_seed(&[7; 32]);
        let request = SigningRequest::new(&"nas".parse().unwrap(), &key, WgPublic([8; 32]));
        let bytes = request.emit();
        assert_eq!(bytes[..12], *b"NTCPCSR1\x03nas");
        assert_eq!(bytes.len(), 12 + 32 + 32 + 64);
        assert_eq!(SigningRequest::parse(&bytes), Ok(request.clone()));
        let stolen = SigningRequest { key: SigningKey::from_seed(&[9; 32]).public(), ..request };
        assert_eq!(SigningRequest::parse(&stolen.emit()), Err(WireError::Integrity));
        for at in 0..bytes.len() {
            assert_eq!(SigningRequest::parse(&bytes[..at]), Err(WireError::Truncated), "cut at {at}");
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(SigningRequest::parse(&bad).is_err(), "flipped at {at}");
        }
        assert_eq!(SigningRequest::parse(&[&bytes[..], &[0]].concat()), Err(WireError::TooLong));
    }

    fn any_broker() -> impl Strategy<Value = BrokerAddr> {
        prop_oneof![
            (any::<IpAddr>(), 1_u16..).prop_map(|(ip, port)| BrokerAddr::Addr(SocketAddr::new(ip, port))),
            ("[a-z0-9._-]{1,253}", 1_u16..).prop_map(|(host, port)| BrokerAddr::Host(host, port)),
        ]
    }

    proptest! {
        #[test]
        fn every_invite_reads_back(
            network in "[a-z0-9]{1,63}", ca: [u8; 32], secret: [u8; 32],
            brokers in prop::collection::vec(any_broker(), 1..=MAX_BROKERS),
        ) {
            let invite = Invite { network: network.parse().unwrap(), ca, secret, brokers };
            prop_assert_eq!(Invite::from_text(&invite.to_text()), Ok(invite));
        }

        #[test]
        fn garbage_behind_an_honest_checksum_never_panics(body: Vec<u8>, text: String) {
            let _ = Invite::from_text(&text_of(&body));
            let _ = Invite::from_text(&text);
            let _ = Invite::from_text(&format!("{INVITE_PREFIX}{text}"));
        }

        #[test]
        fn garbage_is_no_signing_request(mut bytes: Vec<u8>, with_magic: bool) {
            if with_magic {
                bytes.splice(0..0, *REQUEST_MAGIC);
            }
            prop_assert!(SigningRequest::parse(&bytes).is_err());
        }
    }
}
