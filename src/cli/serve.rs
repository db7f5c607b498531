//! `serve`: server roles without a member, unprivileged.

use crate::cli::args::ServeArgs;
use crate::cli::logging;
use crate::config::exit::Exit;
use crate::config::exit::Failure;
use crate::config::load;
use crate::config::load::Loaded;
use crate::config::settings::Overrides;
use crate::engine;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<Exit> {
    let over = Overrides { state_dir: args.state_dir, control: args.control, ..Overrides::default() };
    let Loaded { settings, warnings } = load::load(args.config.config.as_deref(), over)?;
    let roles =
        [settings.broker.enabled == Some(true), settings.relay.enabled == Some(true), settings.stun.enabled];
    if !roles.contains(&true) {
        return Err(Failure::config(
            "there is nothing to serve: put `enabled = true` into [broker], [relay] or [stun] of overlay.toml and name it with --config",
        )
        .into());
    }
    logging::start(settings.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    engine::serve::run(&settings)
}
