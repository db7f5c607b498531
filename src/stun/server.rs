//! The stateless Binding server: tells anyone who asks where the question came from, and nothing else.
//!
//! Anyone may ask, with any source address that he can forge, so the server must not be worth abusing:
//!
//! * An answer is one message per request. With an IPv4 address it is 32 bytes to a request of at least 20, with IPv6 44
//!   bytes. With the headers below that is 60 to 48 and 92 to 68 bytes: an amplification of at most 1.36, where
//!   reflection is worth an attacker's while from about 10. Every other answer is no longer than its request.
//! * It never answers an answer, so two servers cannot be set upon each other, and it never sends to a port where some
//!   other protocol answers everything (echo, DNS, NTP, ...), nor to a source that is no single host.
//! * [`Limiter`] bounds what one source gets; the caller asks it first.
//!
//! Requests with USERNAME or an integrity hash are somebody else's: a broker's registrations, a peer's probes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::addr::canonical;
use crate::base::schedule::Bucket;
use crate::wire::stun::Attribute;
use crate::wire::stun::BINDING;
use crate::wire::stun::Class;
use crate::wire::stun::Message;
use crate::wire::stun::Received;

/// Ports that answer whatever comes: echo, discard, daytime, quote, chargen, DNS, NTP, SSDP, mDNS, memcached. 0 is none.
const LOOPING_PORTS: [u16; 11] = [0, 7, 9, 13, 17, 19, 53, 123, 1900, 5353, 11_211];
/// CHANGE-REQUEST, RESPONSE-PORT and PADDING (RFC 5780): understood, and not done for strangers.
const CHANGE_REQUEST: u16 = 0x0003;
const RESPONSE_PORT: u16 = 0x0027;
const PADDING: u16 = 0x0026;
/// RFC 8489 14.8.
const UNKNOWN_ATTRIBUTE: u16 = 420;

/// The answer to a request that came from `from` to `local`, as bytes for `from`; `None` for whatever deserves none.
///
/// RFC 8489 clients get XOR-MAPPED-ADDRESS, RFC 3489 clients MAPPED-ADDRESS behind their own transaction id. A request
/// that needs understanding which this server does not have gets error 420, if that is no longer than the request.
#[must_use]
pub fn respond(received: &Received<'_>, from: SocketAddr, local: SocketAddr) -> Option<Vec<u8>> {
    let (from, request) = (canonical(from), &received.message);
    let is_ours = request.class == Class::Request
        && request.method == BINDING
        && request.username().is_none()
        && !received.has_integrity();
    if !is_ours || !is_answerable(from) || from == canonical(local) {
        return None;
    }
    let refused = refused_attributes(received);
    if !refused.is_empty() {
        let refusal = request.refusal(UNKNOWN_ATTRIBUTE, "").with(Attribute::UnknownAttributes(refused));
        let bytes = emit(&refusal, received);
        return (bytes.len() <= received.wire_len()).then_some(bytes);
    }
    let mapped =
        if received.has_cookie { Attribute::XorMappedAddress(from) } else { Attribute::MappedAddress(from) };
    Some(emit(&request.success().with(mapped), received))
}

/// Whether anything may be sent to a source that proved nothing: one host, and a port that will not answer the answer.
#[must_use]
pub fn is_answerable(source: SocketAddr) -> bool {
    let is_host = match source.ip().to_canonical() {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first != 0 && first < 224 // neither "this network", multicast, reserved nor broadcast
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    };
    is_host && !LOOPING_PORTS.contains(&source.port())
}

fn refused_attributes(received: &Received<'_>) -> Vec<u16> {
    let known = received.message.attributes.iter().filter_map(|attribute| match attribute {
        Attribute::ChangeRequest { ip, port } if *ip || *port => Some(CHANGE_REQUEST),
        Attribute::ResponsePort(_) => Some(RESPONSE_PORT),
        Attribute::Padding(_) => Some(PADDING),
        _ => None,
    });
    received.unknown_required.iter().copied().chain(known).collect()
}

fn emit(answer: &Message, received: &Received<'_>) -> Vec<u8> {
    answer.emit_classic(received.cookie)
}

/// How often a source may ask at once: a NAT in front of a large office is one source.
const BURST: u32 = 64;
/// How often a source may ask in the long run, per second.
const PER_SECOND: f64 = 32.0;
/// How many sources are told apart; about 64 bytes each.
const SOURCES: usize = 8192;
/// What all further sources share, at once and per second: new ones still get through while the table is full.
const STRANGERS: u32 = 1024;
/// How often the table is swept when it is full.
const SWEEP: Duration = Duration::from_secs(1);

/// What each source may ask. Its memory is bounded: a source is an IPv4 address or an IPv6 /64, and when there are more
/// than 8192 at a time, the rest share one allowance.
#[derive(Debug)]
pub struct Limiter {
    sources: BTreeMap<IpAddr, Bucket>,
    strangers: Bucket,
    swept: Instant,
}

impl Limiter {
    /// Nobody asked yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            sources: BTreeMap::new(),
            strangers: Bucket::new(STRANGERS, f64::from(STRANGERS), now),
            swept: now,
        }
    }

    /// Whether one more request of `source` may be answered.
    pub fn allow(&mut self, source: SocketAddr, now: Instant) -> bool {
        let source = prefix(source.ip());
        if let Some(bucket) = self.sources.get_mut(&source) {
            return bucket.take(now);
        }
        if self.sources.len() >= SOURCES && now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.sources.retain(|_, bucket| !bucket.is_full(now));
        }
        if self.sources.len() >= SOURCES {
            return self.strangers.take(now);
        }
        self.sources.entry(source).or_insert_with(|| Bucket::new(BURST, PER_SECOND, now)).take(now)
    }
}

/// One customer: an IPv4 address, an IPv6 /64.
fn prefix(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::wire::stun::Integrity;
    use crate::wire::stun::TransactionId;

    const LOCAL: &str = "198.51.100.1:3478";

    #[test]
    fn a_stranger_learns_where_he_came_from_and_nothing_else() {
        for (from, len) in
            [("203.0.113.5:4242", 32), ("[2001:db8::5]:4242", 44), ("[::ffff:203.0.113.5]:4242", 32)]
        {
            let bytes = answer(&request().emit(Integrity::None), from).unwrap();
            assert_eq!(bytes.len(), len);
            let received = Received::parse(&bytes).unwrap();
            let expected = Attribute::XorMappedAddress(canonical(from.parse().unwrap()));
            assert_eq!(received.message, request().success().with(expected));
        }
    }

    #[test]
    fn a_classic_client_gets_a_classic_answer() {
        let mut classic = request().emit(Integrity::None);
        classic[4..8].copy_from_slice(&[1, 2, 3, 4]);
        let bytes = answer(&classic, "203.0.113.5:4242").unwrap();
        assert_eq!(bytes[4..20], classic[4..20], "all 16 bytes of its transaction id come back");
        let received = Received::parse(&bytes).unwrap();
        let expected = Attribute::MappedAddress("203.0.113.5:4242".parse().unwrap());
        assert_eq!(received.message.attributes, [expected]);
    }

    #[test]
    fn what_deserves_no_answer_gets_none() {
        let plain = request();
        let indication = Message { class: Class::Indication, ..plain.clone() };
        let named = plain.clone().with(Attribute::Username(b"me".to_vec()));
        let from = "203.0.113.5:4242";
        for (text, bytes) in [
            ("an answer", plain.success().emit(Integrity::None)),
            ("a refusal", plain.refusal(420, "").emit(Integrity::None)),
            ("an indication", indication.emit(Integrity::None)),
            ("another method", Message { method: 3, ..plain.clone() }.emit(Integrity::None)),
            ("somebody's registration", named.emit(Integrity::None)),
            ("somebody's probe", plain.emit(Integrity::Sha256(b"key"))),
        ] {
            assert_eq!(answer(&bytes, from), None, "{text}");
        }
        for from in [
            "203.0.113.5:0",
            "203.0.113.5:7",
            "203.0.113.5:19",
            "203.0.113.5:53",
            "203.0.113.5:123",
            "203.0.113.5:1900",
            "203.0.113.5:5353",
            "203.0.113.5:11211",
            "0.0.0.0:4242",
            "224.0.0.1:4242",
            "255.255.255.255:4242",
            "240.0.0.1:4242",
            "[::]:4242",
            "[ff02::1]:4242",
            "[::ffff:224.0.0.1]:4242",
            LOCAL,
        ] {
            assert_eq!(answer(&plain.emit(Integrity::None), from), None, "{from}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_only_in_fewer_bytes_than_were_asked() {
        let change = Attribute::ChangeRequest { ip: true, port: false };
        let short = request().with(change.clone()).emit(Integrity::None);
        assert_eq!(answer(&short, "203.0.113.5:4242"), None);

        let long = request().with(change).with(Attribute::Padding(100)).emit(Integrity::None);
        let bytes = answer(&long, "203.0.113.5:4242").unwrap();
        assert!(bytes.len() <= long.len());
        let refusal = Received::parse(&bytes).unwrap().message;
        assert_eq!(refusal.class, Class::Error);
        assert_eq!(refusal.error(), Some((420, "")));
        assert!(refusal.attributes.contains(&Attribute::UnknownAttributes(vec![CHANGE_REQUEST, PADDING])));

        let idle = Attribute::ChangeRequest { ip: false, port: false };
        let harmless = request().with(idle).emit(Integrity::None);
        assert!(answer(&harmless, "203.0.113.5:4242").is_some(), "it asks for no change");
    }

    #[test]
    fn one_source_cannot_ask_for_ever_and_does_not_hinder_another() {
        let t0 = origin();
        let mut limiter = Limiter::new(t0);
        let (greedy, other) = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8:0:1::1]:1".parse().unwrap());
        assert_eq!((0..1000).filter(|_| limiter.allow(greedy, t0)).count(), 64);
        assert!(!limiter.allow("[2001:db8::2]:9".parse().unwrap(), t0), "the same /64 is the same source");
        assert!(limiter.allow(other, t0));
        let later = t0 + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| limiter.allow(greedy, later)).count(), 32);
    }

    #[test]
    fn a_flood_of_forged_sources_has_a_bound_in_memory_and_in_answers() {
        let t0 = origin();
        let mut limiter = Limiter::new(t0);
        let known = "192.0.2.1:1".parse().unwrap();
        assert!(limiter.allow(known, t0));
        let flood = (0..20_000u32).map(|n| SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + n).into(), 1));
        let answered = flood.filter(|source| limiter.allow(*source, t0)).count();
        assert_eq!(answered, SOURCES - 1 + 1024);
        assert_eq!(limiter.sources.len(), SOURCES);
        assert!(limiter.allow(known, t0), "who was there before is served");
        let later = t0 + Duration::from_secs(60);
        assert!(limiter.allow("198.51.100.9:1".parse().unwrap(), later));
        assert_eq!(limiter.sources.len(), 1, "whoever was quiet is forgotten");
    }

    fn answer(bytes: &[u8], from: &str) -> Option<Vec<u8>> {
        respond(&Received::parse(bytes).unwrap(), from.parse().unwrap(), LOCAL.parse().unwrap())
    }

    fn request() -> Message {
        Message::request(BINDING, TransactionId([7; 12]))
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
