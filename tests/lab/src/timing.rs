//! How fast the lab itself is: a scenario's coming and going, and what its wires carry. `ntcp-lab timing` prints both.

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;

use crate::Host;
use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::Nat;
use crate::Profile;
use crate::Site;
use crate::nat::kinds;
use crate::probe::tcp_rate;

/// Length of each measurement of a wire, s.
const SECONDS: u32 = 5;

/// Builds and removes the scenario of the matrix so many times, then measures wires.
pub fn run(rounds: usize) -> Result<()> {
    println!("a server and two sites behind NATs, each on a wire of 20 ms, {rounds} times:");
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (list, time) in took.iter_mut().zip(scenario()?) {
            list.push(time);
        }
    }
    for (what, mut list) in ["comes up in", "goes in"].into_iter().zip(took) {
        list.sort();
        let pick = |n: usize| list.get(n).map_or(0.0, |time| time.as_secs_f64());
        println!(
            "  {what:<12} {:.2} s (median), {:.2} s (slowest)",
            pick(list.len() / 2),
            pick(list.len() - 1)
        );
    }
    println!("one TCP stream over one wire for {SECONDS} s, as received:");
    let perfect = Profile::default();
    for (name, profile) in [
        ("0 ms", perfect),
        ("10 ms each way", Profile { delay: Duration::from_millis(10), ..perfect }),
        ("20 ms each way", Profile { delay: Duration::from_millis(20), ..perfect }),
    ] {
        println!("  {name:<16} {:>6.0} Mbit/s", stream(profile)?);
    }
    Ok(())
}

/// How long the scenario takes to come and to go.
fn scenario() -> Result<[Duration; 2]> {
    let start = Instant::now();
    let lab = Lab::new()?;
    build(&lab)?;
    let up = start.elapsed();
    let start = Instant::now();
    drop(lab);
    Ok([up, start.elapsed()])
}

/// The scenario of the matrix, and the host behind its first site.
pub fn build(lab: &Lab) -> Result<Host> {
    let net = Internet::new(lab)?;
    let link = Link::delayed(Duration::from_millis(20));
    net.server("server", &link)?;
    let site = |name, kind: &str, lan| {
        let nat = kinds::named(kind).map_or(Nat::PortRestricted, |kind| kind.nat);
        net.site(name, Site::new(nat).lan(lan), &link)
    };
    let alice = site("home", "port-restricted", 1)?.host("alice")?;
    site("work", "session-step1", 2)?.host("bob")?;
    Ok(alice)
}

/// One TCP stream between two hosts on a wire, Mbit/s.
fn stream(profile: Profile) -> Result<f64> {
    let lab = Lab::new()?;
    let net = Internet::new(&lab)?;
    let (a, b) = (net.host("a", &Link::Wire(profile))?, net.host("b", &Link::Plain)?);
    tcp_rate(&a.ns, &b.ns, b.v4.into(), SECONDS)
}
