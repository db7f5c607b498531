//! Floor 8: words typed by people, and words for people.
//!
//! One file per command. Each turns arguments into one call of a lower floor and the answer into text: data on stdout,
//! everything else on stderr, so that pipes see only data. What is printed is made by pure functions ([`render`]), and
//! every failure that a user can cause ends with the next thing to do. Exit codes are in [`crate::config::exit`].
//!
//! A command keeps nothing and decides nothing about the network.

mod args;
mod cert;
mod check_config;
mod completions;
mod detach;
mod down;
mod invite;
mod logging;
mod netcheck;
mod output;
mod peers;
mod permission;
mod ping;
pub mod render;
mod serve;
mod status;
mod up;
mod verdict;
mod version;

use std::process::ExitCode;

use anyhow::Error;
use clap::Parser as _;

use crate::cli::args::Command;
use crate::cli::args::CommandLine;
use crate::config::exit;
use crate::config::exit::Exit;
use crate::config::exit::Failure;
use crate::control::client::ControlError;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // Help and version are "errors" that belong on stdout and are none.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    match run(line.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let text = render::clean(&format!("{error:#}"));
            // "ntcp-overlay is not running" needs no one to say it.
            let speaker = if text.starts_with("ntcp-overlay") { "" } else { "ntcp-overlay: " };
            eprintln!("{speaker}{text}");
            exit::of(&error).into()
        }
    }
}

fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Up(args) => up::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Down(args) => down::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Ping(args) => ping::run(&args),
        Command::Netcheck(args) => netcheck::run(&args),
        Command::Invite(args) => invite::run(args),
        Command::Cert(args) => cert::run(args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Version => version::run(),
    }
}

/// The exit code that a failure to talk to the daemon asks for.
fn control_failure(error: ControlError) -> Error {
    let exit = match error {
        ControlError::Permission(_) => Exit::Permission,
        ControlError::Timeout(_) => Exit::Timeout,
        ControlError::NotRunning | ControlError::Failed(_) | ControlError::Protocol(_) => Exit::Failed,
    };
    Failure::new(exit, error.to_string()).into()
}
