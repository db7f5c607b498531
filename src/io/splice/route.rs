//! The kernel's view of where packets go: which device faces the members, and the next router towards each of them.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use rtnetlink::packet_core::NLM_F_DUMP;
use rtnetlink::packet_core::NLM_F_REQUEST;
use rtnetlink::packet_core::NetlinkHeader;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteAddress;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::sys::Socket;

/// `NETLINK_ROUTE` (rtnetlink(7)).
const ROUTE: isize = 0;
/// Addresses that every default route covers and nobody has (RFC 5737, RFC 3849).
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
];

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u16,
    pub(super) addresses: Vec<IpAddr>,
}

/// How packets to somewhere leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    /// The device's index.
    pub(super) device: u32,
    /// The router, or the destination itself.
    pub(super) hop: IpAddr,
    /// What a socket of no particular address sends from.
    pub(super) from: Option<IpAddr>,
}

/// The conversation with rtnetlink.
#[derive(Debug)]
pub(super) struct Routes {
    socket: Socket,
}

impl Routes {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(ROUTE)?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// The device that holds one of `listen`, or, if those name none, the one that leads to the world.
    pub(super) fn device(&self, listen: &[IpAddr]) -> io::Result<Device> {
        let addresses = self.addresses()?;
        let held = addresses.iter().find(|(ip, _)| listen.contains(ip)).map(|(_, index)| *index);
        let outward = || ANYWHERE.into_iter().find_map(|ip| self.way(ip).ok()).map(|way| way.device);
        let only = || addresses.iter().find(|(ip, _)| is_of_use(*ip)).map(|(_, index)| *index);
        let index = held.or_else(outward).or_else(only);
        let index = index.ok_or_else(|| io::Error::other("no network device leads to the members"))?;
        let (name, mtu) = self.link(index)?;
        let addresses =
            addresses.into_iter().filter(|(ip, at)| *at == index && is_of_use(*ip)).map(|(ip, _)| ip);
        Ok(Device { index, name, mtu, addresses: addresses.collect() })
    }

    /// All addresses of this machine.
    pub(super) fn here(&self) -> io::Result<Vec<IpAddr>> {
        Ok(self.addresses()?.into_iter().map(|(ip, _)| ip).collect())
    }

    /// How packets to `ip` leave.
    pub(super) fn way(&self, ip: IpAddr) -> io::Result<Way> {
        let mut question = RouteMessage::default();
        let (family, length, address) = match ip {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        question.header.address_family = family;
        question.header.destination_prefix_length = length;
        question.attributes.push(RouteAttribute::Destination(address));
        for answer in self.ask(RouteNetlinkMessage::GetRoute(question), NLM_F_REQUEST)? {
            let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
            let (mut device, mut hop, mut from) = (None, ip, None);
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => device = Some(index),
                    RouteAttribute::Gateway(RouteAddress::Inet(v4)) => hop = v4.into(),
                    RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => hop = v6.into(),
                    RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => from = Some(v4.into()),
                    RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => from = Some(v6.into()),
                    _ => {}
                }
            }
            if let Some(device) = device {
                return Ok(Way { device, hop, from });
            }
        }
        Err(io::Error::other("no route to the member"))
    }

    fn addresses(&self) -> io::Result<Vec<(IpAddr, u32)>> {
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut found = Vec::new();
        for answer in self.ask(all, NLM_F_REQUEST | NLM_F_DUMP)? {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            // On links with a far end, `Address` is that and `Local` is ours.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            found.extend(local.or(address).map(|ip| (ip, message.header.index)));
        }
        Ok(found)
    }

    fn link(&self, index: u32) -> io::Result<(String, u16)> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        for answer in self.ask(RouteNetlinkMessage::GetLink(question), NLM_F_REQUEST)? {
            let RouteNetlinkMessage::NewLink(link) = answer else { continue };
            let (mut name, mut mtu) = (None, u16::MAX);
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name = Some(text),
                    LinkAttribute::Mtu(bytes) => mtu = u16::try_from(bytes).unwrap_or(u16::MAX),
                    _ => {}
                }
            }
            if let Some(name) = name {
                return Ok((name, mtu));
            }
        }
        Err(io::Error::other("the network device is gone"))
    }

    fn ask(&self, question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::other(e.to_string()))?;
                let len = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                let last = answer.header.flags & NLM_F_MULTI == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => return Ok(answers),
                }
                if last {
                    return Ok(answers);
                }
                rest = rest.get(len..).unwrap_or_default();
            }
        }
    }
}

/// More messages follow (netlink(7)).
const NLM_F_MULTI: u16 = 2;

/// Whether members may dial this address.
fn is_of_use(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}
