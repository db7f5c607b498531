//! UDP registration: what keeps the data socket's mapping open and tells everybody where it is.
//!
//! A STUN Binding to the broker from the data socket itself, authenticated with a key that comes out of the TLS session,
//! every 25 seconds. Without an answer the network lets no UDP out, and relays are reached over TCP at once.

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::RegistrationId;
use crate::base::rng::Rng;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::nat::behavior::keeping;
use crate::path::View;
use crate::wire::stun;

/// Between registrations, unless the own NAT is known to forget sooner: below the 30 s after which the shortest-lived UDP mappings go (Linux conntrack's default for
/// flows without an answer).
pub const EVERY: Duration = Duration::from_secs(25);
/// Gaps between unanswered requests. Shorter than RFC 8489 6.2.1, because "UDP does not get out" must be known before a
/// user waits for it.
const LADDER: [Duration; 5] = [ms(250), ms(500), ms(1000), ms(2000), ms(4000)];
/// Unanswered requests after which UDP counts as blocked; the ladder goes on.
const BLOCKED_AFTER: usize = 3;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Registrations of one data socket with one broker.
#[derive(Debug)]
pub struct Registration {
    to: SocketAddr,
    id: RegistrationId,
    key: [u8; 32],
    sent: Vec<(stun::TransactionId, Instant)>,
    due: Instant,
    last_stamp: u64,
    mapped: Option<SocketAddr>,
    rtt: Option<Duration>,
    answered: bool,
    silent: bool,
}

impl Registration {
    /// Registers with the broker's UDP address `to` from `now` on.
    #[must_use]
    pub fn new(to: SocketAddr, id: RegistrationId, key: [u8; 32], now: Instant) -> Self {
        Self {
            to,
            id,
            key,
            sent: Vec::new(),
            due: now,
            last_stamp: 0,
            mapped: None,
            rtt: None,
            answered: false,
            silent: false,
        }
    }

    /// An answer came. True if it is authentic and ours. `lifetime` is how long the own NAT is known to keep an idle mapping,
    /// s.
    pub fn handle_response(
        &mut self,
        from: SocketAddr,
        received: &stun::Received<'_>,
        lifetime: Option<u16>,
        now: Instant,
    ) -> bool {
        let message = &received.message;
        let asked = self.sent.iter().find(|(id, _)| *id == message.transaction);
        let (Some((_, at)), stun::Class::Success, Some(mapped)) = (asked, message.class, message.mapped())
        else {
            return false;
        };
        if from != self.to || !received.is_authentic(&self.key) {
            return false;
        }
        self.rtt = Some(now.saturating_duration_since(*at));
        self.mapped = Some(mapped);
        self.answered = true;
        self.silent = false;
        self.sent.clear();
        self.due = now + keeping(EVERY, lifetime);
        true
    }

    /// Sends what is due.
    pub fn handle_timeout(&mut self, now: Now, outbox: &mut Outbox, rng: &mut Rng) {
        if now.instant < self.due {
            return;
        }
        if self.sent.len() >= BLOCKED_AFTER {
            self.silent = true;
            self.mapped = None;
        }
        let rung = self.sent.len();
        if rung == LADDER.len() {
            self.sent.clear();
            self.due = now.instant + EVERY;
            return;
        }
        let transaction = stun::TransactionId(rng.bytes());
        // Strictly growing, also when the clock stands still or goes back.
        self.last_stamp = now.unix.micros().max(self.last_stamp + 1);
        let message = stun::Message {
            class: stun::Class::Request,
            method: stun::BINDING,
            transaction,
            attributes: vec![
                stun::Attribute::Username(self.id.0.to_be_bytes().to_vec()),
                stun::Attribute::Timestamp(self.last_stamp),
            ],
        };
        outbox.push(Via::udp_for(self.to), self.to, &message.emit(stun::Integrity::Sha256(&self.key)));
        self.sent.push((transaction, now.instant));
        self.due = now.instant + LADDER.get(rung).copied().unwrap_or(EVERY);
    }

    /// The network changed: register again at once.
    pub fn refresh(&mut self, now: Instant) {
        self.sent.clear();
        self.due = now;
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.due
    }

    /// Whether UDP gets to the broker and back; `None` while that is open.
    #[must_use]
    pub fn works(&self) -> Option<bool> {
        match (self.silent, self.answered) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        }
    }

    /// The data socket's mapped address, as the broker sees it.
    #[must_use]
    pub fn mapped(&self) -> Option<SocketAddr> {
        self.mapped
    }

    /// What the broker sees of the data socket.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        Some(View { from: self.to, mapped: self.mapped? })
    }

    /// Round trip to the broker.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Seed;
    use crate::base::time::UnixTime;

    const BROKER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 6060);
    const KEY: [u8; 32] = [5; 32];

    #[test]
    fn an_answered_registration_is_repeated_before_the_mapping_goes() {
        let t0 = origin();
        let mut r = Registration::new(BROKER, RegistrationId(7), KEY, t0.instant);
        let request = step(&mut r, t0).unwrap();
        let mapped = "198.51.100.3:4000".parse().unwrap();
        assert!(!answer(&mut r, &request, mapped, &[6; 32], t0), "a forged answer");
        assert!(answer(&mut r, &request, mapped, &KEY, t0.plus(ms(30))));
        assert_eq!((r.works(), r.mapped(), r.rtt()), (Some(true), Some(mapped), Some(ms(30))));
        assert_eq!(r.poll_timeout(), t0.instant + ms(30) + EVERY);
        assert!(!answer(&mut r, &request, mapped, &KEY, t0.plus(ms(31))), "one answer a request");
    }

    #[test]
    fn silence_means_blocked_within_two_seconds_and_is_retried_for_ever() {
        let t0 = origin();
        let mut r = Registration::new(BROKER, RegistrationId(7), KEY, t0.instant);
        let (mut now, mut sent, mut blocked) = (t0, 0, None);
        while now.instant < t0.instant + Duration::from_secs(120) {
            sent += usize::from(step(&mut r, now).is_some());
            if r.works() == Some(false) {
                blocked.get_or_insert(now.instant - t0.instant);
            }
            now = now.plus(r.poll_timeout() - now.instant);
        }
        assert_eq!(blocked, Some(ms(1750)));
        assert!((15..25).contains(&sent), "{sent} requests in two minutes");
    }

    #[test]
    fn stamps_grow_even_when_the_clock_goes_back() {
        let t0 = origin();
        let mut r = Registration::new(BROKER, RegistrationId(7), KEY, t0.instant);
        let first = stamp(&step(&mut r, t0).unwrap());
        let back = Now { instant: t0.instant + ms(250), unix: UnixTime::from_secs(1) };
        assert!(stamp(&step(&mut r, back).unwrap()) > first);
    }

    fn step(r: &mut Registration, now: Now) -> Option<Vec<u8>> {
        let mut outbox = Outbox::default();
        r.handle_timeout(now, &mut outbox, &mut Rng::new(Seed([0; 32])));
        outbox.sends().first().map(|t| outbox.bytes(t.range.clone()).to_vec())
    }

    fn stamp(request: &[u8]) -> u64 {
        let attributes = stun::Received::parse(request).unwrap().message.attributes;
        attributes
            .iter()
            .find_map(|a| if let stun::Attribute::Timestamp(t) = a { Some(*t) } else { None })
            .unwrap()
    }

    fn answer(r: &mut Registration, request: &[u8], mapped: SocketAddr, key: &[u8], now: Now) -> bool {
        let transaction = stun::Received::parse(request).unwrap().message.transaction;
        let response = stun::Message {
            class: stun::Class::Success,
            method: stun::BINDING,
            transaction,
            attributes: vec![stun::Attribute::XorMappedAddress(mapped)],
        }
        .emit(stun::Integrity::Sha256(key));
        r.handle_response(BROKER, &stun::Received::parse(&response).unwrap(), None, now.instant)
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Now {
        Now { instant: Instant::now(), unix: UnixTime::from_secs(1_800_000_000) }
    }
}
