//! Which relays a pair is offered, and the tokens that open them.

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

/// The relays for a pair, best first: those with an endpoint, not run by one of the two (a direct path to it would do),
/// the least busy first, by name between equals so that both brokers of a member choose alike.
#[must_use]
pub fn choose_relays<'r>(relays: &'r [Relay], sides: [&MemberName; 2]) -> Vec<&'r Relay> {
    let mut fit: Vec<&Relay> =
        relays.iter().filter(|relay| !relay.endpoints.is_empty() && !sides.contains(&relay.name())).collect();
    fit.sort_by_key(|relay| (relay.load, relay.name().clone()));
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

fn endpoints_for(relay: &Relay, reached_at: IpAddr) -> Vec<Candidate> {
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
    fn the_least_busy_two_that_serve_neither_side_are_chosen() {
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
            let got: Vec<&str> = choose_relays(&relays, [&a, &b]).iter().map(|r| r.name().as_str()).collect();
            assert_eq!(got, wanted, "{case}");
        }
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
