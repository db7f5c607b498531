//! Which relays a pair is offered, and the tokens that open them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::base::hidden::Hidden;
use crate::base::id::RelaySession;
use crate::base::time::UnixTime;
use crate::identity::certificate::Certificate;
use crate::identity::keys::SigningKey;
use crate::identity::names::MemberName;
use crate::nat::candidate::Candidate;
use crate::wire::broker::RelayOffer;
use crate::wire::relay::Token;

/// Relays in one offer: one to use, one if it fails; each costs a certificate in the message.
pub const MAX_OFFERED: usize = 2;

/// How long a token opens a session. Within that, both sides must have bound; a bound session lives on. Five minutes,
/// because the relay's clock may differ from the broker's by as much as certificates allow.
pub const TOKEN_LIFE: Duration = Duration::from_secs(300);

/// What a relay counts for that a member has not measured yet, milliseconds: farther than anything on its continent.
const UNMEASURED: u32 = 200;
/// One that a member says it cannot reach: offered only if there is none that both can.
const UNREACHABLE: u32 = 60_000;

/// How far relays are from one member: round trips in milliseconds, `None` where it did not get there.
pub type Delays = BTreeMap<MemberName, Option<u16>>;

/// A relay as the broker sees it.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Its certificate.
    pub certificate: Certificate,
    /// Where it takes members; an unspecified address stands for the address at which it or this broker is seen.
    pub endpoints: Vec<Candidate>,
    /// Where the broker sees it; `None` if it runs in the broker's own process.
    pub seen_at: Option<IpAddr>,
    /// Introductions that were offered this relay within the last half minute.
    pub load: u32,
}

impl Relay {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &MemberName {
        &self.certificate.subject.uri.name
    }
}

/// The relays for a pair, best first: those with an endpoint, not run by one of the two (a direct path to it would do).
/// What counts is the way by the relay, that is the sum of the two sides' round trips to it, and how busy it is: each
/// introduction that it was offered to lately counts as a millisecond, so that the nearest relay of a crowd leaves some of
/// it to the next one. By name between equals, so that both brokers of a member choose alike.
#[must_use]
pub fn choose_relays<'r>(
    relays: &'r [Relay],
    sides: [&MemberName; 2],
    delays: [Option<&Delays>; 2],
) -> Vec<&'r Relay> {
    let mut fit: Vec<&Relay> =
        relays.iter().filter(|relay| !relay.endpoints.is_empty() && !sides.contains(&relay.name())).collect();
    let cost = |relay: &Relay| {
        let far = |delays: Option<&Delays>| match delays.and_then(|all| all.get(relay.name())) {
            None => UNMEASURED,
            Some(None) => UNREACHABLE,
            Some(Some(rtt)) => u32::from(*rtt),
        };
        delays.into_iter().map(far).sum::<u32>().saturating_add(relay.load)
    };
    fit.sort_by_cached_key(|relay| (cost(relay), relay.name().clone()));
    fit.truncate(MAX_OFFERED);
    fit
}

/// What one side is told about a relay; `reached_at` is the broker's address by which that side reached the broker.
#[must_use]
pub fn offer(
    relay: &Relay,
    session: RelaySession,
    side: u8,
    member: &Certificate,
    reached_at: IpAddr,
    key: &SigningKey,
    now: UnixTime,
) -> RelayOffer {
    let token = Token {
        session,
        side,
        member: member.subject.wg,
        relay: relay.certificate.subject.wg,
        expires: now.plus(TOKEN_LIFE),
    };
    RelayOffer {
        certificate: relay.certificate.der.clone(),
        endpoints: endpoints_for(relay, reached_at),
        session,
        token: Hidden(token.with_signature(&key.sign(&token.signed_part()))),
    }
}

/// A relay's endpoints for somebody who reached this broker at `reached_at`.
#[must_use]
pub fn endpoints_for(relay: &Relay, reached_at: IpAddr) -> Vec<Candidate> {
    let here = relay.seen_at.unwrap_or(reached_at).to_canonical();
    let filled = relay.endpoints.iter().map(|endpoint| {
        let mut endpoint = *endpoint;
        if endpoint.addr.ip().is_unspecified() {
            endpoint.addr.set_ip(here);
        }
        endpoint
    });
    filled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::tests::certificate;
    use crate::nat::candidate::Kind;
    use crate::nat::candidate::Transport;

    fn relay(name: &str, load: u32, endpoint: Option<&str>) -> Relay {
        let endpoints = endpoint.map(|addr| Candidate {
            transport: Transport::Udp,
            kind: Kind::Configured,
            addr: addr.parse().unwrap(),
        });
        Relay {
            certificate: certificate(name, 9),
            endpoints: endpoints.into_iter().collect(),
            seen_at: None,
            load,
        }
    }

    #[test]
    fn of_equally_far_ones_the_least_busy_two_that_serve_neither_side_are_chosen() {
        let (a, b) = ("anna".parse().unwrap(), "bert".parse().unwrap());
        let at = Some("192.0.2.1:6061");
        for (case, relays, wanted) in [
            ("none", vec![], vec![]),
            ("one", vec![relay("r", 5, at)], vec!["r"]),
            ("busy ones last", vec![relay("r", 5, at), relay("s", 1, at), relay("t", 3, at)], vec!["s", "t"]),
            ("equals by name", vec![relay("t", 1, at), relay("s", 1, at), relay("r", 1, at)], vec!["r", "s"]),
            ("a side's own", vec![relay("anna", 0, at), relay("r", 9, at)], vec!["r"]),
            ("nowhere to be reached", vec![relay("r", 0, None), relay("s", 9, at)], vec!["s"]),
        ] {
            let chosen = choose_relays(&relays, [&a, &b], [None, None]);
            let got: Vec<&str> = chosen.iter().map(|r| r.name().as_str()).collect();
            assert_eq!(got, wanted, "{case}");
        }
    }

    #[test]
    fn the_shortest_way_by_a_relay_wins_unless_it_is_crowded() {
        let (a, b) = ("anna".parse().unwrap(), "bert".parse().unwrap());
        let far = |each: &[(&str, Option<u16>)]| -> Delays {
            each.iter().map(|(name, rtt)| (name.parse().unwrap(), *rtt)).collect()
        };
        let at = Some("192.0.2.1:6061");
        for (case, loads, anna, bert, wanted) in [
            ("the sum counts, not one side", [0, 0], [Some(5), Some(30)], [Some(90), Some(40)], "s"),
            ("a crowd counts", [30, 0], [Some(10), Some(20)], [Some(10), Some(20)], "s"),
            ("a small crowd does not", [15, 0], [Some(10), Some(20)], [Some(10), Some(20)], "r"),
            ("one that a side cannot reach", [0, 90], [None, Some(150)], [Some(1), Some(150)], "s"),
        ] {
            let relays = [relay("r", loads[0], at), relay("s", loads[1], at)];
            let delays = [anna, bert].map(|[r, s]| far(&[("r", r), ("s", s)]));
            let [anna, bert] = &delays;
            let chosen = choose_relays(&relays, [&a, &b], [Some(anna), Some(bert)]);
            assert_eq!(chosen[0].name().as_str(), wanted, "{case}");
            assert_eq!(chosen.len(), 2, "{case}: the other one stays in reserve");
        }
        let known = far(&[("r", Some(70))]);
        let relays = [relay("r", 0, at), relay("new", 0, at)];
        let chosen = choose_relays(&relays, [&a, &b], [Some(&known), Some(&known)]);
        assert_eq!(chosen[0].name().as_str(), "r", "one that nobody has measured is not trusted to be near");
    }

    #[test]
    fn an_open_address_is_filled_in_with_the_one_that_the_side_can_reach() {
        let here: IpAddr = "198.51.100.7".parse().unwrap();
        let mut r = relay("r", 0, Some("0.0.0.0:6061"));
        assert_eq!(endpoints_for(&r, here)[0].addr, "198.51.100.7:6061".parse().unwrap());
        r.seen_at = Some("203.0.113.5".parse().unwrap());
        assert_eq!(endpoints_for(&r, here)[0].addr, "203.0.113.5:6061".parse().unwrap());
    }
}
