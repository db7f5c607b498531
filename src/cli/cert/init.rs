//! `cert init`: a network comes into being.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;

use super::InitArgs;
use super::date;
use super::fingerprint;
use super::shell;
use crate::base::time::UnixTime;
use crate::config::credentials;
use crate::config::register::Register;
use crate::config::register::Wishes;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Roles;
use crate::identity::names::MemberName;
use crate::wire::enroll::SigningRequest;

/// Makes what is missing of the CA and the wanted roles, so that a run that was interrupted is finished by the next.
pub(super) fn run(args: &InitArgs, now: UnixTime) -> anyhow::Result<String> {
    let mut out = String::new();
    let (broker_dir, relay_dir) = (args.dir.join("broker"), args.dir.join("relay"));
    if args.broker.is_some() && args.broker == args.relay {
        bail!("broker and relay have keys of their own, so they need different names");
    }
    match credentials::load_authority(&args.dir)? {
        None => {
            let made = credentials::create_authority(&args.dir, &args.network, args.prefix, now)?;
            let anchor = made.anchor();
            writeln!(
                out,
                "network \"{}\" created: {} and {}",
                anchor.network,
                anchor.prefix,
                anchor.overlay_prefix_v6()
            )?;
            writeln!(out, "CA certificate {}", shell(&args.dir.join(credentials::CA_CERTIFICATE)))?;
            writeln!(out, "   fingerprint {}", fingerprint(&anchor.fingerprint()))?;
            writeln!(
                out,
                "        CA key {}   whoever has it is the network: keep a copy offline",
                shell(&args.dir.join(credentials::CA_KEY))
            )?;
        }
        Some(there) => {
            let anchor = there.anchor();
            if anchor.network != args.network || anchor.prefix != args.prefix {
                bail!(
                    "{} holds the network \"{}\" ({}) already: choose another --dir",
                    args.dir.display(),
                    anchor.network,
                    anchor.prefix
                );
            }
            let asked = [(&args.broker, &broker_dir), (&args.relay, &relay_dir)];
            if !asked.iter().any(|(name, dir)| name.is_some() && !credentials::is_enrolled(dir)) {
                bail!(
                    "the network \"{}\" exists in {} already, with everything that was asked for",
                    anchor.network,
                    args.dir.display()
                );
            }
        }
    }
    if let Some(name) = &args.broker
        && !credentials::is_enrolled(&broker_dir)
    {
        if !args.offline {
            let authority = Register::open(&args.dir)?.authority().clone();
            credentials::create_dir(&broker_dir)?;
            credentials::grant_authority(&broker_dir, &authority)?;
        }
        let certificate = role(&args.dir, &broker_dir, name, Roles::BROKER, now)?;
        writeln!(out, "  broker \"{name}\" {}   until {}", shell(&broker_dir), date(certificate.not_after))?;
    }
    if let Some(name) = &args.relay
        && !credentials::is_enrolled(&relay_dir)
    {
        let certificate = role(&args.dir, &relay_dir, name, Roles::RELAY, now)?;
        writeln!(out, "   relay \"{name}\" {}   until {}", shell(&relay_dir), date(certificate.not_after))?;
    }
    if args.broker.is_some() || args.relay.is_some() {
        if args.offline {
            writeln!(
                out,
                "\nnext: copy the directories above, without the CA key, to the machine that serves; there:"
            )?;
            writeln!(out, "      ntcp-overlay serve --state-dir DIR   (where they are in DIR)")?;
        } else {
            writeln!(out, "\nnext: ntcp-overlay serve --state-dir {}", shell(&args.dir))?;
        }
        writeln!(out, "      (as another user than this one: give it the directories above with chown -R)")?;
    } else {
        writeln!(out, "\nnext: on each machine  ntcp-overlay cert request --name NAME --dir DIR")?;
        writeln!(
            out,
            "      and here         ntcp-overlay cert sign --ca {} --request FILE --out FILE",
            shell(&args.dir)
        )?;
    }
    Ok(out)
}

/// One role's directory: keys, certificate, CA certificate.
fn role(
    ca: &Path,
    dir: &Path,
    name: &MemberName,
    roles: Roles,
    now: UnixTime,
) -> anyhow::Result<Certificate> {
    let (key, wg) = credentials::keys_or_new(dir)?;
    let mut register = Register::open(ca)?;
    let wishes = Wishes { roles: Some(roles), ..Wishes::default() };
    let request = SigningRequest::new(name, &key, wg.public());
    let certificate = register.sign(&request, &wishes, now, None)?;
    credentials::store_new(dir, register.authority().anchor(), &certificate)?;
    Ok(certificate)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn args(dir: &Path) -> InitArgs {
        InitArgs {
            network: "home".parse().unwrap(),
            dir: dir.to_owned(),
            prefix: "10.77.0.0/16".parse().unwrap(),
            broker: Some("b1".parse().unwrap()),
            relay: Some("r1".parse().unwrap()),
            offline: false,
        }
    }

    #[test]
    fn a_network_with_broker_and_relay_is_ready_to_serve() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("state");
        let text = run(&args(&dir), T0).unwrap();
        let broker = credentials::load(&dir.join("broker")).unwrap();
        let relay = credentials::load(&dir.join("relay")).unwrap();
        assert_eq!(
            (broker.certificate.subject.roles, relay.certificate.subject.roles),
            (Roles::BROKER, Roles::RELAY)
        );
        assert!(broker.anchor.verify(&relay.certificate.der, T0).is_ok());
        assert!(credentials::load_authority(&dir.join("broker")).unwrap().is_some(), "the broker may sign");
        assert!(credentials::load_authority(&dir.join("relay")).unwrap().is_none(), "the relay may not");
        for part in ["\"home\" created", "10.77.0.0/16", "sha256:", "b1", "r1", "serve --state-dir"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn an_interrupted_run_is_finished_and_a_finished_one_refused() {
        let root = tempfile::tempdir().unwrap();
        run(&args(root.path()), T0).unwrap();
        assert!(run(&args(root.path()), T0).unwrap_err().to_string().contains("already"));
        fs::remove_file(root.path().join("broker").join(credentials::CERTIFICATE)).unwrap();
        run(&args(root.path()), T0).unwrap();
        assert!(credentials::load(&root.path().join("broker")).is_ok());
    }

    #[test]
    fn the_broker_of_an_offline_ca_cannot_sign() {
        let root = tempfile::tempdir().unwrap();
        run(&InitArgs { offline: true, ..args(root.path()) }, T0).unwrap();
        assert!(credentials::load_authority(&root.path().join("broker")).unwrap().is_none());
    }

    #[test]
    fn one_directory_holds_one_network() {
        let root = tempfile::tempdir().unwrap();
        run(&args(root.path()), T0).unwrap();
        let other = InitArgs { network: "work".parse().unwrap(), ..args(root.path()) };
        assert!(run(&other, T0).unwrap_err().to_string().contains("\"home\""));
        let twins = InitArgs { relay: Some("b1".parse().unwrap()), ..args(&root.path().join("new")) };
        assert!(run(&twins, T0).unwrap_err().to_string().contains("different names"));
    }
}
