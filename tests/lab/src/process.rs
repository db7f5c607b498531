//! A program's run: to its end with a limit and its output, or in the background with a log.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;

use crate::interrupt;
use crate::sys;

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The words that started it, for messages.
    pub what: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// The output if the program succeeded; otherwise an error that quotes it.
    pub fn ok(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("`{}` failed ({}):\n{}{}", self.what, self.status, self.stdout, self.stderr)
    }

    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// Runs a command to its end; after `limit` its whole process group is killed and the run is an error.
pub fn run(mut command: Command, stdin: &[u8], limit: Duration) -> Result<Output> {
    let what = words(&command);
    let mut input = tempfile::tempfile()?;
    input.write_all(stdin)?;
    input.rewind()?;
    // Files and not pipes: a daemon that the command leaves behind may hold them open.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(input).stdout(out.try_clone()?).stderr(err.try_clone()?).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start `{what}`"))?;
    let status = match wait(&mut child, limit) {
        Ok(Some(status)) => status,
        other => {
            drop(sys::kill_group(child.id(), libc::SIGKILL));
            child.wait()?;
            other?;
            bail!("`{what}` did not end within {limit:?}:\n{}{}", text(&mut out)?, text(&mut err)?);
        }
    };
    Ok(Output { what, status, stdout: text(&mut out)?, stderr: text(&mut err)? })
}

fn text(file: &mut File) -> Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for the end of a child without spinning; `None` if it still runs after `limit`.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    let pid = Pid::from_raw(child.id() as i32).context("process id 0")?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        interrupt::check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let slice = left.min(Duration::from_millis(100)).try_into()?;
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&slice)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn words(command: &Command) -> String {
    let mut all = vec![command.get_program().to_string_lossy().into_owned()];
    all.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    all.join(" ")
}

/// A program in the background, ended (with its process group) on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose output and complaints both go to the file `log`.
    pub fn start(mut command: Command, what: String, log: PathBuf) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start `{what}`"))?;
        Ok(Self { child, what, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Where its output goes.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until a line of the log contains `text` and returns that line.
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let what = format!("\"{text}\" from `{}`", self.what);
        let found = interrupt::wait_for(&what, limit, || {
            let line = self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
            if line.is_none() && self.ended()?.is_some() {
                bail!("`{}` has ended without saying \"{text}\"", self.what);
            }
            Ok(line)
        });
        found.with_context(|| format!("it said:\n{}", self.log()))
    }

    /// Waits for its end; an error if that takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        match wait(&mut self.child, limit)? {
            Some(status) => Ok(status),
            None => bail!("`{}` did not end within {limit:?}; it said:\n{}", self.what, self.log()),
        }
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: i32) -> Result<()> {
        Ok(sys::kill(self.child.id(), signal)?)
    }

    /// SIGTERM, and the status with which it then ends.
    pub fn stop(mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        self.wait(limit)
    }

    /// SIGKILL to the whole group, as a crash would end it.
    pub fn kill(mut self) -> Result<()> {
        sys::kill_group(self.child.id(), libc::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        /// Time for a program to put things in order before it is killed.
        const GRACE: Duration = Duration::from_secs(2);
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        drop(sys::kill_group(self.child.id(), libc::SIGTERM));
        let until = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        drop(sys::kill_group(self.child.id(), libc::SIGKILL));
        drop(self.child.wait());
    }
}
