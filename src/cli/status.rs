//! `status`: what is connected, how, and if not directly, why.

use crate::cli::args::StatusArgs;
use crate::cli::control_failure;
use crate::cli::output;
use crate::cli::render;
use crate::cli::render::Style;
use crate::config::exit::Exit;
use crate::control::api::Reply;
use crate::control::api::Request;
use crate::control::api::Status;
use crate::control::client;
use crate::engine::clock;

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<Exit> {
    let status = fetch(&args.control.socket())?;
    if args.json {
        return output::json(&status);
    }
    let style = Style { colour: output::is_colourful(), verbose: args.verbose };
    output::data(&render::status(&status, clock::now().unix, style))
}

/// The daemon's status.
pub(super) fn fetch(socket: &std::path::Path) -> anyhow::Result<Status> {
    match client::ask(socket, Request::Status {}).map_err(control_failure)? {
        Reply::Status(status) => Ok(*status),
        other => anyhow::bail!("unexpected answer from ntcp-overlay: {other:?}"),
    }
}
