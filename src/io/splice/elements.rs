//! The maps' elements, put in and taken out by nfnetlink: one batch a session, all or nothing.
//!
//! ```text
//! batch begin | for each element: nlmsghdr, nfgenmsg, table, map, [key, value] | batch end
//! ```
//!
//! Directly, and not through the `nft` tool, because a session is set up while two members wait, and starting a program
//! takes longer than all the rest.

use std::io;
use std::net::IpAddr;

use rtnetlink::sys::Socket;

use super::Carried;
use super::rules::TABLE;

/// `NETLINK_NETFILTER` (netlink(7)).
const NETFILTER: isize = 12;
/// Message kinds: `linux/netfilter/nfnetlink.h`, `nf_tables.h`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NFPROTO_NETDEV`.
const NETDEV: u8 = 5;
/// Flags: netlink(7).
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
/// Attributes: `nf_tables.h`.
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3 | NESTED;
const ELEMENT: u16 = 1 | NESTED;
const KEY: u16 = 1 | NESTED;
const DATA: u16 = 2 | NESTED;
const VALUE: u16 = 1;
const EXPRESSION: u16 = 7;
const EXPRESSION_DATA: u16 = 2;
const COUNTED_BYTES: u16 = 1;
const COUNTED_PACKETS: u16 = 2;
const NESTED: u16 = 0x8000;
/// Bytes of a piece of an answer at most: what the kernel fills at a time.
const ANSWER: usize = 64 << 10;
/// Bytes of a netlink header; an error's number stands behind it.
const HEADER: usize = 16;

/// One element: the map's name, the key and the value, as the kernel has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Element {
    pub(super) map: &'static str,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// The conversation with nf_tables.
#[derive(Debug)]
pub(super) struct Elements {
    socket: Socket,
}

impl Elements {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETFILTER)?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// Puts all of them in, or none.
    pub(super) fn add(&self, elements: &[Element]) -> io::Result<()> {
        self.change(NEW_ELEMENT, CREATE, elements)
    }

    /// Takes all of them out, or none.
    pub(super) fn remove(&self, elements: &[Element]) -> io::Result<()> {
        self.change(DELETE_ELEMENT, 0, elements)
    }

    fn change(&self, kind: u16, flags: u16, elements: &[Element]) -> io::Result<()> {
        self.socket.send(&batch(kind, flags, elements), 0)?;
        // The kernel has worked it off and answered before send(2) returns.
        let mut acknowledged = false;
        let mut buffer = Vec::with_capacity(8192);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => acknowledged |= read_answers(&buffer)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if acknowledged { Ok(()) } else { Err(io::Error::other("no answer")) }
    }
}

impl Elements {
    /// What the elements of a map have counted: all, or the one with this key.
    pub(super) fn count(&self, map: &str, key: Option<&[u8]>) -> io::Result<Carried> {
        let mut body =
            [attribute(LIST_TABLE, &zero_ended(TABLE)), attribute(LIST_SET, &zero_ended(map))].concat();
        if let Some(key) = key {
            body.extend(attribute(
                LIST_ELEMENTS,
                &attribute(ELEMENT, &attribute(KEY, &attribute(VALUE, key))),
            ));
        }
        let flags = REQUEST | if key.is_some() { 0 } else { DUMP };
        self.socket.send(&message(GET_ELEMENT, flags, NETDEV, 0, &body), 0)?;
        let (mut sum, mut buffer) = (Carried::default(), Vec::with_capacity(ANSWER));
        loop {
            buffer.clear();
            // The answer to one question is there when send(2) returns, and a piece of a long one whenever asked for.
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) if read_counts(&buffer, &mut sum)? => return Ok(sum),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(sum),
                Err(e) => return Err(e),
            }
        }
    }
}

/// Adds up the counters in a piece of an answer; whether it was the last piece.
fn read_counts(mut bytes: &[u8], sum: &mut Carried) -> io::Result<bool> {
    while let Some((kind, body, rest)) = next_message(bytes) {
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let errno = body.first_chunk::<4>().map_or(0, |errno| i32::from_ne_bytes(*errno));
                return if errno == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-errno)) };
            }
            NEW_ELEMENT => {
                // Behind the `nfgenmsg`: table, map, elements; in each the counter's name and its data.
                let elements = attributes(body.get(4..).unwrap_or_default()).filter(|(kind, _)| *kind == 3);
                for (_, element) in elements.flat_map(|(_, list)| attributes(list)) {
                    let counters = attributes(element).filter(|(kind, _)| *kind == EXPRESSION);
                    let data = counters.flat_map(|(_, counter)| attributes(counter));
                    for (kind, value) in data
                        .filter(|(kind, _)| *kind == EXPRESSION_DATA)
                        .flat_map(|(_, data)| attributes(data))
                    {
                        let count = value.first_chunk::<8>().map_or(0, |count| u64::from_be_bytes(*count));
                        match kind {
                            COUNTED_BYTES => sum.bytes += count,
                            COUNTED_PACKETS => sum.packets += count,
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
        bytes = rest;
    }
    Ok(false)
}

/// The first message of an answer, without its header, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let [l0, l1, l2, l3, k0, k1, ..] = *bytes.first_chunk::<HEADER>()?;
    let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?.max(HEADER);
    let body = bytes.get(HEADER..len.min(bytes.len()))?;
    Some((u16::from_ne_bytes([k0, k1]), body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// Attributes that lie one behind the other: kind without its flags, and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
}

/// Whether there is an acknowledgement in `bytes`.
fn read_answers(mut bytes: &[u8]) -> io::Result<bool> {
    let mut acknowledged = false;
    while let Some((kind, body, rest)) = next_message(bytes) {
        if kind == ERROR
            && let Some(errno) = body.first_chunk::<4>()
        {
            match i32::from_ne_bytes(*errno) {
                0 => acknowledged = true,
                errno => return Err(io::Error::from_raw_os_error(-errno)),
            }
        }
        bytes = rest;
    }
    Ok(acknowledged)
}

fn batch(kind: u16, flags: u16, elements: &[Element]) -> Vec<u8> {
    let mut bytes = message(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[]);
    for (at, element) in elements.iter().enumerate() {
        let ack = if at + 1 == elements.len() { ACK } else { 0 };
        let key = attribute(KEY, &attribute(VALUE, &element.key));
        let data = attribute(DATA, &attribute(VALUE, &element.value));
        // For deletion the key says it all.
        let both = if kind == NEW_ELEMENT { [key, data].concat() } else { key };
        let body = [
            attribute(LIST_TABLE, &zero_ended(TABLE)),
            attribute(LIST_SET, &zero_ended(element.map)),
            attribute(LIST_ELEMENTS, &attribute(ELEMENT, &both)),
        ];
        bytes.extend(message(kind, REQUEST | flags | ack, NETDEV, 0, &body.concat()));
    }
    bytes.extend(message(BATCH_END, REQUEST, 0, SUBSYSTEM, &[]));
    bytes
}

/// `nlmsghdr`, `nfgenmsg`, body.
fn message(kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + 4 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + 4 + body.len());
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]); // number, port: neither is needed
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// `nlattr`, padded to 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(usize::from(len).next_multiple_of(4));
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn zero_ended(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// An address as a map has it.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Address and two ports joined into one key: each part begins at a multiple of 4 bytes.
pub(super) fn flow(ip: IpAddr, from: u16, to: u16) -> Vec<u8> {
    let mut key = octets(ip);
    for port in [from, to] {
        key.extend(port.to_be_bytes());
        key.extend([0; 2]);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_address_and_ports_has_these_bytes() {
        let key = flow("192.0.2.1".parse().unwrap(), 0x1234, 20_000);
        assert_eq!(key, [192, 0, 2, 1, 0x12, 0x34, 0, 0, 0x4e, 0x20, 0, 0]);
        assert_eq!(flow("2001:db8::1".parse().unwrap(), 1, 2).len(), 24);
    }

    #[test]
    fn only_the_last_message_of_a_batch_asks_for_an_answer() {
        let element = Element { map: "sp", key: vec![1, 0, 0, 0], value: vec![0x4e, 0x20] };
        let bytes = batch(NEW_ELEMENT, CREATE, &[element.clone(), element]);
        let (mut rest, mut flags) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let len = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            flags.push(u16::from_ne_bytes(rest[6..8].try_into().unwrap()));
            rest = &rest[len..];
        }
        assert_eq!(flags, [REQUEST, REQUEST | CREATE, REQUEST | CREATE | ACK, REQUEST]);
    }

    #[test]
    fn an_answer_is_an_acknowledgement_or_an_error() {
        let answer = |errno: i32| {
            let mut bytes = message(ERROR, 0, 0, 0, &[0; 16]);
            bytes[HEADER..HEADER + 4].copy_from_slice(&errno.to_ne_bytes());
            bytes
        };
        assert!(read_answers(&answer(0)).unwrap());
        assert!(!read_answers(&[]).unwrap());
        let both = [answer(0), answer(-libc::EEXIST)].concat();
        assert_eq!(read_answers(&both).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        for cut in 0..both.len() {
            let _ = read_answers(&both[..cut]);
        }
    }
}
