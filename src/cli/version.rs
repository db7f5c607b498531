//! `version`: which program this is.

use crate::cli::output;
use crate::config::exit::Exit;

pub(super) fn run() -> anyhow::Result<Exit> {
    output::data(&format!("ntcp-overlay {}\n", env!("CARGO_PKG_VERSION")))
}
