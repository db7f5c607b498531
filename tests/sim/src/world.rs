//! Everything, and the one queue that drives it: events in order of arrival, deadlines of members and servers between.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::rng::Rng;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::base::time::Now;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::identity::certificate::Roles;
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::ToBroker;

use crate::Who;
use crate::clock;
use crate::machine;
use crate::machine::Machine;
use crate::ms;
use crate::nat::Behavior;
use crate::net::INTERNET;
use crate::net::Lost;
use crate::net::NatId;
use crate::net::Net;
use crate::net::Owner;
use crate::net::Realm;
use crate::net::TO_THE_MIDDLE;
use crate::secs;
use crate::server;
use crate::server::Server;
use crate::tcp::SeenSegment;
use crate::tcp::Segment;
use crate::trace::Trace;

/// How often a value may ask to be woken at one and the same moment before it counts as spinning.
const MAX_SPINS: u32 = 12;

/// From the broker's welcome to what decides how peers are met (docs/nat.md: 5 s at most, 2.5 s in the lab).
const SURVEY: Duration = ms(2500);

/// A datagram as it crossed the middle of the internet, or a LAN.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it was sent, or for `World::nobody` when it arrived.
    pub at: Instant,
    /// Its source, after the NATs on its way out.
    pub from: SocketAddr,
    /// Its destination, before the NATs on its way in.
    pub to: SocketAddr,
    /// What it is.
    pub bytes: Vec<u8>,
}

/// Something that is under way.
#[derive(Debug)]
pub(crate) enum Arrival {
    Datagram { realm: Realm, from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Dialled { who: Who, link: u32 },
    Redial { who: Who, link: u32 },
    LinkReset { who: Who, link: u32 },
    LinkSilent { who: Who, link: u32 },
    AtBroker { from: Who, link: u32, message: ToBroker },
    AtMember { to: Who, link: u32, message: FromBroker },
    Segment { realm: Realm, from: SocketAddr, to: SocketAddr, segment: Segment },
    Surveyed { who: Who, link: u32 },
}

/// In order of time, then in the order in which it was sent.
struct Entry {
    at: Instant,
    sequence: u64,
    // In a box: the heap moves its entries about.
    arrival: Box<Arrival>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Everything.
pub struct World {
    /// The present.
    pub now: Now,
    /// When it began.
    pub start: Instant,
    /// The network's CA.
    pub authority: Authority,
    /// The broker and the relays.
    pub server: Server,
    /// The members' machines.
    pub machines: Vec<Machine>,
    /// What lies between them.
    pub net: Net,
    /// What happened so far.
    pub trace: Trace,
    /// Whether `wire`, and what machines hear and say, is written down. Large worlds do without.
    pub records: bool,
    /// Every datagram that was sent, lost ones too.
    pub wire: Vec<Seen>,
    /// Every segment of TCP that was sent, lost ones too.
    pub segments: Vec<SeenSegment>,
    /// Datagrams to addresses that no machine of the world has.
    pub nobody: Vec<Seen>,
    pub(crate) rng: Rng,
    queue: BinaryHeap<Reverse<Entry>>,
    alarms: BTreeSet<(Instant, Who)>,
    sequence: u64,
    server_spins: u32,
}

impl Drop for World {
    fn drop(&mut self) {
        clock::release();
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An internet with a broker and a relay, and nobody on it. One at a time on each thread: it sets the thread's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::seeded(42)
    }

    /// The same, with other chances.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "a simulation needs some origin to count from")]
    pub fn seeded(seed: u64) -> Self {
        clock::begin();
        let now = Now { instant: Instant::now(), unix: UnixTime::from_secs(clock::EPOCH) };
        let prefix = "10.77.0.0/16".parse().expect("a prefix");
        let network = "home".parse().expect("a name");
        let authority = Authority::create(&network, prefix, now.unix);
        let mut bytes = [42; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self {
            now,
            start: now.instant,
            server: Server::new(&authority, now),
            authority,
            machines: Vec::new(),
            net: Net::default(),
            trace: Trace::default(),
            records: true,
            wire: Vec::new(),
            segments: Vec::new(),
            nobody: Vec::new(),
            rng: Rng::new(Seed(bytes)),
            queue: BinaryHeap::new(),
            alarms: BTreeSet::new(),
            sequence: 0,
            server_spins: 0,
        }
    }

    /// Two members in each its own NAT, registered and at rest.
    #[must_use]
    pub fn pair(a: Behavior, b: Behavior) -> (Self, Who, Who) {
        let mut world = Self::new();
        let (na, nb) = (world.nat(a), world.nat(b));
        let (anna, bert) = (world.member("anna", Some(na)), world.member("bert", Some(nb)));
        world.switch_on(anna);
        world.switch_on(bert);
        world.run(secs(3));
        (world, anna, bert)
    }

    /// A NAT on the internet.
    pub fn nat(&mut self, behavior: Behavior) -> NatId {
        self.net.add_nat(INTERNET, behavior)
    }

    /// A NAT behind another one: a home on a carrier's network.
    pub fn nat_behind(&mut self, carrier: NatId, behavior: Behavior) -> NatId {
        let realm = self.net.behind(Some(carrier));
        self.net.add_nat(realm, behavior)
    }

    /// A new member, switched off.
    pub fn member(&mut self, name: &str, nat: Option<NatId>) -> Who {
        self.machine(name, nat, Roles::MEMBER)
    }

    /// A new member that carries others' traffic too where it can, switched off.
    pub fn super_node(&mut self, name: &str, nat: Option<NatId>) -> Who {
        self.machine(name, nat, Roles { relay: true, ..Roles::MEMBER })
    }

    fn machine(&mut self, name: &str, nat: Option<NatId>, roles: Roles) -> Who {
        let n = u16::try_from(self.machines.len() + 1).expect("the overlay has 65,534 addresses");
        let who = Who(self.machines.len());
        let machine = Machine::new(&self.authority, name, n, nat, roles, self.now.unix);
        self.net.plug_in(self.net.behind(nat), machine.inside.ip(), who);
        self.machines.push(machine);
        who
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now.instant + time;
        let _ = self.run_until(time, |_| false);
        assert!(self.now.instant <= end);
        self.now = self.now.plus(end - self.now.instant);
    }

    /// Runs until `done`, for `time` at most; how long it took, if it came to that.
    pub fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now.instant;
        while !done(self) {
            let next = self.next_moment();
            if next > start + time {
                return None;
            }
            self.step(next);
        }
        Some(self.now.instant - start)
    }

    /// Puts a datagram onto the internet as if `from` had sent it.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.schedule(TO_THE_MIDDLE, Arrival::Datagram { realm: INTERNET, from, to, bytes });
    }

    /// Stops, or lets pass again, all datagrams between the two sites; the servers stay in reach.
    pub fn block(&mut self, a: Who, b: Who, blocked: bool) {
        let (a, b) = (self.outside(a), self.outside(b));
        for pair in [(a, b), (b, a)] {
            if blocked {
                self.net.blocked.insert(pair);
            } else {
                self.net.blocked.remove(&pair);
            }
        }
    }

    /// The address by which the world knows a machine's site.
    #[must_use]
    pub fn outside(&self, who: Who) -> IpAddr {
        let machine = &self.machines[who.0];
        self.net.outside(self.net.behind(machine.nat), machine.inside.ip())
    }

    /// How long the world has been going.
    #[must_use]
    pub fn since_start(&self) -> Duration {
        self.now.instant - self.start
    }

    /// How much is under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.queue.len()
    }

    fn next_moment(&mut self) -> Instant {
        let arrival = self.queue.peek().map(|Reverse(entry)| entry.at);
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let next = [arrival, alarm, self.server.deadline()].into_iter().flatten().min();
        next.unwrap_or(self.now.instant + secs(1)).max(self.now.instant)
    }

    fn step(&mut self, to: Instant) {
        if to > self.now.instant {
            self.now = self.now.plus(to - self.now.instant);
            self.server_spins = 0;
        }
        clock::set(self.since_start());
        if self.queue.peek().is_some_and(|Reverse(entry)| entry.at <= to)
            && let Some(Reverse(entry)) = self.queue.pop()
        {
            return self.deliver(*entry.arrival);
        }
        while let Some((at, who)) = self.alarms.first().copied().filter(|(at, _)| *at <= to) {
            self.alarms.remove(&(at, who));
            let machine = &mut self.machines[who.0];
            machine.alarm = None;
            let spins = machine.wakes(to);
            if spins >= MAX_SPINS {
                let why = machine.why_awake();
                panic!("{} spins: {why:?}", machine.name);
            }
            self.trace.event(to - self.start, who.0, 1);
            machine.handle_timeout(self.now);
            self.collect(who);
            if spins > 0 {
                // Others first, as in a queue.
                return;
            }
        }
        if self.server.deadline().is_some_and(|at| at <= to) {
            self.server_spins += 1;
            assert!(self.server_spins < MAX_SPINS, "the server spins");
            self.server.handle_timeout(self.now);
            self.collect_server();
        }
    }

    pub(crate) fn schedule(&mut self, after: Duration, arrival: Arrival) {
        self.sequence += 1;
        let (at, sequence) = (self.now.instant + after, self.sequence);
        self.queue.push(Reverse(Entry { at, sequence, arrival: Box::new(arrival) }));
    }

    fn deliver(&mut self, arrival: Arrival) {
        let now = self.now;
        match arrival {
            Arrival::Datagram { realm, from, to, bytes } => self.deliver_datagram(realm, from, to, bytes),
            Arrival::Dialled { who, link } => self.on_dialled(who, link),
            Arrival::Redial { who, link } => {
                if self.machines[who.0].link == link {
                    self.dial(who);
                }
            }
            Arrival::LinkReset { who, link } => self.on_link_lost(who, link, "the connection was reset"),
            Arrival::LinkSilent { who, link } => {
                if !self.reaches_servers(who) {
                    self.server.disconnect(who, link, now);
                    self.collect_server();
                    self.on_link_lost(who, link, "the broker fell silent");
                }
            }
            Arrival::AtBroker { from, link, message } => {
                if self.machines[from.0].link == link {
                    self.trace.control(now.instant - self.start, from.0, &message);
                    self.server.handle_message(from, message, now);
                    self.collect_server();
                }
            }
            Arrival::AtMember { to, link, message } => {
                if self.machines[to.0].link == link {
                    self.trace.control(now.instant - self.start, to.0, &message);
                    if matches!(&message, FromBroker::Registered(_)) && self.machines[to.0].tcp {
                        self.schedule(SURVEY, Arrival::Surveyed { who: to, link });
                    }
                    let asked = matches!(&message, FromBroker::Offer(offer) if offer.request.is_some());
                    self.trace.introductions += u64::from(asked);
                    let key = self.server.key_of(to);
                    self.at_member(to, |m| m.handle_broker(message, key, now));
                }
            }
            Arrival::Segment { realm, from, to, segment } => self.deliver_segment(realm, from, to, segment),
            Arrival::Surveyed { who, link } => {
                if self.machines[who.0].link == link {
                    let profile = self.survey(who);
                    self.at_member(who, |m| m.handle_profile(profile, now));
                }
            }
        }
    }

    fn deliver_datagram(&mut self, realm: Realm, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let now = self.now;
        match self.net.receive(realm, from, to, now.instant) {
            Ok((Owner::Server, _)) => {
                self.trace.event(now.instant - self.start, usize::MAX, 2);
                self.server.handle_datagram(from, to, &bytes, now);
                self.collect_server();
            }
            Ok((Owner::Machine(who), to)) => {
                self.trace.event(now.instant - self.start, who.0, 2);
                let near = realm != INTERNET && realm == self.net.behind(self.machines[who.0].nat);
                self.at_member(who, |m| m.handle_datagram(from, to, bytes, near, now));
            }
            Err(Lost::Nobody) if self.records => self.nobody.push(Seen { at: now.instant, from, to, bytes }),
            Ok((Owner::Nat(_), _)) | Err(Lost::Filtered | Lost::Nobody) => {}
        }
    }

    /// Lets something happen to a machine and carries away what comes of it.
    pub fn at_member(&mut self, who: Who, what: impl FnOnce(&mut Machine)) {
        clock::set(self.since_start());
        what(&mut self.machines[who.0]);
        self.collect(who);
    }

    pub(crate) fn collect(&mut self, who: Who) {
        let (now, records) = (self.now, self.records);
        let sent = self.machines[who.0].take_sent(now, records, &mut self.trace, self.start);
        let link = self.machines[who.0].link;
        for sent in sent {
            match sent {
                machine::Sent::Datagram { from, to, bytes } => self.send(who, from, to, bytes),
                machine::Sent::Segment { from, to, segment } => self.send_segment(who, from, to, segment),
                machine::Sent::Broker(message) => {
                    self.control(who, Arrival::AtBroker { from: who, link, message });
                }
            }
        }
        self.set_alarm(who);
    }

    fn set_alarm(&mut self, who: Who) {
        let machine = &mut self.machines[who.0];
        let deadline = machine.deadline();
        if deadline == machine.alarm {
            return;
        }
        let old = std::mem::replace(&mut machine.alarm, deadline);
        if let Some(old) = old {
            self.alarms.remove(&(old, who));
        }
        if let Some(at) = deadline {
            self.alarms.insert((at, who));
        }
    }

    pub(crate) fn collect_server(&mut self) {
        for sent in self.server.take_sent() {
            match sent {
                server::Sent::Datagram { from, to, bytes } => {
                    self.log(from, to, &bytes);
                    if let Some(after) = self.net.cross(from.ip(), to.ip(), &mut self.rng) {
                        self.schedule(after, Arrival::Datagram { realm: INTERNET, from, to, bytes });
                    }
                }
                server::Sent::Message(to, link, message) => {
                    self.control(to, Arrival::AtMember { to, link, message });
                }
                server::Sent::Reset(who, link) => {
                    self.control(who, Arrival::LinkReset { who, link });
                }
                server::Sent::Segment { from, to, segment } => {
                    self.route_segment(INTERNET, from, to, segment);
                }
            }
        }
    }

    /// Something on the connection between a member and the broker: what is sent while the member's site is cut off
    /// arrives when it no longer is, unless the connection is given up before.
    fn control(&mut self, who: Who, arrival: Arrival) {
        if self.reaches_servers(who) {
            self.schedule(TO_THE_MIDDLE * 2, arrival);
        } else {
            self.machines[who.0].held.push(arrival);
        }
    }

    /// Whether a machine's site is connected to where the servers are.
    #[must_use]
    pub fn reaches_servers(&self, who: Who) -> bool {
        self.net.is_up(self.outside(who))
    }

    /// Sends a datagram of a machine: onto its LAN, or through its NATs into the world.
    fn send(&mut self, who: Who, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let machine = &self.machines[who.0];
        let (realm, no_udp) = (self.net.behind(machine.nat), machine.no_udp);
        if no_udp && (realm == INTERNET || self.net.owner(realm, to.ip()).is_none()) {
            return;
        }
        let sent = self.net.send(realm, from, to, self.now.instant, &mut self.rng);
        self.log(sent.from, to, &bytes);
        if let Some(after) = sent.after {
            self.schedule(after, Arrival::Datagram { realm: sent.realm, from: sent.from, to, bytes });
        }
    }

    fn log(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.trace.datagram(self.now.instant - self.start, from, to, bytes);
        if self.records {
            self.wire.push(Seen { at: self.now.instant, from, to, bytes: bytes.to_vec() });
        }
    }
}
