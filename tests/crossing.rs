//! Both sides dial at once, a thousand times: the product's own attempts and doors on two machines with a slow line between
//! them, so that SYNs cross. Every time one stream is left, and in the end nothing is.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::ns::Namespace;
use ntcp_overlay::base::id::AttemptId;
use ntcp_overlay::base::id::PortId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::rng::Rng;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::base::transmit::Outbox;
use ntcp_overlay::base::transmit::StreamEvent;
use ntcp_overlay::base::transmit::StreamOrder;
use ntcp_overlay::base::transmit::Via;
use ntcp_overlay::identity::agreement::Agreements;
use ntcp_overlay::identity::keys::WgSecret;
use ntcp_overlay::io::doors::Doors;
use ntcp_overlay::io::doors::Event;
use ntcp_overlay::io::doors::Waker;
use ntcp_overlay::nat::behavior::Behavior;
use ntcp_overlay::punch::keys::Check;
use ntcp_overlay::punch::keys::Numbers;
use ntcp_overlay::punch::keys::PairKeys;
use ntcp_overlay::punch::keys::Side;
use ntcp_overlay::punch::method::simultaneous;
use ntcp_overlay::punch::tcp::Attempt;
use ntcp_overlay::punch::tcp::Hands;
use ntcp_overlay::punch::tcp::Opened;
use ntcp_overlay::punch::tcp::Plan;
use ntcp_overlay::punch::turn::Turn;
use ntcp_overlay::wire::stun;

/// Attempts, one after the other ...
const ATTEMPTS: u16 = 1000;
/// ... so many at a time.
const AT_ONCE: usize = 50;
/// One way on each line: the SYNs of both are on their way for twice as long.
const DELAY: Duration = Duration::from_millis(5);
/// For everything, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn whoever_dials_at_once_a_thousand_times_leaves_no_socket_behind() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let link = Link::delayed(DELAY);
        let hosts = [net.host("anna", &link)?, net.host("bert", &link)?];
        let before = descriptors()?;
        let doors = [Doors::new()?, Doors::new()?];
        let idle = descriptors()?;

        let (wakers, [anna_doors, bert_doors]) = (doors.each_ref().map(Doors::waker), doors);
        let [anna_waker, bert_waker] = wakers;
        let (to_bert, from_anna) = mpsc::channel();
        let (to_anna, from_bert) = mpsc::channel();
        let ip = |n: usize| IpAddr::V4(hosts[n].v4);
        let anna = Machine::new(Side::Asking, ip(0), anna_doors, (to_bert, bert_waker), from_bert);
        let bert = Machine::new(Side::Asked, ip(1), bert_doors, (to_anna, anna_waker), from_anna);
        let start = now();
        let [of_anna, of_bert] = thread::scope(|scope| {
            let runs = [(anna, &hosts[0].ns), (bert, &hosts[1].ns)]
                .map(|(machine, ns)| scope.spawn(|| ns.inside(move || machine.run())));
            runs.map(|run| run.join().expect("it has no reason to panic"))
        });
        let (of_anna, of_bert) = (of_anna??, of_bert??);
        let took = start.elapsed();

        ensure!((of_anna.won, of_bert.won) == (ATTEMPTS, ATTEMPTS), "{of_anna:?} {of_bert:?}");
        let accepted = of_anna.accepted + of_bert.accepted;
        say(&format!(
            "{ATTEMPTS} attempts in {took:.1?}: in {accepted} of them a listener was faster than its own SYN"
        ));
        ensure!(accepted < u32::from(ATTEMPTS) / 2, "hardly any SYNs crossed: {of_anna:?} {of_bert:?}");
        ensure!(descriptors()? == idle, "{} descriptors, and there were {idle}", descriptors()?);
        for host in &hosts {
            no_sockets(&host.ns)?;
        }
        drop((of_anna, of_bert));
        ensure!(descriptors()? == before, "{} descriptors, and there were {before}", descriptors()?);
        Ok(())
    });
}

/// What a machine has done; its doors, so that they are open when descriptors are counted.
#[derive(Debug)]
struct Done {
    won: u16,
    accepted: u32,
    _doors: Doors,
}

/// "I am ready for this attempt, here", which the broker would pass on.
type Word = (u16, Vec<SocketAddr>);

/// A member as far as direct TCP is concerned.
struct Machine {
    side: Side,
    ip: IpAddr,
    doors: Doors,
    peer: (Sender<Word>, Waker),
    words: Receiver<Word>,
    rng: Rng,
    next: u32,
    turn: Turn,
    numbers: Numbers,
    running: BTreeMap<u16, Running>,
    begun: u16,
    streams: BTreeMap<StreamId, (u16, SocketAddr)>,
    ports: BTreeMap<PortId, u16>,
    won: u16,
    accepted: u32,
}

struct Running {
    keys: PairKeys,
    attempt: Attempt,
    /// Where the peer is, once it has said so.
    peer: Option<Vec<SocketAddr>>,
    is_ready: bool,
    won: bool,
}

/// What the doors told, without its borrow.
enum Told {
    Accepted(StreamId, Option<PortId>, SocketAddr),
    Opened(StreamId),
    Frame(StreamId, Vec<u8>),
    Closed(StreamId, ntcp_overlay::base::transmit::Gone),
}

impl Machine {
    fn new(side: Side, ip: IpAddr, doors: Doors, peer: (Sender<Word>, Waker), words: Receiver<Word>) -> Self {
        let rng = Rng::new(Seed([side as u8; 32]));
        Self {
            side,
            ip,
            doors,
            peer,
            words,
            rng,
            next: 2,
            turn: Turn::default(),
            numbers: Numbers::default(),
            running: BTreeMap::new(),
            begun: 0,
            streams: BTreeMap::new(),
            ports: BTreeMap::new(),
            won: 0,
            accepted: 0,
        }
    }

    /// Makes all attempts, then closes what came of them.
    fn run(mut self) -> Result<Done> {
        let deadline = now() + PATIENCE;
        while self.begun < ATTEMPTS || !self.running.is_empty() {
            ensure!(now() < deadline, "{} of {} are still under way", self.running.len(), self.begun);
            while self.begun < ATTEMPTS && self.running.values().filter(|r| !r.won).count() < AT_ONCE {
                self.begin();
            }
            let all: Vec<u16> = self.running.keys().copied().collect();
            for n in all {
                self.with(n, Attempt::handle_timeout);
                self.serve(n)?;
            }
            self.running.retain(|_, running| !running.attempt.is_over());
            self.listen()?;
        }
        for id in self.streams.into_keys() {
            self.doors.close(id);
        }
        Ok(Done { won: self.won, accepted: self.accepted, _doors: self.doors })
    }

    fn begin(&mut self) {
        let n = self.begun;
        self.begun += 1;
        let (anna, bert) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
        let (own, peer) = match self.side {
            Side::Asking => (anna, bert),
            Side::Asked => (bert, anna),
        };
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        let keys = PairKeys::new(&mut Agreements::new(own), peer.public(), AttemptId(id), self.side)
            .expect("keys of good order");
        let own = Behavior::default();
        let plan = Plan {
            own,
            public: vec![self.ip],
            observer: None,
            targets: Vec::new(),
            rounds: vec![simultaneous::round(&own)],
            first: 0,
        };
        let attempt = Attempt::new(keys.clone(), plan, now());
        let known = self.running.remove(&n).and_then(|early| early.peer);
        self.running.insert(n, Running { keys, attempt, peer: known, is_ready: false, won: false });
    }

    fn with<T>(&mut self, n: u16, act: impl FnOnce(&mut Attempt, &mut Hands<'_>) -> T) -> Option<T> {
        let mut hands = Hands { now: now(), rng: &mut self.rng, next: &mut self.next, turn: &mut self.turn };
        self.running.get_mut(&n).map(|running| act(&mut running.attempt, &mut hands))
    }

    /// Carries out what an attempt wants.
    fn serve(&mut self, n: u16) -> Result<()> {
        loop {
            while let Some(order) = self.running.get_mut(&n).and_then(|r| r.attempt.poll_order()) {
                match order {
                    StreamOrder::Open(id, dial) => {
                        self.streams.insert(id, (n, dial.to));
                        self.doors.connect(id, dial);
                    }
                    StreamOrder::Close(id) => {
                        self.streams.remove(&id);
                        self.doors.close(id);
                    }
                    StreamOrder::RaiseTtl(id) => self.doors.raise_ttl(id),
                    StreamOrder::Bind(port) => {
                        self.ports.insert(port, n);
                        let bound = self.doors.bind_port(port);
                        self.with(n, |attempt, hands| attempt.handle_bound(port, bound, hands));
                    }
                    StreamOrder::Unbind(port) => {
                        self.ports.remove(&port);
                        self.doors.unbind_port(port);
                    }
                    StreamOrder::OpenUdp(_) | StreamOrder::CloseUdp(_) | StreamOrder::Print(..) => {}
                }
            }
            let Some(running) = self.running.get_mut(&n) else { return Ok(()) };
            if let Some(ready) = running.attempt.poll_ready() {
                running.is_ready = true;
                self.peer.0.send((n, ready.endpoints)).context("the other machine has ended")?;
                self.peer.1.wake();
            }
            let Some(endpoints) = running.peer.take_if(|_| running.is_ready) else { return Ok(()) };
            running.attempt.handle_go(1, endpoints, Duration::ZERO, now());
            self.with(n, Attempt::handle_timeout);
        }
    }

    /// Takes in what the peer and the sockets say.
    fn listen(&mut self) -> Result<()> {
        let mut told = Vec::new();
        let mut on = |event: Event<'_>| match event {
            Event::Accepted { id, from, port, .. } => told.push(Told::Accepted(id, port, from)),
            Event::Stream { id, event: StreamEvent::Opened } => told.push(Told::Opened(id)),
            Event::Stream { id, event: StreamEvent::Frame(bytes) } => {
                told.push(Told::Frame(id, bytes.to_vec()));
            }
            Event::Stream { id, event: StreamEvent::Closed(gone) } => told.push(Told::Closed(id, gone)),
            Event::Datagram { .. }
            | Event::Stream { event: StreamEvent::Dialled(_), .. }
            | Event::Device
            | Event::Woken => {}
        };
        let due = self.running.values().filter_map(|running| running.attempt.poll_timeout()).min();
        let moment = now();
        let wait = due.map(|at| at.saturating_duration_since(moment)).unwrap_or(DELAY);
        self.doors.wait(moment, Some(wait), &mut on)?;
        for told in told {
            self.handle(told)?;
        }
        for (n, endpoints) in self.words.try_iter().collect::<Vec<_>>() {
            // It may be ahead of us.
            while self.begun <= n {
                self.begin();
            }
            if let Some(running) = self.running.get_mut(&n) {
                running.peer = Some(endpoints);
                self.serve(n)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, told: Told) -> Result<()> {
        let mut outbox = Outbox::default();
        match told {
            Told::Accepted(id, port, from) => {
                let n = port.and_then(|port| self.ports.get(&port).copied());
                let taken = n.zip(port).is_some_and(|(n, port)| {
                    self.with(n, |attempt, _| attempt.handle_accepted(id, port, from)) == Some(true)
                });
                match n.filter(|_| taken) {
                    Some(n) => drop(self.streams.insert(id, (n, from))),
                    None => self.doors.close(id),
                }
                self.accepted += 1;
            }
            Told::Opened(id) => {
                let Some((n, to)) = self.streams.get(&id).copied() else { return Ok(()) };
                let greets = self.with(n, |attempt, hands| attempt.handle_opened(id, hands));
                if let (Some(Opened::Greet(_)), Some(running)) = (greets, self.running.get_mut(&n)) {
                    let transaction = self.numbers.next(&mut self.rng);
                    outbox.push(Via::Stream(id), to, &running.keys.request(transaction, 0));
                    running.attempt.greeted(id, transaction, now());
                }
            }
            Told::Frame(id, bytes) => {
                let Some((n, to)) = self.streams.get(&id).copied() else { return Ok(()) };
                let Some(running) = self.running.get_mut(&n) else { return Ok(()) };
                let received = stun::Received::parse(&bytes)?;
                let proven = match running.keys.judge(&received).context("a check under other keys")? {
                    Check::Request(transaction) => {
                        outbox.push(Via::Stream(id), to, &running.keys.success(transaction, to, None));
                        // Whoever was dialled proves the stream by a check of its own, later, which is left out here.
                        Some(id).filter(|_| is_accepted(id))
                    }
                    Check::Success(transaction, _) => {
                        running.attempt.handle_success(transaction, now()).map(|(winner, _)| winner)
                    }
                };
                if let Some(winner) = proven {
                    running.attempt.win(winner, now());
                    self.won += u16::from(!std::mem::replace(&mut running.won, true));
                }
            }
            Told::Closed(id, gone) => {
                let Some((n, _)) = self.streams.remove(&id) else { return Ok(()) };
                self.with(n, |attempt, hands| attempt.handle_closed(id, &gone, hands));
            }
        }
        self.doors.send(&mut outbox);
        Ok(())
    }
}

/// Whether the doors numbered a stream, because it came in at a listener.
const fn is_accepted(id: StreamId) -> bool {
    id.0 >> 31 == 1
}

/// Open files of this process.
fn descriptors() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// Waits until a machine has no TCP socket but those that the kernel keeps after a connection has ended.
fn no_sockets(of: &Namespace) -> Result<()> {
    interrupt::wait_for("the sockets to go", PATIENCE, || {
        let left = of.run(&["ss", "-Htan", "exclude", "time-wait"])?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

#[expect(clippy::disallowed_methods, reason = "this test is the engine, which has the clock")]
fn now() -> Instant {
    Instant::now()
}
