//! `make lab-check`: what each NAT should look like from outside, against what it looks like to programs of strangers.
//!
//! For UDP those are three STUN clients that others wrote, each with its own words for a NAT: coturn's
//! `turnutils_natdiscovery` (RFC 5780), vovida's `stun` and `pystun3` (RFC 3489). They ask coturn's `turnserver` at two
//! public addresses. Nobody offers such a client for TCP; there [`classify`](crate::classify) with its plain sockets is the
//! judge, as it is for UDP too.

mod clients;
mod expected;
pub mod interop;
mod words;

use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use crate::Host;
use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::Site;
use crate::classify::Character;
use crate::classify::Vantage;
use crate::nat::Lifetimes;
use crate::nat::Nat;
use crate::nat::kinds;
use crate::nat::kinds::KINDS;
use crate::nat::kinds::Kind;
use crate::temper::Provoker;
use crate::temper::Temper;
use crate::tools;

pub use expected::Transport;
pub use expected::expected;
pub use expected::expected_temper;

use clients::Client;
use clients::stun_server;
pub(crate) use clients::stund;
pub(crate) use clients::turnserver;
use interop::Asked;

/// One way, on the line of the site that is examined. Without any delay an ICMP error overtakes the system call that
/// provoked it, and is not reported.
const DELAY: Duration = Duration::from_millis(5);

/// How long a STUN client may take; vovida's tries for seconds before it believes in a filter.
const PATIENCE: Duration = Duration::from_secs(60);

/// The life of an idle mapping where that is examined, s.
const LIFETIME: u64 = 4;

/// Before and after its end, s.
const IDLE: [u64; 2] = [LIFETIME - 2, LIFETIME + 3];

/// How many labs run at once.
const AT_ONCE: usize = 7;

/// What somebody said of a NAT, and whether that is what the NAT claims.
struct Testimony {
    who: &'static str,
    said: String,
    wanted: String,
}

/// Examines the kinds of NAT with these names, or all of them, and prints what was said of each; an error if anybody
/// contradicts.
pub fn run(names: &[String]) -> Result<()> {
    let (kinds, clients) = (named(names)?, installed());
    println!("What each NAT of the lab claims, and what was said of it. `=` agrees, `!` contradicts.");
    let mut contradictions = 0;
    for kinds in kinds.chunks(AT_ONCE) {
        let reports = thread::scope(|scope| {
            let examined: Vec<_> = kinds.iter().map(|kind| scope.spawn(|| examine(kind, &clients))).collect();
            examined.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for (kind, report) in kinds.iter().zip(reports) {
            println!("\n{}: {}", kind.name, kind.boxes);
            contradictions += print(&report.map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
    }
    println!("\na full cone that keeps ports, with hairpin, and mappings that live {LIFETIME} s");
    contradictions += print(&hairpin_and_lifetime(&clients, Asked::Coturn)?);
    println!("\nTCP mappings that live {LIFETIME} s after a SYN, established, and closed");
    contradictions += print(&tcp_lifetimes()?);
    println!("\n{} kinds of NAT, {contradictions} contradictions", kinds.len());
    ensure!(contradictions == 0, "{contradictions} contradictions, marked with `!` above");
    Ok(())
}

/// The kinds of NAT with these names; without any, all of them.
fn named(names: &[String]) -> Result<Vec<Kind>> {
    let find = |name: &String| kinds::named(name).with_context(|| format!("no NAT is named {name}"));
    if names.is_empty() { Ok(KINDS.to_vec()) } else { names.iter().map(find).collect() }
}

/// The clients that are there; of the others it says so.
fn installed() -> Vec<Client> {
    let is_there = |client: &Client| {
        let found = tools::find(client.program()).is_some();
        if !found {
            println!("NOT RUN: {} is not installed", client.program());
        }
        found
    };
    Client::ALL.into_iter().filter(is_there).collect()
}

/// Prints testimonies and counts the contradictions.
fn print(testimonies: &[Testimony]) -> usize {
    for Testimony { who, said, wanted } in testimonies {
        if said == wanted {
            println!("  = {who:<22} {said}");
        } else {
            println!("  ! {who:<22} {said}\n    {:<22} {wanted}", "should say");
        }
    }
    testimonies.iter().filter(|testimony| testimony.said != testimony.wanted).count()
}

/// A site with this NAT, two hosts in it, and the public host from which it is looked at.
fn scene(lab: &Lab, site: Site) -> Result<([Host; 2], Vantage, Host)> {
    let net = Internet::new(lab)?;
    let server = net.host("server", &Link::Plain)?;
    let home = net.site("home", site, &Link::delayed(DELAY))?;
    let inside = [home.host("alice")?, home.host("bob")?];
    let vantage = Vantage::new(&server)?;
    Ok((inside, vantage, server))
}

fn examine(kind: &Kind, clients: &[Client]) -> Result<Vec<Testimony>> {
    let lab = Lab::new()?;
    let ([alice, bob], vantage, server) = scene(&lab, Site::new(kind.nat))?;
    let sockets = |who, seen: Character, transport| Testimony {
        who,
        said: words::character(&seen),
        wanted: words::character(&expected(kind.nat, transport)),
    };
    let packets = |who, seen: Temper, transport| Testimony {
        who,
        said: words::temper(&seen),
        wanted: words::temper(&expected_temper(kind.nat, transport)),
    };
    let [_, second] = vantage.addresses();
    let provoker = Provoker::new([&alice, &bob], &server, second)?;
    let mut testimonies = vec![
        sockets("sockets, TCP", vantage.tcp(&alice)?.character(), Transport::Tcp),
        sockets("sockets, UDP", vantage.udp(&alice)?.character(), Transport::Udp),
    ];
    let _serving = stun_server(&server, &vantage)?;
    // The rest asks nothing that depends on how many ports others take meanwhile.
    let rest = thread::scope(|scope| {
        let asked: Vec<_> =
            clients.iter().map(|client| scope.spawn(|| client.ask(&alice, &vantage))).collect();
        let single = vec![
            packets("single packets, TCP", provoker.tcp()?, Transport::Tcp),
            packets("single packets, UDP", provoker.udp()?, Transport::Udp),
        ];
        let asked = clients.iter().zip(asked).map(|(client, asked)| {
            let said = asked.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            Ok(Testimony { who: client.program(), said, wanted: client.would_say(kind.nat) })
        });
        single.into_iter().map(Ok).chain(asked).collect::<Result<Vec<_>>>()
    });
    testimonies.extend(rest?);
    Ok(testimonies)
}

/// Hairpin as vovida's client sees it, and how long an idle UDP mapping lets answers in as coturn's does.
fn hairpin_and_lifetime(clients: &[Client], asked: Asked<'_>) -> Result<Vec<Testimony>> {
    let lab = Lab::new()?;
    let lifetimes = Lifetimes { udp: Duration::from_secs(LIFETIME), ..Lifetimes::default() };
    let ([alice, _], vantage, server) = scene(&lab, Site::new(Nat::FullCone).hairpin().lifetimes(lifetimes))?;
    let _serving = asked.serve(&server, &vantage)?;
    let mut testimonies = Vec::new();
    if clients.contains(&Client::Vovida) {
        testimonies.push(Testimony {
            who: Client::Vovida.program(),
            said: Client::Vovida.ask(&alice, &vantage)?,
            wanted: "Independent Mapping, Independent Filter, preserves ports, will hairpin".to_owned(),
        });
    }
    if clients.contains(&Client::Natdiscovery) {
        let (inside, server) = (alice.v4.to_string(), server.v4.to_string());
        let program = Client::Natdiscovery.program();
        let said = alice.ns.try_run(&[program, "-H", "-L", &inside, &server], PATIENCE)?.stdout;
        let hairpin = |yes| if yes { "hairpin" } else { "no hairpin" }.to_owned();
        let said = hairpin(said.contains("Received a request (maybe a successful hairpinning)"));
        testimonies.push(Testimony { who: program, said, wanted: hairpin(true) });
        for wait in IDLE {
            let answered = wait < LIFETIME;
            let line = [program, "-t", "-T", &wait.to_string(), "-L", &inside, &server];
            let said = alice.ns.try_run(&line, PATIENCE)?.stdout;
            ensure!(said.contains("RFC 5780 response 1"), "{program} has no verdict:\n{said}");
            let words = |yes| format!("idle for {wait} s: {}", if yes { "answered" } else { "no answer" });
            testimonies.push(Testimony {
                who: program,
                said: words(said.contains("RFC 5780 response 2")),
                wanted: words(answered),
            });
        }
    }
    Ok(testimonies)
}

/// How long idle TCP mappings let packets in, where conntrack alone remembers them and where tables do.
fn tcp_lifetimes() -> Result<Vec<Testimony>> {
    let idle = IDLE.map(Duration::from_secs);
    let life = Duration::from_secs(LIFETIME);
    let lifetimes =
        Lifetimes { tcp_opening: life, tcp_established: life, tcp_closing: life, ..Lifetimes::default() };
    let look = |nat, stranger| -> Result<Vec<[bool; 3]>> {
        let lab = Lab::new()?;
        let ([alice, bob], vantage, server) = scene(&lab, Site::new(nat).lifetimes(lifetimes))?;
        let [_, second] = vantage.addresses();
        Provoker::new([&alice, &bob], &server, second)?.lives(&idle, stranger)
    };
    let restricted = look(Nat::PortRestricted, false)?;
    let cone = look(Nat::FullCone, true)?;
    let mut testimonies = Vec::new();
    for (who, lives) in [("peers", restricted), ("strangers", cone)] {
        for (idle, alive) in IDLE.iter().zip(lives) {
            let words = |alive: [bool; 3]| {
                let let_in = |alive| if alive { "let in" } else { "kept out" };
                let [opening, established, closed] = alive.map(let_in);
                format!("idle for {idle} s: after SYN {opening}, established {established}, closed {closed}")
            };
            testimonies.push(Testimony { who, said: words(alive), wanted: words([*idle < LIFETIME; 3]) });
        }
    }
    Ok(testimonies)
}
