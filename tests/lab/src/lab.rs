//! A lab's life: an identity nobody else has, a directory that says who owns it, and an end that leaves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Seek;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::interrupt;
use crate::ns::Namespace;
use crate::process;
use crate::sys;
use crate::tools;
use crate::wire::Forwarder;

/// Every namespace of every lab starts with this.
pub const PREFIX: &str = "ntl-";

/// One directory per living lab; in each, `owner` holds "pid start-time" of the process that made it.
const LABS: &str = "/run/ntl";

/// Where `ip netns` keeps the handles of namespaces.
const NETNS: &str = "/run/netns";

/// Files under `/etc/netns/<namespace>/` appear under `/etc/` inside the namespace.
const ETC_NETNS: &str = "/etc/netns";

/// A running laboratory. Dropping it removes everything in it.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// What namespaces share with their lab.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) forwarder: Mutex<Option<Forwarder>>,
    names: Mutex<BTreeSet<String>>,
}

impl Lab {
    /// An empty lab. Also removes what dead labs left behind.
    pub fn new() -> Result<Self> {
        if let Some(problem) = tools::missing() {
            bail!("the lab cannot work here: {problem}");
        }
        interrupt::install();
        interrupt::check()?;
        clean()?;
        let (id, dir) = claim()?;
        Ok(Self { inner: Arc::new(Inner { id, dir, forwarder: Mutex::default(), names: Mutex::default() }) })
    }

    /// The short name that tells this lab from others.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The lab's own directory, removed with it; visible at the same place inside its namespaces.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// A namespace that only forwards packets: commands in it share the machine's files.
    pub fn router(&self, name: &str) -> Result<Namespace> {
        self.add(name, false)
    }

    /// A namespace that is a machine of its own: empty `/run` and `/var/lib`, an own `/etc/hosts` and host name.
    pub fn machine(&self, name: &str) -> Result<Namespace> {
        self.add(name, true)
    }

    fn add(&self, name: &str, machine: bool) -> Result<Namespace> {
        if !lock(&self.inner.names).insert(name.to_owned()) {
            bail!("the lab has a namespace \"{name}\" already");
        }
        Namespace::create(&self.inner, name, machine)
    }

    fn log_tails(&self) {
        let Ok(logs) = fs::read_dir(self.inner.dir.join("log")) else { return };
        let mut logs: Vec<PathBuf> = logs.flatten().map(|entry| entry.path()).collect();
        logs.sort();
        for log in logs {
            let text = fs::read(&log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
            eprintln!("--- {} ({} lines)\n{}", log.display(), lines.len(), tail.join("\n"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.log_tails();
        }
        // The wires' descriptors keep namespaces alive, so they go first.
        drop(lock(&self.inner.forwarder).take());
        let remains = remove(&self.inner.id);
        if let Err(problem) = remains {
            eprintln!("the lab {} could not be removed: {problem:#}", self.inner.id);
        }
    }
}

/// Runs one test's story in a lab of its own. Where no lab can be, a line that no harness hides says so and why.
///
/// # Panics
/// If the story fails; the last lines of every program's log are printed then.
pub fn test(story: impl FnOnce(&Lab) -> Result<()>) {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    if let Some(problem) = tools::missing() {
        say(&format!("NOT RUN: {name}: {problem}"));
        return;
    }
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(problem) => panic!("no lab: {problem:#}"),
    };
    if let Err(problem) = story(&lab) {
        panic!("{problem:#}");
    }
}

/// Says something to whoever runs the tests; harnesses hide only what `println!` and its like print.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Locks, also after another thread has panicked: the lab's state stays good enough to be removed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes labs whose owner is dead, and returns their ids.
pub fn clean() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // One cleaner at a time: two would trip over what the other has just removed.
    let Ok(directory) = fs::File::open(LABS) else { return Ok(removed) };
    directory.lock()?;
    for (id, owner) in labs()? {
        if !alive(&owner) {
            remove(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// Every lab on this machine: its id and the record of its owner.
fn labs() -> Result<Vec<(String, String)>> {
    let entries = match fs::read_dir(LABS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(LABS),
    };
    let mut labs = Vec::new();
    for entry in entries.flatten() {
        // A directory without a record, or with an empty one, is on its way in or out.
        match (entry.file_name().into_string(), fs::read_to_string(entry.path().join("owner"))) {
            (Ok(id), Ok(owner)) if !owner.is_empty() => labs.push((id, owner)),
            _ => {}
        }
    }
    Ok(labs)
}

/// Makes the lab's directory. It appears under its final name together with the record of its owner.
fn claim() -> Result<(String, PathBuf)> {
    let pid = std::process::id();
    let owner = record(pid).context("this process has no /proc entry")?;
    for _ in 0..10_000 {
        // Never one that this process has used: its directory may be half removed by another thread.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = base36(pid) + &base36(NEXT.fetch_add(1, Ordering::Relaxed));
        let staging = PathBuf::from(format!("{LABS}/.{id}.{}", thread_tag()));
        let made = fs::create_dir_all(staging.join("log"))
            .and_then(|()| fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::write(staging.join("owner"), &owner));
        if made.is_err() {
            continue; // the last lab to leave took LABS away between two steps
        }
        let dir = PathBuf::from(format!("{LABS}/{id}"));
        // Renaming onto a directory that is not empty fails: that is what makes the id ours alone.
        if fs::rename(&staging, &dir).is_ok() {
            return Ok((id, dir));
        }
        fs::remove_dir_all(&staging)?;
    }
    bail!("{LABS} is full of labs: try `ntcp-lab clean`")
}

fn thread_tag() -> String {
    format!("{:?}", thread::current().id()).chars().filter(char::is_ascii_digit).collect()
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.extend(char::from_digit(number % 36, 36));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// "pid start-time": a later process with the same number is not taken for the owner.
fn record(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22, counted after the command's closing parenthesis because a command may contain spaces: proc(5).
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start}"))
}

fn alive(owner: &str) -> bool {
    let pid = owner.split_whitespace().next().and_then(|pid| pid.parse().ok());
    pid.and_then(record).is_some_and(|now| now == owner)
}

/// Ends every process in the namespaces of a lab, then removes them, their `/etc` files and the lab's directory.
fn remove(id: &str) -> Result<()> {
    let prefix = format!("{PREFIX}{id}-");
    let spaces = starting_with(NETNS, &prefix);
    let inodes: BTreeSet<(u64, u64)> =
        spaces.iter().filter_map(|name| identity(&format!("{NETNS}/{name}"))).collect();
    for _ in 0..50 {
        let pids = processes_in(&inodes);
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            drop(sys::kill(pid, libc::SIGKILL));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let script: String = spaces.iter().map(|name| format!("netns del {name}\n")).collect();
    if !script.is_empty() {
        let mut ip = Command::new("ip");
        ip.args(["-force", "-batch", "-"]);
        // Removal goes on after a Ctrl-C, hence not through the interruptible wait.
        batch(ip, &script)?;
    }
    for name in starting_with(ETC_NETNS, &prefix) {
        fs::remove_dir_all(format!("{ETC_NETNS}/{name}"))?;
    }
    match fs::remove_dir_all(format!("{LABS}/{id}")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // Both stay if another lab uses them.
    drop(fs::remove_dir(ETC_NETNS));
    drop(fs::remove_dir(LABS));
    Ok(())
}

fn batch(mut command: Command, script: &str) -> Result<()> {
    let mut input = tempfile::tempfile()?;
    input.write_all(script.as_bytes())?;
    input.rewind()?;
    let output = command.stdin(input).output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Runs `ip -batch` on the machine itself; only for commands that name the lab's namespaces.
pub(crate) fn ip_batch(script: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]);
    process::run(ip, script.as_bytes(), Duration::from_secs(20))?.ok().map(drop)
}

fn starting_with(dir: &str, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn identity(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Processes whose network namespace is one of these; never the caller.
fn processes_in(inodes: &BTreeSet<(u64, u64)>) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| identity(&format!("/proc/{pid}/ns/net")).is_some_and(|ns| inodes.contains(&ns)))
        .collect()
}
