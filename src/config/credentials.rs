//! Keys and certificates on disk: one directory per role, the same four files in each, and never half an identity.
//!
//! | file | content | mode |
//! |---|---|---|
//! | `identity.key` | Ed25519 private key, PKCS#8 PEM | 0600 |
//! | `wg.key` | X25519 private key, base64 as WireGuard writes it | 0600 |
//! | `ca.crt` | the network's CA certificate, PEM | 0644 |
//! | `identity.crt` | this machine's certificate, PEM | 0644 |
//! | `ca.key` | the CA's private key, only where certificates are signed | 0600 |
//! | `revocations.bin` | the newest signed revocation list that was seen | 0644 |
//!
//! Every file is written under another name, synced and renamed, so that it is whole or absent whenever the program is
//! killed. Keys come first and `identity.crt` last: a directory without it is not enrolled, and what an interrupted
//! enrolment left in it is used by the next one. Private keys are never overwritten.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;
use ipnetwork::Ipv4Network;
use rustix::fs::CWD;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use zeroize::Zeroizing;

use super::exit::Failure;
use crate::base::time::UnixTime;
use crate::identity::authority::Authority;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::TrustAnchor;
use crate::identity::credentials::Credentials;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgSecret;
use crate::identity::names::NetworkName;
use crate::identity::pem;
use crate::identity::revocation::RevocationList;

/// The Ed25519 private key.
pub const IDENTITY_KEY: &str = "identity.key";
/// The X25519 private key.
pub const WG_KEY: &str = "wg.key";
/// The own certificate; written last.
pub const CERTIFICATE: &str = "identity.crt";
/// The CA's certificate.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The CA's private key.
pub const CA_KEY: &str = "ca.key";
/// The newest revocation list.
pub const REVOCATIONS: &str = "revocations.bin";

/// Label of certificates in PEM (RFC 7468 5).
pub const PEM_CERTIFICATE: &str = "CERTIFICATE";

/// Larger is none of our files, bytes: a revocation list is at most 64 KiB.
const MAX_FILE: u64 = 256 * 1024;

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Whether `dir` holds a whole identity. It may still be unreadable or expired: [`load`] says.
#[must_use]
pub fn is_enrolled(dir: &Path) -> bool {
    dir.join(CERTIFICATE).exists()
}

/// Reads the identity in `dir`. Time does not matter here: an expired certificate is loaded, so that it can be renewed.
///
/// # Errors
/// Names the file and what to do about it: missing, readable by others, damaged, or of another identity.
pub fn load(dir: &Path) -> anyhow::Result<Credentials> {
    let anchor = load_anchor(dir)?;
    let path = dir.join(CERTIFICATE);
    let certificate = Certificate::parse(&read_certificate(&path)?)
        .map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let (key, wg) = load_keys(dir)?;
    put_together(dir, anchor, certificate, key, wg)
}

/// The private keys in `dir`, made now if there are none. An interrupted enrolment goes on with the keys that it began
/// with, so that a broker which has signed them already answers the same again.
///
/// # Errors
/// Unreadable or unwritable files.
pub fn keys_or_new(dir: &Path) -> anyhow::Result<(SigningKey, WgSecret)> {
    create_dir(dir)?;
    if !dir.join(IDENTITY_KEY).exists() {
        write_secret(&dir.join(IDENTITY_KEY), SigningKey::generate().to_pem().as_bytes())?;
    }
    if !dir.join(WG_KEY).exists() {
        let mut text = WgSecret::generate().to_base64();
        text.push('\n');
        write_secret(&dir.join(WG_KEY), text.as_bytes())?;
    }
    load_keys(dir)
}

/// Completes the identity in `dir`, whose keys are there already ([`keys_or_new`]), with what the CA said about them.
///
/// # Errors
/// If `dir` holds a whole identity, or the parts do not belong together; nothing is written then.
pub fn store_new(dir: &Path, anchor: &TrustAnchor, certificate: &Certificate) -> anyhow::Result<Credentials> {
    if is_enrolled(dir) {
        bail!(
            "{} holds an identity already: remove the directory to give it up, or choose another",
            dir.display()
        );
    }
    let (key, wg) = load_keys(dir)?;
    let credentials = put_together(dir, anchor.clone(), certificate.clone(), key, wg)?;
    write_public(&dir.join(CA_CERTIFICATE), pem::encode(PEM_CERTIFICATE, &anchor.der).as_bytes())?;
    write_public(&dir.join(CERTIFICATE), pem::encode(PEM_CERTIFICATE, &certificate.der).as_bytes())?;
    Ok(credentials)
}

/// Puts a renewed certificate in the place of the old one, for the same keys and under the same CA.
///
/// # Errors
/// If it is not for this identity; the old one stays then.
pub fn replace_certificate(dir: &Path, der: &[u8]) -> anyhow::Result<Credentials> {
    let old = load(dir)?;
    let new = Certificate::parse(der).context("the renewed certificate is unreadable")?;
    let credentials = put_together(dir, old.anchor, new, old.key, old.wg)?;
    write_public(&dir.join(CERTIFICATE), pem::encode(PEM_CERTIFICATE, der).as_bytes())?;
    Ok(credentials)
}

/// Reads `ca.crt` in `dir`.
///
/// # Errors
/// Missing or not a CA certificate.
pub fn load_anchor(dir: &Path) -> anyhow::Result<TrustAnchor> {
    let path = dir.join(CA_CERTIFICATE);
    TrustAnchor::parse(&read_certificate(&path)?)
        .map_err(|_| anyhow!("{}: not the CA certificate of an overlay network", path.display()))
}

/// The CA in `dir`, or `None` where there is only its certificate, or nothing.
///
/// # Errors
/// Files that are unreadable or do not belong together.
pub fn load_authority(dir: &Path) -> anyhow::Result<Option<Authority>> {
    if !(dir.join(CA_KEY).exists() && dir.join(CA_CERTIFICATE).exists()) {
        return Ok(None);
    }
    let anchor = load_anchor(dir)?;
    let authority =
        Authority::from_parts(&anchor.der, load_signing_key(&dir.join(CA_KEY))?).map_err(|_| {
            anyhow!("{}: the key is not the one of {CA_CERTIFICATE} beside it", dir.join(CA_KEY).display())
        })?;
    Ok(Some(authority))
}

/// Founds a network: makes the CA in `dir`.
///
/// # Errors
/// If there is a CA already.
pub fn create_authority(
    dir: &Path,
    network: &NetworkName,
    prefix: Ipv4Network,
    now: UnixTime,
) -> anyhow::Result<Authority> {
    create_dir(dir)?;
    let (key_path, path) = (dir.join(CA_KEY), dir.join(CA_CERTIFICATE));
    if path.exists() {
        bail!("{} exists: a network has been created here already", path.display());
    }
    if !key_path.exists() {
        write_secret(&key_path, SigningKey::generate().to_pem().as_bytes())?;
    }
    let authority = Authority::create_with(load_signing_key(&key_path)?, network, prefix, now);
    write_public(&path, pem::encode(PEM_CERTIFICATE, &authority.anchor().der).as_bytes())?;
    Ok(authority)
}

/// Puts the CA's private key into a role's directory: whoever serves from there may sign.
///
/// # Errors
/// If another CA's key is there.
pub fn grant_authority(dir: &Path, authority: &Authority) -> anyhow::Result<()> {
    let path = dir.join(CA_KEY);
    if path.exists() && load_signing_key(&path)?.public() == authority.key().public() {
        return Ok(());
    }
    write_secret(&path, authority.key().to_pem().as_bytes())
}

/// The newest revocation list in `dir`; the empty one if there is none.
///
/// # Errors
/// A list that is damaged or not the CA's: better to stop than to forget who was thrown out.
pub fn load_revocations(dir: &Path, anchor: &TrustAnchor) -> anyhow::Result<RevocationList> {
    let path = dir.join(REVOCATIONS);
    match read(&path, false) {
        Ok(bytes) => RevocationList::parse_signed(&bytes, anchor).map_err(|error| {
            anyhow!(
                "{}: not a revocation list that this network's CA signed ({error}): restore it, or remove it and the broker \
                 sends it again",
                path.display()
            )
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(RevocationList::default()),
        Err(error) => Err(unreadable(&path, error)),
    }
}

/// Stores a signed revocation list. Whether it is newer than the one before was the caller's question.
///
/// # Errors
/// If it cannot be written.
pub fn store_revocations(dir: &Path, signed: &[u8]) -> anyhow::Result<()> {
    write_public(&dir.join(REVOCATIONS), signed)
}

/// Makes `dir` and what is missing above it, for this user alone.
///
/// # Errors
/// If it cannot be made, or others may write into it and so replace keys.
pub fn create_dir(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| unwritable(dir, error))?;
    let mode = fs::metadata(dir).map_err(|error| unreadable(dir, error))?.permissions().mode();
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        bail!("{}: others may write into it: chmod 700 {}", dir.display(), dir.display());
    }
    Ok(())
}

/// Writes a file that nobody else may read and that must not exist yet.
///
/// # Errors
/// If it exists or cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write(path, bytes, SECRET, RenameFlags::NOREPLACE)
}

/// Writes a file that everybody may read, in the place of the one before.
///
/// # Errors
/// If it cannot be written.
pub fn write_public(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write(path, bytes, PUBLIC, RenameFlags::empty())
}

/// Reads a file that nobody else may read.
///
/// # Errors
/// If it is missing, no regular file, a symbolic link, or open to others.
pub fn read_secret(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    read(path, true).map_err(|error| unreadable(path, error))
}

fn load_keys(dir: &Path) -> anyhow::Result<(SigningKey, WgSecret)> {
    let path = dir.join(WG_KEY);
    let wg = std::str::from_utf8(&read_secret(&path)?)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| anyhow!("{}: not a WireGuard private key", path.display()))?;
    Ok((load_signing_key(&dir.join(IDENTITY_KEY))?, wg))
}

fn load_signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let bytes = read_secret(path)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    SigningKey::from_pem(text).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn put_together(
    dir: &Path,
    anchor: TrustAnchor,
    certificate: Certificate,
    key: SigningKey,
    wg: WgSecret,
) -> anyhow::Result<Credentials> {
    Credentials::new(anchor, certificate, key, wg).map_err(|error| {
        anyhow!("{}: {error}: restore the files that belong together, or enrol again", dir.display())
    })
}

/// The DER in a PEM file.
///
/// # Errors
/// If there is none.
pub fn read_certificate(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = read(path, false).map_err(|error| unreadable(path, error))?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    pem::decode(PEM_CERTIFICATE, text)
        .map(|der| der.to_vec())
        .ok_or_else(|| anyhow!("{}: not a certificate in PEM (\"BEGIN CERTIFICATE\")", path.display()))
}

/// Opens first and asks afterwards, so that what was checked is what is read.
fn read(path: &Path, secret: bool) -> io::Result<Zeroizing<Vec<u8>>> {
    // NONBLOCK so that a FIFO in a key's place does not hang the program.
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if secret {
        flags |= OFlags::NOFOLLOW;
    }
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    let mode = meta.permissions().mode();
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(io::Error::other("not a file of this program"));
    }
    if secret && mode & 0o077 != 0 {
        let mode = mode & 0o7777;
        return Err(io::Error::other(format!(
            "others can read or write this private key (mode {mode:04o}): chmod 600 {}",
            path.display()
        )));
    }
    // All the room at once: a growing buffer would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1));
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8], mode: u32, flags: RenameFlags) -> anyhow::Result<()> {
    let temporary = temporary(path);
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(&temporary, create, Mode::from_raw_mode(mode))?);
        file.write_all(bytes)?;
        file.sync_all()?;
        rustix::fs::renameat_with(CWD, &temporary, CWD, path, flags)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        File::open(dir)?.sync_all()
    };
    attempt().map_err(|error| {
        drop(fs::remove_file(&temporary));
        unwritable(path, error)
    })
}

/// One fixed name beside the file: what an interrupted write left there, the next one removes.
fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

fn unreadable(path: &Path, error: io::Error) -> anyhow::Error {
    let path = path.display();
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) => {
            anyhow!(
                "{path} is missing: restore it, or enrol this machine again (`up --join <token>` or `cert request`)"
            )
        }
        (ErrorKind::PermissionDenied, _) => {
            Failure::permission(format!("cannot read {path}: run as root or as the user that owns it")).into()
        }
        (_, Some(libc::ELOOP)) => anyhow!("{path} is a symbolic link: put the private key itself there"),
        _ => anyhow!("{path}: {error}"),
    }
}

fn unwritable(path: &Path, error: io::Error) -> anyhow::Error {
    let path = path.display();
    match error.kind() {
        ErrorKind::AlreadyExists => anyhow!("{path} exists and is not overwritten: move it away first"),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Failure::permission(format!(
            "cannot write {path} ({error}): run as root or choose another directory"
        ))
        .into(),
        _ => anyhow!("cannot write {path}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::exit;
    use crate::config::exit::Exit;
    use crate::identity::authority::MEMBER_LIFETIME;
    use crate::identity::authority::validity;
    use crate::identity::certificate::Roles;
    use crate::identity::certificate::Serial;
    use crate::identity::certificate::Subject;
    use crate::identity::names::MemberUri;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

    struct Place {
        _root: tempfile::TempDir,
        ca: Authority,
        dir: PathBuf,
    }

    /// An empty directory and a CA that will sign for it.
    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let ca = Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0);
        let dir = root.path().join("state/member");
        Place { _root: root, ca, dir }
    }

    impl Place {
        fn signed(&self) -> Certificate {
            let (key, wg) = keys_or_new(&self.dir).unwrap();
            let subject = Subject {
                uri: MemberUri { network: self.ca.anchor().network.clone(), name: "nas".parse().unwrap() },
                roles: Roles::MEMBER,
                addrs: Some(self.ca.anchor().overlay_addrs(Ipv4Addr::new(10, 77, 0, 9))),
                groups: Vec::new(),
                wg: wg.public(),
            };
            let (from, until) = validity(T0, MEMBER_LIFETIME);
            self.ca.sign(&subject, &key.public(), Serial::generate(), from, until).unwrap()
        }

        fn enrolled(self) -> Self {
            let certificate = self.signed();
            store_new(&self.dir, self.ca.anchor(), &certificate).unwrap();
            self
        }

        fn problem(&self) -> String {
            load(&self.dir).unwrap_err().to_string()
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_identity_is_read_back_as_it_was_stored() {
        let place = place().enrolled();
        let read = load(&place.dir).unwrap();
        assert_eq!(read.certificate.subject.uri.to_string(), "ntcp://home/nas");
        assert_eq!(read.anchor.fingerprint(), place.ca.anchor().fingerprint());
        assert_eq!(read.key.public(), read.certificate.key);
        for (name, expected) in [(IDENTITY_KEY, 0o600), (WG_KEY, 0o600), (".", 0o700)] {
            assert_eq!(mode(&place.dir.join(name)), expected, "{name}");
        }
        let names = fs::read_dir(&place.dir).unwrap().count();
        assert_eq!(names, 4, "no temporary file stays");
    }

    #[test]
    fn an_enrolment_that_was_killed_goes_on_with_the_same_keys() {
        let place = place();
        let (key, wg) = keys_or_new(&place.dir).unwrap();
        assert!(!is_enrolled(&place.dir));
        fs::write(place.dir.join(".identity.crt.new"), "half a certi").unwrap();
        let (again, wg_again) = keys_or_new(&place.dir).unwrap();
        assert_eq!((key.public(), wg.public()), (again.public(), wg_again.public()));
        let place = place.enrolled();
        assert!(is_enrolled(&place.dir) && load(&place.dir).is_ok());
        assert!(!place.dir.join(".identity.crt.new").exists());
    }

    #[test]
    fn keys_that_others_can_read_are_refused_with_the_command_that_helps() {
        let place = place().enrolled();
        for name in [IDENTITY_KEY, WG_KEY] {
            let path = place.dir.join(name);
            for open in [0o640, 0o604, 0o620] {
                chmod(&path, open);
                assert!(
                    place.problem().contains(&format!("chmod 600 {}", path.display())),
                    "{}",
                    place.problem()
                );
            }
            chmod(&path, 0o600);
        }
        assert!(load(&place.dir).is_ok());
    }

    #[test]
    fn a_key_behind_a_link_or_a_pipe_is_refused() {
        let place = place().enrolled();
        let (key, away) = (place.dir.join(IDENTITY_KEY), place.dir.join("away"));
        fs::rename(&key, &away).unwrap();
        symlink(&away, &key).unwrap();
        assert!(place.problem().contains("symbolic link"), "{}", place.problem());
        fs::remove_file(&key).unwrap();
        fs::create_dir(&key).unwrap();
        assert!(place.problem().contains("not a file"), "{}", place.problem());
    }

    #[test]
    fn a_missing_file_is_named() {
        for name in [IDENTITY_KEY, WG_KEY, CERTIFICATE, CA_CERTIFICATE] {
            let place = place().enrolled();
            fs::remove_file(place.dir.join(name)).unwrap();
            assert!(
                place.problem().contains(name) && place.problem().contains("missing"),
                "{}",
                place.problem()
            );
        }
    }

    #[test]
    fn files_of_two_identities_do_not_make_one() {
        let (one, other) = (place().enrolled(), place().enrolled());
        for (name, problem) in [
            (IDENTITY_KEY, "another identity key"),
            (WG_KEY, "another WireGuard key"),
            (CA_CERTIFICATE, "not of this network's CA"),
        ] {
            let kept = fs::read(one.dir.join(name)).unwrap();
            fs::copy(other.dir.join(name), one.dir.join(name)).unwrap();
            assert!(one.problem().contains(problem), "{}", one.problem());
            fs::write(one.dir.join(name), kept).unwrap();
        }
        assert!(load(&one.dir).is_ok());
    }

    #[test]
    fn damaged_files_are_named() {
        for name in [IDENTITY_KEY, WG_KEY, CERTIFICATE, CA_CERTIFICATE] {
            let place = place().enrolled();
            let path = place.dir.join(name);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            assert!(place.problem().contains(name), "{}", place.problem());
        }
    }

    #[test]
    fn a_certificate_is_replaced_only_by_one_of_the_same_keys() {
        let (place, other) = (place().enrolled(), place());
        let renewed = place.signed();
        replace_certificate(&place.dir, &renewed.der).unwrap();
        assert_eq!(load(&place.dir).unwrap().certificate.serial, renewed.serial);
        assert!(replace_certificate(&place.dir, &other.signed().der).is_err());
        assert!(replace_certificate(&place.dir, b"garbage").is_err());
        assert_eq!(load(&place.dir).unwrap().certificate.serial, renewed.serial);
    }

    #[test]
    fn an_identity_is_never_overwritten() {
        let place = place().enrolled();
        let second = place.signed();
        let error = store_new(&place.dir, place.ca.anchor(), &second).unwrap_err();
        assert!(error.to_string().contains("already"), "{error}");
        let error = write_secret(&place.dir.join(IDENTITY_KEY), b"new").unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        assert!(load(&place.dir).is_ok());
    }

    #[test]
    fn a_directory_that_others_may_write_into_holds_no_keys() {
        let place = place();
        create_dir(&place.dir).unwrap();
        chmod(&place.dir, 0o770);
        let error = keys_or_new(&place.dir).map(drop).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn an_authority_is_founded_once_and_read_back() {
        let place = place();
        let (name, prefix) = ("home".parse().unwrap(), "10.9.0.0/24".parse().unwrap());
        assert!(load_authority(&place.dir).unwrap().is_none());
        let made = create_authority(&place.dir, &name, prefix, T0).unwrap();
        let read = load_authority(&place.dir).unwrap().unwrap();
        assert_eq!(read.anchor().fingerprint(), made.anchor().fingerprint());
        assert_eq!(read.anchor().prefix, prefix);
        assert_eq!(mode(&place.dir.join(CA_KEY)), 0o600);
        assert!(create_authority(&place.dir, &name, prefix, T0).is_err());

        let role = place.dir.join("broker");
        create_dir(&role).unwrap();
        grant_authority(&role, &made).unwrap();
        grant_authority(&role, &made).unwrap();
        assert!(grant_authority(&role, &place.ca).is_err());
    }

    #[test]
    fn founding_that_was_killed_before_the_certificate_goes_on() {
        let place = place();
        let (name, prefix) = ("home".parse().unwrap(), "10.9.0.0/24".parse().unwrap());
        create_authority(&place.dir, &name, prefix, T0).unwrap();
        let key = fs::read(place.dir.join(CA_KEY)).unwrap();
        fs::remove_file(place.dir.join(CA_CERTIFICATE)).unwrap();
        create_authority(&place.dir, &name, prefix, T0).unwrap();
        assert_eq!(fs::read(place.dir.join(CA_KEY)).unwrap(), key);
    }

    #[test]
    fn a_revocation_list_is_kept_and_a_damaged_one_stops_the_start() {
        let place = place().enrolled();
        let anchor = place.ca.anchor();
        assert_eq!(load_revocations(&place.dir, anchor).unwrap(), RevocationList::default());
        let list = RevocationList::default().next(T0, [Serial::generate()]).unwrap();
        store_revocations(&place.dir, &place.ca.sign_revocations(&list)).unwrap();
        assert_eq!(load_revocations(&place.dir, anchor).unwrap(), list);
        fs::write(place.dir.join(REVOCATIONS), b"x").unwrap();
        assert!(load_revocations(&place.dir, anchor).is_err());
    }

    #[test]
    fn missing_permission_has_its_own_exit_code() {
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        assert_eq!(exit::of(&unreadable(Path::new("x"), denied)), Exit::Permission);
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        assert_eq!(exit::of(&unwritable(Path::new("x"), denied)), Exit::Permission);
    }
}
