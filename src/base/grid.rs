//! The addresses and ports of a server that is to be looked at from several places (RFC 5780 3): its own view of itself.

use std::net::IpAddr;
use std::net::SocketAddr;

/// One address of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Home {
    /// What its sockets are bound to.
    pub bound: IpAddr,
    /// What everybody else calls it: the same, unless a one-to-one NAT stands before it.
    pub seen: IpAddr,
}

/// The same ports on every address. Without a port, the tests that need it do not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grid {
    homes: Vec<Home>,
    port: u16,
    alternate: Option<u16>,
    silent: Option<u16>,
}

impl Grid {
    /// A server at `homes`. A home that is bound to an unspecified address stands for whichever one is asked, and is
    /// alone in its family: nobody can tell which of the machine's addresses the world can reach.
    #[must_use]
    pub fn new(homes: Vec<Home>, port: u16, alternate: Option<u16>, silent: Option<u16>) -> Self {
        Self { homes, port, alternate, silent }
    }

    /// All addresses, of both families.
    #[must_use]
    pub fn all(&self) -> &[Home] {
        &self.homes
    }

    /// The port that everybody knows.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The other port that answers.
    #[must_use]
    pub fn alternate(&self) -> Option<u16> {
        self.alternate
    }

    /// The port that never answers anything of itself.
    #[must_use]
    pub fn silent(&self) -> Option<u16> {
        self.silent
    }

    /// Of the two ports that answer, the one that is not `port`.
    #[must_use]
    pub fn other_port(&self, port: u16) -> Option<u16> {
        if port == self.port { self.alternate } else { Some(self.port) }
    }

    /// The addresses of one family, the one that was asked at `asked` first, with no address left unspecified.
    #[must_use]
    pub fn homes(&self, asked: IpAddr) -> Vec<Home> {
        let asked = asked.to_canonical();
        let fixed = self.homes.iter().filter(|home| home.bound.is_ipv4() == asked.is_ipv4());
        let (mut here, others): (Vec<Home>, Vec<Home>) =
            fixed.filter(|home| !home.bound.is_unspecified()).partition(|home| home.bound == asked);
        if here.is_empty() {
            let open = |home: &&Home| home.bound.is_unspecified() && home.bound.is_ipv4() == asked.is_ipv4();
            let seen = self.homes.iter().find(open).map(|home| home.seen);
            let seen = seen.filter(|seen| !seen.is_unspecified()).unwrap_or(asked);
            return vec![Home { bound: asked, seen }];
        }
        here.extend(others);
        here
    }

    /// What the world calls the endpoint that this server calls `local`.
    #[must_use]
    pub fn seen(&self, local: SocketAddr) -> SocketAddr {
        let homes = self.homes(local.ip());
        SocketAddr::new(homes.first().map_or_else(|| local.ip(), |home| home.seen), local.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_knows_its_other_addresses_and_ports_from_wherever_it_is_asked() {
        let grid = Grid::new(
            ["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3"].map(plain).to_vec(),
            3478,
            Some(3479),
            None,
        );
        let at = |asked: &str| grid.homes(ip(asked)).iter().map(|home| home.bound).collect::<Vec<_>>();
        assert_eq!(at("192.0.2.2"), ["192.0.2.2", "192.0.2.1", "192.0.2.3"].map(ip));
        assert_eq!(at("::ffff:192.0.2.1"), ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(ip));
        assert_eq!(at("2001:db8::1"), [ip("2001:db8::1")]);
        assert_eq!((grid.other_port(3478), grid.other_port(3479)), (Some(3479), Some(3478)));
        assert_eq!(Grid::new(vec![], 3478, None, None).other_port(3478), None);
    }

    #[test]
    fn an_open_address_is_the_one_that_was_asked_and_has_no_brother() {
        let grid = Grid::new(vec![plain("0.0.0.0"), plain("::")], 3478, Some(3479), None);
        assert_eq!(grid.homes(ip("192.0.2.7")), [plain("192.0.2.7")]);
        assert_eq!(grid.homes(ip("2001:db8::7")), [plain("2001:db8::7")]);
    }

    #[test]
    fn behind_a_one_to_one_nat_the_world_has_another_name_for_it() {
        let home = |bound, seen| Home { bound: ip(bound), seen: ip(seen) };
        let fixed = vec![home("10.0.0.5", "192.0.2.5"), home("10.0.0.6", "192.0.2.6")];
        let grid = Grid::new(fixed, 3478, Some(3479), None);
        let seen = |local: &str| grid.seen(local.parse().unwrap()).to_string();
        assert_eq!(
            (seen("10.0.0.5:3478"), seen("10.0.0.6:3479")),
            ("192.0.2.5:3478".into(), "192.0.2.6:3479".into())
        );
        let open = Grid::new(vec![home("0.0.0.0", "192.0.2.9")], 3478, None, None);
        assert_eq!(open.homes(ip("10.0.0.5")), [home("10.0.0.5", "192.0.2.9")]);
    }

    fn plain(text: &str) -> Home {
        Home { bound: ip(text), seen: ip(text) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
