//! Direct TCP between members whose networks drop all UDP: the real binary in a real kernel, behind NATs; see
//! `tests/e2e.rs` on how such tests run.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Router;
use ntcp_lab::Site;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::ns::Namespace;
use ntcp_lab::openssh::COUNTER;
use ntcp_lab::openssh::SshServer;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::PeerPath;
use ntcp_lab::product::Product;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);

/// One way, on each access line.
const DELAY: Duration = Duration::from_millis(10);

/// Serves one mebibyte over and over, a gibibyte in all.
const GIBIBYTE: &str = r#"
import http.server, random
block = random.Random(7).randbytes(1 << 20)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 30))
        self.end_headers()
        for _ in range(1 << 10):
            self.wfile.write(block)
print("serving", flush=True)
http.server.HTTPServer(("", 80), Handler).serve_forever()
"#;

/// What its checksum must be.
const EXPECTED: &str = r#"
import hashlib, random
block, sum = random.Random(7).randbytes(1 << 20), hashlib.sha256()
for _ in range(1 << 10):
    sum.update(block)
print(sum.hexdigest())
"#;

/// A server in public, and two members, each at its own site that lets no UDP out.
struct World<'lab> {
    _net: Internet<'lab>,
    _mesh: Mesh,
    routers: [Router<'lab>; 2],
    alice: Daemon,
    bob: Daemon,
}

impl<'lab> World<'lab> {
    fn new(lab: &'lab Lab, nats: [Nat; 2]) -> Result<Self> {
        let net = Internet::new(lab)?;
        let link = Link::delayed(DELAY);
        let server = net.host("server", &link)?;
        let [home, work] = nats.map(|nat| Site::new(nat).no_udp());
        let routers = [net.site("home", home.lan(1), &link)?, net.site("work", work.lan(2), &link)?];
        let [home, work] = &routers;
        let (a, b) = (home.host("alice")?, work.host("bob")?);
        let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
        let mesh = Mesh::found(&product, &server, "")?;
        let (alice, bob) = (mesh.join(&a, &["--hosts"])?, mesh.join(&b, &["--hosts"])?);
        Ok(Self { _net: net, _mesh: mesh, routers, alice, bob })
    }

    /// Pings both ways, and waits for a direct path.
    fn meet(&self) -> Result<PeerPath> {
        self.alice.first_ping(&self.bob.address()?.to_string(), PATIENCE)?;
        self.bob.first_ping(&self.alice.address()?.to_string(), PATIENCE)?;
        direct_tcp(&self.alice, "bob")
    }
}

fn direct_tcp(from: &Daemon, to: &str) -> Result<PeerPath> {
    from.wait_path(to, "direct TCP", PATIENCE, |peer| peer.path == "direct-tcp")
}

/// TCP sockets of a machine in one of the states that `filter` names, as `ss` shows them.
fn sockets(of: &Namespace, filter: &str) -> Result<Vec<String>> {
    let listed = of.run(&["sh", "-c", &format!("ss -Htan {filter}")])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// The local port in a line of `ss`.
fn port_of(line: &str) -> Option<u16> {
    line.split_whitespace().nth(3)?.rsplit_once(':')?.1.parse().ok()
}

#[test]
fn ssh_curl_and_a_checksummed_gibibyte_cross_two_nats_that_drop_udp() {
    lab::test(|lab| {
        let world = World::new(lab, [Nat::PortRestricted; 2])?;
        let path = world.meet()?;
        let [_, work] = &world.routers;
        ensure!(path.endpoint.starts_with(&format!("{}:", work.wan())), "not bob's NAT: {:#}", path.all);
        let (alice, bob) = (world.alice.ns(), world.bob.ns());

        let sshd = SshServer::start(bob, IpAddr::V4(world.bob.address()?))?;
        ensure!(sshd.run(alice, "bob", "hostname")?.trim() == "bob");
        let script = bob.files()?.join("serve.py");
        fs::write(&script, GIBIBYTE)?;
        let mut web = bob.spawn(&["python3", script.to_str().context("a path of the lab is not UTF-8")?])?;
        web.wait_for_line("serving", PATIENCE)?;
        let fetch = "curl -sS -w '%{stderr}%{speed_download}' http://bob/ 2>speed | sha256sum | cut -d' ' -f1; cat speed";
        let dir = alice.files()?;
        let line = format!("cd {} && {fetch}", dir.display());
        let got = alice.try_run(&["sh", "-c", &line], Duration::from_secs(300))?.ok()?.stdout;
        let wanted = alice.run(&["python3", "-c", EXPECTED])?;
        let (sum, speed) = got.trim().split_once('\n').context("curl or sha256sum said nothing")?;
        ensure!(sum == wanted.trim(), "the copy is not the original: {sum} for {wanted}");
        let speed: f64 = speed.trim().parse()?;
        say(&format!("a gibibyte over direct TCP: {:.0} Mbit/s", speed * 8.0 / 1e6));
        let path = direct_tcp(&world.alice, "bob")?;
        ensure!(path.all.get("method").is_some_and(|m| m == "p2pnat"), "{:#}", path.all);
        Ok(())
    });
}

#[test]
fn a_reset_or_a_rebooted_nat_costs_the_path_and_not_the_session() {
    lab::test(|lab| {
        let mut world = World::new(lab, [Nat::FullCone, Nat::PortRestricted])?;
        world.meet()?;
        let sshd = SshServer::start(world.bob.ns(), IpAddr::V4(world.bob.address()?))?;
        let mut session = sshd.session(world.alice.ns(), "bob", COUNTER)?;
        session.advance(5, PATIENCE)?;

        let [home, work] = &world.routers;
        // A device on the way that resets what it does not like: every segment between the two sites, for a while.
        let rule = format!("ip saddr {} meta l4proto tcp reject with tcp reset", work.wan());
        let table = format!(
            "table inet ntl_reset {{ chain c {{ type filter hook forward priority -20; {rule}; }}; }}"
        );
        home.ns().run(&["nft", &table])?;
        session.advance(10, PATIENCE).context("after a reset in the path")?;
        home.ns().run(&["nft", "delete table inet ntl_reset"])?;
        direct_tcp(&world.alice, "bob").context("after the resets ended")?;
        session.advance(5, PATIENCE)?;

        let [home, _] = &mut world.routers;
        home.reboot()?;
        session.advance(10, PATIENCE).context("after the NAT's reboot")?;
        direct_tcp(&world.alice, "bob").context("after the NAT's reboot")?;
        session.advance(5, PATIENCE)?;
        Ok(())
    });
}

#[test]
fn a_peer_that_dies_while_being_punched_leaves_no_socket_behind() {
    lab::test(|lab| {
        let world = World::new(lab, [Nat::PortRestricted; 2])?;
        world.alice.wait_knows("bob", PATIENCE)?;
        let (alice, target) = (world.alice.ns(), world.bob.address()?.to_string());
        // A member that surveys its NATs listens and dials too, but towards its servers.
        let [_, work] = &world.routers;
        let (mine, dials) = (port_of, format!("dst {}", work.wan()));
        let always: BTreeSet<u16> =
            sockets(alice, "state listening")?.iter().filter_map(|s| mine(s)).collect();
        let mut tried = BTreeSet::new();
        let mut ping = alice.spawn(&["ping", "-i", "0.2", &target])?;
        // Some of these deaths come before the introduction, some in the middle of a round, some after it.
        interrupt::wait_for("an attempt to begin", PATIENCE, || {
            tried.extend(sockets(alice, &dials)?.iter().filter_map(|socket| mine(socket)));
            Ok((!tried.is_empty()).then_some(()))
        })?;
        world.bob.crash()?;
        let _ = ping.wait_for_line("ttl=", Duration::from_secs(2));
        interrupt::wait_for("the attempt's sockets to go", PATIENCE, || {
            tried.extend(sockets(alice, &dials)?.iter().filter_map(|socket| mine(socket)));
            let half_open = sockets(alice, &format!("state syn-sent state syn-recv {dials}"))?;
            let listening = sockets(alice, "state listening")?;
            let kept = listening
                .iter()
                .filter_map(|s| mine(s))
                .any(|at| tried.contains(&at) && !always.contains(&at));
            Ok((half_open.is_empty() && !kept).then_some(()))
        })
    });
}
