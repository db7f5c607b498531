//! Proxies that others wrote, on a host of the lab: Debian's `tinyproxy` for HTTP and `microsocks` for SOCKS5.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::interrupt;
use crate::process::Process;
use crate::topology::Host;

/// How long a proxy may take to start.
const START: Duration = Duration::from_secs(10);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process, whose log tells of every request.
    pub process: Process,
}

impl Proxy {
    /// An HTTP proxy on port 8888 whose CONNECT leads to these ports only; most real ones allow nothing but 443.
    pub fn http(on: &Host, ports: &[u16]) -> Result<Self> {
        let mut config = format!("Listen {}\nPort 8888\nTimeout 600\nLogLevel Connect\n", on.v4);
        for port in ports {
            let _ = writeln!(config, "ConnectPort {port}");
        }
        let file = on.ns.files()?.join("tinyproxy.conf");
        fs::write(&file, config)?;
        let file = file.to_str().context("a path of the lab is not UTF-8")?;
        Self::start(on, 8888, &["tinyproxy", "-d", "-c", file])
    }

    /// A SOCKS5 proxy on port 1080 that wants no password and leads everywhere.
    pub fn socks(on: &Host) -> Result<Self> {
        Self::start(on, 1080, &["microsocks", "-i", &on.v4.to_string(), "-p", "1080"])
    }

    fn start(on: &Host, port: u16, words: &[&str]) -> Result<Self> {
        let address = SocketAddr::new(IpAddr::V4(on.v4), port);
        let mut process = on.ns.spawn(words)?;
        interrupt::wait_for(&format!("the proxy at {address}"), START, || {
            if let Some(status) = process.ended()? {
                bail!("the proxy ended ({status}):\n{}", process.log());
            }
            Ok(on.ns.inside(move || TcpStream::connect(address))?.ok().map(drop))
        })?;
        Ok(Self { address, process })
    }
}
