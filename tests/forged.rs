//! Direct TCP between NATs that never let a SYN in, by answers that nobody's kernel gave: STUNT-1 and NATBlaster. The real
//! binary in a real kernel; see `tests/e2e.rs` on how such tests run.

#![allow(clippy::disallowed_methods, reason = "a test of the whole measures with the real clock")]

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Site;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::nat::Behaviour;
use ntcp_lab::nat::Filtering;
use ntcp_lab::nat::Reaction;
use ntcp_lab::nat::States;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;
use ntcp_lab::product::stun_role;
use ntcp_lab::topology::Server;
use serde_json::Value;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);

/// One way, on each access line.
const DELAY: Duration = Duration::from_millis(10);

/// As Linux's, but a SYN never comes in.
const NEVER_SYN: Behaviour = Behaviour { filtering: Filtering::NeverSyn, ..Behaviour::LINUX };

/// A server in public whose broker may forge, and two members behind such NATs, which let no UDP out.
struct World<'lab> {
    _net: Internet<'lab>,
    server: Server,
    _mesh: Mesh,
    alice: Daemon,
    bob: Daemon,
}

impl<'lab> World<'lab> {
    fn new(lab: &'lab Lab, does: [Behaviour; 2], forge: bool) -> Result<Self> {
        let net = Internet::new(lab)?;
        let link = Link::delayed(DELAY);
        let server = net.server("server", &link)?;
        let [home, work] = does.map(|does| Site::new(Nat::both(does)).no_udp());
        let (home, work) = (net.site("home", home.lan(1), &link)?, net.site("work", work.lan(2), &link)?);
        let (a, b) = (home.host("alice")?, work.host("bob")?);
        let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
        let v4 = server.v4;
        let config = format!(
            "[broker]\nenabled = true\nforge = {forge}\nadvertise = [\"{v4}:6060\"]\n\
             [relay]\nenabled = true\nadvertise = [\"{v4}:6061\"]\n{}",
            stun_role(&server)
        );
        let mesh = Mesh::found_with(&product, &server, &config)?;
        let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
        Ok(Self { _net: net, server, _mesh: mesh, alice, bob })
    }

    /// Waits until both know of their NATs what `pointer` into their status names.
    fn wait_measured(&self, pointer: &str) -> Result<()> {
        for member in [&self.alice, &self.bob] {
            interrupt::wait_for(pointer, PATIENCE, || {
                Ok(member.status()?.pointer(pointer).is_some_and(|known| !known.is_null()).then_some(()))
            })?;
        }
        Ok(())
    }

    fn meet(&self) -> Result<()> {
        self.alice.first_ping(&self.bob.address()?.to_string(), PATIENCE)?;
        self.bob.first_ping(&self.alice.address()?.to_string(), PATIENCE)?;
        Ok(())
    }

    fn opened_by(&self, method: &str) -> Result<()> {
        for (from, to) in [(&self.alice, "bob"), (&self.bob, "alice")] {
            let path = from.wait_path(to, "direct TCP", PATIENCE, |peer| peer.path == "direct-tcp")?;
            ensure!(path.all.get("method").and_then(Value::as_str) == Some(method), "{:#}", path.all);
        }
        Ok(())
    }
}

#[test]
fn the_broker_introduces_two_kernels_behind_nats_that_let_no_connection_in() {
    lab::test(|lab| {
        let resets = Behaviour { reaction: Reaction::Reset, ..NEVER_SYN };
        let world = World::new(lab, [NEVER_SYN, resets], true)?;
        world.wait_measured("/nat/tcp/filtering")?;
        let start = Instant::now();
        world.meet()?;
        world.opened_by("stunt-1")?;
        say(&format!("direct by stunt-1 within {:.1} s of the first ping", start.elapsed().as_secs_f64()));
        world.meet()
    });
}

#[test]
fn where_foreign_sources_are_filtered_it_is_the_relay_and_says_why() {
    lab::test(|lab| {
        let world = World::new(lab, [NEVER_SYN; 2], true)?;
        world.server.filter_spoofed(true)?;
        world.wait_measured("/nat/tcp/filtering")?;
        world.meet()?;
        world.alice.wait_path("bob", "the relay, and why", PATIENCE, |peer| {
            let why = peer.all.get("why").and_then(Value::as_str).unwrap_or_default();
            peer.path == "relay" && why.contains("answers that the broker forged did not arrive")
        })?;
        world.meet()
    });
}

#[test]
fn each_member_answers_by_hand_where_its_nat_lets_answers_out_and_no_connection_in() {
    lab::test(|lab| {
        let does = Behaviour { states: States::SynAckOut, ..NEVER_SYN };
        let world = World::new(lab, [does; 2], false)?;
        world.wait_measured("/nat/tcp/filtering")?;
        world.meet()?;
        world.opened_by("natblaster")?;
        world.meet()
    });
}
