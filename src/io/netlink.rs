//! The kernel's tables of links, addresses and routes, by rtnetlink.
//!
//! What is configured here hangs on the TUN device and vanishes with it, so there is nothing to undo: only a device that
//! somebody made persistent survives its process, and for that there is [`Netlink::remove_link`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use ipnetwork::Ipv4Network;
use ipnetwork::Ipv6Network;
use rtnetlink::Handle;
use rtnetlink::IpVersion;
use rtnetlink::LinkUnspec;
use rtnetlink::MulticastGroup;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::AfSpecInet6;
use rtnetlink::packet_route::link::AfSpecUnspec;
use rtnetlink::packet_route::link::In6AddrGenMode;
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::link::LinkInfo;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteAddress;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::sys::SocketAddr;
use tokio::task::JoinHandle;

/// What went wrong with the kernel's tables. Each text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel gives no netlink socket.
    #[error(
        "cannot open a netlink socket: {0}; a systemd unit needs AF_NETLINK in RestrictAddressFamilies, a seccomp \
         profile must allow it"
    )]
    Open(#[source] io::Error),
    /// The overlay's prefix is taken.
    #[error("{0}")]
    Collision(Collision),
    /// There is no such device.
    #[error("there is no network interface named {0}")]
    NoDevice(String),
    /// The process may not do this.
    #[error("not permitted to {doing}: run as root (sudo), or give the process CAP_NET_ADMIN")]
    NotPermitted {
        /// The step.
        doing: String,
    },
    /// The device is none of ours.
    #[error("{0} is no TUN device: it is left alone")]
    NotATun(String),
    /// The kernel refuses a step for another reason.
    #[error("the kernel refuses to {doing}: {source}")]
    Refused {
        /// The step.
        doing: String,
        /// Its reason.
        source: io::Error,
    },
}

/// An existing route that overlaps the overlay's prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Collision {
    /// The overlay's prefix.
    pub prefix: IpNetwork,
    /// The route that is there already.
    pub route: IpNetwork,
    /// Its device; empty when the kernel does not name one.
    pub dev: String,
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the overlay's prefix {} overlaps the existing route {}", self.prefix, self.route)?;
        if !self.dev.is_empty() {
            write!(f, " on {}", self.dev)?;
        }
        f.write_str(": remove that route (`ip route` shows it), or give the network another prefix")
    }
}

/// What a device got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Configured {
    /// False where IPv6 is switched off on this machine: the device then has its IPv4 address only.
    pub ipv6: bool,
}

/// A conversation with the kernel about links, addresses and routes. Needs a tokio runtime.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens the conversation; call inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Gives `device` its two addresses (each with the length of the overlay's prefix, so that the kernel makes the
    /// routes), its MTU, and brings it up. Addresses that it had before and that are not these are taken off.
    ///
    /// # Errors
    /// When the kernel refuses a step; the error names it.
    pub async fn configure(
        &self,
        device: &str,
        v4: Ipv4Network,
        v6: Ipv6Network,
        mtu: u32,
    ) -> Result<Configured, NetlinkError> {
        let index = self.index(device).await?.ok_or_else(|| NetlinkError::NoDevice(device.to_owned()))?;
        let links = self.handle.link();
        let resize = LinkUnspec::new_with_index(index).mtu(mtu).build();
        links.set(resize).execute().await.map_err(refused(|| format!("set the MTU of {device} to {mtu}")))?;
        // No link-local address, so no router solicitations into the tunnel. Kernels without IPv6 refuse; no matter.
        let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let quiet = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![quiet]))
            .build();
        let _ = links.set(quiet).execute().await;

        self.take_off_others(device, index, [v4.into(), v6.into()]).await?;
        self.put_on(device, index, v4.into()).await?;
        let ipv6 = match self.put_on(device, index, v6.into()).await {
            Ok(()) => true,
            Err(NetlinkError::Refused { source, .. }) if is_without_ipv6(&source) => false,
            Err(e) => return Err(e),
        };
        let up = LinkUnspec::new_with_index(index).up().build();
        links.set(up).execute().await.map_err(refused(|| format!("bring {device} up")))?;
        Ok(Configured { ipv6 })
    }

    async fn put_on(&self, device: &str, index: u32, addr: IpNetwork) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(index, addr.ip(), addr.prefix()).replace();
        // Nobody else can have it (the certificate says so), so there is nothing to detect and nothing to wait for.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await.map_err(refused(|| format!("give {device} the address {addr}")))
    }

    async fn take_off_others(
        &self,
        device: &str,
        index: u32,
        keep: [IpNetwork; 2],
    ) -> Result<(), NetlinkError> {
        let listed = self.handle.address().get().set_link_index_filter(index).execute();
        let listed: Vec<AddressMessage> =
            listed.try_collect().await.map_err(refused(|| format!("list the addresses of {device}")))?;
        for message in listed {
            let Some(ip) = address_of(&message) else { continue };
            if keep.iter().any(|kept| kept.ip() == ip && kept.prefix() == message.header.prefix_len) {
                continue;
            }
            let gone = self.handle.address().del(message).execute().await;
            gone.map_err(refused(|| format!("take the address {ip} off {device}")))?;
        }
        Ok(())
    }

    /// Whether no route (but default ones and those of `except`) overlaps the overlay's prefixes.
    ///
    /// # Errors
    /// [`NetlinkError::Collision`] names the first route that does.
    pub async fn check_prefix_free(
        &self,
        v4: Ipv4Network,
        v6: Ipv6Network,
        except: Option<&str>,
    ) -> Result<(), NetlinkError> {
        let routes = self.routes().await?;
        match [v4.into(), v6.into()].into_iter().find_map(|prefix| collision(prefix, &routes, except)) {
            Some(collision) => Err(NetlinkError::Collision(collision)),
            None => Ok(()),
        }
    }

    async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let links = self.links().await?;
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let query = match version {
                IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            let listed: Result<Vec<RouteMessage>, _> =
                self.handle.route().get(query).execute().try_collect().await;
            let listed = listed.map_err(refused(|| "list the routes".to_owned()))?;
            routes.extend(listed.iter().filter_map(|message| Route::from_kernel(message, &links)));
        }
        Ok(routes)
    }

    /// The IPv4 gateway of the default route that the kernel prefers; `None` without one.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn default_gateway(&self) -> Result<Option<Ipv4Addr>, NetlinkError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let listed: Result<Vec<RouteMessage>, _> =
            self.handle.route().get(query).execute().try_collect().await;
        let listed = listed.map_err(refused(|| "list the routes".to_owned()))?;
        Ok(listed.iter().filter_map(default_route).min().map(|(_, gateway)| gateway))
    }

    /// Addresses of the interfaces that are up, without loopback, link-local and multicast ones, those that the kernel
    /// is still checking or no longer likes, and those of `except`.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn local_addresses(&self, except: Option<&str>) -> Result<Vec<IpAddr>, NetlinkError> {
        let links = self.links().await?;
        let listed = self.handle.address().get().execute();
        let listed: Vec<AddressMessage> =
            listed.try_collect().await.map_err(refused(|| "list the addresses".to_owned()))?;
        let unfit =
            AddressHeaderFlags::Tentative | AddressHeaderFlags::Deprecated | AddressHeaderFlags::Dadfailed;
        let fit = listed.iter().filter(|message| {
            let link = links.get(&message.header.index);
            link.is_some_and(|link| link.is_up && !link.is_loopback && Some(link.name.as_str()) != except)
                && !message.header.flags.intersects(unfit)
        });
        let mut addresses: Vec<IpAddr> = fit.filter_map(address_of).filter(is_useful).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// Removes a TUN device that has outlived its process; answers whether there was one.
    ///
    /// # Errors
    /// [`NetlinkError::NotATun`] for any other interface, or when the kernel refuses.
    pub async fn remove_link(&self, name: &str) -> Result<bool, NetlinkError> {
        let links = self.links().await?;
        let Some((index, link)) = links.iter().find(|(_, link)| link.name == name) else { return Ok(false) };
        if !link.is_tun {
            return Err(NetlinkError::NotATun(name.to_owned()));
        }
        let gone = self.handle.link().del(*index).execute().await;
        gone.map_err(refused(|| format!("remove {name}")))?;
        Ok(true)
    }

    async fn index(&self, device: &str) -> Result<Option<u32>, NetlinkError> {
        let links = self.links().await?;
        Ok(links.into_iter().find(|(_, link)| link.name == device).map(|(index, _)| index))
    }

    async fn links(&self) -> Result<BTreeMap<u32, Link>, NetlinkError> {
        let listed: Result<Vec<LinkMessage>, _> = self.handle.link().get().execute().try_collect().await;
        let listed = listed.map_err(refused(|| "list the network interfaces".to_owned()))?;
        Ok(listed.iter().map(|message| (message.header.index, Link::from_kernel(message))).collect())
    }

    /// Begins to watch for changes of links, addresses and routes; call inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn watch() -> Result<Changes, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        Ok(Changes { messages: messages.boxed(), task: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Tells when links, addresses or routes change.
pub struct Changes {
    messages: futures_util::stream::BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    task: JoinHandle<()>,
}

impl Changes {
    /// Waits for the next change. Several changes in a row may be told as one; the caller waits for calm. `None` when
    /// the watch has ended.
    pub async fn next(&mut self) -> Option<()> {
        self.messages.next().await?;
        // Nobody asks what has changed, so what waits already is the same news.
        while let Some(Some(_)) = self.messages.next().now_or_never() {}
        Some(())
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changes")
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What we need to know about an interface.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Link {
    name: String,
    is_up: bool,
    is_loopback: bool,
    is_tun: bool,
}

impl Link {
    fn from_kernel(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            is_up: flags.contains(LinkFlags::Up),
            is_loopback: flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_tun = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun)));
                }
                _ => {}
            }
        }
        link
    }
}

/// The routing table that everything uses unless told otherwise (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

/// What we need to know about a route.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Route {
    to: IpNetwork,
    dev: String,
}

impl Route {
    /// `None` for what leads nowhere: multicast and broadcast, and routes that say that nobody is there.
    fn from_kernel(message: &RouteMessage, links: &BTreeMap<u32, Link>) -> Option<Self> {
        if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
            return None;
        }
        let mut to = None;
        let mut dev = "";
        let mut name = |index| dev = links.get(index).map_or("", |link| link.name.as_str());
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(v4)) => to = Some(IpAddr::V4(*v4)),
                RouteAttribute::Destination(RouteAddress::Inet6(v6)) => to = Some(IpAddr::V6(*v6)),
                RouteAttribute::Oif(index) => name(index),
                RouteAttribute::MultiPath(hops) => {
                    hops.iter().take(1).for_each(|hop| name(&hop.interface_index));
                }
                _ => {}
            }
        }
        // Without a destination it is a default route.
        let to = IpNetwork::new(to?, message.header.destination_prefix_length).ok()?;
        Some(Self { to, dev: dev.to_owned() })
    }
}

/// Metric and gateway of a default route of the main table.
fn default_route(message: &RouteMessage) -> Option<(u32, Ipv4Addr)> {
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut metric, mut gateway, mut table) = (0, None, u32::from(header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => gateway = Some(*v4),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    (table == MAIN_TABLE).then_some((metric, gateway?))
}

/// The first route that overlaps `prefix` and is neither a default route nor one of the device `except`.
fn collision(prefix: IpNetwork, routes: &[Route], except: Option<&str>) -> Option<Collision> {
    let route = routes.iter().find(|route| {
        // 0.0.0.0/1 and 128.0.0.0/1 together are how VPN clients spell a default route.
        let is_default = route.to.prefix() <= 1;
        !is_default && Some(route.dev.as_str()) != except && overlap(prefix, route.to)
    })?;
    Some(Collision { prefix, route: route.to, dev: route.dev.clone() })
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    match (a, b) {
        (IpNetwork::V4(a), IpNetwork::V4(b)) => a.overlaps(b),
        (IpNetwork::V6(a), IpNetwork::V6(b)) => a.overlaps(b),
        (IpNetwork::V4(_), IpNetwork::V6(_)) | (IpNetwork::V6(_), IpNetwork::V4(_)) => false,
    }
}

/// The address itself: on a point-to-point link `Local`, while `Address` is the far end.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    local.or(address)
}

fn is_useful(ip: &IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local)
}

/// Whether the kernel refused an IPv6 address because it has no IPv6: switched off for the device (EACCES), at boot, or
/// left out of the kernel.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
}

/// Names the step that failed.
fn refused(doing: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |error| {
        let source = match &error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            _ => io::Error::other(error.to_string()),
        };
        match source.raw_os_error() {
            Some(libc::EPERM) => NetlinkError::NotPermitted { doing: doing() },
            _ => NetlinkError::Refused { doing: doing(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_collides_with_what_overlaps_it_and_nothing_else() {
        let cases = [
            // (name, overlay, route, device, collides)
            ("the same", "10.77.0.0/16", "10.77.0.0/16", "eth0", true),
            ("inside", "10.77.0.0/16", "10.77.3.0/24", "eth0", true),
            ("one host inside", "10.77.0.0/16", "10.77.255.255/32", "lo", true),
            ("around", "10.77.0.0/16", "10.0.0.0/8", "corp", true),
            ("next to it", "10.77.0.0/16", "10.78.0.0/16", "eth0", false),
            ("before it", "10.77.0.0/16", "10.76.255.0/24", "eth0", false),
            ("half of everything", "10.77.0.0/16", "0.0.0.0/1", "vpn", false),
            ("our own device", "10.77.0.0/16", "10.77.0.0/16", "ntcp0", false),
            ("the other family", "10.77.0.0/16", "fd00::/8", "eth0", false),
            ("v6 inside", "fd12:3456::/64", "fd12:3456::1/128", "eth0", true),
            ("v6 around", "fd12:3456::/64", "fd12::/16", "eth0", true),
            ("v6 elsewhere", "fd12:3456::/64", "fd12:3457::/64", "eth0", false),
        ];
        for (name, prefix, to, dev, collides) in cases {
            let (prefix, to): (IpNetwork, IpNetwork) = (prefix.parse().unwrap(), to.parse().unwrap());
            let routes = [Route { to, dev: dev.to_owned() }];
            let expected = collides.then(|| Collision { prefix, route: to, dev: dev.to_owned() });
            assert_eq!(collision(prefix, &routes, Some("ntcp0")), expected, "{name}");
        }
    }

    #[test]
    fn the_refusal_names_the_route_and_its_device_and_the_way_out() {
        let collision = Collision {
            prefix: "10.77.0.0/16".parse().unwrap(),
            route: "10.77.3.0/24".parse().unwrap(),
            dev: "eth1".to_owned(),
        };
        assert_eq!(
            NetlinkError::Collision(collision).to_string(),
            "the overlay's prefix 10.77.0.0/16 overlaps the existing route 10.77.3.0/24 on eth1: remove that route \
             (`ip route` shows it), or give the network another prefix"
        );
    }

    #[test]
    fn only_addresses_that_others_could_reach_are_useful() {
        for (ip, useful) in [
            ("192.168.1.2", true),
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(is_useful(&ip.parse().unwrap()), useful, "{ip}");
        }
    }

    #[tokio::test]
    async fn anybody_may_look_and_what_is_missing_is_said_by_name() {
        let netlink = Netlink::open().unwrap();
        let all = netlink.local_addresses(None).await.unwrap();
        assert!(all.iter().all(is_useful), "{all:?}");
        let v6 = "fd12::/64".parse().unwrap();
        let error = netlink.configure("nosuchdevice", "10.77.0.1/16".parse().unwrap(), v6, 1280).await;
        assert_eq!(error.unwrap_err().to_string(), "there is no network interface named nosuchdevice");
        assert!(!netlink.remove_link("nosuchdevice").await.unwrap());
        assert!(matches!(netlink.remove_link("lo").await, Err(NetlinkError::NotATun(name)) if name == "lo"));
        // Every machine has 127.0.0.0/8 as a local route.
        let taken = netlink.check_prefix_free("127.77.0.0/16".parse().unwrap(), v6, None).await;
        let Err(NetlinkError::Collision(collision)) = taken else { panic!("{taken:?}") };
        assert_eq!(collision.dev, "lo");
    }
}
