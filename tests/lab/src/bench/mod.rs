//! `make bench`: the overlay over UDP, over TCP and through its relay, what the machine could do at most, and other
//! people's tunnels, all in one run.
//!
//! Everybody is measured once a round, one after another, and only figures of one round are compared: everything shares the
//! cores of one machine, which may have other work, so absolute figures say little. Two public hosts and a server hang at
//! one router, each on a plain wire of MTU 1500; whoever is measured runs alone.

mod contestants;
pub mod forward;
pub mod measure;
mod others;
mod report;

use std::any::Any;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use self::contestants::Contestant;
use self::contestants::Field;
use self::measure::Figures;
use self::measure::Pair;
use crate::interrupt;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often everybody has its turn.
    pub rounds: usize,
    /// Length of each stream, s; one more second before it does not count.
    pub seconds: u32,
    /// Only those whose name contains one of these; all, if there is none.
    pub only: Vec<String>,
    /// Where `bench.json` and `bench.svg` go.
    pub out: PathBuf,
}

/// A tunnel that stands until this is dropped.
struct Standing {
    /// The far end's address inside.
    target: IpAddr,
    pids: Vec<u32>,
    _keep: Box<dyn Any>,
}

impl Standing {
    fn of(target: IpAddr, pids: Vec<u32>, keep: impl Any) -> Self {
        Self { target, pids, _keep: Box::new(keep) }
    }
}

/// One contestant's figures, a round each.
struct Row {
    contestant: Contestant,
    figures: Vec<Option<Figures>>,
    /// Why it was left out at least once.
    trouble: Option<String>,
}

/// Measures and prints.
pub fn run(bin: &Path, plan: &Plan) -> Result<()> {
    let wanted =
        |name: &str| plan.only.is_empty() || plan.only.iter().any(|part| name.contains(part.as_str()));
    let all = Contestant::all().into_iter().filter(|contestant| wanted(contestant.name()));
    let mut rows: Vec<Row> =
        all.map(|contestant| Row { contestant, figures: Vec::new(), trouble: None }).collect();
    let lab = crate::Lab::new()?;
    let field = Field::new(&lab, bin)?;
    for round in 1..=plan.rounds {
        for row in &mut rows {
            let name = row.contestant.name();
            let measured = turn(&row.contestant, &field, plan.seconds);
            interrupt::check()?;
            match &measured {
                Ok(figures) => eprintln!("round {round}: {name:<24}{:>8.0} Mbit/s", figures.one),
                Err(problem) => eprintln!("round {round}: NOT RUN: {name}: {problem:#}"),
            }
            row.trouble =
                measured.as_ref().err().map(|problem| format!("{problem:#}")).or(row.trouble.take());
            row.figures.push(measured.ok());
        }
    }
    report::print(&rows, plan);
    report::write(&rows, plan)
}

fn turn(contestant: &Contestant, field: &Field<'_>, seconds: u32) -> Result<Figures> {
    let standing = contestant.start(field)?;
    let pair = Pair { a: &field.a.ns, b: &field.b.ns, target: standing.target, pids: &standing.pids };
    // What starting cost is not to be measured.
    interrupt::pause(Duration::from_millis(500))?;
    pair.measure(seconds)
}
