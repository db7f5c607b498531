//! A relay whose kernel splices: real NATs, real kernels, one TCP connection from member to member.
//!
//! Needs root and the programs of the lab, and `tcpdump` to look at the wire: what is missing is named by `NOT RUN`.

#![allow(clippy::disallowed_methods, reason = "a test of the whole measures with the real clock")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Host;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Namespace;
use ntcp_lab::Nat;
use ntcp_lab::Process;
use ntcp_lab::Router;
use ntcp_lab::Site;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::openssh::COUNTER;
use ntcp_lab::openssh::SshServer;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;
use ntcp_lab::product::stun_role;
use ntcp_lab::product::write_config;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);
/// One way, on each access line.
const DELAY: Duration = Duration::from_millis(20);
/// The ports of `relay.splice_ports`.
const PORTS: &str = "tcp portrange 20000-20999";

fn product() -> Result<Product> {
    Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))
}

/// A relay in public, and two members, each behind a NAT that gives every connection another port.
struct World<'lab> {
    net: Internet<'lab>,
    server: Host,
    mesh: Mesh,
    _routers: [Router<'lab>; 2],
    alice: Daemon,
    bob: Daemon,
}

impl<'lab> World<'lab> {
    fn new(lab: &'lab Lab, sites: [Site; 2], config: &str) -> Result<Self> {
        let net = Internet::new(lab)?;
        let link = Link::delayed(DELAY);
        let server = net.host("server", &link)?;
        let [home, work] = sites;
        let routers = [net.site("home", home, &link)?, net.site("work", work, &link)?];
        let [home, work] = &routers;
        let (a, b) = (home.host("alice")?, work.host("bob")?);
        let mesh = Mesh::found(&product()?, &server, config)?;
        let (alice, bob) = (mesh.join(&a, &["--hosts"])?, mesh.join(&b, &["--hosts"])?);
        Ok(Self { net, server, mesh, _routers: routers, alice, bob })
    }

    fn symmetric(lab: &'lab Lab) -> Result<Self> {
        let site = Site::new(Nat::SymmetricRandom);
        Self::new(lab, [site.lan(1), site.lan(2)], "")
    }

    fn meet(&self) -> Result<()> {
        self.alice.first_ping(&self.bob.address()?.to_string(), PATIENCE)?;
        self.bob.first_ping(&self.alice.address()?.to_string(), PATIENCE)?;
        Ok(())
    }
}

/// Waits until the relay's kernel carries what `daemon` sends to `peer`.
fn wait_spliced(daemon: &Daemon, peer: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        let path = daemon.peer(peer)?;
        let by = path.as_ref().and_then(|path| path.all.get("relay_transport")?.as_str());
        if by == Some("splice") {
            return Ok(());
        }
        ensure!(since.elapsed() < PATIENCE, "not spliced: {path:?}");
        interrupt::pause(Duration::from_millis(100))?;
    }
}

/// What crosses a host's interface at the ports of the splice.
fn capture(ns: &Namespace) -> Result<Process> {
    let mut tcpdump = ns.spawn(&["tcpdump", "-i", "any", "-nn", "-S", "-l", PORTS])?;
    tcpdump.wait_for_line("listening on", PATIENCE)?;
    Ok(tcpdump)
}

/// Segments of one direction, from tcpdump's lines: flags, first and last sequence number.
fn segments(log: &str, outward: bool) -> Vec<(String, u64, u64)> {
    let direction = if outward { " Out " } else { " In " };
    let mut found = Vec::new();
    for line in log.lines().filter(|line| line.contains(direction)) {
        let word = |name: &str| {
            let rest = line.split_once(name)?.1;
            rest.split([',', ' ']).next().map(str::to_owned)
        };
        let (Some(flags), Some(seq)) = (word("Flags "), word(" seq ")) else { continue };
        let (first, last) = seq.split_once(':').unwrap_or((&seq, &seq));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
            found.push((flags, first, last));
        }
    }
    found
}

#[test]
fn between_two_symmetric_nats_there_is_one_tcp_connection_from_end_to_end() {
    lab::test(|lab| {
        if ntcp_lab::tools::find("tcpdump").is_none() {
            say("NOT RUN: tcpdump is not installed: apt-get install tcpdump");
            return Ok(());
        }
        let world = World::symmetric(lab)?;
        let (alice, bob) = (&world.alice, &world.bob);
        let (at_alice, at_bob) = (capture(alice.ns())?, capture(bob.ns())?);
        world.meet()?;
        wait_spliced(alice, "bob")?;
        wait_spliced(bob, "alice")?;

        let before = relayed(&world.server)?;
        let sshd = SshServer::start(bob.ns(), IpAddr::V4(bob.address()?))?;
        let bytes = sshd.run(alice.ns(), "bob", "head -c 5000000 /dev/zero")?.len();
        ensure!(bytes == 5_000_000, "ssh brought {bytes} of 5000000 bytes");
        let copied = relayed(&world.server)? - before;
        ensure!(copied < 100_000, "the relay's process has copied {copied} bytes");
        // No socket of the relay's own machine takes part.
        let sockets = world.server.ns.run(&["ss", "-tanH", "sport >= 20000 and sport <= 20999"])?;
        ensure!(sockets.trim().is_empty(), "{sockets}");

        interrupt::pause(Duration::from_secs(1))?;
        let (at_alice, at_bob) = (at_alice.log(), at_bob.log());
        for (from, to) in [(&at_alice, &at_bob), (&at_bob, &at_alice)] {
            let (sent, received) = (segments(from, true), segments(to, false));
            let syn = sent.iter().rev().find(|(flags, ..)| flags == "[S]" || flags == "[SEW]");
            let (_, isn, _) = syn.with_context(|| format!("no SYN left:\n{from}"))?;
            let answers: BTreeSet<u64> =
                received.iter().filter(|(flags, ..)| flags.contains("S.")).map(|(_, seq, _)| *seq).collect();
            ensure!(
                answers.contains(isn),
                "the SYN {isn} of one side is not in the other's SYN-ACK {answers:?}"
            );
            let end = |all: &[(String, u64, u64)]| {
                all.iter().filter(|(flags, ..)| !flags.contains('S')).map(|(.., last)| *last).max()
            };
            ensure!(
                end(&sent).is_some() && end(&sent) == end(&received),
                "{:?} {:?}",
                end(&sent),
                end(&received)
            );
            ensure!(!from.contains("[R"), "a reset:\n{from}");
            say(&format!("sequence numbers {isn} to {:?} on both sides", end(&sent)));
        }
        Ok(())
    });
}

#[test]
fn where_no_port_of_the_splice_passes_the_kernel_carries_the_members_datagrams() {
    lab::test(|lab| {
        let world = World::symmetric(lab)?;
        let (alice, bob) = (&world.alice, &world.bob);
        for member in [alice, bob] {
            member.ns().nft(
                "table inet wall {\nchain out {\ntype filter hook output priority 0\n\
                 tcp dport 20000-20999 drop\n}\n}\n",
            )?;
        }
        world.meet()?;
        alice.wait_relay("bob", PATIENCE)?;
        let since = Instant::now();
        // Each introduction brings a session of its own.
        let joined = |status: &serde_json::Value| status.pointer("/relay/joined")?.as_u64();
        while joined(&status(&world.server)?).is_none_or(|sessions| sessions == 0) {
            ensure!(since.elapsed() < PATIENCE, "not joined: {:#}", status(&world.server)?);
            interrupt::pause(Duration::from_millis(100))?;
        }
        let session = status(&world.server)?.pointer("/relay/carried/0").cloned().context("no session")?;
        ensure!(session.get("backend").and_then(|b| b.as_str()) == Some("kernel"), "{session}");

        let before = relayed(&world.server)?;
        let sshd = SshServer::start(bob.ns(), IpAddr::V4(bob.address()?))?;
        let bytes = sshd.run(alice.ns(), "bob", "head -c 5000000 /dev/zero")?.len();
        ensure!(bytes == 5_000_000, "ssh brought {bytes} of 5000000 bytes");
        let copied = relayed(&world.server)? - before;
        ensure!(copied < 100_000, "the relay's process has copied {copied} bytes");
        let by_kernel = status(&world.server)?;
        let by_kernel = by_kernel.pointer("/relay/kernel_bytes").and_then(serde_json::Value::as_u64);
        ensure!(by_kernel.is_some_and(|bytes| bytes > 5_000_000), "the kernel has counted {by_kernel:?}");
        Ok(())
    });
}

#[test]
fn when_a_relay_dies_its_members_go_on_by_the_other_one_and_lose_nothing() {
    lab::test(|lab| {
        const BYTES: usize = 100_000_000;
        let world = World::symmetric(lab)?;
        let (alice, bob) = (&world.alice, &world.bob);
        // Nearer than the server, and the last one by name.
        let spare = world.net.host("spare", &Link::Plain)?;
        let _spare = world.mesh.add_relay(&spare, &[world.server.v4])?;
        for member in [alice, bob] {
            wait_measured(member)?;
        }
        world.meet()?;
        wait_spliced(alice, "bob")?;
        wait_spliced(bob, "alice")?;
        let carrier = relay_of(alice)?;
        ensure!(carrier == "spare", "not the nearest relay, but {carrier}");
        // Long enough for both to have taken their places at the other relay.
        interrupt::pause(Duration::from_secs(3))?;

        let sshd = SshServer::start(bob.ns(), IpAddr::V4(bob.address()?))?;
        let mut session = sshd.session(alice.ns(), "bob", COUNTER)?;
        session.advance(5, PATIENCE)?;
        let copy = format!("yes | head -c {BYTES}");
        let words = sshd.login(alice.ns(), "bob", &copy)?;
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let mut copying = alice.ns().spawn(&["sh", "-c", &format!("{} | sha256sum", words.join(" "))])?;
        interrupt::pause(Duration::from_millis(1500))?;
        ensure!(copying.ended()?.is_none(), "the copy was over before the relay died: make it longer");

        let died = Instant::now();
        spare.ns.ip("link set eth0 down")?;
        while relay_of(alice)? == carrier || relay_of(bob)? == carrier {
            ensure!(died.elapsed() < PATIENCE, "still at the dead relay: {:?}", alice.peer("bob")?);
            interrupt::pause(Duration::from_millis(20))?;
        }
        say(&format!("both members at the other relay {:?} after {carrier} died", died.elapsed()));
        session.advance(10, PATIENCE)?;
        let wanted = alice.ns().run(&["sh", "-c", &format!("{copy} | sha256sum")])?;
        copying.wait(PATIENCE * 3)?;
        ensure!(copying.log().contains(wanted.trim()), "{} is not {wanted}", copying.log());
        session.advance(5, PATIENCE)?;
        Ok(())
    });
}

#[test]
fn where_the_network_has_no_relay_a_member_behind_a_full_cone_serves_as_one() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let link = Link::delayed(DELAY);
        let server = net.server("server", &link)?;
        let config = format!(
            "[broker]\nenabled = true\nadvertise = [\"{}:6060\"]\n[relay]\nenabled = false\n{}",
            server.v4,
            stun_role(&server)
        );
        let mesh = Mesh::found_with(&product()?, &server, &config)?;
        let site = |nat| Site::new(nat);
        let home = net.site("home", site(Nat::SymmetricRandom).lan(1), &link)?;
        let work = net.site("work", site(Nat::SymmetricRandom).lan(2), &link)?;
        let cafe = net.site("cafe", site(Nat::FullCone).lan(3), &link)?;
        let carol = cafe.host("carol")?;
        let config = write_config(&carol, "[relay]\nserve = \"network\"\n")?;
        let invite = mesh.admin(&["invite", "--may-relay"])?;
        let words = ["up", "--join", invite.trim(), "--name", "carol", "--config", &config];
        let carol = product()?.member(&carol.ns, &words)?;
        let served = || -> Result<Option<serde_json::Value>> {
            Ok(carol
                .status()?
                .pointer("/relay")
                .filter(|relay| relay.get("listen").is_some_and(|at| at.get(0).is_some()))
                .cloned())
        };
        let role = interrupt::wait_for("carol to find out that everybody reaches her", PATIENCE, &served)?;
        say(&format!("carol relays: {role}"));

        let (alice, bob) = (mesh.join(&home.host("alice")?, &[])?, mesh.join(&work.host("bob")?, &[])?);
        alice.first_ping(&bob.address()?.to_string(), PATIENCE)?;
        alice.wait_relay("bob", PATIENCE)?;
        ensure!(relay_of(&alice)? == "carol", "{:#}", alice.status()?);
        let role = served()?.context("carol has stopped relaying")?;
        ensure!(role.get("sessions").and_then(serde_json::Value::as_u64) > Some(0), "{role}");
        // She is a member like any other, too.
        alice.first_ping(&carol.address()?.to_string(), PATIENCE)?;
        alice.wait_direct("carol", PATIENCE)?;
        Ok(())
    });
}

#[test]
fn a_relay_without_the_right_to_splice_copies_and_says_why() {
    lab::test(|lab| {
        let site = Site::new(Nat::SymmetricRandom);
        let world = World::new(lab, [site.lan(1), site.lan(2)], "splice_ports = \"none\"\n")?;
        world.meet()?;
        let path = world.alice.wait_relay("bob", PATIENCE)?;
        ensure!(path.all.get("relay_transport").and_then(|by| by.as_str()) != Some("splice"), "{path:?}");
        let status = status(&world.server)?;
        let why = status.pointer("/relay/no_kernel").and_then(|why| why.as_str()).unwrap_or_default();
        ensure!(why.contains("relay.splice_ports"), "{status:#}");
        let session = status.pointer("/relay/carried/0").context("no session is listed")?;
        ensure!(session.get("backend").and_then(|b| b.as_str()) == Some("userspace"), "{session}");
        Ok(())
    });
}

#[test]
fn the_relays_table_goes_with_the_relay_and_after_a_crash_with_cleanup_or_the_next_start() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let host = net.host("server", &Link::Plain)?;
        let mut mesh = Mesh::found(&product()?, &host, "")?;
        let table =
            || -> Result<bool> { Ok(host.ns.run(&["nft", "list", "tables"])?.contains("ntcp_relay")) };
        ensure!(table()?, "no table while it runs");
        mesh.server.take().context("no server")?.stop()?;
        ensure!(!table()?, "the table stayed after a clean end");

        mesh.serve()?;
        mesh.server.take().context("no server")?.crash()?;
        ensure!(table()?, "a killed process removes nothing");
        mesh.serve()?;
        mesh.server.take().context("no server")?.stop()?;
        ensure!(!table()?, "the next start has not taken it over");

        mesh.serve()?;
        mesh.server.take().context("no server")?.crash()?;
        product()?.run(&host.ns, &["down", "--cleanup"])?;
        ensure!(!table()?, "`down --cleanup` has left it");
        Ok(())
    });
}

/// Waits until a member has measured how far both relays are.
fn wait_measured(daemon: &Daemon) -> Result<()> {
    let begun = Instant::now();
    loop {
        let status = daemon.status()?;
        let delays = status.get("relay_delays").and_then(|delays| delays.as_array()).cloned();
        if delays.as_ref().is_some_and(|delays| delays.len() == 2) {
            say(&format!("{}: {}", daemon.ns().name(), serde_json::json!(delays)));
            // The broker hears of it half a round trip later.
            return interrupt::pause(2 * DELAY);
        }
        ensure!(begun.elapsed() < PATIENCE * 2, "not measured: {status:#}");
        interrupt::pause(Duration::from_millis(200))?;
    }
}

/// The relay by which alice and bob are joined now; empty if none is.
fn relay_of(daemon: &Daemon) -> Result<String> {
    let status = daemon.status()?;
    let peers = status.get("peers").and_then(|peers| peers.as_array()).cloned().unwrap_or_default();
    let name = peers.iter().find_map(|peer| peer.get("relay")?.as_str().map(str::to_owned));
    Ok(name.unwrap_or_default())
}

fn status(server: &Host) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&product()?.run(&server.ns, &["status", "--json"])?)?)
}

/// Bytes that the relay's process has handed on.
fn relayed(server: &Host) -> Result<u64> {
    status(server)?
        .pointer("/relay/bytes")
        .and_then(serde_json::Value::as_u64)
        .context("no relay in the status")
}
