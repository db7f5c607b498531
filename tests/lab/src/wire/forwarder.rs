//! The thread that carries the frames of all wires of a lab: each direction is a queue in order of arrival.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
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

use anyhow::Result;
use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;

use super::Detour;
use super::Profile;
use super::Shared;
use super::Wire;
use crate::lab::lock;
use crate::sys;
use crate::sys::VNET_HEADER;

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
    pub(super) fn start() -> Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mail = Arc::new(Mail { new: Mutex::default(), stop: AtomicBool::new(false), bell });
        let theirs = Arc::clone(&mail);
        let thread = thread::Builder::new().name("wires".to_owned()).spawn(move || carry(&theirs))?;
        Ok(Self { thread: Some(thread), mail })
    }

    pub(super) fn add(&self, [a, b]: [File; 2], profile: Profile) -> Result<Wire> {
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
    /// When the last frame arrives that others may not overtake, straight ahead and by the detour.
    last: [Instant; 2],
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
            last: [Instant::now(); 2],
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
        let detour = profile.detour.filter(|detour| concerns(frame, detour.address));
        if let Some(Detour { extra, .. }) = detour {
            due += extra;
        }
        if profile.reorder > 0.0 && self.draw() < profile.reorder {
            due += profile.behind;
        } else {
            let [straight, around] = &mut self.last;
            let last = if detour.is_some() { around } else { straight };
            due = due.max(*last);
            *last = due;
        }
        self.queued_bytes += frame.len();
        let place = self.queue.partition_point(|(other, _)| *other <= due);
        self.queue.insert(place, (due, frame.to_vec()));
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

/// Whether a frame carries an IPv4 packet from or to this address.
fn concerns(frame: &[u8], address: Ipv4Addr) -> bool {
    const IPV4: [u8; 2] = [0x08, 0x00];
    let Some(ethernet) = frame.get(VNET_HEADER..) else { return false };
    let at = |from: usize| ethernet.get(from..from + 4) == Some(&address.octets());
    ethernet.get(12..14) == Some(&IPV4) && (at(26) || at(30))
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
