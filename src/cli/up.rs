//! `up`: a member in the foreground, or with `--detach` in the background.

use std::io;
use std::io::Write as _;

use crate::cli::args::UpArgs;
use crate::cli::detach;
use crate::cli::logging;
use crate::cli::permission;
use crate::config::exit::Exit;
use crate::config::load;
use crate::config::load::Loaded;
use crate::config::settings::Overrides;
use crate::engine;
use crate::engine::up::Announcement;

pub(super) fn run(args: UpArgs) -> anyhow::Result<Exit> {
    let (detached, in_background) = (args.detach, args.in_background);
    let (config, over) = args.start.into_overrides();
    let over = Overrides { network: args.network, advertise: args.advertise, hosts_file: args.hosts, ..over };
    let Loaded { settings, warnings } = load::load(config.as_deref(), over)?;
    let join = load::invite(&settings)?;
    permission::check()?;
    if detached {
        return detach::run(&settings);
    }
    if in_background {
        detach::leave_terminal()?;
    }
    logging::start(settings.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    engine::up::run(&settings, join, &mut |announcement| announce(announcement, in_background))
}

/// Whoever reads may be gone, and the network goes on all the same: errors are nobody's.
fn announce(announcement: Announcement, in_background: bool) {
    let mut stdout = io::stdout().lock();
    let _ = match announcement {
        Announcement::Say(text) => writeln!(stdout, "{text}"),
        Announcement::Ready if in_background => writeln!(stdout, "{}", detach::READY),
        Announcement::Ready => Ok(()),
    };
    let _ = stdout.flush();
}
