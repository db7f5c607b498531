//! Who is measured, and how each is brought up between the two hosts.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use super::Standing;
use super::others;
use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::Namespace;
use crate::product::Mesh;
use crate::product::Product;
use crate::tools;
use crate::topology::Host;

/// How long a path of the wanted kind may take.
const PATH: Duration = Duration::from_secs(30);
/// Addresses inside a forwarder.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];

/// How packets travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carrier {
    Wire,
    Udp,
    Tcp,
    Relay,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub(super) struct Contestant {
    kind: Kind,
    pub(super) carrier: Carrier,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Veth,
    Overlay,
    Forwarder,
    WireGuardGo,
    OtherWireGuardGo,
    Tinc,
    OpenVpn,
    Nebula,
    EasyTier,
}

impl Contestant {
    pub(super) fn all() -> Vec<Self> {
        use Carrier::*;
        use Kind::*;
        let rows = [
            (Veth, Wire),
            (Forwarder, Udp),
            (Overlay, Udp),
            (WireGuardGo, Udp),
            (OtherWireGuardGo, Udp),
            (Nebula, Udp),
            (EasyTier, Udp),
            (Tinc, Udp),
            (OpenVpn, Udp),
            (Forwarder, Tcp),
            (Overlay, Tcp),
            (EasyTier, Tcp),
            (Tinc, Tcp),
            (OpenVpn, Tcp),
            (Overlay, Relay),
        ];
        rows.map(|(kind, carrier)| Self { kind, carrier }).to_vec()
    }

    pub(super) fn name(&self) -> &'static str {
        match (self.kind, self.carrier) {
            (Kind::Veth, _) => "veth",
            (Kind::Overlay, Carrier::Relay) => "ntcp-overlay relay",
            (Kind::Overlay, Carrier::Tcp) => "ntcp-overlay tcp",
            (Kind::Overlay, _) => "ntcp-overlay udp",
            (Kind::Forwarder, Carrier::Tcp) => "no crypto tcp",
            (Kind::Forwarder, _) => "no crypto udp",
            (Kind::WireGuardGo, _) => "wireguard-go",
            (Kind::OtherWireGuardGo, _) => "wireguard-go (yours)",
            (Kind::Tinc, Carrier::Tcp) => "tinc tcp",
            (Kind::Tinc, _) => "tinc udp",
            (Kind::OpenVpn, Carrier::Tcp) => "openvpn tcp",
            (Kind::OpenVpn, _) => "openvpn udp",
            (Kind::Nebula, _) => "nebula",
            (Kind::EasyTier, Carrier::Tcp) => "easytier tcp",
            (Kind::EasyTier, _) => "easytier udp",
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.kind == Kind::Overlay
    }

    /// Brings it up; the error says how to install what is missing.
    pub(super) fn start(&self, field: &Field<'_>) -> Result<Standing> {
        let (a, b, tcp) = (&field.a, &field.b, self.carrier == Carrier::Tcp);
        match self.kind {
            Kind::Veth => Ok(Standing::of(IpAddr::V4(b.v4), Vec::new(), ())),
            Kind::Overlay => field.overlay(self.carrier),
            Kind::Forwarder => forwarder(self.carrier, a, b),
            Kind::WireGuardGo => others::wireguard("wireguard-go", a, b),
            Kind::OtherWireGuardGo => {
                let program = env::var("NTCP_BENCH_WIREGUARD_GO").context(
                    "set NTCP_BENCH_WIREGUARD_GO to another build of wireguard-go, such as its master",
                )?;
                others::wireguard(&program, a, b)
            }
            Kind::Tinc => {
                installed("tincd", "tinc")?;
                others::tinc(tcp, a, b)
            }
            Kind::OpenVpn => {
                installed("openvpn", "openvpn")?;
                installed("openssl", "openssl")?;
                others::openvpn(tcp, a, b)
            }
            Kind::Nebula => others::nebula(&named("NTCP_BENCH_NEBULA", "nebula")?, a, b),
            Kind::EasyTier => others::easytier(&named("NTCP_BENCH_EASYTIER", "easytier-core")?, tcp, a, b),
        }
    }
}

fn installed(command: &str, package: &str) -> Result<()> {
    tools::find(command).map(drop).with_context(|| format!("not installed: apt-get install {package}"))
}

/// A program that the environment names, or that is on the path.
fn named(variable: &str, command: &str) -> Result<String> {
    if let Ok(path) = env::var(variable) {
        return Ok(path);
    }
    let found = tools::find(command).and_then(|path| path.to_str().map(str::to_owned));
    found.with_context(|| format!("{command} is not on the path: install it, or set {variable} to it"))
}

/// The hosts, and the overlay's network with its server, which stays up.
pub(super) struct Field<'lab> {
    pub(super) a: Host,
    pub(super) b: Host,
    core: Namespace,
    product: Product,
    mesh: Mesh,
    _net: Internet<'lab>,
}

impl<'lab> Field<'lab> {
    pub(super) fn new(lab: &'lab Lab, bin: &Path) -> Result<Self> {
        let product = Product::new(bin)?;
        let net = Internet::new(lab)?;
        let [server, a, b] = ["server", "alice", "bob"].map(|name| net.host(name, &Link::Plain));
        let (server, a, b) = (server?, a?, b?);
        // The relay in user space is measured here; `make bench-relay` compares it with the kernel's.
        let mesh = Mesh::found(&product, &server, "splice_ports = \"none\"\n")?;
        // From here on they are members, whatever their configuration.
        for host in [&a, &b] {
            drop(mesh.join(host, &[])?);
        }
        Ok(Self { a, b, core: net.core().clone(), product, mesh, _net: net })
    }

    fn overlay(&self, carrier: Carrier) -> Result<Standing> {
        let (config, path) = match carrier {
            Carrier::Tcp => ("[member]\ntransport = \"tcp\"\n", "direct-tcp"),
            Carrier::Relay => ("", "relay"),
            Carrier::Wire | Carrier::Udp => ("", "direct-udp"),
        };
        let wall = (carrier == Carrier::Relay).then(|| self.wall()).transpose()?;
        let mut members = Vec::new();
        for host in [&self.b, &self.a] {
            let file = host.ns.files()?.join("bench.toml");
            fs::write(&file, config)?;
            let file = file.to_str().context("a path of the lab is not UTF-8")?;
            members.push(self.product.member(&host.ns, &["up", "--config", file])?);
        }
        let [bob, alice] = &members[..] else { bail!("two members") };
        let target = bob.address()?;
        alice.first_ping(&target.to_string(), PATH)?;
        for (from, to) in [(alice, "bob"), (bob, "alice")] {
            from.wait_path(to, path, PATH, |peer| peer.path == path)?;
        }
        let mut pids: Vec<u32> = members.iter().map(|member| member.process.pid()).collect();
        if carrier == Carrier::Relay {
            pids.extend(self.mesh.server.as_ref().map(|server| server.process.pid()));
        }
        Ok(Standing::of(IpAddr::V4(target), pids, (members, wall)))
    }

    /// Nothing passes between the two hosts directly until this is dropped.
    fn wall(&self) -> Result<Wall> {
        let v6 = |host: &Host| host.v6.context("a host without IPv6");
        let (a, b) = (&self.a, &self.b);
        self.core.nft(&format!(
            "table inet bench {{ chain forward {{ type filter hook forward priority 0;\n\
             ip saddr {} ip daddr {} drop\nip saddr {} ip daddr {} drop\n\
             ip6 saddr {} ip6 daddr {} drop\nip6 saddr {} ip6 daddr {} drop\n}}\n}}\n",
            a.v4,
            b.v4,
            b.v4,
            a.v4,
            v6(a)?,
            v6(b)?,
            v6(b)?,
            v6(a)?,
        ))?;
        Ok(Wall(self.core.clone()))
    }
}

struct Wall(Namespace);

impl Drop for Wall {
    fn drop(&mut self) {
        drop(self.0.nft("delete table inet bench"));
    }
}

fn forwarder(carrier: Carrier, a: &Host, b: &Host) -> Result<Standing> {
    let me = env::current_exe()?;
    let me = me.to_str().context("the path of this program is not UTF-8")?;
    let carrier = if carrier == Carrier::Tcp { "tcp" } else { "udp" };
    let mut running = Vec::new();
    for (n, host, other) in [(1, b, a), (0, a, b)] {
        let (local, peer) = (format!("{}:7000", host.v4), format!("{}:7000", other.v4));
        let mut words = vec![me, "forward", "fwd0", carrier, &local, &peer];
        if n == 1 {
            words.push("--listens");
        }
        let mut process = host.ns.spawn(&words)?;
        process.wait_for_line("ready", Duration::from_secs(10))?;
        let lines =
            format!("addr add {} peer {} dev fwd0\nlink set fwd0 mtu 1380 up\n", INNER[n], INNER[1 - n]);
        host.ns.ip(&lines)?;
        running.push(process);
    }
    let pids = running.iter().map(crate::Process::pid).collect();
    Standing::of(IpAddr::V4(INNER[1]), pids, running).wait(a)
}
