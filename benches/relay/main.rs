//! `make bench-relay`: what one relay carries by each of its means, beside what the machine's kernel does as a router and
//! as a NAT, and beside the usual user-space forwarders, all in one run.
//!
//! Two members and a relay hang at one switch, each in a network namespace of its own; every byte passes the relay's one
//! network device twice. The members are threads that write and read as fast as they can, without any encryption, so what
//! differs is the relay alone. Everybody is measured once a round, one after another, because the machine may have other
//! work; only ratios within a round mean anything. Processor time is that of the whole process with all its threads, in
//! which the kernel does what is done for them; with a router or a NAT that is what the two ends cost.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench measures with the real clock"
)]

mod field;
mod means;

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;

use crate::field::Field;
use crate::field::Pipe;
use crate::means::Means;

/// Bytes a write, and the most that one read takes.
const CHUNK: usize = 256 << 10;
/// Time that does not count: TCP opens its windows.
const WARM_UP: Duration = Duration::from_millis(500);
/// Round trips of one byte.
const PINGS: usize = 2000;
/// Clock ticks a second in `/proc` (proc(5): fixed by the kernel's interface).
const TICKS: f64 = 100.0;

/// What was measured of one means in one round.
#[derive(Clone, Copy, Debug)]
struct Figures {
    mbits: f64,
    cpu_per_gb: f64,
}

/// One means, all rounds.
struct Row {
    means: Means,
    one: Vec<Figures>,
    many: Vec<Figures>,
    /// Microseconds.
    rtt: Vec<f64>,
}

fn main() -> Result<()> {
    let number = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (rounds, seconds, many) = (number("ROUNDS", 5), number("SECONDS", 2), number("CONNECTIONS", 100));
    let lab = ntcp_lab::Lab::new()?;
    let field = Field::new(&lab)?;
    let mut rows: Vec<Row> = Means::ALL
        .into_iter()
        .map(|means| Row { means, one: Vec::new(), many: Vec::new(), rtt: Vec::new() })
        .collect();
    let length = Duration::from_secs(seconds as u64);
    for round in 1..=rounds {
        for row in &mut rows {
            let turn = || -> Result<(Figures, Figures, f64)> {
                let one = bulk(&field, row.means, 1, length).context("one connection")?;
                let all =
                    bulk(&field, row.means, many, length).with_context(|| format!("{many} connections"))?;
                let rtt = rtt(&field, row.means).context("round trips")?;
                Ok((one, all, rtt))
            };
            match turn() {
                Ok((one, all, rtt)) => {
                    eprintln!(
                        "round {round}: {:<24}{:>8.0} {:>8.0} Mbit/s {:>7.1} us",
                        row.means.name(),
                        one.mbits,
                        all.mbits,
                        rtt
                    );
                    row.one.push(one);
                    row.many.push(all);
                    row.rtt.push(rtt);
                }
                Err(problem) => eprintln!("round {round}: NOT RUN: {}: {problem:#}", row.means.name()),
            }
        }
    }
    report(&rows, many);
    match number("IDLE", 8500) {
        0 => Ok(()),
        idle => crowd(&field, idle, number("ACTIVE", 1000), length),
    }
}

/// As many bytes as will go, over so many connections at once.
fn bulk(field: &Field, means: Means, connections: usize, length: Duration) -> Result<Figures> {
    let open = field.open(means, connections)?;
    let figures = rate(open.pipes, length);
    drop(open.relay);
    figures
}

fn rate(pipes: Vec<Pipe>, length: Duration) -> Result<Figures> {
    let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut threads = Vec::new();
    for Pipe { near, far, chunk, .. } in pipes {
        let stopped = Arc::clone(&stop);
        threads.push(thread::spawn(move || send(near, &chunk, &stopped)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&received));
        threads.push(thread::spawn(move || receive(far, &count, &stopped)));
    }
    thread::sleep(WARM_UP);
    let (bytes, cpu, at) = (received.load(Ordering::Relaxed), cpu()?, Instant::now());
    thread::sleep(length);
    let bytes = received.load(Ordering::Relaxed) - bytes;
    let (cpu, seconds) = (self::cpu()? - cpu, at.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    anyhow::ensure!(bytes > 0, "nothing arrived");
    Ok(Figures { mbits: bytes as f64 * 8.0 / seconds / 1e6, cpu_per_gb: cpu / (bytes as f64 / 1e9) })
}

/// Many sessions on one relay, of which some carry something: does each work, what does it cost to look one up, what does
/// the relay remember of each.
fn crowd(field: &Field, idle: usize, active: usize, length: Duration) -> Result<()> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all)?;
    let relay = field.relay(true)?;
    let alone = rate(vec![field.spliced(&relay, 0)?], length)?;
    let (before, at) = (resident()?, Instant::now());
    let mut pipes = Vec::new();
    for session in 1..=idle + active {
        let mut pipe = field.spliced(&relay, session).with_context(|| format!("session {session}"))?;
        pipe.chunk = Vec::new(); // counted as the relay's otherwise
        pipes.push(pipe);
    }
    let (memory, took) = (resident()?.saturating_sub(before), at.elapsed());
    let among = rate(vec![field.spliced(&relay, idle + active + 1)?], length)?;
    // All of the active ones have something under way at once.
    let payload = vec![0xa5; 16 << 10];
    let mut failed = 0;
    for pipe in pipes.iter_mut().take(active) {
        failed += usize::from(pipe.near.write_all(&payload).is_err());
    }
    for pipe in pipes.iter_mut().take(active) {
        let mut got = vec![0; payload.len()];
        pipe.far.set_read_timeout(Some(Duration::from_secs(5)))?;
        failed += usize::from(pipe.far.read_exact(&mut got).is_err() || got != payload);
    }
    let spliced = relay.handle.stats().spliced;
    println!(
        "{} sessions, {spliced} in the kernel, set up in {:.1} s; {active} of them active, {failed} failed; {:.2} KiB of the \
         process each; one stream {:.0} Mbit/s and {:.2} s/GB alone, {:.0} Mbit/s and {:.2} s/GB among them",
        idle + active,
        took.as_secs_f64(),
        memory as f64 / 1024.0 / (idle + active) as f64,
        alone.mbits,
        alone.cpu_per_gb,
        among.mbits,
        among.cpu_per_gb,
    );
    Ok(())
}

/// Bytes of memory of this process.
fn resident() -> Result<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').nth(1).context("/proc/self/statm")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Median of round trips of one byte, microseconds.
fn rtt(field: &Field, means: Means) -> Result<f64> {
    let mut open = field.open(means, 1)?;
    let Pipe { mut near, mut far, small: [ping, pong], arrived: [asked, answered], .. } =
        open.pipes.pop().context("no connection")?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let echo = thread::spawn(move || -> Result<()> {
        let mut buffer = vec![0; asked];
        for _ in 0..PINGS {
            far.read_exact(&mut buffer)?;
            far.write_all(&pong)?;
        }
        Ok(())
    });
    let mut buffer = vec![0; answered];
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let at = Instant::now();
        near.write_all(&ping)?;
        near.read_exact(&mut buffer)?;
        times.push(at.elapsed().as_secs_f64() * 1e6);
    }
    echo.join().map_err(|_| anyhow::anyhow!("the far end has panicked"))??;
    Ok(median(&mut times))
}

fn send(mut stream: TcpStream, chunk: &[u8], stop: &AtomicBool) {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
    while !stop.load(Ordering::Relaxed) {
        if stream.write_all(chunk).is_err() {
            return;
        }
    }
}

fn receive(mut stream: TcpStream, count: &AtomicU64, stop: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    let mut buffer = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(_) => {}
        }
    }
}

/// Seconds of processor time of this process so far.
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let behind = stat.rsplit_once(") ").context("/proc/self/stat")?.1;
    let mut ticks = behind.split(' ').skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    Ok((ticks.next().unwrap_or(0.0) + ticks.next().unwrap_or(0.0)) / TICKS)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The table: medians over all rounds, and ratios of the same round.
fn report(rows: &[Row], many: usize) {
    let mid = |values: &[f64]| median(&mut values.to_vec());
    let nat = rows.iter().find(|row| row.means == Means::Nat);
    println!(
        "{:<22} {:>9} {:>8} {:>7} {:>9} {:>8} {:>7} {:>8} {:>7}",
        "",
        "1: Mbit/s",
        "of NAT",
        "s/GB",
        format!("{many}: Mb/s"),
        "of NAT",
        "s/GB",
        "RTT us",
        "of NAT"
    );
    for row in rows.iter().filter(|row| !row.one.is_empty()) {
        let ratio = |own: &[f64], others: Option<Vec<f64>>| {
            let others = others.unwrap_or_default();
            mid(&own.iter().zip(&others).map(|(a, b)| a / b).collect::<Vec<_>>())
        };
        let rates = |all: &[Figures]| all.iter().map(|f| f.mbits).collect::<Vec<_>>();
        let costs = |all: &[Figures]| all.iter().map(|f| f.cpu_per_gb).collect::<Vec<_>>();
        println!(
            "{:<22} {:>9.0} {:>8.2} {:>7.2} {:>9.0} {:>8.2} {:>7.2} {:>8.1} {:>7.2}",
            row.means.name(),
            mid(&rates(&row.one)),
            ratio(&rates(&row.one), nat.map(|nat| rates(&nat.one))),
            mid(&costs(&row.one)),
            mid(&rates(&row.many)),
            ratio(&rates(&row.many), nat.map(|nat| rates(&nat.many))),
            mid(&costs(&row.many)),
            mid(&row.rtt),
            ratio(&row.rtt, nat.map(|nat| nat.rtt.clone())),
        );
    }
}
