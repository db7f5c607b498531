//! `down --cleanup`: takes back what a daemon that was killed left behind.

use std::path::Path;

/// Removes devices, routes and names that belong to the instance with this state directory; says what it removed.
///
/// # Errors
/// Whatever could not be removed.
pub fn run(state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let _ = state_dir;
    anyhow::bail!("not built yet")
}
