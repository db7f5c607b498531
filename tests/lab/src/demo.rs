//! `make demo`: two machines behind two NATs meet, told in plain words, shown with stock programs.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::Nat;
use crate::Router;
use crate::Site;
use crate::ns::Namespace;
use crate::openssh::COUNTER;
use crate::openssh::SshServer;
use crate::probe::tcp_rate;
use crate::product::Daemon;
use crate::product::FOUNDING;
use crate::product::Mesh;
use crate::product::Product;
use crate::product::stun_role;

/// One-way delay of every access line.
const DELAY: Duration = Duration::from_millis(20);

/// How long the overlay may take to find a way, in a demo on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Shows everything; an error names the step that failed.
pub fn run(bin: &Path) -> Result<()> {
    let start = Instant::now();
    let product = Product::new(bin)?;
    let lab = Lab::new()?;
    let link = Link::delayed(DELAY);

    say(
        "An internet on this machine: a server, and two sites, each behind its own NAT. Every line has 20 ms each way.",
    );
    let net = Internet::new(&lab)?;
    let server = net.server("server", &link)?;
    let home = net.site("home", Site::new(Nat::PortRestricted).lan(1), &link)?;
    let work = net.site("work", Site::new(Nat::PortRestricted).lan(2), &link)?;
    let (alice, bob) = (home.host("alice")?, work.host("bob")?);
    tell(&format!("server  {}  public", server.v4));
    tell(&format!("alice   {}  behind {} at {}", alice.v4, Nat::PortRestricted.words(), home.wan()));
    tell(&format!("bob     {}  behind {} at {}", bob.v4, Nat::PortRestricted.words(), work.wan()));
    say("Without an overlay alice has no way to bob:");
    let lost = show(&alice.ns, &["ping", "-c", "1", "-W", "1", &bob.v4.to_string()])?;
    ensure!(!lost, "alice reaches bob without an overlay: the lab is broken");

    say(
        "The administrator creates a network on the server, which introduces the members and relays where it must.",
    );
    let mesh = Mesh::found(&product, &server, &stun_role(&server)).context("creating the network")?;
    tell(&format!("server# ntcp-overlay {}", FOUNDING.join(" ")));
    quote(&mesh.founding);
    tell("server# ntcp-overlay serve --config overlay.toml");

    say("Each machine joins with an invite that works once. Neither router is touched.");
    let a = mesh.join(&alice, &["--hosts"]).context("alice joins")?;
    tell("server# ntcp-overlay invite");
    tell("alice#  ntcp-overlay up --join <invite> --hosts");
    let b = mesh.join(&bob, &["--hosts"]).context("bob joins")?;
    tell("server# ntcp-overlay invite");
    tell("bob#    ntcp-overlay up --join <invite> --hosts");
    let (a_address, b_address) = (a.address()?, b.address()?);
    tell(&format!("alice is {a_address}, bob is {b_address}"));
    a.wait_knows("bob", PATIENCE)?;
    status(&a)?;

    say(
        "The first ping to a machine never talked to before, then a few more, by address and by name, both ways:",
    );
    let first = a.first_ping(&b_address.to_string(), PATIENCE).context("the first ping")?;
    tell(&format!("first answer after {} ms", first.as_millis()));
    must(&alice.ns, &["ping", "-c", "3", "-i", "0.3", &b_address.to_string()])?;
    must(&bob.ns, &["ping", "-c", "3", "-i", "0.3", "alice"])?;
    let path = a.wait_direct("bob", PATIENCE)?;
    tell(&format!("the path is direct: {} {}", path.path, path.endpoint));
    status(&a)?;

    say("ssh from alice into bob's own OpenSSH server, which listens on the overlay address only:");
    let sshd = SshServer::start(&bob.ns, IpAddr::V4(b_address))?;
    tell("alice$ ssh root@bob 'hostname; ip -brief -4 address'");
    quote(&sshd.run(&alice.ns, "bob", "hostname; ip -brief -4 address").context("ssh alice -> bob")?);

    say("curl from bob of a page that python3 serves on alice's overlay address:");
    let www = alice.ns.files()?.join("www");
    std::fs::create_dir_all(&www)?;
    std::fs::write(www.join("index.html"), "Hello from alice, from behind two NATs.\n")?;
    let www = www.to_str().context("a path of the lab is not UTF-8")?.to_owned();
    let address = a_address.to_string();
    let mut web =
        alice.ns.spawn(&["python3", "-u", "-m", "http.server", "80", "--bind", &address, "-d", &www])?;
    web.wait_for_line("Serving HTTP", PATIENCE)?;
    must(&bob.ns, &["curl", "-sS", "http://alice/"])?;

    say("One TCP stream for three seconds:");
    tell(&format!(
        "iperf3 from alice to bob: {:.0} Mbit/s",
        tcp_rate(&alice.ns, &bob.ns, IpAddr::V4(b_address), 3)?
    ));

    survive(&a, &sshd, [&home, &work])?;
    say("The end: who is connected, and how.");
    status(&a)?;
    status(&b)?;

    a.stop().context("alice leaves")?;
    b.stop().context("bob leaves")?;
    drop(mesh);
    drop(lab);
    say(&format!("Everything is removed again. That took {} seconds.", start.elapsed().as_secs()));
    Ok(())
}

/// The same login goes on while the direct path is cut and comes back.
fn survive(alice: &Daemon, sshd: &SshServer, routers: [&Router<'_>; 2]) -> Result<()> {
    let [home, work] = routers;
    say(
        "A login that counts, five times a second. While it runs, both routers begin to drop all UDP between the sites:",
    );
    let mut session = sshd.session(alice.ns(), "bob", COUNTER)?;
    tell(&format!("direct: the session counts {}", session.advance(5, PATIENCE)?));
    home.block_udp(&[work.wan().into()])?;
    work.block_udp(&[home.wan().into()])?;
    let cut = Instant::now();
    let far = session.advance(10, PATIENCE).context("the session over the relay")?;
    alice.wait_relay("bob", PATIENCE)?;
    tell(&format!(
        "over the relay: the same session counts {far}, {:.1} s after the cut",
        cut.elapsed().as_secs_f64()
    ));
    status(alice)?;
    say("The routers let UDP pass again:");
    home.unblock()?;
    work.unblock()?;
    let opened = Instant::now();
    alice.wait_direct("bob", PATIENCE)?;
    let far = session.advance(5, PATIENCE).context("the session back on the direct path")?;
    tell(&format!(
        "direct again after {:.1} s: the same session counts {far}",
        opened.elapsed().as_secs_f64()
    ));
    quote(
        &session
            .process
            .log()
            .lines()
            .rev()
            .take(3)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n"),
    );
    Ok(())
}

fn status(of: &Daemon) -> Result<()> {
    tell(&format!("{}$ ntcp-overlay status", of.ns().name()));
    quote(&of.run(&["status"])?);
    Ok(())
}

/// Runs a command before the audience; whether it succeeded.
fn show(on: &Namespace, words: &[&str]) -> Result<bool> {
    tell(&format!("{}$ {}", on.name(), words.join(" ")));
    let output = on.try_run(words, Duration::from_secs(60))?;
    quote(&output.stdout);
    quote(&output.stderr);
    Ok(output.status.success())
}

fn must(on: &Namespace, words: &[&str]) -> Result<()> {
    ensure!(show(on, words)?, "on {}, `{}` failed", on.name(), words.join(" "));
    Ok(())
}

fn say(text: &str) {
    println!("\n=== {text}");
}

fn tell(text: &str) {
    println!("    {text}");
}

fn quote(text: &str) {
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        println!("      | {line}");
    }
}
