//! A site's router: what hangs below it, what it does to packets, and what of that changes while it runs.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use anyhow::Result;
use anyhow::bail;

use super::Counter;
use super::Egress;
use super::Host;
use super::Site;
use super::Uplink;
use super::forwarding;
use super::settle;
use super::site::Lan;
use crate::lab::Lab;
use crate::nat;
use crate::nat::Machinery;
use crate::nat::Rules;
use crate::nat::V6;
use crate::ns::Namespace;
use crate::wire;
use crate::wire::Link;
use crate::wire::Wire;

/// A site's router.
#[derive(Debug)]
pub struct Router<'lab> {
    lab: &'lab Lab,
    ns: Namespace,
    site: Site,
    lan: Lan,
    wan: Ipv4Addr,
    uplink: Uplink,
    machinery: Machinery,
    inside: Counter,
}

impl<'lab> Router<'lab> {
    pub(super) fn set_up(
        lab: &'lab Lab,
        ns: Namespace,
        site: Site,
        lan: Lan,
        wan: Ipv4Addr,
        uplink: Uplink,
    ) -> Result<Self> {
        forwarding(&ns)?;
        // With an address of its own: a bridge without one takes the lowest of its ports', and with each new port
        // perhaps another, so that neighbours would go on writing to the old one.
        let mut inner = "link add lan address 02:00:00:00:00:01 type bridge\nlink set lan up\n".to_owned();
        if site.v4 {
            inner += &format!("addr add {}/24 dev lan\n", lan.v4(1));
        }
        if site.rules.v6 != V6::None {
            inner += &format!("addr add {}/64 dev lan nodad\n", lan.v6(1));
        }
        ns.ip(&inner)?;
        let mut machinery = Machinery::new(&ns, wan);
        machinery.enforce(&site.rules)?;
        let inside = Counter::default();
        inside.next()?; // .1 is the router
        Ok(Self { lab, ns, site, lan, wan, uplink, machinery, inside })
    }

    /// The router's namespace.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// Its outer IPv4 address.
    pub fn wan(&self) -> Ipv4Addr {
        self.wan
    }

    /// Its inner IPv4 address, the gateway of the hosts inside.
    pub fn inner(&self) -> Ipv4Addr {
        self.lan.v4(1)
    }

    /// The wire of its uplink, if that is one.
    pub fn wire(&self) -> Option<&Wire> {
        self.uplink.wire.as_ref()
    }

    /// Sets the MTU of its uplink, at both ends.
    pub fn set_uplink_mtu(&self, mtu: u16) -> Result<()> {
        let (above, port) = &self.uplink.above;
        above.ip(&format!("link set {port} mtu {mtu}\n"))?;
        self.ns.ip(&format!("link set wan mtu {mtu}\n"))
    }

    /// A host inside, on a plain link.
    pub fn host(&self, name: &str) -> Result<Host> {
        let ns = self.lab.machine(name)?;
        let (n, uplink) = self.plug(&ns, "eth0", &Link::Plain)?;
        let v4 = if self.site.v4 { self.lan.v4(n) } else { Ipv4Addr::UNSPECIFIED };
        let v6 = (self.site.rules.v6 != V6::None).then(|| self.lan.v6(n));
        Ok(Host { ns, v4, v6, wire: uplink.wire.clone(), uplink })
    }

    /// A site below this one, which thereby becomes its carrier. IPv4 only.
    pub fn site(&self, name: &str, site: Site, link: &Link) -> Result<Self> {
        if !site.rules.nat.translates() || site.rules.v6 != V6::None || !self.site.v4 {
            bail!("a site below a carrier has to translate, and has no IPv6");
        }
        let ns = self.lab.router(name)?;
        let (n, uplink) = self.plug(&ns, "wan", link)?;
        let lan = Lan { v4: site.lan, v6: Ipv6Addr::UNSPECIFIED };
        Self::set_up(self.lab, ns, site, lan, self.lan.v4(n), uplink)
    }

    /// Changes what the router does; what is established and still allowed goes on.
    pub fn change(&mut self, rules: Rules) -> Result<()> {
        if (rules.v6 == V6::None) != (self.site.rules.v6 == V6::None) {
            bail!("IPv6 is built in when the router is made");
        }
        self.machinery.enforce(&rules)?;
        self.site.rules = rules;
        Ok(())
    }

    /// Power off and on: every mapping is lost, and stepping ports begin elsewhere.
    pub fn reboot(&mut self) -> Result<()> {
        self.machinery.restart(&self.site.rules)
    }

    /// What the router does now.
    pub fn rules(&self) -> Rules {
        self.site.rules
    }

    /// Drops all UDP between the inside and these addresses, also what is established.
    pub fn block_udp(&self, with: &[IpAddr]) -> Result<()> {
        self.unblock()?;
        self.ns.nft(&nat::block_udp(with))
    }

    /// Takes back [`Self::block_udp`].
    pub fn unblock(&self) -> Result<()> {
        self.ns.nft("table inet ntl_block {}\ndelete table inet ntl_block\n")
    }

    /// Restricts how the inside may reach the outside; what is established and now forbidden is cut.
    pub fn restrict(&self, egress: Egress) -> Result<()> {
        self.ns.nft(&egress.rules())
    }

    /// Whether the internet drops what comes from this site with a source address that is not the site's.
    pub fn filter_spoofed(&self, on: bool) -> Result<()> {
        self.uplink.filter_spoofed(on)
    }

    /// Connects a namespace to the bridge inside and gives it an address; returns its number and link.
    fn plug(&self, ns: &Namespace, name: &str, link: &Link) -> Result<(u8, Uplink)> {
        let n = self.inside.next()?;
        let port = format!("lan{n}");
        let wire = wire::join((&self.ns, &port), (ns, name), link)?;
        self.ns.ip(&format!("link set lan{n} master lan up\n"))?;
        let mut lines = format!("link set {name} up\n");
        if self.site.v4 {
            let (own, gateway) = (self.lan.v4(n), self.lan.v4(1));
            lines += &format!("addr add {own}/24 dev {name}\nroute add default via {gateway}\n");
        }
        if self.site.rules.v6 != V6::None {
            let (own, gateway) = (self.lan.v6(n), self.lan.v6(1));
            lines += &format!("addr add {own}/64 dev {name} nodad\nroute add default via {gateway}\n");
        }
        ns.ip(&lines)?;
        settle(&self.ns, &port)?;
        settle(ns, name)?;
        Ok((n, Uplink { wire, above: (self.ns.clone(), port) }))
    }
}
