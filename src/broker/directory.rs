//! Every member that the network has, connected or not: by name and by overlay address, in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::base::time::UnixTime;
use crate::identity::certificate::Certificate;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberName;
use crate::wire::broker::Target;

/// One member.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its newest certificate.
    pub certificate: Certificate,
    /// When it was last connected; the epoch if never.
    pub last_seen: UnixTime,
}

/// What learning a certificate did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// It is in the directory now, and was not.
    New,
    /// It, or a newer one of the same holder, was there before.
    Known,
}

/// Why a valid certificate is not accepted beside those that are there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Conflict {
    /// Another machine has the name by a newer certificate.
    #[error("a newer certificate gives the name {0} to another machine")]
    Name(MemberName),
    /// Another member has the address.
    #[error("the overlay address {0} belongs to {1}: sign another certificate with another --address")]
    Addr(IpAddr, MemberName),
    /// Another member has the WireGuard key. Peers know each other by that key, so one of the two would be unreachable.
    #[error("{0} has the same WireGuard key: revoke that one first, or make new keys for this one")]
    Key(MemberName),
}

/// All members.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    members: BTreeMap<MemberName, Known>,
    by_addr: BTreeMap<IpAddr, MemberName>,
    by_key: BTreeMap<WgPublic, MemberName>,
}

impl Directory {
    /// Takes in a verified certificate. Of two certificates for one name the newer counts, so that a machine that was
    /// set up anew gets its name back and the old one does not.
    ///
    /// # Errors
    /// [`Conflict`]; then nothing changed.
    pub fn learn(&mut self, certificate: Certificate, last_seen: UnixTime) -> Result<Learned, Conflict> {
        let name = certificate.subject.uri.name.clone();
        if let Some(known) = self.members.get(&name) {
            let same_holder = is_same_holder(&known.certificate, &certificate);
            if certificate.not_before <= known.certificate.not_before {
                return if same_holder { Ok(Learned::Known) } else { Err(Conflict::Name(name)) };
            }
        }
        for addr in addrs_of(&certificate) {
            if let Some(other) = self.by_addr.get(&addr).filter(|other| **other != name) {
                return Err(Conflict::Addr(addr, other.clone()));
            }
        }
        if let Some(other) = self.holder_of(&certificate.subject.wg).filter(|other| **other != name) {
            return Err(Conflict::Key(other.clone()));
        }
        let last_seen = self.forget(&name).map_or(last_seen, |old| old.last_seen.max(last_seen));
        self.by_addr.extend(addrs_of(&certificate).map(|addr| (addr, name.clone())));
        self.by_key.insert(certificate.subject.wg, name.clone());
        self.members.insert(name, Known { certificate, last_seen });
        Ok(Learned::New)
    }

    /// Takes a member out.
    pub fn forget(&mut self, name: &MemberName) -> Option<Known> {
        let old = self.members.remove(name)?;
        for addr in addrs_of(&old.certificate) {
            self.by_addr.remove(&addr);
        }
        self.by_key.remove(&old.certificate.subject.wg);
        Some(old)
    }

    /// Notes that a member was here at `at`.
    pub fn seen(&mut self, name: &MemberName, at: UnixTime) {
        if let Some(known) = self.members.get_mut(name) {
            known.last_seen = at;
        }
    }

    /// By name.
    #[must_use]
    pub fn get(&self, name: &MemberName) -> Option<&Known> {
        self.members.get(name)
    }

    /// Who has a WireGuard key.
    #[must_use]
    pub fn holder_of(&self, key: &WgPublic) -> Option<&MemberName> {
        self.by_key.get(key)
    }

    /// By name or address.
    #[must_use]
    pub fn find(&self, target: &Target) -> Option<(&MemberName, &Known)> {
        let name = match target {
            Target::Name(name) => name,
            Target::Addr(addr) => self.by_addr.get(&addr.to_canonical())?,
        };
        self.members.get_key_value(name)
    }

    /// In order of name, those after `after`.
    pub fn after<'a>(
        &'a self,
        after: Option<&MemberName>,
    ) -> impl Iterator<Item = (&'a MemberName, &'a Known)> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.members.range::<MemberName, _>((from, Bound::Unbounded))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

/// Whether two certificates are about the same keys.
#[must_use]
pub fn is_same_holder(a: &Certificate, b: &Certificate) -> bool {
    a.key == b.key && a.subject.wg == b.subject.wg
}

fn addrs_of(certificate: &Certificate) -> impl Iterator<Item = IpAddr> + use<> {
    certificate.subject.addrs.into_iter().flat_map(|a| [IpAddr::V4(a.v4), IpAddr::V6(a.v6)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::tests::certificate;

    const NEVER: UnixTime = UnixTime::from_secs(0);

    #[test]
    fn members_are_found_by_name_and_by_both_addresses() {
        let mut d = Directory::default();
        d.learn(certificate("anna", 1), NEVER).unwrap();
        for target in [
            Target::Name("anna".parse().unwrap()),
            Target::Addr("10.77.0.1".parse().unwrap()),
            Target::Addr("::ffff:10.77.0.1".parse().unwrap()),
            Target::Addr("fd00::a4d:1".parse().unwrap()),
        ] {
            assert_eq!(d.find(&target).unwrap().0.as_str(), "anna", "{target:?}");
        }
        assert!(d.find(&Target::Addr("10.77.0.2".parse().unwrap())).is_none());
    }

    #[test]
    fn an_address_cannot_be_taken_from_its_holder() {
        let mut d = Directory::default();
        d.learn(certificate("anna", 1), NEVER).unwrap();
        assert!(matches!(d.learn(certificate("bert", 1), NEVER), Err(Conflict::Addr(..))));
        assert_eq!(d.len(), 1);
    }

    #[test]
    fn a_key_cannot_be_taken_from_its_holder_and_is_free_when_that_is_gone() {
        let mut d = Directory::default();
        let (anna, mut mallory) = (certificate("anna", 1), certificate("mallory", 2));
        mallory.subject.wg = anna.subject.wg;
        d.learn(anna, NEVER).unwrap();
        assert_eq!(d.learn(mallory.clone(), NEVER), Err(Conflict::Key("anna".parse().unwrap())));
        d.forget(&"anna".parse().unwrap());
        assert_eq!(d.learn(mallory, NEVER), Ok(Learned::New));
    }

    #[test]
    fn of_two_machines_with_one_name_the_newer_certificate_counts() {
        let old = certificate("anna", 1);
        let mut new = certificate("anna", 1);
        new.key = [9; 32];
        new.not_before = UnixTime::from_secs(old.not_before.secs() + 60);
        let mut d = Directory::default();
        assert_eq!(d.learn(old.clone(), NEVER), Ok(Learned::New));
        assert_eq!(d.learn(new, NEVER), Ok(Learned::New));
        assert!(matches!(d.learn(old, NEVER), Err(Conflict::Name(_))));
    }

    #[test]
    fn a_renewed_certificate_stays_when_the_older_one_is_shown() {
        let old = certificate("anna", 1);
        let mut new = old.clone();
        new.not_before = UnixTime::from_secs(old.not_before.secs() + 60);
        let mut d = Directory::default();
        d.learn(new.clone(), NEVER).unwrap();
        assert_eq!(d.learn(old, NEVER), Ok(Learned::Known));
        assert_eq!(d.get(&"anna".parse().unwrap()).unwrap().certificate.not_before, new.not_before);
    }

    #[test]
    fn listing_goes_on_after_a_name() {
        let mut d = Directory::default();
        for (n, name) in ["bert", "anna", "carl"].into_iter().enumerate() {
            d.learn(certificate(name, u8::try_from(n).unwrap()), NEVER).unwrap();
        }
        let rest: Vec<&str> =
            d.after(Some(&"anna".parse().unwrap())).map(|(name, _)| name.as_str()).collect();
        assert_eq!(rest, ["bert", "carl"]);
    }
}
