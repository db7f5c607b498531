//! An internet in one machine: a core that forwards, public hosts, and sites of hosts behind routers.
//!
//! Every attachment to the core has its own link network `20.0.<n>.0/24` and `2a00:1:<n>::/64`; the core is `.1`, the
//! attached side `.2`. The core drops private addresses, as the real internet does. A site's router has the outside
//! interface `wan` and the inside bridge `lan`; a host has `eth0`. A site may hang below another site's router instead of
//! the core: that is a home behind a carrier's NAT.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use anyhow::Result;
use anyhow::bail;

use crate::lab::Lab;
use crate::nat;
use crate::nat::Lifetimes;
use crate::nat::Nat;
use crate::nat::Rules;
use crate::nat::V6;
use crate::ns::LIMIT;
use crate::ns::Namespace;
use crate::process;
use crate::wire;
use crate::wire::Link;
use crate::wire::Wire;

/// A counter that its clones share.
#[derive(Clone, Debug, Default)]
struct Counter(Arc<AtomicU8>);

impl Counter {
    fn next(&self) -> Result<u8> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            n @ 0..=199 => Ok(n + 1),
            _ => bail!("the lab numbers at most 200 things of a kind"),
        }
    }
}

/// The core router and what is attached to it.
#[derive(Debug)]
pub struct Internet<'lab> {
    lab: &'lab Lab,
    core: Namespace,
    attached: Counter,
}

/// What one attachment to the core knows of itself.
struct Attachment {
    n: u8,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    uplink: Uplink,
}

/// The link by which something hangs below something else.
#[derive(Debug)]
struct Uplink {
    wire: Option<Wire>,
    /// The namespace above, and its end of the link.
    above: (Namespace, String),
}

impl<'lab> Internet<'lab> {
    /// An internet without anybody.
    pub fn new(lab: &'lab Lab) -> Result<Self> {
        let core = lab.router("core")?;
        forwarding(&core)?;
        core.ip("route add blackhole 10.0.0.0/8\n\
             route add blackhole 100.64.0.0/10\n\
             route add blackhole 172.16.0.0/12\n\
             route add blackhole 192.168.0.0/16\n\
             route add blackhole fc00::/7\n")?;
        Ok(Self { lab, core, attached: Counter::default() })
    }

    /// The router in the middle.
    pub fn core(&self) -> &Namespace {
        &self.core
    }

    /// A host with public addresses and no firewall in front.
    pub fn host(&self, name: &str, link: &Link) -> Result<Host> {
        let ns = self.lab.machine(name)?;
        let at = self.attach(&ns, "eth0", link)?;
        Ok(Host { ns, v4: at.v4, v6: Some(at.v6), wire: at.uplink.wire })
    }

    /// A site behind a router.
    pub fn site(&self, name: &str, site: Site, link: &Link) -> Result<Router<'lab>> {
        let ns = self.lab.router(name)?;
        let at = self.attach(&ns, "wan", link)?;
        let lan = Lan {
            v4: if site.rules.nat.translates() { site.lan } else { Ipv4Addr::new(20, 1, at.n, 0) },
            v6: Ipv6Addr::new(0x2a00, 1, u16::from(at.n), 0x100, 0, 0, 0, 0),
        };
        let n = at.n;
        let (v4, v6) = (lan.v4, lan.v6);
        if !site.rules.nat.translates() {
            self.core.ip(&format!("route add {v4}/24 via {}\n", at.v4))?;
        }
        if site.rules.v6 != V6::None {
            self.core.ip(&format!("route add {v6}/64 via {} dev p{n}\n", at.v6))?;
        }
        Router::set_up(self.lab, ns, site, lan, at.v4, at.uplink)
    }

    fn attach(&self, ns: &Namespace, name: &str, link: &Link) -> Result<Attachment> {
        let n = self.attached.next()?;
        let port = format!("p{n}");
        let wire = wire::join((&self.core, &port), (ns, name), link)?;
        let v6 = |host| Ipv6Addr::new(0x2a00, 1, u16::from(n), 0, 0, 0, 0, host);
        let (v4, here) = (Ipv4Addr::new(20, 0, n, 2), v6(2));
        self.core.ip(&format!(
            "link set p{n} up\naddr add 20.0.{n}.1/24 dev p{n}\naddr add {}/64 dev p{n} nodad\n",
            v6(1)
        ))?;
        ns.ip(&format!(
            "link set {name} up\n\
             addr add {v4}/24 dev {name}\n\
             addr add {here}/64 dev {name} nodad\n\
             route add default via 20.0.{n}.1\n\
             route add default via {}\n",
            v6(1)
        ))?;
        settle(ns, Ipv4Addr::new(20, 0, n, 1))?;
        let uplink = Uplink { wire, above: (self.core.clone(), port) };
        Ok(Attachment { n, v4, v6: here, uplink })
    }
}

/// How a site is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// What its router does.
    pub rules: Rules,
    /// The private network inside, a /24; not used where the router does not translate.
    pub lan: Ipv4Addr,
}

impl Site {
    /// A site with this kind of router, no IPv6, no hairpin, and the private network that half of all homes have.
    pub fn new(nat: Nat) -> Self {
        let rules = Rules { nat, v6: V6::None, hairpin: false, udp: true, lifetimes: Lifetimes::default() };
        Self { rules, lan: Ipv4Addr::new(192, 168, 1, 0) }
    }

    /// With `192.168.<n>.0/24` inside.
    #[must_use]
    pub fn lan(mut self, n: u8) -> Self {
        self.lan = Ipv4Addr::new(192, 168, n, 0);
        self
    }

    /// With any /24 inside.
    #[must_use]
    pub fn network(mut self, lan: Ipv4Addr) -> Self {
        self.lan = lan;
        self
    }

    /// With IPv6.
    #[must_use]
    pub fn v6(mut self, v6: V6) -> Self {
        self.rules.v6 = v6;
        self
    }

    /// With a router that lets inside hosts reach each other by its outer address.
    #[must_use]
    pub fn hairpin(mut self) -> Self {
        self.rules.hairpin = true;
        self
    }

    /// With a router whose idle mappings go after these times.
    #[must_use]
    pub fn lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.rules.lifetimes = lifetimes;
        self
    }

    /// With a router that drops every UDP packet.
    #[must_use]
    pub fn no_udp(mut self) -> Self {
        self.rules.udp = false;
        self
    }
}

/// The inside of a site: network addresses of a /24 and a /64.
#[derive(Clone, Copy, Debug)]
struct Lan {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Lan {
    fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.v4.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    fn v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.v6.to_bits() | u128::from(host))
    }
}

/// A site's router.
#[derive(Debug)]
pub struct Router<'lab> {
    lab: &'lab Lab,
    ns: Namespace,
    site: Site,
    lan: Lan,
    wan: Ipv4Addr,
    uplink: Uplink,
    inside: Counter,
}

impl<'lab> Router<'lab> {
    fn set_up(
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
        ns.ip(&format!(
            "link add lan address 02:00:00:00:00:01 type bridge\nlink set lan up\naddr add {}/24 dev lan\n",
            lan.v4(1)
        ))?;
        if site.rules.v6 != V6::None {
            ns.ip(&format!("addr add {}/64 dev lan nodad\n", lan.v6(1)))?;
        }
        if site.rules.hairpin {
            hairpin_loop(&ns, wan)?;
        }
        enforce(&ns, &site.rules, &nat::ruleset(&site.rules, wan))?;
        let inside = Counter::default();
        inside.next()?; // .1 is the router
        Ok(Self { lab, ns, site, lan, wan, uplink, inside })
    }

    /// The router's namespace.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// Its outer IPv4 address.
    pub fn wan(&self) -> Ipv4Addr {
        self.wan
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
        let v6 = (self.site.rules.v6 != V6::None).then(|| self.lan.v6(n));
        if let Some(v6) = v6 {
            ns.ip(&format!("addr add {v6}/64 dev eth0 nodad\nroute add default via {}\n", self.lan.v6(1)))?;
        }
        Ok(Host { ns, v4: self.lan.v4(n), v6, wire: uplink.wire })
    }

    /// A site below this one, which thereby becomes its carrier. IPv4 only.
    pub fn site(&self, name: &str, site: Site, link: &Link) -> Result<Self> {
        if !site.rules.nat.translates() || site.rules.v6 != V6::None {
            bail!("a site below a carrier has to translate, and has no IPv6");
        }
        let ns = self.lab.router(name)?;
        let (n, uplink) = self.plug(&ns, "wan", link)?;
        let lan = Lan { v4: site.lan, v6: Ipv6Addr::UNSPECIFIED };
        Self::set_up(self.lab, ns, site, lan, self.lan.v4(n), uplink)
    }

    /// Changes what the router does; what is established and still allowed goes on.
    pub fn change(&mut self, rules: Rules) -> Result<()> {
        if rules.hairpin != self.site.rules.hairpin
            || (rules.v6 == V6::None) != (self.site.rules.v6 == V6::None)
        {
            bail!("hairpin and IPv6 are built in when the router is made");
        }
        // Declared first, so that removing them succeeds whether they exist or not.
        let reset =
            "table inet ntl {}\ntable ip ntl_nat {}\ndelete table inet ntl\ndelete table ip ntl_nat\n";
        enforce(&self.ns, &rules, &format!("{reset}{}", nat::ruleset(&rules, self.wan)))?;
        self.site.rules = rules;
        Ok(())
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

    /// Connects a namespace to the bridge inside and gives it an address; returns its number and link.
    fn plug(&self, ns: &Namespace, name: &str, link: &Link) -> Result<(u8, Uplink)> {
        let n = self.inside.next()?;
        let port = format!("lan{n}");
        let wire = wire::join((&self.ns, &port), (ns, name), link)?;
        self.ns.ip(&format!("link set lan{n} master lan up\n"))?;
        ns.ip(&format!(
            "link set {name} up\naddr add {}/24 dev {name}\nroute add default via {}\n",
            self.lan.v4(n),
            self.lan.v4(1)
        ))?;
        settle(ns, self.lan.v4(1))?;
        Ok((n, Uplink { wire, above: (self.ns.clone(), port) }))
    }
}

/// A machine that programs run on.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Namespace,
    /// Its IPv4 address on `eth0`.
    pub v4: Ipv4Addr,
    /// Its IPv6 address on `eth0`.
    pub v6: Option<Ipv6Addr>,
    /// The wire of its link, if that is one.
    pub wire: Option<Wire>,
}

impl Host {
    /// Gives it one more address in its network, with this last byte, and returns it.
    pub fn second_address(&self, last: u8) -> Result<Ipv4Addr> {
        let [a, b, c, _] = self.v4.octets();
        let address = Ipv4Addr::new(a, b, c, last);
        self.ns.ip(&format!("addr add {address}/24 dev eth0\n"))?;
        Ok(address)
    }
}

fn forwarding(ns: &Namespace) -> Result<()> {
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    ns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// Loads a router's rules, then sets the kernel parameters, which exist once conntrack is in use.
fn enforce(ns: &Namespace, rules: &Rules, script: &str) -> Result<()> {
    ns.nft(script)?;
    rules.sysctls().iter().try_for_each(|(key, value)| ns.sysctl(key, value))
}

/// Waits until a new link carries: the kernel reports carriers and opens bridge ports a little later, in its own time.
/// A link that is made to carry nothing stays as it is.
fn settle(ns: &Namespace, gateway: Ipv4Addr) -> Result<()> {
    let words = ["ping", "-q", "-c", "1", "-w", "2", "-i", "0.2", &gateway.to_string()];
    process::run(ns.plain_command(&words), b"", LIMIT).map(drop)
}

/// The veth loop that brings packets for the router's own outer address back in, translated.
fn hairpin_loop(ns: &Namespace, wan: Ipv4Addr) -> Result<()> {
    // Fixed hardware addresses, so that no ARP with the router's own address as its source is needed.
    ns.ip(&format!(
        "link add hp0 address 02:00:00:00:00:10 type veth peer name hp1 address 02:00:00:00:00:11\n\
         link set hp0 up\n\
         link set hp1 up\n\
         route add {wan}/32 dev hp0 table 77\n\
         neigh add {wan} lladdr 02:00:00:00:00:11 dev hp0 nud permanent\n\
         rule add pref 10 iif lan to {wan} lookup 77\n\
         rule add pref 100 lookup local\n\
         rule del pref 0\n"
    ))?;
    // A packet with the router's own address as its source is what this loop is for.
    ns.sysctl("net/ipv4/conf/hp1/accept_local", "1")
}
