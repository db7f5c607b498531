//! STUNT: what a client and a server say to each other about the TCP side of a NAT (methods and attributes of our own).
//!
//! The idea is Guha and Francis's (IMC 2005), the fourth filtering test Gaballo's (thesis 4.5). Everything travels on an
//! established TCP connection: whoever asks has proved to hold his address, and nothing is ever done to another one.
//!
//! ```text
//! STUNT-SERVER   | version 1, u8 | capabilities, u8 | port, u16 | alternate port, u16 | silent port, u16 |
//!                | family, u8 | address, 4 or 16 bytes | more addresses ...
//! STUNT-PROBE    | action, u8 | address, u8 | port, u8 | watch, u8 | target port, u16 | ICMP type, u8 | code, u8 |
//! STUNT-OUTCOME  | outcome, u8 | ICMP type, u8 | code, u8 | 0 | milliseconds, u32 |
//! STUNT-SEGMENT  | flags, u8 | TTL, u8 | address, u8 | 0 | source port, u16 | destination port, u16 |
//!                | sequence number, u32 | acknowledgment, u32 | window, u16 | milliseconds ago, u16 | TCP options ...
//!
//! capabilities   1 connects back   2 has a silent port   4 tells the SYN of this connection
//!                8 sees what comes to the silent port   16 answers there with RST, ICMP, SYNACK
//! family         1 IPv4   2 IPv6
//! action         0 connect   1 RST   2 ICMP of the given type and code   3 SYNACK   4 wait
//! port           0 the main one   1 the alternate one   2 the silent one   3 any other
//! outcome        0 silence   1 connected   2 RST   3 ICMP of the given type and code   4 sent
//! ```
//!
//! An `address` is a place in the list of STUNT-SERVER, where the address that was asked stands first. A port of 0 in
//! STUNT-SERVER says that there is none. `watch` counts tenths of a second; a server watches 8 s at most. `target port` 0
//! is, for whatever comes from the silent port, the one of the newest SYN that came there, and otherwise the one from which
//! the request came. For "wait" it holds seconds.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;

use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::wire::WireError;

/// The version in STUNT-SERVER; another one is not understood.
const VERSION: u8 = 1;
/// Most addresses that a server announces: two for all tests of RFC 5780, a third that no NAT can have learnt, one spare.
pub const MAX_ADDRESSES: usize = 4;
/// Most TCP options in a segment, bytes (RFC 9293 3.1).
pub const MAX_OPTIONS: usize = 40;
/// The finest step of [`Probe::watch`].
const WATCH_STEP: Duration = Duration::from_millis(100);
/// Flags of a TCP segment (RFC 9293 3.1).
pub const SYN: u8 = 0x02;
/// See [`SYN`].
pub const RST: u8 = 0x04;
/// See [`SYN`].
pub const ACK: u8 = 0x10;

/// What a server can do for the connection on which it was asked (attribute STUNT-SERVER, in Binding answers on TCP).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Server {
    /// Which tests there are.
    pub can: Capabilities,
    /// The port that listens on every address.
    pub port: u16,
    /// A second one.
    pub alternate: Option<u16>,
    /// One that never answers anything of itself.
    pub silent: Option<u16>,
    /// Its addresses, all of one family; the one that was asked comes first. At most [`MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
}

/// Which tests a server offers: what it has the ports, addresses and privileges for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// [`Action::Connect`].
    pub connect: bool,
    /// [`Port::Silent`] as the source of [`Action::Connect`].
    pub silent: bool,
    /// A STUNT-SEEN answer begins with the SYN of the connection itself.
    pub own_syn: bool,
    /// A STUNT-SEEN answer lists what came to the silent port.
    pub watch: bool,
    /// [`Action::Reset`], [`Action::Icmp`] and [`Action::SynAck`].
    pub forge: bool,
}

/// "Do this to me, and tell me what happened" (attribute STUNT-PROBE, in requests of that method).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// What.
    pub action: Action,
    /// From which address: a place in [`Server::addresses`].
    pub address: u8,
    /// From which port of it.
    pub port: Port,
    /// At which port of the asker's own address. `None` is, from [`Port::Silent`], the one of the newest SYN that came
    /// there, if the server sees those; otherwise the one that the request came from.
    pub target: Option<u16>,
    /// How long to wait for an answer; in steps of 0.1 s.
    pub watch: Duration,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Connect.
    Connect,
    /// Answer the newest SYN that came from the target to the silent port with RST.
    Reset,
    /// Answer it with an ICMP error.
    Icmp {
        /// 3 unreachable, 11 time exceeded (RFC 792).
        kind: u8,
        /// Of that type.
        code: u8,
    },
    /// Answer it with SYN and ACK, as a peer would that listens there.
    SynAck,
    /// Nothing but to answer this request so much later, and to send nothing before: does the mapping live so long?
    Wait {
        /// Seconds.
        seconds: u16,
    },
}

/// A port of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// [`Server::port`].
    Main,
    /// [`Server::alternate`].
    Alternate,
    /// [`Server::silent`].
    Silent,
    /// One that the asker has never heard of.
    Any,
}

/// What came of a [`Probe`] (attribute STUNT-OUTCOME, in its answer).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What.
    pub event: Event,
    /// How long after the first packet, to the millisecond; of silence, how long it was watched.
    pub after: Duration,
}

/// What came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Nothing.
    Silence,
    /// The connection stood.
    Connected,
    /// A RST.
    Reset,
    /// An ICMP error.
    Icmp {
        /// RFC 792, RFC 4443.
        kind: u8,
        /// Of that type.
        code: u8,
    },
    /// The answer was sent; there is nothing to wait for.
    Sent,
}

/// A TCP segment of the asker's as it arrived (attribute STUNT-SEGMENT, in answers to STUNT-SEEN, newest first).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The low eight flags: [`SYN`], [`RST`], [`ACK`], ...
    pub flags: u8,
    /// Time to live, or hop limit, on arrival.
    pub ttl: u8,
    /// At which address: a place in [`Server::addresses`].
    pub address: u8,
    /// From which port.
    pub source: u16,
    /// At which port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Window, not scaled.
    pub window: u16,
    /// How long ago, to the millisecond; a minute and more counts as 65.535 s.
    pub age: Duration,
    /// Its options as they are; at most [`MAX_OPTIONS`].
    pub options: Vec<u8>,
}

impl Segment {
    /// The value of the first option of that `kind` (RFC 9293 3.1).
    #[must_use]
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut reader = Reader::new(&self.options);
        loop {
            match reader.u8().ok()? {
                0 => return None,
                1 => {}
                found => {
                    let len = usize::from(reader.u8().ok()?);
                    let value = reader.take(len.checked_sub(2)?).ok()?;
                    if found == kind {
                        return Some(value);
                    }
                }
            }
        }
    }

    /// The maximum segment size that it announces (RFC 9293 3.7.1).
    #[must_use]
    pub fn mss(&self) -> Option<u16> {
        const MSS: u8 = 2;
        self.option(MSS).and_then(|value| value.try_into().ok()).map(u16::from_be_bytes)
    }
}

pub(super) fn put_server(writer: &mut Writer, server: &Server) {
    const BITS: [u8; 5] = [1, 2, 4, 8, 16];
    let Capabilities { connect, silent, own_syn, watch, forge } = server.can;
    let set = [connect, silent, own_syn, watch, forge].into_iter().zip(BITS).filter(|(can, _)| *can);
    writer
        .u8(VERSION)
        .u8(set.map(|(_, bit)| bit).sum())
        .u16(server.port)
        .u16(server.alternate.unwrap_or(0))
        .u16(server.silent.unwrap_or(0));
    for addr in server.addresses.iter().take(MAX_ADDRESSES) {
        match addr.to_canonical() {
            IpAddr::V4(v4) => writer.u8(1).put(&v4.octets()),
            IpAddr::V6(v6) => writer.u8(2).put(&v6.octets()),
        };
    }
}

/// `None` for a version that this program does not know. Families that it does not know end the list.
pub(super) fn take_server(reader: &mut Reader<'_>) -> Result<Option<Server>, WireError> {
    if reader.u8()? != VERSION {
        return Ok(None);
    }
    let bits = reader.u8()?;
    let can = Capabilities {
        connect: bits & 1 != 0,
        silent: bits & 2 != 0,
        own_syn: bits & 4 != 0,
        watch: bits & 8 != 0,
        forge: bits & 16 != 0,
    };
    let [port, alternate, silent] = [reader.u16()?, reader.u16()?, reader.u16()?];
    let mut addresses = Vec::new();
    while !reader.is_empty() && addresses.len() < MAX_ADDRESSES {
        addresses.push(match reader.u8()? {
            1 => IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?)),
            2 => IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)).to_canonical(),
            _ => break,
        });
    }
    reader.rest();
    let some = |port: u16| (port != 0).then_some(port);
    Ok(Some(Server { can, port, alternate: some(alternate), silent: some(silent), addresses }))
}

pub(super) fn put_probe(writer: &mut Writer, probe: &Probe) {
    let (action, kind, code) = match probe.action {
        Action::Connect => (0, 0, 0),
        Action::Reset => (1, 0, 0),
        Action::Icmp { kind, code } => (2, kind, code),
        Action::SynAck => (3, 0, 0),
        Action::Wait { .. } => (4, 0, 0),
    };
    let target = match probe.action {
        Action::Wait { seconds } => seconds,
        _ => probe.target.unwrap_or(0),
    };
    let port = match probe.port {
        Port::Main => 0,
        Port::Alternate => 1,
        Port::Silent => 2,
        Port::Any => 3,
    };
    let steps = probe.watch.as_millis() / WATCH_STEP.as_millis();
    writer.u8(action).u8(probe.address).u8(port).u8(u8::try_from(steps).unwrap_or(u8::MAX));
    writer.u16(target).u8(kind).u8(code);
}

pub(super) fn take_probe(reader: &mut Reader<'_>) -> Result<Probe, WireError> {
    let [action, address, port, watch] = reader.array()?;
    let target = reader.u16()?;
    let [kind, code] = reader.array()?;
    let action = match action {
        0 => Action::Connect,
        1 => Action::Reset,
        2 => Action::Icmp { kind, code },
        3 => Action::SynAck,
        4 => Action::Wait { seconds: target },
        _ => return Err(WireError::Invalid),
    };
    Ok(Probe {
        action,
        address,
        port: match port {
            0 => Port::Main,
            1 => Port::Alternate,
            2 => Port::Silent,
            3 => Port::Any,
            _ => return Err(WireError::Invalid),
        },
        target: (target != 0 && !matches!(action, Action::Wait { .. })).then_some(target),
        watch: WATCH_STEP.saturating_mul(u32::from(watch)),
    })
}

pub(super) fn put_outcome(writer: &mut Writer, outcome: Outcome) {
    let (event, kind, code) = match outcome.event {
        Event::Silence => (0, 0, 0),
        Event::Connected => (1, 0, 0),
        Event::Reset => (2, 0, 0),
        Event::Icmp { kind, code } => (3, kind, code),
        Event::Sent => (4, 0, 0),
    };
    let millis = u32::try_from(outcome.after.as_millis()).unwrap_or(u32::MAX);
    writer.u8(event).u8(kind).u8(code).u8(0).u32(millis);
}

pub(super) fn take_outcome(reader: &mut Reader<'_>) -> Result<Outcome, WireError> {
    let [event, kind, code, _] = reader.array()?;
    let event = match event {
        0 => Event::Silence,
        1 => Event::Connected,
        2 => Event::Reset,
        3 => Event::Icmp { kind, code },
        4 => Event::Sent,
        _ => return Err(WireError::Invalid),
    };
    Ok(Outcome { event, after: Duration::from_millis(reader.u32()?.into()) })
}

pub(super) fn put_segment(writer: &mut Writer, segment: &Segment) {
    let options = segment.options.get(..MAX_OPTIONS).unwrap_or(&segment.options);
    writer
        .u8(segment.flags)
        .u8(segment.ttl)
        .u8(segment.address)
        .u8(0)
        .u16(segment.source)
        .u16(segment.destination)
        .u32(segment.sequence)
        .u32(segment.acknowledgment)
        .u16(segment.window)
        .u16(u16::try_from(segment.age.as_millis()).unwrap_or(u16::MAX))
        .put(options);
}

pub(super) fn take_segment(reader: &mut Reader<'_>) -> Result<Segment, WireError> {
    let [flags, ttl, address, _] = reader.array()?;
    let segment = Segment {
        flags,
        ttl,
        address,
        source: reader.u16()?,
        destination: reader.u16()?,
        sequence: reader.u32()?,
        acknowledgment: reader.u32()?,
        window: reader.u16()?,
        age: Duration::from_millis(reader.u16()?.into()),
        options: reader.rest().to_vec(),
    };
    if segment.options.len() > MAX_OPTIONS { Err(WireError::TooLong) } else { Ok(segment) }
}

#[cfg(test)]
pub(super) mod arbitrary {
    //! Any value there can be, for round trips.

    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    pub(crate) fn server() -> impl Strategy<Value = Server> {
        let can = any::<[bool; 5]>().prop_map(|[connect, silent, own_syn, watch, forge]| Capabilities {
            connect,
            silent,
            own_syn,
            watch,
            forge,
        });
        let port = || proptest::option::of(1..=u16::MAX);
        let addr = any::<IpAddr>().prop_map(|ip| ip.to_canonical());
        (can, any::<u16>(), port(), port(), vec(addr, 0..=MAX_ADDRESSES)).prop_map(
            |(can, port, alternate, silent, addresses)| Server { can, port, alternate, silent, addresses },
        )
    }

    pub(crate) fn probe() -> impl Strategy<Value = Probe> {
        let action = prop_oneof![
            Just(Action::Connect),
            Just(Action::Reset),
            any::<(u8, u8)>().prop_map(|(kind, code)| Action::Icmp { kind, code }),
            Just(Action::SynAck),
            any::<u16>().prop_map(|seconds| Action::Wait { seconds })
        ];
        let port = prop_oneof![Just(Port::Main), Just(Port::Alternate), Just(Port::Silent), Just(Port::Any)];
        (action, any::<u8>(), port, proptest::option::of(1..=u16::MAX), any::<u8>()).prop_map(
            |(action, address, port, target, steps)| Probe {
                action,
                address,
                port,
                target: target.filter(|_| !matches!(action, Action::Wait { .. })),
                watch: WATCH_STEP * u32::from(steps),
            },
        )
    }

    pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
        let event = prop_oneof![
            Just(Event::Silence),
            Just(Event::Connected),
            Just(Event::Reset),
            any::<(u8, u8)>().prop_map(|(kind, code)| Event::Icmp { kind, code }),
            Just(Event::Sent)
        ];
        (event, any::<u32>())
            .prop_map(|(event, millis)| Outcome { event, after: Duration::from_millis(millis.into()) })
    }

    pub(crate) fn segment() -> impl Strategy<Value = Segment> {
        let numbers = any::<(u8, u8, u8, u16, u16, u32, u32, u16, u16)>();
        (numbers, vec(any::<u8>(), 0..=MAX_OPTIONS)).prop_map(
            |((flags, ttl, address, source, destination, sequence, acknowledgment, window, age), options)| {
                let age = Duration::from_millis(age.into());
                Segment {
                    flags,
                    ttl,
                    address,
                    source,
                    destination,
                    sequence,
                    acknowledgment,
                    window,
                    age,
                    options,
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_a_segment_are_found_and_nonsense_ends_the_search() {
        let syn = |options: &[u8]| Segment { options: options.to_vec(), ..Segment::default() };
        let linux = syn(&[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7]);
        assert_eq!(
            (linux.mss(), linux.option(4), linux.option(3)),
            (Some(1460), Some(&[][..]), Some(&[7][..]))
        );
        assert_eq!((linux.option(8).map(<[u8]>::len), linux.option(5)), (Some(8), None));
        for (text, options) in [
            ("none", &[][..]),
            ("the end comes first", &[0, 2, 4, 5, 180]),
            ("a length below the header's", &[8, 1, 2, 4, 5, 180]),
            ("cut", &[1, 2, 4, 5]),
            ("an MSS of three bytes", &[2, 5, 1, 2, 3]),
        ] {
            assert_eq!(syn(options).mss(), None, "{text}");
        }
    }

    #[test]
    fn what_a_newer_server_says_is_passed_over() {
        assert_eq!(take_server(&mut Reader::new(&[2, 1, 2, 3])), Ok(None));
        let newer = [1, 0xff, 0, 1, 0, 0, 0, 3, 1, 192, 0, 2, 1, 9, 1, 2, 3];
        let server = take_server(&mut Reader::new(&newer)).unwrap().unwrap();
        assert_eq!(server.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((server.port, server.alternate, server.silent), (1, None, Some(3)));
        assert_eq!(take_probe(&mut Reader::new(&[5, 0, 0, 0, 0, 0, 0, 0])), Err(WireError::Invalid));
        assert_eq!(take_probe(&mut Reader::new(&[0, 0, 4, 0, 0, 0, 0, 0])), Err(WireError::Invalid));
        assert_eq!(take_outcome(&mut Reader::new(&[5, 0, 0, 0, 0, 0, 0, 0])), Err(WireError::Invalid));
    }
}
