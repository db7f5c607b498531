//! The end of a lab: its own, or that of one whose owner was killed.
//!
//! `/run/ntl/<id>` appears and goes by a rename, so a lab either has a directory with the record of its owner or none.
//! Everything else is found by name: namespaces and their `/etc` files start with the lab's prefix, and every program that
//! a lab starts carries the lab and its owner in its environment (`MARK`), so that it is found also before it has
//! entered its namespace. What is on its way in or out has a name with a dot and the process that moves it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::lab::PREFIX;
use crate::sys;

/// One directory per living lab; in each, `owner` holds "pid start-time" of the process that made it.
const LABS: &str = "/run/ntl";

/// Where `ip netns` keeps the handles of namespaces.
const NETNS: &str = "/run/netns";

/// Files under `/etc/netns/<namespace>/` appear under `/etc/` inside the namespace.
const ETC_NETNS: &str = "/etc/netns";

/// The variable that programs of a lab carry: "id owner", where the owner is "pid start-time".
pub(crate) const MARK: &str = "NTL_LAB";

/// Removes what labs whose owner is dead have left, and returns their ids.
pub fn clean() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // One cleaner at a time: two would trip over what the other has just removed.
    let Ok(directory) = fs::File::open(LABS) else { return Ok(removed) };
    directory.lock()?;
    end(|_, owner| !alive(owner));
    for (id, owner) in labs()? {
        if !alive(&owner) {
            remove(&id)?;
            removed.push(id);
        }
    }
    for name in starting_with(LABS, ".") {
        let mover = name.split('.').nth(1).and_then(|pid| pid.parse().ok());
        if mover.and_then(record).is_none() {
            gone(fs::remove_dir_all(format!("{LABS}/{name}")))?;
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
        let owner = fs::read_to_string(entry.path().join("owner"));
        match (entry.file_name().into_string(), owner) {
            (Ok(id), Ok(owner)) if !id.starts_with('.') => labs.push((id, owner)),
            _ => {}
        }
    }
    Ok(labs)
}

/// Makes a lab's directory. It appears under its final name together with the record of its owner.
pub(crate) fn claim() -> Result<Claim> {
    let pid = std::process::id();
    let owner = record(pid).context("this process has no /proc entry")?;
    for _ in 0..10_000 {
        // Never one that this process has used: its directory may be half removed by another thread.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = base36(pid) + &base36(NEXT.fetch_add(1, Ordering::Relaxed));
        let staging = PathBuf::from(format!("{LABS}/.{pid}.{id}.in"));
        let made = fs::create_dir_all(staging.join("log"))
            .and_then(|()| fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::write(staging.join("owner"), &owner));
        if made.is_err() {
            continue; // the last lab to leave took LABS away between two steps
        }
        let dir = PathBuf::from(format!("{LABS}/{id}"));
        // Renaming onto a directory that is not empty fails: that is what makes the id ours alone.
        if fs::rename(&staging, &dir).is_ok() {
            return Ok(Claim { mark: format!("{id} {owner}"), id, dir });
        }
        fs::remove_dir_all(&staging)?;
    }
    bail!("{LABS} is full of labs: try `ntcp-lab clean`")
}

/// What a new lab has of its own.
pub(crate) struct Claim {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    /// What [`MARK`] says in its programs.
    pub(crate) mark: String,
}

/// Ends every process of a lab, then removes its namespaces, their `/etc` files and the lab's directory.
pub(crate) fn remove(id: &str) -> Result<()> {
    let prefix = format!("{PREFIX}{id}-");
    // First those that may still make something, then what they have made.
    end(|of, _| of == id);
    let spaces = starting_with(NETNS, &prefix);
    let inodes: BTreeSet<(u64, u64)> =
        spaces.iter().filter_map(|name| identity(&format!("{NETNS}/{name}"))).collect();
    kill_until_gone(|| processes_in(&inodes));
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
    // The record of the owner must not go before the rest of the directory.
    let (dir, leaving) = (format!("{LABS}/{id}"), format!("{LABS}/.{}.{id}.out", std::process::id()));
    gone(fs::rename(dir, &leaving))?;
    gone(fs::remove_dir_all(&leaving))?;
    // Both stay if another lab uses them.
    drop(fs::remove_dir(ETC_NETNS));
    drop(fs::remove_dir(LABS));
    Ok(())
}

/// What is not there any more has been removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Kills the programs whose mark names such a lab and owner.
fn end(such: impl Fn(&str, &str) -> bool) {
    kill_until_gone(|| marked(&such));
}

fn kill_until_gone(find: impl Fn() -> Vec<u32>) {
    for _ in 0..50 {
        let pids = find();
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            drop(sys::kill(pid, libc::SIGKILL));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Feeds a command by a pipe: a full disk must not keep a lab from going.
fn batch(mut command: Command, script: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
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

/// "pid start-time": a later process with the same number is not taken for the owner. None of a process that has ended,
/// even if its parent has not looked yet.
fn record(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 3 and 22, counted after the command's closing parenthesis because a command may contain spaces: proc(5).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let (state, start) = (fields.next()?, fields.nth(18)?);
    (!matches!(state, "Z" | "X")).then(|| format!("{pid} {start}"))
}

fn alive(owner: &str) -> bool {
    let pid = owner.split_whitespace().next().and_then(|pid| pid.parse().ok());
    pid.and_then(record).is_some_and(|now| now == owner)
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
    let inside = |pid: &u32| identity(&format!("/proc/{pid}/ns/net")).is_some_and(|ns| inodes.contains(&ns));
    processes().filter(inside).collect()
}

/// Processes that carry the mark of such a lab and owner.
fn marked(such: impl Fn(&str, &str) -> bool) -> Vec<u32> {
    let carries = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        let mark = variables.find_map(|variable| {
            std::str::from_utf8(variable).ok()?.strip_prefix(MARK)?.strip_prefix('=')?.split_once(' ')
        });
        mark.is_some_and(|(id, owner)| such(id, owner))
    };
    processes().filter(carries).collect()
}

/// Every process but the caller.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::process::id();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != own)
}
