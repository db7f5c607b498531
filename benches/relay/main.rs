//! `make bench-relay`: what one relay carries by each of its means, beside what the machine's kernel does as a router and
//! as a NAT, and beside the usual user-space forwarders, all in one run.
//!
//! Two members and a relay hang at one switch, each in a network namespace of its own; every byte passes the relay's one
//! network device twice. The members are threads that write and read as fast as they can, without any encryption, so what
//! differs is the relay alone. Everybody is measured once a round, one after another, because the machine may have other
//! work; only ratios within a round mean anything. Processor time is that of the whole process with all its threads, in
//! which the kernel does what is done for them; with a router or a NAT that is what the two ends cost. coturn is a process
//! of its own, which counts too.
//!
//! The series are those of Liu's thesis, 5.3: throughput over the number of connections, round trips, lost datagrams over
//! rate and over size. His 6 KB datagrams are left out: members send none that has to be cut.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench measures with the real clock"
)]

mod datagrams;
mod field;
mod holder;
mod means;
mod picture;
mod report;
mod turn;

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

use crate::datagrams::Loss;
use crate::field::Field;
use crate::field::Pipe;
use crate::field::Serving;
use crate::holder::Holder;
use crate::means::Means;

/// Bytes a write, and the most that one read takes.
const CHUNK: usize = 256 << 10;
/// Time that does not count: TCP opens its windows.
const WARM_UP: Duration = Duration::from_millis(500);
/// Round trips of one byte.
const PINGS: usize = 2000;
/// Clock ticks a second in `/proc` (proc(5): fixed by the kernel's interface).
const TICKS: f64 = 100.0;

/// Payload of the datagrams of a series over rates, bytes (Liu's Fig. 5.8).
const DATAGRAM: usize = 1024;
/// Rates of that series, Mbit/s.
const RATES: [f64; 5] = [50.0, 100.0, 200.0, 400.0, 800.0];
/// Payloads of the series as fast as it goes (his Fig. 5.10), bytes, up to the largest that a member sends.
const SIZES: [usize; 4] = [64, 256, 1024, 1400];
/// More than any machine sends, Mbit/s.
const FULL_SPEED: f64 = 1e6;

/// What was measured of one means in one round.
#[derive(Clone, Copy, Debug)]
struct Figures {
    mbits: f64,
    cpu_per_gb: f64,
}

/// One means, all rounds.
struct Row {
    means: Means,
    /// By the number of connections, as in [`Plan::connections`].
    bulk: Vec<Vec<Figures>>,
    /// Microseconds.
    rtt: Vec<f64>,
    /// By rate.
    by_rate: Vec<Vec<Loss>>,
    /// By size.
    by_size: Vec<Vec<Loss>>,
}

/// What is measured.
struct Plan {
    rounds: usize,
    connections: Vec<usize>,
    length: Duration,
}

fn main() -> Result<()> {
    allow_files()?;
    if std::env::args().nth(1).as_deref() == Some(holder::WORD) {
        return holder::hold();
    }
    let number = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let connections = std::env::var("CONNECTIONS").unwrap_or_else(|_| "1,10,100,1000".to_owned());
    let connections = connections.split(',').map(|n| n.trim().parse().context("CONNECTIONS"));
    let plan = Plan {
        rounds: number("ROUNDS", 5),
        connections: connections.collect::<Result<_>>()?,
        length: Duration::from_secs(number("SECONDS", 2) as u64),
    };
    let lab = ntcp_lab::Lab::new()?;
    let field = Field::new(&lab)?;
    let series = plan.connections.len();
    let row = |means| Row {
        means,
        bulk: vec![Vec::new(); series],
        rtt: Vec::new(),
        by_rate: vec![Vec::new(); RATES.len()],
        by_size: vec![Vec::new(); SIZES.len()],
    };
    let mut rows: Vec<Row> = Means::ALL.into_iter().map(row).collect();
    for round in 1..=plan.rounds {
        for row in &mut rows {
            if let Err(problem) = turn(&field, row, &plan, round) {
                eprintln!("round {round}: NOT RUN: {}: {problem:#}", row.means.name());
            }
        }
    }
    if plan.rounds > 0 {
        report::print(&rows, &plan);
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/relay.svg");
        std::fs::write(&path, picture::svg(&rows, &plan)).context("target/relay.svg")?;
        println!("picture: target/relay.svg");
    }
    match number("IDLE", 10_000) {
        0 => Ok(()),
        idle => crowd(&field, idle, number("ACTIVE", 1000), plan.length),
    }
}

/// Everything about one means, once.
fn turn(field: &Field, row: &mut Row, plan: &Plan, round: usize) -> Result<()> {
    let name = row.means.name();
    for (&connections, bulk) in plan.connections.iter().zip(&mut row.bulk) {
        let open = field.open(row.means, connections)?;
        let figures = rate(open.pipes, &open.serving, plan.length);
        match figures.with_context(|| format!("{connections} connections")) {
            Ok(figures) => {
                eprintln!(
                    "round {round}: {name:<20}{connections:>5} connections {:>8.0} Mbit/s",
                    figures.mbits
                );
                bulk.push(figures);
            }
            Err(problem) => eprintln!("round {round}: NOT RUN: {name}: {problem:#}"),
        }
    }
    row.rtt.push(rtt(field, row.means).context("round trips")?);
    if Means::DATAGRAMS.contains(&row.means) {
        let (post, _serving) = field.post(row.means).context("datagrams")?;
        for (rate, losses) in RATES.iter().zip(&mut row.by_rate) {
            losses.push(datagrams::measure(&post, DATAGRAM, *rate, plan.length)?);
        }
        for (size, losses) in SIZES.iter().zip(&mut row.by_size) {
            losses.push(datagrams::measure(&post, *size, FULL_SPEED, plan.length)?);
        }
        let lost: Vec<String> =
            row.by_rate.iter().filter_map(|all| Some(format!("{:.1}", all.last()?.lost * 100.0))).collect();
        eprintln!("round {round}: {name:<20} {} % of the datagrams lost", lost.join(" "));
    }
    Ok(())
}

/// As many descriptors as this process may have.
fn allow_files() -> Result<()> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).context("the limit of open files")
}

/// As many bytes as will go.
fn rate(pipes: Vec<Pipe>, serving: &Serving, length: Duration) -> Result<Figures> {
    let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut threads = Vec::new();
    for Pipe { near, far, chunk, .. } in pipes {
        let stopped = Arc::clone(&stop);
        threads.push(thread::spawn(move || send(near, &chunk, &stopped)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&received));
        threads.push(thread::spawn(move || receive(far, &count, &stopped)));
    }
    thread::sleep(WARM_UP);
    let (bytes, cpu, at) = (received.load(Ordering::Relaxed), cpu(serving)?, Instant::now());
    thread::sleep(length);
    let bytes = received.load(Ordering::Relaxed) - bytes;
    let (cpu, seconds) = (self::cpu(serving)? - cpu, at.elapsed().as_secs_f64());
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
    let relay = field.relay(true)?;
    let alone = rate(vec![field.spliced(&relay, 0)?], &Serving::Nothing, length)?;
    let (before, at) = (resident()?, Instant::now());
    let (mut pipes, mut idlers, mut holder) = (Vec::new(), Vec::new(), Holder::start()?);
    for session in 1..=idle + active {
        let mut pipe = field.spliced(&relay, session).with_context(|| format!("session {session}"))?;
        if session <= active {
            pipe.chunk = Vec::new(); // counted as the relay's otherwise
            pipes.push(pipe);
        } else {
            holder.keep(pipe.far)?;
            idlers.push(pipe.near);
        }
    }
    let (memory, took) = (resident()?.saturating_sub(before), at.elapsed());
    let among = rate(vec![field.spliced(&relay, idle + active + 1)?], &Serving::Nothing, length)?;
    // All of the active ones have something under way at once.
    let payload = vec![0xa5; 16 << 10];
    let mut failed = 0;
    for pipe in &mut pipes {
        failed += usize::from(pipe.near.write_all(&payload).is_err());
    }
    for pipe in &mut pipes {
        let mut got = vec![0; payload.len()];
        pipe.far.set_read_timeout(Some(Duration::from_secs(5)))?;
        failed += usize::from(pipe.far.read_exact(&mut got).is_err() || got != payload);
    }
    // Idle ones have had nothing to fail with but their connection.
    for idler in &idlers {
        failed += usize::from(idler.take_error()?.is_some());
    }
    let (stats, at) = (relay.handle.stats(), Instant::now());
    let spliced = stats.spliced;
    let carried = relay.handle.carried();
    let counted = at.elapsed();
    println!(
        "{} sessions, {spliced} in the kernel, set up in {:.1} s; {active} of them active, {failed} failed; {:.2} KiB of the \
         process each; {:.1} GB counted in {:.0} ms; one stream {:.0} Mbit/s and {:.2} s/GB alone, {:.0} Mbit/s and {:.2} s/GB among them",
        idle + active,
        took.as_secs_f64(),
        memory as f64 / 1024.0 / (idle + active) as f64,
        carried.bytes as f64 / 1e9,
        counted.as_secs_f64() * 1e3,
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

/// Seconds of processor time of this process, and of another one that serves, so far.
fn cpu(serving: &Serving) -> Result<f64> {
    let other = match serving {
        Serving::Process(process) => ticks(&process.pid().to_string())?,
        Serving::Nothing | Serving::Ours(_) => 0.0,
    };
    Ok((ticks("self")? + other) / TICKS)
}

fn ticks(process: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let behind = stat.rsplit_once(") ").context("/proc/PID/stat")?.1;
    let ticks = behind.split(' ').skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    Ok(ticks.sum())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
