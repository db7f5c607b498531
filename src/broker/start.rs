//! The start of a round of TCP punching, or of a search for UDP ports: both sides say that they are ready, and are told to begin at the same moment.
//!
//! Half a round trip ahead is enough for a SYN of ours to have opened our NAT before the peer's arrives (libp2p's DCUtR
//! does it between the two members; here the broker, which both have a connection to, does it for them).

use std::net::SocketAddr;

use crate::base::id::AttemptId;
use crate::base::id::RequestId;
use crate::broker::candidates;
use crate::broker::registry::Action;
use crate::broker::registry::Broker;
use crate::broker::registry::ConnId;
use crate::identity::names::MemberName;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MAX_WAIT;
use crate::wire::broker::Refusal;

/// Times that one side may say it is ready, in one attempt: the rounds of a search, of a TCP plan, and one more.
pub(super) const MAX_READY: u8 = 8;

/// Who is ready for which round.
#[derive(Debug, Default)]
pub(super) struct Start {
    sides: [Waiting; 2],
}

#[derive(Debug, Default)]
struct Waiting {
    /// 0: for none.
    round: u8,
    endpoints: Vec<SocketAddr>,
    /// Milliseconds to the broker and back.
    rtt: u16,
    said: u8,
}

/// What a word of one side leads to.
#[derive(PartialEq, Eq, Debug)]
enum Next {
    /// The other one is told that it is awaited.
    Call,
    /// Both begin: where the first and where the second shall dial, and how long each waits, milliseconds.
    Begin([(Vec<SocketAddr>, u16); 2]),
}

impl Start {
    fn ready(
        &mut self,
        second: bool,
        round: u8,
        endpoints: Vec<SocketAddr>,
        rtt: u16,
    ) -> Result<Next, Refusal> {
        let [first, other] = &mut self.sides;
        let (own, other) = if second { (other, first) } else { (first, other) };
        if own.said >= MAX_READY {
            return Err(Refusal::TooMany);
        }
        *own = Waiting { round, endpoints, rtt, said: own.said + 1 };
        if own.round != other.round || round == 0 {
            return Ok(Next::Call);
        }
        let [first, second] = &mut self.sides;
        // The later word reaches the nearer side sooner, by half of what the round trips differ.
        let wait = |own: u16, other: u16| (other.saturating_sub(own) / 2).min(MAX_WAIT);
        let waits = [wait(first.rtt, second.rtt), wait(second.rtt, first.rtt)];
        (first.round, second.round) = (0, 0);
        let for_first = std::mem::take(&mut second.endpoints);
        let for_second = std::mem::take(&mut first.endpoints);
        Ok(Next::Begin([(for_first, waits[0]), (for_second, waits[1])]))
    }
}

impl Broker {
    /// One side is ready for a round.
    pub(super) fn on_ready(
        &mut self,
        conn: ConnId,
        attempt: AttemptId,
        round: u8,
        endpoints: &[SocketAddr],
        rtt: u16,
        out: &mut Vec<Action>,
    ) {
        let Some(from) = self.conns.get(&conn).map(|c| c.certificate.subject.uri.name.clone()) else {
            return;
        };
        let endpoints = candidates::fit_endpoints(endpoints, |ip| self.is_inside(ip));
        let said = self.attempts.start_of(attempt, &from).and_then(|(start, sides, second)| {
            Ok((start.ready(second, round, endpoints, rtt)?, sides, second))
        });
        match said {
            Ok((Next::Call, sides, second)) => {
                let [a, b] = &sides;
                let called = if second { a } else { b };
                self.tell(called, FromBroker::Awaited { attempt, round }, out);
            }
            Ok((Next::Begin(starts), sides, _)) => {
                self.counters.started += 1;
                for (name, (endpoints, wait)) in sides.iter().zip(starts) {
                    self.tell(name, FromBroker::Go { attempt, round, endpoints, wait }, out);
                }
            }
            Err(why) => {
                let text = "no such introduction, or too many rounds of it";
                self.refuse(conn, RequestId(0), why, text, out);
            }
        }
    }

    pub(super) fn tell(&self, name: &MemberName, message: FromBroker, out: &mut Vec<Action>) {
        if let Some((conn, _)) = self.connection_of(name) {
            out.push(Action::Send(conn, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_to_be_ready_starts_both_at_one_moment() {
        let (a, b) = (vec![at(1)], vec![at(2), at(3)]);
        let mut start = Start::default();
        assert_eq!(start.ready(false, 1, a.clone(), 40), Ok(Next::Call));
        let begin = Next::Begin([(b.clone(), 60), (a.clone(), 0)]);
        assert_eq!(start.ready(true, 1, b.clone(), 160), Ok(begin), "the far side hears it 60 ms later");
        assert_eq!(start.ready(true, 1, b, 160), Ok(Next::Call), "a round begins once");
        assert_eq!(start.ready(false, 2, a, 40), Ok(Next::Call), "they are in different rounds");
    }

    #[test]
    fn nobody_waits_longer_than_a_second_and_nobody_speaks_for_ever() {
        let mut start = Start::default();
        assert_eq!(start.ready(false, 1, vec![], 0), Ok(Next::Call));
        assert_eq!(start.ready(true, 1, vec![], u16::MAX), Ok(Next::Begin([(vec![], 1000), (vec![], 0)])));
        for round in 0..7 {
            assert_eq!(start.ready(false, round, vec![], 0), Ok(Next::Call));
        }
        assert_eq!(start.ready(false, 1, vec![], 0), Err(Refusal::TooMany));
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 5], port))
    }
}
