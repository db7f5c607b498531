//! Candidate hygiene: what a member says about itself is a hint, and no hint may turn others into attackers.

use std::net::IpAddr;
use std::net::SocketAddr;

use crate::base::addr::canonical;
use crate::base::addr::is_candidate;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::MAX_CANDIDATES;
use crate::nat::candidate::Transport;

/// Below are the ports of well-known services, at which members shall not be made to shoot.
const FIRST_PORT: u16 = 1024;

/// The candidates of a member that are fit to be told to others: unicast, ports from 1024 on, none inside the overlay
/// (`inside` answers that: a path through the overlay to the overlay would bite its tail), no repetition, at most
/// [`MAX_CANDIDATES`].
#[must_use]
pub fn fit_for_members(claimed: &[Candidate], inside: impl Fn(IpAddr) -> bool) -> Vec<Candidate> {
    keep(claimed, |addr| is_candidate(addr) && addr.port() >= FIRST_PORT && !inside(addr.ip()))
}

/// The endpoints of a relay that are fit to be told. The administrator gave it its certificate, so it may use 443. An
/// unspecified address means "at the address where you see me" and stays, for the offer to fill in.
#[must_use]
pub fn fit_for_relays(claimed: &[Candidate], inside: impl Fn(IpAddr) -> bool) -> Vec<Candidate> {
    keep(claimed, |addr| {
        let open = addr.ip().is_unspecified() && addr.port() != 0;
        (open || is_candidate(addr)) && !inside(addr.ip())
    })
}

/// The endpoints of a punch that are fit to be dialled, in their order.
#[must_use]
pub fn fit_endpoints(claimed: &[SocketAddr], inside: impl Fn(IpAddr) -> bool) -> Vec<SocketAddr> {
    let fit = |addr: &SocketAddr| is_candidate(*addr) && addr.port() >= FIRST_PORT && !inside(addr.ip());
    claimed.iter().map(|addr| canonical(*addr)).filter(fit).collect()
}

fn keep(claimed: &[Candidate], fit: impl Fn(SocketAddr) -> bool) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in claimed {
        let candidate = Candidate { addr: canonical(candidate.addr), ..*candidate };
        let known = kept.iter().any(|k| k.transport == candidate.transport && k.addr == candidate.addr);
        if fit(candidate.addr) && !known && kept.len() < MAX_CANDIDATES {
            kept.push(candidate);
        }
    }
    kept
}

/// What a peer is told: what the member claimed, and in front of it what this broker saw itself, which nobody can lie
/// about. Never more than [`MAX_CANDIDATES`].
#[must_use]
pub fn with_mapped(claimed: &[Candidate], seen: impl Iterator<Item = SocketAddr>) -> Vec<Candidate> {
    let seen =
        seen.map(|addr| Candidate { transport: Transport::Udp, kind: Kind::Mapped, addr: canonical(addr) });
    let mut all: Vec<Candidate> = Vec::new();
    for candidate in seen.chain(claimed.iter().copied()) {
        if !all.iter().any(|k| k.transport == candidate.transport && k.addr == candidate.addr) {
            all.push(candidate);
        }
    }
    all.truncate(MAX_CANDIDATES);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(addr: &str) -> Candidate {
        Candidate { transport: Transport::Udp, kind: Kind::Host, addr: addr.parse().unwrap() }
    }

    fn in_overlay(ip: IpAddr) -> bool {
        matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 10 && v4.octets()[1] == 77)
    }

    #[test]
    fn only_fit_candidates_of_a_member_are_kept() {
        for (addr, fit) in [
            ("192.168.1.2:4000", true),
            ("192.168.1.2:1023", false),
            ("10.77.0.1:4000", false),
            ("127.0.0.1:4000", false),
            ("0.0.0.0:4000", false),
            ("[fe80::1]:4000", false),
            ("[2001:db8::1]:4000", true),
        ] {
            assert_eq!(fit_for_members(&[udp(addr)], in_overlay).len() == 1, fit, "{addr}");
        }
    }

    #[test]
    fn a_mapped_ipv4_address_cannot_dodge_the_overlay_check() {
        assert_eq!(fit_for_members(&[udp("[::ffff:10.77.0.1]:4000")], in_overlay), []);
    }

    #[test]
    fn repetitions_and_the_seventeenth_are_dropped() {
        let many: Vec<Candidate> = (0..40).map(|n| udp(&format!("192.0.2.1:{}", 4000 + n / 2))).collect();
        let kept = fit_for_members(&many, in_overlay);
        assert_eq!(kept.len(), MAX_CANDIDATES);
        assert_eq!(kept[1].addr.port(), 4001);
    }

    #[test]
    fn a_relay_may_use_443_and_leave_its_address_open() {
        for (addr, fit) in [("192.0.2.1:443", true), ("0.0.0.0:6061", true), ("127.0.0.1:6061", false)] {
            assert_eq!(fit_for_relays(&[udp(addr)], in_overlay).len() == 1, fit, "{addr}");
        }
    }

    #[test]
    fn what_the_broker_saw_stands_first_and_takes_the_place_of_the_same_claim() {
        let seen: SocketAddr = "203.0.113.9:700".parse().unwrap();
        let all = with_mapped(&[udp("192.168.1.2:4000"), udp("203.0.113.9:700")], [seen].into_iter());
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].kind, all[0].addr), (Kind::Mapped, seen));
    }
}
