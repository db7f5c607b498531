//! Stories about what a broker remembers.

use super::*;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgSecret;

const DAY: Duration = Duration::from_secs(24 * 3600);
const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

struct Office {
    dir: tempfile::TempDir,
    ca: Authority,
    store: Option<Store>,
    invites: u8,
}

impl Office {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0);
        let mut office = Self { dir, ca, store: None, invites: 0 };
        office.reopen();
        office
    }

    /// As after a restart.
    fn reopen(&mut self) {
        self.store = None;
        let path = self.dir.path().join("broker.redb");
        self.store = Some(Store::open(&path, self.ca.anchor().clone()).unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn invite(&mut self, name: Option<&str>) -> [u8; 32] {
        self.invites += 1;
        let secret = [self.invites; 32];
        let grant = Grant {
            name: name.map(|name| name.parse().unwrap()),
            groups: vec!["staff".parse().unwrap()],
            roles: Roles::MEMBER,
            expires: T0.plus(DAY),
        };
        self.store().add_invite(&secret, &grant, T0).unwrap();
        secret
    }

    fn redeem(&self, secret: [u8; 32], guest: &Guest, now: UnixTime) -> Result<Certificate, Refusal> {
        let holder = self.store().directory().unwrap().holder_of(&guest.0.wg).cloned();
        self.store().redeem(&secret, &guest.0, holder.as_ref(), &self.ca, DAY * 90, now).map_err(|error| {
            match error {
                RedeemError::Refused(why, _) => why,
                RedeemError::Failed(error) => unreachable!("{error:#}"),
            }
        })
    }

    fn enrol(&mut self, name: &str) -> (Guest, Certificate) {
        let (secret, guest) = (self.invite(None), Guest::new(name));
        let certificate = self.redeem(secret, &guest, T0).unwrap();
        (guest, certificate)
    }
}

struct Guest(SigningRequest);

impl Guest {
    fn new(name: &str) -> Self {
        let name = name.parse().unwrap();
        Self(SigningRequest::new(&name, &SigningKey::generate(), WgSecret::generate().public()))
    }
}

fn v4(certificate: &Certificate) -> String {
    certificate.subject.addrs.unwrap().v4.to_string()
}

#[test]
fn an_invite_makes_one_member_with_an_address_and_its_groups() {
    let mut office = Office::new();
    let (_, anna) = office.enrol("anna");
    let (_, bert) = office.enrol("bert");
    assert_eq!((v4(&anna), v4(&bert)), ("10.77.0.1".to_owned(), "10.77.0.2".to_owned()));
    assert_eq!(anna.subject.groups[0].as_str(), "staff");
    assert!(office.ca.anchor().verify(&anna.der, T0).is_ok());
}

#[test]
fn unknown_expired_and_used_invites_get_one_answer() {
    let mut office = Office::new();
    let (used, late) = (office.invite(None), office.invite(None));
    office.redeem(used, &Guest::new("anna"), T0).unwrap();
    let after = T0.plus(DAY + Duration::from_secs(1));
    for (case, secret, now) in [("unknown", [99; 32], T0), ("used", used, T0), ("expired", late, after)] {
        let got = office.redeem(secret, &Guest::new("bert"), now);
        assert_eq!(got, Err(Refusal::InvalidInvite), "{case}");
    }
    assert_eq!(office.store().members().unwrap().len(), 1);
}

#[test]
fn a_wireguard_key_that_a_member_has_is_given_to_nobody_else() {
    let mut office = Office::new();
    let (anna, _) = office.enrol("anna");
    let mallory = Guest(SigningRequest::new(&"mallory".parse().unwrap(), &SigningKey::generate(), anna.0.wg));
    let secret = office.invite(None);
    assert_eq!(office.redeem(secret, &mallory, T0), Err(Refusal::Forbidden));
    assert!(office.redeem(secret, &Guest::new("mallory"), T0).is_ok(), "the invite stays good");
}

#[test]
fn a_database_whose_making_was_cut_short_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.redb");
    let ca = Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0);
    std::fs::write(dir.path().join("broker.new"), [0; 5000]).unwrap();
    drop(Store::open(&path, ca.anchor().clone()).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "and nothing is left beside it");
    assert!(Store::open(&path, ca.anchor().clone()).is_ok());
}

#[test]
fn a_machine_whose_answer_was_lost_gets_the_same_certificate_again() {
    let mut office = Office::new();
    let (secret, guest) = (office.invite(None), Guest::new("anna"));
    let first = office.redeem(secret, &guest, T0).unwrap();
    office.reopen();
    assert_eq!(office.redeem(secret, &guest, T0.plus(DAY / 2)).unwrap(), first);
    assert_eq!(office.redeem(secret, &guest, T0.plus(DAY * 2)), Err(Refusal::InvalidInvite));
}

#[test]
fn a_name_belongs_to_the_machine_that_has_it() {
    let mut office = Office::new();
    let (guest, first) = office.enrol("anna");
    let (any, named) = (office.invite(None), office.invite(Some("anna")));
    assert_eq!(office.redeem(any, &Guest::new("anna"), T0), Err(Refusal::NameTaken));
    assert_eq!(office.redeem(named, &Guest::new("anna"), T0), Err(Refusal::NameTaken));
    let again = office.redeem(any, &guest, T0).unwrap();
    assert_eq!(
        v4(&again),
        v4(&first),
        "the same keys may enrol anew, and a refusal did not use up the invite"
    );
}

#[test]
fn the_invites_name_wins_over_the_wanted_one() {
    let mut office = Office::new();
    let secret = office.invite(Some("nas"));
    let certificate = office.redeem(secret, &Guest::new("anna"), T0).unwrap();
    assert_eq!(certificate.subject.uri.name.as_str(), "nas");
}

#[test]
fn a_revoked_member_leaves_its_name_at_once_and_its_address_after_a_day() {
    let mut office = Office::new();
    let (_, anna) = office.enrol("anna");
    let renewed = office.store().renew(&anna.subject, &anna.key, &office.ca, DAY * 90, T0.plus(DAY * 40));
    let renewed = renewed.unwrap();
    let name = "anna".parse().unwrap();
    let (list, signed) = office.store().revoke(&name, &office.ca, T0).unwrap();
    assert!(list.contains(&anna.serial) && list.contains(&renewed.serial), "the older one is still valid");
    office.reopen();
    assert_eq!(office.store().revocations().unwrap(), (list, signed));
    assert_eq!(office.store().members().unwrap(), []);
    assert!(office.store().revoke(&name, &office.ca, T0).is_err(), "it is no member any more");

    let (_, bert) = office.enrol("bert");
    assert_eq!(v4(&bert), "10.77.0.2");
    let (_, anna) = office.enrol("anna");
    assert_eq!(v4(&anna), "10.77.0.1", "the name's own address waits for it");
}

#[test]
fn revocations_add_up_and_old_lists_are_refused() {
    let mut office = Office::new();
    let ((_, anna), (_, bert)) = (office.enrol("anna"), office.enrol("bert"));
    let (one, signed) = office.store().revoke(&"anna".parse().unwrap(), &office.ca, T0).unwrap();
    let (two, _) = office.store().revoke(&"bert".parse().unwrap(), &office.ca, T0).unwrap();
    assert_eq!((one.version, two.version), (1, 2));
    assert!(two.contains(&anna.serial) && two.contains(&bert.serial));
    let refused = office.store().import_revocations(&signed, T0).unwrap_err();
    assert!(refused.to_string().contains("not newer"), "{refused}");
}

#[test]
fn expired_certificates_leave_the_list() {
    let mut office = Office::new();
    let ((_, anna), _) = (office.enrol("anna"), office.enrol("bert"));
    office.store().revoke(&"anna".parse().unwrap(), &office.ca, T0).unwrap();
    let later = T0.plus(DAY * 91);
    let (list, _) = office.store().revoke(&"bert".parse().unwrap(), &office.ca, later).unwrap();
    assert!(!list.contains(&anna.serial));
}

#[test]
fn a_list_signed_elsewhere_removes_whom_it_names() {
    let mut office = Office::new();
    let (_, anna) = office.enrol("anna");
    let list = RevocationList::default().next(T0, [anna.serial]).unwrap();
    office.store().import_revocations(&office.ca.sign_revocations(&list), T0).unwrap();
    assert_eq!(office.store().members().unwrap(), []);
    let foreign = Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0);
    let list = list.next(T0, []).unwrap();
    assert!(office.store().import_revocations(&foreign.sign_revocations(&list), T0).is_err());
}

#[test]
fn a_member_signed_elsewhere_keeps_its_address() {
    let mut office = Office::new();
    let subject = Subject {
        uri: "ntcp://home/nas".parse().unwrap(),
        roles: Roles::MEMBER,
        addrs: Some(office.ca.anchor().overlay_addrs(Ipv4Addr::new(10, 77, 0, 1))),
        groups: vec![],
        wg: WgSecret::generate().public(),
    };
    let (from, until) = validity(T0, DAY);
    let certificate = office.ca.sign(&subject, &[3; 32], Serial::generate(), from, until).unwrap();
    office.store().remember(&certificate, T0).unwrap();
    let (_, anna) = office.enrol("anna");
    assert_eq!(v4(&anna), "10.77.0.2");
}

#[test]
fn a_database_of_another_network_is_refused() {
    let mut office = Office::new();
    office.store = None;
    let foreign = Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0);
    let error = Store::open(&office.dir.path().join("broker.redb"), foreign.anchor().clone()).unwrap_err();
    assert!(format!("{error:#}").contains("another network"), "{error:#}");
}

#[test]
fn the_file_is_for_its_owner_alone_and_holds_no_secret() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut office = Office::new();
    let secret = office.invite(None);
    office.store = None;
    let path = office.dir.path().join("broker.redb");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.windows(32).any(|window| window == hash(&secret)), "the invite is in the file");
    assert!(!bytes.windows(32).any(|window| window == secret));
}
