//! `make matrix`: the product between every pair of NATs, with UDP and without, and what carried in the end.
//!
//! Every run is a lab of its own: a public server that introduces, relays and answers STUN, and two sites whose lines have
//! 20 ms each way. Members that have just looked into their NATs meet by one ping; from its start the time to the first reply and to a
//! direct path is taken, and the packets are counted that both routers send. Labs run side by side, so times are those of
//! a busy machine; what carried does not depend on that.

mod meeting;
pub mod mix;
mod picture;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use crate::Lab;
use crate::interrupt;
use crate::lab::lock;
use crate::nat::kinds;
use crate::nat::kinds::KINDS;
use crate::nat::kinds::Kind;
use crate::product::Product;

pub use meeting::Meeting;

/// One way, on each site's line and the server's.
const DELAY: Duration = Duration::from_millis(20);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of kinds of NAT; every pair of them is tried. None named: all of them.
    pub kinds: Vec<String>,
    /// How many labs run at once.
    pub jobs: usize,
    /// How much later one side hears from the broker than the other.
    pub skew: Duration,
}

/// How a meeting went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `direct-udp`, `direct-tcp`, `relay` or `none`.
    pub carried: String,
    /// How the path was opened, where the product says so.
    pub method: Option<String>,
    /// In which round of its introduction, where it takes rounds.
    pub round: Option<u64>,
    /// From the first ping to the first reply, if one came.
    pub first_reply: Option<Duration>,
    /// From the first ping to a direct path, if one came.
    pub direct: Option<Duration>,
    /// Packets that the two sites' routers sent to each other (or to where they took each other to be).
    pub to_peer: u64,
    /// Packets that they sent to the server.
    pub to_server: u64,
    /// What the product says where the path is not direct.
    pub why: Option<String>,
}

/// What came of each meeting, by the names of both kinds and whether UDP passed.
pub type Outcomes = BTreeMap<(&'static str, &'static str, bool), Outcome>;

/// Runs the plan, prints the tables and writes `matrix.json` and `matrix.svg` into `dir`; an error if any run could not be
/// carried out.
pub fn run(bin: &Path, plan: &Plan, dir: &Path) -> Result<()> {
    let product = Product::new(bin)?;
    let chosen: Vec<Kind> = if plan.kinds.is_empty() {
        KINDS.to_vec()
    } else {
        plan.kinds.iter().map(|name| named(name)).collect::<Result<_>>()?
    };
    let meetings = meetings(&chosen, plan.skew);
    println!(
        "{} runs, {} at a time; seconds to the first reply and to a direct path, packets between the sites",
        meetings.len(),
        plan.jobs
    );
    let start = Instant::now();
    let (outcomes, failed) = hold(&product, &meetings, plan.jobs)?;
    for udp in [true, false] {
        println!("\n{}", report::table(&chosen, udp, &outcomes));
    }
    println!();
    for line in report::summary(&outcomes) {
        println!("{line}");
    }
    println!("{} runs in {} s", meetings.len(), start.elapsed().as_secs());
    let json = serde_json::to_string_pretty(&report::json(plan, &outcomes))? + "\n";
    for (name, text) in [("matrix.json", json), ("matrix.svg", picture::svg(&chosen, &outcomes))] {
        let file = dir.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{}", file.display());
    }
    ensure!(failed == 0, "{failed} runs could not be carried out");
    Ok(())
}

/// Two members behind these NATs, joined and left alone until interrupted; prints how to look at them by hand.
pub fn meet(bin: &Path, [a, b]: [&str; 2], udp: bool, skew: Duration) -> Result<()> {
    let meeting = Meeting { a: named(a)?, b: named(b)?, udp, skew };
    let product = Product::new(bin)?;
    let lab = Lab::new()?;
    let stage = meeting.stage(&product, &lab)?;
    meeting.delay_bob(&stage)?;
    let [alice, bob] = &stage.members;
    println!(
        "{}: alice is {}, bob is {}. In another terminal, as root:",
        meeting.title(),
        alice.address()?,
        bob.address()?
    );
    println!("  ip netns exec {} ping -c 5 {}", alice.ns().full_name(), bob.address()?);
    println!("  {} status -v --control {}", bin.display(), alice.control().display());
    println!("Ctrl-C ends it.");
    loop {
        interrupt::pause(Duration::from_millis(100))?;
    }
}

/// The kind of this name, or an error that lists those there are.
pub fn named(name: &str) -> Result<Kind> {
    kinds::named(name).with_context(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        format!("no NAT is named \"{name}\"; there are: {}", known.join(", "))
    })
}

/// Every pair once, with UDP and without.
fn meetings(kinds: &[Kind], skew: Duration) -> Vec<Meeting> {
    let pairs = kinds.iter().enumerate().flat_map(|(n, a)| kinds.iter().skip(n).map(|b| (*a, *b)));
    pairs.flat_map(|(a, b)| [true, false].map(|udp| Meeting { a, b, udp, skew })).collect()
}

/// Holds all meetings, some at a time; what came of them, and how many failed.
pub fn hold(product: &Product, meetings: &[Meeting], jobs: usize) -> Result<(Outcomes, usize)> {
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let outcomes = Mutex::new(Outcomes::new());
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(meeting) = meetings.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if interrupt::check().is_err() {
                        return;
                    }
                    let title = meeting.title();
                    match meeting.hold(product) {
                        Ok(outcome) => {
                            println!("{title:<44} {}", outcome.words());
                            lock(&outcomes).insert((meeting.a.name, meeting.b.name, meeting.udp), outcome);
                        }
                        Err(problem) => {
                            println!("{title:<44} FAILED: {problem:#}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    interrupt::check()?;
    let outcomes = lock(&outcomes).clone();
    Ok((outcomes, failed.into_inner()))
}

impl Outcome {
    /// Whether nobody stood between the two in the end.
    pub fn is_direct(&self) -> bool {
        self.carried.starts_with("direct-")
    }

    /// Whether the two could talk at all.
    pub fn is_connected(&self) -> bool {
        self.carried != "none" && self.first_reply.is_some()
    }

    /// The outcome in one line.
    pub fn words(&self) -> String {
        let why = self.why.as_deref().filter(|_| !self.is_direct());
        let more = self.method.as_deref().or(why).unwrap_or_default();
        format!(
            "{:<11}{:>5} {:>5} {:>5}  {more}",
            self.carried,
            seconds(self.first_reply),
            self.direct_seconds(),
            self.to_peer
        )
    }

    fn cell(&self) -> String {
        match self.carried.as_str() {
            "direct-udp" => format!("udp {}", self.direct_seconds()),
            "direct-tcp" => format!("tcp {}", self.direct_seconds()),
            other => other.to_owned(),
        }
    }

    fn direct_seconds(&self) -> String {
        seconds(self.direct)
    }
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
}

/// What came of a pair, in whichever order it met.
fn find<'a>(outcomes: &'a Outcomes, a: &'static str, b: &'static str, udp: bool) -> Option<&'a Outcome> {
    outcomes.get(&(a, b, udp)).or_else(|| outcomes.get(&(b, a, udp)))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn outcome(carried: &str) -> Outcome {
        let carried = carried.to_owned();
        Outcome {
            carried,
            method: None,
            round: None,
            first_reply: None,
            direct: None,
            to_peer: 0,
            to_server: 0,
            why: None,
        }
    }

    #[test]
    fn every_pair_meets_once_with_udp_and_once_without() {
        let kinds = ["public", "linux", "session-random"].map(|name| named(name).unwrap());
        let meetings = meetings(&kinds, Duration::ZERO);
        assert_eq!(meetings.len(), 3 * 4 / 2 * 2);
        assert!(named("no-such-nat").unwrap_err().to_string().contains("session-random"));
    }
}
