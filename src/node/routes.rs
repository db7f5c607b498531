//! Which peer owns which inner address: the way out, and the check on the way in.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::node::peers::PeerId;

/// Prefixes and their owners. One table for both directions, so that nobody may send from an address that is not routed
/// to them.
#[derive(Debug, Default)]
pub struct Routes {
    // Longest prefix first.
    entries: Vec<(IpNetwork, PeerId)>,
}

impl Routes {
    /// Gives `prefix` to `owner`. An equal prefix of somebody else is taken over.
    pub fn insert(&mut self, prefix: IpNetwork, owner: PeerId) {
        self.entries.retain(|(at, _)| *at != prefix);
        let at = self.entries.partition_point(|(other, _)| other.prefix() >= prefix.prefix());
        self.entries.insert(at, (prefix, owner));
    }

    /// Forgets everything of `owner`.
    pub fn remove(&mut self, owner: PeerId) {
        self.entries.retain(|(_, at)| *at != owner);
    }

    /// The owner of `addr` by longest match.
    #[must_use]
    pub fn owner(&self, addr: IpAddr) -> Option<PeerId> {
        self.entries.iter().find(|(prefix, _)| prefix.contains(addr)).map(|(_, owner)| *owner)
    }

    /// The prefixes of `owner`.
    pub fn of(&self, owner: PeerId) -> impl Iterator<Item = IpNetwork> {
        self.entries.iter().filter(move |(_, at)| *at == owner).map(|(prefix, _)| *prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_owns_an_address() {
        let (wide, narrow) = (PeerId(1), PeerId(2));
        let mut routes = Routes::default();
        routes.insert("10.77.0.0/24".parse().unwrap(), wide);
        routes.insert("10.77.0.9/32".parse().unwrap(), narrow);
        routes.insert("fd00::9/128".parse().unwrap(), narrow);
        for (addr, owner) in [
            ("10.77.0.9", Some(narrow)),
            ("10.77.0.8", Some(wide)),
            ("10.78.0.1", None),
            ("fd00::9", Some(narrow)),
        ] {
            assert_eq!(routes.owner(addr.parse().unwrap()), owner, "{addr}");
        }
        routes.remove(narrow);
        assert_eq!(routes.owner("10.77.0.9".parse().unwrap()), Some(wide));
    }
}
