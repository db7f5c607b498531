//! What a CA that is kept by hand has issued: one certificate a file in `issued/`, so that no name and no address is given
//! out twice and a name is enough to revoke.
//!
//! The broker has a database for this. The register is for a CA that lives elsewhere; it is locked while open, and a
//! certificate is entered before it is handed out.

use std::fs;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;

use super::credentials;
use crate::base::time::UnixTime;
use crate::identity::authority::Authority;
use crate::identity::authority::default_lifetime;
use crate::identity::authority::validity;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Roles;
use crate::identity::certificate::Serial;
use crate::identity::certificate::Subject;
use crate::identity::certificate::TrustAnchor;
use crate::identity::names::GroupName;
use crate::identity::names::MemberName;
use crate::identity::names::MemberUri;
use crate::identity::pem;
use crate::identity::revocation::RevocationList;
use crate::wire::enroll::SigningRequest;

const ISSUED: &str = "issued";

/// The open register of one CA directory.
#[derive(Debug)]
pub struct Register {
    authority: Authority,
    ca_dir: PathBuf,
    issued: Vec<Certificate>,
    revoked: RevocationList,
    /// Released when the file is closed.
    _lock: File,
}

/// What the signer wants; what it leaves open stays as in the holder's last certificate, or is the default.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Default: a plain member.
    pub roles: Option<Roles>,
    /// Default: none.
    pub groups: Option<Vec<GroupName>>,
    /// Default: the lowest that nobody has had, or if there is none, the lowest that is free.
    pub address: Option<Ipv4Addr>,
}

impl Register {
    /// Opens the CA in `ca_dir` and everything that it has issued, and keeps others from doing so meanwhile.
    ///
    /// # Errors
    /// No CA there, or unreadable files.
    pub fn open(ca_dir: &Path) -> anyhow::Result<Self> {
        let authority = credentials::load_authority(ca_dir)?.ok_or_else(|| {
            anyhow!(
                "{} holds no CA ({} and {}): make one with `cert init`",
                ca_dir.display(),
                credentials::CA_CERTIFICATE,
                credentials::CA_KEY
            )
        })?;
        let dir = ca_dir.join(ISSUED);
        credentials::create_dir(&dir)?;
        let lock = File::open(&dir).with_context(|| format!("opening {}", dir.display()))?;
        lock.lock().with_context(|| format!("locking {}", dir.display()))?;
        let issued = read_all(&dir, authority.anchor())?;
        let revoked = credentials::load_revocations(ca_dir, authority.anchor())?;
        Ok(Self { authority, ca_dir: ca_dir.to_owned(), issued, revoked, _lock: lock })
    }

    /// The CA.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Signs what was requested and enters it; without a `lifetime`, for as long as such roles usually get.
    ///
    /// # Errors
    /// The name, address or key is somebody else's, the wishes contradict each other, or the disk is full.
    pub fn sign(
        &mut self,
        request: &SigningRequest,
        wishes: &Wishes,
        now: UnixTime,
        lifetime: Option<Duration>,
    ) -> anyhow::Result<Certificate> {
        let subject = self.subject_for(request, wishes, now)?;
        let (from, until) = validity(now, lifetime.unwrap_or_else(|| default_lifetime(subject.roles)));
        let certificate = self
            .authority
            .sign(&subject, &request.key, Serial::generate(), from, until)
            .with_context(|| format!("cannot sign for {}", subject.uri))?;
        let file = format!("{}-{}.crt", subject.uri.name, certificate.serial);
        let text = pem::encode(credentials::PEM_CERTIFICATE, &certificate.der);
        credentials::write_public(&self.ca_dir.join(ISSUED).join(file), text.as_bytes())?;
        self.issued.push(certificate.clone());
        Ok(certificate)
    }

    /// Takes back all certificates of `name` that still count.
    ///
    /// # Errors
    /// If there is none.
    pub fn serials_of(&self, name: &MemberName, now: UnixTime) -> anyhow::Result<Vec<Serial>> {
        let serials: Vec<Serial> =
            self.active(now).filter(|held| held.subject.uri.name == *name).map(|held| held.serial).collect();
        if serials.is_empty() {
            bail!(
                "{} holds no certificate of \"{name}\" that is still valid; one that a broker has signed is revoked there, or here by --serial",
                self.ca_dir.join(ISSUED).display()
            );
        }
        Ok(serials)
    }

    /// Signs and stores the next revocation list: the one before, without what has expired, and `serials`.
    ///
    /// # Errors
    /// If the list is full, or cannot be written.
    pub fn revoke(&mut self, serials: &[Serial], now: UnixTime) -> anyhow::Result<(RevocationList, Vec<u8>)> {
        let expired = |serial: &Serial| {
            self.issued.iter().any(|known| known.serial == *serial && known.not_after < now)
        };
        let kept = self.revoked.serials.iter().filter(|serial| !expired(serial));
        let list = self.revoked.next(now, kept.chain(serials).copied())?;
        let signed = self.authority.sign_revocations(&list);
        credentials::store_revocations(&self.ca_dir, &signed)?;
        self.revoked = list.clone();
        Ok((list, signed))
    }

    /// Certificates that are neither expired nor revoked.
    fn active(&self, now: UnixTime) -> impl Iterator<Item = &Certificate> {
        self.issued.iter().filter(move |held| now <= held.not_after && !self.revoked.contains(&held.serial))
    }

    fn subject_for(
        &self,
        request: &SigningRequest,
        wishes: &Wishes,
        now: UnixTime,
    ) -> anyhow::Result<Subject> {
        let name = &request.name;
        if let Some(held) =
            self.active(now).find(|held| held.subject.uri.name == *name && held.key != request.key)
        {
            bail!(
                "the name \"{name}\" belongs to another key (serial {}): revoke it first (`cert revoke {name} --ca {} --out FILE`), or choose another name",
                held.serial,
                self.ca_dir.display()
            );
        }
        let of_others = |held: &&Certificate| held.subject.uri.name != *name;
        if let Some(held) = self.active(now).filter(of_others).find(|held| held.subject.wg == request.wg) {
            bail!(
                "the WireGuard key of this request belongs to \"{}\" already: make new keys",
                held.subject.uri.name
            );
        }
        let before = self
            .issued
            .iter()
            .filter(|held| held.subject.uri.name == *name && held.key == request.key)
            .filter(|held| !self.revoked.contains(&held.serial))
            .max_by_key(|held| held.not_before)
            .map(|held| &held.subject);
        let roles = wishes.roles.or_else(|| before.map(|before| before.roles)).unwrap_or(Roles::MEMBER);
        let mut groups =
            wishes.groups.clone().or_else(|| before.map(|before| before.groups.clone())).unwrap_or_default();
        groups.sort();
        groups.dedup();
        let taken: Vec<Ipv4Addr> =
            self.active(now).filter(of_others).filter_map(|held| Some(held.subject.addrs?.v4)).collect();
        let last = before.and_then(|before| before.addrs).map(|addrs| addrs.v4);
        let address = match (roles.member, wishes.address) {
            (true, wish) => Some(self.address(wish, last, &taken)?),
            (false, None) => None,
            (false, Some(_)) => {
                bail!("only members have an address: add member to --role, or leave --address out")
            }
        };
        let anchor = self.authority.anchor();
        Ok(Subject {
            uri: MemberUri { network: anchor.network.clone(), name: name.clone() },
            roles,
            addrs: address.map(|v4| anchor.overlay_addrs(v4)),
            groups,
            wg: request.wg,
        })
    }

    fn address(
        &self,
        wish: Option<Ipv4Addr>,
        last: Option<Ipv4Addr>,
        taken: &[Ipv4Addr],
    ) -> anyhow::Result<Ipv4Addr> {
        let anchor = self.authority.anchor();
        if let Some(wish) = wish {
            if !anchor.is_assignable(wish) {
                bail!(
                    "{wish} is no member's address in {}: choose one inside, or leave --address out",
                    anchor.prefix
                );
            }
            if taken.contains(&wish) {
                bail!("the address {wish} belongs to another member: choose another, or leave --address out");
            }
            return Ok(wish);
        }
        let free = |address: &Ipv4Addr| anchor.is_assignable(*address) && !taken.contains(address);
        let had: Vec<Ipv4Addr> = self.issued.iter().filter_map(|held| Some(held.subject.addrs?.v4)).collect();
        last.filter(free)
            .or_else(|| anchor.prefix.iter().find(|address| free(address) && !had.contains(address)))
            .or_else(|| anchor.prefix.iter().find(free))
            .ok_or_else(|| anyhow!("no address is left in {}: revoke members that are gone", anchor.prefix))
    }
}

fn read_all(dir: &Path, anchor: &TrustAnchor) -> anyhow::Result<Vec<Certificate>> {
    let mut issued = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        // Whatever begins with a dot is an interrupted write.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let der = credentials::read_certificate(&path)?;
        let certificate = Certificate::parse(&der).and_then(|read| anchor.verify(&der, read.not_before));
        issued.push(certificate.map_err(|error| anyhow!("{}: {error}: move the file away", path.display()))?);
    }
    Ok(issued)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::keys::SigningKey;
    use crate::identity::keys::WgSecret;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn founded(prefix: &str) -> (tempfile::TempDir, Register) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("ca");
        credentials::create_authority(&dir, &"home".parse().unwrap(), prefix.parse().unwrap(), T0).unwrap();
        let register = Register::open(&dir).unwrap();
        (root, register)
    }

    /// A request of the machine whose keys are made from `seed`.
    fn request(name: &str, seed: u8) -> SigningRequest {
        let wg = WgSecret::new([seed; 32]).public();
        SigningRequest::new(&name.parse().unwrap(), &SigningKey::from_seed(&[seed; 32]), wg)
    }

    fn sign(register: &mut Register, request: &SigningRequest, now: UnixTime) -> anyhow::Result<String> {
        let signed = register.sign(request, &Wishes::default(), now, Some(DAY))?;
        Ok(signed.subject.addrs.map(|addrs| addrs.v4.to_string()).unwrap_or_default())
    }

    #[test]
    fn every_name_gets_the_lowest_new_address_and_keeps_it() {
        let (_root, mut register) = founded("10.77.0.0/16");
        assert_eq!(sign(&mut register, &request("a", 1), T0).unwrap(), "10.77.0.1");
        assert_eq!(sign(&mut register, &request("b", 2), T0).unwrap(), "10.77.0.2");
        assert_eq!(sign(&mut register, &request("a", 1), T0).unwrap(), "10.77.0.1");
        // Long after both have expired, each still gets its own, and others get one that nobody has had.
        assert_eq!(sign(&mut register, &request("b", 2), T0.plus(3 * DAY)).unwrap(), "10.77.0.2");
        assert_eq!(sign(&mut register, &request("c", 3), T0.plus(3 * DAY)).unwrap(), "10.77.0.3");
    }

    #[test]
    fn what_was_issued_is_known_after_a_restart() {
        let (root, mut register) = founded("10.77.0.0/16");
        sign(&mut register, &request("a", 1), T0).unwrap();
        let revoked = register.serials_of(&"a".parse().unwrap(), T0).unwrap();
        register.revoke(&revoked, T0).unwrap();
        sign(&mut register, &request("b", 2), T0).unwrap();
        fs::write(root.path().join("ca/issued/.c.crt.new"), "half").unwrap();
        drop(register);
        let mut register = Register::open(&root.path().join("ca")).unwrap();
        assert_eq!(sign(&mut register, &request("c", 3), T0).unwrap(), "10.77.0.3");
        assert_eq!(register.revoke(&[], T0).unwrap().0.version, 2);
        assert_eq!(register.revoked.serials, revoked);
    }

    #[test]
    fn nobody_gets_what_belongs_to_another() {
        let (_root, mut register) = founded("10.77.0.0/16");
        sign(&mut register, &request("a", 1), T0).unwrap();
        let wish = |address: [u8; 4]| Wishes { address: Some(address.into()), ..Wishes::default() };
        let relay = Wishes { roles: Some(Roles::RELAY), ..wish([10, 77, 0, 9]) };
        let same_wg = SigningRequest::new(
            &"b".parse().unwrap(),
            &SigningKey::from_seed(&[2; 32]),
            WgSecret::new([1; 32]).public(),
        );
        for (what, request, wishes, problem) in [
            ("the name", request("a", 2), Wishes::default(), "revoke it first"),
            ("the address", request("b", 2), wish([10, 77, 0, 1]), "belongs to another member"),
            ("an address outside", request("b", 2), wish([10, 78, 0, 1]), "10.77.0.0/16"),
            ("the broadcast address", request("b", 2), wish([10, 77, 255, 255]), "10.77.0.0/16"),
            ("the WireGuard key", same_wg, Wishes::default(), "belongs to \"a\""),
            ("an address for a relay", request("b", 2), relay, "only members"),
        ] {
            let error = register.sign(&request, &wishes, T0, Some(DAY)).unwrap_err();
            assert!(error.to_string().contains(problem), "{what}: {error}");
        }
        register.sign(&request("b", 2), &wish([10, 77, 0, 9]), T0, Some(DAY)).unwrap();
    }

    #[test]
    fn a_name_is_free_again_when_it_was_revoked_or_has_expired() {
        let (_root, mut register) = founded("10.77.0.0/16");
        sign(&mut register, &request("a", 1), T0).unwrap();
        let serials = register.serials_of(&"a".parse().unwrap(), T0).unwrap();
        let (list, signed) = register.revoke(&serials, T0).unwrap();
        assert_eq!(RevocationList::parse_signed(&signed, register.authority.anchor()).unwrap(), list);
        assert!(register.serials_of(&"a".parse().unwrap(), T0).is_err());
        sign(&mut register, &request("a", 2), T0).unwrap();
        assert!(sign(&mut register, &request("a", 3), T0).is_err());
        sign(&mut register, &request("a", 3), T0.plus(2 * DAY)).unwrap();
    }

    #[test]
    fn a_renewal_keeps_what_nobody_wished_otherwise() {
        let (_root, mut register) = founded("10.77.0.0/16");
        let wishes = Wishes {
            roles: Some(Roles { relay: true, ..Roles::MEMBER }),
            groups: Some(["b", "a", "b"].map(|group| group.parse().unwrap()).into()),
            address: Some([10, 77, 3, 3].into()),
        };
        let first = register.sign(&request("a", 1), &wishes, T0, Some(DAY)).unwrap();
        assert_eq!(first.subject.groups, ["a", "b"].map(|group| group.parse().unwrap()));
        let second =
            register.sign(&request("a", 1), &Wishes::default(), T0.plus(DAY * 9), Some(DAY)).unwrap();
        assert_eq!(second.subject, first.subject);
        assert_ne!(second.serial, first.serial);
    }

    #[test]
    fn expired_certificates_leave_the_revocation_list() {
        let (_root, mut register) = founded("10.77.0.0/16");
        sign(&mut register, &request("a", 1), T0).unwrap();
        let serials = register.serials_of(&"a".parse().unwrap(), T0).unwrap();
        let foreign = Serial::generate();
        register.revoke(&[serials[0], foreign], T0).unwrap();
        let (list, _) = register.revoke(&[], T0.plus(2 * DAY)).unwrap();
        assert_eq!((list.version, list.serials), (2, vec![foreign]));
    }

    #[test]
    fn a_full_prefix_says_so_and_takes_back_what_was_revoked() {
        let (_root, mut register) = founded("10.77.0.0/29");
        for n in 1..=6 {
            sign(&mut register, &request(&format!("m{n}"), n), T0).unwrap();
        }
        assert!(
            sign(&mut register, &request("m7", 7), T0)
                .unwrap_err()
                .to_string()
                .contains("no address is left")
        );
    }

    #[test]
    fn a_directory_without_a_ca_says_how_to_make_one() {
        let root = tempfile::tempdir().unwrap();
        assert!(Register::open(root.path()).unwrap_err().to_string().contains("cert init"));
    }
}
