//! `make matrix`: the product between every pair of NATs, with UDP and without, and what carried in the end.
//!
//! Every run is a lab of its own: a public server that introduces and relays, and two sites whose lines have 20 ms each
//! way. Members that have just joined meet by one ping; from its start the time to the first reply and to a direct path is
//! taken. Labs run side by side, so times are those of a busy machine; what carried does not depend on that.

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
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::Site;
use crate::interrupt;
use crate::lab::lock;
use crate::nat::kinds;
use crate::nat::kinds::Kind;
use crate::product::Daemon;
use crate::product::Mesh;
use crate::product::Product;
use crate::product::stun_role;

/// One way, on each site's line and the server's.
const DELAY: Duration = Duration::from_millis(20);

/// How long a pair has to find a direct path, counted from the first ping.
const PATIENCE: Duration = Duration::from_secs(8);

/// How often the path is asked for.
const LOOK: Duration = Duration::from_millis(100);

/// How long everything before the first ping may take.
const START: Duration = Duration::from_secs(30);

/// The kinds that are tried unless others are named: all that differ for what crosses two NATs.
pub const DEFAULT: [&str; 11] = [
    "public",
    "full-cone",
    "address-restricted",
    "port-restricted",
    "linux",
    "linux-rst",
    "never-syn",
    "address-step1",
    "port-step1",
    "session-step1",
    "session-random",
];

/// The market of 2005 (Guha and Francis, "Characterization and measurement of TCP traversal through NATs and
/// firewalls", IMC 2005, as Gaballo's Tables 3.3 and 5.1 give it). That 16.1 % refuse SYNs is counted among the boxes with one outer
/// port alone, because the source does not say how the two figures go together.
const MIX_2005: [(&str, f64); 5] = [
    ("linux", 0.598),
    ("never-syn", 0.161),
    ("address-step1", 0.025),
    ("port-step1", 0.187),
    ("session-step1", 0.029),
];

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of kinds of NAT; every pair of them is tried.
    pub kinds: Vec<String>,
    /// How many labs run at once.
    pub jobs: usize,
}

/// One meeting to be arranged.
#[derive(Clone, Copy, Debug)]
struct Meeting {
    a: Kind,
    b: Kind,
    udp: bool,
}

/// A meeting before its first ping.
struct Stage {
    /// Alice, who will ping, and bob.
    members: [Daemon; 2],
    /// The network's server, which runs as long as this lives.
    _mesh: Mesh,
}

/// How it went.
#[derive(Clone, Debug)]
struct Outcome {
    /// `direct-udp`, `direct-tcp`, `relay` or `none`.
    carried: String,
    first_reply: Option<Duration>,
    direct: Option<Duration>,
    /// What the product says where the path is not direct.
    why: Option<String>,
}

/// What came of each meeting, by the names of both kinds and whether UDP passed.
type Outcomes = BTreeMap<(&'static str, &'static str, bool), Outcome>;

/// Runs the plan, prints the tables and writes the file; an error if any run could not be carried out.
pub fn run(bin: &Path, plan: &Plan, file: &Path) -> Result<()> {
    let product = Product::new(bin)?;
    let chosen: Vec<Kind> = plan.kinds.iter().map(|name| named(name)).collect::<Result<_>>()?;
    let meetings = meetings(&chosen);
    println!(
        "{} runs, {} at a time; time to the first reply, time to a direct path, s",
        meetings.len(),
        plan.jobs
    );
    let start = Instant::now();
    let (outcomes, failed) = hold(&product, &meetings, plan.jobs)?;
    for udp in [true, false] {
        println!("\n{}", table(&chosen, udp, &outcomes));
    }
    let weighted = [true, false].map(|udp| weighted(udp, &outcomes));
    for (udp, share) in ["with UDP", "without UDP"].into_iter().zip(weighted) {
        match share {
            Some(share) => println!("direct {udp}, weighted by the market of 2005: {:.1} %", share * 100.0),
            None => println!("direct {udp}, weighted: not all the NATs of 2005 were tried"),
        }
    }
    println!("{} runs in {} s", meetings.len(), start.elapsed().as_secs());
    let report = json!({
        "schema": 1,
        "delay_ms": DELAY.as_millis(),
        "patience_s": PATIENCE.as_secs(),
        "runs": outcomes.iter().map(row).collect::<Vec<_>>(),
        "direct_weighted_2005": { "udp": weighted[0], "udp_blocked": weighted[1] },
    });
    fs::write(file, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    ensure!(failed == 0, "{failed} runs could not be carried out");
    Ok(())
}

/// Two members behind these NATs, joined and left alone until interrupted; prints how to look at them by hand.
pub fn meet(bin: &Path, [a, b]: [&str; 2], udp: bool) -> Result<()> {
    let meeting = Meeting { a: named(a)?, b: named(b)?, udp };
    let product = Product::new(bin)?;
    let lab = Lab::new()?;
    let [alice, bob] = &meeting.stage(&product, &lab)?.members;
    println!(
        "{}: alice is {}, bob is {}. In another terminal, as root:",
        meeting.title(),
        alice.address()?,
        bob.address()?
    );
    println!("  ip netns exec {} ping -c 5 {}", alice.ns().full_name(), bob.address()?);
    let control = lab.dir().join("machine/alice/run/ntcp-overlay/control.sock");
    println!("  {} status -v --control {}", bin.display(), control.display());
    println!("Ctrl-C ends it.");
    loop {
        interrupt::pause(LOOK)?;
    }
}

fn named(name: &str) -> Result<Kind> {
    kinds::named(name).with_context(|| {
        let known: Vec<&str> = kinds::KINDS.iter().map(|kind| kind.name).collect();
        format!("no NAT is named \"{name}\"; there are: {}", known.join(", "))
    })
}

/// Every pair once, with UDP and without.
fn meetings(kinds: &[Kind]) -> Vec<Meeting> {
    let pairs = kinds.iter().enumerate().flat_map(|(n, a)| kinds.iter().skip(n).map(|b| (*a, *b)));
    pairs.flat_map(|(a, b)| [true, false].map(|udp| Meeting { a, b, udp })).collect()
}

/// Holds all meetings, some at a time; what came of them, and how many failed.
fn hold(product: &Product, meetings: &[Meeting], jobs: usize) -> Result<(Outcomes, usize)> {
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

impl Meeting {
    fn title(&self) -> String {
        format!("{} x {}{}", self.a.name, self.b.name, if self.udp { "" } else { ", no UDP" })
    }

    /// The internet, the network and its two members, joined and known to each other.
    fn stage(&self, product: &Product, lab: &Lab) -> Result<Stage> {
        let net = Internet::new(lab)?;
        let link = Link::delayed(DELAY);
        let server = net.server("server", &link)?;
        let site = |name, kind: Kind, lan| {
            let site = Site::new(kind.nat).lan(lan);
            net.site(name, if self.udp { site } else { site.no_udp() }, &link)
        };
        let (a, b) = (site("home", self.a, 1)?.host("alice")?, site("work", self.b, 2)?.host("bob")?);
        let mesh = Mesh::found(product, &server, &stun_role(&server))?;
        let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
        alice.wait_knows("bob", START)?;
        if self.udp {
            alice.wait_mapped(START)?;
            bob.wait_mapped(START)?;
        }
        Ok(Stage { members: [alice, bob], _mesh: mesh })
    }

    fn hold(&self, product: &Product) -> Result<Outcome> {
        let lab = Lab::new()?;
        let Stage { members: [alice, bob], _mesh } = self.stage(product, &lab)?;
        let target = bob.address()?.to_string();

        let start = Instant::now();
        thread::scope(|scope| {
            let ping = scope.spawn(|| alice.first_ping(&target, PATIENCE));
            let mut direct = None;
            while direct.is_none() && start.elapsed() < PATIENCE {
                let found = alice.peer("bob")?.is_some_and(|peer| peer.direct());
                direct = found.then(|| start.elapsed());
                interrupt::pause(LOOK)?;
            }
            let Ok(first_reply) = ping.join() else { bail!("the ping's thread panicked") };
            let last = alice.peer("bob")?.context("alice has forgotten bob")?;
            let why = last.all.get("why").and_then(Value::as_str).map(str::to_owned);
            Ok(Outcome { carried: last.path, first_reply: first_reply.ok(), direct, why })
        })
    }
}

impl Outcome {
    fn is_direct(&self) -> bool {
        self.carried.starts_with("direct-")
    }

    fn words(&self) -> String {
        let why = self.why.as_deref().filter(|_| !self.is_direct()).unwrap_or_default();
        format!("{:<11}{:>5} {:>5}  {why}", self.carried, seconds(self.first_reply), seconds(self.direct))
    }

    fn cell(&self) -> String {
        match self.carried.as_str() {
            "direct-udp" => format!("udp {}", seconds(self.direct)),
            "direct-tcp" => format!("tcp {}", seconds(self.direct)),
            other => other.to_owned(),
        }
    }
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
}

fn find<'a>(outcomes: &'a Outcomes, a: &'static str, b: &'static str, udp: bool) -> Option<&'a Outcome> {
    outcomes.get(&(a, b, udp)).or_else(|| outcomes.get(&(b, a, udp)))
}

/// Rows and columns are kinds; a cell is what carried and the seconds until it was direct.
fn table(kinds: &[Kind], udp: bool, outcomes: &Outcomes) -> String {
    let mut text = if udp { "UDP passes\n" } else { "UDP is blocked at both sites\n" }.to_owned();
    text += &format!("{:<24}", "");
    for n in 1..=kinds.len() {
        text += &format!("{n:>9}");
    }
    for (n, row) in kinds.iter().enumerate() {
        text += &format!("\n{:>3} {:<20}", n + 1, row.name);
        for column in kinds {
            let cell =
                find(outcomes, row.name, column.name, udp).map_or_else(|| "?".to_owned(), Outcome::cell);
            text += &format!("{cell:>9}");
        }
    }
    text
}

/// The share of direct pairs if both ends are drawn from the market of 2005; `None` if a pair of it was not tried.
fn weighted(udp: bool, outcomes: &Outcomes) -> Option<f64> {
    let mut share = 0.0;
    for (a, weight_a) in MIX_2005 {
        for (b, weight_b) in MIX_2005 {
            if find(outcomes, a, b, udp)?.is_direct() {
                share += weight_a * weight_b;
            }
        }
    }
    Some(share)
}

fn row(((a, b, udp), outcome): (&(&'static str, &'static str, bool), &Outcome)) -> Value {
    let millis = |time: Option<Duration>| time.map(|time| time.as_millis());
    json!({
        "a": a,
        "b": b,
        "udp": udp,
        "carried": outcome.carried,
        "first_reply_ms": millis(outcome.first_reply),
        "direct_ms": millis(outcome.direct),
        "why": outcome.why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(carried: &str) -> Outcome {
        Outcome { carried: carried.to_owned(), first_reply: None, direct: None, why: None }
    }

    #[test]
    fn every_nat_of_a_default_and_of_the_market_exists_and_the_market_is_whole() {
        for name in DEFAULT.into_iter().chain(MIX_2005.map(|(name, _)| name)) {
            assert!(named(name).is_ok(), "{name}");
        }
        assert!(
            MIX_2005.iter().all(|(name, _)| DEFAULT.contains(name)),
            "the default run cannot be weighted"
        );
        let sum: f64 = MIX_2005.iter().map(|(_, weight)| weight).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn the_weighted_share_counts_a_pair_in_both_orders_and_needs_all_pairs() {
        let mut outcomes = Outcomes::new();
        for (n, (a, _)) in MIX_2005.into_iter().enumerate() {
            for (b, _) in MIX_2005.into_iter().skip(n) {
                assert_eq!(weighted(true, &outcomes), None);
                let both = a == "linux" && b == "never-syn";
                outcomes.insert((a, b, true), outcome(if both { "direct-tcp" } else { "relay" }));
            }
        }
        let share = weighted(true, &outcomes).unwrap();
        assert!((share - 2.0 * 0.598 * 0.161).abs() < 1e-9, "{share}");
    }

    #[test]
    fn every_pair_meets_once_with_udp_and_once_without() {
        let kinds = DEFAULT.map(|name| named(name).unwrap());
        assert_eq!(meetings(&kinds).len(), 11 * 12 / 2 * 2);
    }
}
