//! STUN servers that the owner named (`member.stun_servers`): each tells how the data socket looks from where it stands.
//!
//! A server inside a carrier's network sees the outside of the home NAT and not that of the carrier's: an address at which
//! another customer of the same carrier can be met even if the carrier's NAT does not hairpin.

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::rng::Rng;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::node::registration;
use crate::stun::client::Ladder;
use crate::stun::client::Outcome;
use crate::stun::client::Transaction;
use crate::wire::stun;

/// A server that does not answer is asked again after this.
const RETRY: Duration = Duration::from_secs(60);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Observers(Vec<Observer>);

#[derive(Debug)]
struct Observer {
    server: SocketAddr,
    question: Option<Transaction>,
    due: Instant,
    mapped: Option<SocketAddr>,
}

impl Observers {
    /// Asks each of `servers` from `now` on.
    pub(super) fn new(servers: &[SocketAddr], now: Instant) -> Self {
        let observer =
            |server: &SocketAddr| Observer { server: *server, question: None, due: now, mapped: None };
        Self(servers.iter().map(observer).collect())
    }

    /// A message that may be an answer. `None` if it is not; otherwise whether some address is new.
    pub(super) fn handle_response(
        &mut self,
        from: SocketAddr,
        received: &stun::Received<'_>,
        now: Instant,
    ) -> Option<bool> {
        let observer = self.0.iter_mut().find_map(|observer| {
            let answered = observer.question.as_mut()?.handle_response(received, from, now);
            answered.then_some(observer)
        })?;
        Some(observer.conclude(now))
    }

    /// Sends what is due. Whether some address is gone.
    pub(super) fn handle_timeout(&mut self, now: Instant, outbox: &mut Outbox, rng: &mut Rng) -> bool {
        let mut changed = false;
        for observer in &mut self.0 {
            if let Some(question) = &mut observer.question {
                question.handle_timeout(now);
                changed |= question.outcome().is_some() && observer.conclude(now);
            }
            if observer.question.is_none() && observer.due <= now {
                let request = stun::Message::request(stun::BINDING, stun::TransactionId(rng.bytes()));
                let (none, standard) = (stun::Integrity::None, Ladder::STANDARD);
                observer.question = Some(Transaction::new(&request, none, observer.server, standard, now));
            }
            if let Some((to, message)) = observer.question.as_mut().and_then(Transaction::poll_transmit) {
                outbox.push(Via::udp_for(to), to, message);
            }
        }
        changed
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.iter().map(|o| o.question.as_ref().and_then(Transaction::poll_timeout).unwrap_or(o.due)).min()
    }

    /// The network changed: asks again at once.
    pub(super) fn refresh(&mut self, now: Instant) {
        for observer in &mut self.0 {
            observer.question = None;
            observer.due = now;
        }
    }

    /// The data socket's addresses as they were seen.
    pub(super) fn mapped(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().filter_map(|observer| observer.mapped)
    }
}

impl Observer {
    /// Takes over what the question came to; whether that is something else than before.
    fn conclude(&mut self, now: Instant) -> bool {
        let question = self.question.take();
        let (mapped, next) = match question.as_ref().and_then(Transaction::outcome) {
            Some(Outcome::Answered { message, .. }) => (message.mapped(), registration::EVERY),
            Some(Outcome::Refused { .. } | Outcome::Incomprehensible | Outcome::TimedOut) | None => {
                (None, RETRY)
            }
        };
        self.due = now + next;
        let changed = mapped != self.mapped;
        self.mapped = mapped;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Seed;

    const SERVER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(100, 64, 0, 9)), 3478);

    #[test]
    fn an_observer_tells_an_address_once_and_asks_again_before_the_mapping_goes() {
        let t0 = origin();
        let mut observers = Observers::new(&[SERVER], t0);
        let seen: SocketAddr = "100.64.0.7:4000".parse().unwrap();
        let question = ask(&mut observers, t0).unwrap();
        assert_eq!(
            answer(&mut observers, &question, "198.51.100.9:1".parse().unwrap(), seen, t0),
            None,
            "a stranger"
        );
        assert_eq!(answer(&mut observers, &question, SERVER, seen, t0), Some(true));
        assert_eq!(observers.mapped().collect::<Vec<_>>(), [seen]);
        assert_eq!(observers.poll_timeout(), Some(t0 + registration::EVERY));
        let again = ask(&mut observers, t0 + registration::EVERY).unwrap();
        assert_eq!(answer(&mut observers, &again, SERVER, seen, t0 + registration::EVERY), Some(false));
    }

    #[test]
    fn a_server_that_falls_silent_takes_its_address_with_it() {
        let t0 = origin();
        let mut observers = Observers::new(&[SERVER], t0);
        let question = ask(&mut observers, t0).unwrap();
        assert_eq!(
            answer(&mut observers, &question, SERVER, "100.64.0.7:4000".parse().unwrap(), t0),
            Some(true)
        );
        let (mut now, mut changed, mut sent) = (t0, false, 0);
        while !changed {
            now = observers.poll_timeout().unwrap();
            let mut outbox = Outbox::default();
            changed = observers.handle_timeout(now, &mut outbox, &mut Rng::new(Seed([0; 32])));
            sent += outbox.sends().len();
        }
        assert_eq!((observers.mapped().count(), sent), (0, 7), "RFC 8489 6.2.1: seven requests");
        assert_eq!(observers.poll_timeout(), Some(now + RETRY));
    }

    fn ask(observers: &mut Observers, now: Instant) -> Option<Vec<u8>> {
        let mut outbox = Outbox::default();
        let _ = observers.handle_timeout(now, &mut outbox, &mut Rng::new(Seed([0; 32])));
        outbox.sends().first().map(|sent| outbox.bytes(sent.range.clone()).to_vec())
    }

    fn answer(
        observers: &mut Observers,
        question: &[u8],
        from: SocketAddr,
        seen: SocketAddr,
        now: Instant,
    ) -> Option<bool> {
        let question = stun::Received::parse(question).unwrap();
        let answer = question.message.success().with(stun::Attribute::XorMappedAddress(seen));
        let answer = answer.emit(stun::Integrity::None);
        observers.handle_response(from, &stun::Received::parse(&answer).unwrap(), now)
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }
}
