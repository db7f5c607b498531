//! The impure end of the way: files, the host's name, secrets.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use super::build::Surroundings;
use super::credentials;
use super::exit::Failure;
use super::file;
use super::proxy::Proxies;
use super::settings::DEFAULT_CONFIG;
use super::settings::DEFAULT_CONTROL;
use super::settings::DEFAULT_STATE_DIR;
use super::settings::Overrides;
use super::settings::ProxyChoice;
use super::settings::Secret;
use super::settings::Settings;
use crate::wire::enroll::Invite;

/// Larger is not a configuration, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The settings, and what is odd about how they are kept.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// For the log, once there is one.
    pub warnings: Vec<String>,
}

/// Reads and checks the configuration; without `path`, the default file, and if that is missing, the defaults.
///
/// # Errors
/// A [`Failure`] with the file's name, line and column.
pub fn load(path: Option<&Path>, over: Overrides) -> anyhow::Result<Loaded> {
    let (path, must_exist) = path.map_or_else(|| (Path::new(DEFAULT_CONFIG), false), |path| (path, true));
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
    let around = Surroundings { hostname: &hostname(), read: &read_secret };
    let settings = Settings::build(&parsed, over, &around).map_err(in_file)?;
    let holds_secret = parsed.file.member.join.as_deref().is_some_and(|join| !join.starts_with("file:"))
        || parsed.file.member.proxy.as_deref().is_some_and(|proxy| proxy.contains('@'))
        || parsed.file.wireguard_peer.iter().any(|peer| peer.preshared_key.is_some());
    let mut warnings = Vec::new();
    // The service's own group may read it (packaging/).
    if holds_secret && lets_in(path, 0o007) {
        warnings.push(format!(
            "{} holds a secret and others can read it: chmod o= it, or keep the secret in a file of its own",
            path.display()
        ));
    }
    Ok(Loaded { settings, warnings })
}

/// Control socket and state directory of the instance that this machine's configuration describes, for commands that
/// were not told. Only these two keys count: a mistake elsewhere must not keep anybody from asking for the status, and
/// whoever may not read the file gets the defaults.
#[must_use]
pub fn usual_places() -> Places {
    let path = std::env::var_os("NTCP_CONFIG").filter(|path| !path.is_empty());
    let path = path.map_or_else(|| PathBuf::from(DEFAULT_CONFIG), PathBuf::from);
    let parsed = fs::read_to_string(path).ok().and_then(|text| file::parse(&text).ok()).unwrap_or_default();
    Places {
        control: parsed.file.control.socket.map_or_else(|| DEFAULT_CONTROL.into(), PathBuf::from),
        state_dir: parsed.file.state_dir.map_or_else(|| DEFAULT_STATE_DIR.into(), PathBuf::from),
    }
}

/// Where an instance lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// Its control socket.
    pub control: PathBuf,
    /// Its state directory.
    pub state_dir: PathBuf,
}

/// The invite that the settings name, read and checked. A member that has its certificate starts without it, so its
/// file may be gone by then.
///
/// # Errors
/// A [`Failure`] when the token cannot be read or is none.
pub fn invite(settings: &Settings) -> anyhow::Result<Option<Invite>> {
    let text = match &settings.member.join {
        None => return Ok(None),
        Some(Secret::Text(text)) => text.clone(),
        Some(Secret::File(path)) => match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && credentials::is_enrolled(&settings.state_dir.join("member")) =>
            {
                return Ok(None);
            }
            Err(error) => {
                return Err(Failure::config(format!("the join token in {}: {error}", path.display())).into());
            }
        },
    };
    let invite = Invite::from_text(&text).map_err(|error| {
        Failure::config(format!(
            "this is not a join token ({error}): copy the whole token that `ntcp-overlay invite` printed, or make a new one"
        ))
    })?;
    Ok(Some(invite))
}

/// How the broker and relays are reached; an environment that cannot be used counts as none, with a warning in the log.
#[must_use]
pub fn proxies(settings: &Settings) -> Proxies {
    let proxies = match &settings.member.proxy {
        ProxyChoice::Written(proxies) => proxies.clone(),
        ProxyChoice::Environment => Proxies::from_environment(|name| std::env::var(name).ok())
            .unwrap_or_else(|why| {
                tracing::warn!("{why}");
                Proxies::none()
            }),
    };
    if let Some(proxy) = proxies.describe() {
        tracing::info!(proxy, "the broker and relays are reached through a proxy");
    }
    proxies
}

/// What the machine calls itself; empty if it does not say.
fn hostname() -> String {
    // The first is hidden from hardened services (ProcSubset=pid), the second is missing in small containers.
    let names = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    names.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default().trim().to_owned()
}

fn read_secret(path: &Path) -> Result<String, String> {
    if lets_in(path, 0o077) {
        return Err(format!("names {}, which others can read: chmod 600 it", path.display()));
    }
    fs::read_to_string(path)
        .map_err(|error| format!("names {}, which cannot be read: {error}", path.display()))
}

/// Whether the file's mode has any of these bits.
fn lets_in(path: &Path, bits: u32) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & bits != 0)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let text = format!("{}: cannot be read: {error}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied => Failure::permission(format!("{text}; run it with sudo")),
        _ => Failure::config(text),
    }
}
