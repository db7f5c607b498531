//! `invite`: a token for one more machine, alone on stdout.

use crate::cli::args::InviteArgs;
use crate::cli::control_failure;
use crate::cli::output;
use crate::cli::render;
use crate::config::exit::Exit;
use crate::control::api::Reply;
use crate::control::api::Request;
use crate::control::client;

pub(super) fn run(args: InviteArgs) -> anyhow::Result<Exit> {
    let request = Request::Invite {
        name: args.name.map(|name| name.to_string()),
        groups: args.groups.iter().map(ToString::to_string).collect(),
        ttl_s: args.ttl.map(|ttl| ttl.as_secs()),
        relay: args.relay,
        may_relay: args.may_relay,
    };
    let there =
        if args.relay { "ntcp-overlay serve --join <token>" } else { "sudo ntcp-overlay up --join <token>" };
    match client::ask(&args.control.socket(), request).map_err(control_failure)? {
        Reply::Invite { token, ttl_s } => {
            eprintln!("good for one machine and {}; there: {there}", render::age(ttl_s));
            output::data(&format!("{token}\n"))
        }
        other => anyhow::bail!("unexpected answer from ntcp-overlay: {other:?}"),
    }
}
