//! `cert show`: what a file says, in words.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;

use super::date;
use super::fingerprint;
use super::sign::PEM_REQUEST;
use crate::base::time::UnixTime;
use crate::cli::render;
use crate::config::credentials;
use crate::identity::certificate::CertError;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::TrustAnchor;
use crate::identity::pem;
use crate::identity::revocation::RevocationList;
use crate::wire::enroll::SigningRequest;

pub(super) fn run(path: &Path, now: UnixTime) -> anyhow::Result<String> {
    let file = if path.is_dir() {
        let candidates = [credentials::CERTIFICATE, credentials::CA_CERTIFICATE].map(|name| path.join(name));
        candidates
            .into_iter()
            .find(|file| file.exists())
            .ok_or_else(|| anyhow!("{} holds neither a certificate nor a CA", path.display()))?
    } else {
        path.to_owned()
    };
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let beside = file.parent().and_then(|dir| credentials::load_anchor(dir).ok());
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    if let Some(der) = pem::decode(credentials::PEM_CERTIFICATE, text) {
        if let Ok(anchor) = TrustAnchor::parse(&der) {
            return ca(&anchor);
        }
        let read = Certificate::parse(&der).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        return certificate(&read, beside.as_ref(), now);
    }
    if let Some(bytes) = pem::decode(PEM_REQUEST, text) {
        let read = SigningRequest::parse(&bytes).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        return Ok(format!("request for  {}\nwg key       {}\n", read.name, read.wg));
    }
    if let Some(anchor) = beside
        && let Ok(list) = RevocationList::parse_signed(&bytes, &anchor)
    {
        return revocations(&list, &anchor);
    }
    bail!("{}: neither a certificate, a request, nor a revocation list of the CA beside it", file.display())
}

fn certificate(read: &Certificate, anchor: Option<&TrustAnchor>, now: UnixTime) -> anyhow::Result<String> {
    let subject = &read.subject;
    let groups: Vec<&str> = subject.groups.iter().map(|group| group.as_str()).collect();
    let mut out = String::new();
    writeln!(out, "name         {}", subject.uri)?;
    writeln!(out, "roles        {}", subject.roles)?;
    if !groups.is_empty() {
        writeln!(out, "groups       {}", groups.join(", "))?;
    }
    if let Some(addrs) = subject.addrs {
        writeln!(out, "addresses    {addrs}")?;
    }
    writeln!(out, "wg key       {}", subject.wg)?;
    writeln!(out, "valid        {} to {}", date(read.not_before), date(read.not_after))?;
    writeln!(out, "             {}", validity(read, now))?;
    writeln!(out, "serial       {}", read.serial)?;
    writeln!(out, "fingerprint  {}", fingerprint(&read.fingerprint()))?;
    // Asked about its own first moment: time has its line already.
    let verdict = match anchor.map(|anchor| anchor.verify(&read.der, read.not_before).map(drop)) {
        None => format!("not checked: no {} beside it", credentials::CA_CERTIFICATE),
        Some(Ok(())) => format!("signed by {} beside it", credentials::CA_CERTIFICATE),
        Some(Err(CertError::WrongAuthority)) => {
            format!("NOT signed by {} beside it", credentials::CA_CERTIFICATE)
        }
        Some(Err(error)) => error.to_string(),
    };
    writeln!(out, "signature    {verdict}")?;
    Ok(out)
}

fn validity(read: &Certificate, now: UnixTime) -> String {
    if now < read.not_before {
        "not valid yet: is the clock right?".to_owned()
    } else if now > read.not_after {
        format!("EXPIRED {} ago", render::age(now.since(read.not_after).as_secs()))
    } else {
        format!("{} left", render::age(read.not_after.since(now).as_secs()))
    }
}

fn ca(anchor: &TrustAnchor) -> anyhow::Result<String> {
    let mut out = String::new();
    writeln!(out, "network      {}", anchor.network)?;
    writeln!(out, "addresses    {} {}", anchor.prefix, anchor.overlay_prefix_v6())?;
    writeln!(out, "fingerprint  {}", fingerprint(&anchor.fingerprint()))?;
    Ok(out)
}

fn revocations(list: &RevocationList, anchor: &TrustAnchor) -> anyhow::Result<String> {
    let mut out = String::new();
    writeln!(out, "network      {}", anchor.network)?;
    writeln!(out, "version      {} of {}", list.version, date(list.issued))?;
    writeln!(out, "revoked      {}", list.serials.len())?;
    for serial in &list.serials {
        writeln!(out, "             {serial}")?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::register::Register;
    use crate::config::register::Wishes;
    use crate::identity::certificate::Roles;
    use crate::identity::certificate::Serial;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    /// A directory with a CA, an identity signed by it, and its revocation list.
    fn place() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        credentials::create_authority(dir, &"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0)
            .unwrap();
        let (key, wg) = credentials::keys_or_new(dir).unwrap();
        let mut register = Register::open(dir).unwrap();
        let request = SigningRequest::new(&"nas".parse().unwrap(), &key, wg.public());
        let wishes = Wishes {
            roles: Some(Roles { relay: true, ..Roles::MEMBER }),
            groups: Some(vec!["admins".parse().unwrap(), "servers".parse().unwrap()]),
            ..Wishes::default()
        };
        let signed = register.sign(&request, &wishes, T0, Some(90 * DAY)).unwrap();
        credentials::store_new(dir, register.authority().anchor(), &signed).unwrap();
        register.revoke(&[Serial([0x41; 16])], T0).unwrap();
        fs::write(dir.join("nas.req"), pem::encode(PEM_REQUEST, &request.emit()).as_bytes()).unwrap();
        root
    }

    #[test]
    fn everything_that_others_believe_about_the_holder_is_shown_and_nothing_secret() {
        let place = place();
        let text = run(place.path(), T0).unwrap();
        for part in [
            "ntcp://home/nas",
            "member, relay",
            "admins, servers",
            "10.77.0.1 fd",
            "2027-01-15 07:55 UTC to 2027-04-15 08:00 UTC",
            "90d left",
            "sha256:",
            "signed by ca.crt",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let wg = fs::read_to_string(place.path().join(credentials::WG_KEY)).unwrap();
        assert!(!text.contains(wg.trim()));
    }

    #[test]
    fn the_clock_decides_what_is_said_about_validity() {
        let place = place();
        for (now, part) in [
            (T0.plus(89 * DAY), "1d left"),
            (T0.plus(92 * DAY), "EXPIRED 2d ago"),
            (UnixTime::from_secs(T0.secs() - 86_400), "not valid yet"),
        ] {
            let text = run(place.path(), now).unwrap();
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn every_kind_of_file_has_its_words() {
        let (place, other) = (place(), place());
        let show = |name: &str| run(&place.path().join(name), T0).unwrap();
        assert!(show(credentials::CA_CERTIFICATE).contains("network      home"));
        assert!(show("nas.req").contains("request for  nas"));
        assert!(show(credentials::REVOCATIONS).contains("41414141414141414141414141414141"));
        fs::copy(other.path().join("ca.crt"), place.path().join("ca.crt")).unwrap();
        assert!(show(credentials::CERTIFICATE).contains("NOT signed by ca.crt"));
        for (name, content) in
            [("a", "hello"), ("b", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
        {
            fs::write(place.path().join(name), content).unwrap();
            assert!(run(&place.path().join(name), T0).is_err(), "{content}");
        }
    }
}
