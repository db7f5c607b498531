//! `cert request` on the machine that owns the keys, `cert sign` on the one that holds the CA.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use anyhow::anyhow;

use super::RequestArgs;
use super::SignArgs;
use super::date;
use super::roles;
use super::shell;
use crate::base::time::UnixTime;
use crate::config::credentials;
use crate::config::register::Register;
use crate::config::register::Wishes;
use crate::identity::pem;
use crate::wire::WireError;
use crate::wire::enroll::SigningRequest;

/// The request beside the keys.
const REQUEST: &str = "identity.req";
pub(super) const PEM_REQUEST: &str = "NTCP OVERLAY SIGNING REQUEST";

pub(super) fn request(args: &RequestArgs) -> anyhow::Result<String> {
    let (key, wg) = credentials::keys_or_new(&args.dir)?;
    let request = SigningRequest::new(&args.name, &key, wg.public());
    let path = args.dir.join(REQUEST);
    credentials::write_public(&path, pem::encode(PEM_REQUEST, &request.emit()).as_bytes())?;
    let (dir, shown) = (shell(&args.dir), shell(&path));
    let mut out = String::new();
    writeln!(out, "request for \"{}\": {shown}", args.name)?;
    writeln!(
        out,
        "\nnext: where the CA is   ntcp-overlay cert sign --ca DIR --request {REQUEST} --out {}.crt",
        args.name
    )?;
    writeln!(out, "      then bring back   {}.crt as {dir}/{}", args.name, credentials::CERTIFICATE)?;
    writeln!(
        out,
        "                   and  DIR/{} as {dir}/{}",
        credentials::CA_CERTIFICATE,
        credentials::CA_CERTIFICATE
    )?;
    Ok(out)
}

pub(super) fn run(args: &SignArgs, now: UnixTime) -> anyhow::Result<String> {
    let request = read_request(&args.request)?;
    let mut register = Register::open(&args.ca)?;
    let wishes = Wishes { roles: roles(&args.role), groups: args.groups.clone(), address: args.address };
    let certificate = register.sign(&request, &wishes, now, args.ttl)?;
    let text = pem::encode(credentials::PEM_CERTIFICATE, &certificate.der);
    credentials::write_public(&args.out, text.as_bytes())?;
    let subject = &certificate.subject;
    let address = subject.addrs.map(|addrs| format!(", {addrs}")).unwrap_or_default();
    let mut out = String::new();
    writeln!(out, "{}: {}{address}, until {}", subject.uri, subject.roles, date(certificate.not_after))?;
    writeln!(out, "certificate {}", shell(&args.out))?;
    writeln!(
        out,
        "\nnext: bring it back as {} and {} as {} of the machine that asked",
        credentials::CERTIFICATE,
        shell(&args.ca.join(credentials::CA_CERTIFICATE)),
        credentials::CA_CERTIFICATE
    )?;
    Ok(out)
}

fn read_request(path: &Path) -> anyhow::Result<SigningRequest> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bytes = pem::decode(PEM_REQUEST, &text)
        .ok_or_else(|| anyhow!("{}: not a request of `cert request`", path.display()))?;
    SigningRequest::parse(&bytes).map_err(|error: WireError| anyhow!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::Role;
    use super::*;
    use crate::config::credentials::CA_CERTIFICATE;
    use crate::config::credentials::CERTIFICATE;
    use crate::identity::certificate::Roles;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn founded(root: &Path) -> PathBuf {
        let ca = root.join("ca");
        credentials::create_authority(&ca, &"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0)
            .unwrap();
        ca
    }

    fn sign_args(root: &Path) -> SignArgs {
        SignArgs {
            ca: root.join("ca"),
            request: root.join("member").join(REQUEST),
            out: root.join("nas.crt"),
            role: Vec::new(),
            groups: None,
            address: None,
            ttl: None,
        }
    }

    #[test]
    fn keys_stay_where_they_are_and_only_public_files_travel() {
        let root = tempfile::tempdir().unwrap();
        let (ca, dir) = (founded(root.path()), root.path().join("member"));
        let told = request(&RequestArgs { name: "nas".parse().unwrap(), dir: dir.clone() }).unwrap();
        assert!(told.contains("cert sign") && told.contains(CERTIFICATE), "{told}");
        let told = run(&sign_args(root.path()), T0).unwrap();
        assert!(told.contains("ntcp://home/nas: member, 10.77.0.1"), "{told}");
        fs::rename(root.path().join("nas.crt"), dir.join(CERTIFICATE)).unwrap();
        fs::copy(ca.join(CA_CERTIFICATE), dir.join(CA_CERTIFICATE)).unwrap();
        let credentials = credentials::load(&dir).unwrap();
        assert_eq!(credentials.certificate.subject.roles, Roles::MEMBER);
    }

    #[test]
    fn what_the_signer_wishes_stands_in_the_certificate() {
        let root = tempfile::tempdir().unwrap();
        founded(root.path());
        request(&RequestArgs { name: "nas".parse().unwrap(), dir: root.path().join("member") }).unwrap();
        let args = SignArgs {
            role: vec![Role::Member, Role::Relay],
            groups: Some(vec!["admins".parse().unwrap()]),
            address: Some([10, 77, 5, 5].into()),
            ttl: Some(Duration::from_secs(3600)),
            ..sign_args(root.path())
        };
        run(&args, T0).unwrap();
        let der = credentials::read_certificate(&args.out).unwrap();
        let read = crate::identity::certificate::Certificate::parse(&der).unwrap();
        assert_eq!(read.subject.roles, Roles { relay: true, ..Roles::MEMBER });
        assert_eq!(read.subject.addrs.unwrap().v4, Ipv4Addr::new(10, 77, 5, 5));
        assert_eq!(read.not_after, T0.plus(Duration::from_secs(3600)));
        assert_eq!(read.subject.groups.len(), 1);
    }

    #[test]
    fn a_file_that_is_no_request_or_a_changed_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        founded(root.path());
        let dir = root.path().join("member");
        request(&RequestArgs { name: "nas".parse().unwrap(), dir: dir.clone() }).unwrap();
        let path = dir.join(REQUEST);
        let mut bytes = pem::decode(PEM_REQUEST, &fs::read_to_string(&path).unwrap()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, pem::encode(PEM_REQUEST, &bytes).as_bytes()).unwrap();
        assert!(run(&sign_args(root.path()), T0).unwrap_err().to_string().contains("integrity"));
        fs::write(&path, "hello").unwrap();
        assert!(run(&sign_args(root.path()), T0).unwrap_err().to_string().contains("cert request"));
        fs::remove_file(&path).unwrap();
        assert!(run(&sign_args(root.path()), T0).is_err());
    }
}
