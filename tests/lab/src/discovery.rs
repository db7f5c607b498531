//! `make discovery`: what `netcheck` finds before each NAT, against what the NAT is made to do.
//!
//! The expectation is written down here from the NAT's description alone; nothing of the product is used but its command
//! line. What differs is printed, and is a failure unless a sentence here explains it.

use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use crate::Host;
use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::Nat;
use crate::Site;
use crate::check::stund;
use crate::check::turnserver;
use crate::interrupt;
use crate::nat::Behaviour;
use crate::nat::Filtering;
use crate::nat::Hairpin;
use crate::nat::Lifetimes;
use crate::nat::Mapping;
use crate::nat::Numbers;
use crate::nat::OnIcmp;
use crate::nat::OnReset;
use crate::nat::Pooling;
use crate::nat::Ports;
use crate::nat::Reaction;
use crate::nat::States;
use crate::nat::V6;
use crate::nat::kinds;
use crate::nat::kinds::KINDS;
use crate::process::Process;
use crate::product::Daemon;
use crate::product::Product;
use crate::product::write_config;
use crate::topology::Server;

/// One way, on the line of the site. Without delay nothing crosses, and ICMP errors overtake what provoked them.
const DELAY: Duration = Duration::from_millis(20);
/// Packets that a measurement may send, as the product's documentation says, and ARP's.
const BUDGET: u64 = 270 + 20;
/// What lifetimes may cost on top, and ARP's in two minutes.
const LIFETIMES_BUDGET: u64 = 130 + 20;
/// The STUN servers' port.
const PORT: u16 = 3478;
/// How long a measurement may take; with lifetimes two minutes more.
const LIMIT: Duration = Duration::from_secs(15);
/// How long until what decides how peers are met is known, s.
const USABLE: f64 = 5.0;
/// How long idle mappings live where that is measured. A measurement looks after 10, 30, 60 and 120 s.
const LIFETIMES: Lifetimes = Lifetimes {
    udp: Duration::from_secs(45),
    tcp_opening: Duration::from_secs(20),
    tcp_established: Duration::from_secs(90),
    tcp_closing: Duration::from_secs(45),
};
/// The longest idle times after which the mappings are found alive, then.
const FOUND_ALIVE: [(&str, u16); 4] = [
    ("/udp/lifetime_s", 30),
    ("/lifetime_after_syn_s", 10),
    ("/tcp/lifetime_s", 60),
    ("/lifetime_after_fin_s", 30),
];

/// What a server that does no STUNT cannot tell.
const STUNT: [&str; 6] =
    ["/tcp/filtering", "/tcp/reaction", "/survives_reset", "/survives_icmp", "/synack_out", "/sequence_kept"];

/// A case: a name, and the world that netcheck is run in.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    nat: Nat,
    option: Variation,
}

/// What is special, beside the NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variation {
    None,
    /// UDP does not pass.
    NoUdp,
    /// A home behind a carrier, whose NAT this is.
    Carrier,
    /// Idle mappings are measured too.
    Lifetimes,
    /// Without root.
    Unprivileged,
    /// IPv6 beside it, behind a firewall.
    Ipv6,
}

/// Whose STUN server helps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Helper {
    /// The product's own, on three addresses.
    Ours,
    /// coturn's `turnserver` on two addresses, which does RFC 5780 and nothing of STUNT.
    Coturn,
    /// vovida's `stund` on two addresses, which does RFC 3489 and no TCP.
    Stund,
}

/// Variations of a NAT that is no kind of its own.
const VARIATIONS: [Case; 5] = [
    Case { name: "no-udp", nat: Nat::PortRestricted, option: Variation::NoUdp },
    Case { name: "nested", nat: Nat::PortRestricted, option: Variation::Carrier },
    Case { name: "lifetimes", nat: Nat::PortRestricted, option: Variation::Lifetimes },
    Case { name: "unprivileged", nat: Nat::PortRestricted, option: Variation::Unprivileged },
    Case { name: "ipv6", nat: Nat::PortRestricted, option: Variation::Ipv6 },
];

/// The names of all cases, kinds of NAT first.
pub fn names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).chain(VARIATIONS.iter().map(|case| case.name)).collect()
}

fn named(name: &str) -> Result<Case> {
    let kind =
        kinds::named(name).map(|kind| Case { name: kind.name, nat: kind.nat, option: Variation::None });
    let variation = || VARIATIONS.into_iter().find(|case| case.name == name);
    kind.or_else(variation)
        .with_context(|| format!("no NAT is called {name}: there are {}", names().join(", ")))
}

/// What was found in one case.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: &'static str,
    /// What differs: the field, what was expected, what was found, and why, if that is known.
    pub misses: Vec<Miss>,
    /// Fields that were compared.
    pub compared: usize,
    /// Packets that the machine sent.
    pub packets: u64,
    /// How long it took.
    pub seconds: f64,
    /// When what decides how peers are met was known, s.
    pub usable: f64,
}

/// Something that netcheck did not name right.
#[derive(Debug)]
pub struct Miss {
    field: &'static str,
    expected: Value,
    found: Value,
    why: Option<&'static str>,
}

/// Examines the cases with these names, several at a time, and prints what was found; an error for every miss without an
/// explanation.
pub fn run(bin: &Path, names: &[String], jobs: usize) -> Result<()> {
    let cases = names.iter().map(|name| named(name)).collect::<Result<Vec<Case>>>()?;
    let product = Product::new(bin)?;
    println!("What netcheck finds before each NAT, against what the NAT does.");
    let mut failures = 0;
    for (case, result) in cases.iter().zip(all(&product, Helper::Ours, &cases, jobs)) {
        match result {
            Ok(found) => {
                println!("{}", line(&found));
                failures += found.misses.iter().filter(|miss| miss.why.is_none()).count();
            }
            Err(problem) => {
                println!("{:<20} failed: {problem:#}", case.name);
                failures += 1;
            }
        }
    }
    println!("{} cases, {failures} unexplained", cases.len());
    ensure!(failures == 0, "{failures} findings differ from what the NATs do");
    Ok(())
}

/// Examines some cases with one server's help, as a test does.
pub fn examine(bin: &Path, helper: Helper, names: &[&str], jobs: usize) -> Result<Vec<Found>> {
    let cases = names.iter().map(|name| named(name)).collect::<Result<Vec<Case>>>()?;
    let product = Product::new(bin)?;
    all(&product, helper, &cases, jobs).into_iter().collect()
}

/// One line of the table, and one more for each miss.
pub fn line(found: &Found) -> String {
    let Found { name, misses, compared, packets, seconds, usable } = found;
    let mut text = format!(
        "{name:<20} {:>2} of {compared} right, {packets} packets, usable after {usable:.1} s, done after {seconds:.1} s",
        compared - misses.len()
    );
    for Miss { field, expected, found, why } in misses {
        text += &format!("\n    {field}: expected {expected}, found {found}");
        if let Some(why) = why {
            text += &format!("\n      {why}");
        }
    }
    text
}

/// Whether all is right or explained.
pub fn is_right(found: &Found) -> bool {
    found.misses.iter().all(|miss| miss.why.is_some())
}

fn all(product: &Product, helper: Helper, cases: &[Case], jobs: usize) -> Vec<Result<Found>> {
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, Result<Found>)> = thread::scope(|scope| {
        let worker = || {
            let mut done = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = cases.get(n) else { return done };
                let result = interrupt::check().and_then(|()| measure(product, helper, case));
                done.push((n, result));
            }
        };
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    results.sort_by_key(|(n, _)| *n);
    results.into_iter().map(|(_, result)| result).collect()
}

fn measure(product: &Product, helper: Helper, case: &Case) -> Result<Found> {
    let lab = Lab::new()?;
    let net = Internet::new(&lab)?;
    let server = net.server("server", &Link::Plain)?;
    let mut listen: Vec<SocketAddr> = server.addresses.iter().map(|ip| (*ip, PORT).into()).collect();
    let mut site = Site::new(case.nat);
    if case.option == Variation::Ipv6 {
        site = site.v6(V6::Firewall);
        let first = server.v6.context("the server has no IPv6 address")?;
        let second = Ipv6Addr::from_bits(first.to_bits() + 1);
        server.ns.ip(&format!("addr add {second}/64 dev eth0 nodad\n"))?;
        listen.extend([first, second].map(|ip| SocketAddr::from((ip, PORT))));
    }
    if case.option == Variation::NoUdp {
        site = site.no_udp();
    }
    if case.option == Variation::Lifetimes {
        site = site.lifetimes(LIFETIMES);
    }
    let home;
    let carrier;
    let alice = if case.option == Variation::Carrier {
        carrier = net.site("carrier", site.network([100, 64, 0, 0].into()), &Link::delayed(DELAY))?;
        carrier.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?.host("alice")?
    } else {
        home = net.site("home", site, &Link::delayed(DELAY))?;
        home.host("alice")?
    };
    let _serving = serve(product, helper, &server, &listen)?;
    let before = sent(&alice)?;
    // The first of each family.
    let v6 = listen.iter().find(|at| at.is_ipv6());
    let at: Vec<String> = listen.first().into_iter().chain(v6).map(SocketAddr::to_string).collect();
    let mut words = vec!["netcheck", "--json"];
    words.extend(at.iter().flat_map(|at| ["--server", at]));
    if case.option == Variation::Lifetimes {
        words.push("--lifetimes");
    }
    let as_root = case.option != Variation::Unprivileged;
    let said = product.run_long(&alice.ns, &words, LIMIT * 12, as_root)?;
    let report: Value = serde_json::from_str(&said).context("netcheck printed no JSON")?;
    let packets = sent(&alice)? - before;
    let seconds = report.get("seconds").and_then(Value::as_f64).context("no seconds")?;
    let limit = LIMIT.as_secs_f64() + if case.option == Variation::Lifetimes { 125.0 } else { 0.0 };
    let mut expectations = expected(case);
    for (field, value) in &mut expectations {
        let asks_more = match helper {
            Helper::Ours => false,
            Helper::Coturn => STUNT.contains(field),
            Helper::Stund => STUNT.contains(field) || field.starts_with("/tcp/"),
        };
        // What a server cannot tell is unknown, and not a guess.
        if asks_more {
            *value = Value::Null;
        }
    }
    let mut misses = Vec::new();
    for (field, expected) in &expectations {
        let found = report.pointer(field).cloned().unwrap_or_else(|| json!("(no such field)"));
        if found != *expected {
            let why = explanation(case, field, &found);
            misses.push(Miss { field, expected: expected.clone(), found, why });
        }
    }
    if seconds > limit {
        misses.push(Miss { field: "/seconds", expected: json!(limit), found: json!(seconds), why: None });
    }
    let usable = report.get("usable_seconds").and_then(Value::as_f64).unwrap_or(f64::INFINITY);
    if usable > USABLE {
        misses.push(Miss {
            field: "/usable_seconds",
            expected: json!(USABLE),
            found: json!(usable),
            why: None,
        });
    }
    let budget = match case.option {
        Variation::Lifetimes => BUDGET + LIFETIMES_BUDGET,
        Variation::Ipv6 => 2 * BUDGET,
        _ => BUDGET,
    };
    if packets > budget {
        misses.push(Miss { field: "packets", expected: json!(budget), found: json!(packets), why: None });
    }
    Ok(Found { name: case.name, misses, compared: expectations.len(), packets, seconds, usable })
}

/// Why a finding differs from what the NAT does, where that is how it has to be.
fn explanation(case: &Case, field: &str, found: &Value) -> Option<&'static str> {
    let tcp = case.nat.behaviours().map(|(_, tcp)| tcp)?;
    let half_open = ["/tcp/filtering", "/survives_reset", "/survives_icmp", "/synack_out"].contains(&field);
    if tcp.pooling == Pooling::Arbitrary && half_open && found.is_null() {
        return Some(
            "the half open connection has another outer address than the one that asks, and a server does nothing to others",
        );
    }
    if tcp.hairpin == Hairpin::Internal && field == "/udp/hairpin" {
        return Some(
            "a packet that comes back with this machine's own address as its source is dropped by its own kernel: only a second \
             machine inside could tell",
        );
    }
    None
}

/// What runs while a measurement is made.
enum Serving {
    Ours { _daemon: Daemon },
    Theirs { _process: Process },
}

fn serve(product: &Product, helper: Helper, server: &Server, listen: &[SocketAddr]) -> Result<Serving> {
    let two = [server.addresses[0], server.addresses[1]];
    match helper {
        Helper::Ours => {}
        Helper::Coturn => return Ok(Serving::Theirs { _process: turnserver(server, two)? }),
        Helper::Stund => return Ok(Serving::Theirs { _process: stund(server, two)? }),
    }
    let listen: Vec<String> = listen.iter().map(|at| format!("\"{at}\"")).collect();
    let config = format!("[stun]\nenabled = true\nlisten = [{}]\n", listen.join(", "));
    let words = ["serve", "--config", &write_config(server, &config)?];
    Ok(Serving::Ours { _daemon: product.daemon(&server.ns, &words)? })
}

fn sent(host: &Host) -> Result<u64> {
    Ok(host.ns.run(&["cat", "/sys/class/net/eth0/statistics/tx_packets"])?.trim().parse()?)
}

/// What `netcheck --json` should say: JSON pointers and values.
fn expected(case: &Case) -> Vec<(&'static str, Value)> {
    let translates = case.nat.translates();
    let open = case.nat == Nat::Open;
    let (udp, tcp) = case.nat.behaviours().unwrap_or((Behaviour::LINUX, Behaviour::LINUX));
    let mapping = |does: Behaviour, is_tcp: bool| match does.mapping {
        _ if !translates => "none",
        Mapping::Kept | Mapping::Independent(_) => "endpoint-independent",
        Mapping::Address(_) => "address-dependent",
        Mapping::AddressAndPort(_) => "address-and-port-dependent",
        Mapping::Session(_) if is_tcp => "session-dependent",
        Mapping::Session(_) => "address-and-port-dependent",
    };
    let filtering = |does: Behaviour, is_tcp: bool| match does.filtering {
        _ if open => "open",
        Filtering::Independent => "endpoint-independent",
        Filtering::Address => "address-dependent",
        Filtering::NeverSyn if is_tcp => "inbound-never",
        Filtering::AddressAndPort | Filtering::NeverSyn => "address-and-port-dependent",
    };
    let ports = |does: Behaviour| match does.mapping {
        _ if !translates => "preserved".to_owned(),
        Mapping::Kept => "preserved".to_owned(),
        Mapping::Independent(ports)
        | Mapping::Address(ports)
        | Mapping::AddressAndPort(ports)
        | Mapping::Session(ports) => match ports {
            Ports::Step(step) => format!("delta {step}"),
            Ports::Random => "random".to_owned(),
        },
    };
    let fixed =
        |does: Behaviour| matches!(does.mapping, Mapping::Kept | Mapping::Independent(_)) && translates;
    // What comes back with an inner source is answered straight, from an endpoint that TCP has never heard of.
    let hairpin = |does: Behaviour, is_tcp: bool| match does.hairpin {
        _ if !fixed(does) => Value::Null,
        Hairpin::No => json!(false),
        Hairpin::External => json!(true),
        Hairpin::Internal => json!(!is_tcp),
    };
    let reaction = match tcp.reaction {
        _ if open => Value::Null,
        _ if !translates => json!("drop"),
        Reaction::Drop => json!("drop"),
        Reaction::Reset | Reaction::LateReset => json!("reset"),
        Reaction::Unreachable | Reaction::Prohibited => json!("unreachable"),
    };
    let stateless = tcp.states == States::None;
    let synack = open || matches!(tcp.states, States::SynAckOut | States::None);
    let root = |value: Value| if case.option == Variation::Unprivileged { Value::Null } else { value };
    let carrier = case.option == Variation::Carrier;
    let no_udp = case.option == Variation::NoUdp;
    let mut all = vec![
        ("/udp/passes", json!(!no_udp)),
        ("/tcp/passes", json!(true)),
        ("/tcp/mapping", json!(mapping(tcp, true))),
        ("/tcp/filtering", json!(filtering(tcp, true))),
        ("/tcp/ports", json!(ports(tcp))),
        ("/tcp/reaction", reaction),
        ("/tcp/hairpin", hairpin(tcp, true)),
        ("/tcp/paired", json!(tcp.pooling == Pooling::Paired)),
        ("/survives_reset", json!(open || stateless || tcp.reset == OnReset::Ignored)),
        ("/survives_icmp", json!(open || stateless || tcp.icmp == OnIcmp::Ignored)),
        ("/synack_out", root(json!(synack))),
        ("/sequence_kept", root(json!(tcp.numbers == Numbers::Kept))),
        ("/hops", if translates { json!(if carrier { 2 } else { 1 }) } else { Value::Null }),
    ];
    if !no_udp {
        all.extend([
            ("/udp/mapping", json!(mapping(udp, false))),
            ("/udp/filtering", json!(filtering(udp, false))),
            ("/udp/ports", json!(ports(udp))),
            ("/udp/hairpin", hairpin(udp, false)),
            ("/udp/paired", json!(udp.pooling == Pooling::Paired)),
        ]);
    }
    if case.option == Variation::Lifetimes {
        all.extend(FOUND_ALIVE.map(|(field, seconds)| (field, json!(seconds))));
    }
    if case.option == Variation::Ipv6 {
        all.extend([
            ("/family", json!("ipv4")),
            ("/ipv6/udp/passes", json!(true)),
            ("/ipv6/udp/mapping", json!("none")),
            ("/ipv6/udp/filtering", json!("address-and-port-dependent")),
            ("/ipv6/tcp/passes", json!(true)),
            ("/ipv6/tcp/mapping", json!("none")),
            ("/ipv6/tcp/reaction", json!("drop")),
            // Packets are read and made by hand over IPv4 alone.
            ("/ipv6/survives_reset", Value::Null),
        ]);
    }
    all
}
