//! The stateless Binding answer: tells anyone who asks where the question came from, and nothing else.
//!
//! Anyone may ask, with any source address that he can forge, so the server must not be worth abusing:
//!
//! * An answer is one message per request. With an IPv4 address it is 32 bytes to a request of at least 20, with IPv6 44
//!   bytes. With the headers below that is 60 to 48 and 92 to 68 bytes: an amplification of at most 1.36, where
//!   reflection is worth an attacker's while from about 10. Every other answer is no longer than its request.
//! * It never answers an answer, so two servers cannot be set upon each other, and it never sends to a port where some
//!   other protocol answers everything (echo, DNS, NTP, ...), nor to a source that is no single host.
//! * [`super::limiter::Limiter`] bounds what one source gets; the caller asks it first.
//!
//! Requests with USERNAME or an integrity hash are somebody else's: a broker's registrations, a peer's probes.

use std::net::IpAddr;
use std::net::SocketAddr;

use crate::base::addr::canonical;
use crate::wire::stun::Attribute;
use crate::wire::stun::BINDING;
use crate::wire::stun::Class;
use crate::wire::stun::Message;
use crate::wire::stun::Received;

/// Ports that answer whatever comes: echo, discard, daytime, quote, chargen, DNS, NTP, SSDP, mDNS, memcached. 0 is none.
const LOOPING_PORTS: [u16; 11] = [0, 7, 9, 13, 17, 19, 53, 123, 1900, 5353, 11_211];
/// CHANGE-REQUEST, RESPONSE-PORT and PADDING (RFC 5780): understood, and not done here.
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

#[cfg(test)]
mod tests {
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

    fn answer(bytes: &[u8], from: &str) -> Option<Vec<u8>> {
        respond(&Received::parse(bytes).unwrap(), from.parse().unwrap(), LOCAL.parse().unwrap())
    }

    fn request() -> Message {
        Message::request(BINDING, TransactionId([7; 12]))
    }
}
