//! Which overlay address a member gets: a pure function of the prefix, of who holds what, and of the hour.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use crate::base::time::UnixTime;
use crate::identity::names::MemberName;

/// How long the address of a removed member stays unused: caches, open connections and firewall rules of the others
/// have forgotten it by then.
pub const QUARANTINE: Duration = Duration::from_secs(24 * 3600);

/// Longest and shortest prefix that can be a network: a /29 still holds six members, a /8 is all that RFC 1918 has.
pub const PREFIX_LENGTHS: std::ops::RangeInclusive<u8> = 8..=29;

/// One address that somebody holds or held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The address.
    pub addr: Ipv4Addr,
    /// Whose it is or was.
    pub name: MemberName,
    /// When its holder was removed; `None` while it is a member.
    pub released: Option<UnixTime>,
}

/// The address for `name`: the one that it has or had, otherwise the lowest that is free and was free for
/// [`QUARANTINE`]. Never the prefix's network or broadcast address, and never one that ends in .0 or .255, which old
/// software takes for those. `held` is in ascending order of address. `None` when the prefix is full.
#[must_use]
pub fn assign(prefix: Ipv4Network, name: &MemberName, held: &[Held], now: UnixTime) -> Option<Ipv4Addr> {
    if let Some(own) = held.iter().find(|h| h.name == *name && is_assignable(prefix, h.addr)) {
        return Some(own.addr);
    }
    let mut blocked = held.iter().filter(|h| is_blocked(h, now)).map(|h| h.addr).peekable();
    let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
    (first..=last).map(Ipv4Addr::from).filter(|addr| is_assignable(prefix, *addr)).find(|addr| {
        while blocked.next_if(|b| b < addr).is_some() {}
        blocked.peek() != Some(addr)
    })
}

/// Whether `addr` may be a member's address in `prefix` at all.
#[must_use]
pub fn is_assignable(prefix: Ipv4Network, addr: Ipv4Addr) -> bool {
    let [.., low] = addr.octets();
    prefix.contains(addr) && addr != prefix.network() && addr != prefix.broadcast() && low != 0 && low != 255
}

fn is_blocked(held: &Held, now: UnixTime) -> bool {
    // A clock that jumped back must not free an address early: then `since` is zero.
    held.released.is_none_or(|at| now.since(at) < QUARANTINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_000_000);

    #[test]
    fn addresses_are_the_lowest_free_and_stable_by_name() {
        let day = QUARANTINE.as_secs();
        type Row<'t> = (&'t str, &'t str, Option<u64>);
        let table: [(&str, &str, &[Row<'_>], Option<&str>); 11] = [
            ("the first member of a network", "10.77.0.0/16", &[], Some("10.77.0.1")),
            ("the next", "10.77.0.0/16", &[("10.77.0.1", "a", None)], Some("10.77.0.2")),
            (
                "a hole is filled",
                "10.77.0.0/16",
                &[("10.77.0.1", "a", None), ("10.77.0.3", "b", None)],
                Some("10.77.0.2"),
            ),
            ("its own", "10.77.0.0/16", &[("10.77.0.9", "me", None)], Some("10.77.0.9")),
            ("its own after removal", "10.77.0.0/16", &[("10.77.0.9", "me", Some(5))], Some("10.77.0.9")),
            (
                "its own of another prefix is gone",
                "10.78.0.0/16",
                &[("10.77.0.9", "me", None)],
                Some("10.78.0.1"),
            ),
            (
                "a removed member's address rests for a day",
                "10.77.0.0/16",
                &[("10.77.0.1", "a", Some(day - 1))],
                Some("10.77.0.2"),
            ),
            ("and is free after it", "10.77.0.0/16", &[("10.77.0.1", "a", Some(day))], Some("10.77.0.1")),
            ("a small prefix starts after its network address", "10.0.0.8/29", &[], Some("10.0.0.9")),
            (
                "a full prefix",
                "10.0.0.8/29",
                &[
                    ("10.0.0.9", "a", None),
                    ("10.0.0.10", "b", None),
                    ("10.0.0.11", "c", None),
                    ("10.0.0.12", "d", None),
                    ("10.0.0.13", "e", None),
                    ("10.0.0.14", "f", None),
                ],
                None,
            ),
            ("a holder elsewhere blocks nothing", "10.0.0.0/8", &[("9.9.9.9", "a", None)], Some("10.0.0.1")),
        ];
        for (case, prefix, held, wanted) in table {
            let held: Vec<Held> = held
                .iter()
                .map(|(addr, name, ago)| Held {
                    addr: addr.parse().unwrap(),
                    name: name.parse().unwrap(),
                    released: ago.map(|secs| UnixTime::from_secs(NOW.secs() - secs)),
                })
                .collect();
            let got = assign(prefix.parse().unwrap(), &"me".parse().unwrap(), &held, NOW);
            assert_eq!(got, wanted.map(|text| text.parse().unwrap()), "{case}");
        }
    }

    #[test]
    fn addresses_that_look_like_networks_are_skipped() {
        let prefix: Ipv4Network = "10.77.0.0/16".parse().unwrap();
        let held: Vec<Held> = (1..=254)
            .map(|n| Held {
                addr: Ipv4Addr::new(10, 77, 0, n),
                name: format!("m{n}").parse().unwrap(),
                released: None,
            })
            .collect();
        let got = assign(prefix, &"me".parse().unwrap(), &held, NOW);
        assert_eq!(got, Some(Ipv4Addr::new(10, 77, 1, 1)));
    }

    #[test]
    fn a_clock_that_jumped_back_frees_nothing() {
        let held =
            [Held { addr: Ipv4Addr::new(10, 77, 0, 1), name: "a".parse().unwrap(), released: Some(NOW) }];
        let got =
            assign("10.77.0.0/16".parse().unwrap(), &"me".parse().unwrap(), &held, UnixTime::from_secs(5));
        assert_eq!(got, Some(Ipv4Addr::new(10, 77, 0, 2)));
    }
}
