//! Addresses, candidates and NAT profiles as bytes: parts of broker messages.
//!
//! ```text
//! address     | 4, u8 | IPv4, 4 bytes  |               | 6, u8 | IPv6, 16 bytes |
//! endpoint    | address                | port, u16 |
//! candidate   | transport, u8 | kind, u8 | endpoint              |
//! behavior    | passes, u8 | mapping, u8 | filtering, u8 | ports, u8 | delta, i16 |
//! profile     | behavior of UDP, 6 bytes | behavior of TCP, 6 bytes |
//!
//! transport   0 UDP   1 TCP
//! kind        0 host  1 forwarded  2 configured  3 inner  4 mapped
//! passes      0 unknown  1 yes  2 no
//! mapping     0 unknown  1 none  2 endpoint-independent  3 address-  4 address-and-port-  5 session-dependent
//! filtering   0 unknown  1 open  2 endpoint-independent  3 address-  4 address-and-port-dependent  5 inbound never
//! ports       0 unknown  1 preserved  2 delta (then `delta` says how much)  3 random
//! ```
//!
//! IPv4-mapped IPv6 addresses are written and read as IPv4. A number that this program does not know means "unknown" in
//! a profile, and makes a candidate one that it cannot try.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use super::WireError;
use crate::base::addr::canonical;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Filtering;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::Transport;

/// The family byte of an IPv4 address.
const FAMILY_V4: u8 = 4;
/// The family byte of an IPv6 address.
const FAMILY_V6: u8 = 6;

/// Writes an address without a port.
pub fn put_ip(writer: &mut Writer, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(v4) => writer.u8(FAMILY_V4).put(&v4.octets()),
        IpAddr::V6(v6) => writer.u8(FAMILY_V6).put(&v6.octets()),
    };
}

/// Reads an address without a port.
///
/// # Errors
/// [`WireError::Invalid`] for another family.
pub fn take_ip(reader: &mut Reader<'_>) -> Result<IpAddr, WireError> {
    match reader.u8()? {
        FAMILY_V4 => Ok(IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?))),
        FAMILY_V6 => Ok(IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)).to_canonical()),
        _ => Err(WireError::Invalid),
    }
}

/// Writes an address with its port.
pub fn put_endpoint(writer: &mut Writer, addr: SocketAddr) {
    put_ip(writer, addr.ip());
    writer.u16(addr.port());
}

/// Reads an address with its port. Whether it is fit to be sent to is the reader's next question
/// ([`crate::base::addr::is_candidate`]).
///
/// # Errors
/// [`WireError::Invalid`] for another family.
pub fn take_endpoint(reader: &mut Reader<'_>) -> Result<SocketAddr, WireError> {
    let ip = take_ip(reader)?;
    Ok(canonical(SocketAddr::new(ip, reader.u16()?)))
}

/// Writes a candidate.
pub fn put_candidate(writer: &mut Writer, candidate: &Candidate) {
    let transport = match candidate.transport {
        Transport::Udp => 0,
        Transport::Tcp => 1,
    };
    let kind = match candidate.kind {
        Kind::Host => 0,
        Kind::Forwarded => 1,
        Kind::Configured => 2,
        Kind::Inner => 3,
        Kind::Mapped => 4,
    };
    writer.u8(transport).u8(kind);
    put_endpoint(writer, candidate.addr);
}

/// Reads a candidate.
///
/// # Errors
/// [`WireError::Unknown`] for a transport or kind that this program does not know: to be passed over.
pub fn take_candidate(reader: &mut Reader<'_>) -> Result<Candidate, WireError> {
    let transport = match reader.u8()? {
        0 => Transport::Udp,
        1 => Transport::Tcp,
        _ => return Err(WireError::Unknown),
    };
    let kind = match reader.u8()? {
        0 => Kind::Host,
        1 => Kind::Forwarded,
        2 => Kind::Configured,
        3 => Kind::Inner,
        4 => Kind::Mapped,
        _ => return Err(WireError::Unknown),
    };
    Ok(Candidate { transport, kind, addr: take_endpoint(reader)? })
}

/// Writes a profile.
pub fn put_profile(writer: &mut Writer, profile: &Profile) {
    put_behavior(writer, &profile.udp);
    put_behavior(writer, &profile.tcp);
}

/// Reads a profile.
///
/// # Errors
/// [`WireError::Truncated`].
pub fn take_profile(reader: &mut Reader<'_>) -> Result<Profile, WireError> {
    Ok(Profile { udp: take_behavior(reader)?, tcp: take_behavior(reader)? })
}

fn put_behavior(writer: &mut Writer, behavior: &Behavior) {
    let passes = match behavior.passes {
        None => 0,
        Some(true) => 1,
        Some(false) => 2,
    };
    let mapping = match behavior.mapping {
        Mapping::Unknown => 0,
        Mapping::None => 1,
        Mapping::EndpointIndependent => 2,
        Mapping::AddressDependent => 3,
        Mapping::AddressAndPortDependent => 4,
        Mapping::SessionDependent => 5,
    };
    let filtering = match behavior.filtering {
        Filtering::Unknown => 0,
        Filtering::Open => 1,
        Filtering::EndpointIndependent => 2,
        Filtering::AddressDependent => 3,
        Filtering::AddressAndPortDependent => 4,
        Filtering::InboundNever => 5,
    };
    let (ports, delta) = match behavior.ports {
        PortAssignment::Unknown => (0, 0),
        PortAssignment::Preserved => (1, 0),
        PortAssignment::Delta(step) => (2, step),
        PortAssignment::Random => (3, 0),
    };
    writer.u8(passes).u8(mapping).u8(filtering).u8(ports).put(&delta.to_be_bytes());
}

fn take_behavior(reader: &mut Reader<'_>) -> Result<Behavior, WireError> {
    let passes = match reader.u8()? {
        1 => Some(true),
        2 => Some(false),
        _ => None,
    };
    let mapping = match reader.u8()? {
        1 => Mapping::None,
        2 => Mapping::EndpointIndependent,
        3 => Mapping::AddressDependent,
        4 => Mapping::AddressAndPortDependent,
        5 => Mapping::SessionDependent,
        _ => Mapping::Unknown,
    };
    let filtering = match reader.u8()? {
        1 => Filtering::Open,
        2 => Filtering::EndpointIndependent,
        3 => Filtering::AddressDependent,
        4 => Filtering::AddressAndPortDependent,
        5 => Filtering::InboundNever,
        _ => Filtering::Unknown,
    };
    let kind = reader.u8()?;
    let delta = i16::from_be_bytes(reader.array()?);
    let ports = match kind {
        1 => PortAssignment::Preserved,
        2 => PortAssignment::Delta(delta),
        3 => PortAssignment::Random,
        _ => PortAssignment::Unknown,
    };
    Ok(Behavior { passes, mapping, filtering, ports })
}

#[cfg(test)]
pub(super) mod arbitrary {
    //! Any value there can be, for round trips here and in the messages.

    use super::*;
    use proptest::prelude::*;

    pub(crate) fn endpoint() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| canonical(SocketAddr::new(ip, port)))
    }

    pub(crate) fn candidate() -> impl Strategy<Value = Candidate> {
        let transport = prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)];
        let kind = prop_oneof![
            Just(Kind::Host),
            Just(Kind::Forwarded),
            Just(Kind::Configured),
            Just(Kind::Inner),
            Just(Kind::Mapped)
        ];
        (transport, kind, endpoint()).prop_map(|(transport, kind, addr)| Candidate { transport, kind, addr })
    }

    pub(crate) fn profile() -> impl Strategy<Value = Profile> {
        (behavior(), behavior()).prop_map(|(udp, tcp)| Profile { udp, tcp })
    }

    fn behavior() -> impl Strategy<Value = Behavior> {
        let mapping = prop_oneof![
            Just(Mapping::Unknown),
            Just(Mapping::None),
            Just(Mapping::EndpointIndependent),
            Just(Mapping::AddressDependent),
            Just(Mapping::AddressAndPortDependent),
            Just(Mapping::SessionDependent)
        ];
        let filtering = prop_oneof![
            Just(Filtering::Unknown),
            Just(Filtering::Open),
            Just(Filtering::EndpointIndependent),
            Just(Filtering::AddressDependent),
            Just(Filtering::AddressAndPortDependent),
            Just(Filtering::InboundNever)
        ];
        let ports = prop_oneof![
            Just(PortAssignment::Unknown),
            Just(PortAssignment::Preserved),
            any::<i16>().prop_map(PortAssignment::Delta),
            Just(PortAssignment::Random)
        ];
        (any::<Option<bool>>(), mapping, filtering, ports)
            .prop_map(|(passes, mapping, filtering, ports)| Behavior { passes, mapping, filtering, ports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(candidate in arbitrary::candidate(), profile in arbitrary::profile()) {
            let mut writer = Writer::new();
            put_candidate(&mut writer, &candidate);
            put_profile(&mut writer, &profile);
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(take_candidate(&mut reader), Ok(candidate));
            prop_assert_eq!(take_profile(&mut reader), Ok(profile));
            prop_assert!(reader.is_empty());
        }
    }

    #[test]
    fn an_address_has_one_spelling() {
        let mut writer = Writer::new();
        put_endpoint(&mut writer, "[::ffff:192.0.2.1]:258".parse().unwrap());
        assert_eq!(writer.as_slice(), [4, 192, 0, 2, 1, 1, 2]);
        let mapped = [&[6][..], &[0; 10], &[0xff, 0xff, 192, 0, 2, 1, 1, 2]].concat();
        assert_eq!(take_endpoint(&mut Reader::new(&mapped)), Ok("192.0.2.1:258".parse().unwrap()));
        assert_eq!(take_endpoint(&mut Reader::new(&[5, 1, 2, 3, 4])), Err(WireError::Invalid));
    }

    #[test]
    fn what_a_newer_program_measured_is_unknown_to_this_one() {
        let bytes = [9, 9, 9, 9, 0, 7, 1, 2, 4, 2, 0xff, 0xfe];
        let profile = take_profile(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(profile.udp, Behavior::default());
        assert_eq!(
            profile.tcp,
            Behavior {
                passes: Some(true),
                mapping: Mapping::EndpointIndependent,
                filtering: Filtering::AddressAndPortDependent,
                ports: PortAssignment::Delta(-2),
            }
        );
        assert_eq!(take_candidate(&mut Reader::new(&[2, 0, 4, 1, 2, 3, 4, 0, 1])), Err(WireError::Unknown));
    }
}
