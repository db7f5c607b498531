//! `serve`: server roles without a member, unprivileged.

use crate::cli::args::ServeArgs;
use crate::cli::logging;
use crate::config::exit::Exit;
use crate::config::exit::Failure;
use crate::config::load;
use crate::config::load::Loaded;
use crate::engine;
use crate::engine::membership;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<Exit> {
    let (config, over) = args.start.into_overrides();
    let Loaded { settings, warnings } = load::load(config.as_deref(), over)?;
    let join = load::invite(&settings)?;
    let keys = membership::has_broker(&settings.state_dir) || membership::has_relay(&settings.state_dir);
    let roles = [
        settings.broker.enabled == Some(true),
        settings.relay.enabled == Some(true),
        settings.stun.enabled == Some(true),
    ];
    if !roles.contains(&true) && join.is_none() && !keys {
        return Err(Failure::config(
            "there is nothing to serve: make keys with `ntcp-overlay cert init --network NAME --broker NAME --relay NAME`, become a relay with `serve --join TOKEN`, or put `enabled = true` into [stun] of overlay.toml and name it with --config",
        )
        .into());
    }
    logging::start(settings.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    engine::serve::run(&settings, join.as_ref())
}
