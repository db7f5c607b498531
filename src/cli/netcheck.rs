//! `netcheck`: what the NATs before this machine do, measured now.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::base::addr::canonical;
use crate::cli::args::NetcheckArgs;
use crate::cli::output;
use crate::cli::verdict;
use crate::config::exit::Exit;
use crate::config::exit::Failure;
use crate::config::load;
use crate::config::settings::Overrides;
use crate::control::api::Reply;
use crate::control::api::Request;
use crate::control::api::SCHEMA;
use crate::control::api::Treatment;
use crate::control::client;
use crate::discovery::Scope;
use crate::discovery::Survey;
use crate::discovery::report::Figures;
use crate::discovery::report::Report;
use crate::engine::clock;
use crate::engine::discovery;
use crate::engine::stun_server;
use crate::nat::behavior::Behavior;
use crate::nat::behavior::Reaction;
use crate::wire::enroll::BrokerAddr;

/// What `netcheck --json` prints: the family that is first in `family`, and IPv6 behind it where both were measured.
#[derive(Serialize)]
struct Output {
    schema: u32,
    servers: Vec<SocketAddr>,
    #[serde(flatten)]
    first: Findings,
    ipv6: Option<Findings>,
}

/// What one family came to.
#[derive(Serialize)]
struct Findings {
    /// `ipv4`, `ipv6`.
    family: &'static str,
    seconds: f64,
    /// When what decides how peers are met was known.
    usable_seconds: Option<f64>,
    udp: Part,
    tcp: Part,
    /// How long a TCP mapping is known to live after a SYN; `tcp.lifetime_s` is that of a connection.
    lifetime_after_syn_s: Option<u16>,
    /// How long it is known to live after a FIN from inside.
    lifetime_after_fin_s: Option<u16>,
    /// Whether a half open TCP mapping outlives a RST from outside.
    survives_reset: Option<bool>,
    /// Whether it outlives an ICMP error.
    survives_icmp: Option<bool>,
    /// Whether a SYN-ACK may leave where a SYN has left.
    synack_out: Option<bool>,
    /// Whether TCP's sequence numbers are the same on both sides.
    sequence_kept: Option<bool>,
    /// A SYN as it arrived at the server.
    syn: Option<Syn>,
    /// Routers up to and with the outermost NAT.
    hops: Option<u8>,
    /// Share of peers behind the NATs of 2005 that can be met directly over TCP.
    direct_tcp_percent: Option<f64>,
    verdict: Vec<String>,
    unknown: Vec<Missing>,
}

#[derive(Serialize)]
struct Syn {
    ttl: u8,
    sequence: u32,
    window: u16,
    mss: Option<u16>,
    /// All its options, in hexadecimal.
    options: String,
}

/// How one transport is treated.
#[derive(Serialize)]
struct Part {
    #[serde(flatten)]
    treatment: Treatment,
    /// From 0 to 1.
    ports_confidence: f64,
    /// Inner and outer port, in the order in which the mappings were made.
    samples: Vec<(u16, u16)>,
    /// `drop`, `reset`, `unreachable`.
    reaction: Option<&'static str>,
    reaction_after_ms: Option<u128>,
    hairpin: Option<bool>,
    /// `outer` or `inner`.
    hairpin_source: Option<&'static str>,
    /// Whether all mappings have one outer address.
    paired: Option<bool>,
    /// How long an idle mapping is known to live.
    lifetime_s: Option<u16>,
    local: Option<SocketAddr>,
    mapped: Option<SocketAddr>,
    mapped_other_port: Option<SocketAddr>,
    mapped_other_address: Option<SocketAddr>,
    mapped_other_address_and_port: Option<SocketAddr>,
    mapped_again: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Missing {
    what: &'static str,
    why: &'static str,
}

/// A measurement of one family.
struct Measured {
    family: Family,
    report: Report,
    took: Duration,
    usable: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    fn of(server: SocketAddr) -> Self {
        if canonical(server).is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }
}

pub(super) fn run(args: &NetcheckArgs) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let servers = runtime.block_on(servers(args))?;
    let scope = Scope { lifetimes: args.lifetimes, privileged: discovery::is_privileged() };
    let both =
        [Family::Ipv4, Family::Ipv6].iter().all(|family| servers.iter().any(|s| Family::of(*s) == *family));
    let measured = runtime.block_on(async {
        let of = |family| measure(&servers, family, scope, both);
        let (ipv4, ipv6) = tokio::join!(of(Family::Ipv4), of(Family::Ipv6));
        [ipv4, ipv6]
    });
    let (mut all, mut problem) = (Vec::new(), None);
    for one in measured.into_iter().flatten() {
        match one {
            Ok(measured) if measured.is_something() => all.push(measured),
            Ok(_) => {}
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    let Some((first, others)) = all.split_first() else {
        return Err(problem.unwrap_or_else(|| silence(&servers)));
    };
    let missing = both && others.is_empty();
    if args.json {
        return output::json(&Output::new((first, others), servers, missing));
    }
    let mut lines = Vec::new();
    for measured in &all {
        if !others.is_empty() {
            lines.extend((!lines.is_empty()).then(String::new));
            lines.push(format!("Over {}:", measured.family.name()));
        }
        let report = &measured.report;
        lines.extend(verdict::sentences(report));
        if args.verbose {
            lines.push(String::new());
            lines.extend(verdict::figures(report));
        } else if !report.unknown.is_empty() {
            lines.push(format!("{} not measured; -v says what and why.", counted(report.unknown.len())));
        }
    }
    if missing {
        let other = if first.family == Family::Ipv4 { Family::Ipv6 } else { Family::Ipv4 };
        lines.push(format!("Over {}: {UNREACHED}.", other.name()));
    }
    output::data(&(lines.join("\n") + "\n"))
}

/// Of the family of which there are servers too.
const UNREACHED: &str = "no server could be reached";

/// Measures one family; `None` if no server has it. With `both`, what is said of the progress names the family.
async fn measure(
    servers: &[SocketAddr],
    family: Family,
    scope: Scope,
    both: bool,
) -> Option<anyhow::Result<Measured>> {
    let servers: Vec<SocketAddr> =
        servers.iter().copied().filter(|server| Family::of(*server) == family).collect();
    let mut survey = Survey::new(&servers, scope, clock::seed());
    survey.server()?;
    let started = clock::now().instant;
    let (mut stage, mut usable) = ("", None);
    let mut progress = |survey: &Survey| {
        if usable.is_none() && survey.is_usable() {
            usable = Some(clock::now().instant.saturating_duration_since(started));
        }
        if survey.stage() != stage {
            stage = survey.stage();
            let over = if both { format!(" ({})", family.name()) } else { String::new() };
            eprintln!("{stage}{over} ...");
        }
    };
    progress(&survey);
    let done = discovery::run(&mut survey, &mut progress).await;
    let took = clock::now().instant.saturating_duration_since(started);
    Some(done.map(|()| Measured { family, report: survey.report(), took, usable }))
}

impl Measured {
    /// Whether any server answered.
    fn is_something(&self) -> bool {
        let profile = &self.report.profile;
        profile.udp.passes.is_some() || profile.tcp.passes.is_some()
    }
}

fn silence(servers: &[SocketAddr]) -> anyhow::Error {
    let asked: Vec<String> = servers.iter().map(ToString::to_string).collect();
    Failure::new(
        Exit::Timeout,
        format!(
            "no STUN server answered, neither over UDP nor over TCP ({}): is one of them running? Try another with --server",
            asked.join(", ")
        ),
    )
    .into()
}

fn counted(things: usize) -> String {
    if things == 1 { "One thing was".to_owned() } else { format!("{things} things were") }
}

/// Those that were named, else those of the configuration, else those that the running daemon knows.
async fn servers(args: &NetcheckArgs) -> anyhow::Result<Vec<SocketAddr>> {
    let named = if args.servers.is_empty() { configured(args)? } else { args.servers.clone() };
    let servers = if named.is_empty() { announced(args) } else { stun_server::look_up(&named).await };
    if servers.is_empty() {
        let why = if named.is_empty() {
            "no STUN server is known here"
        } else {
            "no STUN server could be looked up"
        };
        return Err(Failure::new(
            Exit::Failed,
            format!("{why}: name one with --server HOST:PORT, one of RFC 5780 with two addresses if you can"),
        )
        .into());
    }
    Ok(servers)
}

fn configured(args: &NetcheckArgs) -> anyhow::Result<Vec<BrokerAddr>> {
    let loaded = load::load(args.config.config.as_deref(), Overrides::default())?;
    Ok(loaded.settings.member.stun_servers)
}

/// A daemon that does not run, or cannot be asked, knows none.
fn announced(args: &NetcheckArgs) -> Vec<SocketAddr> {
    match client::ask(&args.control.socket(), Request::Status {}) {
        Ok(Reply::Status(status)) => status.stun_servers,
        _ => Vec::new(),
    }
}

impl Output {
    fn new((first, others): (&Measured, &[Measured]), servers: Vec<SocketAddr>, missing: bool) -> Self {
        let mut first = Findings::new(first);
        if missing {
            let what = if first.family == "ipv4" { "IPv6" } else { "IPv4" };
            first.unknown.push(Missing { what, why: UNREACHED });
        }
        Self { schema: SCHEMA, servers, first, ipv6: others.first().map(Findings::new) }
    }
}

impl Findings {
    fn new(measured: &Measured) -> Self {
        let Measured { family, report, took, usable } = measured;
        let Report { profile, udp, tcp, .. } = report;
        let mut tcp = Part::new(profile.tcp, tcp);
        tcp.reaction_after_ms = report.reaction_after.map(|after| after.as_millis());
        Self {
            family: match family {
                Family::Ipv4 => "ipv4",
                Family::Ipv6 => "ipv6",
            },
            seconds: took.as_secs_f64(),
            usable_seconds: usable.map(|usable| usable.as_secs_f64()),
            udp: Part::new(profile.udp, udp),
            tcp,
            lifetime_after_syn_s: profile.transitory.opening,
            lifetime_after_fin_s: profile.transitory.closing,
            survives_reset: profile.segments.survives_reset,
            survives_icmp: profile.segments.survives_icmp,
            synack_out: profile.segments.synack_out,
            sequence_kept: profile.segments.sequence_kept,
            syn: report.syn.as_ref().map(|syn| Syn {
                ttl: syn.ttl,
                sequence: syn.sequence,
                window: syn.window,
                mss: syn.mss(),
                options: verdict::hex(&syn.options),
            }),
            hops: profile.hops,
            direct_tcp_percent: report.direct_tcp,
            verdict: verdict::sentences(report),
            unknown: report.unknown.iter().map(|u| Missing { what: u.what, why: u.why }).collect(),
        }
    }
}

impl Part {
    fn new(behavior: Behavior, figures: &Figures) -> Self {
        let views = &figures.views;
        Self {
            treatment: behavior.into(),
            ports_confidence: figures.ports.confidence,
            samples: figures.samples.clone(),
            reaction: match behavior.reaction {
                Reaction::Unknown => None,
                Reaction::Drop => Some("drop"),
                Reaction::Reset => Some("reset"),
                Reaction::Unreachable => Some("unreachable"),
            },
            reaction_after_ms: None,
            hairpin: behavior.hairpin,
            hairpin_source: figures.hairpin_outer.map(|outer| if outer { "outer" } else { "inner" }),
            paired: behavior.paired,
            lifetime_s: behavior.lifetime,
            local: figures.local,
            mapped: views.first,
            mapped_other_port: views.other_port,
            mapped_other_address: views.other_address,
            mapped_other_address_and_port: views.other_both,
            mapped_again: views.again,
        }
    }
}
