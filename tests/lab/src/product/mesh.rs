//! A network of the product, provisioned as an administrator would from the command line.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::Context;
use anyhow::Result;

use super::Daemon;
use super::Product;
use crate::topology::Host;
use crate::topology::Server;

/// How the server's network is created.
pub const FOUNDING: [&str; 8] = ["cert", "init", "--network", "lab", "--broker", "hub", "--relay", "ferry"];

/// The configuration of a STUN role on all three addresses, with which it can do every test; the second port and the
/// silent one follow from the first.
pub fn stun_role(server: &Server) -> String {
    let listen = server.addresses.map(|ip| format!("{ip}:3478"));
    format!("[stun]\nenabled = true\nlisten = {listen:?}\n")
}

/// A network provisioned as an administrator would: a public server that introduces and relays, members by invite.
#[derive(Debug)]
pub struct Mesh {
    product: Product,
    host: Host,
    config: String,
    /// What the creation of the network printed.
    pub founding: String,
    /// The server's daemon; `None` while it is stopped.
    pub server: Option<Daemon>,
}

impl Mesh {
    /// Creates network "lab" on a public host and serves it there. `config` is added to the server's configuration.
    pub fn found(product: &Product, host: &Host, config: &str) -> Result<Self> {
        Self::found_at(product, host, &[6060], config)
    }

    /// The same with a broker that listens on these TCP and UDP ports.
    pub fn found_at(product: &Product, host: &Host, ports: &[u16], config: &str) -> Result<Self> {
        let at = |ip: &str| -> Vec<String> { ports.iter().map(|port| format!("{ip}:{port}")).collect() };
        let v4 = host.v4;
        let config = format!(
            "[broker]\nenabled = true\nlisten = {:?}\nadvertise = {:?}\n\
             [relay]\nenabled = true\nadvertise = [\"{v4}:6061\"]\n{config}",
            [at("0.0.0.0"), at("[::]")].concat(),
            at(&v4.to_string())
        );
        Self::found_with(product, host, &config)
    }

    /// The same with a configuration of one's own.
    pub fn found_with(product: &Product, host: &Host, config: &str) -> Result<Self> {
        let config = write_config(host, config)?;
        let founding = product.run(&host.ns, &FOUNDING)?;
        let mut mesh = Self { product: product.clone(), host: host.clone(), config, founding, server: None };
        mesh.serve()?;
        Ok(mesh)
    }

    /// Starts the server, again.
    pub fn serve(&mut self) -> Result<()> {
        self.server = Some(self.product.daemon(&self.host.ns, &["serve", "--config", &self.config])?);
        Ok(())
    }

    /// Runs a command of the product on the server's machine.
    pub fn admin(&self, words: &[&str]) -> Result<String> {
        self.product.run(&self.host.ns, words)
    }

    /// A fresh invite.
    pub fn invite(&self) -> Result<String> {
        Ok(self.admin(&["invite"])?.trim().to_owned())
    }

    /// One more relay, which joins by invite under its machine's name and serves the members of these brokers.
    pub fn add_relay(&self, host: &Host, brokers: &[Ipv4Addr]) -> Result<Daemon> {
        let invite = self.admin(&["invite", "--relay"])?.trim().to_owned();
        let brokers: Vec<String> = brokers.iter().map(|ip| format!("\"{ip}:6060\"")).collect();
        let config = format!(
            "[relay]\nenabled = true\nadvertise = [\"{}:6061\"]\nbrokers = [{}]\n",
            host.v4,
            brokers.join(", ")
        );
        let file = write_config(host, &config)?;
        let words = ["serve", "--join", &invite, "--name", host.ns.name(), "--config", &file];
        self.product.daemon(&host.ns, &words)
    }

    /// One more broker, named as its machine, whose certificate the network's CA signs. Members use it if their
    /// configuration names it.
    pub fn add_broker(&self, host: &Host) -> Result<Daemon> {
        const STATE: &str = "/var/lib/ntcp-overlay/broker";
        let files = host.ns.files()?;
        let files = files.to_str().context("a path of the lab is not UTF-8")?;
        let name = host.ns.name();
        // The machines share no state directory; what an administrator would carry between them passes by `files`.
        self.product.run(&host.ns, &["cert", "request", "--name", name, "--dir", STATE])?;
        host.ns.run(&["sh", "-c", &format!("cp {STATE}/identity.req {files}/")])?;
        let (request, signed) = (format!("{files}/identity.req"), format!("{files}/identity.crt"));
        let words = ["--ca", "/var/lib/ntcp-overlay", "--request", &request, "--out", &signed];
        self.admin(&[&["cert", "sign", "--role", "broker"], words.as_slice()].concat())?;
        self.host.ns.run(&["sh", "-c", &format!("cp /var/lib/ntcp-overlay/ca.crt {files}/")])?;
        host.ns.run(&["sh", "-c", &format!("cp {files}/identity.crt {files}/ca.crt {STATE}/")])?;
        let config = format!("[broker]\nenabled = true\nadvertise = [\"{}:6060\"]\n", host.v4);
        self.product.daemon(&host.ns, &["serve", "--config", &write_config(host, &config)?])
    }

    /// Lets a host join under its own name; more words go to `up`.
    pub fn join(&self, host: &Host, more: &[&str]) -> Result<Daemon> {
        let invite = self.invite()?;
        let mut words = vec!["up", "--join", &invite, "--name", host.ns.name()];
        words.extend(more);
        self.product.member(&host.ns, &words)
    }
}

/// Writes a machine's configuration where `--config` can name it, and returns its path.
pub fn write_config(on: &Host, text: &str) -> Result<String> {
    let file = on.ns.files()?.join("overlay.toml");
    fs::write(&file, text)?;
    Ok(file.to_str().context("a path of the lab is not UTF-8")?.to_owned())
}
