//! `cert revoke`: takes certificates back, at a running broker or with a CA that is kept elsewhere.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use anyhow::bail;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::RevokeArgs;
use super::shell;
use crate::base::time::UnixTime;
use crate::cli::control_failure;
use crate::config::credentials;
use crate::config::register::Register;
use crate::control::api::Reply;
use crate::control::api::Request;
use crate::control::client;
use crate::identity::certificate::Serial;
use crate::identity::names::MemberName;

pub(super) fn run(args: RevokeArgs, now: UnixTime) -> anyhow::Result<String> {
    if let (Some(ca), Some(out)) = (&args.ca, &args.out) {
        return offline(ca, args.name.as_ref(), args.serial, out, now);
    }
    let (request, done) = match (args.name, args.import) {
        (Some(name), _) => (Request::Revoke { name: name.to_string() }, format!("\"{name}\" is revoked\n")),
        (None, Some(file)) => {
            let list = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let request = Request::ImportRevocations { base64: STANDARD.encode(list) };
            (request, format!("the revocation list {} is in force\n", shell(&file)))
        }
        (None, None) => bail!("--serial needs --ca DIR and --out FILE"),
    };
    match client::ask(&args.control.socket(), request).map_err(control_failure)? {
        Reply::Done { message } if message.is_empty() => Ok(done),
        Reply::Done { message } => Ok(format!("{message}\n")),
        other => bail!("unexpected answer from ntcp-overlay: {other:?}"),
    }
}

fn offline(
    ca: &Path,
    name: Option<&MemberName>,
    serial: Option<Serial>,
    out: &Path,
    now: UnixTime,
) -> anyhow::Result<String> {
    let mut register = Register::open(ca)?;
    let serials = match name {
        Some(name) => register.serials_of(name, now)?,
        None => serial.into_iter().collect(),
    };
    let (list, signed) = register.revoke(&serials, now)?;
    credentials::write_public(out, &signed)?;
    let mut text = String::new();
    for serial in &serials {
        writeln!(text, "revoked {serial}")?;
    }
    writeln!(text, "list    version {}, {} certificates: {}", list.version, list.serials.len(), shell(out))?;
    writeln!(text, "\nnext: at a broker  ntcp-overlay cert revoke --import {}", shell(out))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::register::Wishes;
    use crate::identity::keys::SigningKey;
    use crate::identity::keys::WgSecret;
    use crate::identity::revocation::RevocationList;
    use crate::wire::enroll::SigningRequest;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

    #[test]
    fn an_offline_ca_revokes_by_name_or_serial_and_the_versions_grow() {
        let root = tempfile::tempdir().unwrap();
        let (ca, out) = (root.path().join("ca"), root.path().join("list"));
        let prefix = "10.77.0.0/16".parse().unwrap();
        let authority = credentials::create_authority(&ca, &"home".parse().unwrap(), prefix, T0).unwrap();
        let name: MemberName = "nas".parse().unwrap();
        let request = SigningRequest::new(&name, &SigningKey::generate(), WgSecret::generate().public());
        let signed = Register::open(&ca).unwrap().sign(&request, &Wishes::default(), T0, None).unwrap();

        let text = offline(&ca, Some(&name), None, &out, T0).unwrap();
        assert!(text.contains(&signed.serial.to_string()) && text.contains("cert revoke --import"), "{text}");
        let read = || RevocationList::parse_signed(&fs::read(&out).unwrap(), authority.anchor()).unwrap();
        assert!(read().contains(&signed.serial));

        let foreign = Serial::generate();
        offline(&ca, None, Some(foreign), &out, T0).unwrap();
        assert_eq!((read().version, read().serials.len()), (2, 2));
        assert!(offline(&ca, Some(&name), None, &out, T0).is_err(), "nothing is left to revoke");
    }
}
