//! `completions`: a script for the user's shell.

use clap::CommandFactory as _;

use crate::cli::args::CommandLine;
use crate::cli::args::CompletionsArgs;
use crate::cli::output;
use crate::config::exit::Exit;

pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut CommandLine::command(), "ntcp-overlay", &mut script);
    output::data(&String::from_utf8(script)?)
}
