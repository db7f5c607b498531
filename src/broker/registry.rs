//! Who is connected, what they say about themselves, and who wants to hear of it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ipnetwork::Ipv4Network;
use ipnetwork::Ipv6Network;

use crate::base::addr::canonical;
use crate::base::id::RegistrationId;
use crate::base::id::RequestId;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::base::schedule::Bucket;
use crate::base::time::Now;
use crate::base::time::UnixTime;
use crate::broker::candidates;
use crate::broker::directory::Directory;
use crate::broker::directory::Known;
use crate::broker::forge;
use crate::broker::forge::Dialled;
use crate::broker::forge::Looked;
use crate::broker::introduce::Attempts;
use crate::broker::relays::Delays;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Subject;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberName;
use crate::identity::revocation::RevocationList;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MemberRecord;
use crate::wire::broker::Refusal;
use crate::wire::broker::ToBroker;

/// Requests of one member at once and per second, of all kinds together: a member that comes back with a hundred peers
/// lists them, looks a few up and conveys some handshakes.
const REQUESTS: (u32, f64) = (128, 32.0);
/// Introductions at once and per second: a member that starts up contacts some dozens of peers.
const CONNECTS: (u32, f64) = (32, 4.0);
/// Renewals: one, again if the answer was lost, then one in ten minutes; each is a signature and a disk write.
const RENEWALS: (u32, f64) = (3, 1.0 / 600.0);
/// Changes of one member that its watchers hear of: a roaming laptop changes a few times, a flapping NAT every second.
const CHANGES: (u32, f64) = (8, 0.2);
/// From a change among the relays until all members hear of it: when a broker starts, they come back one by one.
const RELAYS_AFTER: Duration = Duration::from_secs(5);

/// A connection, numbered by the engine, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// Why the broker ends a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The certificate was taken back.
    Revoked,
    /// The certificate ran out.
    Expired,
    /// The same member connected anew.
    Replaced,
    /// Did not follow the protocol.
    Misbehaved,
    /// Its certificate contradicts the directory.
    Conflict,
}

/// What the engine shall do, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Send a message.
    Send(ConnId, FromBroker),
    /// Send what is queued, then close.
    Close(ConnId, Ended),
    /// A certificate that was not in the directory: store it.
    Remember(Box<Certificate>),
    /// A member went: store when.
    Gone(MemberName, UnixTime),
    /// Send these IP packets, whose sources are not ours, and log for whom.
    Forge {
        /// The two members.
        pair: [MemberName; 2],
        /// Each with its destination.
        packets: [(IpAddr, Vec<u8>); 2],
    },
    /// Sign a fresh certificate for this subject, store it, and call [`Broker::handle_renewed`].
    Renew {
        /// Who asked.
        conn: ConnId,
        /// Its request.
        request: RequestId,
        /// What to sign; the Ed25519 key is that of the old certificate.
        subject: Box<Subject>,
        /// The Ed25519 key.
        key: [u8; 32],
    },
}

/// What a broker is told when it starts.
#[derive(Debug)]
pub struct Settings {
    /// For the tokens of relays: the key of the broker's certificate.
    pub key: SigningKey,
    /// The overlay's IPv4 prefix.
    pub prefix: Ipv4Network,
    /// The overlay's IPv6 prefix.
    pub prefix_v6: Ipv6Network,
    /// Where it takes UDP registrations, as seen from outside, if configured.
    pub advertised_udp: Vec<SocketAddr>,
    /// Port of its UDP registrations, for members that reach it at an address that nobody configured.
    pub udp_port: Option<u16>,
    /// Whether it forges SYN-ACKs for pairs of members that ask for it (STUNT-1).
    pub forge: bool,
}

/// One connection whose certificate was checked.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) certificate: Certificate,
    pub(super) source: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) registration: RegistrationId,
    /// Seen in UDP registrations, IPv4 and IPv6.
    pub(super) mapped: [Option<SocketAddr>; 2],
    /// What its TCP connections looked like, which it asked about.
    pub(super) looked: Looked,
    pub(super) presence: Option<Presence>,
}

/// What a registered member says about itself.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) candidates: Vec<Candidate>,
    pub(super) profile: Profile,
    pub(super) relay: Vec<Candidate>,
    pub(super) delays: Delays,
}

/// Rates of one member. They outlive its connections: who reconnects gets no new tokens.
#[derive(Debug)]
pub(super) struct Limits {
    requests: Bucket,
    connects: Bucket,
    pub(super) renewals: Bucket,
    changes: Bucket,
    pub(super) forged: Bucket,
}

/// Counts since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Registrations accepted.
    pub registered: u64,
    /// Introductions made.
    pub introduced: u64,
    /// Handshake messages handed on.
    pub conveyed: u64,
    /// Rounds of TCP punching that were begun.
    pub started: u64,
    /// Pairs of forged answers.
    pub forged: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests over a rate.
    pub rate_limited: u64,
}

/// The broker. See the [module](super).
#[derive(Debug)]
pub struct Broker {
    pub(super) settings: Settings,
    pub(super) rng: Rng,
    pub(super) directory: Directory,
    pub(super) conns: BTreeMap<ConnId, Conn>,
    by_registration: BTreeMap<RegistrationId, ConnId>,
    pub(super) present: BTreeMap<MemberName, ConnId>,
    pub(super) watchers: BTreeSet<ConnId>,
    /// Whoever is here and relays.
    pub(super) relaying: BTreeSet<MemberName>,
    /// Members have not heard of the relays as they are now, and when they will.
    pub(super) relays_changed: bool,
    relays_due: Option<Instant>,
    /// Changed more often than watchers hear of: they are told how it stands as soon as the member's rate allows.
    untold: BTreeSet<MemberName>,
    limits: BTreeMap<MemberName, Limits>,
    pub(super) attempts: Attempts,
    /// Rate of forged pairs of all members together; begins with the first.
    pub(super) forged: Option<Bucket>,
    pub(super) local_relays: Vec<(Certificate, Vec<Candidate>)>,
    pub(super) stun: Vec<SocketAddr>,
    pub(super) revocations: RevocationList,
    pub(super) signed_revocations: Vec<u8>,
    pub(super) counters: Counters,
}

impl Broker {
    /// A broker that knows `directory` and believes what `revocations` (with its signed bytes) leaves.
    #[must_use]
    pub fn new(
        settings: Settings,
        directory: Directory,
        revocations: RevocationList,
        signed: Vec<u8>,
        seed: Seed,
    ) -> Self {
        Self {
            settings,
            rng: Rng::new(seed),
            directory,
            conns: BTreeMap::new(),
            by_registration: BTreeMap::new(),
            present: BTreeMap::new(),
            watchers: BTreeSet::new(),
            relaying: BTreeSet::new(),
            relays_changed: false,
            relays_due: None,
            untold: BTreeSet::new(),
            limits: BTreeMap::new(),
            attempts: Attempts::default(),
            forged: None,
            local_relays: Vec::new(),
            stun: Vec::new(),
            revocations,
            signed_revocations: signed,
            counters: Counters::default(),
        }
    }

    /// A connection from `source` to `local` whose certificate is the network's and valid. Answers the name under
    /// which it registers by UDP; `None` if it is refused.
    pub fn handle_connected(
        &mut self,
        conn: ConnId,
        certificate: Certificate,
        source: SocketAddr,
        local: SocketAddr,
        out: &mut Vec<Action>,
    ) -> Option<RegistrationId> {
        if self.revocations.contains(&certificate.serial) {
            self.expel(conn, out);
            return None;
        }
        let registration = RegistrationId(self.rng.u64());
        self.by_registration.insert(registration, conn);
        let (source, local) = (canonical(source), canonical(local));
        self.conns.insert(
            conn,
            Conn {
                certificate,
                source,
                local,
                registration,
                mapped: [None; 2],
                looked: Looked::default(),
                presence: None,
            },
        );
        Some(registration)
    }

    /// A message on a connection.
    pub fn handle_message(&mut self, conn: ConnId, message: ToBroker, now: Now, out: &mut Vec<Action>) {
        let Some(peer) = self.conns.get(&conn) else { return };
        if peer.certificate.not_after < now.unix {
            refuse(out, conn, RequestId(0), Refusal::Forbidden, "your certificate has expired: enrol anew");
            self.end(conn, Ended::Expired, now, out);
            return;
        }
        let registered = peer.presence.is_some();
        let name = peer.certificate.subject.uri.name.clone();
        if !self.limits_of(&name, now).requests.take(now.instant) {
            self.counters.rate_limited += 1;
            let request = request_of(&message);
            refuse(out, conn, request, Refusal::TooMany, "too many requests: wait a few seconds");
            if !registered {
                // Only a registration makes one connection a member: others must not pile up beside it.
                self.end(conn, Ended::Misbehaved, now, out);
            }
            return;
        }
        match message {
            ToBroker::Register(register) => self.on_register(conn, register, now, out),
            _ if !registered => self.misbehaved(conn, "register first", now, out),
            ToBroker::Ping { nonce } => out.push(Action::Send(conn, FromBroker::Pong { nonce })),
            ToBroker::Redeem { .. } => {
                self.misbehaved(conn, "an invite is redeemed without a certificate", now, out);
            }
            ToBroker::Update { candidates, profile } => self.on_update(conn, &candidates, profile, now, out),
            ToBroker::Lookup { request, target } => self.on_lookup(conn, request, &target, out),
            ToBroker::List { request, after } => self.on_list(conn, request, after.as_ref(), out),
            ToBroker::Connect { request, target, noise } => {
                if self.limits_of(&name, now).connects.take(now.instant) {
                    self.introduce(conn, request, &target, noise, now, out);
                } else {
                    self.counters.rate_limited += 1;
                    let text = "too many introductions: wait a few seconds";
                    refuse(out, conn, request, Refusal::TooMany, text);
                }
            }
            ToBroker::Convey { attempt, noise } => self.convey(conn, attempt, noise, out),
            ToBroker::Ready { attempt, round, endpoints, rtt } => {
                self.on_ready(conn, attempt, round, &endpoints, rtt, out);
            }
            ToBroker::Delays(delays) => self.on_delays(conn, delays),
            ToBroker::Dialled { attempt, round, forge, from, syn } => {
                self.on_dialled(conn, attempt, &Dialled { round, forge, from, syn }, now, out);
            }
            ToBroker::Renew { request, csr } => self.on_renew(conn, request, &csr, now, out),
        }
    }

    /// A connection is gone.
    pub fn handle_closed(&mut self, conn: ConnId, now: Now, out: &mut Vec<Action>) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        self.by_registration.remove(&gone.registration);
        self.watchers.remove(&conn);
        let name = gone.certificate.subject.uri.name;
        if self.present.get(&name) == Some(&conn) {
            self.present.remove(&name);
            self.relaying.remove(&name);
            self.directory.seen(&name, now.unix);
            out.push(Action::Gone(name.clone(), now.unix));
            self.on_changed(&name, now, out);
        }
    }

    /// An authenticated UDP registration came in from `source`.
    pub fn handle_mapped(
        &mut self,
        registration: RegistrationId,
        source: SocketAddr,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let source = canonical(source);
        let Some(conn) = self.by_registration.get(&registration) else { return };
        let Some(peer) = self.conns.get_mut(conn) else { return };
        let slot = if source.is_ipv4() { &mut peer.mapped[0] } else { &mut peer.mapped[1] };
        if slot.replace(source) != Some(source) && peer.presence.is_some() {
            let name = peer.certificate.subject.uri.name.clone();
            self.on_changed(&name, now, out);
        }
    }

    /// A member asked, over a TCP connection of its own, what that looks like: `source`.
    pub fn handle_looked(&mut self, registration: RegistrationId, source: SocketAddr, now: Now) {
        if let Some(conn) = self.by_registration.get(&registration)
            && let Some(peer) = self.conns.get_mut(conn)
        {
            peer.looked.add(canonical(source), now.instant);
        }
    }

    /// A newer revocation list, already checked. Revoked members are cut off, everybody hears of it.
    pub fn handle_revocations(
        &mut self,
        list: RevocationList,
        signed: Vec<u8>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        if list.version <= self.revocations.version {
            return;
        }
        self.revocations = list;
        self.signed_revocations = signed;
        for conn in self.conns.keys() {
            out.push(Action::Send(*conn, FromBroker::Revocations(self.signed_revocations.clone())));
        }
        let revoked = self.conns.iter().filter(|(_, c)| self.revocations.contains(&c.certificate.serial));
        let revoked: Vec<ConnId> = revoked.map(|(id, _)| *id).collect();
        for conn in revoked {
            refuse(out, conn, RequestId(0), Refusal::Forbidden, REVOKED);
            self.end(conn, Ended::Revoked, now, out);
        }
        let forgotten: Vec<MemberName> = self
            .directory
            .after(None)
            .filter(|(_, known)| self.revocations.contains(&known.certificate.serial))
            .map(|(name, _)| name.clone())
            .collect();
        for name in forgotten {
            self.directory.forget(&name);
        }
        self.local_relays.retain(|(certificate, _)| !self.revocations.contains(&certificate.serial));
    }

    /// The engine enrolled a member: it may be looked up from now on, although it is not there yet.
    pub fn handle_enrolled(&mut self, certificate: Certificate, now: Now) {
        // A conflict is not possible: the store that gave out name and address holds more than the directory.
        let _ = self.directory.learn(certificate, now.unix);
    }

    /// The engine signed, or did not sign, what [`Action::Renew`] ordered.
    pub fn handle_renewed(
        &mut self,
        conn: ConnId,
        request: RequestId,
        renewed: Result<Certificate, (Refusal, String)>,
        out: &mut Vec<Action>,
    ) {
        match renewed {
            Ok(certificate) => {
                let der = certificate.der.clone();
                // It names the same holder and the same addresses: nothing to conflict with.
                let _ = self.directory.learn(certificate, UnixTime::default());
                out.push(Action::Send(conn, FromBroker::Renewed { request, certificate: der }));
            }
            Err((why, text)) => {
                self.counters.refused += 1;
                refuse(out, conn, request, why, &text);
            }
        }
    }

    /// The STUN servers that members are told of from now on; see [`crate::wire::broker::Registered::stun`].
    pub fn handle_stun_servers(&mut self, servers: Vec<SocketAddr>) {
        self.stun = servers;
    }

    /// A relay in the broker's own process: needs no connection to be healthy.
    pub fn handle_local_relay(&mut self, certificate: Certificate, endpoints: &[Candidate]) {
        let endpoints = candidates::fit_for_relays(endpoints, |ip| self.is_inside(ip));
        self.local_relays.retain(|(known, _)| known.subject.uri.name != certificate.subject.uri.name);
        self.local_relays.push((certificate, endpoints));
        self.relays_changed = true;
    }

    /// Once a second or so: forgets attempts and quiet members' limits, ends connections whose certificate ran out, tells
    /// watchers what they could not be told before.
    pub fn handle_timeout(&mut self, now: Now, out: &mut Vec<Action>) {
        self.attempts.expire(now.instant);
        let expired = self.conns.iter().filter(|(_, c)| c.certificate.not_after < now.unix);
        let expired: Vec<ConnId> = expired.map(|(id, _)| *id).collect();
        for conn in expired {
            refuse(out, conn, RequestId(0), Refusal::Forbidden, "your certificate has expired: enrol anew");
            self.end(conn, Ended::Expired, now, out);
        }
        for name in self.untold.clone() {
            self.on_changed(&name, now, out);
        }
        if std::mem::take(&mut self.relays_changed) {
            self.relays_due.get_or_insert(now.instant + RELAYS_AFTER);
        }
        if self.relays_due.take_if(|due| *due <= now.instant).is_some() {
            let all: Vec<ConnId> = self.present.values().copied().collect();
            self.tell_relays(&all, out);
        }
        let present = &self.present;
        self.limits.retain(|name, l| {
            let quiet = [&l.requests, &l.connects, &l.renewals, &l.changes, &l.forged];
            present.contains_key(name) || quiet.iter().any(|bucket| !bucket.is_full(now.instant))
        });
    }

    /// How many members and relays are registered.
    #[must_use]
    pub fn online(&self) -> usize {
        self.present.len()
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The revocation list in force.
    #[must_use]
    pub fn revocations(&self) -> &RevocationList {
        &self.revocations
    }

    /// Every member, in order of name, and whether it is online.
    pub fn members(&self) -> impl Iterator<Item = (&MemberName, &Known, bool)> {
        self.directory.after(None).map(|(name, known)| (name, known, self.present.contains_key(name)))
    }

    /// Who has a WireGuard key.
    #[must_use]
    pub fn holder_of(&self, key: &WgPublic) -> Option<&MemberName> {
        self.directory.holder_of(key)
    }

    pub(super) fn on_changed(&mut self, name: &MemberName, now: Now, out: &mut Vec<Action>) {
        if self.limits_of(name, now).changes.take(now.instant) {
            self.untold.remove(name);
            self.tell_watchers(name, out);
        } else {
            self.untold.insert(name.clone());
        }
    }

    fn tell_watchers(&self, name: &MemberName, out: &mut Vec<Action>) {
        let Some(known) = self.directory.get(name).filter(|k| k.certificate.subject.roles.member) else {
            return;
        };
        let record = self.record(name, known);
        let own = self.present.get(name);
        for watcher in self.watchers.iter().filter(|watcher| Some(*watcher) != own) {
            out.push(Action::Send(*watcher, FromBroker::Changed(record.clone())));
        }
    }

    fn expel(&self, conn: ConnId, out: &mut Vec<Action>) {
        out.push(Action::Send(conn, FromBroker::Revocations(self.signed_revocations.clone())));
        refuse(out, conn, RequestId(0), Refusal::Forbidden, REVOKED);
        out.push(Action::Close(conn, Ended::Revoked));
    }

    fn misbehaved(&mut self, conn: ConnId, text: &str, now: Now, out: &mut Vec<Action>) {
        self.counters.refused += 1;
        refuse(out, conn, RequestId(0), Refusal::Malformed, text);
        self.end(conn, Ended::Misbehaved, now, out);
    }

    pub(super) fn end(&mut self, conn: ConnId, why: Ended, now: Now, out: &mut Vec<Action>) {
        out.push(Action::Close(conn, why));
        self.handle_closed(conn, now, out);
    }

    pub(super) fn refuse(
        &mut self,
        conn: ConnId,
        request: RequestId,
        why: Refusal,
        text: &str,
        out: &mut Vec<Action>,
    ) {
        self.counters.refused += 1;
        refuse(out, conn, request, why, text);
    }

    pub(super) fn record(&self, name: &MemberName, known: &Known) -> MemberRecord {
        MemberRecord {
            certificate: known.certificate.der.clone(),
            online: self.present.contains_key(name),
            last_seen: known.last_seen,
        }
    }

    /// The connection of a member that is registered.
    pub(super) fn connection_of(&self, name: &MemberName) -> Option<(ConnId, &Conn)> {
        let id = self.present.get(name)?;
        self.conns.get(id).map(|conn| (*id, conn))
    }

    pub(super) fn limits_of(&mut self, name: &MemberName, now: Now) -> &mut Limits {
        let bucket = |(burst, per_second): (u32, f64)| Bucket::new(burst, per_second, now.instant);
        self.limits.entry(name.clone()).or_insert_with(|| Limits {
            requests: bucket(REQUESTS),
            connects: bucket(CONNECTS),
            renewals: bucket(RENEWALS),
            changes: bucket(CHANGES),
            forged: bucket(forge::OF_ONE),
        })
    }
}

/// What a revoked member is told.
const REVOKED: &str = "your certificate was revoked: ask the administrator for a new invite";

pub(super) fn refuse(out: &mut Vec<Action>, conn: ConnId, request: RequestId, why: Refusal, text: &str) {
    out.push(Action::Send(conn, FromBroker::Refused { request, why, text: text.to_owned() }));
}

fn request_of(message: &ToBroker) -> RequestId {
    match message {
        ToBroker::Lookup { request, .. }
        | ToBroker::List { request, .. }
        | ToBroker::Connect { request, .. }
        | ToBroker::Renew { request, .. } => *request,
        ToBroker::Redeem { .. }
        | ToBroker::Register(_)
        | ToBroker::Update { .. }
        | ToBroker::Convey { .. }
        | ToBroker::Ready { .. }
        | ToBroker::Delays(_)
        | ToBroker::Dialled { .. }
        | ToBroker::Ping { .. } => RequestId(0),
    }
}
