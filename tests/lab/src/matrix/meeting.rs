//! One cell of the matrix: a lab, a network, two members behind their NATs, and what happens when they meet.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;

use super::DELAY;
use super::Outcome;
use crate::Internet;
use crate::Lab;
use crate::Link;
use crate::Profile;
use crate::Site;
use crate::interrupt;
use crate::nat::kinds::Kind;
use crate::ns::Namespace;
use crate::product::Daemon;
use crate::product::Mesh;
use crate::product::Product;
use crate::product::stun_role;
use crate::wire::Detour;
use crate::wire::Toward;
use crate::wire::Wire;

/// How long a pair has to find a direct path, counted from the first ping.
const PATIENCE: Duration = Duration::from_secs(8);

/// How often the path is asked for.
const LOOK: Duration = Duration::from_millis(100);

/// How long everything before the first ping may take, on a machine that runs many labs at once.
const START: Duration = Duration::from_secs(60);

/// How long members may look into their NATs before they meet: what they are to do to each other depends on it.
const SURVEY: Duration = Duration::from_secs(15);

/// One meeting to be arranged.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    /// The NAT before alice, who will ping.
    pub a: Kind,
    /// The NAT before bob.
    pub b: Kind,
    /// Whether UDP passes at the two sites.
    pub udp: bool,
    /// How much later bob hears from the broker than alice does. The product cannot know of it: it comes up just before
    /// the two meet, and in one direction only.
    pub skew: Duration,
}

/// A meeting before its first ping.
pub(super) struct Stage {
    /// Alice and bob.
    pub(super) members: [Daemon; 2],
    /// Their routers.
    counters: [Counter; 2],
    to_bob: Option<Wire>,
    broker: Ipv4Addr,
    /// The network's server, which runs as long as this lives.
    _mesh: Mesh,
}

impl Meeting {
    /// What it is called in reports.
    pub fn title(&self) -> String {
        format!("{} x {}{}", self.a.name, self.b.name, if self.udp { "" } else { ", no UDP" })
    }

    /// The internet, the network and its two members, joined and known to each other.
    pub(super) fn stage(&self, product: &Product, lab: &Lab) -> Result<Stage> {
        let net = Internet::new(lab)?;
        let link = Link::delayed(DELAY);
        let server = net.server("server", &link)?;
        let site = |name, kind: Kind, lan| {
            let site = Site::new(kind.nat).lan(lan);
            net.site(name, if self.udp { site } else { site.no_udp() }, &link)
        };
        let (home, work) = (site("home", self.a, 1)?, site("work", self.b, 2)?);
        let (a, b) = (home.host("alice")?, work.host("bob")?);
        let mesh = Mesh::found(product, &server, &stun_role(&server))?;
        let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
        alice.wait_knows("bob", START)?;
        if self.udp {
            alice.wait_mapped(START)?;
            bob.wait_mapped(START)?;
        }
        for member in [&alice, &bob] {
            member.wait_surveyed(SURVEY)?;
        }
        let counters =
            [Counter::new(home.ns(), &server.addresses)?, Counter::new(work.ns(), &server.addresses)?];
        let to_bob = work.wire().cloned();
        Ok(Stage { members: [alice, bob], counters, to_bob, broker: server.v4, _mesh: mesh })
    }

    /// Lets the two meet in a lab of their own.
    pub fn hold(&self, product: &Product) -> Result<Outcome> {
        let lab = Lab::new()?;
        let stage = self.stage(product, &lab)?;
        self.delay_bob(&stage)?;
        let Stage { members: [alice, bob], counters, .. } = &stage;
        let target = bob.address()?.to_string();
        let before = sent(counters)?;

        let start = Instant::now();
        thread::scope(|scope| {
            let ping = scope.spawn(|| alice.first_ping(&target, PATIENCE));
            let mut direct = None;
            while direct.is_none() && start.elapsed() < PATIENCE {
                let found = alice.peer("bob")?.is_some_and(|peer| peer.direct());
                direct = found.then(|| start.elapsed());
                interrupt::pause(LOOK)?;
            }
            let Ok(first_reply) = ping.join() else { bail!("the ping's thread panicked") };
            let last = alice.peer("bob")?.context("alice has forgotten bob")?;
            let told = |key: &str| last.all.get(key).and_then(Value::as_str).map(str::to_owned);
            // It may have become direct between the last look and this one.
            let direct = direct.or_else(|| last.direct().then(|| start.elapsed()));
            let packets = sent(counters)?;
            Ok(Outcome {
                method: told("method"),
                round: last.all.get("round").and_then(Value::as_u64),
                why: told("why"),
                carried: last.path,
                first_reply: first_reply.ok(),
                direct,
                to_peer: packets.0.saturating_sub(before.0),
                to_server: packets.1.saturating_sub(before.1),
            })
        })
    }

    /// From now on bob hears from the broker later.
    pub(super) fn delay_bob(&self, stage: &Stage) -> Result<()> {
        let Some(wire) = stage.to_bob.as_ref().filter(|_| !self.skew.is_zero()) else { return Ok(()) };
        let detour = Some(Detour { address: stage.broker, extra: self.skew });
        wire.set(Toward::Second, Profile { detour, ..wire.profile(Toward::Second) })
    }
}

/// Counts what a router sends to the outside, after it has translated it.
struct Counter {
    ns: Namespace,
}

impl Counter {
    fn new(router: &Namespace, server: &[Ipv4Addr]) -> Result<Self> {
        let server: Vec<String> = server.iter().map(Ipv4Addr::to_string).collect();
        router.nft(&format!(
            "table ip ntl_count {{\n  \
               counter to_server {{ }}\n  \
               counter to_peer {{ }}\n  \
               chain leaving {{\n    \
                 type filter hook postrouting priority 300;\n    \
                 oifname != \"wan\" accept\n    \
                 ip daddr {{ {} }} counter name to_server accept\n    \
                 counter name to_peer\n  \
               }}\n\
             }}\n",
            server.join(", ")
        ))?;
        Ok(Self { ns: router.clone() })
    }

    fn read(&self) -> Result<(u64, u64)> {
        let listed: Value = serde_json::from_str(&self.ns.run(&[
            "nft",
            "-j",
            "list",
            "counters",
            "table",
            "ip",
            "ntl_count",
        ])?)?;
        let all = listed.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default();
        let packets = |name: &str| {
            let named = all.iter().filter_map(|entry| entry.get("counter"));
            let mut named = named.filter(|counter| counter.get("name").and_then(Value::as_str) == Some(name));
            named.next()?.get("packets")?.as_u64()
        };
        packets("to_peer").zip(packets("to_server")).context("nft lists no counters")
    }
}

/// What both routers have sent so far: to each other, and to the server.
fn sent(counters: &[Counter; 2]) -> Result<(u64, u64)> {
    let (mut to_peer, mut to_server) = (0, 0);
    for counter in counters {
        let read = counter.read()?;
        to_peer += read.0;
        to_server += read.1;
    }
    Ok((to_peer, to_server))
}
