//! Who is in the network, as far as the broker told and their certificates prove.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::base::addr::OverlayAddrs;
use crate::base::time::UnixTime;
use crate::identity::certificate::Certificate;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberName;

/// Members that a node remembers without having to do with them. A larger network is asked for one by one.
pub const MAX_KNOWN: usize = 4096;

/// One member.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its certificate, verified when it came.
    pub certificate: Certificate,
    /// Its addresses.
    pub addrs: OverlayAddrs,
    /// Connected to the broker.
    pub online: bool,
    /// When it last was.
    pub last_seen: UnixTime,
}

/// Members by name, address and key.
#[derive(Debug, Default)]
pub struct Directory {
    by_name: BTreeMap<MemberName, Known>,
    by_addr: BTreeMap<IpAddr, MemberName>,
    by_key: BTreeMap<WgPublic, MemberName>,
}

impl Directory {
    /// Adds or replaces a member. False when there is no room for a new one.
    pub fn insert(&mut self, known: Known) -> bool {
        let name = known.certificate.subject.uri.name.clone();
        if self.by_name.len() >= MAX_KNOWN && !self.by_name.contains_key(&name) {
            return false;
        }
        self.remove(&name);
        self.by_addr.insert(known.addrs.v4.into(), name.clone());
        self.by_addr.insert(known.addrs.v6.into(), name.clone());
        self.by_key.insert(known.certificate.subject.wg, name.clone());
        self.by_name.insert(name, known);
        true
    }

    /// The other member that has the key or an address of `known` already.
    #[must_use]
    pub fn rival_of(&self, known: &Known) -> Option<&MemberName> {
        let subject = &known.certificate.subject;
        let addrs = [IpAddr::V4(known.addrs.v4), IpAddr::V6(known.addrs.v6)];
        let of_addrs = addrs.iter().filter_map(|addr| self.by_addr.get(addr));
        self.by_key.get(&subject.wg).into_iter().chain(of_addrs).find(|other| **other != subject.uri.name)
    }

    /// Forgets a member.
    pub fn remove(&mut self, name: &MemberName) {
        let Some(old) = self.by_name.remove(name) else { return };
        for addr in [IpAddr::V4(old.addrs.v4), IpAddr::V6(old.addrs.v6)] {
            self.by_addr.remove(&addr);
        }
        self.by_key.remove(&old.certificate.subject.wg);
    }

    /// By name.
    #[must_use]
    pub fn get(&self, name: &MemberName) -> Option<&Known> {
        self.by_name.get(name)
    }

    /// By overlay address.
    #[must_use]
    pub fn by_addr(&self, addr: IpAddr) -> Option<&Known> {
        self.by_addr.get(&addr).and_then(|name| self.by_name.get(name))
    }

    /// By WireGuard key.
    #[must_use]
    pub fn by_key(&self, key: &WgPublic) -> Option<&Known> {
        self.by_key.get(key).and_then(|name| self.by_name.get(name))
    }

    /// In order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Known> {
        self.by_name.values()
    }

    /// Forgets those whose certificate `doomed` names; answers their names.
    pub fn retain(&mut self, keep: impl Fn(&Known) -> bool) -> Vec<MemberName> {
        let gone: Vec<MemberName> =
            self.by_name.iter().filter(|(_, known)| !keep(known)).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.remove(name);
        }
        gone
    }
}
