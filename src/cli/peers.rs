//! `peers`: who is in the network.

use serde::Serialize;

use crate::cli::args::PeersArgs;
use crate::cli::output;
use crate::cli::render;
use crate::cli::status;
use crate::config::exit::Exit;
use crate::control::api::Peer;
use crate::control::api::SCHEMA;
use crate::engine::clock;

/// What `peers --json` prints.
#[derive(Serialize)]
struct Peers<'a> {
    schema: u32,
    peers: &'a [Peer],
}

pub(super) fn run(args: &PeersArgs) -> anyhow::Result<Exit> {
    let status = status::fetch(&args.control.socket())?;
    if args.json {
        return output::json(&Peers { schema: SCHEMA, peers: &status.peers });
    }
    output::data(&render::peers(&status.peers, clock::now().unix))
}
