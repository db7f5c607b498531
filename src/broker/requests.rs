//! What a registered member may ask, one function per message; introductions have a file of their own.

use crate::base::id::RequestId;
use crate::base::time::Now;
use crate::broker::candidates;
use crate::broker::directory::Learned;
use crate::broker::registry::Action;
use crate::broker::registry::Broker;
use crate::broker::registry::ConnId;
use crate::broker::registry::Ended;
use crate::broker::registry::Presence;
use crate::broker::registry::refuse;
use crate::broker::relays::Delays;
use crate::broker::renewal;
use crate::identity::names::MemberName;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::wire::broker::FromBroker;
use crate::wire::broker::Refusal;
use crate::wire::broker::Register;
use crate::wire::broker::Registered;
use crate::wire::broker::RelayDelay;
use crate::wire::broker::Target;
use crate::wire::enroll::SigningRequest;

/// Members in one `Listing`: 32 certificates are some 25 KiB, below every cap.
const LIST_PAGE: usize = 32;

impl Broker {
    pub(super) fn on_register(&mut self, conn: ConnId, register: Register, now: Now, out: &mut Vec<Action>) {
        let Some(peer) = self.conns.get(&conn) else { return };
        let (certificate, name) = (peer.certificate.clone(), peer.certificate.subject.uri.name.clone());
        let (registration, observed, local) = (peer.registration, peer.source, peer.local);
        match self.directory.learn(certificate.clone(), now.unix) {
            Ok(Learned::New) => out.push(Action::Remember(Box::new(certificate.clone()))),
            Ok(Learned::Known) => {}
            Err(conflict) => {
                self.counters.refused += 1;
                refuse(out, conn, RequestId(0), Refusal::Forbidden, &conflict.to_string());
                self.end(conn, Ended::Conflict, now, out);
                return;
            }
        }
        let roles = certificate.subject.roles;
        let relay = match (roles.relay, roles.member) {
            (false, _) => Vec::new(),
            // A member's own ports are not those of well-known services.
            (true, true) => candidates::fit_for_members(&register.relay, |ip| self.is_inside(ip)),
            (true, false) => candidates::fit_for_relays(&register.relay, |ip| self.is_inside(ip)),
        };
        let presence = Presence {
            candidates: candidates::fit_for_members(&register.candidates, |ip| self.is_inside(ip)),
            profile: register.profile,
            relay,
            delays: Delays::new(),
        };
        let relays = !presence.relay.is_empty();
        self.relays_changed |= relays;
        if let Some(peer) = self.conns.get_mut(&conn) {
            peer.presence = Some(presence);
        }
        if relays {
            self.relaying.insert(name.clone());
        } else {
            self.relaying.remove(&name);
        }
        if let Some(old) = self.present.insert(name.clone(), conn).filter(|old| *old != conn) {
            let text = "the same member connected from elsewhere";
            refuse(out, old, RequestId(0), Refusal::Forbidden, text);
            self.end(old, Ended::Replaced, now, out);
        }
        if register.watch {
            self.watchers.insert(conn);
        } else {
            self.watchers.remove(&conn);
        }
        self.counters.registered += 1;
        let (udp, stun) = (self.udp_for(local), self.stun.clone());
        let forge = self.settings.forge;
        let registered = Registered { registration, udp, stun, observed, time: now.unix, forge };
        out.push(Action::Send(conn, FromBroker::Registered(registered)));
        self.tell_relays(&[conn], out);
        if register.revocations < self.revocations.version {
            out.push(Action::Send(conn, FromBroker::Revocations(self.signed_revocations.clone())));
        }
        self.on_changed(&name, now, out);
    }

    pub(super) fn on_update(
        &mut self,
        conn: ConnId,
        claimed: &[Candidate],
        profile: Profile,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let fit = candidates::fit_for_members(claimed, |ip| self.is_inside(ip));
        let Some(peer) = self.conns.get_mut(&conn) else { return };
        let Some(presence) = peer.presence.as_mut() else { return };
        let changed = presence.candidates != fit || presence.profile != profile;
        (presence.candidates, presence.profile) = (fit, profile);
        if changed {
            let name = peer.certificate.subject.uri.name.clone();
            self.on_changed(&name, now, out);
        }
    }

    pub(super) fn on_delays(&mut self, conn: ConnId, delays: Vec<RelayDelay>) {
        let Some(presence) = self.conns.get_mut(&conn).and_then(|peer| peer.presence.as_mut()) else {
            return;
        };
        presence.delays = delays.into_iter().map(|delay| (delay.name, delay.rtt)).collect();
    }

    pub(super) fn on_lookup(
        &mut self,
        conn: ConnId,
        request: RequestId,
        target: &Target,
        out: &mut Vec<Action>,
    ) {
        match self.directory.find(target) {
            Some((name, known)) => {
                let member = self.record(name, known);
                out.push(Action::Send(conn, FromBroker::Found { request, member }));
            }
            None => self.refuse(conn, request, Refusal::NotFound, "no such member", out),
        }
    }

    pub(super) fn on_list(
        &self,
        conn: ConnId,
        request: RequestId,
        after: Option<&MemberName>,
        out: &mut Vec<Action>,
    ) {
        let mut all = self.directory.after(after).filter(|(_, k)| k.certificate.subject.roles.member);
        let members = all.by_ref().take(LIST_PAGE).map(|(name, known)| self.record(name, known)).collect();
        let more = all.next().is_some();
        out.push(Action::Send(conn, FromBroker::Listing { request, members, more }));
    }

    pub(super) fn on_renew(
        &mut self,
        conn: ConnId,
        request: RequestId,
        csr: &[u8],
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(peer) = self.conns.get(&conn) else { return };
        let name = peer.certificate.subject.uri.name.clone();
        let Ok(csr) = SigningRequest::parse(csr) else {
            self.refuse(conn, request, Refusal::Malformed, "not a signing request", out);
            return;
        };
        // The newest certificate decides whether one is due, not the one that this connection began with.
        let current = self.directory.get(&name).map_or(&peer.certificate, |known| &known.certificate);
        if let Err((why, text)) = renewal::check(current, &csr, now.unix) {
            self.refuse(conn, request, why, text, out);
            return;
        }
        let (subject, key) = (Box::new(current.subject.clone()), current.key);
        if self.limits_of(&name, now).renewals.take(now.instant) {
            out.push(Action::Renew { conn, request, subject, key });
        } else {
            self.counters.rate_limited += 1;
            refuse(out, conn, request, Refusal::TooMany, "too many renewals: wait ten minutes");
        }
    }
}
