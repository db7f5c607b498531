//! `check-config`: reads a configuration as `up` and `serve` would, and starts nothing.

use std::path::Path;

use crate::cli::args::CheckConfigArgs;
use crate::cli::output;
use crate::config::exit::Exit;
use crate::config::load;
use crate::config::load::Loaded;
use crate::config::settings::DEFAULT_CONFIG;
use crate::config::settings::Overrides;

pub(super) fn run(args: &CheckConfigArgs) -> anyhow::Result<Exit> {
    let path = args.file.as_deref().unwrap_or_else(|| Path::new(DEFAULT_CONFIG));
    let Loaded { settings, warnings } = load::load(Some(path), Overrides::default())?;
    load::invite(&settings)?;
    for warning in warnings {
        eprintln!("ntcp-overlay: warning: {warning}");
    }
    output::data(&format!("{}: ok\n", path.display()))
}
