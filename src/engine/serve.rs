//! `serve`: broker, relay and STUN server without a member.

use crate::config::exit::Exit;
use crate::config::settings::Settings;

/// Runs until SIGTERM, SIGINT or `down`.
///
/// # Errors
/// Whatever keeps it from starting or going on; a `config::exit::Failure` in the chain sets the exit code.
pub fn run(settings: &Settings) -> anyhow::Result<Exit> {
    let _ = settings;
    anyhow::bail!("not built yet")
}
