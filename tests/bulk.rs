//! Bytes in bulk between two members, over each direct carrier and between both device backends: what arrives is what was
//! sent. Over TCP the super-packets of one kernel are sealed whole, and the other side's kernel takes them whole or, with
//! the plain backend, in pieces; their checksums are made there, so only the bytes themselves tell whether all is well.

#![allow(clippy::disallowed_methods, reason = "a test of the whole measures with the real clock")]

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Host;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are sent each way.
const BYTES: usize = 4_000_000;

#[test]
fn bulk_arrives_as_it_was_sent_over_each_carrier_and_between_both_backends() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let [server, a, b] = ["server", "alice", "bob"].map(|name| net.host(name, &Link::Plain));
        let (server, a, b) = (server?, a?, b?);
        let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
        let mesh = Mesh::found(&product, &server, "")?;
        drop((mesh.join(&a, &[])?, mesh.join(&b, &[])?));
        for (transport, offloads) in
            [("tcp", [true, true]), ("tcp", [true, false]), ("tcp", [false, false]), ("udp", [true, false])]
        {
            let alice = up(&product, &a, transport, offloads[0])?;
            let bob = up(&product, &b, transport, offloads[1])?;
            alice.first_ping(&bob.address()?.to_string(), PATIENCE)?;
            let path = format!("direct-{transport}");
            alice.wait_path("bob", &path, PATIENCE, |peer| peer.path == path)?;
            bob.wait_path("alice", &path, PATIENCE, |peer| peer.path == path)?;
            for (from, to) in [(&a, &bob), (&b, &alice)] {
                for address in to.addresses()? {
                    let whole = carry(from, to, address).with_context(|| format!("{path} {offloads:?}"))?;
                    ensure!(whole, "{path} {offloads:?}: other bytes came to {address}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_router_that_marks_instead_of_dropping_is_heard_by_the_connections_inside() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let [server, a, b] = ["server", "alice", "bob"].map(|name| net.host(name, &Link::Plain));
        let (server, a, b) = (server?, a?, b?);
        // Whoever connects asks for marks, even if a busy machine makes him ask twice; whoever is asked agrees, by default.
        a.ns.sysctls(&[("net/ipv4/tcp_ecn", "1"), ("net/ipv4/tcp_ecn_fallback", "0")])?;
        let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
        let mesh = Mesh::found(&product, &server, "")?;
        drop((mesh.join(&a, &[])?, mesh.join(&b, &[])?));
        let (alice, bob) = (up(&product, &a, "udp", true)?, up(&product, &b, "udp", true)?);
        alice.first_ping(&bob.address()?.to_string(), PATIENCE)?;
        alice.wait_path("bob", "direct-udp", PATIENCE, |peer| peer.path == "direct-udp")?;

        // The control: nobody marks, and nobody is told of marks.
        for address in bob.addresses()? {
            ensure!(carry(&a, &bob, address)?, "other bytes came to {address}");
        }
        ensure!(told_of_marks(&a)? == 0, "marks were told that nobody made");
        net.core().nft(
            "table inet marks {
                chain forward {
                    type filter hook forward priority 0;
                    ip ecn { ect0, ect1 } numgen inc mod 4 < 1 counter ip ecn set ce
                    ip6 ecn { ect0, ect1 } numgen inc mod 4 < 1 counter ip6 ecn set ce
                }
            }",
        )?;
        for address in bob.addresses()? {
            let before = told_of_marks(&a)?;
            ensure!(carry(&a, &bob, address)?, "other bytes came to {address}");
            let told = told_of_marks(&a)? - before;
            say(&format!("{told} segments to {address} were told to have met congestion"));
            ensure!(
                told > 0,
                "no mark of the router's got to the sender: {}",
                net.core().run(&["nft", "list", "ruleset"])?
            );
        }
        Ok(())
    });
}

/// Segments that a host's TCP has heard to have arrived with a mark: those inside the tunnel, for nothing else of it is TCP
/// with marks.
fn told_of_marks(host: &Host) -> Result<u64> {
    let text = host.ns.inside(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) =
        pairs.find(|(name, _)| *name == "TCPDeliveredCE").context("the kernel does not count marks")?;
    Ok(value.parse()?)
}

/// A member that reaches others in one way alone.
fn up(product: &Product, host: &Host, transport: &str, offload: bool) -> Result<Daemon> {
    let file = host.ns.files()?.join("bulk.toml");
    fs::write(&file, format!("[member]\ntransport = \"{transport}\"\noffload = {offload}\n"))?;
    product.member(&host.ns, &["up", "--config", file.to_str().context("a path is not UTF-8")?])
}

/// Sends [`BYTES`] to `address`; whether just these arrive.
fn carry(from: &Host, to: &Daemon, address: IpAddr) -> Result<bool> {
    let listener = to.ns().inside(move || TcpListener::bind((address, 0)))??;
    let target = listener.local_addr()?;
    let pattern = |n: usize| u8::try_from(n % 251).unwrap_or_default();
    let receiver = thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        Ok(got)
    });
    let mut stream = from.ns.inside(move || TcpStream::connect(target))??;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&(0..BYTES).map(pattern).collect::<Vec<u8>>())?;
    drop(stream);
    let got = receiver.join().ok().context("the receiver panicked")??;
    Ok(got.iter().copied().eq((0..BYTES).map(pattern)))
}
