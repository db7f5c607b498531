//! A quick part of `make matrix`: pairs of NATs that stand for the others, with UDP and without. Whoever can reach the
//! broker is connected, and no pair is worse off than the table says.

use std::time::Duration;

use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::lab::say;
use ntcp_lab::matrix;
use ntcp_lab::matrix::Meeting;
use ntcp_lab::matrix::Outcome;
use ntcp_lab::product::Product;
use ntcp_lab::tools;

/// What a pair is promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AtWorst {
    /// A direct path.
    Direct,
    /// The relay.
    Relay,
}

use AtWorst::Direct;
use AtWorst::Relay;

/// Pairs of NATs, and what they are promised where UDP passes and where it does not.
const PROMISED: [(&str, &str, AtWorst, AtWorst); 13] = [
    ("public", "linux", Direct, Direct),
    ("public", "session-random", Direct, Direct),
    ("firewall", "port-restricted", Direct, Direct),
    ("linux", "linux", Direct, Direct),
    ("linux-rst", "linux-rst", Direct, Relay),
    ("full-cone", "session-random", Direct, Direct),
    ("address-restricted", "port-step1", Direct, Direct),
    ("stateless", "port-restricted", Direct, Direct),
    ("never-syn", "never-syn", Direct, Relay),
    ("linux", "port-step1", Direct, Direct),
    ("port-step1", "session-step1", Direct, Relay),
    ("linux", "session-random", Direct, Relay),
    ("session-random", "session-random", Relay, Relay),
];

/// How many labs run at once: they wait more than they work.
const JOBS: usize = 8;

#[test]
fn every_pair_is_connected_and_none_is_worse_off_than_promised() -> Result<()> {
    if let Some(problem) = tools::missing() {
        say(&format!("NOT RUN: the matrix: {problem}"));
        return Ok(());
    }
    let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
    let mut due = Vec::new();
    for (a, b, with_udp, without) in PROMISED {
        for (udp, promised) in [(true, with_udp), (false, without)] {
            let meeting = Meeting { a: matrix::named(a)?, b: matrix::named(b)?, udp, skew: Duration::ZERO };
            due.push((meeting, promised));
        }
    }
    due = short_of(&product, due, JOBS)?;
    if !due.is_empty() {
        let titles: Vec<String> = due.iter().map(|(meeting, _)| meeting.title()).collect();
        say(&format!("once more, one at a time, since this machine is busy: {}", titles.join("; ")));
        due = short_of(&product, due, 1)?;
    }
    let titles: Vec<String> =
        due.iter().map(|(meeting, at)| format!("{}: {at:?}", meeting.title())).collect();
    ensure!(due.is_empty(), "worse than promised, twice:\n{}", titles.join("\n"));
    Ok(())
}

/// Lets them meet and returns those who are worse off than promised, or whose meeting could not be held.
fn short_of(product: &Product, due: Vec<(Meeting, AtWorst)>, jobs: usize) -> Result<Vec<(Meeting, AtWorst)>> {
    let meetings: Vec<Meeting> = due.iter().map(|(meeting, _)| *meeting).collect();
    let (outcomes, _) = matrix::hold(product, &meetings, jobs)?;
    let short = |(meeting, promised): &(Meeting, AtWorst)| {
        let outcome = outcomes.get(&(meeting.a.name, meeting.b.name, meeting.udp));
        !outcome.is_some_and(|outcome| kept(outcome, *promised))
    };
    Ok(due.into_iter().filter(short).collect())
}

fn kept(outcome: &Outcome, promised: AtWorst) -> bool {
    outcome.is_connected() && (promised == Relay || outcome.is_direct())
}
