//! STUNT-1 (Guha and Francis 2005; Gaballo's thesis 3.4.3): answers to two members' SYNs, each in the other's name.
//!
//! Both SYNs have opened their own NATs and died behind them. A SYN-ACK that comes from where the SYN went, with the number
//! that the other side begins with, makes each kernel believe that it has met the other one; so it has from then on. No NAT
//! refuses that, not even one that never lets a SYN in.
//!
//! Packets with foreign sources are dangerous in wrong hands, so: nothing without the owner's leave, nothing but one SYN-ACK
//! to each of two members of one introduction that both said in the same round that they dialled the other, nothing to or
//! from an endpoint that was not seen here less than [`LIFE`] ago, as the source of a connection of that very member.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::id::RequestId;
use crate::base::schedule::Bucket;
use crate::base::time::Now;
use crate::broker::introduce::ATTEMPT_LIFE;
use crate::broker::registry::Action;
use crate::broker::registry::Broker;
use crate::broker::registry::ConnId;
use crate::broker::start::MAX_READY;
use crate::identity::names::MemberName;
use crate::wire::broker::FromBroker;
use crate::wire::broker::Refusal;
use crate::wire::syn::Pair;
use crate::wire::syn::Syn;

/// How long an endpoint counts as seen: later the NAT may have given it to somebody else.
const LIFE: Duration = ATTEMPT_LIFE;
/// Endpoints of one member that are remembered: those of some attempts at once.
const MAX_LOOKED: usize = 16;
/// Forged answers to one member at once and per second: two rounds with each of a few peers, then one in 10 s.
pub(super) const OF_ONE: (u32, f64) = (8, 0.1);
/// Pairs of forged answers to all members: a broker is no cannon, whoever its members are.
const OF_ALL: (u32, f64) = (32, 4.0);
/// Largest segment that is promised in a member's name: whatever it promised itself.
const MAX_SEGMENT: u16 = u16::MAX;

/// What a member's TCP connections looked like from here.
#[derive(Debug, Default)]
pub(super) struct Looked(VecDeque<(Instant, SocketAddr)>);

impl Looked {
    pub(super) fn add(&mut self, source: SocketAddr, now: Instant) {
        self.0.retain(|(_, known)| *known != source);
        if self.0.len() >= MAX_LOOKED {
            self.0.pop_front();
        }
        self.0.push_back((now, source));
    }

    fn has(&self, source: SocketAddr, now: Instant) -> bool {
        self.0.iter().any(|(at, known)| *known == source && now.saturating_duration_since(*at) < LIFE)
    }
}

/// A member's word that it has dialled.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) round: u8,
    pub(super) forge: bool,
    pub(super) from: SocketAddr,
    pub(super) syn: Vec<u8>,
}

/// The SYNs of both sides of one introduction.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    sides: [Option<Word>; 2],
    said: [u8; 2],
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Word {
    round: u8,
    forge: bool,
    syn: Syn,
    header: Vec<u8>,
}

impl Meeting {
    /// One side's word; both words once they are of one round and want the same.
    fn say(&mut self, second: bool, word: Word) -> Result<Option<[Word; 2]>, Refusal> {
        let [first, other] = &mut self.sides;
        let [first_said, other_said] = &mut self.said;
        let (own, said) = if second { (other, other_said) } else { (first, first_said) };
        if *said >= MAX_READY {
            return Err(Refusal::TooMany);
        }
        *said += 1;
        *own = Some(word);
        match &self.sides {
            [Some(a), Some(b)] if (a.round, a.forge) == (b.round, b.forge) => {
                let both = [a.clone(), b.clone()];
                self.sides = [None, None];
                Ok(Some(both))
            }
            _ => Ok(None),
        }
    }
}

impl Broker {
    /// One side has sent a SYN to the other one.
    pub(super) fn on_dialled(
        &mut self,
        conn: ConnId,
        attempt: AttemptId,
        dialled: &Dialled,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        match self.dialled(conn, attempt, dialled, now) {
            Ok(None) => {}
            Ok(Some((pair, words))) => self.answer(attempt, pair, words, now, out),
            Err((why, text)) => self.refuse(conn, RequestId(0), why, text, out),
        }
    }

    #[expect(clippy::type_complexity, reason = "named nowhere else")]
    fn dialled(
        &mut self,
        conn: ConnId,
        attempt: AttemptId,
        dialled: &Dialled,
        now: Now,
    ) -> Result<Option<([MemberName; 2], [Word; 2])>, (Refusal, &'static str)> {
        let Some(peer) = self.conns.get(&conn) else { return Ok(None) };
        let &Dialled { round, forge, from, .. } = dialled;
        if forge && !self.settings.forge {
            return Err((
                Refusal::Forbidden,
                "this broker forges no answers: its owner may allow it ([broker] forge)",
            ));
        }
        if forge && !(from.is_ipv4() && peer.looked.has(from, now.instant)) {
            return Err((Refusal::Forbidden, "that endpoint was not seen here"));
        }
        // Where it went is where the other side says that it is.
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let syn = Syn::between(&dialled.syn, from, nowhere)
            .map_err(|_| (Refusal::Malformed, "that is no header of a SYN"))?;
        let word = Word { round, forge, syn, header: dialled.syn.clone() };
        let name = peer.certificate.subject.uri.name.clone();
        let lost = |why| (why, "no such introduction, or too many rounds of it");
        let (meeting, pair, second) = self.attempts.meeting_of(attempt, &name).map_err(lost)?;
        let both = meeting.say(second, word).map_err(lost)?;
        Ok(both.map(|words| (pair, words)))
    }

    /// Both have: each gets the answer in the other's name, or the other's SYN to make one itself.
    fn answer(
        &mut self,
        attempt: AttemptId,
        pair: [MemberName; 2],
        words: [Word; 2],
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let [first, second] = &words;
        let (round, forge) = (first.round, first.forge);
        if forge {
            if !self.may_forge(&pair, now) {
                self.counters.rate_limited += 1;
                for name in &pair {
                    if let Some((conn, _)) = self.connection_of(name) {
                        let text = "too many forged answers: wait a minute";
                        self.refuse(conn, RequestId(0), Refusal::TooMany, text, out);
                    }
                }
                return;
            }
            let mut met = Pair { first: first.syn, second: second.syn };
            (met.first.to, met.second.to) = (met.second.from, met.first.from);
            let packets = met.answers(MAX_SEGMENT);
            self.counters.forged += 1;
            out.push(Action::Forge { pair: pair.clone(), packets });
        }
        for (name, other) in pair.iter().zip([second, first]) {
            let syn = other.header.clone();
            self.tell(name, FromBroker::Dialled { attempt, round, forge, syn }, out);
        }
    }

    /// Whether the rates of both members and of all allow it; counts it then. Their own come first, so that whoever has
    /// used up his uses up nobody else's.
    fn may_forge(&mut self, pair: &[MemberName; 2], now: Now) -> bool {
        let own = pair.iter().all(|name| self.limits_of(name, now).forged.take(now.instant));
        let all = self.forged.get_or_insert_with(|| Bucket::new(OF_ALL.0, OF_ALL.1, now.instant));
        own && all.take(now.instant)
    }
}
