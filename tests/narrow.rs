//! Networks that let little out: an HTTP proxy alone, a SOCKS5 proxy alone, TCP 443 alone, HTTP on port 80 alone. The real
//! binary in a real kernel, with proxies that others wrote; see `tests/e2e.rs` on how such tests run.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Egress;
use ntcp_lab::Host;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Process;
use ntcp_lab::Proxy;
use ntcp_lab::Router;
use ntcp_lab::Site;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::openssh::SshServer;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);

/// One way, on each access line.
const DELAY: Duration = Duration::from_millis(10);

/// Where the server's broker listens; its relay has 6061 besides.
const PORTS: [u16; 3] = [6060, 443, 80];

/// A server in public, and bob behind an ordinary NAT.
struct Outside<'lab> {
    net: Internet<'lab>,
    server: Host,
    mesh: Mesh,
    bob: Daemon,
}

impl<'lab> Outside<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::delayed(DELAY))?;
        let mesh = Mesh::found_at(&product()?, &server, &PORTS, "")?;
        let home = net.site("home", Site::new(Nat::PortRestricted).lan(2), &Link::delayed(DELAY))?;
        let bob = mesh.join(&home.host("bob")?, &["--hosts"])?;
        Ok(Self { net, server, mesh, bob })
    }

    /// Ping both ways, ssh both ways, a megabyte; `alice` is at the narrow site.
    fn works_with(&self, alice: &Daemon, port: u16) -> Result<()> {
        let (a, b) = (alice.address()?, self.bob.address()?);
        let first = alice.first_ping(&b.to_string(), PATIENCE)?;
        self.bob.first_ping(&a.to_string(), PATIENCE)?;
        let path = alice.wait_relay("bob", PATIENCE)?;
        let at = format!("{}:{port}", self.server.v4);
        ensure!(path.endpoint == at, "expected the relay at {at}, got {:#}", path.all);
        let broker = alice.status()?.pointer("/brokers/0").cloned().context("no broker in the status")?;
        ensure!(broker.get("connected") == Some(&true.into()), "{broker:#}");
        for (from, to) in [(alice, &self.bob), (&self.bob, alice)] {
            let sshd = SshServer::start(to.ns(), IpAddr::V4(to.address()?))?;
            ensure!(sshd.run(from.ns(), &to.address()?.to_string(), "hostname")?.trim() == to.ns().name());
            let far = sshd.run(from.ns(), &to.address()?.to_string(), "head -c 1000000 /dev/zero")?;
            ensure!(far.len() == 1_000_000, "ssh brought {} of 1000000 bytes", far.len());
        }
        say(&format!("{}: first ping after {first:.0?}, relay at {at}", alice.ns().name()));
        Ok(())
    }
}

fn product() -> Result<Product> {
    Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))
}

/// Writes a host's configuration; answers the file's name.
fn configured(host: &Host, text: &str) -> Result<String> {
    let file = host.ns.files()?.join("overlay.toml");
    fs::write(&file, text)?;
    Ok(file.to_string_lossy().into_owned())
}

#[test]
fn behind_an_http_proxy_alone_a_machine_joins_pings_and_logs_in() {
    lab::test(|lab| {
        let outside = Outside::new(lab)?;
        let office =
            outside.net.site("office", Site::new(Nat::PortRestricted).lan(3), &Link::delayed(DELAY))?;
        let (host, gate) = (office.host("alice")?, office.host("gate")?);
        let proxy = Proxy::http(&gate, &[443])?;
        office.restrict(Egress::Through(gate.v4))?;
        let config = configured(&host, &format!("[member]\nproxy = \"http://{}\"\n", proxy.address))?;
        let alice = outside.mesh.join(&host, &["--config", &config])?;
        let text = alice.run(&["status"])?;
        ensure!(text.contains(&format!("through the proxy http://{}", proxy.address)), "{text}");
        outside.works_with(&alice, 443)
    });
}

#[test]
fn behind_a_socks_proxy_alone_that_the_environment_names_everything_works_too() {
    lab::test(|lab| {
        let outside = Outside::new(lab)?;
        let office =
            outside.net.site("office", Site::new(Nat::SymmetricRandom).lan(3), &Link::delayed(DELAY))?;
        let (host, gate) = (office.host("alice")?, office.host("gate")?);
        let proxy = Proxy::socks(&gate)?;
        office.restrict(Egress::Through(gate.v4))?;
        let line = format!(
            "env ALL_PROXY=socks5://{} ntcp-overlay up --join {} --name alice",
            proxy.address,
            outside.mesh.invite()?
        );
        let alice = product()?.type_line(&host.ns, &line)?;
        // This proxy leads everywhere, so the first address of broker and relay is as good as any.
        outside.works_with(&alice, 6061)
    });
}

#[test]
fn where_only_tcp_443_gets_out_two_such_sites_meet() {
    lab::test(|lab| {
        let outside = Outside::new(lab)?;
        let site = |name: &str, lan: u8, nat: Nat| -> Result<_> {
            let site = outside.net.site(name, Site::new(nat).lan(lan), &Link::delayed(DELAY))?;
            site.restrict(Egress::Tcp(443))?;
            let daemon = outside.mesh.join(&site.host(&format!("{name}-guest"))?, &[])?;
            Ok((site, daemon))
        };
        let (_hotel, alice) = site("hotel", 3, Nat::PortRestricted)?;
        outside.works_with(&alice, 443)?;
        let (_cafe, carol) = site("cafe", 4, Nat::SymmetricRandom)?;
        let first = alice.first_ping(&carol.address()?.to_string(), PATIENCE)?;
        alice.wait_relay("cafe-guest", PATIENCE)?;
        say(&format!("443 alone on both sides: first ping after {first:.0?}"));
        Ok(())
    });
}

#[test]
fn where_only_http_on_port_80_gets_out_a_web_socket_carries() {
    lab::test(|lab| {
        let outside = Outside::new(lab)?;
        let hotel =
            outside.net.site("hotel", Site::new(Nat::PortRestricted).lan(3), &Link::delayed(DELAY))?;
        hotel.restrict(Egress::Tcp(80))?;
        let gate = http_alone(&hotel)?;
        let alice = outside.mesh.join(&hotel.host("alice")?, &[])?;
        outside.works_with(&alice, 80)?;
        let log = gate.log();
        ensure!(log.contains("GET / HTTP/1.1"), "nothing went through the HTTP gateway:\n{log}");
        Ok(())
    });
}

/// Puts Debian's haproxy in the way of everything that leaves by port 80: it passes what is HTTP and hangs up on all else.
fn http_alone(router: &Router<'_>) -> Result<Process> {
    let file = router.ns().files()?.join("haproxy.cfg");
    let config = "global\n  log stdout format raw local0\n\
                  defaults\n  mode http\n  log global\n  option httplog\n  option logasap\n  \
                  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  timeout tunnel 1h\n\
                  frontend inside\n  bind :8080\n  http-request set-dst req.hdr_ip(host)\n  \
                  http-request set-dst-port int(80)\n  default_backend outside\n\
                  backend outside\n  server asked 0.0.0.0:0\n";
    fs::write(&file, config)?;
    let file = file.to_str().context("a path of the lab is not UTF-8")?;
    let process = router.ns().spawn(&["haproxy", "-db", "-f", file])?;
    router.ns().nft(
        "table ip ntl_web { chain arriving { type nat hook prerouting priority dstnat - 1; \
         iifname \"lan\" tcp dport 80 redirect to :8080; }; }\n",
    )?;
    Ok(process)
}

#[test]
fn a_relay_on_a_machine_of_its_own_is_reached_at_its_443_too() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        let ferry = net.host("ferry2", &Link::Plain)?;
        let at = [6061, 443].map(|port| format!("{}:{port}", ferry.v4));
        let listen = ["0.0.0.0:6061", "0.0.0.0:443"];
        let config = configured(&ferry, &format!("[relay]\nlisten = {listen:?}\nadvertise = {at:?}\n"))?;
        let token = mesh.admin(&["invite", "--relay"])?;
        let words = ["serve", "--join", token.trim(), "--name", "ferry2", "--config", &config];
        let _relay = product()?.daemon(&ferry.ns, &words)?;

        let office = net.site("office", Site::new(Nat::PortRestricted).lan(3), &Link::Plain)?;
        let (host, gate) = (office.host("alice")?, office.host("gate")?);
        // The broker's port is let through, the port of the relay beside it is not.
        let proxy = Proxy::http(&gate, &[6060, 443])?;
        office.restrict(Egress::Through(gate.v4))?;
        let config = configured(&host, &format!("[member]\nproxy = \"http://{}\"\n", proxy.address))?;
        let alice = mesh.join(&host, &["--config", &config])?;
        let home = net.site("home", Site::new(Nat::PortRestricted).lan(2), &Link::Plain)?;
        let bob = mesh.join(&home.host("bob")?, &[])?;
        let first = alice.first_ping(&bob.address()?.to_string(), PATIENCE)?;
        let path = alice.wait_relay("bob", PATIENCE)?;
        ensure!(path.endpoint == format!("{}:443", ferry.v4), "{:#}", path.all);
        say(&format!("the second relay, through the proxy: first ping after {first:.0?}"));
        Ok(())
    });
}

#[test]
fn a_proxy_that_refuses_says_what_to_do() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        let office = net.site("office", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let (host, gate) = (office.host("alice")?, office.host("gate")?);
        let proxy = Proxy::http(&gate, &[443])?;
        office.restrict(Egress::Through(gate.v4))?;
        let config = configured(&host, &format!("[member]\nproxy = \"http://{}\"\n", proxy.address))?;
        let words = ["up", "--join", &mesh.invite()?, "--config", &config];
        let said = product()?.try_run(&host.ns, &words)?;
        ensure!(said.code() == Some(1), "exit code {:?}", said.code());
        ensure!(said.stderr.contains("port 443") && said.stderr.contains("broker.listen"), "{}", said.stderr);
        Ok(())
    });
}
