//! An internet in one machine: a core that forwards, public hosts, and sites of hosts behind routers.
//!
//! Every attachment to the core has its own link network `20.0.<n>.0/24` and `2a00:1:<n>::/64`; the core is `.1`, the
//! attached side `.2` (a [`Server`] has `.3` and `.4` too). The core drops private addresses, as the real internet does. A
//! site's router has the outside interface `wan` and the inside bridge `lan`; a host has `eth0`. A site may hang below
//! another site's router instead of the core: that is a home behind a carrier's NAT.

mod host;
mod policy;
mod router;
mod site;

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::interrupt;
use crate::lab::Lab;
use crate::nat::V6;
use crate::ns::LIMIT;
use crate::ns::Namespace;
use crate::sys;
use crate::wire;
use crate::wire::Link;
use crate::wire::Wire;

pub use host::Host;
pub use host::Server;
pub use policy::Egress;
pub use router::Router;
pub use site::Site;

use site::Lan;

/// The name of the router in the middle.
const CORE: &str = "core";

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
#[derive(Clone, Debug)]
struct Uplink {
    wire: Option<Wire>,
    /// The namespace above, and its end of the link.
    above: (Namespace, String),
}

impl Uplink {
    /// Ingress filtering (BCP 38) at the end above.
    fn filter_spoofed(&self, on: bool) -> Result<()> {
        let (above, port) = &self.above;
        if above.name() != CORE {
            bail!("only what hangs at the internet's core is filtered by source address");
        }
        above.nft(&policy::ingress_filter(port, on))
    }
}

impl<'lab> Internet<'lab> {
    /// An internet without anybody.
    pub fn new(lab: &'lab Lab) -> Result<Self> {
        let core = lab.router(CORE)?;
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
        Ok(Host { ns, v4: at.v4, v6: Some(at.v6), wire: at.uplink.wire.clone(), uplink: at.uplink })
    }

    /// A host with three public addresses: the second and third let a server be asked, and answer, from elsewhere.
    pub fn server(&self, name: &str, link: &Link) -> Result<Server> {
        let host = self.host(name, link)?;
        let addresses = [host.v4, host.more_address(3)?, host.more_address(4)?];
        Ok(Server { host, addresses })
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
        settle(&self.core, &port)?;
        settle(ns, name)?;
        let uplink = Uplink { wire, above: (self.core.clone(), port) };
        Ok(Attachment { n, v4, v6: here, uplink })
    }
}

fn forwarding(ns: &Namespace) -> Result<()> {
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    ns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    // Where br_netfilter is loaded, rules for what is routed would else meet what a bridge carries between neighbours.
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        if Path::new("/proc/sys").join(key).exists() {
            ns.sysctl(key, "0")?;
        }
    }
    Ok(())
}

/// Waits until the end of a new link carries: the kernel notices carriers a little later, in its own time.
fn settle(ns: &Namespace, name: &str) -> Result<()> {
    let (full, wanted) = (name.to_owned(), Instant::now() + LIMIT);
    ns.inside(move || {
        while !sys::carries(&full)? {
            ensure!(Instant::now() < wanted, "{full} does not carry after {LIMIT:?}");
            interrupt::check()?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?
}
