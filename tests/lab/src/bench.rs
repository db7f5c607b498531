//! `make bench`: one TCP stream over a bare wire, over the overlay and over wireguard-go, in one run.
//!
//! Only the ratios mean anything: all of it shares the cores of one machine, where the kernel's own path between two
//! namespaces costs almost nothing.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::probe::tcp_rate;
use crate::product::Mesh;
use crate::product::Product;
use crate::topology::Host;
use crate::wireguard;
use crate::wireguard::Peer;
use crate::wireguard::Tunnel;

/// Length of each measurement, s.
const SECONDS: u32 = 6;

/// Measures and prints.
pub fn run(bin: &Path) -> Result<()> {
    let product = Product::new(bin)?;
    let lab = Lab::new()?;
    let net = Internet::new(&lab)?;
    let [server, a, b] = ["server", "alice", "bob"].map(|name| net.host(name, &Link::Plain));
    let (server, a, b) = (server?, a?, b?);

    println!("one TCP stream for {SECONDS} s between two namespaces, Mbit/s; only the ratios mean anything");
    let bare = tcp_rate(&a.ns, &b.ns, IpAddr::V4(b.v4), SECONDS)?;
    println!("{:<24}{bare:>8.0}", "bare veth");
    let stock = stock(&a, &b)?;
    println!("{:<24}{stock:>8.0}   {:.3} of bare", "wireguard-go", stock / bare);

    let mesh = Mesh::found(&product, &server, "")?;
    let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
    let target = bob.address()?;
    alice.first_ping(&target.to_string(), Duration::from_secs(10))?;
    alice.wait_direct("bob", Duration::from_secs(20))?;
    let ours = tcp_rate(&a.ns, &b.ns, IpAddr::V4(target), SECONDS)?;
    println!(
        "{:<24}{ours:>8.0}   {:.3} of bare, {:.2} of wireguard-go",
        "ntcp-overlay",
        ours / bare,
        ours / stock
    );
    Ok(())
}

fn stock(a: &Host, b: &Host) -> Result<f64> {
    let (a_keys, b_keys) = (wireguard::keys(&a.ns)?, wireguard::keys(&b.ns)?);
    let [a_inner, b_inner] = [1, 2].map(|n| IpAddr::V4(Ipv4Addr::new(10, 99, 0, n)));
    let endpoint = format!("{}:51820", b.v4);
    let allowed = format!("{b_inner}/32");
    let to_b = Peer { public: &b_keys.public, endpoint: Some(&endpoint), allowed: &allowed, preshared: None };
    let allowed = format!("{a_inner}/32");
    let to_a = Peer { public: &a_keys.public, endpoint: None, allowed: &allowed, preshared: None };
    let _b = Tunnel::start(&b.ns, &b_keys, b_inner, &to_a)?;
    let _a = Tunnel::start(&a.ns, &a_keys, a_inner, &to_b)?;
    tcp_rate(&a.ns, &b.ns, b_inner, SECONDS)
}
