//! What is measured of one tunnel that stands: rates, packets, round trips, what its processes cost.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;

use crate::interrupt;
use crate::ns::LIMIT;
use crate::ns::Namespace;

/// What one round found.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// One TCP stream, Mbit/s as received.
    pub one: f64,
    /// Four TCP streams, together.
    pub four: f64,
    /// One TCP stream the other way.
    pub reverse: f64,
    /// One TCP stream each way at a time, together.
    pub both_ways: f64,
    /// Datagrams of 64 bytes received, thousands a second.
    pub small: f64,
    /// Round trip of the idle tunnel, median and 99th percentile, ms.
    pub idle: (f64, f64),
    /// The same while one TCP stream fills it.
    pub loaded: (f64, f64),
    /// Processor time of all processes of the tunnel, s per GB moved; kernel time on their behalf included.
    pub cpu: f64,
    /// Resident memory of the largest process before and after the load, MiB.
    pub memory: (f64, f64),
}

/// Two machines and a tunnel between them.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The client of iperf3.
    pub a: &'a Namespace,
    /// Its server.
    pub b: &'a Namespace,
    /// Its address, through the tunnel.
    pub target: IpAddr,
    /// The processes of the tunnel.
    pub pids: &'a [u32],
}

impl Pair<'_> {
    /// Everything, with streams of `seconds`.
    pub fn measure(&self, seconds: u32) -> Result<Figures> {
        self.ping(20, 0.01)?;
        let before = self.memory();
        let idle = self.ping(200, 0.005)?;
        let target = self.target.to_string();
        let mut server = self.b.spawn(&["iperf3", "-s", "-B", &target, "--forceflush"])?;
        server.wait_for_line("listening", Duration::from_secs(10))?;

        let used = self.processor_time();
        let (report, loaded) = std::thread::scope(|scope| {
            let ping = scope.spawn(|| {
                interrupt::pause(Duration::from_millis(1200))?;
                self.ping(u32::max(seconds, 2) * 40, 0.02)
            });
            let report = self.iperf(seconds, &["-O", "1"]);
            (report, ping.join())
        });
        let loaded = loaded.map_err(|_| anyhow::anyhow!("ping's thread is gone"))??;
        let report = report?;
        let used = self.processor_time() - used;
        // The first second is not in the report, but in the processor's time.
        let moved = rate(&report, "sum_received")? * f64::from(seconds + 1) / 8000.0;
        let one = rate(&report, "sum_received")?;
        let four = rate(&self.iperf(seconds, &["-O", "1", "-P", "4"])?, "sum_received")?;
        let reverse = rate(&self.iperf(seconds, &["-O", "1", "-R"])?, "sum_received")?;
        let both_ways = self.iperf(seconds, &["-O", "1", "--bidir"])?;
        let both_ways = rate(&both_ways, "sum_received")? + rate(&both_ways, "sum_received_bidir_reverse")?;
        let small = self.iperf(seconds, &["-u", "-b", "0", "-l", "64"])?;
        let sum = |key: &str| small.pointer(&format!("/end/sum/{key}")).and_then(Value::as_f64);
        let (sent, lost) = sum("packets").zip(sum("lost_packets")).context("iperf3 counted no packets")?;
        let small = (sent - lost) / f64::from(seconds) / 1000.0;
        let memory = (before, self.memory());
        Ok(Figures { one, four, reverse, both_ways, small, idle, loaded, cpu: used / moved, memory })
    }

    fn iperf(&self, seconds: u32, more: &[&str]) -> Result<Value> {
        let (target, seconds_text) = (self.target.to_string(), seconds.to_string());
        let words = [&["iperf3", "-J", "-c", &target, "-t", &seconds_text], more].concat();
        // The server may still be busy with what a client before left behind.
        let mut said = String::new();
        for _ in 0..10 {
            let limit = LIMIT + Duration::from_secs(u64::from(seconds));
            said = self.a.try_run(&words, limit)?.stdout;
            let report: Value = serde_json::from_str(&said)?;
            if report.get("error").is_none() {
                return Ok(report);
            }
            interrupt::pause(Duration::from_millis(300))?;
        }
        anyhow::bail!("iperf3 said: {said}")
    }

    /// Median and 99th percentile of the answers, ms.
    fn ping(&self, count: u32, gap: f64) -> Result<(f64, f64)> {
        let (count, gap, target) = (count.to_string(), gap.to_string(), self.target.to_string());
        let words = ["ping", "-n", "-c", &count, "-i", &gap, "-W", "2", &target];
        let said = self.a.try_run(&words, LIMIT)?.stdout;
        let time = |line: &str| line.split("time=").nth(1)?.split(' ').next()?.parse().ok();
        let mut all: Vec<f64> = said.lines().filter_map(time).collect();
        all.sort_by(f64::total_cmp);
        let at = |share: usize| all.get((all.len() * share / 100).min(all.len().saturating_sub(1))).copied();
        at(50).zip(at(99)).with_context(|| format!("nobody answers:\n{said}"))
    }

    fn memory(&self) -> f64 {
        self.pids.iter().filter_map(|pid| resident(*pid)).fold(0.0, f64::max)
    }

    fn processor_time(&self) -> f64 {
        self.pids.iter().filter_map(|pid| spent(*pid)).sum()
    }
}

fn rate(report: &Value, sum: &str) -> Result<f64> {
    let bits = report.pointer(&format!("/end/{sum}/bits_per_second")).and_then(Value::as_f64);
    Ok(bits.context("iperf3 reported no rate")? / 1e6)
}

/// Resident memory of a process, MiB.
pub fn resident(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().split(' ').next()?.parse::<f64>().ok()? / 1024.0)
}

/// User and system time of a process and all its threads, s.
fn spent(pid: u32) -> Option<f64> {
    /// Ticks a second in /proc: `USER_HZ`, the same on every Linux.
    const HZ: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 and 15; the second, in brackets, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / HZ)
}
