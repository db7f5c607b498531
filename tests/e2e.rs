//! The real binary in a real kernel: namespaces, nftables NATs, delayed wires, and stock programs on top.
//!
//! Every test builds a lab of its own, so they run side by side. Without root, or without a program that a test uses,
//! a test says so on standard error and passes: look for lines that begin with `NOT RUN`. No test asserts how long
//! anything takes; figures are printed. Limits are there only so that a broken build ends.

#![allow(clippy::disallowed_methods, reason = "a test of the whole measures with the real clock")]

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Host;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Router;
use ntcp_lab::Site;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::nat::V6;
use ntcp_lab::openssh::COUNTER;
use ntcp_lab::openssh::SshServer;
use ntcp_lab::probe;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::PeerPath;
use ntcp_lab::product::Product;
use ntcp_lab::wireguard;
use ntcp_lab::wireguard::Tunnel;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);

/// One way, on each access line.
const DELAY: Duration = Duration::from_millis(20);

fn product() -> Result<Product> {
    Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))
}

/// A server in public, and two members, each at its own site.
struct World<'lab> {
    net: Internet<'lab>,
    server: Host,
    mesh: Mesh,
    routers: [Router<'lab>; 2],
    alice: Daemon,
    bob: Daemon,
}

impl<'lab> World<'lab> {
    fn new(lab: &'lab Lab, sites: [Site; 2], link: &Link) -> Result<Self> {
        Self::configured(lab, sites, link, "")
    }

    /// The same with these lines in alice's configuration.
    fn configured(lab: &'lab Lab, sites: [Site; 2], link: &Link, config: &str) -> Result<Self> {
        let net = Internet::new(lab)?;
        let server = net.host("server", link)?;
        let [home, work] = sites;
        let routers = [net.site("home", home, link)?, net.site("work", work, link)?];
        let [home, work] = &routers;
        let (a, b) = (home.host("alice")?, work.host("bob")?);
        let mesh = Mesh::found(&product()?, &server, "")?;
        let file = (!config.is_empty()).then(|| configured(&a, config)).transpose()?;
        let mut words = vec!["--hosts"];
        words.extend(file.iter().flat_map(|file| ["--config", file]));
        let (alice, bob) = (mesh.join(&a, &words)?, mesh.join(&b, &["--hosts"])?);
        Ok(Self { net, server, mesh, routers, alice, bob })
    }

    /// Both sites behind ordinary home routers with different private networks.
    fn ordinary(lab: &'lab Lab, link: &Link) -> Result<Self> {
        let site = Site::new(Nat::PortRestricted);
        Self::new(lab, [site.lan(1), site.lan(2)], link)
    }

    /// The first ping from alice to bob, and then whatever both say of their path.
    fn meet(&self) -> Result<()> {
        meet(&self.alice, &self.bob)
    }

    fn block(&self) -> Result<()> {
        let [home, work] = &self.routers;
        home.block_udp(&[work.wan().into()])?;
        work.block_udp(&[home.wan().into()])
    }

    fn unblock(&self) -> Result<()> {
        self.routers.iter().try_for_each(Router::unblock)
    }
}

/// Pings in both directions with the system's own ping.
fn meet(a: &Daemon, b: &Daemon) -> Result<()> {
    a.first_ping(&b.address()?.to_string(), PATIENCE)?;
    b.first_ping(&a.address()?.to_string(), PATIENCE)?;
    Ok(())
}

fn endpoint_ip(path: &PeerPath) -> Result<IpAddr> {
    let endpoint: SocketAddr = path.endpoint.parse().with_context(|| format!("no endpoint in {path:?}"))?;
    Ok(endpoint.ip())
}

/// A copy of the program where every user may run it, which the build directory need not allow. Copied by another process:
/// a file that this one has open for writing would be "busy" in whatever another test starts meanwhile.
fn copy_for_all(host: &Host) -> Result<String> {
    let copy = host.ns.files()?.join("ntcp-overlay").to_string_lossy().into_owned();
    host.ns.run(&["cp", env!("CARGO_BIN_EXE_ntcp-overlay"), &copy])?;
    Ok(copy)
}

/// Writes a host's configuration; answers the file's name.
fn configured(host: &Host, text: &str) -> Result<String> {
    let file = host.ns.files()?.join("overlay.toml");
    fs::write(&file, text)?;
    Ok(file.to_string_lossy().into_owned())
}

/// The peer stays behind a relay for a while in which a direct path would have been found.
fn stays_relayed(daemon: &Daemon, peer: &str) -> Result<PeerPath> {
    daemon.wait_relay(peer, PATIENCE)?;
    interrupt::pause(Duration::from_secs(6))?;
    let path = daemon.peer(peer)?.context("the peer has vanished")?;
    ensure!(path.path == "relay", "expected the relay, got {:#}", path.all);
    ensure!(path.all.get("why").is_some_and(|why| why.is_string()), "no reason is given: {:#}", path.all);
    Ok(path)
}

#[test]
fn two_machines_behind_nats_reach_each_other_with_ping_ssh_and_curl() {
    lab::test(|lab| {
        let world = World::ordinary(lab, &Link::delayed(DELAY))?;
        let (alice, bob) = (&world.alice, &world.bob);
        let (a, b) = (alice.address()?, bob.address()?);
        world.meet()?;
        alice.ns().run(&["ping", "-c", "2", "-i", "0.2", "bob"])?;
        bob.ns().run(&["ping", "-c", "2", "-i", "0.2", "alice"])?;
        for (from, to) in [(alice, bob), (bob, alice)] {
            for address in to.addresses()?.iter().filter(|address| address.is_ipv6()) {
                from.ns().run(&["ping", "-c", "1", "-w", "10", &address.to_string()])?;
            }
        }
        let path = alice.wait_direct("bob", PATIENCE)?;
        let [_, work] = &world.routers;
        ensure!(path.path == "direct-udp" && endpoint_ip(&path)? == IpAddr::V4(work.wan()), "{path:?}");

        let sshd = SshServer::start(bob.ns(), IpAddr::V4(b))?;
        ensure!(sshd.run(alice.ns(), "bob", "hostname")?.trim() == "bob");
        // A megabyte: a wrong MTU or MSS hangs here and not in a hostname.
        let far = sshd.run(alice.ns(), "bob", "head -c 1000000 /dev/zero")?;
        ensure!(far.len() == 1_000_000, "ssh brought {} of 1000000 bytes", far.len());

        let www = alice.ns().files()?;
        fs::write(www.join("index.html"), "hello across two NATs\n")?;
        let (dir, at) = (www.to_string_lossy().into_owned(), a.to_string());
        let mut web =
            alice.ns().spawn(&["python3", "-u", "-m", "http.server", "80", "--bind", &at, "-d", &dir])?;
        let url = format!("http://{a}/");
        web.wait_for_line("Serving HTTP", PATIENCE)?;
        ensure!(bob.ns().run(&["curl", "-sS", &url])? == "hello across two NATs\n");

        world.alice.stop()?;
        world.bob.stop()
    });
}

#[test]
fn an_ssh_session_survives_the_loss_of_the_direct_path_and_its_return() {
    lab::test(|lab| {
        let world = World::ordinary(lab, &Link::delayed(DELAY))?;
        world.meet()?;
        world.alice.wait_direct("bob", PATIENCE)?;
        let sshd = SshServer::start(world.bob.ns(), IpAddr::V4(world.bob.address()?))?;
        let mut session = sshd.session(world.alice.ns(), "bob", COUNTER)?;
        session.advance(5, PATIENCE)?;

        world.block()?;
        let cut = Instant::now();
        session.advance(10, PATIENCE).context("after the direct path was cut")?;
        // By the relay at first; if that took long, TCP is direct by now.
        let path = world.alice.wait_path("bob", "anything but UDP", PATIENCE, |path| {
            path.path == "relay" || path.path == "direct-tcp"
        })?;
        say(&format!("direct path cut: ten ticks later after {:.1?}, by {}", cut.elapsed(), path.path));

        world.unblock()?;
        let open = Instant::now();
        world.alice.wait_path("bob", "UDP or TCP", PATIENCE, |path| path.direct())?;
        say(&format!("direct path possible again: taken after {:.1?}", open.elapsed()));
        session.advance(10, PATIENCE).context("back on the direct path")?;
        Ok(())
    });
}

#[test]
fn up_without_configuration_prints_a_line_that_works_word_for_word_elsewhere() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let first = net.host("founder", &Link::Plain)?;
        let home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let second = home.host("laptop")?;
        let product = product()?;
        let mut founder = product.type_line(&first.ns, "sudo ntcp-overlay up")?;
        let line = founder.process.wait_for_line("up --join ", PATIENCE)?;
        let line = line.get(line.find("sudo ntcp-overlay up --join").context("no sudo in the line")?..);
        let laptop = product.type_line(&second.ns, line.context("nothing after it")?.trim())?;
        meet(&founder, &laptop)?;
        laptop.wait_direct("founder", PATIENCE)?;

        // The line was good once.
        let third = net.host("third", &Link::Plain)?;
        let again = product.type_line(&third.ns, line.context("nothing after it")?.trim());
        ensure!(again.is_err(), "an invite was good twice");

        // Leaving in order leaves nothing.
        laptop.run(&["down"])?;
        interrupt::wait_for("the interface to go", PATIENCE, || Ok(laptop.address().is_err().then_some(())))?;
        let routes = second.ns.run(&["ip", "route"])?;
        ensure!(!routes.contains("10.77."), "routes remain:\n{routes}");
        Ok(())
    });
}

#[test]
fn debians_wireguard_configured_by_wg_alone_is_a_peer() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (a, phone) = (net.host("alice", &Link::Plain)?, net.host("phone", &Link::Plain)?);
        let keys = wireguard::keys(&phone.ns)?;
        let preshared = phone.ns.run(&["wg", "genpsk"])?.trim().to_owned();
        let config = a.ns.files()?.join("overlay.toml");
        fs::write(
            &config,
            format!(
                "[member]\nlisten_port = 4242\n[[wireguard_peer]]\nname = \"phone\"\npublic_key = \"{}\"\n\
                 addresses = [\"10.77.200.1\"]\npreshared_key = \"{preshared}\"\n",
                keys.public
            ),
        )?;
        fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let alice = product()?.member(&a.ns, &["up", "--config", &config.to_string_lossy()])?;
        let public = alice.status()?.get("public_key").and_then(|key| key.as_str().map(str::to_owned));
        let public = public.context("status says no public key")?;
        let (endpoint, ours) = (format!("{}:4242", a.v4), alice.address()?);
        let allowed = format!("{ours}/32");
        let peer = wireguard::Peer {
            public: &public,
            endpoint: Some(&endpoint),
            allowed: &allowed,
            preshared: Some(&preshared),
        };
        let tunnel = Tunnel::start(&phone.ns, &keys, [10, 77, 200, 1].into(), &peer)?;
        phone.ns.run(&["ping", "-c", "3", "-i", "0.3", "-w", "30", &ours.to_string()])?;
        ensure!(tunnel.last_handshake()? > 0, "wg knows of no handshake");
        a.ns.run(&["ping", "-c", "3", "-i", "0.3", "-w", "30", "10.77.200.1"])?;
        let path = alice.peer("phone")?.context("status does not list the phone")?;
        ensure!(path.path == "direct-udp", "{:#}", path.all);
        Ok(())
    });
}

#[test]
fn where_udp_is_blocked_the_relay_is_reached_by_tcp() {
    lab::test(|lab| {
        let site = Site::new(Nat::PortRestricted);
        let sites = [site.lan(1).no_udp(), site.lan(2)];
        // Otherwise a direct TCP connection would take the relay's place.
        let only_udp = "[member]\ntransport = \"udp\"\n";
        let world = World::configured(lab, sites, &Link::delayed(DELAY), only_udp)?;
        world.meet()?;
        let path = world.alice.wait_relay("bob", PATIENCE)?;
        let transport = path.all.get("relay_transport").and_then(|value| value.as_str());
        ensure!(matches!(transport, Some("tcp" | "splice")), "{:#}", path.all);
        let sshd = SshServer::start(world.bob.ns(), IpAddr::V4(world.bob.address()?))?;
        let bytes = sshd.run(world.alice.ns(), "bob", "head -c 1000000 /dev/zero")?.len();
        ensure!(bytes == 1_000_000, "ssh brought {bytes} of 1000000 bytes");
        Ok(())
    });
}

#[test]
fn behind_one_nat_without_hairpin_members_meet_by_their_inner_addresses() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::delayed(DELAY))?;
        let home = net.site("home", Site::new(Nat::PortRestricted), &Link::delayed(DELAY))?;
        let (a, b) = (home.host("alice")?, home.host("bob")?);
        let mesh = Mesh::found(&product()?, &server, "")?;
        let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
        meet(&alice, &bob)?;
        let path = alice.wait_direct("bob", PATIENCE)?;
        ensure!(endpoint_ip(&path)? == IpAddr::V4(b.v4), "not the inner address: {path:?}");
        Ok(())
    });
}

#[test]
fn members_with_the_same_private_network_and_address_meet_by_their_outer_ones() {
    lab::test(|lab| {
        let site = Site::new(Nat::PortRestricted);
        let world = World::new(lab, [site, site], &Link::delayed(DELAY))?;
        world.meet()?;
        let path = world.alice.wait_direct("bob", PATIENCE)?;
        let [_, work] = &world.routers;
        ensure!(endpoint_ip(&path)? == IpAddr::V4(work.wan()), "{path:?}");
        Ok(())
    });
}

#[test]
fn ipv6_between_stateful_firewalls_is_direct_where_ipv4_cannot_be() {
    lab::test(|lab| {
        let site = Site::new(Nat::SymmetricRandom).v6(V6::Firewall);
        let world = World::new(lab, [site.lan(1), site.lan(2)], &Link::delayed(DELAY))?;
        world.meet()?;
        let path = world.alice.wait_direct("bob", PATIENCE)?;
        ensure!(endpoint_ip(&path)?.is_ipv6(), "{path:?}");
        Ok(())
    });
}

#[test]
fn homes_behind_different_carriers_meet_directly() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::delayed(DELAY))?;
        let (home, carrier) = (Site::new(Nat::PortRestricted), Site::new(Nat::PortRestricted));
        let carrier = carrier.network(Ipv4Addr::new(100, 64, 0, 0));
        let north = net.site("north", carrier, &Link::delayed(DELAY))?;
        let south = net.site("south", carrier, &Link::delayed(DELAY))?;
        let a_home = north.site("a-home", home.lan(1), &Link::Plain)?;
        let b_home = south.site("b-home", home.lan(2), &Link::Plain)?;
        let (a, b) = (a_home.host("alice")?, b_home.host("bob")?);
        let mesh = Mesh::found(&product()?, &server, "")?;
        let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
        meet(&alice, &bob)?;
        let path = alice.wait_direct("bob", PATIENCE)?;
        ensure!(endpoint_ip(&path)? == IpAddr::V4(south.wan()), "{path:?}");
        Ok(())
    });
}

#[test]
fn homes_behind_one_carrier_meet_directly_only_with_its_hairpin() {
    for hairpin in [true, false] {
        lab::test(|lab| {
            let net = Internet::new(lab)?;
            let server = net.host("server", &Link::delayed(DELAY))?;
            let carrier = Site::new(Nat::PortRestricted).network(Ipv4Addr::new(100, 64, 0, 0));
            let carrier = if hairpin { carrier.hairpin() } else { carrier };
            let isp = net.site("isp", carrier, &Link::delayed(DELAY))?;
            let home = Site::new(Nat::PortRestricted);
            let a_home = isp.site("a-home", home.lan(1), &Link::Plain)?;
            let b_home = isp.site("b-home", home.lan(2), &Link::Plain)?;
            let (a, b) = (a_home.host("alice")?, b_home.host("bob")?);
            let mesh = Mesh::found(&product()?, &server, "")?;
            let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
            meet(&alice, &bob)?;
            if hairpin {
                alice.wait_direct("bob", PATIENCE).map(drop)
            } else {
                stays_relayed(&alice, "bob").map(drop)
            }
        });
    }
}

#[test]
fn a_stun_server_inside_the_carriers_network_shows_its_customers_a_direct_way() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::delayed(DELAY))?;
        let carrier = Site::new(Nat::PortRestricted).network(Ipv4Addr::new(100, 64, 0, 0));
        let isp = net.site("isp", carrier, &Link::delayed(DELAY))?;
        let home = Site::new(Nat::PortRestricted);
        let a_home = isp.site("a-home", home.lan(1), &Link::Plain)?;
        let b_home = isp.site("b-home", home.lan(2), &Link::Plain)?;
        let (a, b) = (a_home.host("alice")?, b_home.host("bob")?);

        let inside = isp.host("stun")?;
        let stun = configured(&inside, "[stun]\nenabled = true\n")?;
        let _stun = product()?.daemon(&inside.ns, &["serve", "--config", &stun])?;
        let servers = format!("[member]\nstun_servers = [\"{}:3478\"]\n", inside.v4);
        let mesh = Mesh::found(&product()?, &server, "")?;
        let alice = mesh.join(&a, &["--config", &configured(&a, &servers)?])?;
        let bob = mesh.join(&b, &["--config", &configured(&b, &servers)?])?;
        meet(&alice, &bob)?;
        let path = alice.wait_direct("bob", PATIENCE)?;
        ensure!(endpoint_ip(&path)? == IpAddr::V4(b_home.wan()), "{path:?}");
        Ok(())
    });
}

#[test]
fn two_symmetric_nats_are_relayed_and_say_why() {
    lab::test(|lab| {
        let sites = [1, 2].map(|lan| Site::new(Nat::SymmetricRandom).lan(lan));
        let world = World::new(lab, sites, &Link::delayed(DELAY))?;
        world.meet()?;
        let path = stays_relayed(&world.alice, "bob")?;
        let why = path.all.get("why").and_then(|why| why.as_str()).unwrap_or_default().to_owned();
        say(&format!("symmetric x symmetric, the reason given: {why}"));
        Ok(())
    });
}

#[test]
fn a_symmetric_nat_opposite_a_full_cone_is_direct() {
    lab::test(|lab| {
        let sites = [Site::new(Nat::SymmetricRandom).lan(1), Site::new(Nat::FullCone).lan(2)];
        let world = World::new(lab, sites, &Link::delayed(DELAY))?;
        world.meet()?;
        world.alice.wait_direct("bob", PATIENCE)?;
        world.bob.wait_direct("alice", PATIENCE)?;
        Ok(())
    });
}

#[test]
fn a_path_with_an_mtu_of_1280_carries_ssh() {
    lab::test(|lab| {
        let world = World::ordinary(lab, &Link::Plain)?;
        let [home, _] = &world.routers;
        home.set_uplink_mtu(1280)?;
        world.meet()?;
        let sshd = SshServer::start(world.bob.ns(), IpAddr::V4(world.bob.address()?))?;
        let bytes = sshd.run(world.alice.ns(), "bob", "head -c 1000000 /dev/zero")?.len();
        ensure!(bytes == 1_000_000, "ssh brought {bytes} of 1000000 bytes");
        Ok(())
    });
}

#[test]
fn a_broker_that_restarts_is_found_again_and_sessions_never_notice() {
    lab::test(|lab| {
        let mut world = World::ordinary(lab, &Link::Plain)?;
        world.meet()?;
        world.alice.wait_direct("bob", PATIENCE)?;
        let addresses = (world.alice.address()?, world.bob.address()?);
        world.mesh.server.take().context("no server")?.stop()?;
        ensure!(world.alice.pings(&addresses.1.to_string())?, "a direct path died with the broker");
        world.mesh.serve()?;

        // A member that has never met the others needs the broker, and so do they.
        let c = world.net.site("cafe", Site::new(Nat::PortRestricted).lan(3), &Link::Plain)?.host("carol")?;
        let carol = world.mesh.join(&c, &[])?;
        meet(&carol, &world.alice)?;
        carol.wait_direct("alice", PATIENCE)?;
        ensure!(addresses == (world.alice.address()?, world.bob.address()?));
        Ok(())
    });
}

#[test]
fn a_member_that_is_killed_starts_clean_under_its_old_name_and_address() {
    lab::test(|lab| {
        let world = World::ordinary(lab, &Link::Plain)?;
        world.meet()?;
        let before = world.alice.addresses()?;
        let ns = world.alice.ns().clone();
        world.alice.crash()?;
        let alice = product()?.member(&ns, &["up", "--hosts"])?;
        ensure!(before == alice.addresses()?, "other addresses after a crash: {before:?}");
        let overlay = ns.run(&["ip", "-brief", "link"])?;
        ensure!(overlay.lines().filter(|line| line.starts_with("ntcp")).count() == 1, "{overlay}");
        meet(&alice, &world.bob)?;
        let hosts = ns.hosts();
        ensure!(hosts.matches("\tbob").count() <= 2, "the names stand twice in the hosts file:\n{hosts}");
        alice.stop()?;
        ensure!(!ns.hosts().contains("bob"), "names remain in the hosts file:\n{}", ns.hosts());

        // Killed for good: what remains goes with one command.
        let bob = world.bob.ns().clone();
        world.bob.crash()?;
        product()?.run(&bob, &["down", "--cleanup"])?;
        let (routes, hosts) = (bob.run(&["ip", "route"])?, bob.hosts());
        ensure!(!routes.contains("10.77.") && !hosts.contains("alice"), "left behind:\n{routes}{hosts}");
        Ok(())
    });
}

#[test]
fn a_revoked_member_is_cut_off_within_seconds() {
    lab::test(|lab| {
        let mut world = World::ordinary(lab, &Link::Plain)?;
        world.meet()?;
        world.alice.wait_direct("bob", PATIENCE)?;
        let bob = world.bob.address()?.to_string();
        let start = Instant::now();
        world.mesh.admin(&["cert", "revoke", "bob"])?;
        interrupt::wait_for("bob to be cut off", PATIENCE, || {
            let words = ["ping", "-c", "1", "-W", "1", &bob];
            let output = world.alice.ns().try_run(&words, Duration::from_secs(10))?;
            Ok((!output.status.success()).then_some(()))
        })?;
        say(&format!("a revoked member was cut off after {:.1?}", start.elapsed()));
        ensure!(!world.alice.pings(&bob)?, "a revoked member came back");
        // It ends with a code that says: starting me again is of no use.
        let status = world.bob.process.wait(PATIENCE)?;
        ensure!(status.code() == Some(4), "{status}");
        Ok(())
    });
}

#[test]
fn serving_needs_no_root() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (server, a) = (net.host("server", &Link::Plain)?, net.host("alice", &Link::Plain)?);
        let product = product()?;
        let dir = server.ns.files()?;
        let (state, control) = (dir.join("state"), dir.join("control.sock"));
        let (state, control) = (state.to_string_lossy(), control.to_string_lossy());
        fs::write(
            dir.join("overlay.toml"),
            format!(
                "[broker]\nenabled = true\nadvertise = [\"{0}:6060\"]\n[relay]\nenabled = true\nadvertise = [\"{0}:6061\"]\n",
                server.v4
            ),
        )?;
        product.run(
            &server.ns,
            &["cert", "init", "--network", "lab", "--broker", "hub", "--relay", "ferry", "--dir", &state],
        )?;
        server.ns.run(&["chown", "-R", "65534:65534", &dir.to_string_lossy()])?;
        let config = dir.join("overlay.toml");
        let copy = copy_for_all(&server)?;
        let _serve = server.ns.spawn(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            &copy,
            "serve",
            "--config",
            &config.to_string_lossy(),
            "--state-dir",
            &state,
            "--control",
            &control,
        ])?;
        let invite = interrupt::wait_for("an invite", PATIENCE, || {
            let output = product.try_run(&server.ns, &["invite", "--control", &control])?;
            Ok(output.status.success().then(|| output.stdout.trim().to_owned()))
        })?;
        let alice = product.member(&a.ns, &["up", "--join", &invite])?;
        ensure!(alice.address()?.octets().starts_with(&[10, 77]));
        Ok(())
    });
}

#[test]
fn a_member_without_root_is_refused_with_a_word_on_what_to_do() {
    lab::test(|lab| {
        let host = Internet::new(lab)?.host("host", &Link::Plain)?;
        let bin = copy_for_all(&host)?;
        let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &bin, "up"];
        let output = host.ns.try_run(&words, PATIENCE)?;
        ensure!(output.code() == Some(4), "exit code {:?}: {}", output.code(), output.stderr);
        ensure!(output.stderr.contains("sudo") || output.stderr.contains("root"), "{}", output.stderr);
        Ok(())
    });
}

#[test]
fn garbage_on_every_listener_gets_no_answer_and_does_no_harm() {
    lab::test(|lab| {
        let world = World::ordinary(lab, &Link::Plain)?;
        world.meet()?;
        let stranger = world.net.host("stranger", &Link::Plain)?;
        let server = IpAddr::V4(world.server.v4);
        let mut noise = Vec::new();
        fs::File::open("/dev/urandom")?.take(60_000).read_to_end(&mut noise)?;
        let socket = probe::socket(&stranger.ns, (stranger.v4, 0).into())?;
        for port in [6060, 6061] {
            for size in [0, 1, 4, 20, 32, 92, 148, 1400] {
                socket.send_to(noise.get(..size).unwrap_or_default(), (server, port))?;
            }
            ensure!(socket.recv_from(&mut [0; 2048]).is_err(), "UDP port {port} answers garbage");
            let data = noise.clone();
            let answer = stranger.ns.inside(move || -> Result<usize> {
                let mut stream = TcpStream::connect_timeout(&(server, port).into(), PATIENCE)?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                drop(stream.write_all(&data)); // it may hang up on us in the middle
                let mut answer = Vec::new();
                drop(stream.read_to_end(&mut answer));
                Ok(answer.len())
            })??;
            // A TLS alert is seven bytes.
            ensure!(answer <= 7, "TCP port {port} answers garbage with {answer} bytes");
        }
        let server = world.mesh.server.as_ref().context("no server")?;
        server.status().context("the server after garbage")?;
        ensure!(world.alice.pings(&world.bob.address()?.to_string())?);
        Ok(())
    });
}

#[test]
fn the_first_ping_between_strangers_in_figures() {
    for settled in [true, false] {
        lab::test(|lab| {
            let world = World::ordinary(lab, &Link::delayed(DELAY))?;
            world.alice.wait_knows("bob", PATIENCE)?;
            if settled {
                // Machines that have just joined do not know their mapped address yet; usually they are up for longer.
                world.alice.wait_mapped(PATIENCE)?;
                world.bob.wait_mapped(PATIENCE)?;
            }
            let start = Instant::now();
            let first = world.alice.first_ping(&world.bob.address()?.to_string(), PATIENCE)?;
            world.alice.wait_direct("bob", PATIENCE)?;
            let round_trip = DELAY * 4;
            say(&format!(
                "first ping over 20 ms lines{}: answered after {first:.0?} ({:.1} round trips to the broker, each \
                 {round_trip:?}), direct within {:.0?}",
                if settled { "" } else { ", the moment both have joined" },
                first.as_secs_f64() / round_trip.as_secs_f64(),
                start.elapsed()
            ));
            Ok(())
        });
    }
}
