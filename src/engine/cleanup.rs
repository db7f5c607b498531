//! `down --cleanup`: takes back what a daemon that was killed left behind.
//!
//! Little can be left: the device, its addresses and its routes vanish with the process, and the control socket is
//! replaced at the next start. What stays is the block of names in the hosts file, and a relay's table in
//! nf_tables.

use std::path::Path;

use anyhow::Context as _;

use crate::config::credentials;
use crate::engine::membership::MEMBER;
use crate::engine::membership::RELAY;
use crate::io::hosts;
use crate::io::splice;

/// The hosts file that names go into (`member.hosts_file`).
pub const HOSTS: &str = "/etc/hosts";

/// Removes devices, routes and names that belong to the instance with this state directory; says what it removed.
///
/// # Errors
/// Whatever could not be removed.
pub fn run(state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut removed = names(state_dir)?;
    if credentials::is_enrolled(&state_dir.join(RELAY))
        && splice::remove_leftovers().context("removing the relay's table in nf_tables")?
    {
        removed.push("the relay's table in nf_tables".to_owned());
    }
    Ok(removed)
}

fn names(state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let member = state_dir.join(MEMBER);
    if !credentials::is_enrolled(&member) {
        return Ok(Vec::new());
    }
    let network = credentials::load_anchor(&member)?.network;
    let before = std::fs::read(HOSTS).unwrap_or_default();
    hosts::remove_block(Path::new(HOSTS), network.as_str())
        .with_context(|| format!("taking the names of {network} out of {HOSTS}"))?;
    let removed = std::fs::read(HOSTS).unwrap_or_default() != before;
    Ok(if removed { vec![format!("names of network {network} in {HOSTS}")] } else { Vec::new() })
}
