//! A lab's life: an identity nobody else has, a directory that says who owns it, and an end that leaves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;

use anyhow::Result;
use anyhow::bail;

use crate::interrupt;
use crate::leftovers;
use crate::leftovers::Claim;
use crate::leftovers::MARK;
use crate::nat::Forgetting;
use crate::ns::LIMIT;
use crate::ns::Namespace;
use crate::process;
use crate::tools;
use crate::wire::Forwarder;

/// Every namespace of every lab starts with this.
pub const PREFIX: &str = "ntl-";

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
    mark: String,
    pub(crate) forwarder: Mutex<Option<Forwarder>>,
    pub(crate) forgetting: Mutex<Vec<Forgetting>>,
    names: Mutex<BTreeSet<String>>,
}

impl Inner {
    /// A command that is known as this lab's wherever it is found.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, &self.mark);
        command
    }

    /// Runs `ip -batch` on the machine itself; only for lines that name the lab's namespaces.
    pub(crate) fn ip_batch(&self, script: &str) -> Result<()> {
        let mut ip = self.command("ip");
        ip.args(["-batch", "-"]);
        process::run(ip, script.as_bytes(), LIMIT)?.ok().map(drop)
    }
}

impl Lab {
    /// An empty lab. Also removes what dead labs left behind.
    pub fn new() -> Result<Self> {
        if let Some(problem) = tools::missing() {
            bail!("the lab cannot work here: {problem}");
        }
        interrupt::install();
        interrupt::check()?;
        leftovers::clean()?;
        let Claim { id, dir, mark } = leftovers::claim()?;
        let inner = Inner {
            id,
            dir,
            mark,
            forwarder: Mutex::default(),
            forgetting: Mutex::default(),
            names: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
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
        // The descriptors of these keep namespaces alive, so they go first.
        drop(std::mem::take(&mut *lock(&self.inner.forgetting)));
        drop(lock(&self.inner.forwarder).take());
        let remains = leftovers::remove(&self.inner.id);
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
