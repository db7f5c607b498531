//! Links between namespaces: a plain veth pair, or a wire with delay, jitter, loss and rate.
//!
//! A wire is two TAP interfaces, one in each namespace, joined by one forwarder thread per lab. Each direction is a queue
//! in order of arrival; a frame leaves when its time has come, which `ppoll` with a nanosecond timeout keeps to a small
//! fraction of a millisecond. The kernel's netem would do the same, but many kernels (cloud, microVM) are built without
//! it, and one emulator for all of them gives figures that can be compared.
//!
//! Frames carry a virtio header, so on a wire without loss and rate the kernel hands over super-packets of up to 64 KiB
//! uncut, and one TCP stream runs at gigabits. With loss or rate the TAPs take single packets only: what is lost or waits
//! is then a packet, as on a real line. Jitter never reorders.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;

use crate::lab::lock;
use crate::ns::Namespace;
use crate::sys;
use crate::sys::Offload;
use crate::sys::VNET_HEADER;

/// What joins two namespaces.
#[derive(Clone, Debug)]
pub enum Link {
    /// A veth pair: as fast as memory, no delay.
    Plain,
    /// An emulated wire; both directions start with this profile.
    Wire(Profile),
}

impl Link {
    /// A wire that does nothing but delay each direction.
    pub fn delayed(delay: Duration) -> Self {
        Self::Wire(Profile { delay, ..Profile::default() })
    }
}

/// What one direction of a wire does to frames.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Profile {
    /// Time from one end to the other.
    pub delay: Duration,
    /// Up to so much is added to the delay, evenly distributed; order is kept.
    pub jitter: Duration,
    /// Share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// Bits per second, frames' headers included; `None` is as fast as it goes.
    pub rate: Option<u64>,
    /// Bytes that may be on the way or waiting; what comes on top is dropped.
    pub queue: usize,
    /// Whether anything passes at all.
    pub up: bool,
}

impl Default for Profile {
    /// A perfect wire. The queue holds 100 ms of 2.5 Gbit/s, so that delay alone loses nothing.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            rate: None,
            queue: 32 << 20,
            up: true,
        }
    }
}

impl Profile {
    fn offload(&self) -> Offload {
        if self.loss > 0.0 || self.rate.is_some() { Offload::Single } else { Offload::Super }
    }
}

/// A direction of a wire, named by the end it leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Toward {
    /// From the first namespace to the second.
    Second,
    /// From the second namespace to the first.
    First,
}

/// What a direction has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Frames that arrived at the other end.
    pub passed: u64,
    /// Frames lost on purpose, by loss or because the wire was down.
    pub lost: u64,
    /// Frames dropped because the queue was full or the far kernel refused them.
    pub dropped: u64,
}

/// A handle on a living wire.
#[derive(Clone, Debug)]
pub struct Wire {
    ways: [Arc<Shared>; 2],
}

/// What the handle and the forwarder share about one direction.
#[derive(Debug)]
struct Shared {
    profile: Mutex<Profile>,
    /// The end that frames enter, to change what its kernel may put in.
    entry: File,
    passed: AtomicU64,
    lost: AtomicU64,
    dropped: AtomicU64,
}

impl Wire {
    /// Changes one direction from now on; frames already on the way keep their time.
    pub fn set(&self, toward: Toward, profile: Profile) -> Result<()> {
        let way = self.way(toward);
        sys::set_offload(&way.entry, profile.offload())?;
        *lock(&way.profile) = profile;
        Ok(())
    }

    /// Changes both directions from now on.
    pub fn set_both(&self, profile: Profile) -> Result<()> {
        self.set(Toward::First, profile)?;
        self.set(Toward::Second, profile)
    }

    /// What one direction does now.
    pub fn profile(&self, toward: Toward) -> Profile {
        *lock(&self.way(toward).profile)
    }

    /// Cuts the wire (`false`) or joins it again (`true`).
    pub fn up(&self, up: bool) {
        for way in &self.ways {
            lock(&way.profile).up = up;
        }
    }

    /// What one direction has done so far.
    pub fn counts(&self, toward: Toward) -> Counts {
        let way = self.way(toward);
        let [passed, lost, dropped] =
            [&way.passed, &way.lost, &way.dropped].map(|n| n.load(Ordering::Relaxed));
        Counts { passed, lost, dropped }
    }

    fn way(&self, toward: Toward) -> &Shared {
        let [second, first] = &self.ways;
        match toward {
            Toward::Second => second,
            Toward::First => first,
        }
    }
}

/// Joins `first` and `second` by interfaces of the given names, which exist, unconfigured and down, on return.
pub fn join(first: (&Namespace, &str), second: (&Namespace, &str), link: &Link) -> Result<Option<Wire>> {
    let ((a, a_name), (b, b_name)) = (first, second);
    match link {
        Link::Plain => {
            let (first, second) = (a.full_name(), b.full_name());
            a.lab().ip_batch(&format!(
                "link add {a_name} netns {first} type veth peer name {b_name} netns {second}\n"
            ))?;
            Ok(None)
        }
        Link::Wire(profile) => {
            let ends = [open_end(a, a_name, profile)?, open_end(b, b_name, profile)?];
            for (ns, name) in [first, second] {
                // The default of 1000 overflows while the forwarder waits for a core.
                ns.ip(&format!("link set {name} txqueuelen 5000\n"))?;
            }
            let mut forwarder = lock(&a.lab().forwarder);
            if forwarder.is_none() {
                *forwarder = Some(Forwarder::start()?);
            }
            let forwarder = forwarder.as_ref().context("the forwarder has just been started")?;
            Ok(Some(forwarder.add(ends, *profile)?))
        }
    }
}

fn open_end(ns: &Namespace, name: &str, profile: &Profile) -> Result<File> {
    let (name, offload) = (name.to_owned(), profile.offload());
    ns.inside(move || sys::open_tap(&name, offload))?.context("cannot make a TAP interface")
}

/// The thread that carries the frames of all wires of a lab; dropping it ends the thread and closes the TAPs.
#[derive(Debug)]
pub(crate) struct Forwarder {
    thread: Option<JoinHandle<()>>,
    mail: Arc<Mail>,
}

/// What the forwarder is told.
#[derive(Debug)]
struct Mail {
    new: Mutex<Vec<[Way; 2]>>,
    stop: AtomicBool,
    bell: OwnedFd,
}

impl Forwarder {
    fn start() -> Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mail = Arc::new(Mail { new: Mutex::default(), stop: AtomicBool::new(false), bell });
        let theirs = Arc::clone(&mail);
        let thread = thread::Builder::new().name("wires".to_owned()).spawn(move || carry(&theirs))?;
        Ok(Self { thread: Some(thread), mail })
    }

    fn add(&self, [a, b]: [File; 2], profile: Profile) -> Result<Wire> {
        let second = Way::new(a.try_clone()?, b.try_clone()?, profile)?;
        let first = Way::new(b, a, profile)?;
        let wire = Wire { ways: [Arc::clone(&second.shared), Arc::clone(&first.shared)] };
        lock(&self.mail.new).push([second, first]);
        rustix::io::write(&self.mail.bell, &1u64.to_ne_bytes())?;
        Ok(wire)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.mail.stop.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.mail.bell, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// One direction of one wire, owned by the forwarder.
#[derive(Debug)]
struct Way {
    exit: File,
    shared: Arc<Shared>,
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued_bytes: usize,
    /// When the line will have sent everything that it has accepted so far.
    line_free: Instant,
    /// State of the generator that decides on loss and jitter.
    chance: u64,
}

impl Way {
    fn new(entry: File, exit: File, profile: Profile) -> Result<Self> {
        let shared = Shared {
            profile: Mutex::new(profile),
            entry,
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        };
        Ok(Self {
            exit,
            shared: Arc::new(shared),
            queue: VecDeque::new(),
            queued_bytes: 0,
            line_free: Instant::now(),
            chance: 0x9e37_79b9_7f4a_7c15,
        })
    }

    /// Evenly distributed in 0..1 (xorshift64*).
    fn draw(&mut self) -> f64 {
        self.chance ^= self.chance >> 12;
        self.chance ^= self.chance << 25;
        self.chance ^= self.chance >> 27;
        (self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Takes what waits at the entry, at most a batch, so that the other wires get their turn.
    fn take_in(&mut self, scratch: &mut [u8]) {
        for _ in 0..32 {
            match (&self.shared.entry).read(scratch) {
                Ok(length) => self.accept(scratch.get(..length).unwrap_or_default()),
                Err(_) => return, // nothing more, or the interface is down
            }
        }
    }

    fn accept(&mut self, frame: &[u8]) {
        let profile = *lock(&self.shared.profile);
        if !profile.up || (profile.loss > 0.0 && self.draw() < profile.loss) {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.queued_bytes + frame.len() > profile.queue {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = Instant::now();
        self.line_free = self.line_free.max(now);
        if let Some(rate) = profile.rate {
            let bits = (frame.len() - VNET_HEADER) as f64 * 8.0;
            self.line_free += Duration::from_secs_f64(bits / rate as f64);
        }
        let mut due = self.line_free + profile.delay;
        if !profile.jitter.is_zero() {
            due += profile.jitter.mul_f64(self.draw());
        }
        if let Some((before, _)) = self.queue.back() {
            due = due.max(*before);
        }
        self.queued_bytes += frame.len();
        self.queue.push_back((due, frame.to_vec()));
    }

    /// Lets out what is due and says when the next frame will be.
    fn let_out(&mut self) -> Option<Instant> {
        while let Some((due, _)) = self.queue.front() {
            if *due > Instant::now() {
                return Some(*due);
            }
            let Some((_, frame)) = self.queue.pop_front() else { break };
            self.queued_bytes -= frame.len();
            let counter =
                if (&self.exit).write(&frame).is_ok() { &self.shared.passed } else { &self.shared.dropped };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        None
    }
}

/// The forwarder's loop.
fn carry(mail: &Mail) {
    sys::keep_time();
    let mut ways: Vec<Way> = Vec::new();
    let mut scratch = vec![0; VNET_HEADER + 14 + 65_536 + 64];
    while !mail.stop.load(Ordering::Relaxed) {
        let next = ways.iter_mut().filter_map(Way::let_out).min();
        let timeout = next.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|left| left.try_into().ok());
        let mut waiting: Vec<PollFd<'_>> = Vec::with_capacity(ways.len() + 1);
        waiting.push(PollFd::new(&mail.bell, PollFlags::IN));
        waiting
            .extend(ways.iter().map(|way| PollFd::from_borrowed_fd(way.shared.entry.as_fd(), PollFlags::IN)));
        // A failed poll (EINTR) shows nothing ready: the loop simply goes round again.
        let _ = rustix::event::poll(&mut waiting, timeout.as_ref());
        let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(waiting);
        let (rang, ready) = ready.split_first().unwrap_or((&false, &[]));
        for (way, _) in ways.iter_mut().zip(ready).filter(|(_, ready)| **ready) {
            way.take_in(&mut scratch);
        }
        if *rang {
            let _ = rustix::io::read(&mail.bell, &mut [0; 8]);
            ways.extend(lock(&mail.new).drain(..).flatten());
        }
    }
}
