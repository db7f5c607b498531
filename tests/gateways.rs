//! Routers that open ports on request: the real binary against Debian's miniupnpd, by PCP and UPnP, with other people's
//! clients to look at what it opened; see `tests/e2e.rs` on how such tests run. (NAT-PMP alone is what no miniupnpd speaks:
//! that is tested in `io::portmap`.)

#![allow(clippy::disallowed_methods, reason = "a test of the whole measures with the real clock")]

use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Gateway;
use ntcp_lab::Host;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Router;
use ntcp_lab::Site;
use ntcp_lab::gateway::Speaks;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;
use serde_json::Value;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);
/// A gateway that has started anew is noticed within a minute, and the test must not be the one that is late.
const RENEWAL: Duration = Duration::from_secs(150);

fn product() -> Result<Product> {
    Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))
}

/// A host's configuration with these lines under `[member]`; answers the file's name.
fn configured(host: &Host, lines: &str) -> Result<String> {
    let file = host.ns.files()?.join("overlay.toml");
    fs::write(&file, format!("[member]\n{lines}\n"))?;
    Ok(file.to_string_lossy().into_owned())
}

/// What `status --json` says of the router.
fn router_of(daemon: &Daemon) -> Result<Value> {
    Ok(daemon.status()?.get("gateway").cloned().unwrap_or_default())
}

/// One forwarded port as the status tells it: transport, protocol, endpoint, worth.
fn forwarded(daemon: &Daemon) -> Result<Vec<(String, String, SocketAddr, String)>> {
    let router = router_of(daemon)?;
    let ports = router.get("forwarded").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |port: &Value, key: &str| port.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    ports
        .iter()
        .map(|port| {
            let external = text(port, "external").parse().context("no endpoint")?;
            Ok((text(port, "transport"), text(port, "protocol"), external, text(port, "worth")))
        })
        .collect()
}

/// Waits until UDP and TCP are forwarded.
fn wait_forwarded(daemon: &Daemon, limit: Duration) -> Result<Vec<(String, String, SocketAddr, String)>> {
    let what = format!("the router of {} to forward two ports", daemon.ns().name());
    interrupt::wait_for(&what, limit, || Ok(Some(forwarded(daemon)?).filter(|ports| ports.len() == 2)))
        .with_context(|| format!("{:#}", router_of(daemon).unwrap_or_default()))
}

/// The router's own rules, as the kernel has them.
fn rules(router: &Router<'_>) -> Result<String> {
    router.ns().run(&["nft", "list", "table", "inet", "ntl_upnp"])
}

/// Which ports a stranger's client finds open at the router.
fn listed(host: &Host) -> Result<String> {
    Ok(host.ns.try_run(&["upnpc", "-l"], PATIENCE)?.stdout)
}

#[test]
fn two_random_nats_meet_directly_once_one_router_forwards_a_port() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        let home = net.site("home", Site::new(Nat::SymmetricRandom).lan(1), &Link::Plain)?;
        let work = net.site("work", Site::new(Nat::SymmetricRandom).lan(2), &Link::Plain)?;
        let _gateway = Gateway::start(&home, Speaks::ALL)?;
        let host = home.host("alice")?;
        let started = Instant::now();
        let (alice, bob) = (mesh.join(&host, &[])?, mesh.join(&work.host("bob")?, &[])?);
        let ports = wait_forwarded(&alice, PATIENCE)?;
        say(&format!("two ports forwarded by PCP {:.1?} after the start", started.elapsed()));
        for (transport, protocol, external, worth) in &ports {
            ensure!(protocol == "pcp" && worth == "public", "{transport}: {protocol}, {worth}");
            ensure!(external.ip() == IpAddr::V4(home.wan()), "{external} is not the router");
        }
        let shown = listed(&host)?;
        for (transport, _, external, _) in &ports {
            let wanted = format!("{} {:5}->{}:", transport.to_uppercase(), external.port(), host.v4);
            ensure!(shown.contains(&wanted), "upnpc does not show {wanted}:\n{shown}");
        }

        let (transport, _, external, _) = ports.first().context("no port")?;
        ensure!(transport == "udp");
        bob.first_ping(&alice.address()?.to_string(), PATIENCE)?;
        let path = bob.wait_direct("alice", PATIENCE)?;
        ensure!(path.endpoint == external.to_string(), "expected {external}, got {:#}", path.all);

        // The same outside for TCP: somebody who is no member gets a connection, and no byte.
        let (_, _, external, _) = ports.iter().find(|port| port.0 == "tcp").context("no TCP port")?.clone();
        let stranger = net.host("stranger", &Link::Plain)?;
        stranger.ns.inside(move || TcpStream::connect_timeout(&external, PATIENCE))??;

        alice.stop()?;
        let left = rules(&home)?;
        ensure!(!left.contains("dnat"), "ports stay open after the end:\n{left}");
        Ok(())
    });
}

#[test]
fn where_no_udp_passes_the_forwarded_tcp_port_carries_between_two_random_nats() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        let site =
            |name, lan| net.site(name, Site::new(Nat::SymmetricRandom).lan(lan).no_udp(), &Link::Plain);
        let (home, work) = (site("home", 1)?, site("work", 2)?);
        let _gateway = Gateway::start(&home, Speaks::ALL)?;
        let (alice, bob) = (mesh.join(&home.host("alice")?, &[])?, mesh.join(&work.host("bob")?, &[])?);
        let ports = wait_forwarded(&alice, PATIENCE)?;
        let (_, _, external, _) = ports.iter().find(|port| port.0 == "tcp").context("no TCP port")?;
        bob.first_ping(&alice.address()?.to_string(), PATIENCE)?;
        let path = bob.wait_path("alice", "direct TCP", PATIENCE, |path| path.path == "direct-tcp")?;
        ensure!(path.endpoint == external.to_string(), "expected {external}, got {:#}", path.all);
        Ok(())
    });
}

#[test]
fn where_only_upnp_is_spoken_it_serves_and_is_given_back_too() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        let home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let _gateway = Gateway::start(&home, Speaks { upnp: true, pcp: false })?;
        let host = home.host("alice")?;
        let file = configured(&host, "listen_port = 41000")?;
        let alice = mesh.join(&host, &["--config", &file])?;
        for (transport, protocol, external, worth) in wait_forwarded(&alice, PATIENCE)? {
            ensure!(protocol == "upnp" && worth == "public", "{transport}: {protocol}, {worth}");
            ensure!(external == (home.wan(), 41_000).into(), "{transport}: {external}");
        }
        let shown = listed(&host)?;
        ensure!(shown.contains("41000->") && shown.contains("'ntcp-overlay'"), "{shown}");
        let text = alice.run(&["status"])?;
        ensure!(text.contains(&format!("forwards udp {}:41000 to port 41000 (upnp)", home.wan())), "{text}");
        alice.stop()?;
        let left = rules(&home)?;
        ensure!(!left.contains("dnat"), "ports stay open after the end:\n{left}");
        Ok(())
    });
}

#[test]
fn a_router_below_a_carrier_helps_the_carriers_other_customers_and_is_not_taken_for_public() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        // The carrier's own addresses look public: only what the broker sees tells otherwise.
        let carrier = Site::new(Nat::SymmetricRandom).network([20, 9, 0, 0].into());
        let carrier = net.site("carrier", carrier, &Link::Plain)?;
        let home = carrier.site("home", Site::new(Nat::SymmetricRandom).lan(1), &Link::Plain)?;
        let flat = carrier.site("flat", Site::new(Nat::SymmetricRandom).lan(2), &Link::Plain)?;
        let _gateway = Gateway::start(&home, Speaks::ALL)?;
        let alice = mesh.join(&home.host("alice")?, &[])?;
        let bob = mesh.join(&flat.host("bob")?, &[])?;
        let ports = interrupt::wait_for("the verdict", PATIENCE, || {
            Ok(Some(wait_forwarded(&alice, PATIENCE)?)
                .filter(|all| all.iter().all(|port| port.3 == "elsewhere")))
        })?;
        let candidates = alice.status()?.get("candidates").cloned().context("no candidates")?;
        for (transport, _, external, _) in &ports {
            let same = |candidate: &&Value| {
                candidate.get("address").and_then(Value::as_str) == Some(&external.to_string())
                    && candidate.get("transport").and_then(Value::as_str) == Some(transport)
            };
            let told = candidates.as_array().into_iter().flatten().find(same);
            let kind = told.and_then(|candidate| candidate.get("kind")).and_then(Value::as_str);
            ensure!(kind == Some("inner"), "{transport} {external} is told as {kind:?}: {candidates:#}");
        }
        bob.first_ping(&alice.address()?.to_string(), PATIENCE)?;
        let path = bob.wait_direct("alice", PATIENCE)?;
        ensure!(path.endpoint.starts_with(&format!("{}:", home.wan())), "{:#}", path.all);
        let text = alice.run(&["status"])?;
        ensure!(text.contains("another NAT stands outside"), "{text}");
        Ok(())
    });
}

#[test]
fn a_router_that_has_started_anew_is_asked_again() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        let home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let gateway = Gateway::start(&home, Speaks::ALL)?;
        let alice = mesh.join(&home.host("alice")?, &[])?;
        wait_forwarded(&alice, PATIENCE)?;
        gateway.process.kill()?;
        home.ns().nft("delete table inet ntl_upnp\n")?;
        let _again = Gateway::start(&home, Speaks::ALL)?;
        ensure!(!rules(&home)?.contains("dnat"), "the router has forgotten nothing");
        let started = Instant::now();
        interrupt::wait_for("the ports to be open again", RENEWAL, || {
            Ok((rules(&home)?.matches("dnat").count() == 2).then_some(()))
        })?;
        say(&format!("a router that started anew forwards again after {:.0?}", started.elapsed()));
        Ok(())
    });
}

#[test]
fn a_router_that_refuses_or_is_not_to_be_asked_opens_nothing_and_the_status_says_why() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let mesh = Mesh::found(&product()?, &server, "")?;
        let home = net.site("home", Site::new(Nat::PortRestricted).lan(1), &Link::Plain)?;
        // The lab's router opens no port below 1024. By UPnP alone, because asked by PCP this one looks at all 65535 ports
        // for one that it may open, which takes it longer than anybody waits.
        let _gateway = Gateway::start(&home, Speaks { upnp: true, pcp: false })?;
        let host = home.host("alice")?;
        let file = configured(&host, "listen_port = 999")?;
        let alice = mesh.join(&host, &["--config", &file])?;
        let problem = interrupt::wait_for("the router's refusal", PATIENCE, || {
            Ok(router_of(&alice)?.get("problem").and_then(Value::as_str).map(str::to_owned))
        })?;
        ensure!(problem.contains("forwards no port") && problem.contains("member.candidates"), "{problem}");
        ensure!(alice.run(&["status", "-v"])?.contains(&problem), "the status keeps it to itself");

        let host = home.host("carol")?;
        let file = configured(&host, "port_mapping = false")?;
        let carol = mesh.join(&host, &["--config", &file])?;
        ensure!(router_of(&carol)?.is_null(), "{:#}", router_of(&carol)?);

        let silent = net.site("silent", Site::new(Nat::PortRestricted).lan(2), &Link::Plain)?;
        let dave = mesh.join(&silent.host("dave")?, &[])?;
        let problem = interrupt::wait_for("the silence to be noticed", PATIENCE, || {
            Ok(router_of(&dave)?.get("problem").and_then(Value::as_str).map(str::to_owned))
        })?;
        ensure!(problem.contains("neither PCP, NAT-PMP nor UPnP"), "{problem}");
        ensure!(!rules(&home)?.contains("dnat"), "something was opened");
        Ok(())
    });
}
