//! What passes between a node and its broker: who is there, introductions, handshakes, renewal, revocation.
//!
//! The broker is believed about who is online and where; never about who somebody is. Every certificate that it hands
//! over is verified here against the network's CA and the revocation list.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::RequestId;
use crate::base::time::Now;
use crate::base::time::UnixTime;
use crate::identity::certificate::CLOCK_SKEW;
use crate::identity::certificate::CertError;
use crate::identity::certificate::Certificate;
use crate::identity::names::MemberName;
use crate::identity::revocation::RevocationList;
use crate::node::Node;
use crate::node::directory::Known;
use crate::node::inbound::Origin;
use crate::node::output::Notice;
use crate::node::output::Order;
use crate::node::output::Output;
use crate::node::peers::Kind;
use crate::node::peers::Peer;
use crate::node::peers::PeerId;
use crate::node::registration::Registration;
use crate::path::Introduction;
use crate::path::RelayGrant;
use crate::punch::keys::Side;
use crate::punch::look::Observer;
use crate::punch::plan;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MemberRecord;
use crate::wire::broker::Offer;
use crate::wire::broker::Refusal;
use crate::wire::broker::Registered;
use crate::wire::broker::RelayOffer;
use crate::wire::broker::Target;
use crate::wire::broker::ToBroker;
use crate::wire::dress::Dress;

/// Between tries to renew our certificate.
const RENEW_EVERY: Duration = Duration::from_secs(3600);
/// Our clock is not believed any more when it is so far from the broker's; relays forgive five times that.
const CLOCK_DOUBT: Duration = Duration::from_secs(60);
/// Addresses of the peer to which a handshake's answer goes beside its way through the broker.
const ANSWERS_DIRECT: usize = 3;
/// Relays whose certificates are remembered, so that not every introduction checks their signatures again.
const MAX_RELAYS_KNOWN: usize = 16;
/// Questions to the broker whose answer is still awaited, at most; the oldest is forgotten first.
const MAX_PENDING: usize = 1024;

/// The link to the broker has come up and we are registered.
#[derive(Clone, Debug)]
pub struct LinkUp {
    /// The broker's TCP address.
    pub broker: SocketAddr,
    /// The broker's name, from its certificate.
    pub name: MemberName,
    /// Key of UDP registrations, from the TLS session.
    pub key: [u8; 32],
    /// The Ed25519 key of its certificate, which signs the tokens of relays.
    pub signer: [u8; 32],
    /// The broker's answer.
    pub registered: Registered,
}

/// The broker's clock, as it was told. It goes on by the monotonic clock, so that setting our own changes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct BrokerClock {
    told: UnixTime,
    at: Instant,
}

impl BrokerClock {
    /// What it shows now.
    fn shows(self, now: Now) -> UnixTime {
        self.told.plus(now.instant.saturating_duration_since(self.at))
    }

    /// The moment by the clock that relays are likely to agree with: ours, unless it is far off.
    pub(super) fn judged(self, now: Now) -> Now {
        let theirs = self.shows(now);
        let off = theirs.since(now.unix).max(now.unix.since(theirs));
        if off > CLOCK_DOUBT { Now { unix: theirs, ..now } } else { now }
    }

    /// What is wrong with our clock, in words, if it is off by more than certificates and relays forgive.
    pub(super) fn complaint(self, now: Now) -> Option<String> {
        let theirs = self.shows(now);
        let (behind, ahead) = (theirs.since(now.unix), now.unix.since(theirs));
        let off = behind.max(ahead);
        let way = if behind > ahead { "behind" } else { "ahead of" };
        (off > CLOCK_SKEW).then(|| {
            let minutes = (off.as_secs() + 30) / 60;
            format!("this machine's clock is {minutes} minutes {way} the broker's: set it, or certificates will be refused")
        })
    }
}

/// What a node knows of its link.
#[derive(Debug, Default)]
pub(super) struct Link {
    up: Option<LinkUp>,
    pub(super) problem: Option<String>,
    pending: BTreeMap<RequestId, Pending>,
    /// The last name of the newest listing.
    listed: Option<MemberName>,
}

#[derive(Clone, Copy, Debug)]
enum Pending {
    Connect(PeerId),
    LookUp(IpAddr),
    List,
    Renew,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Who tells what our TCP connections look like: the broker, where we reach it without anybody between.
    pub(super) fn observer(&self) -> Option<Observer> {
        let up = self.up.as_ref()?;
        Some(Observer { at: up.broker, registration: up.registered.registration, key: up.key })
    }

    pub(super) fn up(&self) -> Option<&LinkUp> {
        self.up.as_ref()
    }
}

impl Node {
    /// The link is up.
    pub fn handle_link_up(&mut self, up: LinkUp, now: Now, out: &mut Output) {
        let family = |v4: bool| up.registered.udp.iter().find(|addr| addr.is_ipv4() == v4).copied();
        let targets =
            [family(true).filter(|_| self.local.has_v4), family(false).filter(|_| self.local.has_v6)];
        self.registrations = targets
            .into_iter()
            .flatten()
            .filter(|_| self.config.udp)
            .map(|to| Registration::new(to, up.registered.registration, up.key, now.instant))
            .collect();
        self.local.beside_broker = up.broker.ip().is_loopback();
        self.local.dress = Dress::of(up.broker.port());
        if let Some(served) = self.served.as_mut() {
            served.authorise_broker(up.signer);
        }
        self.broker_clock = Some(BrokerClock { told: up.registered.time, at: now.instant });
        let what = format!("registered with {} at {}", up.name, up.broker);
        self.link = Link { up: Some(up), ..Link::default() };
        self.expect_forged(out);
        out.notices.push_back(Notice::Broker { connected: true, what });
        self.request(Pending::List, |request| ToBroker::List { request, after: None }, out);
        for id in self.peers.ids() {
            if let Some(path) = self.peers.get_mut(id).and_then(Peer::path_mut) {
                path.handle_change(now.instant);
            }
            self.pump(id, now, out);
        }
        self.renew(now, out);
        self.drive_registrations(now, out);
    }

    /// The link is down. Tunnels and paths go on without it.
    pub fn handle_link_down(&mut self, why: String, now: Now, out: &mut Output) {
        if self.link.is_up() {
            out.notices.push_back(Notice::Broker { connected: false, what: why.clone() });
        }
        // Nobody will answer what was asked over it.
        let asked = std::mem::take(&mut self.link.pending);
        for pending in asked.into_values() {
            if let Pending::Connect(id) = pending
                && let Some(path) = self.peers.get_mut(id).and_then(Peer::path_mut)
            {
                path.handle_refused("the connection to the broker broke".to_owned(), now.instant);
            }
        }
        self.link = Link { problem: Some(why), ..Link::default() };
        self.registrations.clear();
    }

    /// A message of the broker.
    pub fn handle_broker(&mut self, message: FromBroker, now: Now, out: &mut Output) {
        match message {
            FromBroker::Offer(offer) => self.on_offer(offer, now, out),
            FromBroker::Conveyed { attempt, noise } => {
                let Some(id) = self.peers.by_attempt(&attempt) else { return };
                self.handle_noise(&Origin::Broker(attempt, id, Vec::new()), &noise, now, out);
            }
            FromBroker::Awaited { attempt, round } => {
                let Some(id) = self.peers.by_attempt(&attempt) else { return };
                self.with_path(id, now, out, |path, ctx| path.handle_awaited(attempt, round, ctx));
                self.pump(id, now, out);
            }
            FromBroker::Go { attempt, round, endpoints, wait } => {
                let Some(id) = self.peers.by_attempt(&attempt) else { return };
                let wait = Duration::from_millis(u64::from(wait));
                let endpoints: Vec<SocketAddr> =
                    endpoints.into_iter().filter(|to| plan::is_outside(&self.local, *to)).collect();
                self.with_path(id, now, out, |path, ctx| {
                    path.handle_go(attempt, round, endpoints, wait, ctx);
                });
                self.pump(id, now, out);
            }
            FromBroker::Dialled { attempt, round, forge, syn } => {
                let Some(id) = self.peers.by_attempt(&attempt) else { return };
                self.with_path(id, now, out, |path, _| path.handle_both_dialled(attempt, round, forge, &syn));
                self.pump(id, now, out);
            }
            FromBroker::Changed(record) => {
                if let Some((_, true)) = self.learn(&record, now, out) {
                    self.announce_directory(out);
                }
            }
            FromBroker::Found { request, member } => {
                if let Some(Pending::LookUp(addr)) = self.link.pending.remove(&request) {
                    self.on_found(addr, &member, now, out);
                }
            }
            FromBroker::Listing { request, members, more } => {
                let Some(Pending::List) = self.link.pending.remove(&request) else { return };
                let mut last = None;
                for record in &members {
                    last = self.learn(record, now, out).map(|(name, _)| name).or(last);
                }
                self.announce_directory(out);
                // Names only go up, so that no broker keeps us asking for ever.
                if let (true, Some(after)) =
                    (more, last.filter(|last| self.link.listed.as_ref() < Some(last)))
                {
                    self.link.listed = Some(after.clone());
                    let list = |request| ToBroker::List { request, after: Some(after) };
                    self.request(Pending::List, list, out);
                }
            }
            FromBroker::Revocations(bytes) => self.on_revocations(bytes, now, out),
            FromBroker::Renewed { request, certificate } => {
                self.link.pending.remove(&request);
                self.on_renewed(&certificate, now, out);
            }
            FromBroker::Refused { request, why, text } => self.on_refused(request, why, &text, now, out),
            FromBroker::Registered(_)
            | FromBroker::Enrolled { .. }
            | FromBroker::Pong { .. }
            | FromBroker::Relays(_) => {}
        }
    }

    /// Asks for an introduction to `id`; the first handshake message rides along.
    pub(super) fn ask_for_introduction(&mut self, id: PeerId, now: Now, out: &mut Output) {
        let is_up = self.link.is_up();
        let Some(peer) = self.peers.get_mut(id) else { return };
        let name = peer.name.clone();
        let offline = self.directory.get(&name).is_some_and(|known| !known.online);
        let Some(path) = peer.path_mut() else { return };
        if !is_up {
            let why = "no broker can be reached, and the peer must be introduced by one".to_owned();
            return path.handle_refused(why, now.instant);
        }
        if offline {
            return path.handle_refused("the peer is not connected to the broker".to_owned(), now.instant);
        }
        path.handle_asked(now.instant);
        // Also when there is a session: the peer may have started anew and forgotten it, which WireGuard alone would
        // notice after 15 s.
        let noise = peer.initiate(now.instant);
        let connect = |request| ToBroker::Connect { request, target: Target::Name(name), noise };
        self.request(Pending::Connect(id), connect, out);
    }

    pub(super) fn look_up(&mut self, addr: IpAddr, out: &mut Output) {
        let lookup = |request| ToBroker::Lookup { request, target: Target::Addr(addr) };
        self.request(Pending::LookUp(addr), lookup, out);
    }

    pub(super) fn announce_candidates(&self, out: &mut Output) {
        out.orders.push_back(Order::Register(self.register()));
    }

    pub(super) fn announce_directory(&self, out: &mut Output) {
        if !self.config.directory {
            return;
        }
        let mut all: Vec<_> = self
            .directory
            .iter()
            .map(|known| (known.certificate.subject.uri.name.clone(), known.addrs))
            .collect();
        all.push((self.me.certificate.subject.uri.name.clone(), self.me.addrs));
        all.sort();
        out.notices.push_back(Notice::Directory(all));
    }

    pub(super) fn drive_registrations(&mut self, now: Now, out: &mut Output) {
        let before = self.local.udp_blocked;
        for registration in &mut self.registrations {
            registration.handle_timeout(now, &mut out.outbox, &mut self.rng);
        }
        let works = || self.registrations.iter().map(Registration::works);
        let answered = works().any(|works| works == Some(true));
        self.local.udp_blocked = works().len() > 0 && works().all(|works| works == Some(false));
        self.profile.udp.passes = match (answered, self.local.udp_blocked) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => self.measured.udp.passes,
        };
        if self.local.udp_blocked && !before {
            tracing::info!("the broker does not answer over UDP: this network seems to block it");
        }
    }

    /// Asks for a new certificate in the last third of the old one's life.
    pub(super) fn renew(&mut self, now: Now, out: &mut Output) {
        let due = now.unix >= self.me.certificate.renew_at();
        let rested = self.renewal.is_none_or(|at| now.instant >= at + RENEW_EVERY);
        if !due || !rested || !self.link.is_up() || self.config.csr.is_empty() {
            return;
        }
        self.renewal = Some(now.instant);
        let csr = self.config.csr.clone();
        self.request(Pending::Renew, |request| ToBroker::Renew { request, csr }, out);
    }

    fn on_offer(&mut self, offer: Offer, now: Now, out: &mut Output) {
        let Some(certificate) = self.believe(&offer.peer.certificate, now) else { return };
        let Some(known) = self.known(certificate, true, now) else { return };
        let name = known.certificate.subject.uri.name.clone();
        let news = self.directory.get(&name).is_none_or(|old| old.addrs != known.addrs);
        if self.directory.insert(known.clone()) && news {
            self.announce_directory(out);
        }
        let id = self.peer_of(&known, now, out);
        self.peers.introduce(id, offer.attempt);
        if let Some(request) = offer.request {
            self.link.pending.remove(&request);
        }
        let side = if offer.request.is_some() { Side::Asking } else { Side::Asked };
        let relays = if self.config.relay { self.grants(&offer.relays, now) } else { Vec::new() };
        tracing::debug!(peer = %name, attempt = %offer.attempt, ?side, candidates = offer.candidates.len(), relays = relays.len(), "introduced");
        let direct: Vec<SocketAddr> =
            plan::udp_targets(&self.local, &offer.candidates).into_iter().take(ANSWERS_DIRECT).collect();
        let introduction = Introduction {
            attempt: offer.attempt,
            side,
            candidates: offer.candidates,
            profile: offer.profile,
            relays,
            remembered: self.methods.remembered(&self.profile, &offer.profile),
        };
        if let Some(Peer { kind: Kind::Mesh(mesh), .. }) = self.peers.get_mut(id) {
            mesh.profile = offer.profile;
            if side == Side::Asked {
                mesh.path.handle_asked_for(now.instant);
            }
        }
        self.with_path(id, now, out, |path, ctx| path.handle_introduction(introduction, ctx));
        if !offer.noise.is_empty() {
            self.handle_noise(&Origin::Broker(offer.attempt, id, direct), &offer.noise, now, out);
        }
        self.pump(id, now, out);
    }

    fn grants(&mut self, offers: &[RelayOffer], now: Now) -> Vec<RelayGrant> {
        let mut grants = Vec::with_capacity(offers.len());
        for offer in offers {
            let believed = self.believe(&offer.certificate, now).filter(|c| c.subject.roles.relay);
            let Some(certificate) = believed else { continue };
            if !self.relays.contains(&certificate) {
                self.relays.truncate(MAX_RELAYS_KNOWN - 1);
                self.relays.insert(0, certificate.clone());
            }
            grants.push(RelayGrant { certificate, offer: offer.clone() });
        }
        grants
    }

    fn on_found(&mut self, addr: IpAddr, member: &MemberRecord, now: Now, out: &mut Output) {
        let Some((_, waiting)) = self.unknown.remove(&addr) else { return };
        let Some((name, news)) = self.learn(member, now, out) else { return };
        if news {
            self.announce_directory(out);
        }
        let Some(known) = self.directory.get(&name).filter(|known| known.addrs.contains(addr)).cloned()
        else {
            return;
        };
        let id = self.peer_of(&known, now, out);
        if let Some(peer) = self.peers.get_mut(id) {
            for packet in &waiting {
                let _ = peer.keep(packet, now.instant);
            }
            if let Some(path) = peer.path_mut() {
                path.handle_demand(now.instant);
            }
        }
        self.pump(id, now, out);
    }

    fn on_refused(&mut self, request: RequestId, why: Refusal, text: &str, now: Now, out: &mut Output) {
        match self.link.pending.remove(&request) {
            Some(Pending::Connect(id)) => {
                let Some(peer) = self.peers.get_mut(id) else { return };
                let name = peer.name.clone();
                if let Some(path) = peer.path_mut() {
                    path.handle_refused(refused_because(why, text), now.instant);
                }
                if why == Refusal::Offline
                    && let Some(mut known) = self.directory.get(&name).cloned()
                {
                    known.online = false;
                    let _ = self.directory.insert(known);
                }
                self.pump(id, now, out);
            }
            Some(Pending::LookUp(addr)) => {
                // The entry stays until it expires, so that not every packet asks again.
                if let Some((_, waiting)) = self.unknown.get_mut(&addr) {
                    self.counters.no_route += std::mem::take(waiting).len() as u64;
                }
            }
            Some(Pending::Renew) => tracing::warn!(?why, text, "the broker did not renew our certificate"),
            Some(Pending::List) | None => tracing::debug!(?why, text, "the broker refused something"),
        }
    }

    fn on_revocations(&mut self, bytes: Vec<u8>, now: Now, out: &mut Output) {
        match RevocationList::parse_signed(&bytes, &self.me.anchor) {
            Ok(list) if list.version > self.revocations.version => {
                tracing::info!(version = list.version, revoked = list.serials.len(), "new revocation list");
                self.revocations = list;
                out.orders.push_back(Order::StoreRevocations(bytes));
                self.audit_certificates(now, out);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the broker sent a revocation list that is not the CA's"),
        }
    }

    fn on_renewed(&mut self, der: &[u8], now: Now, out: &mut Output) {
        let Some(certificate) = self.believe(der, now) else { return };
        let ours = certificate.subject.uri == self.me.certificate.subject.uri
            && certificate.key == self.me.certificate.key
            && certificate.subject.wg == self.me.certificate.subject.wg
            && certificate.subject.addrs == self.me.certificate.subject.addrs;
        if !ours {
            tracing::warn!("the broker sent a renewed certificate that is not ours");
            return;
        }
        tracing::info!(until = ?certificate.not_after, "certificate renewed");
        self.me.certificate = certificate;
        out.orders.push_back(Order::StoreCertificate(der.to_vec()));
    }

    /// Takes in a record of the broker; if it is believed, the member's name, and whether names or addresses are others
    /// than before.
    fn learn(&mut self, record: &MemberRecord, now: Now, out: &mut Output) -> Option<(MemberName, bool)> {
        let certificate = self.believe(&record.certificate, now)?;
        let name = certificate.subject.uri.name.clone();
        if certificate.subject.uri == self.me.certificate.subject.uri {
            return Some((name, false));
        }
        let mut known = self.known(certificate, record.online, now)?;
        known.last_seen = record.last_seen;
        let old = self.directory.get(&name);
        let came = record.online && old.is_some_and(|old| !old.online);
        let news = old.is_none_or(|old| old.addrs != known.addrs);
        if !self.directory.insert(known.clone()) {
            return Some((name, false));
        }
        if let Some(id) = self.peers.by_name(&name) {
            // New keys under an old name: another peer.
            let id = if self.peers.get(id).is_some_and(|p| p.wg != known.certificate.subject.wg) {
                self.peer_of(&known, now, out)
            } else {
                id
            };
            if came && let Some(path) = self.peers.get_mut(id).and_then(Peer::path_mut) {
                path.handle_change(now.instant);
            }
            self.pump(id, now, out);
        }
        Some((name, news))
    }

    fn known(&self, certificate: Certificate, online: bool, now: Now) -> Option<Known> {
        let addrs = certificate.subject.addrs.filter(|_| certificate.subject.roles.member)?;
        let ours = certificate.subject.uri == self.me.certificate.subject.uri
            || certificate.subject.wg == self.me.certificate.subject.wg
            || addrs == self.me.addrs;
        let known = Known { certificate, addrs, online, last_seen: now.unix };
        // Two who sign may have given one thing twice. Whoever had it first keeps it.
        if let Some(holder) = self.directory.rival_of(&known) {
            let name = &known.certificate.subject.uri.name;
            tracing::warn!(%name, %holder, "left out: its key or its overlay address belongs to another member");
            return None;
        }
        (!ours).then_some(known)
    }

    fn believe(&self, der: &[u8], now: Now) -> Option<Certificate> {
        // A network of thousands tells of each coming and going: a signature that was checked is not checked again.
        let checked = Certificate::parse(der).ok().filter(|certificate| {
            let member = self.directory.get(&certificate.subject.uri.name);
            member.is_some_and(|known| known.certificate.der == certificate.der)
                || self.relays.iter().any(|relay| relay.der == certificate.der)
        });
        let verified = match checked {
            Some(certificate) => certificate.check_time(now.unix).map(|()| certificate),
            None => self.me.anchor.verify(der, now.unix),
        };
        let verified = verified.and_then(|certificate| {
            if self.revocations.contains(&certificate.serial) {
                Err(CertError::Revoked)
            } else {
                Ok(certificate)
            }
        });
        verified
            .inspect_err(|error| tracing::debug!(%error, "a certificate from the broker is not believed"))
            .ok()
    }

    fn request(&mut self, pending: Pending, message: impl FnOnce(RequestId) -> ToBroker, out: &mut Output) {
        if !self.link.is_up() {
            return;
        }
        let id = self.next_request;
        self.next_request = RequestId(id.0.wrapping_add(1).max(1));
        if self.link.pending.len() >= MAX_PENDING {
            self.link.pending.pop_first();
        }
        self.link.pending.insert(id, pending);
        out.orders.push_back(Order::Broker(message(id)));
    }
}

fn refused_because(why: Refusal, text: &str) -> String {
    match why {
        Refusal::NotFound => "the broker does not know the peer".to_owned(),
        Refusal::Offline => "the peer is not connected to the broker".to_owned(),
        Refusal::TooMany => "the broker limits us: too many introductions at once".to_owned(),
        Refusal::InvalidInvite
        | Refusal::NameTaken
        | Refusal::NoAddressLeft
        | Refusal::NoAuthority
        | Refusal::Malformed
        | Refusal::Forbidden => format!("the broker refused an introduction: {text}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use super::*;
    use crate::base::id::RegistrationId;
    use crate::base::rng::Seed;
    use crate::base::time::UnixTime;
    use crate::base::transmit::StreamOrder;
    use crate::identity::authority::Authority;
    use crate::identity::certificate::Roles;
    use crate::identity::certificate::Serial;
    use crate::identity::certificate::Subject;
    use crate::identity::keys::SigningKey;
    use crate::identity::keys::WgSecret;
    use crate::nat::candidate::Candidate;
    use crate::node::Config;
    use crate::node::Me;
    use crate::node::Ports;

    const DAY: u64 = 86_400;
    pub(crate) const SIGNED: u64 = 1_800_000_000;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life_and_only_by_our_own() {
        let (authority, key, wg) = (authority(), SigningKey::generate(), WgSecret::generate());
        let mut node = node(&authority, &key, &wg);
        assert_eq!(asked(&mut node, SIGNED + 59 * DAY), None, "too early");
        let request = asked(&mut node, SIGNED + 61 * DAY).unwrap();

        let late = SIGNED + 61 * DAY;
        let ours = certificate(&authority, &key, wg.public(), late);
        let foreign = certificate(&authority, &SigningKey::generate(), wg.public(), late);
        let unsigned = certificate(&self::authority(), &key, wg.public(), late);
        for (what, der, stored) in
            [("foreign", &foreign.der, false), ("unsigned", &unsigned.der, false), ("ours", &ours.der, true)]
        {
            let mut out = Output::default();
            let renewed = FromBroker::Renewed { request, certificate: der.clone() };
            node.handle_broker(renewed, at(late), &mut out);
            assert_eq!(out.orders.contains(&Order::StoreCertificate(der.clone())), stored, "{what}");
        }
        assert_eq!(asked(&mut node, late + 2 * 3600), None, "young again");
    }

    #[test]
    fn whoever_is_first_heard_of_by_an_introduction_is_told_of_once() {
        let (authority, wg) = (authority(), WgSecret::generate());
        let mut node = node(&authority, &SigningKey::generate(), &WgSecret::generate());
        node.config.directory = true;
        let bert =
            certificate_of("bert", "10.77.0.2", &authority, &SigningKey::generate(), wg.public(), SIGNED);
        let peer =
            MemberRecord { certificate: bert.der, online: true, last_seen: UnixTime::from_secs(SIGNED) };
        let offer = Offer {
            attempt: crate::base::id::AttemptId([1; 16]),
            request: None,
            peer: peer.clone(),
            candidates: Vec::new(),
            profile: Default::default(),
            relays: Vec::new(),
            noise: Vec::new(),
        };
        for (what, message, told) in [
            ("introduced", FromBroker::Offer(offer.clone()), true),
            ("introduced again", FromBroker::Offer(offer), false),
            ("then it changed", FromBroker::Changed(peer), false),
        ] {
            let mut out = Output::default();
            node.handle_broker(message, at(SIGNED), &mut out);
            let names = |notice: &Notice| matches!(notice, Notice::Directory(all) if all.len() == 2);
            assert_eq!(out.notices.iter().any(names), told, "{what}");
        }
    }

    #[test]
    fn a_peer_that_has_got_other_keys_leaves_nothing_of_the_old_one_open() {
        let (authority, wg) = (authority(), WgSecret::generate());
        let mut node = node(&authority, &SigningKey::generate(), &WgSecret::generate());
        let ports = Ports { tcp_v4: 5, ..Ports::default() };
        let mut out = Output::default();
        node.handle_network(&["192.0.2.7".parse().unwrap()], ports, at(SIGNED), &mut out);
        let member = |wg: &WgSecret| MemberRecord {
            certificate: certificate_of(
                "bert",
                "10.77.0.2",
                &authority,
                &SigningKey::generate(),
                wg.public(),
                SIGNED,
            )
            .der,
            online: true,
            last_seen: UnixTime::from_secs(SIGNED),
        };
        let door = Candidate {
            transport: crate::nat::candidate::Transport::Tcp,
            kind: crate::nat::candidate::Kind::Host,
            addr: "192.0.2.9:5".parse().unwrap(),
        };
        let offer = Offer {
            attempt: crate::base::id::AttemptId([1; 16]),
            request: None,
            peer: member(&wg),
            candidates: vec![door],
            profile: Default::default(),
            relays: Vec::new(),
            noise: Vec::new(),
        };
        node.handle_broker(FromBroker::Offer(offer), at(SIGNED), &mut out);
        node.handle_timeout(at(SIGNED + 1), &mut out);
        assert_eq!((node.streams.len(), node.ports.len()), (1, 1), "a dial, and a port to punch from");
        let changed = FromBroker::Changed(member(&WgSecret::generate()));
        node.handle_broker(changed, at(SIGNED + 2), &mut out);
        assert_eq!((node.streams.len(), node.ports.len()), (0, 0));
        let orders =
            || out.orders.iter().filter_map(|o| if let Order::Stream(o) = o { Some(o) } else { None });
        let given_back = |o: &&StreamOrder| matches!(o, StreamOrder::Close(_) | StreamOrder::Unbind(_));
        assert_eq!(orders().filter(given_back).count(), orders().count() / 2);
    }

    fn asked(node: &mut Node, unix: u64) -> Option<RequestId> {
        let mut out = Output::default();
        let registered = Registered {
            registration: RegistrationId(1),
            udp: Vec::new(),
            stun: Vec::new(),
            observed: SocketAddr::from(([192, 0, 2, 1], 1)),
            time: UnixTime::from_secs(unix),
            forge: false,
        };
        let broker = SocketAddr::from(([192, 0, 2, 2], 6060));
        let up =
            LinkUp { broker, name: "broker".parse().unwrap(), key: [0; 32], signer: [0; 32], registered };
        node.handle_link_up(up, at(unix), &mut out);
        out.orders.iter().find_map(|order| match order {
            Order::Broker(ToBroker::Renew { request, .. }) => Some(*request),
            _ => None,
        })
    }

    pub(in crate::node) fn node(authority: &Authority, key: &SigningKey, wg: &WgSecret) -> Node {
        let certificate = certificate(authority, key, wg.public(), SIGNED);
        let addrs = certificate.subject.addrs.unwrap();
        let me = Me { anchor: authority.anchor().clone(), certificate, addrs, wg: wg.clone() };
        let config = Config {
            software: String::new(),
            mtu: 1380,
            udp: true,
            transport: Default::default(),
            directory: false,
            relay: true,
            serve: None,
            by_hand: false,
            overlay: Vec::new(),
            configured: Vec::new(),
            observers: Vec::new(),
            csr: vec![1],
            stock: Vec::new(),
        };
        Node::new(me, config, RevocationList::default(), Seed([0; 32]), at(SIGNED))
    }

    pub(in crate::node) fn authority() -> Authority {
        let network = "home".parse().unwrap();
        Authority::create(&network, "10.77.0.0/16".parse().unwrap(), UnixTime::from_secs(SIGNED))
    }

    fn certificate(
        authority: &Authority,
        key: &SigningKey,
        wg: crate::identity::keys::WgPublic,
        from: u64,
    ) -> Certificate {
        certificate_of("anna", "10.77.0.9", authority, key, wg, from)
    }

    fn certificate_of(
        name: &str,
        addr: &str,
        authority: &Authority,
        key: &SigningKey,
        wg: crate::identity::keys::WgPublic,
        from: u64,
    ) -> Certificate {
        let anchor = authority.anchor();
        let subject = Subject {
            uri: format!("ntcp://{}/{name}", anchor.network).parse().unwrap(),
            roles: Roles::MEMBER,
            addrs: Some(anchor.overlay_addrs(addr.parse().unwrap())),
            groups: Vec::new(),
            wg,
        };
        let (from, until) = (UnixTime::from_secs(from), UnixTime::from_secs(from + 90 * DAY));
        authority.sign(&subject, &key.public(), Serial::generate(), from, until).unwrap()
    }

    /// The monotonic clock goes along, so that hourly retries are due.
    pub(crate) fn at(unix: u64) -> Now {
        #[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
        static ORIGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let instant = *ORIGIN + Duration::from_secs(unix - SIGNED);
        Now { instant, unix: UnixTime::from_secs(unix) }
    }
}
