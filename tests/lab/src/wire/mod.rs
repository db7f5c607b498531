//! Links between namespaces: a plain veth pair, or a wire with delay, jitter, loss and rate.
//!
//! A wire is two TAP interfaces, one in each namespace, joined by one forwarder thread per lab. Each direction is a queue
//! in order of arrival; a frame leaves when its time has come, which `ppoll` with a nanosecond timeout keeps to a small
//! fraction of a millisecond. The kernel's netem would do the same, but many kernels (cloud, microVM) are built without
//! it, and one emulator for all of them gives figures that can be compared.
//!
//! Frames carry a virtio header, so on a wire without loss, rate and reordering the kernel hands over super-packets of up to
//! 64 KiB uncut, and one TCP stream runs at gigabits. Otherwise the TAPs take single packets only: what is lost, waits or
//! falls behind is then a packet, as on a real line. Jitter never reorders.

mod forwarder;

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::lab::lock;
use crate::ns::Namespace;
use crate::sys;
use crate::sys::Offload;

pub(crate) use forwarder::Forwarder;

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
    /// Share of packets that fall behind, 0 to 1: they take [`Self::behind`] longer, and what comes after them does not wait.
    pub reorder: f64,
    /// How much longer.
    pub behind: Duration,
    /// A longer way from or to one address.
    pub detour: Option<Detour>,
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
            reorder: 0.0,
            behind: Duration::from_millis(5),
            detour: None,
            rate: None,
            queue: 32 << 20,
            up: true,
        }
    }
}

impl Profile {
    fn offload(&self) -> Offload {
        let single = self.loss > 0.0 || self.reorder > 0.0 || self.rate.is_some();
        if single { Offload::Single } else { Offload::Super }
    }
}

/// Packets from or to one IPv4 address take longer than the others, and keep their order among themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Detour {
    /// The address.
    pub address: Ipv4Addr,
    /// How much longer.
    pub extra: Duration,
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
            let mut forwarder = lock(&a.lab().forwarder);
            if forwarder.is_none() {
                *forwarder = Some(Forwarder::start()?);
            }
            let forwarder = forwarder.as_ref().context("the forwarder has just been started")?;
            Ok(Some(forwarder.add(ends, *profile)?))
        }
    }
}

/// Packets that wait at a TAP; the default of 1000 overflows while the forwarder waits for a core.
const QUEUE: i32 = 5000;

fn open_end(ns: &Namespace, name: &str, profile: &Profile) -> Result<File> {
    let (name, offload) = (name.to_owned(), profile.offload());
    let open = move || {
        let tap = sys::open_tap(&name, offload)?;
        sys::set_queue_length(&name, QUEUE)?;
        Ok::<File, io::Error>(tap)
    };
    ns.inside(open)?.context("cannot make a TAP interface")
}
