//! The STUNT server: who may have what done to himself, how often, and what he is told.
//!
//! It sends SYNs on demand, so it must not be worth abusing:
//!
//! * **Only towards the asker.** A request comes on an established connection, so its sender holds the address that it
//!   comes from; nothing is ever sent to another one. An asker may name a *port* of that address. Behind a carrier's NAT
//!   that can be somebody else's, so a port that this asker has not been seen to use costs from a small extra allowance,
//!   must not be a system port (RFC 6335 6), and is never told more than a SYN would tell anybody.
//! * **Nothing but headers.** A connection back carries no byte of data. Forged answers go only to a SYN that has come in,
//!   each SYN gets few.
//! * **Not without end.** Connections, requests and what runs at a time are bounded per source and in all; so are all
//!   memories.
//!
//! Whoever acts for it calls [`StuntServer::handle_request`], carries out the [`Order`] if there is one, and gets the answer
//! from [`StuntServer::handle_done`].

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::addr::canonical;
use crate::base::grid::Grid;
use crate::base::grid::Home;
use crate::base::rng::Rng;
use crate::base::schedule::Bucket;
use crate::stunt::forge;
use crate::stunt::forge::Syn;
use crate::wire::stun::Attribute;
use crate::wire::stun::Class;
use crate::wire::stun::Integrity;
use crate::wire::stun::Message;
use crate::wire::stun::Received;
use crate::wire::stun::STUNT_PROBE;
use crate::wire::stun::STUNT_SEEN;
use crate::wire::stun::stunt::ACK;
use crate::wire::stun::stunt::Action;
use crate::wire::stun::stunt::Capabilities;
use crate::wire::stun::stunt::Event;
use crate::wire::stun::stunt::Outcome;
use crate::wire::stun::stunt::Port;
use crate::wire::stun::stunt::Probe;
use crate::wire::stun::stunt::RST;
use crate::wire::stun::stunt::SYN;
use crate::wire::stun::stunt::Segment;
use crate::wire::stun::stunt::Server;

/// Longest watch: RFC 5382 REQ-4 has a NAT hold an unsolicited SYN for 6 s before it answers.
pub const MAX_WATCH: Duration = Duration::from_secs(8);
/// Longest wait: RFC 5382 REQ-5 keeps an idle connection for 2 h 4 min.
pub const MAX_WAIT: Duration = Duration::from_secs(7500);
/// Connections at a time: of one source (some members of a site measure together, each with a dozen), and in all (some KiB
/// each).
const CONNECTIONS: (usize, usize) = (64, 4096);
/// Probes that run at a time: of one source, and in all (a socket each).
const RUNNING: (usize, usize) = (8, 256);
/// Waits at a time: of one source (one discovery has 8), and in all. They cost nothing but their connection.
const WAITING: (usize, usize) = (32, 2048);
/// Requests of one source at once and per second: a whole discovery is some 40, and 20 more with lifetimes.
const REQUESTS: (u32, f64) = (96, 2.0);
/// Probes of everybody together at once and per second.
const PROBES: (u32, f64) = (512, 256.0);
/// Probes of one source at ports that it has not been seen to use, at once and per second: one discovery needs one.
const STRANGE_PORTS: (u32, f64) = (4, 1.0 / 150.0);
/// Below this are system ports (RFC 6335 6): nobody's NAT puts a client there, and what is there may be of interest.
const FIRST_USER_PORT: u16 = 1024;
/// How long an endpoint from which a connection came counts as the asker's: as long as the longest wait, and then some.
const OWN_FOR: Duration = Duration::from_secs(10_000);
/// Endpoints remembered of one source, and sources remembered (about 200 bytes each, without their endpoints).
const MAX_OWN: usize = 64;
const MAX_SOURCES: usize = 8192;
/// How long a segment at the silent port can be asked for, and how many are told of, newest first: so many 60-byte segments
/// fit into one answer.
const SEEN_FOR: Duration = Duration::from_secs(15);
const MAX_TOLD: usize = 16;
/// How long a SYN there can be answered: longer than a discovery leaves a half open mapping idle.
const ANSWERED_FOR: Duration = Duration::from_secs(150);
/// How many segments are kept: of one address, and in all.
const SEEN: (usize, usize) = (64, 4096);
/// Answers to one SYN: RST, then ICMP, then a SYN-ACK, and one more for a client that was not sure.
const ANSWERS: u8 = 4;

/// STUN error codes (RFC 8489 14.8, RFC 8656 19); 404 and 409 in the sense of RFC 9110.
const BAD_REQUEST: u16 = 400;
const FORBIDDEN: u16 = 403;
const NOTHING_TO_ANSWER: u16 = 404;
const TAKEN: u16 = 409;
const QUOTA: u16 = 486;
const FULL: u16 = 508;

/// What the acting half has the privileges for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Means {
    /// It reads the SYN of a connection.
    pub own_syn: bool,
    /// It sees what comes to the silent port and sends packets of its own making (CAP_NET_RAW).
    pub raw: bool,
}

/// Names a probe that runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(u64);

/// What the acting half shall do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Open a connection, watch so long, close it in peace.
    Connect {
        /// Port 0: whichever is free.
        from: SocketAddr,
        /// The asker.
        to: SocketAddr,
        /// At most [`MAX_WATCH`].
        watch: Duration,
    },
    /// Send a packet. With a `watch`, report silence after it, unless [`StuntServer::poll_outcome`] knows more before.
    Send {
        /// Whole, with its IP header.
        packet: Vec<u8>,
        /// The asker.
        to: IpAddr,
        /// At most [`MAX_WATCH`].
        watch: Option<Duration>,
    },
    /// Report after this time.
    Wait(Duration),
}

/// What to do with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Answer it.
    Answer(Vec<u8>),
    /// Carry this out, and report with [`StuntServer::handle_done`].
    Act(Ticket, Order),
}

/// How an order ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    /// Something came back, or nothing did; `from` is where the packets came from.
    Outcome {
        /// The server's own endpoint; ignored if the order named one.
        from: SocketAddr,
        /// What.
        outcome: Outcome,
    },
    /// There is a connection between these two endpoints already.
    Taken,
    /// It could not be done at all.
    Failed,
}

/// The server. One for all its sockets.
#[derive(Debug)]
pub struct StuntServer {
    grid: Grid,
    means: Means,
    rng: Rng,
    sources: BTreeMap<IpAddr, Account>,
    connections: usize,
    probes: Bucket,
    running: BTreeMap<Ticket, Running>,
    last: u64,
    seen: VecDeque<Seen>,
    outcomes: VecDeque<(Ticket, Outcome)>,
}

#[derive(Debug)]
struct Account {
    connections: usize,
    running: usize,
    waiting: usize,
    requests: Bucket,
    strange: Bucket,
    own: VecDeque<(SocketAddr, Instant)>,
}

#[derive(Debug)]
struct Running {
    request: Message,
    asker: SocketAddr,
    from: SocketAddr,
    to: SocketAddr,
    waits: bool,
    /// Of a SYN-ACK: when it was sent, and the acknowledgment that takes it.
    forged: Option<(Instant, u32)>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    from: SocketAddr,
    to: SocketAddr,
    segment: Segment,
    answered: u8,
}

impl StuntServer {
    /// A server at `grid` with those means.
    #[must_use]
    pub fn new(grid: Grid, means: Means, rng: Rng, now: Instant) -> Self {
        Self {
            grid,
            means,
            rng,
            sources: BTreeMap::new(),
            connections: 0,
            probes: Bucket::new(PROBES.0, PROBES.1, now),
            running: BTreeMap::new(),
            last: 0,
            seen: VecDeque::new(),
            outcomes: VecDeque::new(),
        }
    }

    /// What it offers to whoever is connected to `local`, for the Binding answer.
    #[must_use]
    pub fn offers(&self, local: SocketAddr) -> Server {
        let raw = self.means.raw && local.ip().to_canonical().is_ipv4() && self.grid.silent().is_some();
        Server {
            can: Capabilities {
                connect: true,
                silent: self.grid.silent().is_some(),
                own_syn: self.means.own_syn,
                watch: raw,
                forge: raw,
            },
            port: self.grid.port(),
            alternate: self.grid.alternate(),
            silent: self.grid.silent(),
            addresses: self.grid.homes(local.ip()).iter().map(|home| home.seen).collect(),
        }
    }

    /// A connection came in. `false`: close it at once; then it was not counted.
    pub fn handle_connected(&mut self, from: SocketAddr, now: Instant) -> bool {
        let from = canonical(from);
        if self.connections >= CONNECTIONS.1 {
            return false;
        }
        let source = source_of(from.ip());
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, account| !account.is_idle(now));
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let account = self.sources.entry(source).or_insert_with(|| Account::new(now));
        if account.connections >= CONNECTIONS.0 {
            return false;
        }
        account.connections += 1;
        account.owns(from, now);
        self.connections += 1;
        true
    }

    /// A connection that was counted is gone.
    pub fn handle_closed(&mut self, from: SocketAddr) {
        self.connections = self.connections.saturating_sub(1);
        if let Some(account) = self.sources.get_mut(&source_of(from.ip())) {
            account.connections = account.connections.saturating_sub(1);
        }
    }

    /// A request on a connection from `from` to `local`, whose SYN was `own_syn`, if that is known, and came `age` ago.
    /// `None` for what is no STUNT request: the connection deserves no more.
    pub fn handle_request(
        &mut self,
        received: &Received<'_>,
        (from, local): (SocketAddr, SocketAddr),
        own_syn: Option<&Segment>,
        now: Instant,
    ) -> Option<Verdict> {
        let (from, local, request) = (canonical(from), canonical(local), &received.message);
        if request.class != Class::Request || !matches!(request.method, STUNT_PROBE | STUNT_SEEN) {
            return None;
        }
        if !received.unknown_required.is_empty() {
            let unknown = Attribute::UnknownAttributes(received.unknown_required.clone());
            return Some(Verdict::Answer(request.refusal(420, "").with(unknown).emit(Integrity::None)));
        }
        let refusal = match self.judge(request, from, local, own_syn, now) {
            Ok(verdict) => return Some(verdict),
            Err(refusal) => refusal,
        };
        let (code, text) = refusal;
        Some(Verdict::Answer(request.refusal(code, text).emit(Integrity::None)))
    }

    /// The answer to the request behind `ticket`, now that its order has been carried out; `None` if it was given up.
    pub fn handle_done(&mut self, ticket: Ticket, done: Done) -> Option<Vec<u8>> {
        let running = self.forget(ticket)?;
        let (code, text) = match done {
            Done::Outcome { from, outcome } => {
                let from = if running.from.port() == 0 { from } else { running.from };
                let answer = running
                    .request
                    .success()
                    .with(Attribute::StuntOutcome(outcome))
                    .with(Attribute::ResponseOrigin(self.grid.seen(canonical(from))))
                    .with(Attribute::XorMappedAddress(running.to));
                return Some(answer.emit(Integrity::None));
            }
            Done::Taken => {
                (TAKEN, "these two endpoints have a connection already: name another port or address")
            }
            Done::Failed => (FULL, "this server cannot do that now: try later"),
        };
        Some(running.request.refusal(code, text).emit(Integrity::None))
    }

    /// The connection that wanted it is gone.
    pub fn handle_abandoned(&mut self, ticket: Ticket) {
        let _ = self.forget(ticket);
    }

    /// A segment that came to the silent port.
    pub fn handle_segment(&mut self, from: SocketAddr, to: SocketAddr, segment: Segment, now: Instant) {
        let (from, to) = (canonical(from), canonical(to));
        if Some(to.port()) != self.grid.silent() {
            return;
        }
        self.settle(from, to, &segment, now);
        self.seen.retain(|seen| now.saturating_duration_since(seen.at) <= ANSWERED_FOR);
        // A repetition takes the place of what it repeats.
        let known = |seen: &Seen| {
            (seen.from, seen.to) == (from, to)
                && (seen.segment.flags, seen.segment.sequence) == (segment.flags, segment.sequence)
        };
        let answered = self.seen.iter().find(|seen| known(seen)).map_or(0, |seen| seen.answered);
        self.seen.retain(|seen| !known(seen));
        let of_this_host = self.seen.iter().filter(|seen| seen.from.ip() == from.ip()).count();
        if of_this_host >= SEEN.0 {
            if let Some(oldest) = self.seen.iter().position(|seen| seen.from.ip() == from.ip()) {
                self.seen.remove(oldest);
            }
        } else if self.seen.len() >= SEEN.1 {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen { at: now, from, to, segment, answered });
    }

    /// What the segments have told about a [`Order::Send`] that is being watched.
    pub fn poll_outcome(&mut self) -> Option<(Ticket, Outcome)> {
        self.outcomes.pop_front()
    }

    fn judge(
        &mut self,
        request: &Message,
        from: SocketAddr,
        local: SocketAddr,
        own_syn: Option<&Segment>,
        now: Instant,
    ) -> Result<Verdict, (u16, &'static str)> {
        let account = self.sources.get_mut(&source_of(from.ip())).ok_or((FULL, "try later"))?;
        if !account.requests.take(now) {
            return Err((QUOTA, "too many requests from your address: wait a minute"));
        }
        if request.method == STUNT_SEEN {
            return Ok(Verdict::Answer(self.seen_by(request, from, local, own_syn, now)));
        }
        let probe = request.stunt_probe().ok_or((BAD_REQUEST, "STUNT-PROBE is missing"))?;
        if let Action::Wait { seconds } = probe.action {
            let wait = Duration::from_secs(seconds.into()).min(MAX_WAIT);
            let running = Running::new(request, from, local, from);
            return self.start(Running { waits: true, ..running }, Order::Wait(wait));
        }
        if !self.probes.take(now) {
            return Err((FULL, "too many tests from everywhere: try in a few seconds"));
        }
        let home = self.home(&probe, local)?;
        match probe.action {
            Action::Connect | Action::Wait { .. } => self.connect(request, &probe, home, from, now),
            Action::Reset | Action::Icmp { .. } | Action::SynAck => {
                self.forge(request, &probe, home, from, now)
            }
        }
    }

    /// The address that a probe shall come from.
    fn home(&self, probe: &Probe, local: SocketAddr) -> Result<Home, (u16, &'static str)> {
        let homes = self.grid.homes(local.ip());
        homes.get(usize::from(probe.address)).copied().ok_or((FORBIDDEN, "this server has no such address"))
    }

    fn connect(
        &mut self,
        request: &Message,
        probe: &Probe,
        home: Home,
        asker: SocketAddr,
        now: Instant,
    ) -> Result<Verdict, (u16, &'static str)> {
        let port = match probe.port {
            Port::Main => Some(self.grid.port()),
            Port::Alternate => self.grid.alternate(),
            Port::Silent => self.grid.silent(),
            Port::Any => Some(0),
        };
        let from = SocketAddr::new(home.bound, port.ok_or((FORBIDDEN, "this server has no such port"))?);
        let newest =
            (probe.port == Port::Silent).then(|| self.newest_syn(asker.ip(), None, from, now)).flatten();
        let port =
            probe.target.or_else(|| newest.map(|(_, syn)| syn.from.port())).unwrap_or_else(|| asker.port());
        let to = SocketAddr::new(asker.ip(), port);
        let knocked = self.newest_syn(asker.ip(), Some(port), from, now).is_some();
        let account = self.sources.get_mut(&source_of(asker.ip())).ok_or((FULL, "try later"))?;
        if !knocked && !account.is_own(to, now) {
            if port < FIRST_USER_PORT {
                return Err((FORBIDDEN, "a port below 1024 that you have not been seen to use"));
            }
            if !account.strange.take(now) {
                return Err((QUOTA, "too many ports that you have not been seen to use: wait some minutes"));
            }
        }
        let watch = probe.watch.min(MAX_WATCH);
        self.start(Running::new(request, asker, from, to), Order::Connect { from, to, watch })
    }

    fn forge(
        &mut self,
        request: &Message,
        probe: &Probe,
        home: Home,
        asker: SocketAddr,
        now: Instant,
    ) -> Result<Verdict, (u16, &'static str)> {
        if !self.offers(SocketAddr::new(home.bound, 0)).can.forge || probe.port != Port::Silent {
            return Err((FORBIDDEN, "this server cannot do that: see STUNT-SERVER in its Binding answers"));
        }
        let at = SocketAddr::new(home.bound, self.grid.silent().unwrap_or(0));
        let found = self.newest_syn(asker.ip(), probe.target, at, now);
        let (index, syn) =
            found.ok_or((NOTHING_TO_ANSWER, "no SYN of yours came to the silent port lately"))?;
        let seen = self.seen.get_mut(index).filter(|seen| seen.answered < ANSWERS);
        let seen = seen.ok_or((QUOTA, "that SYN has been answered often enough: send another one"))?;
        seen.answered += 1;
        let sequence = self.rng.u32();
        let (packet, watch) = match probe.action {
            Action::Icmp { kind: kind @ (3 | 11), code } => (forge::icmp(&syn, kind, code), None),
            Action::Reset => (forge::reset(&syn), None),
            Action::SynAck => (forge::syn_ack(&syn, sequence), Some(probe.watch.min(MAX_WATCH))),
            Action::Icmp { .. } | Action::Connect | Action::Wait { .. } => {
                return Err((FORBIDDEN, "of ICMP there is 3, unreachable, and 11, time exceeded"));
            }
        };
        let forged = watch.map(|_| (now, sequence.wrapping_add(1)));
        let running = Running { forged, ..Running::new(request, asker, syn.to, syn.from) };
        self.start(running, Order::Send { packet, to: syn.from.ip(), watch })
    }

    /// Counts what begins to run, if there is room.
    fn start(&mut self, running: Running, order: Order) -> Result<Verdict, (u16, &'static str)> {
        let (of_source, of_all) = if running.waits { WAITING } else { RUNNING };
        let alike = self.running.values().filter(|other| other.waits == running.waits).count();
        let source = source_of(running.asker.ip());
        let account = self.sources.get_mut(&source).ok_or((FULL, "try later"))?;
        let count = if running.waits { &mut account.waiting } else { &mut account.running };
        if *count >= of_source {
            return Err((QUOTA, "too many tests of your address run: wait for their answers"));
        }
        if alike >= of_all {
            return Err((FULL, "too many tests run: try in a few seconds"));
        }
        *count += 1;
        self.last += 1;
        let ticket = Ticket(self.last);
        self.running.insert(ticket, running);
        Ok(Verdict::Act(ticket, order))
    }

    fn forget(&mut self, ticket: Ticket) -> Option<Running> {
        let running = self.running.remove(&ticket)?;
        if let Some(account) = self.sources.get_mut(&source_of(running.asker.ip())) {
            let count = if running.waits { &mut account.waiting } else { &mut account.running };
            *count = count.saturating_sub(1);
        }
        Some(running)
    }

    /// The newest SYN from `host`, if named from that `port`, at the silent endpoint `at`.
    fn newest_syn(
        &self,
        host: IpAddr,
        port: Option<u16>,
        at: SocketAddr,
        now: Instant,
    ) -> Option<(usize, Syn)> {
        let is_it = |seen: &Seen| {
            seen.from.ip() == host
                && port.is_none_or(|port| port == seen.from.port())
                && seen.to == at
                && now.saturating_duration_since(seen.at) <= ANSWERED_FOR
                && seen.segment.flags & (SYN | ACK | RST) == SYN
        };
        let (index, seen) = self.seen.iter().enumerate().rev().find(|(_, seen)| is_it(seen))?;
        Some((index, Syn { from: seen.from, to: seen.to, sequence: seen.segment.sequence }))
    }

    fn seen_by(
        &self,
        request: &Message,
        from: SocketAddr,
        local: SocketAddr,
        own_syn: Option<&Segment>,
        now: Instant,
    ) -> Vec<u8> {
        let homes = self.grid.homes(local.ip());
        let since = |at: Instant| now.saturating_duration_since(at);
        let own = own_syn.cloned().into_iter();
        let theirs = self.seen.iter().rev().filter(|seen| seen.from.ip() == from.ip());
        let theirs = theirs.filter(|seen| since(seen.at) <= SEEN_FOR).take(MAX_TOLD).filter_map(|seen| {
            let address = homes.iter().position(|home| home.bound == seen.to.ip())?;
            let address = u8::try_from(address).ok()?;
            Some(Segment { address, age: since(seen.at), ..seen.segment.clone() })
        });
        let segments = own.chain(theirs).map(Attribute::StuntSegment);
        segments.fold(request.success(), Message::with).emit(Integrity::None)
    }

    /// Whether the segment is what a forged SYN-ACK waits for.
    fn settle(&mut self, from: SocketAddr, to: SocketAddr, segment: &Segment, now: Instant) {
        for (ticket, running) in &mut self.running {
            let Some((sent, wanted)) = running.forged.filter(|_| (running.from, running.to) == (to, from))
            else {
                continue;
            };
            let event = match segment.flags & (SYN | ACK | RST) {
                ACK if segment.acknowledgment == wanted => Event::Connected,
                flags if flags & RST != 0 => Event::Reset,
                _ => continue,
            };
            running.forged = None;
            let after = now.saturating_duration_since(sent);
            self.outcomes.push_back((*ticket, Outcome { event, after }));
        }
    }
}

impl Account {
    fn new(now: Instant) -> Self {
        Self {
            connections: 0,
            running: 0,
            waiting: 0,
            requests: Bucket::new(REQUESTS.0, REQUESTS.1, now),
            strange: Bucket::new(STRANGE_PORTS.0, STRANGE_PORTS.1, now),
            own: VecDeque::new(),
        }
    }

    /// Forgetting it would give its source nothing that it does not have.
    fn is_idle(&self, now: Instant) -> bool {
        self.connections + self.running + self.waiting == 0
            && self.requests.is_full(now)
            && self.strange.is_full(now)
    }

    fn owns(&mut self, endpoint: SocketAddr, now: Instant) {
        self.own.retain(|(known, _)| *known != endpoint);
        self.own.push_back((endpoint, now));
        if self.own.len() > MAX_OWN {
            self.own.pop_front();
        }
    }

    fn is_own(&self, endpoint: SocketAddr, now: Instant) -> bool {
        let fresh = |at: &Instant| now.saturating_duration_since(*at) <= OWN_FOR;
        self.own.iter().any(|(known, at)| *known == endpoint && fresh(at))
    }
}

impl Running {
    fn new(request: &Message, asker: SocketAddr, from: SocketAddr, to: SocketAddr) -> Self {
        Self { request: request.clone(), asker, from, to, waits: false, forged: None }
    }
}

/// Whoever shares a limit: one IPv4 address, or one IPv6 /64, which is what one subscriber has.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests;
