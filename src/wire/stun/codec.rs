//! STUN messages as bytes, and the hashes over them.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use ring::hmac;

use super::Attribute;
use super::COOKIE;
use super::Class;
use super::HEADER_LEN;
use super::Integrity;
use super::MAX_ATTRIBUTES;
use super::MAX_STREAM_MESSAGE;
use super::MAX_USERNAME;
use super::Message;
use super::Received;
use super::Report;
use super::TransactionId;
use super::stunt;
use crate::base::addr::canonical;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::wire::WireError;
use crate::wire::frame::Front;
use crate::wire::relay::Gate;
use crate::wire::tlv::printable;

/// Attribute numbers (RFC 8489 18.3, RFC 8445 20.1, RFC 5780 9.1, RFC 3489 11.2, ours).
mod number {
    pub(super) const MAPPED_ADDRESS: u16 = 0x0001;
    pub(super) const CHANGE_REQUEST: u16 = 0x0003;
    pub(super) const SOURCE_ADDRESS: u16 = 0x0004;
    pub(super) const CHANGED_ADDRESS: u16 = 0x0005;
    pub(super) const USERNAME: u16 = 0x0006;
    pub(super) const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub(super) const ERROR_CODE: u16 = 0x0009;
    pub(super) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    pub(super) const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub(super) const PRIORITY: u16 = 0x0024;
    pub(super) const PADDING: u16 = 0x0026;
    pub(super) const RESPONSE_PORT: u16 = 0x0027;
    pub(super) const RELAY_TOKEN: u16 = 0x7e01;
    pub(super) const RELAY_CHANNEL: u16 = 0x7e02;
    pub(super) const TIMESTAMP: u16 = 0x7e03;
    pub(super) const STUNT_PROBE: u16 = 0x7e04;
    pub(super) const STUNT_OUTCOME: u16 = 0x7e05;
    pub(super) const STUNT_SEGMENT: u16 = 0x7e06;
    /// From here on an attribute may be ignored (RFC 8489 14).
    pub(super) const FIRST_OPTIONAL: u16 = 0x8000;
    pub(super) const FINGERPRINT: u16 = 0x8028;
    pub(super) const RESPONSE_ORIGIN: u16 = 0x802b;
    pub(super) const OTHER_ADDRESS: u16 = 0x802c;
    pub(super) const STUNT_SERVER: u16 = 0xfe01;
    pub(super) const CAPABILITIES: u16 = 0xfe02;
    pub(super) const RELAY_SPLICE: u16 = 0xfe03;
    pub(super) const FILLER: u16 = 0xfe04;
    pub(super) const REPORT: u16 = 0xfe05;
}

/// Bytes before an attribute's value.
const ATTRIBUTE_HEADER: usize = 4;
/// A FINGERPRINT with its header, bytes.
const FINGERPRINT_LEN: usize = ATTRIBUTE_HEADER + 4;
/// Makes a FINGERPRINT differ from the CRC-32 of a protocol that has one too (RFC 8489 14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;
/// Address families (RFC 8489 14.1).
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;
/// Bits of CHANGE-REQUEST (RFC 5780 7.2).
const CHANGE_IP: u32 = 4;
/// Of REPORT.
const WANTS_STREAM: u8 = 1;
const CHANGE_PORT: u32 = 2;
/// Largest value of the length field that all attributes before the hash may reach, so that hash and FINGERPRINT fit.
const MAX_LENGTH: usize = 65_532 - (ATTRIBUTE_HEADER + 32) - FINGERPRINT_LEN;

pub(super) fn emit(message: &Message, cookie: [u8; 4], integrity: Integrity<'_>) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u16(message_type(message)).u16(0).put(&cookie).put(&message.transaction.0);
    let mask = mask(cookie, message.transaction);
    for attribute in &message.attributes {
        put_attribute(&mut writer, number_of(attribute), &value_of(attribute, mask));
    }
    set_length(&mut writer, 0);
    let hash = match integrity {
        Integrity::None => return writer.finish(),
        Integrity::Sha256(key) => (number::MESSAGE_INTEGRITY_SHA256, hmac::HMAC_SHA256, key),
        Integrity::Sha1(key) => (number::MESSAGE_INTEGRITY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key),
    };
    let (number, algorithm, key) = hash;
    set_length(&mut writer, ATTRIBUTE_HEADER + tag_len(algorithm));
    let tag = hmac::sign(&hmac::Key::new(algorithm, key), writer.as_slice());
    put_attribute(&mut writer, number, tag.as_ref());
    set_length(&mut writer, FINGERPRINT_LEN);
    let fingerprint = crc32fast::hash(writer.as_slice()) ^ FINGERPRINT_XOR;
    put_attribute(&mut writer, number::FINGERPRINT, &fingerprint.to_be_bytes());
    writer.finish()
}

pub(super) fn parse(bytes: &[u8]) -> Result<Received<'_>, WireError> {
    let mut reader = Reader::new(bytes);
    let kind = reader.u16()?;
    if kind & 0xc000 != 0 {
        return Err(WireError::Unknown);
    }
    let len = usize::from(reader.u16()?);
    let cookie: [u8; 4] = reader.array()?;
    let transaction = TransactionId(reader.array()?);
    if len % 4 != 0 {
        return Err(WireError::Invalid);
    }
    if len != reader.remaining() {
        return Err(if len > reader.remaining() { WireError::Truncated } else { WireError::TooLong });
    }
    let mask = mask(cookie, transaction);
    let mut received = Received {
        message: Message {
            class: class_of(kind),
            method: method_of(kind),
            transaction,
            attributes: Vec::new(),
        },
        has_cookie: cookie == COOKIE,
        cookie,
        unknown_required: Vec::new(),
        bytes,
        sha1_at: None,
        sha256_at: None,
    };
    while !reader.is_empty() {
        let at = bytes.len() - reader.remaining();
        let number = reader.u16()?;
        let len = usize::from(reader.u16()?);
        let value = reader.take(len)?;
        reader.take(padding(len))?;
        match number {
            number::FINGERPRINT => {
                if !reader.is_empty() {
                    return Err(WireError::Invalid); // RFC 8489 14.7: it is the last
                }
                check_fingerprint(bytes, at, value)?;
            }
            // SHA256 may follow SHA1 (RFC 8489 14.6); nothing else behind a hash counts.
            number::MESSAGE_INTEGRITY_SHA256 if received.sha256_at.is_none() => received.sha256_at = Some(at),
            _ if received.has_integrity() => {}
            number::MESSAGE_INTEGRITY => received.sha1_at = Some(at),
            _ => {
                match attribute(number, value, mask)? {
                    Some(known) => received.message.attributes.push(known),
                    None if number < number::FIRST_OPTIONAL => received.unknown_required.push(number),
                    None => {}
                }
                if received.message.attributes.len() + received.unknown_required.len() > MAX_ATTRIBUTES {
                    return Err(WireError::TooLong);
                }
            }
        }
    }
    Ok(received)
}

/// Whether the attribute at `at` is the hash, under `key`, of what stands before it. The length field then counted the
/// hash as the last attribute (RFC 8489 14.5).
pub(super) fn is_authentic(bytes: &[u8], at: Option<usize>, algorithm: hmac::Algorithm, key: &[u8]) -> bool {
    let Some(at) = at else { return false };
    let Some((covered, attribute)) = bytes.split_at_checked(at) else { return false };
    let mut reader = Reader::new(attribute);
    let (Ok(_), Ok(len)) = (reader.u16(), reader.u16()) else { return false };
    let Ok(tag) = reader.take(usize::from(len)) else { return false };
    if tag.len() != tag_len(algorithm) {
        return false;
    }
    let mut writer = Writer::new();
    writer.put(covered);
    set_length(&mut writer, ATTRIBUTE_HEADER + tag.len());
    hmac::verify(&hmac::Key::new(algorithm, key), writer.as_slice(), tag).is_ok()
}

pub(super) fn front(buffer: &[u8]) -> Result<Front, WireError> {
    let mut reader = Reader::new(buffer);
    let (Ok(kind), Ok(len), Ok(cookie)) = (reader.u16(), reader.u16(), reader.array::<4>()) else {
        return match buffer.first() {
            Some(first) if first & 0xc0 != 0 => Err(WireError::Unknown),
            _ => Ok(Front::Missing(HEADER_LEN - buffer.len())),
        };
    };
    if kind & 0xc000 != 0 || cookie != COOKIE {
        return Err(WireError::Unknown);
    }
    if len % 4 != 0 {
        return Err(WireError::Invalid);
    }
    let whole = HEADER_LEN + usize::from(len);
    if whole > MAX_STREAM_MESSAGE {
        return Err(WireError::TooLong);
    }
    match whole.checked_sub(buffer.len()) {
        None | Some(0) => Ok(Front::Whole(whole)),
        Some(missing) => Ok(Front::Missing(missing)),
    }
}

fn check_fingerprint(bytes: &[u8], at: usize, value: &[u8]) -> Result<(), WireError> {
    let found: [u8; 4] = value.try_into().map_err(|_| WireError::Invalid)?;
    let covered = bytes.get(..at).unwrap_or_default();
    if u32::from_be_bytes(found) == crc32fast::hash(covered) ^ FINGERPRINT_XOR {
        Ok(())
    } else {
        Err(WireError::Integrity)
    }
}

/// The class bits stand between the method bits (RFC 8489 5).
fn message_type(message: &Message) -> u16 {
    let method = message.method;
    let class = match message.class {
        Class::Request => 0x000,
        Class::Indication => 0x010,
        Class::Success => 0x100,
        Class::Error => 0x110,
    };
    (method & 0x00f) | (method & 0x070) << 1 | (method & 0xf80) << 2 | class
}

fn class_of(kind: u16) -> Class {
    match (kind & 0x100 != 0, kind & 0x010 != 0) {
        (false, false) => Class::Request,
        (false, true) => Class::Indication,
        (true, false) => Class::Success,
        (true, true) => Class::Error,
    }
}

fn method_of(kind: u16) -> u16 {
    (kind & 0x00f) | (kind & 0x0e0) >> 1 | (kind & 0x3e00) >> 2
}

fn number_of(attribute: &Attribute) -> u16 {
    match attribute {
        Attribute::MappedAddress(_) => number::MAPPED_ADDRESS,
        Attribute::XorMappedAddress(_) => number::XOR_MAPPED_ADDRESS,
        Attribute::Username(_) => number::USERNAME,
        Attribute::ErrorCode(..) => number::ERROR_CODE,
        Attribute::UnknownAttributes(_) => number::UNKNOWN_ATTRIBUTES,
        Attribute::Priority(_) => number::PRIORITY,
        Attribute::ChangeRequest { .. } => number::CHANGE_REQUEST,
        Attribute::ResponseOrigin(_) => number::RESPONSE_ORIGIN,
        Attribute::OtherAddress(_) => number::OTHER_ADDRESS,
        Attribute::ResponsePort(_) => number::RESPONSE_PORT,
        Attribute::Padding(_) => number::PADDING,
        Attribute::RelayToken(_) => number::RELAY_TOKEN,
        Attribute::RelayChannel(_) => number::RELAY_CHANNEL,
        Attribute::Timestamp(_) => number::TIMESTAMP,
        Attribute::SourceAddress(_) => number::SOURCE_ADDRESS,
        Attribute::ChangedAddress(_) => number::CHANGED_ADDRESS,
        Attribute::StuntServer(_) => number::STUNT_SERVER,
        Attribute::StuntProbe(_) => number::STUNT_PROBE,
        Attribute::StuntOutcome(_) => number::STUNT_OUTCOME,
        Attribute::StuntSegment(_) => number::STUNT_SEGMENT,
        Attribute::Capabilities(_) => number::CAPABILITIES,
        Attribute::RelaySplice(_) => number::RELAY_SPLICE,
        Attribute::Filler(_) => number::FILLER,
        Attribute::Report(_) => number::REPORT,
    }
}

fn value_of(attribute: &Attribute, mask: [u8; 16]) -> Vec<u8> {
    let mut writer = Writer::new();
    match attribute {
        Attribute::XorMappedAddress(addr) => put_address(&mut writer, *addr, mask),
        Attribute::MappedAddress(addr)
        | Attribute::ResponseOrigin(addr)
        | Attribute::OtherAddress(addr)
        | Attribute::SourceAddress(addr)
        | Attribute::ChangedAddress(addr) => put_address(&mut writer, *addr, [0; 16]),
        Attribute::Username(bytes) | Attribute::RelayToken(bytes) => {
            writer.put(bytes);
        }
        Attribute::ErrorCode(code, reason) => {
            let [hundreds, rest] = [code / 100, code % 100].map(|n| u8::try_from(n & 0xff).unwrap_or(0));
            writer.u16(0).u8(hundreds & 7).u8(rest).put(reason.as_bytes());
        }
        Attribute::UnknownAttributes(numbers) => {
            for number in numbers {
                writer.u16(*number);
            }
        }
        Attribute::Priority(bits) | Attribute::Capabilities(bits) => {
            writer.u32(*bits);
        }
        Attribute::ChangeRequest { ip, port } => {
            writer.u32(if *ip { CHANGE_IP } else { 0 } | if *port { CHANGE_PORT } else { 0 });
        }
        Attribute::ResponsePort(number) | Attribute::RelayChannel(number) => {
            writer.u16(*number).u16(0);
        }
        Attribute::Padding(len) | Attribute::Filler(len) => {
            writer.put(&vec![0; usize::from(*len)]);
        }
        Attribute::Timestamp(micros) => {
            writer.u64(*micros);
        }
        Attribute::StuntServer(server) => stunt::put_server(&mut writer, server),
        Attribute::StuntProbe(probe) => stunt::put_probe(&mut writer, probe),
        Attribute::StuntOutcome(outcome) => stunt::put_outcome(&mut writer, *outcome),
        Attribute::StuntSegment(segment) => stunt::put_segment(&mut writer, segment),
        Attribute::RelaySplice(gate) => {
            writer.u16(gate.port).u16(gate.from);
        }
        Attribute::Report(report) => {
            writer.u32(report.arrived).u8(if report.wants_stream { WANTS_STREAM } else { 0 }).put(&[0; 3]);
        }
    }
    writer.finish()
}

/// A known attribute, or `None`.
fn attribute(number: u16, value: &[u8], mask: [u8; 16]) -> Result<Option<Attribute>, WireError> {
    let mut reader = Reader::new(value);
    let known = match number {
        number::MAPPED_ADDRESS => Attribute::MappedAddress(take_address(&mut reader, [0; 16])?),
        number::XOR_MAPPED_ADDRESS => Attribute::XorMappedAddress(take_address(&mut reader, mask)?),
        number::RESPONSE_ORIGIN => Attribute::ResponseOrigin(take_address(&mut reader, [0; 16])?),
        number::OTHER_ADDRESS => Attribute::OtherAddress(take_address(&mut reader, [0; 16])?),
        number::USERNAME => {
            if value.len() > MAX_USERNAME {
                return Err(WireError::TooLong);
            }
            Attribute::Username(reader.rest().to_vec())
        }
        number::ERROR_CODE => {
            reader.u16()?;
            let (hundreds, rest) = (u16::from(reader.u8()? & 7), u16::from(reader.u8()?));
            if !(3..=6).contains(&hundreds) || rest > 99 {
                return Err(WireError::Invalid);
            }
            let reason = std::str::from_utf8(reader.rest()).map_err(|_| WireError::Invalid)?;
            Attribute::ErrorCode(hundreds * 100 + rest, printable(reason))
        }
        number::UNKNOWN_ATTRIBUTES => {
            let mut numbers = Vec::new();
            while numbers.len() < MAX_ATTRIBUTES && !reader.is_empty() {
                numbers.push(reader.u16()?);
            }
            Attribute::UnknownAttributes(numbers)
        }
        number::PRIORITY => Attribute::Priority(reader.u32()?),
        number::CHANGE_REQUEST => {
            let bits = reader.u32()?;
            Attribute::ChangeRequest { ip: bits & CHANGE_IP != 0, port: bits & CHANGE_PORT != 0 }
        }
        number::RESPONSE_PORT => Attribute::ResponsePort(take_padded_u16(&mut reader)?),
        number::RELAY_CHANNEL => Attribute::RelayChannel(take_padded_u16(&mut reader)?),
        number::PADDING => {
            Attribute::Padding(u16::try_from(reader.rest().len()).map_err(|_| WireError::TooLong)?)
        }
        number::FILLER => {
            Attribute::Filler(u16::try_from(reader.rest().len()).map_err(|_| WireError::TooLong)?)
        }
        number::RELAY_TOKEN => Attribute::RelayToken(reader.rest().to_vec()),
        number::TIMESTAMP => Attribute::Timestamp(reader.u64()?),
        number::SOURCE_ADDRESS => Attribute::SourceAddress(take_address(&mut reader, [0; 16])?),
        number::CHANGED_ADDRESS => Attribute::ChangedAddress(take_address(&mut reader, [0; 16])?),
        number::STUNT_SERVER => match stunt::take_server(&mut reader)? {
            Some(server) => Attribute::StuntServer(server),
            None => return Ok(None),
        },
        number::STUNT_PROBE => Attribute::StuntProbe(stunt::take_probe(&mut reader)?),
        number::STUNT_OUTCOME => Attribute::StuntOutcome(stunt::take_outcome(&mut reader)?),
        number::STUNT_SEGMENT => Attribute::StuntSegment(stunt::take_segment(&mut reader)?),
        number::CAPABILITIES => Attribute::Capabilities(reader.u32()?),
        number::REPORT => {
            let (arrived, wishes) = (reader.u32()?, reader.u8()?);
            reader.array::<3>()?;
            Attribute::Report(Report { arrived, wants_stream: wishes & WANTS_STREAM != 0 })
        }
        number::RELAY_SPLICE => Attribute::RelaySplice(Gate { port: reader.u16()?, from: reader.u16()? }),
        _ => return Ok(None),
    };
    if reader.is_empty() { Ok(Some(known)) } else { Err(WireError::Invalid) }
}

/// Two bytes of value, two without meaning (RFC 5780 7.5).
fn take_padded_u16(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    let number = reader.u16()?;
    if !reader.is_empty() {
        reader.u16()?;
    }
    Ok(number)
}

fn put_address(writer: &mut Writer, addr: SocketAddr, mask: [u8; 16]) {
    let addr = canonical(addr);
    let [a, b, ..] = mask;
    let port = addr.port() ^ u16::from_be_bytes([a, b]);
    match addr.ip() {
        IpAddr::V4(v4) => writer.u8(0).u8(FAMILY_V4).u16(port).put(&xor(v4.octets(), mask)),
        IpAddr::V6(v6) => writer.u8(0).u8(FAMILY_V6).u16(port).put(&xor(v6.octets(), mask)),
    };
}

fn take_address(reader: &mut Reader<'_>, mask: [u8; 16]) -> Result<SocketAddr, WireError> {
    let _reserved = reader.u8()?;
    let family = reader.u8()?;
    let [a, b, ..] = mask;
    let port = reader.u16()? ^ u16::from_be_bytes([a, b]);
    let ip = match family {
        FAMILY_V4 => IpAddr::V4(Ipv4Addr::from(xor(reader.array::<4>()?, mask))),
        FAMILY_V6 => IpAddr::V6(Ipv6Addr::from(xor(reader.array::<16>()?, mask))),
        _ => return Err(WireError::Invalid),
    };
    Ok(canonical(SocketAddr::new(ip, port)))
}

fn xor<const N: usize>(mut bytes: [u8; N], mask: [u8; 16]) -> [u8; N] {
    bytes.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    bytes
}

/// What XOR-MAPPED-ADDRESS is xor-ed with (RFC 8489 14.2).
fn mask([a, b, c, d]: [u8; 4], transaction: TransactionId) -> [u8; 16] {
    let [e, f, g, h, i, j, k, l, m, n, o, p] = transaction.0;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

fn tag_len(algorithm: hmac::Algorithm) -> usize {
    algorithm.digest_algorithm().output_len()
}

fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// Leaves out what the length fields cannot say.
fn put_attribute(writer: &mut Writer, number: u16, value: &[u8]) {
    let Ok(len) = u16::try_from(value.len()) else { return };
    let padded = value.len() + padding(value.len());
    let is_last =
        matches!(number, number::FINGERPRINT | number::MESSAGE_INTEGRITY | number::MESSAGE_INTEGRITY_SHA256);
    if !is_last && writer.len() + ATTRIBUTE_HEADER + padded > HEADER_LEN + MAX_LENGTH {
        return;
    }
    writer.u16(number).u16(len).put(value).put([0; 3].get(..padding(value.len())).unwrap_or_default());
}

/// Makes the length field say what is there and `more` that is to come.
fn set_length(writer: &mut Writer, more: usize) {
    let len = writer.len().saturating_sub(HEADER_LEN) + more;
    writer.patch_u16(2, u16::try_from(len).unwrap_or(u16::MAX));
}
