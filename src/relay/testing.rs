//! What the tests of this module share: a clock, keys, a broker that signs, offers.

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::hidden::Hidden;
use crate::base::id::RelaySession;
use crate::base::time::Now;
use crate::base::time::UnixTime;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Roles;
use crate::identity::certificate::Serial;
use crate::identity::certificate::Subject;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgSecret;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Kind;
use crate::nat::candidate::Transport;
use crate::wire::broker::RelayOffer;
use crate::wire::relay::Token;

/// Where the relay is in these stories.
pub(crate) const RELAY: &str = "198.51.100.1:6061";

#[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
pub(crate) fn now() -> Now {
    Now { instant: Instant::now(), unix: UnixTime::from_secs(1_800_000_000) }
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn relay_secret() -> WgSecret {
    WgSecret::new([9; 32])
}

pub(crate) fn broker() -> SigningKey {
    SigningKey::from_seed(&[7; 32])
}

/// The relay's certificate, as a member has verified it.
pub(crate) fn certificate(relay: &WgSecret) -> Certificate {
    Certificate {
        subject: Subject {
            uri: "ntcp://home/relay".parse().unwrap(),
            roles: Roles::RELAY,
            addrs: None,
            groups: Vec::new(),
            wg: relay.public(),
        },
        serial: Serial([1; 16]),
        not_before: UnixTime::from_secs(0),
        not_after: UnixTime::from_secs(u64::MAX / 2),
        key: [0; 32],
        der: Vec::new(),
    }
}

pub(crate) fn token(session: u8, side: u8, member: &WgSecret, now: Now) -> Token {
    Token {
        session: RelaySession([session; 16]),
        side,
        member: member.public(),
        relay: relay_secret().public(),
        expires: now.unix.plus(Duration::from_secs(60)),
    }
}

pub(crate) fn signed(token: &Token, by: &SigningKey) -> Vec<u8> {
    token.with_signature(&by.sign(&token.signed_part()))
}

pub(crate) fn offer(token: &Token, endpoints: &[(Transport, &str)]) -> RelayOffer {
    let candidate = |(transport, text): &(Transport, &str)| Candidate {
        transport: *transport,
        kind: Kind::Configured,
        addr: addr(text),
    };
    RelayOffer {
        certificate: Vec::new(),
        endpoints: endpoints.iter().map(candidate).collect(),
        session: token.session,
        token: Hidden(signed(token, &broker())),
    }
}
