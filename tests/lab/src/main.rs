//! The command `ntcp-lab`: clean up after killed labs, and the shows that need one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use clap::Subcommand;
use ntcp_lab::Lab;
use ntcp_lab::bench;
use ntcp_lab::check;
use ntcp_lab::check::interop;
use ntcp_lab::demo;
use ntcp_lab::discovery;
use ntcp_lab::interrupt;
use ntcp_lab::leftovers;
use ntcp_lab::matrix;
use ntcp_lab::matrix::Plan;
use ntcp_lab::product::Product;
use ntcp_lab::timing;
use ntcp_lab::tools;

/// A laboratory of hosts, NATs and wires on this machine.
#[derive(Parser)]
#[command(name = "ntcp-lab", version)]
struct Args {
    #[command(subcommand)]
    command: Word,
}

#[derive(Subcommand)]
enum Word {
    /// Remove what killed labs left behind
    Clean,
    /// Say in one line what the lab lacks on this machine
    Missing,
    /// Two machines behind NATs meet, in plain words (two minutes)
    Demo {
        /// The ntcp-overlay binary
        #[arg(long)]
        bin: PathBuf,
    },
    /// The overlay beside what the machine could do at most and beside other tunnels, in rounds
    Bench {
        /// The ntcp-overlay binary
        #[arg(long)]
        bin: PathBuf,
        /// How often everybody has its turn
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Length of each TCP stream, s
        #[arg(long, default_value_t = 3)]
        seconds: u32,
        /// Only those whose name contains one of these, separated by commas
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Where bench.json and bench.svg go
        #[arg(long, default_value = "target")]
        out: PathBuf,
    },
    /// One side of a forwarder without any protection, which shows what a tunnel could do at most; for the lab only
    #[command(hide = true)]
    Forward {
        /// The TUN device to make
        device: String,
        /// What carries
        carrier: bench::forward::Carrier,
        /// Our address
        local: SocketAddr,
        /// The other side's
        peer: SocketAddr,
        /// Over TCP: wait for the other side
        #[arg(long)]
        listens: bool,
    },
    /// Check every NAT of the lab with STUN clients that others wrote, and TCP with plain sockets
    Check {
        /// Names of NATs, separated by commas; all of them if none is given
        #[arg(long, value_delimiter = ',')]
        kinds: Vec<String>,
    },
    /// Other people's STUN clients ask the product's server, before every NAT of the lab
    Interop {
        /// The ntcp-overlay binary
        #[arg(long)]
        bin: PathBuf,
        /// Names of NATs, separated by commas; all of them if none is given
        #[arg(long, value_delimiter = ',')]
        kinds: Vec<String>,
    },
    /// The product between every pair of NATs, with UDP and without
    Matrix {
        /// The ntcp-overlay binary
        #[arg(long)]
        bin: PathBuf,
        /// Names of NATs, separated by commas; every pair of them is tried [default: all]
        #[arg(long, value_delimiter = ',')]
        kinds: Vec<String>,
        /// How many labs run at once; they wait more than they work
        #[arg(long, default_value_t = 14)]
        jobs: usize,
        /// How much later one side hears from the broker than the other, like 500ms
        #[arg(long, default_value = "0ms", value_parser = millis)]
        skew: Duration,
        /// Where matrix.json and matrix.svg go
        #[arg(long, default_value = "target")]
        out: PathBuf,
    },
    /// What `netcheck` finds before each NAT, against what the NAT does
    Discovery {
        /// The ntcp-overlay binary
        #[arg(long)]
        bin: PathBuf,
        /// Names of cases, separated by commas [default: all]
        #[arg(long, value_delimiter = ',')]
        cases: Vec<String>,
        /// How many labs run at once
        #[arg(long, default_value_t = 4)]
        jobs: usize,
    },
    /// One pair of the matrix, kept until interrupted, to look at by hand
    Meet {
        /// The NAT before alice
        a: String,
        /// The NAT before bob
        b: String,
        /// The ntcp-overlay binary
        #[arg(long)]
        bin: PathBuf,
        /// Block UDP at both sites
        #[arg(long)]
        no_udp: bool,
        /// How much later bob hears from the broker than alice, like 500ms
        #[arg(long, default_value = "0ms", value_parser = millis)]
        skew: Duration,
    },
    /// How fast the lab is: a scenario's coming and going, and what its wires carry
    Timing {
        /// How often the scenario is built
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// Build a small lab and keep it until interrupted; prints its id and the id of a process in it
    Hold,
}

fn main() -> ExitCode {
    match act(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("ntcp-lab: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(word: Word) -> Result<()> {
    match word {
        Word::Clean => {
            for id in leftovers::clean()? {
                println!("removed the lab {id}, whose owner is gone");
            }
            Ok(())
        }
        Word::Missing => match tools::missing() {
            Some(problem) => anyhow::bail!("{problem}"),
            None => Ok(()),
        },
        Word::Demo { bin } => demo::run(&bin),
        Word::Bench { bin, rounds, seconds, only, out } => {
            bench::run(&bin, &bench::Plan { rounds, seconds, only, out })
        }
        Word::Forward { device, carrier, local, peer, listens } => {
            bench::forward::run(&device, carrier, local, peer, listens)
        }
        Word::Check { kinds } => check::run(&kinds),
        Word::Interop { bin, kinds } => interop::run(&Product::new(bin)?, &kinds),
        Word::Matrix { bin, kinds, jobs, skew, out } => matrix::run(&bin, &Plan { kinds, jobs, skew }, &out),
        Word::Discovery { bin, cases, jobs } => {
            let all = || discovery::names().into_iter().map(str::to_owned).collect();
            discovery::run(&bin, &if cases.is_empty() { all() } else { cases }, jobs)
        }
        Word::Meet { a, b, bin, no_udp, skew } => matrix::meet(&bin, [&a, &b], !no_udp, skew),
        Word::Timing { rounds } => timing::run(rounds.max(1)),
        Word::Hold => hold(),
    }
}

/// A time in milliseconds, with its unit.
fn millis(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").and_then(|number| number.parse().ok());
    number.map(Duration::from_millis).ok_or_else(|| format!("\"{text}\" is not a time like 500ms"))
}

fn hold() -> Result<()> {
    let lab = Lab::new()?;
    let host = timing::build(&lab)?;
    let mut busy = host.ns.spawn(&["sh", "-c", "echo inside; exec sleep 98765"])?;
    busy.wait_for_line("inside", Duration::from_secs(10))?;
    println!("{} {}", lab.id(), busy.pid());
    loop {
        interrupt::pause(Duration::from_secs(1))?;
    }
}
