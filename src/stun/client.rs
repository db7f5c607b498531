//! One transaction: request, retransmission ladder, answer or timeout (RFC 8489 6.2.1).

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::addr::canonical;
use crate::wire::stun::Class;
use crate::wire::stun::Integrity;
use crate::wire::stun::Message;
use crate::wire::stun::Received;
use crate::wire::stun::TransactionId;

/// RFC 8489 6.2.1: the first retransmission comes after this, unless something better is known.
pub const INITIAL_RTO: Duration = ms(500);
/// RFC 8489 6.2.1 (Rc): how often the request is sent.
const RC: usize = 7;
/// RFC 8489 6.2.1 (Rm): after the last sending, wait so many initial timeouts.
const RM: u32 = 16;
/// RFC 8489 6.2.2 (Ti): how long to wait on a stream, where nothing is repeated.
const TI: Duration = ms(39_500);

/// How long to wait after each sending of a request; when the last wait is over, the transaction has failed. There are
/// as many sendings as waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ladder([Option<Duration>; RC]);

impl Ladder {
    /// The ladder of RFC 8489 from an initial timeout of 500 ms: sent after 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s,
    /// failed after 39.5 s.
    pub const STANDARD: Self = Self::from_rto(INITIAL_RTO);
    /// For questions on which a person waits (a mapped address while connecting): denser at first, because one lost
    /// packet should not cost half a second, and failed after 3.1 s, when trying something else is better.
    pub const QUICK: Self =
        Self([Some(ms(100)), Some(ms(200)), Some(ms(400)), Some(ms(800)), Some(ms(1600)), None, None]);
    /// For streams (RFC 8489 6.2.2): sent once.
    pub const STREAM: Self = Self([Some(TI), None, None, None, None, None, None]);

    /// The ladder of RFC 8489 from a measured initial timeout.
    #[must_use]
    pub const fn from_rto(rto: Duration) -> Self {
        Self([
            Some(rto),
            Some(rto.saturating_mul(2)),
            Some(rto.saturating_mul(4)),
            Some(rto.saturating_mul(8)),
            Some(rto.saturating_mul(16)),
            Some(rto.saturating_mul(32)),
            Some(rto.saturating_mul(RM)),
        ])
    }

    /// How long to wait after `sent` sendings; `None` if there are no more than that before it.
    fn wait_after(&self, sent: usize) -> Option<Duration> {
        self.0.get(sent.checked_sub(1)?).copied().flatten()
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How a transaction ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The server answered.
    Answered {
        /// What it said.
        message: Message,
        /// Round trip, if it can be told: the request was sent only once (Karn's rule).
        rtt: Option<Duration>,
    },
    /// The server refused.
    Refused {
        /// From 300 to 699 (RFC 8489 14.8).
        code: u16,
        /// For people; printable.
        reason: String,
    },
    /// The server's answer needs understanding that this program does not have (RFC 8489 6.3.3).
    Incomprehensible,
    /// Nobody answered.
    TimedOut,
}

/// A question to one server. The caller drains [`Self::poll_transmit`] after [`Self::new`] and after each `handle_*`, and
/// calls [`Self::handle_timeout`] at [`Self::poll_timeout`], until there is an [`Self::outcome`].
#[derive(Debug)]
pub struct Transaction {
    server: SocketAddr,
    transaction: TransactionId,
    method: u16,
    request: Vec<u8>,
    key: Key,
    ladder: Ladder,
    started: Instant,
    sent: usize,
    to_send: bool,
    due: Option<Instant>,
    outcome: Option<Outcome>,
}

enum Key {
    None,
    Sha256(Vec<u8>),
    Sha1(Vec<u8>),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(hidden)")
    }
}

impl Transaction {
    /// Asks `server` at `now`. With an `integrity`, only an answer under the same key counts.
    #[must_use]
    pub fn new(
        request: &Message,
        integrity: Integrity<'_>,
        server: SocketAddr,
        ladder: Ladder,
        now: Instant,
    ) -> Self {
        Self {
            server: canonical(server),
            transaction: request.transaction,
            method: request.method,
            request: request.emit(integrity),
            key: match integrity {
                Integrity::None => Key::None,
                Integrity::Sha256(key) => Key::Sha256(key.to_vec()),
                Integrity::Sha1(key) => Key::Sha1(key.to_vec()),
            },
            ladder,
            started: now,
            sent: 1,
            to_send: true,
            due: ladder.wait_after(1).map(|wait| now + wait),
            outcome: None,
        }
    }

    /// What to send now, and where.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, &[u8])> {
        std::mem::take(&mut self.to_send).then_some((self.server, self.request.as_slice()))
    }

    /// When to call [`Self::handle_timeout`]; `None` once it is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Repeats the request or gives up, if it is time. One step a call: after a long sleep of the machine there is no
    /// burst.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.due.take_if(|at| *at <= now).is_none() {
            return;
        }
        match self.ladder.wait_after(self.sent + 1) {
            Some(wait) => {
                self.sent += 1;
                self.to_send = true;
                self.due = Some(now + wait);
            }
            None => self.end(Outcome::TimedOut),
        }
    }

    /// Takes a message that came in `from` somewhere. Whether it was the answer to this question; any other message, one
    /// from elsewhere and one under another key among them, changes nothing.
    pub fn handle_response(&mut self, received: &Received<'_>, from: SocketAddr, now: Instant) -> bool {
        let message = &received.message;
        let is_mine = self.outcome.is_none()
            && matches!(message.class, Class::Success | Class::Error)
            && message.transaction == self.transaction
            && message.method == self.method
            && received.has_cookie
            && canonical(from) == self.server
            && match &self.key {
                Key::None => true,
                Key::Sha256(key) => received.is_authentic(key),
                Key::Sha1(key) => received.is_authentic_sha1(key),
            };
        if !is_mine {
            return false;
        }
        let outcome = match (message.class, message.error()) {
            _ if !received.unknown_required.is_empty() => Outcome::Incomprehensible,
            (Class::Success, _) => Outcome::Answered {
                message: message.clone(),
                rtt: (self.sent == 1).then(|| now.saturating_duration_since(self.started)),
            },
            (_, Some((code, reason))) => Outcome::Refused { code, reason: reason.to_owned() },
            (_, None) => Outcome::Incomprehensible,
        };
        self.end(outcome);
        true
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Which question this is.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.transaction
    }

    /// Who is asked.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        self.due = None;
        self.to_send = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::Attribute;
    use crate::wire::stun::BINDING;

    const ID: TransactionId = TransactionId([7; 12]);

    #[test]
    fn a_question_without_answer_climbs_the_ladder_and_gives_up() {
        for (ladder, sent_at, given_up_at) in [
            (Ladder::STANDARD, &[0, 500, 1500, 3500, 7500, 15_500, 31_500][..], 39_500),
            (Ladder::QUICK, &[0, 100, 300, 700, 1500], 3100),
            (Ladder::STREAM, &[0], 39_500),
            (Ladder::from_rto(ms(100)), &[0, 100, 300, 700, 1500, 3100, 6300], 7900),
        ] {
            let t0 = origin();
            let mut asked = ask(Integrity::None, ladder, t0);
            let mut sent = Vec::new();
            let mut now = t0;
            loop {
                if let Some((to, bytes)) = asked.poll_transmit() {
                    assert_eq!((to, bytes), (server(), &*request().emit(Integrity::None)), "always the same");
                    sent.push((now - t0).as_millis());
                }
                let Some(due) = asked.poll_timeout() else { break };
                asked.handle_timeout(due - ms(1)); // too early: nothing happens
                assert_eq!(asked.poll_transmit(), None);
                now = due;
                asked.handle_timeout(now);
            }
            assert_eq!(sent, sent_at);
            assert_eq!((now - t0).as_millis(), given_up_at);
            assert_eq!(asked.outcome(), Some(&Outcome::TimedOut));
        }
    }

    #[test]
    fn the_answer_ends_it_and_gives_the_round_trip() {
        let t0 = origin();
        let mut asked = ask(Integrity::None, Ladder::STANDARD, t0);
        let answer = answer();
        assert!(hear(&mut asked, &answer.emit(Integrity::None), server(), t0 + ms(20)));
        assert_eq!(asked.outcome(), Some(&Outcome::Answered { message: answer, rtt: Some(ms(20)) }));
        assert_eq!((asked.poll_timeout(), asked.poll_transmit()), (None, None));
        assert!(
            !hear(&mut asked, &self::answer().emit(Integrity::None), server(), t0 + ms(30)),
            "it is over"
        );
    }

    #[test]
    fn after_a_repetition_nobody_knows_the_round_trip() {
        let t0 = origin();
        let mut asked = ask(Integrity::None, Ladder::STANDARD, t0);
        asked.handle_timeout(t0 + ms(500));
        assert!(hear(&mut asked, &answer().emit(Integrity::None), server(), t0 + ms(510)));
        assert!(matches!(asked.outcome(), Some(Outcome::Answered { rtt: None, .. })));
    }

    #[test]
    fn only_the_true_answer_counts() {
        let t0 = origin();
        let key = Integrity::Sha256(b"key");
        let other_id = Message { transaction: TransactionId([8; 12]), ..answer() };
        let other_method = Message { method: 2, ..answer() };
        let elsewhere: SocketAddr = "192.0.2.2:3478".parse().unwrap();
        for (text, bytes, from) in [
            ("another question", other_id.emit(key), server()),
            ("another method", other_method.emit(key), server()),
            ("from elsewhere", answer().emit(key), elsewhere),
            ("without integrity", answer().emit(Integrity::None), server()),
            ("under another key", answer().emit(Integrity::Sha256(b"no")), server()),
            ("under another hash", answer().emit(Integrity::Sha1(b"key")), server()),
            ("a forged refusal", request().refusal(401, "").emit(Integrity::None), server()),
            ("our own question, reflected", request().emit(key), server()),
        ] {
            let mut asked = ask(key, Ladder::STANDARD, t0);
            assert!(!hear(&mut asked, &bytes, from, t0), "{text}");
            assert_eq!(asked.outcome(), None, "{text}");
        }
        let mut asked = ask(key, Ladder::STANDARD, t0);
        let mapped = "[::ffff:192.0.2.1]:3478".parse().unwrap();
        assert!(hear(&mut asked, &answer().emit(key), mapped, t0), "a dual-stack socket spells it so");
    }

    #[test]
    fn a_refusal_and_an_incomprehensible_answer_end_it_too() {
        let t0 = origin();
        let mut asked = ask(Integrity::None, Ladder::STANDARD, t0);
        assert!(hear(&mut asked, &request().refusal(420, "what?").emit(Integrity::None), server(), t0));
        assert_eq!(asked.outcome(), Some(&Outcome::Refused { code: 420, reason: "what?".to_owned() }));

        let mut asked = ask(Integrity::None, Ladder::STANDARD, t0);
        let mut strange = answer().with(Attribute::Priority(1)).emit(Integrity::None);
        let at = strange.len() - 8;
        strange[at..at + 2].copy_from_slice(&[0x7a, 0xbc]);
        assert!(hear(&mut asked, &strange, server(), t0));
        assert_eq!(asked.outcome(), Some(&Outcome::Incomprehensible));
    }

    #[test]
    fn after_a_long_sleep_there_is_one_repetition_and_no_burst() {
        let t0 = origin();
        let mut asked = ask(Integrity::None, Ladder::STANDARD, t0);
        let _ = asked.poll_transmit();
        let late = t0 + ms(3_600_000);
        asked.handle_timeout(late);
        asked.handle_timeout(late);
        assert!(asked.poll_transmit().is_some() && asked.poll_transmit().is_none());
        assert_eq!(asked.poll_timeout(), Some(late + ms(1000)));
    }

    fn ask(integrity: Integrity<'_>, ladder: Ladder, now: Instant) -> Transaction {
        Transaction::new(&request(), integrity, server(), ladder, now)
    }

    fn hear(asked: &mut Transaction, bytes: &[u8], from: SocketAddr, now: Instant) -> bool {
        asked.handle_response(&Received::parse(bytes).unwrap(), from, now)
    }

    fn request() -> Message {
        Message::request(BINDING, ID)
    }

    fn answer() -> Message {
        request().success().with(Attribute::XorMappedAddress("203.0.113.5:4242".parse().unwrap()))
    }

    fn server() -> SocketAddr {
        "192.0.2.1:3478".parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
