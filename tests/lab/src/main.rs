//! The command `ntcp-lab`: clean up after killed labs, and the shows that need one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use clap::Subcommand;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Site;
use ntcp_lab::bench;
use ntcp_lab::check;
use ntcp_lab::demo;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
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
    /// One TCP stream: bare, through wireguard-go, through the overlay
    Bench {
        /// The ntcp-overlay binary
        #[arg(long)]
        bin: PathBuf,
    },
    /// Check every NAT of the lab with STUN clients that others wrote, and TCP with plain sockets
    Check,
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
            for id in lab::clean()? {
                println!("removed the lab {id}, whose owner is gone");
            }
            Ok(())
        }
        Word::Missing => match tools::missing() {
            Some(problem) => anyhow::bail!("{problem}"),
            None => Ok(()),
        },
        Word::Demo { bin } => demo::run(&bin),
        Word::Bench { bin } => bench::run(&bin),
        Word::Check => check::run(),
        Word::Hold => hold(),
    }
}

fn hold() -> Result<()> {
    let lab = Lab::new()?;
    let net = Internet::new(&lab)?;
    let site = net.site("home", Site::new(Nat::PortRestricted), &Link::delayed(Duration::from_millis(20)))?;
    let host = site.host("alice")?;
    let busy = host.ns.spawn(&["sleep", "98765"])?;
    println!("{} {}", lab.id(), busy.pid());
    loop {
        interrupt::pause(Duration::from_secs(1))?;
    }
}
