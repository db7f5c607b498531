//! One network namespace of a lab: commands, processes and sockets inside it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::lab::Inner;
use crate::lab::PREFIX;
use crate::process;
use crate::process::Output;
use crate::process::Process;
use crate::sys;

/// How long a command may take where the caller sets no limit of its own.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Gives a command its own view of the machine, then becomes that command, so the process id stays.
/// `$1` is the directory with this machine's files, `$2` its host name; the rest is the command.
const BECOME_MACHINE: &str = r#"
set -e
files=$1; echo "$2" > /proc/sys/kernel/hostname; shift 2
mount --bind /run/ntl "$files/run/ntl"
mount --rbind "$files/run" /run
mount --bind "$files/var-lib" /var/lib
if [ -d /etc/ntcp-overlay ]; then mount --bind "$files/etc" /etc/ntcp-overlay; fi
exec "$@"
"#;

/// A handle on one namespace; it goes when its lab goes.
#[derive(Clone, Debug)]
pub struct Namespace {
    lab: Arc<Inner>,
    name: String,
    full: String,
    /// Where the files of this machine are, if it is one.
    files: Option<PathBuf>,
}

impl Namespace {
    pub(crate) fn create(lab: &Arc<Inner>, name: &str, machine: bool) -> Result<Self> {
        let full = format!("{PREFIX}{}-{name}", lab.id);
        let files = machine.then(|| lab.dir.join("machine").join(name));
        if let Some(files) = &files {
            for dir in ["run/ntl", "run/sshd", "run/lock", "var-lib", "etc"] {
                fs::create_dir_all(files.join(dir))?;
            }
            make_dir(Path::new(&format!("/etc/netns/{full}")))?;
            let hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {name}\n");
            fs::write(format!("/etc/netns/{full}/hosts"), hosts)?;
        }
        lab.ip_batch(&format!("netns add {full}\n"))?;
        let ns = Self { lab: Arc::clone(lab), name: name.to_owned(), full, files };
        // Addresses are usable at once, and nothing configures itself from router advertisements.
        ns.sysctls(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ])?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// The short name, unique in its lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name as `ip netns` knows it.
    pub fn full_name(&self) -> &str {
        &self.full
    }

    pub(crate) fn lab(&self) -> &Arc<Inner> {
        &self.lab
    }

    /// This machine's directory for anything a test wants to put there; it goes with the lab.
    pub fn files(&self) -> Result<PathBuf> {
        let dir = self.lab.dir.join("files").join(&self.name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Where a file below this machine's own `/run` (here `run/`) or `/var/lib` (`var-lib/`) is outside of it.
    pub fn machine_file(&self, path: &str) -> PathBuf {
        self.lab.dir.join("machine").join(&self.name).join(path)
    }

    /// What this machine's `/etc/hosts` says now.
    pub fn hosts(&self) -> String {
        fs::read_to_string(format!("/etc/netns/{}/hosts", self.full)).unwrap_or_default()
    }

    /// A command that will run inside, not yet started.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.plain_command(&[]);
        if let Some(files) = &self.files {
            command.args(["unshare", "--uts", "sh", "-c", BECOME_MACHINE, "sh"]).arg(files).arg(&self.name);
        }
        command.args(words);
        command
    }

    /// A command inside that sees the files of the whole machine, as routers' commands do.
    pub(crate) fn plain_command(&self, words: &[&str]) -> Command {
        let mut command = self.lab.command("ip");
        command.args(["netns", "exec", &self.full]).args(words);
        command
    }

    /// Runs a command to its end, whatever it returns.
    pub fn try_run(&self, words: &[&str], limit: Duration) -> Result<Output> {
        let mut output = process::run(self.command(words), b"", limit)
            .with_context(|| format!("on {}: {}", self.name, words.join(" ")))?;
        output.what = format!("{}: {}", self.name, words.join(" "));
        Ok(output)
    }

    /// Runs a command that has to succeed and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        Ok(self.try_run(words, LIMIT)?.ok()?.stdout)
    }

    /// Starts a program in the background; its output goes to a log of the lab.
    pub fn spawn(&self, words: &[&str]) -> Result<Process> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or("nothing");
        let log = self.lab.dir.join("log").join(format!("{number:03}-{}-{program}.log", self.name));
        Process::start(self.command(words), format!("{}: {}", self.name, words.join(" ")), log)
    }

    /// Runs lines of the `ip` tool inside, in one go.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut ip = self.lab.command("ip");
        ip.args(["-n", &self.full, "-batch", "-"]);
        process::run(ip, lines.as_bytes(), LIMIT)?
            .ok()
            .with_context(|| format!("on {}:\n{lines}", self.name))?;
        Ok(())
    }

    /// Loads nftables rules inside, all or nothing.
    pub fn nft(&self, rules: &str) -> Result<()> {
        process::run(self.plain_command(&["nft", "-f", "-"]), rules.as_bytes(), LIMIT)?
            .ok()
            .with_context(|| format!("on {}:\n{rules}", self.name))?;
        Ok(())
    }

    /// Sets one kernel parameter of this namespace; `key` is its path under `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.sysctls(&[(key, value)])
    }

    /// Sets kernel parameters of this namespace.
    pub fn sysctls(&self, all: &[(&str, &str)]) -> Result<()> {
        let all: Vec<(String, String)> =
            all.iter().map(|(key, value)| (format!("/proc/sys/{key}"), (*value).to_owned())).collect();
        self.inside(move || {
            all.iter().try_for_each(|(file, value)| {
                // Opened without truncation, as `sysctl` does.
                let mut open = fs::OpenOptions::new().write(true).open(file).with_context(|| file.clone())?;
                open.write_all(value.as_bytes()).context("cannot set a kernel parameter")
            })
        })?
    }

    /// Runs a closure on a thread inside; sockets that it opens belong to this namespace for good.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let handle = PathBuf::from(format!("/run/netns/{}", self.full));
        let thread = thread::spawn(move || sys::enter_netns(&handle).map(|()| work()));
        match thread.join() {
            Ok(result) => result.with_context(|| format!("cannot enter {}", self.full)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Makes a directory and those above it. Another lab that leaves may take `/etc/netns` away between two steps, if it is
/// empty at that moment: then once more.
fn make_dir(path: &Path) -> std::io::Result<()> {
    let mut made = fs::create_dir_all(path);
    for _ in 0..100 {
        match &made {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => made = fs::create_dir_all(path),
            _ => break,
        }
    }
    made
}
