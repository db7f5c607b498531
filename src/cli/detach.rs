//! `up --detach`: the same program again in a session of its own; this process waits until that one is up.
//!
//! The child's stdout is a pipe to the parent, which passes on what is announced and leaves at [`READY`]. The child's log
//! goes to a file in the state directory.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use crate::cli::output;
use crate::config::credentials;
use crate::config::exit::Exit;
use crate::config::exit::Failure;
use crate::config::settings::Settings;

/// The line that says "up": a control character, so that no announcement looks like it.
pub(super) const READY: &str = "\u{4}ready";
/// Joining over a slow link takes a few seconds; whoever waits longer should look into the log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of the log is shown when the start fails, bytes.
const TAIL: u64 = 4096;

pub(super) fn run(settings: &Settings) -> anyhow::Result<Exit> {
    let log = settings.state_dir.join("ntcp-overlay.log");
    let (file, start) = open_log(&settings.state_dir, &log)?;
    let mut child = spawn(file).context("starting the process in the background")?;
    let stdout = child.stdout.take().expect("stdout was set to a pipe");
    match wait(stdout)? {
        Start::Ready => {
            output::data(&format!("running in the background (pid {}, log {})\n", child.id(), log.display()))
        }
        Start::Ended => failed(&mut child, &log, start),
        Start::Slow => Err(Failure::new(
            Exit::Timeout,
            format!(
                "not up after {} s; it goes on trying (pid {}): see {}",
                PATIENCE.as_secs(),
                child.id(),
                log.display()
            ),
        )
        .into()),
    }
}

/// What the child does first: a session of its own, so that closing the terminal does not end it.
pub(super) fn leave_terminal() -> anyhow::Result<()> {
    rustix::process::setsid().context("starting a session")?;
    Ok(())
}

enum Start {
    Ready,
    Ended,
    Slow,
}

fn open_log(dir: &Path, log: &Path) -> anyhow::Result<(File, u64)> {
    credentials::create_dir(dir)?;
    let file = File::options().create(true).append(true).mode(0o600).open(log);
    let file = file.with_context(|| format!("opening {}", log.display()))?;
    let start = file.metadata()?.len();
    Ok((file, start))
}

fn spawn(log: File) -> anyhow::Result<Child> {
    let program: PathBuf = env::current_exe()?;
    let (args, join) = child_args(env::args_os().skip(1));
    let mut command = Command::new(program);
    command.args(args).arg("--in-background");
    if let Some(join) = join {
        command.env("NTCP_JOIN", join);
    }
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?)
}

/// The same arguments without `--detach`, and the token apart: it must not stay in `ps`.
fn child_args(args: impl Iterator<Item = OsString>) -> (Vec<OsString>, Option<OsString>) {
    let mut kept = Vec::new();
    let mut join = None;
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--detach") => {}
            Some("--join") => join = args.next(),
            Some(text) if text.starts_with("--join=") => {
                join = text.strip_prefix("--join=").map(OsString::from)
            }
            _ => kept.push(arg),
        }
    }
    (kept, join)
}

/// Passes on what the child announces until it is ready, ends, or takes too long. No clock is read: the wait is
/// for the next line, and a start has only a few.
fn wait(stdout: ChildStdout) -> anyhow::Result<Start> {
    let (lines, read) = mpsc::channel();
    // Ends with the child's stdout, or with this process.
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    loop {
        match read.recv_timeout(PATIENCE) {
            Ok(line) if line == READY => return Ok(Start::Ready),
            Ok(line) => drop(output::data(&format!("{line}\n"))?),
            Err(RecvTimeoutError::Disconnected) => return Ok(Start::Ended),
            Err(RecvTimeoutError::Timeout) => return Ok(Start::Slow),
        }
    }
}

/// Shows what the child wrote into its log, and ends as it did.
fn failed(child: &mut Child, log: &Path, start: u64) -> anyhow::Result<Exit> {
    let code = child.wait()?.code();
    let mut text = String::new();
    let shown = File::open(log).and_then(|mut file| {
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(TAIL))))?;
        file.take(TAIL).read_to_string(&mut text)
    });
    if shown.is_ok() {
        eprint!("{text}");
    }
    let exits = [Exit::Ok, Exit::Usage, Exit::Config, Exit::Permission, Exit::Timeout];
    let exit = exits.into_iter().find(|exit| code == Some(i32::from(exit.code()))).unwrap_or(Exit::Failed);
    Err(Failure::new(exit, format!("it ended before it was up; its log is {}", log.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(script: &str) -> Start {
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let start = wait(child.stdout.take().unwrap()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        start
    }

    #[test]
    fn the_parent_leaves_when_the_child_is_ready_or_ends() {
        assert!(matches!(outcome("echo hello; printf '\\004ready\\n'; exec sleep 1000"), Start::Ready));
        assert!(matches!(outcome("echo hello; exit 3"), Start::Ended));
    }

    #[test]
    fn the_child_gets_the_same_arguments_but_no_token() {
        for (args, kept, join) in [
            ("up --detach", "up", None),
            ("up --join abc --detach --name x", "up --name x", Some("abc")),
            ("up --join=abc --hosts", "up --hosts", Some("abc")),
        ] {
            let (left, token) = child_args(args.split(' ').map(OsString::from));
            assert_eq!(left.join(" ".as_ref()), kept, "{args}");
            assert_eq!(token, join.map(OsString::from), "{args}");
        }
    }
}
