//! A stock WireGuard: Debian's `wireguard-go`, configured by `wg` alone.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::interrupt;
use crate::ns::Namespace;
use crate::process::Process;

/// Keys as `wg` prints them.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Private, base64.
    pub private: String,
    /// Public, base64.
    pub public: String,
}

/// A fresh key pair.
pub fn keys(on: &Namespace) -> Result<Keys> {
    let made = on.run(&["sh", "-c", "umask 077; k=$(wg genkey); echo $k; echo $k | wg pubkey"])?;
    let mut lines = made.lines().map(str::to_owned);
    let private = lines.next().context("wg genkey printed nothing")?;
    Ok(Keys { private, public: lines.next().context("wg pubkey printed nothing")? })
}

/// The one peer of a [`Tunnel`].
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    /// Public key, base64.
    pub public: &'a str,
    /// `ip:port`, if it is known.
    pub endpoint: Option<&'a str>,
    /// What is routed to it.
    pub allowed: &'a str,
    /// Base64, if both share one.
    pub preshared: Option<&'a str>,
}

/// A running interface `wg0` with one peer.
#[derive(Debug)]
pub struct Tunnel {
    ns: Namespace,
    process: Process,
}

impl Tunnel {
    /// Brings `wg0` up with `address` on port 51820, MTU 1380, and routes what the peer is allowed to it.
    pub fn start(ns: &Namespace, keys: &Keys, address: IpAddr, peer: &Peer<'_>) -> Result<Self> {
        Self::start_program("wireguard-go", ns, keys, address, peer)
    }

    /// The same, by another build of the program.
    pub fn start_program(
        program: &str,
        ns: &Namespace,
        keys: &Keys,
        address: IpAddr,
        peer: &Peer<'_>,
    ) -> Result<Self> {
        let process = ns.spawn(&[program, "-f", "wg0"])?;
        interrupt::wait_for("wireguard-go's interface", Duration::from_secs(10), || {
            Ok(ns.try_run(&["wg", "show", "wg0"], Duration::from_secs(5))?.status.success().then_some(()))
        })?;
        let mut config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\n[Peer]\nPublicKey = {}\nAllowedIPs = {}\n",
            keys.private, peer.public, peer.allowed
        );
        if let Some(endpoint) = peer.endpoint {
            config += &format!("Endpoint = {endpoint}\n");
        }
        if let Some(preshared) = peer.preshared {
            config += &format!("PresharedKey = {preshared}\n");
        }
        let file = ns.files()?.join("wg0.conf");
        fs::write(&file, config)?;
        ns.run(&["wg", "setconf", "wg0", file.to_str().context("a path of the lab is not UTF-8")?])?;
        let length = if address.is_ipv4() { 32 } else { 128 };
        ns.ip(&format!("addr add {address}/{length} dev wg0\nlink set wg0 mtu 1380 up\n"))?;
        for network in peer.allowed.split(',').map(str::trim) {
            ns.ip(&format!("route add {network} dev wg0\n"))?;
        }
        Ok(Self { ns: ns.clone(), process })
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Seconds since 1970 of the last handshake, 0 before the first, as `wg` says.
    pub fn last_handshake(&self) -> Result<u64> {
        let text = self.ns.run(&["wg", "show", "wg0", "latest-handshakes"])?;
        text.split_whitespace()
            .nth(1)
            .and_then(|s| s.parse().ok())
            .with_context(|| format!("wg said: {text}"))
    }
}
