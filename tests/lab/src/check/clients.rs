//! STUN clients that others wrote, and the server that they ask.

use std::net::Ipv4Addr;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::PATIENCE;
use super::Transport;
use super::expected;
use super::expected_temper;
use crate::Host;
use crate::classify::Depends;
use crate::classify::Fate;
use crate::classify::Vantage;
use crate::interrupt;
use crate::nat::Nat;
use crate::process::Process;
use crate::temper::Turned;
use crate::tools;

/// A STUN client that somebody else wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Client {
    /// From coturn, RFC 5780.
    Natdiscovery,
    /// From vovida, RFC 3489.
    Vovida,
    /// From PyPI, RFC 3489.
    Pystun,
}

impl Client {
    pub(super) const ALL: [Self; 3] = [Self::Natdiscovery, Self::Vovida, Self::Pystun];

    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Natdiscovery => "turnutils_natdiscovery",
            Self::Vovida => "stun",
            Self::Pystun => "pystun3",
        }
    }

    /// Its verdict on the NAT in front of a host, in its own words.
    pub(super) fn ask(self, alice: &Host, vantage: &Vantage) -> Result<String> {
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
    pub(super) fn would_say(self, nat: Nat) -> String {
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
                // It writes to its first socket's outer endpoint from another one on the same host, whose kernel refuses
                // its own address as a source.
                let turned = expected_temper(nat, Transport::Udp).turned == Turned::FromOuter;
                let hairpin = if turned && passes.1 { "will hairpin" } else { "no hairpin" };
                format!("{kind}, {ports}, {hairpin}")
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
pub(super) fn stun_server(server: &Host, vantage: &Vantage) -> Result<Process> {
    turnserver(server, vantage.addresses())
}

/// vovida's server, which knows RFC 3489 and nothing newer, and no TCP.
pub(crate) fn stund(server: &Host, addresses: [Ipv4Addr; 2]) -> Result<Process> {
    let program = tools::find("stund").context("stund is not installed (Debian: stun-server)")?;
    let program = program.to_str().context("a path is not UTF-8")?;
    let [first, second] = addresses.map(|address| address.to_string());
    let serving = server.ns.spawn(&[program, "-h", &first, "-a", &second])?;
    // It says nothing when it is ready.
    let listens = || Ok(server.ns.run(&["ss", "-Hlun", "sport = :3479"])?.contains(&second).then_some(()));
    interrupt::wait_for("stund to listen", PATIENCE, listens)?;
    Ok(serving)
}

/// The same as [`stun_server`] at any two addresses of a machine.
pub(crate) fn turnserver(server: &Host, addresses: [Ipv4Addr; 2]) -> Result<Process> {
    let [first, second] = addresses.map(|address| address.to_string());
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
