//! `make lab-check`: what each NAT should look like from outside, against what it looks like to programs of strangers.
//!
//! For UDP those are three STUN clients that others wrote, each with its own words for a NAT: coturn's
//! `turnutils_natdiscovery` (RFC 5780), vovida's `stun` and `pystun3` (RFC 3489). They ask coturn's `turnserver` at two
//! public addresses. Nobody offers such a client for TCP; there [`classify`](crate::classify) with its plain sockets is the
//! judge, as it is for UDP too.

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
use crate::classify::Depends;
use crate::classify::Fate;
use crate::classify::Vantage;
use crate::nat::Behaviour;
use crate::nat::Filtering;
use crate::nat::Lifetimes;
use crate::nat::Mapping;
use crate::nat::Nat;
use crate::nat::Ports;
use crate::nat::Reaction;
use crate::nat::States;
use crate::nat::kinds::KINDS;
use crate::nat::kinds::Kind;
use crate::process::Process;
use crate::tools;

/// One way, on the line of the site that is examined. Without any delay an ICMP error overtakes the system call that
/// provoked it, and is not reported.
const DELAY: Duration = Duration::from_millis(5);

/// How long a STUN client may take; vovida's tries for seconds before it believes in a filter.
const PATIENCE: Duration = Duration::from_secs(60);

/// The life of an idle UDP mapping where that is examined, s.
const LIFETIME: u64 = 4;

/// How many labs run at once.
const AT_ONCE: usize = 4;

/// What somebody said of a NAT, and whether that is what the NAT claims.
struct Testimony {
    who: &'static str,
    said: String,
    wanted: String,
}

/// Examines every kind of NAT and prints what was said of it; an error if anybody contradicts.
pub fn run() -> Result<()> {
    let clients = Client::ALL.map(|client| (client, tools::find(client.program()).is_some()));
    for (client, found) in clients {
        if !found {
            println!("NOT RUN: {} is not installed", client.program());
        }
    }
    let clients: Vec<Client> =
        clients.iter().filter(|(_, found)| *found).map(|(client, _)| *client).collect();
    println!("What each NAT of the lab claims, and what was said of it. `=` agrees, `!` contradicts.");
    let mut contradictions = 0;
    for kinds in KINDS.chunks(AT_ONCE) {
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
    contradictions += print(&hairpin_and_lifetime(&clients)?);
    println!("\n{} kinds of NAT, {contradictions} contradictions", KINDS.len());
    ensure!(contradictions == 0, "{contradictions} contradictions, marked with `!` above");
    Ok(())
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

/// A site with this NAT, a host in it, and the public host from which it is looked at.
fn scene(lab: &Lab, site: Site) -> Result<(Host, Vantage, Host)> {
    let net = Internet::new(lab)?;
    let server = net.host("server", &Link::Plain)?;
    let alice = net.site("home", site, &Link::delayed(DELAY))?.host("alice")?;
    let vantage = Vantage::new(&server)?;
    Ok((alice, vantage, server))
}

fn examine(kind: &Kind, clients: &[Client]) -> Result<Vec<Testimony>> {
    let lab = Lab::new()?;
    let (alice, vantage, server) = scene(&lab, Site::new(kind.nat))?;
    let sockets = |who, seen: Character, transport| Testimony {
        who,
        said: words(&seen),
        wanted: words(&expected(kind.nat, transport)),
    };
    let mut testimonies = vec![
        sockets("sockets, TCP", vantage.tcp(&alice)?.character(), Transport::Tcp),
        sockets("sockets, UDP", vantage.udp(&alice)?.character(), Transport::Udp),
    ];
    let _serving = stun_server(&server, &vantage)?;
    for client in clients {
        testimonies.push(Testimony {
            who: client.program(),
            said: client.ask(&alice, &vantage)?,
            wanted: client.would_say(kind.nat),
        });
    }
    Ok(testimonies)
}

/// A transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// What plain sockets should see of a NAT.
pub fn expected(nat: Nat, transport: Transport) -> Character {
    let tcp = transport == Transport::Tcp;
    let when_tcp = |fate| tcp.then_some(fate);
    let untranslated = |strangers, reversed, unmapped| Character {
        depends: Depends::Nothing,
        keeps_port: true,
        step: None,
        from_other_port: strangers,
        from_stranger: strangers,
        from_dialled: when_tcp(Fate::Passes),
        reversed: when_tcp(reversed),
        unmapped,
    };
    let does = match (nat, nat.behaviours()) {
        (_, Some((udp, tcp_does))) => {
            if tcp {
                tcp_does
            } else {
                udp
            }
        }
        (Nat::Open, _) => {
            return untranslated(
                Fate::Passes,
                Fate::Passes,
                if tcp { Fate::Reset } else { Fate::Unreachable },
            );
        }
        (_, None) => return untranslated(Fate::Silence, Fate::Silence, Fate::Silence),
    };
    let Behaviour { mapping, filtering, reaction, states, .. } = does;
    let refused = match reaction {
        Reaction::Drop | Reaction::LateReset => Fate::Silence,
        Reaction::Reset if tcp => Fate::Reset,
        Reaction::Reset | Reaction::Unreachable => Fate::Unreachable,
        Reaction::Prohibited => Fate::Prohibited,
    };
    let passes = |yes| if yes { Fate::Passes } else { refused };
    let (depends, ports) = match mapping {
        Mapping::Kept | Mapping::Independent(_) => (Depends::Nothing, None),
        Mapping::Address(ports) => (Depends::Address, Some(ports)),
        Mapping::AddressAndPort(ports) => (Depends::AddressAndPort, Some(ports)),
        Mapping::Session(ports) if tcp => (Depends::Session, Some(ports)),
        Mapping::Session(ports) => (Depends::AddressAndPort, Some(ports)),
    };
    Character {
        depends,
        keeps_port: mapping == Mapping::Kept,
        step: match ports {
            Some(Ports::Step(step)) => Some(step),
            Some(Ports::Random) | None => None,
        },
        from_other_port: passes(matches!(filtering, Filtering::Independent | Filtering::Address)),
        from_stranger: passes(filtering == Filtering::Independent),
        from_dialled: when_tcp(passes(filtering != Filtering::NeverSyn)),
        // The SYN gets in either way; a router that checks windows drops the answer.
        reversed: when_tcp(match (filtering, states) {
            (Filtering::NeverSyn, _) => refused,
            (_, States::Checked | States::SynAckOut) => Fate::Silence,
            (_, States::WindowsIgnored | States::None) => Fate::Passes,
        }),
        unmapped: refused,
    }
}

/// A STUN client that somebody else wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Client {
    /// From coturn, RFC 5780.
    Natdiscovery,
    /// From vovida, RFC 3489.
    Vovida,
    /// From PyPI, RFC 3489.
    Pystun,
}

impl Client {
    const ALL: [Self; 3] = [Self::Natdiscovery, Self::Vovida, Self::Pystun];

    fn program(self) -> &'static str {
        match self {
            Self::Natdiscovery => "turnutils_natdiscovery",
            Self::Vovida => "stun",
            Self::Pystun => "pystun3",
        }
    }

    /// Its verdict on the NAT in front of a host, in its own words.
    fn ask(self, alice: &Host, vantage: &Vantage) -> Result<String> {
        let program = tools::find(self.program()).context("the program has gone")?;
        let program = program.to_str().context("a path is not UTF-8")?;
        let [server, _] = vantage.addresses().map(|address| address.to_string());
        let inside = alice.v4.to_string();
        let line: &[&str] = match self {
            Self::Natdiscovery => &[program, "-m", "-f", "-L", &inside, &server],
            Self::Vovida => &[program, &server, "-i", &inside, "-p", "42000"],
            Self::Pystun => &[program, "-H", &server, "-i", &inside],
        };
        // The clients' exit codes carry the verdict, or nothing.
        let said = alice.ns.try_run(line, PATIENCE)?;
        let prefix = match self {
            Self::Natdiscovery => "NAT with ",
            Self::Vovida => "Primary: ",
            Self::Pystun => "NAT Type: ",
        };
        let mut lines: Vec<&str> =
            said.stdout.lines().filter_map(|line| line.trim().strip_prefix(prefix)).collect();
        lines.dedup();
        ensure!(!lines.is_empty(), "{program} has no verdict:\n{}{}", said.stdout, said.stderr);
        Ok(lines.join(" ").trim().to_owned())
    }

    /// What it should say of a NAT.
    fn would_say(self, nat: Nat) -> String {
        let udp = expected(nat, Transport::Udp);
        let passes = (udp.from_other_port == Fate::Passes, udp.from_stranger == Fate::Passes);
        match self {
            Self::Natdiscovery => {
                let mapping = match udp.depends {
                    Depends::Nothing => "Endpoint Independent",
                    Depends::Address => "Address Dependent",
                    Depends::AddressAndPort | Depends::Session => "Address and Port Dependent",
                };
                let filtering = match passes {
                    (_, true) => "Endpoint Independent",
                    (true, false) => "Address Dependent",
                    (false, false) => "Address and Port Dependent",
                };
                format!("{mapping} Mapping! {filtering} Filtering!")
            }
            Self::Vovida => {
                let kind = match (nat.translates(), udp.depends, passes) {
                    (false, _, (_, true)) => return "Open".to_owned(),
                    (false, ..) => return "Firewall".to_owned(),
                    (true, Depends::Nothing, (_, true)) => "Independent Mapping, Independent Filter",
                    (true, Depends::Nothing, (true, false)) => {
                        "Independent Mapping, Address Dependent Filter"
                    }
                    (true, Depends::Nothing, (false, false)) => "Independent Mapping, Port Dependent Filter",
                    (true, ..) => "Dependent Mapping",
                };
                let ports = if udp.keeps_port { "preserves ports" } else { "random port" };
                format!("{kind}, {ports}, no hairpin")
            }
            Self::Pystun => match (nat.translates(), udp.depends, passes) {
                (false, _, (_, true)) => "Open Internet",
                (false, ..) => "Symmetric UDP Firewall",
                (true, Depends::Nothing, (_, true)) => "Full Cone",
                (true, Depends::Nothing, (true, false)) => "Restric NAT",
                (true, Depends::Nothing, (false, false)) => "Restric Port NAT",
                (true, ..) => "Symmetric NAT",
            }
            .to_owned(),
        }
    }
}

/// coturn's server at the two addresses, as RFC 5780 wants it.
fn stun_server(server: &Host, vantage: &Vantage) -> Result<Process> {
    let [first, second] = vantage.addresses().map(|address| address.to_string());
    let mut serving = server.ns.spawn(&[
        "turnserver",
        "-n",
        "--no-auth",
        "--stun-only",
        "--no-tls",
        "--no-dtls",
        "--no-cli",
        "--log-file",
        "stdout",
        "--simple-log",
        "--pidfile",
        "/run/turnserver.pid",
        "-L",
        &first,
        "-L",
        &second,
    ])?;
    serving.wait_for_line("Total General servers", PATIENCE)?;
    Ok(serving)
}

/// Hairpin as vovida's client sees it, and how long an idle UDP mapping lets answers in as coturn's does.
fn hairpin_and_lifetime(clients: &[Client]) -> Result<Vec<Testimony>> {
    /// Before and after the end of the mapping, s.
    const WAITS: [(u64, bool); 2] = [(LIFETIME - 2, true), (LIFETIME + 3, false)];
    let lab = Lab::new()?;
    let lifetimes = Lifetimes { udp: Duration::from_secs(LIFETIME), ..Lifetimes::default() };
    let (alice, vantage, server) = scene(&lab, Site::new(Nat::FullCone).hairpin().lifetimes(lifetimes))?;
    let _serving = stun_server(&server, &vantage)?;
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
        for (wait, answered) in WAITS {
            let program = Client::Natdiscovery.program();
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

/// A character in one line.
fn words(character: &Character) -> String {
    let depends = match character.depends {
        Depends::Nothing => "one outer port",
        Depends::Address => "a port per address",
        Depends::AddressAndPort => "a port per address and port",
        Depends::Session => "a port per session",
    };
    let ports = match (character.keeps_port, character.step) {
        (true, _) => ", kept".to_owned(),
        (false, Some(step)) => format!(", the next is +{step}"),
        (false, None) => ", anywhere".to_owned(),
    };
    let fate = |fate| match fate {
        Fate::Passes => "passes",
        Fate::Silence => "silence",
        Fate::Reset => "RST",
        Fate::Unreachable => "ICMP",
        Fate::Prohibited => "ICMP prohibited",
    };
    let syns = character.from_dialled.zip(character.reversed);
    let syns = syns.map_or_else(String::new, |(crossing, reversed)| {
        format!("; crossing SYN: {}, later: {}", fate(crossing), fate(reversed))
    });
    format!(
        "{depends}{ports}; other port: {}; stranger: {}{syns}; unmapped: {}",
        fate(character.from_other_port),
        fate(character.from_stranger),
        fate(character.unmapped)
    )
}
