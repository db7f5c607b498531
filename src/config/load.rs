//! The impure end of the way: files, the host's name, secrets.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::exit::Failure;
use super::file;
use super::settings::DEFAULT_CONFIG;
use super::settings::Overrides;
use super::settings::Secret;
use super::settings::Settings;
use super::settings::Surroundings;
use crate::wire::enroll::Invite;

/// Larger is not a configuration, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Reads and checks the configuration; without `path`, the default file, and if that is missing, the defaults.
///
/// # Errors
/// A [`Failure`] with the file's name, line and column.
pub fn load(path: Option<&Path>, over: Overrides) -> anyhow::Result<Settings> {
    let (path, must_exist) = path.map_or((Path::new(DEFAULT_CONFIG), false), |path| (path, true));
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE => {
            return Err(Failure::config(format!(
                "{}: larger than 1 MiB, so no configuration",
                path.display()
            ))
            .into());
        }
        Ok(_) => fs::read_to_string(path).map_err(|error| unreadable(path, &error))?,
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => String::new(),
        Err(error) => return Err(unreadable(path, &error).into()),
    };
    let in_file = |error| Failure::config(format!("{}: {error}", path.display()));
    let parsed = file::parse(&text).map_err(in_file)?;
    let settings =
        Settings::build(&parsed, over, &Surroundings { hostname: &hostname(), read: &read_secret })
            .map_err(in_file)?;
    let holds_secret = parsed.file.member.join.as_deref().is_some_and(|join| !join.starts_with("file:"))
        || parsed.file.wireguard_peer.iter().any(|peer| peer.preshared_key.is_some());
    if holds_secret && is_exposed(path) {
        tracing::warn!(file = %path.display(), "holds a secret and others can read it: chmod 600, or keep the secret in a file of its own");
    }
    Ok(settings)
}

/// The invite that the settings name, read and checked. `enrolled` members do not need it any more, so that a spent
/// token, or a file that is gone, does not keep them from starting.
///
/// # Errors
/// A [`Failure`] when the token cannot be read or is none.
pub fn invite(settings: &Settings, enrolled: bool) -> anyhow::Result<Option<Invite>> {
    let Some(secret) = &settings.member.join else { return Ok(None) };
    match read_invite(secret) {
        Ok(invite) => Ok(Some(invite)),
        Err(_) if enrolled => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

fn read_invite(secret: &Secret) -> Result<Invite, Failure> {
    let text = match secret {
        Secret::Text(text) => text.clone(),
        Secret::File(path) => fs::read_to_string(path)
            .map_err(|error| Failure::config(format!("the join token in {}: {error}", path.display())))?,
    };
    Invite::from_text(&text).map_err(|error| {
        Failure::config(format!(
            "this is not a join token ({error}): paste the whole line that `ntcp-overlay invite` printed, or make a new one with it"
        ))
    })
}

/// What the machine calls itself; empty if it does not say.
fn hostname() -> String {
    // The first is hidden from hardened services (ProcSubset=pid), the second is missing in small containers.
    let names = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    names.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default().trim().to_owned()
}

fn read_secret(path: &Path) -> Result<String, String> {
    if is_exposed(path) {
        return Err(format!("names {}, which others can read: chmod 600 it", path.display()));
    }
    fs::read_to_string(path)
        .map_err(|error| format!("names {}, which cannot be read: {error}", path.display()))
}

fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let text = format!("{}: cannot be read: {error}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied => Failure::permission(format!("{text}; run it with sudo")),
        _ => Failure::config(text),
    }
}
