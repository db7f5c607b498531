//! How this machine belongs to a network: it does already, it was invited, or it founds one.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::base::time::UnixTime;
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
    /// It was, and its certificate is worth nothing any more; the invite makes it one again, under the same name.
    InvitedAgain(Invite, Box<Credentials>),
    /// Neither: found a network.
    Founder,
}

/// Looks what this machine is.
///
/// # Errors
/// When its files are unreadable, or the invite is for another network than the one it belongs to.
pub fn standing(state_dir: &Path, join: Option<Invite>, now: UnixTime) -> anyhow::Result<Standing> {
    let dir = state_dir.join(MEMBER);
    if !credentials::is_enrolled(&dir) {
        let Some(invite) = join else { return Ok(Standing::Founder) };
        // A start that founded a network and got no further.
        if has_broker(state_dir) {
            let founded = credentials::load_anchor(&state_dir.join(BROKER))?;
            anyhow::ensure!(
                invite.ca == founded.fingerprint(),
                "this machine has founded the network {} before (its keys are in {}): remove that directory to give the network up, or join {} with another --state-dir and --control",
                founded.network,
                state_dir.display(),
                invite.network
            );
        }
        return Ok(Standing::Invited(invite));
    }
    let own = Box::new(credentials::load(&dir)?);
    let Some(invite) = join else { return Ok(Standing::Member(own)) };
    anyhow::ensure!(
        invite.ca == own.anchor.fingerprint(),
        "this machine is already {} in {}: to be in network {} as well, run a second instance with its own --state-dir and --control; to leave {}, remove {}",
        own.certificate.subject.uri.name,
        own.anchor.network,
        invite.network,
        own.anchor.network,
        state_dir.display()
    );
    if is_worthless(&dir, &own, now)? {
        return Ok(Standing::InvitedAgain(invite, own));
    }
    remember_brokers(&dir, &invite.brokers)?;
    Ok(Standing::Member(own))
}

/// Whether the certificate in `dir` has run out or was taken back.
///
/// # Errors
/// When the revocation list beside it is unreadable.
pub fn is_worthless(dir: &Path, own: &Credentials, now: UnixTime) -> anyhow::Result<bool> {
    let revoked = credentials::load_revocations(dir, &own.anchor)?.contains(&own.certificate.serial);
    Ok(revoked || own.certificate.not_after < now)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::addr::OverlayAddrs;
    use crate::engine::broker::create_network;
    use crate::engine::clock;
    use crate::identity::authority::Authority;
    use crate::identity::authority::validity;
    use crate::identity::certificate::Roles;
    use crate::identity::certificate::Serial;
    use crate::identity::certificate::Subject;
    use crate::identity::names::MemberUri;
    use crate::identity::revocation::RevocationList;

    const LIFE: Duration = Duration::from_secs(3600);

    fn network(name: &str) -> Authority {
        Authority::create(&name.parse().unwrap(), "10.77.0.0/16".parse().unwrap(), clock::now().unix)
    }

    fn invite(ca: &Authority) -> Invite {
        let (network, fingerprint) = (ca.anchor().network.clone(), ca.anchor().fingerprint());
        let brokers = vec!["192.0.2.1:6060".parse().unwrap()];
        Invite { network, ca: fingerprint, secret: [1; 32], brokers }
    }

    fn enrol(state_dir: &Path, ca: &Authority) -> Credentials {
        let dir = state_dir.join(MEMBER);
        let (key, wg) = credentials::keys_or_new(&dir).unwrap();
        let addrs: OverlayAddrs = ca.anchor().overlay_addrs("10.77.0.1".parse().unwrap());
        let uri = MemberUri { network: ca.anchor().network.clone(), name: "anna".parse().unwrap() };
        let subject =
            Subject { uri, roles: Roles::MEMBER, addrs: Some(addrs), groups: vec![], wg: wg.public() };
        let (from, until) = validity(clock::now().unix, LIFE);
        let certificate = ca.sign(&subject, &key.public(), Serial::generate(), from, until).unwrap();
        credentials::store_new(&dir, ca.anchor(), &certificate).unwrap()
    }

    fn of(state_dir: &Path, join: Option<Invite>, now: UnixTime) -> &'static str {
        match standing(state_dir, join, now).unwrap() {
            Standing::Member(_) => "member",
            Standing::Invited(_) => "invited",
            Standing::InvitedAgain(_, old) => {
                assert_eq!(old.certificate.subject.uri.name.as_str(), "anna");
                "invited again"
            }
            Standing::Founder => "founder",
        }
    }

    #[test]
    fn an_invite_is_used_by_whoever_has_no_certificate_or_one_that_ran_out_or_was_taken_back() {
        let (ca, dir) = (network("home"), tempfile::tempdir().unwrap());
        let now = clock::now().unix;
        let (state, late) = (dir.path(), now.plus(LIFE * 2));
        assert_eq!(of(state, None, now), "founder");
        assert_eq!(of(state, Some(invite(&ca)), now), "invited");
        let own = enrol(state, &ca);
        assert_eq!(of(state, Some(invite(&ca)), now), "member");
        assert_eq!(of(state, None, late), "member", "without an invite it can only try");
        assert_eq!(of(state, Some(invite(&ca)), late), "invited again");
        let list = RevocationList::default().next(now, [own.certificate.serial]).unwrap();
        credentials::store_revocations(&state.join(MEMBER), &ca.sign_revocations(&list)).unwrap();
        assert_eq!(of(state, Some(invite(&ca)), now), "invited again");
    }

    #[test]
    fn an_invite_of_another_network_is_refused_with_what_to_do() {
        let (ca, other, dir) = (network("home"), network("work"), tempfile::tempdir().unwrap());
        let (state, now) = (dir.path(), clock::now().unix);
        let _ = enrol(state, &ca);
        let error = standing(state, Some(invite(&other)), now).unwrap_err().to_string();
        assert!(error.contains("anna in home") && error.contains("--state-dir"), "{error}");

        let founded = tempfile::tempdir().unwrap();
        let prefix = "10.9.0.0/24".parse().unwrap();
        create_network(founded.path(), &"mine".parse().unwrap(), prefix).unwrap();
        let error = standing(founded.path(), Some(invite(&other)), now).unwrap_err().to_string();
        assert!(error.contains("founded the network mine") && error.contains("remove"), "{error}");
    }
}
