//! An internet in memory: members behind NATs, a broker, a relay, 20 ms to the middle for everybody, one queue ordered by
//! arrival. Nothing here knows how the members find each other; it only carries what they send.

pub(crate) mod machine;
pub(crate) mod nat;
pub(crate) mod server;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::rng::Rng;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::base::time::Now;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::ToBroker;

use machine::Machine;
use nat::Nat;
use server::Server;

/// From anybody to the middle of the internet, and from there to anybody.
pub(crate) const TO_THE_MIDDLE: Duration = ms(20);
/// Round trip between a member and the broker: the unit of "how long until".
pub(crate) const BROKER_RTT: Duration = ms(80);
/// Within one site.
const ON_THE_LAN: Duration = ms(1);
/// How often a value may ask to be woken at one and the same moment before it counts as spinning.
const MAX_SPINS: u32 = 12;

pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Who(pub(crate) usize);

/// A NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NatId(pub(crate) usize);

/// A datagram as it crossed the middle of the internet, or a LAN.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug)]
enum Arrival {
    Datagram { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    OnLan { from: SocketAddr, to: Who, bytes: Vec<u8> },
    AtBroker { from: Who, life: u32, message: ToBroker },
    AtMember { to: Who, life: u32, message: FromBroker },
    StreamAtRelay { from: Who, id: StreamId },
    StreamRefused { to: Who, id: StreamId },
    StreamOpened { to: Who, id: StreamId },
    FrameAtRelay { from: Who, id: StreamId, bytes: Vec<u8> },
    FrameAtMember { to: Who, id: StreamId, bytes: Vec<u8> },
    CloseAtRelay { from: Who, id: StreamId },
    CloseAtMember { to: Who, id: StreamId },
}

/// Everything.
pub(crate) struct World {
    pub(crate) now: Now,
    pub(crate) start: Instant,
    pub(crate) authority: Authority,
    pub(crate) server: Server,
    pub(crate) machines: Vec<Machine>,
    pub(crate) nats: Vec<Nat>,
    /// Every datagram that was sent, lost ones too.
    pub(crate) wire: Vec<Seen>,
    /// Datagrams to addresses that no machine of the world has.
    pub(crate) nobody: Vec<Seen>,
    /// Share of datagrams that get lost.
    pub(crate) loss: f64,
    /// Pairs of outside addresses between which no datagram passes.
    pub(crate) blocked: BTreeSet<(IpAddr, IpAddr)>,
    queue: BTreeMap<(Instant, u64), Arrival>,
    sequence: u64,
    rng: Rng,
    spins: u32,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "a simulation needs some origin to count from")]
    pub(crate) fn new() -> Self {
        let now = Now { instant: Instant::now(), unix: UnixTime::from_secs(1_900_000_000) };
        let prefix = "10.77.0.0/16".parse().unwrap();
        let authority = Authority::create(&"home".parse().unwrap(), prefix, now.unix);
        Self {
            now,
            start: now.instant,
            server: Server::new(&authority, now),
            authority,
            machines: Vec::new(),
            nats: Vec::new(),
            wire: Vec::new(),
            nobody: Vec::new(),
            loss: 0.0,
            blocked: BTreeSet::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            rng: Rng::new(Seed([42; 32])),
            spins: 0,
        }
    }

    pub(crate) fn nat(&mut self, behavior: nat::Behavior) -> NatId {
        let n = u8::try_from(self.nats.len()).unwrap();
        self.nats.push(Nat::new(Ipv4Addr::new(203, 0, 113, 10 + n), behavior));
        NatId(self.nats.len() - 1)
    }

    /// A new member, switched off.
    pub(crate) fn member(&mut self, name: &str, nat: Option<NatId>) -> Who {
        let n = u8::try_from(self.machines.len()).unwrap() + 1;
        self.machines.push(Machine::new(&self.authority, name, n, nat, self.now.unix));
        Who(self.machines.len() - 1)
    }

    /// Two members in each its own NAT, registered and at rest.
    pub(crate) fn pair(a: nat::Behavior, b: nat::Behavior) -> (Self, Who, Who) {
        let mut world = Self::new();
        let (na, nb) = (world.nat(a), world.nat(b));
        let (anna, bert) = (world.member("anna", Some(na)), world.member("bert", Some(nb)));
        world.switch_on(anna);
        world.switch_on(bert);
        world.run(secs(3));
        (world, anna, bert)
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now.instant + time;
        let _ = self.run_until(time, |_| false);
        assert!(self.now.instant <= end);
        self.now = self.now.plus(end - self.now.instant);
    }

    /// Runs until `done`, for `time` at most; how long it took, if it came to that.
    pub(crate) fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
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
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.schedule(TO_THE_MIDDLE, Arrival::Datagram { from, to, bytes });
    }

    /// Stops, or lets pass again, all datagrams between the two sites; the servers stay in reach.
    pub(crate) fn block(&mut self, a: Who, b: Who, blocked: bool) {
        let (a, b) = (self.outside(a), self.outside(b));
        for pair in [(a, b), (b, a)] {
            if blocked {
                self.blocked.insert(pair);
            } else {
                self.blocked.remove(&pair);
            }
        }
    }

    /// The address by which the world knows a machine's site.
    pub(crate) fn outside(&self, who: Who) -> IpAddr {
        let machine = &self.machines[who.0];
        machine.nat.map_or_else(|| machine.inside.ip(), |nat| IpAddr::V4(self.nats[nat.0].public))
    }

    pub(crate) fn since_start(&self) -> Duration {
        self.now.instant - self.start
    }

    fn next_moment(&self) -> Instant {
        let arrival = self.queue.first_key_value().map(|((at, _), _)| *at);
        let deadlines = self.machines.iter().filter_map(Machine::deadline);
        let next = deadlines.chain(arrival).chain(self.server.deadline()).min();
        next.unwrap_or(self.now.instant + secs(1)).max(self.now.instant)
    }

    fn step(&mut self, to: Instant) {
        if to > self.now.instant {
            self.now = self.now.plus(to - self.now.instant);
            self.spins = 0;
        }
        if let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= to
        {
            let arrival = entry.remove();
            self.deliver(arrival);
            return;
        }
        self.spins += 1;
        for i in 0..self.machines.len() {
            if self.machines[i].deadline().is_some_and(|at| at <= to) {
                assert!(
                    self.spins < MAX_SPINS,
                    "{} spins: {:?}",
                    self.machines[i].name,
                    self.machines[i].why_awake()
                );
                self.machines[i].handle_timeout(self.now);
                self.collect(Who(i));
            }
        }
        if self.server.deadline().is_some_and(|at| at <= to) {
            assert!(self.spins < MAX_SPINS, "the server spins");
            self.server.handle_timeout(self.now);
            self.collect_server();
        }
    }

    fn schedule(&mut self, after: Duration, arrival: Arrival) {
        self.sequence += 1;
        self.queue.insert((self.now.instant + after, self.sequence), arrival);
    }

    fn deliver(&mut self, arrival: Arrival) {
        let now = self.now;
        match arrival {
            Arrival::Datagram { from, to, bytes } => self.deliver_datagram(from, to, bytes),
            Arrival::OnLan { from, to, bytes } => self.at_member(to, |m| m.handle_datagram(from, bytes, now)),
            Arrival::AtBroker { from, life, message } => {
                if self.machines[from.0].life == life {
                    self.server.handle_message(from, message, now);
                    self.collect_server();
                }
            }
            Arrival::AtMember { to, life, message } => {
                if self.machines[to.0].life == life {
                    let key = self.server.key_of(to);
                    self.at_member(to, |m| m.handle_broker(message, key, now));
                }
            }
            Arrival::StreamAtRelay { from, id } => {
                let source = SocketAddr::new(self.outside(from), 40_000 + u16::try_from(id.0).unwrap());
                self.server.accept(from, id, source, now);
                self.schedule(TO_THE_MIDDLE * 2, Arrival::StreamOpened { to: from, id });
                self.collect_server();
            }
            Arrival::StreamRefused { to, id } => {
                self.at_member(to, |m| m.handle_closed(id, "no route to host", now));
            }
            Arrival::StreamOpened { to, id } => self.at_member(to, |m| m.handle_opened(id, now)),
            Arrival::FrameAtRelay { from, id, bytes } => {
                self.server.handle_frame(from, id, &bytes, now);
                self.collect_server();
            }
            Arrival::FrameAtMember { to, id, bytes } => {
                self.at_member(to, |m| m.handle_frame(id, bytes, now))
            }
            Arrival::CloseAtRelay { from, id } => {
                self.server.handle_closed(from, id);
                self.collect_server();
            }
            Arrival::CloseAtMember { to, id } => self.at_member(to, |m| m.handle_closed(id, "reset", now)),
        }
    }

    fn deliver_datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let now = self.now;
        if server::is_here(to.ip()) {
            self.server.handle_datagram(from, to, &bytes, now);
            return self.collect_server();
        }
        let inside = match self.nats.iter_mut().find(|nat| IpAddr::V4(nat.public) == to.ip()) {
            Some(nat) => match nat.inward(from, to.port(), now.instant) {
                Some(inside) => inside,
                None => return,
            },
            None => to,
        };
        match self.machines.iter().position(|m| m.inside == inside) {
            Some(i) => self.at_member(Who(i), |m| m.handle_datagram(from, bytes, now)),
            None => self.nobody.push(Seen { at: now.instant, from, to, bytes }),
        }
    }

    /// Lets something happen to a machine and carries away what comes of it.
    pub(crate) fn at_member(&mut self, who: Who, what: impl FnOnce(&mut Machine)) {
        what(&mut self.machines[who.0]);
        self.collect(who);
    }

    fn collect(&mut self, who: Who) {
        let life = self.machines[who.0].life;
        for sent in self.machines[who.0].take_sent(self.now) {
            match sent {
                machine::Sent::Datagram { to, bytes } => self.send(who, to, bytes),
                machine::Sent::Frame { id, bytes } => {
                    self.schedule(TO_THE_MIDDLE * 2, Arrival::FrameAtRelay { from: who, id, bytes });
                }
                machine::Sent::Open { id, to } => {
                    if self.machines[who.0].no_tcp || !server::is_here(to.ip()) {
                        self.schedule(ms(10), Arrival::StreamRefused { to: who, id });
                    } else {
                        self.schedule(TO_THE_MIDDLE * 2, Arrival::StreamAtRelay { from: who, id });
                    }
                }
                machine::Sent::Close(id) => {
                    self.schedule(TO_THE_MIDDLE * 2, Arrival::CloseAtRelay { from: who, id });
                }
                machine::Sent::Broker(message) => {
                    self.schedule(TO_THE_MIDDLE * 2, Arrival::AtBroker { from: who, life, message });
                }
            }
        }
    }

    fn collect_server(&mut self) {
        for sent in self.server.take_sent() {
            match sent {
                server::Sent::Datagram { from, to, bytes } => {
                    self.log(from, to, &bytes);
                    if !self.is_lost() {
                        self.schedule(TO_THE_MIDDLE * 2, Arrival::Datagram { from, to, bytes });
                    }
                }
                server::Sent::Message(to, message) => {
                    let life = self.machines[to.0].life;
                    self.schedule(TO_THE_MIDDLE * 2, Arrival::AtMember { to, life, message });
                }
                server::Sent::Frame(to, id, bytes) => {
                    self.schedule(TO_THE_MIDDLE * 2, Arrival::FrameAtMember { to, id, bytes });
                }
                server::Sent::Close(to, id) => {
                    self.schedule(TO_THE_MIDDLE * 2, Arrival::CloseAtMember { to, id });
                }
            }
        }
    }

    /// Sends a datagram of a machine: onto its LAN, or through its NAT into the world.
    fn send(&mut self, who: Who, to: SocketAddr, bytes: Vec<u8>) {
        let machine = &self.machines[who.0];
        let (inside, nat) = (machine.inside, machine.nat);
        let neighbour = self.machines.iter().position(|m| m.inside == to && m.nat == nat && nat.is_some());
        if let Some(neighbour) = neighbour {
            self.log(inside, to, &bytes);
            self.schedule(ON_THE_LAN, Arrival::OnLan { from: inside, to: Who(neighbour), bytes });
            return;
        }
        if machine.no_udp {
            return;
        }
        let from = nat.map_or(inside, |nat| self.nats[nat.0].outward(inside, to, self.now.instant));
        self.log(from, to, &bytes);
        let is_private = matches!(to.ip(), IpAddr::V4(v4) if v4.is_private());
        let hairpin = from.ip() == to.ip();
        if is_private || hairpin || self.blocked.contains(&(from.ip(), to.ip())) || self.is_lost() {
            return;
        }
        self.schedule(TO_THE_MIDDLE * 2, Arrival::Datagram { from, to, bytes });
    }

    fn log(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.wire.push(Seen { at: self.now.instant, from, to, bytes: bytes.to_vec() });
    }

    fn is_lost(&mut self) -> bool {
        f64::from(self.rng.u32()) < self.loss * f64::from(u32::MAX)
    }
}
