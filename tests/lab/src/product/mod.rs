//! The program under test, known by its command line only.

mod config;
mod mesh;

use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;

use crate::interrupt;
use crate::ns::LIMIT;
use crate::ns::Namespace;
use crate::process;
use crate::process::Output;
use crate::process::Process;

pub use mesh::FOUNDING;
pub use mesh::Mesh;
pub use mesh::stun_role;
pub use mesh::write_config;

/// How long a daemon may take until it answers commands.
const START: Duration = Duration::from_secs(15);

/// The binary.
#[derive(Clone, Debug)]
pub struct Product {
    bin: PathBuf,
}

impl Product {
    /// The product at this path.
    pub fn new(bin: impl AsRef<Path>) -> Result<Self> {
        let bin =
            fs::canonicalize(&bin).with_context(|| format!("no product at {}", bin.as_ref().display()))?;
        Ok(Self { bin })
    }

    fn words<'a>(&'a self, words: &[&'a str]) -> Result<Vec<&'a str>> {
        let mut all = vec![self.bin.to_str().context("the product's path is not UTF-8")?];
        all.extend(words);
        Ok(all)
    }

    /// Runs one command to its end, whatever it returns.
    pub fn try_run(&self, on: &Namespace, words: &[&str]) -> Result<Output> {
        on.try_run(&self.words(words)?, LIMIT)
    }

    /// Runs one command that has to succeed and returns what it printed.
    pub fn run(&self, on: &Namespace, words: &[&str]) -> Result<String> {
        Ok(self.try_run(on, words)?.ok()?.stdout)
    }

    /// The same as [`Self::run`] for a command that may take so long; as root, or without any privilege.
    pub fn run_long(&self, on: &Namespace, words: &[&str], limit: Duration, as_root: bool) -> Result<String> {
        let drop_all = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"];
        let mut all = if as_root { Vec::new() } else { drop_all.to_vec() };
        all.extend(self.words(words)?);
        Ok(on.try_run(&all, limit)?.ok()?.stdout)
    }

    /// Starts a daemon (`up` or `serve` and what follows) and waits until it answers `status`.
    pub fn daemon(&self, on: &Namespace, words: &[&str]) -> Result<Daemon> {
        let mut daemon =
            Daemon { product: self.clone(), ns: on.clone(), process: on.spawn(&self.words(words)?)? };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts a member that is to have a working interface when this returns. It also reads the file that `NTCP_LAB_CONFIG`
    /// names: with `member.offload = false` in it, every test is one of the plain data plane.
    pub fn member(&self, on: &Namespace, words: &[&str]) -> Result<Daemon> {
        let words = config::with_common(on, words)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut daemon = self.daemon(on, &words)?;
        daemon.wait_address()?;
        Ok(daemon)
    }

    /// Runs a line of shell with `ntcp-overlay` (and, if need be, `sudo`) on the path, as a user would type it.
    pub fn type_line(&self, on: &Namespace, line: &str) -> Result<Daemon> {
        let bin = on.files()?.join("bin");
        fs::create_dir_all(&bin)?;
        if !bin.join("ntcp-overlay").exists() {
            symlink(&self.bin, bin.join("ntcp-overlay"))?;
            // The real sudo would replace the path by its own; in the lab everybody is root already.
            fs::write(bin.join("sudo"), "#!/bin/sh\nexec \"$@\"\n")?;
            Command::new("chmod").arg("755").arg(bin.join("sudo")).status()?;
        }
        let script = format!("PATH={}:$PATH; exec {line}", bin.display());
        let mut daemon =
            Daemon { product: self.clone(), ns: on.clone(), process: on.spawn(&["sh", "-c", &script])? };
        daemon.wait_ready()?;
        daemon.wait_address()?;
        Ok(daemon)
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    product: Product,
    ns: Namespace,
    /// The process.
    pub process: Process,
}

/// How a member reaches a peer, from `status --json`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerPath {
    /// `direct-udp`, `direct-tcp`, `relay` or `none`.
    pub path: String,
    /// The peer's or the relay's endpoint.
    pub endpoint: String,
    /// Everything that `status --json` says of the peer.
    pub all: Value,
}

impl PeerPath {
    /// Whether nobody stands between.
    pub fn direct(&self) -> bool {
        self.path.starts_with("direct-")
    }
}

impl Daemon {
    /// The machine that it runs on.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// Runs a command of the product on the same machine, whatever it returns.
    pub fn try_run(&self, words: &[&str]) -> Result<Output> {
        self.product.try_run(&self.ns, words)
    }

    /// Runs a command of the product on the same machine that has to succeed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        self.product.run(&self.ns, words)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let what = format!("the daemon on {} to answer `status`", self.ns.name());
        interrupt::wait_for(&what, START, || {
            if let Some(status) = self.process.ended()? {
                bail!("the daemon on {} ended ({status}); it said:\n{}", self.ns.name(), self.process.log());
            }
            Ok(self.ask_status()?.status.success().then_some(()))
        })
        .with_context(|| format!("it said:\n{}", self.process.log()))
    }

    fn wait_address(&mut self) -> Result<IpAddr> {
        let what = format!("an overlay address on {}", self.ns.name());
        let found = interrupt::wait_for(&what, START, || {
            if let Some(status) = self.process.ended()? {
                bail!("the daemon on {} ended ({status})", self.ns.name());
            }
            Ok(self.address().ok())
        });
        Ok(IpAddr::V4(found.with_context(|| format!("it said:\n{}", self.process.log()))?))
    }

    /// The overlay's IPv4 address, as the kernel says.
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.addresses()?
            .into_iter()
            .find_map(|address| match address {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            })
            .context("the overlay interface has no IPv4 address")
    }

    /// All global addresses of the overlay's interface, as the kernel says.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let text = self.ns.run(&["ip", "-json", "addr", "show", "up", "scope", "global"])?;
        let links: Value = serde_json::from_str(&text)?;
        let links = links.as_array().context("ip printed no list")?;
        let overlay = links.iter().filter(|link| {
            link.get("ifname").and_then(Value::as_str).is_some_and(|name| name.starts_with("ntcp"))
        });
        let entries = overlay.filter_map(|link| link.get("addr_info")?.as_array()).flatten();
        Ok(entries.filter_map(|entry| entry.get("local")?.as_str()?.parse().ok()).collect())
    }

    /// `status --json`.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask_status()?.ok()?.stdout)?)
    }

    /// The daemon's control socket, as the machine outside sees it.
    pub fn control(&self) -> PathBuf {
        self.ns.machine_file("run/ntcp-overlay/control.sock")
    }

    /// Asks over the control socket from outside, which costs one process instead of the six that enter a machine.
    fn ask_status(&self) -> Result<Output> {
        let control = self.control();
        if !control.exists() {
            return self.try_run(&["status", "--json"]);
        }
        let mut command = Command::new(&self.product.bin);
        command.args(["status", "--json", "--control"]).arg(control);
        process::run(command, b"", LIMIT)
    }

    /// What `status --json` says of a peer; `None` if it does not know it.
    pub fn peer(&self, name: &str) -> Result<Option<PeerPath>> {
        let status = self.status()?;
        let peers = status.get("peers").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut named = peers.into_iter().filter(|peer| text(peer, "name") == name);
        Ok(named.next().map(|all| PeerPath {
            path: text(&all, "path"),
            endpoint: text(&all, "endpoint"),
            all,
        }))
    }

    /// Waits until the path to a peer is as wanted.
    pub fn wait_path(
        &self,
        peer: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&PeerPath) -> bool,
    ) -> Result<PeerPath> {
        let mut last = None;
        interrupt::wait_for(&format!("{} to reach {peer} by {what}", self.ns.name()), limit, || {
            last = self.peer(peer)?;
            Ok(last.clone().filter(&wanted))
        })
        .with_context(|| format!("its status: {:#}", last.clone().map_or(Value::Null, |peer| peer.all)))
    }

    /// Waits for a direct path.
    pub fn wait_direct(&self, peer: &str, limit: Duration) -> Result<PeerPath> {
        self.wait_path(peer, "a direct path", limit, PeerPath::direct)
    }

    /// Waits for the relay.
    pub fn wait_relay(&self, peer: &str, limit: Duration) -> Result<PeerPath> {
        self.wait_path(peer, "the relay", limit, |peer| peer.path == "relay")
    }

    /// Waits until a peer is in the list, and as far as this member knows, online.
    pub fn wait_knows(&self, peer: &str, limit: Duration) -> Result<()> {
        interrupt::wait_for(&format!("{} to hear of {peer}", self.ns.name()), limit, || {
            let online = self.peer(peer)?.filter(|peer| text(&peer.all, "state") != "offline");
            Ok(online.map(drop))
        })
    }

    /// The system's own ping, until the first answer; how long after the first packet that came, as ping says.
    pub fn first_ping(&self, target: &str, limit: Duration) -> Result<Duration> {
        const GAP: f64 = 0.2; // s
        let (seconds, gap) = (limit.as_secs().max(1).to_string(), GAP.to_string());
        // -w ends at the deadline whatever is missing, -c 1 at the first answer.
        let words = ["ping", "-c", "1", "-w", &seconds, "-i", &gap, target];
        let said = self.ns.try_run(&words, limit + LIMIT)?.ok()?.stdout;
        let number = |name: &str| -> Option<f64> {
            said.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok())
        };
        let found = number("icmp_seq=").zip(number("time="));
        let (seq, millis) = found.with_context(|| format!("ping said:\n{said}"))?;
        Ok(Duration::from_secs_f64((seq - 1.0) * GAP + millis / 1000.0))
    }

    /// Waits until the broker has seen the data socket's mapped address.
    pub fn wait_mapped(&self, limit: Duration) -> Result<()> {
        interrupt::wait_for("the mapped address", limit, || {
            Ok(self.status()?.pointer("/brokers/0/mapped").is_some_and(Value::is_string).then_some(()))
        })
    }

    /// Waits until this member has found out how its NAT treats TCP, the last thing that it looks into; for so long at
    /// most, since not every NAT can be told.
    pub fn wait_surveyed(&self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while self.status()?.pointer("/nat/tcp/filtering").is_none_or(Value::is_null)
            && Instant::now() < until
        {
            interrupt::pause(Duration::from_millis(250))?;
        }
        Ok(())
    }

    /// Whether the system's own ping gets an answer at all within a few tries.
    pub fn pings(&self, target: &str) -> Result<bool> {
        Ok(self.ns.try_run(&["ping", "-c", "1", "-w", "3", target], LIMIT)?.status.success())
    }

    /// SIGTERM and a clean end.
    pub fn stop(self) -> Result<()> {
        let (name, log) = (self.ns.name().to_owned(), self.process.log_file().to_owned());
        let status = self.process.stop(Duration::from_secs(10))?;
        if !status.success() {
            bail!("the daemon on {name} ended with {status}:\n{}", fs::read_to_string(log)?);
        }
        Ok(())
    }

    /// SIGKILL, as a crash or a power cut would end it.
    pub fn crash(self) -> Result<()> {
        self.process.kill()
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
