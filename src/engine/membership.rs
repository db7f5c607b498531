//! How this machine belongs to a network: it does already, it was invited, or it founds one.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::config::credentials;
use crate::identity::credentials::Credentials;
use crate::wire::enroll::BrokerAddr;
use crate::wire::enroll::Invite;

/// Where a member's files are, below the state directory.
pub const MEMBER: &str = "member";
/// Where a broker's are.
pub const BROKER: &str = "broker";
/// Where a relay's are.
pub const RELAY: &str = "relay";
/// The brokers that a member knows, one `host:port` a line; beside its keys.
const BROKERS: &str = "brokers";

/// What `up` finds, before it changes anything.
#[derive(Debug)]
pub enum Standing {
    /// A member already.
    Member(Box<Credentials>),
    /// Not yet, but invited.
    Invited(Invite),
    /// Neither: found a network.
    Founder,
}

/// Looks what this machine is.
///
/// # Errors
/// When its files are unreadable, or the invite is for another network than the one it is a member of.
pub fn standing(state_dir: &Path, join: Option<Invite>) -> anyhow::Result<Standing> {
    let dir = state_dir.join(MEMBER);
    if !credentials::is_enrolled(&dir) {
        return Ok(join.map_or(Standing::Founder, Standing::Invited));
    }
    let own = credentials::load(&dir)?;
    if let Some(invite) = join {
        anyhow::ensure!(
            invite.ca == own.anchor.fingerprint(),
            "this machine is already {} in {}: to be in network {} as well, run a second instance with its own --state-dir and --control",
            own.certificate.subject.uri.name,
            own.anchor.network,
            invite.network
        );
        remember_brokers(&dir, &invite.brokers)?;
    }
    Ok(Standing::Member(Box::new(own)))
}

/// The brokers that were remembered.
///
/// # Errors
/// When the file is unreadable or holds something else.
pub fn brokers(role_dir: &Path) -> anyhow::Result<Vec<BrokerAddr>> {
    let path = role_dir.join(BROKERS);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| {
            line.parse().map_err(|_| anyhow::anyhow!("{} holds {line:?}: expected host:port", path.display()))
        })
        .collect()
}

/// Remembers brokers for the next start.
///
/// # Errors
/// When the file cannot be written.
pub fn remember_brokers(role_dir: &Path, brokers: &[BrokerAddr]) -> anyhow::Result<()> {
    let text: String = brokers.iter().map(|broker| format!("{broker}\n")).collect();
    credentials::write_public(&role_dir.join(BROKERS), text.as_bytes())
}

/// Whether this machine holds a broker's keys.
#[must_use]
pub fn has_broker(state_dir: &Path) -> bool {
    credentials::is_enrolled(&state_dir.join(BROKER))
}

/// Whether this machine holds a relay's keys.
#[must_use]
pub fn has_relay(state_dir: &Path) -> bool {
    credentials::is_enrolled(&state_dir.join(RELAY))
}
