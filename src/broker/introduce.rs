//! Introductions: one `Connect` becomes an offer to both sides, and a few handshake messages may follow through here.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::id::RelaySession;
use crate::base::id::RequestId;
use crate::base::time::Now;
use crate::broker::forge::Meeting;
use crate::broker::registry::Action;
use crate::broker::registry::Broker;
use crate::broker::registry::ConnId;
use crate::broker::relays;
use crate::broker::relays::choose_relays;
use crate::broker::start::Start;
use crate::identity::names::MemberName;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MAX_NOISE;
use crate::wire::broker::Offer;
use crate::wire::broker::Refusal;
use crate::wire::broker::RelayOffer;
use crate::wire::broker::Target;

/// How long an attempt may still use the broker: punching is over within ten seconds, or has failed.
pub(super) const ATTEMPT_LIFE: Duration = Duration::from_secs(30);
/// Handshake messages that each side may send through the broker in one attempt: a response, a cookie, a second try of
/// both. More is data.
pub(super) const MAX_CONVEYED: u8 = 4;

/// Introductions that are not forgotten yet.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    open: BTreeMap<AttemptId, Attempt>,
    /// In order of expiry, which is the order in which they were made.
    expiry: VecDeque<(Instant, AttemptId)>,
    load: BTreeMap<MemberName, u32>,
}

#[derive(Debug)]
struct Attempt {
    sides: [MemberName; 2],
    conveyed: [u8; 2],
    relays: Vec<MemberName>,
    start: Start,
    meeting: Meeting,
}

impl Attempts {
    fn open(&mut self, id: AttemptId, sides: [MemberName; 2], relays: Vec<MemberName>, now: Instant) {
        for relay in &relays {
            *self.load.entry(relay.clone()).or_default() += 1;
        }
        let (start, meeting) = (Start::default(), Meeting::default());
        self.open.insert(id, Attempt { sides, conveyed: [0; 2], relays, start, meeting });
        self.expiry.push_back((now + ATTEMPT_LIFE, id));
    }

    /// Forgets what is over.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, id)) = self.expiry.pop_front_if(|(at, _)| *at <= now) {
            for relay in self.open.remove(&id).map(|attempt| attempt.relays).unwrap_or_default() {
                if let Some(load) = self.load.get_mut(&relay) {
                    *load = load.saturating_sub(1);
                }
            }
        }
        self.load.retain(|_, load| *load > 0);
    }

    /// How many open attempts were offered a relay.
    pub(super) fn load_of(&self, relay: &MemberName) -> u32 {
        self.load.get(relay).copied().unwrap_or(0)
    }

    /// What is kept of the start of `id`'s TCP punching, who takes part, and whether `from` is the second of them.
    pub(super) fn start_of(
        &mut self,
        id: AttemptId,
        from: &MemberName,
    ) -> Result<(&mut Start, [MemberName; 2], bool), Refusal> {
        let attempt = self.open.get_mut(&id).ok_or(Refusal::NotFound)?;
        let second = attempt.is_second(from)?;
        Ok((&mut attempt.start, attempt.sides.clone(), second))
    }

    /// The same of what both said of the SYNs that they sent.
    pub(super) fn meeting_of(
        &mut self,
        id: AttemptId,
        from: &MemberName,
    ) -> Result<(&mut Meeting, [MemberName; 2], bool), Refusal> {
        let attempt = self.open.get_mut(&id).ok_or(Refusal::NotFound)?;
        let second = attempt.is_second(from)?;
        Ok((&mut attempt.meeting, attempt.sides.clone(), second))
    }

    /// The side that `from`'s next message goes to.
    fn convey(&mut self, id: AttemptId, from: &MemberName) -> Result<&MemberName, Refusal> {
        let attempt = self.open.get_mut(&id).ok_or(Refusal::NotFound)?;
        let second = attempt.is_second(from)?;
        let [a, b] = &attempt.sides;
        let [sent_by_a, sent_by_b] = &mut attempt.conveyed;
        let (other, sent) = if second { (a, sent_by_b) } else { (b, sent_by_a) };
        if *sent >= MAX_CONVEYED {
            return Err(Refusal::TooMany);
        }
        *sent += 1;
        Ok(other)
    }
}

impl Attempt {
    /// Whether `member` is the side that was asked for. Whoever is neither gets the same answer as for an attempt that
    /// never was.
    fn is_second(&self, member: &MemberName) -> Result<bool, Refusal> {
        match &self.sides {
            [first, _] if first == member => Ok(false),
            [_, second] if second == member => Ok(true),
            _ => Err(Refusal::NotFound),
        }
    }
}

impl Broker {
    pub(super) fn introduce(
        &mut self,
        conn: ConnId,
        request: RequestId,
        target: &Target,
        noise: Vec<u8>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(asker) = self.conns.get(&conn) else { return };
        let asker_name = asker.certificate.subject.uri.name.clone();
        if !asker.certificate.subject.roles.member {
            return self.refuse(conn, request, Refusal::Forbidden, "only members are introduced", out);
        }
        if noise.len() > MAX_NOISE {
            return self.refuse(conn, request, Refusal::Malformed, "the handshake message is too long", out);
        }
        let found = self.directory.find(target).filter(|(_, k)| k.certificate.subject.roles.member);
        let Some(name) = found.map(|(name, _)| name.clone()) else {
            return self.refuse(conn, request, Refusal::NotFound, "no such member", out);
        };
        if name == asker_name {
            return self.refuse(conn, request, Refusal::Malformed, "that is yourself", out);
        }
        let Some((other, _)) = self.connection_of(&name) else {
            return self.refuse(conn, request, Refusal::Offline, "it is not connected to this broker", out);
        };

        let attempt = AttemptId(self.rng.bytes());
        let available = self.relays();
        let delays = [&asker_name, &name].map(|side| self.delays_of(side));
        let chosen = choose_relays(&available, [&asker_name, &name], delays);
        let sessions: Vec<RelaySession> = chosen.iter().map(|_| RelaySession(self.rng.bytes())).collect();
        let relays_for = |side: u8, holder: ConnId| -> Vec<RelayOffer> {
            let Some(holder) = self.conns.get(&holder) else { return Vec::new() };
            let key = &self.settings.key;
            let each = chosen.iter().zip(&sessions);
            let offer = |(relay, session): (&&relays::Relay, &RelaySession)| {
                let (cert, at) = (&holder.certificate, holder.local.ip());
                relays::offer(relay, *session, side, cert, at, key, now.unix)
            };
            each.map(offer).collect()
        };
        let to_asker = self.offer(attempt, Some(request), &name, relays_for(0, conn), Vec::new());
        let to_other = self.offer(attempt, None, &asker_name, relays_for(1, other), noise);
        let (Some(to_asker), Some(to_other)) = (to_asker, to_other) else { return };
        let names = chosen.iter().map(|relay| relay.name().clone()).collect();
        self.attempts.open(attempt, [asker_name, name], names, now.instant);
        self.counters.introduced += 1;
        out.push(Action::Send(other, FromBroker::Offer(to_other)));
        out.push(Action::Send(conn, FromBroker::Offer(to_asker)));
    }

    pub(super) fn convey(&mut self, conn: ConnId, attempt: AttemptId, noise: Vec<u8>, out: &mut Vec<Action>) {
        let Some(from) = self.conns.get(&conn).map(|c| c.certificate.subject.uri.name.clone()) else {
            return;
        };
        if noise.len() > MAX_NOISE {
            let text = "the handshake message is too long";
            return self.refuse(conn, RequestId(0), Refusal::Malformed, text, out);
        }
        let to = self.attempts.convey(attempt, &from).cloned();
        match to.map(|name| self.connection_of(&name).map(|(other, _)| other)) {
            Ok(Some(other)) => {
                self.counters.conveyed += 1;
                out.push(Action::Send(other, FromBroker::Conveyed { attempt, noise }));
            }
            Ok(None) => self.refuse(conn, RequestId(0), Refusal::Offline, "the other side is gone", out),
            Err(why) => {
                let text = "no such introduction, or too many messages for it";
                self.refuse(conn, RequestId(0), why, text, out);
            }
        }
    }

    /// One side's half of an introduction to `peer`.
    fn offer(
        &self,
        attempt: AttemptId,
        request: Option<RequestId>,
        peer: &MemberName,
        relays: Vec<RelayOffer>,
        noise: Vec<u8>,
    ) -> Option<Offer> {
        let (_, conn) = self.connection_of(peer)?;
        Some(Offer {
            attempt,
            request,
            peer: self.record(peer, self.directory.get(peer)?),
            candidates: self.candidates_of(conn),
            profile: conn.presence.as_ref()?.profile,
            relays,
            noise,
        })
    }
}
