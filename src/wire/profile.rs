//! Addresses, candidates and NAT profiles as bytes: parts of broker messages.
//!
//! ```text
//! address     | 4, u8 | IPv4, 4 bytes  |               | 6, u8 | IPv6, 16 bytes |
//! endpoint    | address                | port, u16 |
//! candidate   | transport, u8 | kind, u8 | endpoint              |
//! behavior    | passes, u8 | mapping, u8 | filtering, u8 | ports, u8 | delta, i16 | reaction, u8 |
//!             | hairpin, u8 | paired, u8 | lifetime in s, u16 |
//! segments    | survives RST, u8 | survives ICMP, u8 | SYN-ACK out, u8 | sequence kept, u8 |
//! profile     | version 3, u8 | behavior of UDP, 11 bytes | behavior of TCP, 11 bytes | segments | hops, u8 |
//!             | lifetime after a SYN, u16 | lifetime after a FIN, u16 | forged, u8 |
//!
//! transport   0 UDP   1 TCP
//! kind        0 host  1 forwarded  2 configured  3 inner  4 mapped
//! yes or no   0 unknown  1 yes  2 no      lifetime, hops: 0 unknown
//! mapping     0 unknown  1 none  2 endpoint-independent  3 address-  4 address-and-port-  5 session-dependent
//! filtering   0 unknown  1 open  2 endpoint-independent  3 address-  4 address-and-port-dependent  5 inbound never
//! ports       0 unknown  1 preserved  2 delta (then `delta` says how much)  3 random
//! reaction    0 unknown  1 drop  2 reset  3 ICMP unreachable
//! forged      0 never  1 able  2 lost  3 unable
//! ```
//!
//! Version 1 ends behind the hops. Later versions begin like the one before and go on behind it: what a reader does not know
//! it leaves unread, what a writer did not know is unknown.
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
use crate::nat::behavior::Forged;
use crate::nat::behavior::Mapping;
use crate::nat::behavior::PortAssignment;
use crate::nat::behavior::Profile;
use crate::nat::behavior::Reaction;
use crate::nat::behavior::Segments;
use crate::nat::behavior::Transitory;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::Transport;

/// The family byte of an IPv4 address.
const FAMILY_V4: u8 = 4;
/// The family byte of an IPv6 address.
const FAMILY_V6: u8 = 6;
/// The first byte of a profile.
const PROFILE_VERSION: u8 = 3;
/// The first version that tells how long opening and closing connections are kept.
const WITH_TRANSITORY: u8 = 2;
/// The first version that tells whether forged answers may be tried.
const WITH_FORGED: u8 = 3;

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
    writer.u8(PROFILE_VERSION);
    put_behavior(writer, &profile.udp);
    put_behavior(writer, &profile.tcp);
    let Segments { survives_reset, survives_icmp, synack_out, sequence_kept } = profile.segments;
    writer.u8(known(survives_reset)).u8(known(survives_icmp)).u8(known(synack_out)).u8(known(sequence_kept));
    writer.u8(profile.hops.unwrap_or(0));
    let Transitory { opening, closing } = profile.transitory;
    writer.u16(opening.unwrap_or(0)).u16(closing.unwrap_or(0));
    writer.u8(match profile.forged {
        Forged::Never => 0,
        Forged::Able => 1,
        Forged::Lost => 2,
        Forged::Unable => 3,
    });
}

/// Reads a profile to its end.
///
/// # Errors
/// [`WireError::Truncated`]; [`WireError::Invalid`] for version 0.
pub fn take_profile(reader: &mut Reader<'_>) -> Result<Profile, WireError> {
    let version = reader.u8()?;
    if version == 0 {
        return Err(WireError::Invalid);
    }
    let (udp, tcp) = (take_behavior(reader)?, take_behavior(reader)?);
    let segments = Segments {
        survives_reset: answer(reader.u8()?),
        survives_icmp: answer(reader.u8()?),
        synack_out: answer(reader.u8()?),
        sequence_kept: answer(reader.u8()?),
    };
    let hops = Some(reader.u8()?).filter(|hops| *hops > 0);
    let transitory = if version < WITH_TRANSITORY {
        Transitory::default()
    } else {
        Transitory { opening: seconds(reader.u16()?), closing: seconds(reader.u16()?) }
    };
    let forged = match (version >= WITH_FORGED).then(|| reader.u8()).transpose()? {
        Some(1) => Forged::Able,
        Some(2) => Forged::Lost,
        Some(3) => Forged::Unable,
        _ => Forged::Never,
    };
    let _ = reader.rest();
    Ok(Profile { udp, tcp, segments, transitory, hops, forged })
}

const fn known(answer: Option<bool>) -> u8 {
    match answer {
        None => 0,
        Some(true) => 1,
        Some(false) => 2,
    }
}

fn seconds(known: u16) -> Option<u16> {
    Some(known).filter(|seconds| *seconds > 0)
}

const fn answer(byte: u8) -> Option<bool> {
    match byte {
        1 => Some(true),
        2 => Some(false),
        _ => None,
    }
}

fn put_behavior(writer: &mut Writer, behavior: &Behavior) {
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
    let reaction = match behavior.reaction {
        Reaction::Unknown => 0,
        Reaction::Drop => 1,
        Reaction::Reset => 2,
        Reaction::Unreachable => 3,
    };
    writer.u8(known(behavior.passes)).u8(mapping).u8(filtering).u8(ports).put(&delta.to_be_bytes());
    writer.u8(reaction).u8(known(behavior.hairpin)).u8(known(behavior.paired));
    writer.u16(behavior.lifetime.unwrap_or(0));
}

fn take_behavior(reader: &mut Reader<'_>) -> Result<Behavior, WireError> {
    let passes = answer(reader.u8()?);
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
    let reaction = match reader.u8()? {
        1 => Reaction::Drop,
        2 => Reaction::Reset,
        3 => Reaction::Unreachable,
        _ => Reaction::Unknown,
    };
    Ok(Behavior {
        passes,
        mapping,
        filtering,
        ports,
        reaction,
        hairpin: answer(reader.u8()?),
        paired: answer(reader.u8()?),
        lifetime: seconds(reader.u16()?),
    })
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

    pub(crate) fn profile() -> BoxedStrategy<Profile> {
        let some = any::<Option<bool>>;
        let segments = (some(), some(), some(), some()).prop_map(
            |(survives_reset, survives_icmp, synack_out, sequence_kept)| Segments {
                survives_reset,
                survives_icmp,
                synack_out,
                sequence_kept,
            },
        );
        let hops = proptest::option::of(1..=u8::MAX);
        let forged =
            prop_oneof![Just(Forged::Never), Just(Forged::Able), Just(Forged::Lost), Just(Forged::Unable)];
        let lifetime = || proptest::option::of(1..=u16::MAX);
        let transitory =
            (lifetime(), lifetime()).prop_map(|(opening, closing)| Transitory { opening, closing });
        (behavior(), behavior(), segments, transitory, hops, forged)
            .prop_map(|(udp, tcp, segments, transitory, hops, forged)| Profile {
                udp,
                tcp,
                segments,
                transitory,
                hops,
                forged,
            })
            // On the heap: the messages that hold one are put together on a test's small stack.
            .boxed()
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
        let reaction = prop_oneof![
            Just(Reaction::Unknown),
            Just(Reaction::Drop),
            Just(Reaction::Reset),
            Just(Reaction::Unreachable)
        ];
        let some = any::<Option<bool>>;
        let lifetime = proptest::option::of(1..=u16::MAX);
        (some(), mapping, filtering, ports, reaction, some(), some(), lifetime).prop_map(
            |(passes, mapping, filtering, ports, reaction, hairpin, paired, lifetime)| Behavior {
                passes,
                mapping,
                filtering,
                ports,
                reaction,
                hairpin,
                paired,
                lifetime,
            },
        )
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
        let udp = [9, 9, 9, 9, 0, 7, 9, 9, 9, 0, 0];
        let tcp = [1, 2, 4, 2, 0xff, 0xfe, 2, 1, 2, 0, 240];
        let bytes = [&[7][..], &udp, &tcp, &[1, 2, 0, 9], &[0], &[0, 120, 0, 0, 9], b"and more"].concat();
        let profile = take_profile(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(profile.udp, Behavior::default());
        assert_eq!(
            profile.tcp,
            Behavior {
                passes: Some(true),
                mapping: Mapping::EndpointIndependent,
                filtering: Filtering::AddressAndPortDependent,
                ports: PortAssignment::Delta(-2),
                reaction: Reaction::Reset,
                hairpin: Some(true),
                paired: Some(false),
                lifetime: Some(240),
            }
        );
        assert_eq!(
            profile.segments,
            Segments { survives_reset: Some(true), survives_icmp: Some(false), ..Segments::default() }
        );
        assert_eq!(profile.transitory, Transitory { opening: Some(120), closing: None });
        assert_eq!(take_candidate(&mut Reader::new(&[2, 0, 4, 1, 2, 3, 4, 0, 1])), Err(WireError::Unknown));
    }

    #[test]
    fn an_older_program_reads_what_this_one_writes_and_is_read() {
        let new = Profile {
            tcp: Behavior { lifetime: Some(60), ..Behavior::default() },
            transitory: Transitory { opening: Some(30), closing: Some(10) },
            hops: Some(2),
            forged: Forged::Able,
            ..Profile::default()
        };
        let mut writer = Writer::new();
        put_profile(&mut writer, &new);
        let bytes = writer.finish();
        // What version 1 has, byte for byte, and then something that its readers leave unread.
        let (old, more) = bytes.split_at(1 + 11 + 11 + 4 + 1);
        assert_eq!((old.last(), more), (Some(&2), &[0, 30, 0, 10, 1][..]));
        let mut old = old.to_vec();
        old[0] = 1;
        let known = Profile { transitory: Transitory::default(), forged: Forged::Never, ..new };
        assert_eq!(take_profile(&mut Reader::new(&old)), Ok(known));
        old[0] = 2;
        assert_eq!(take_profile(&mut Reader::new(&old)), Err(WireError::Truncated));
        old.extend([0, 30, 0, 10]);
        let known = Profile { forged: Forged::Never, ..new };
        assert_eq!(take_profile(&mut Reader::new(&old)), Ok(known));
        old[0] = 3;
        assert_eq!(take_profile(&mut Reader::new(&old)), Err(WireError::Truncated));
    }
}
