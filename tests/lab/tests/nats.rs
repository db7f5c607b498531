//! The lab's NATs provoked: every habit, habits that compose by chance, habits that change while a router runs.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Profile;
use ntcp_lab::Site;
use ntcp_lab::check;
use ntcp_lab::check::Transport;
use ntcp_lab::classify::Vantage;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::nat::Behaviour;
use ntcp_lab::nat::Filtering;
use ntcp_lab::nat::Hairpin;
use ntcp_lab::nat::Mapping;
use ntcp_lab::nat::Numbers;
use ntcp_lab::nat::OnIcmp;
use ntcp_lab::nat::OnReset;
use ntcp_lab::nat::Pooling;
use ntcp_lab::nat::Ports;
use ntcp_lab::nat::Reaction;
use ntcp_lab::nat::Rules;
use ntcp_lab::nat::States;
use ntcp_lab::nat::kinds;
use ntcp_lab::nat::kinds::KINDS;
use ntcp_lab::nat::kinds::Kind;
use ntcp_lab::probe;
use ntcp_lab::temper::Provoker;
use ntcp_lab::wire::Toward;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_running_router_takes_on_every_habit_and_forgets_all_when_it_is_rebooted() {
    let usual = |transport| check::expected_temper(Nat::PortRestricted, transport);
    let odd: Vec<Kind> = KINDS
        .into_iter()
        .filter(|kind| {
            let temper = |transport| check::expected_temper(kind.nat, transport);
            kind.nat.translates() && [Transport::Udp, Transport::Tcp].iter().any(|t| temper(*t) != usual(*t))
        })
        .collect();
    assert!(odd.len() > 10, "{odd:?}");
    let examine = |kinds: &[Kind]| {
        lab::test(|lab| {
            let net = Internet::new(lab)?;
            let server = net.host("server", &Link::Plain)?;
            let mut home = net.site("home", Site::new(Nat::PortRestricted), &Link::delayed(ms(5)))?;
            let (alice, bob) = (home.host("alice")?, home.host("bob")?);
            let second = server.more_address(9)?;
            let provoker = Provoker::new([&alice, &bob], &server, second)?;
            for kind in kinds {
                home.change(Rules { nat: kind.nat, ..home.rules() })?;
                // Otherwise the ports would still be mapped in the last kind's way.
                home.reboot()?;
                for (transport, seen) in
                    [(Transport::Udp, provoker.udp()?), (Transport::Tcp, provoker.tcp()?)]
                {
                    let wanted = check::expected_temper(kind.nat, transport);
                    ensure!(seen == wanted, "{} {transport:?}:\nis {seen:?}\nnot {wanted:?}", kind.name);
                }
            }
            Ok(())
        });
    };
    std::thread::scope(|scope| {
        for kinds in odd.chunks(odd.len().div_ceil(5)) {
            scope.spawn(move || examine(kinds));
        }
    });
}

#[test]
fn a_reboot_loses_mappings_and_moves_stepping_ports() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (server, other) = (net.host("server", &Link::Plain)?, net.host("other", &Link::Plain)?);
        let nat = kinds::named("session-step1").context("no such NAT")?.nat;
        let mut home = net.site("home", Site::new(nat), &Link::Plain)?;
        let alice = home.host("alice")?;
        let a = probe::socket(&alice.ns, (alice.v4, 4000).into())?;
        let s = probe::socket(&server.ns, (server.v4, 3478).into())?;
        let o = probe::socket(&other.ns, (other.v4, 3478).into())?;
        let before = [probe::mapped(&a, &s)?, probe::mapped(&a, &o)?];
        ensure!(before[1].port() == before[0].port() + 1, "{before:?}");
        ensure!(probe::passes(&s, &a, before[0])?, "an established session is closed");
        home.reboot()?;
        ensure!(!probe::passes(&s, &a, before[0])?, "a mapping has survived");
        let after = [probe::mapped(&a, &s)?, probe::mapped(&a, &o)?];
        ensure!(after[1].port() == after[0].port() + 1, "{after:?}");
        ensure!(after[0].port().abs_diff(before[0].port()) > 8, "{before:?} and then {after:?}");
        Ok(())
    });
}

#[test]
fn whole_streams_pass_nats_that_rewrite_segments_themselves_also_with_loss() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        for name in ["linux", "stateless", "synack-out", "rst-ignored", "seq-rewritten"] {
            let nat = kinds::named(name).context("no such NAT")?.nat;
            let home = net.site(name, Site::new(nat), &Link::delayed(ms(2)))?;
            let alice = home.host(&format!("alice-{name}"))?;
            let whole = probe::tcp_rate(&alice.ns, &server.ns, server.v4.into(), 1)?;
            let wire = home.wire().context("no wire")?;
            wire.set_both(Profile { loss: 0.01, ..wire.profile(Toward::First) })?;
            let lossy = probe::tcp_rate(&alice.ns, &server.ns, server.v4.into(), 2)?;
            say(&format!("one TCP stream out of {name}: {whole:.0} Mbit/s, {lossy:.0} with 1 % loss"));
            ensure!(whole > 10.0 && lossy > 1.0, "{name}: {whole}, {lossy}");
        }
        Ok(())
    });
}

/// More of them: `NTCP_LAB_SEED=1000 cargo test -p ntcp-lab --test nats compose`.
#[test]
fn habits_compose_also_as_chance_will_have_it() {
    let first = std::env::var("NTCP_LAB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    std::thread::scope(|scope| {
        for seed in first..first + 6 {
            scope.spawn(move || {
                let mut chance = Chance::new(seed);
                let nat = Nat::Composed { udp: chance.behaviour(), tcp: chance.behaviour() };
                lab::test(|lab| examine(lab, nat).with_context(|| format!("seed {seed}: {nat:?}")));
            });
        }
    });
}

fn examine(lab: &Lab, nat: Nat) -> Result<()> {
    let net = Internet::new(lab)?;
    let server = net.host("server", &Link::Plain)?;
    let home = net.site("home", Site::new(nat), &Link::delayed(ms(5)))?;
    let (alice, bob) = (home.host("alice")?, home.host("bob")?);
    let vantage = Vantage::new(&server)?;
    for (transport, seen) in [(Transport::Tcp, vantage.tcp(&alice)?), (Transport::Udp, vantage.udp(&alice)?)]
    {
        let (found, wanted) = (seen.character(), check::expected(nat, transport));
        ensure!(found == wanted, "{transport:?}: {seen:?}\nis {found:?}\nnot {wanted:?}");
    }
    let [_, second] = vantage.addresses();
    let provoker = Provoker::new([&alice, &bob], &server, second)?;
    for (transport, found) in [(Transport::Tcp, provoker.tcp()?), (Transport::Udp, provoker.udp()?)] {
        let wanted = check::expected_temper(nat, transport);
        ensure!(found == wanted, "{transport:?}:\nis {found:?}\nnot {wanted:?}");
    }
    Ok(())
}

/// A generator of behaviours (xorshift64*).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn one_of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        choices[(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % N]
    }

    fn behaviour(&mut self) -> Behaviour {
        let ports = self.one_of([Ports::Step(1), Ports::Step(2), Ports::Random]);
        Behaviour {
            mapping: self.one_of([
                Mapping::Kept,
                Mapping::Independent(ports),
                Mapping::Address(ports),
                Mapping::AddressAndPort(ports),
                Mapping::Session(ports),
            ]),
            pooling: self.one_of([Pooling::Paired, Pooling::Arbitrary]),
            filtering: self.one_of([
                Filtering::Independent,
                Filtering::Address,
                Filtering::AddressAndPort,
                Filtering::NeverSyn,
            ]),
            reaction: self.one_of([
                Reaction::Drop,
                Reaction::Reset,
                Reaction::LateReset,
                Reaction::Unreachable,
                Reaction::Prohibited,
            ]),
            hairpin: self.one_of([Hairpin::No, Hairpin::External, Hairpin::Internal]),
            icmp: self.one_of([OnIcmp::Ignored, OnIcmp::Mapping]),
            reset: self.one_of([OnReset::Session, OnReset::Mapping, OnReset::Ignored]),
            states: self.one_of([States::Checked, States::WindowsIgnored, States::SynAckOut, States::None]),
            numbers: self.one_of([Numbers::Kept, Numbers::Shifted]),
        }
    }
}
