//! Which of two direct carriers carries what, where datagrams are lost: the real binary in a real kernel, over a wire that
//! loses packets at random; see `tests/e2e.rs` on how such tests run.

use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Profile;
use ntcp_lab::Site;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::PeerPath;
use ntcp_lab::product::Product;

/// Long enough for anything to happen on two busy cores; short enough for a broken build.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn tcp_traffic_moves_to_a_stream_where_datagrams_are_lost_and_everything_else_stays() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let lossy = Profile { delay: Duration::from_millis(40), loss: 0.02, ..Profile::default() };
        let [home, work] = [Site::new(Nat::PortRestricted).lan(1), Site::new(Nat::PortRestricted).lan(2)];
        let routers = [net.site("home", home, &Link::Wire(lossy))?, net.site("work", work, &Link::Plain)?];
        let (a, b) = (routers[0].host("alice")?, routers[1].host("bob")?);
        let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
        let mesh = Mesh::found(&product, &server, "")?;
        let (alice, bob) = (mesh.join(&a, &[])?, mesh.join(&b, &[])?);
        let to = bob.address()?.to_string();
        alice.first_ping(&to, PATIENCE)?;
        let udp = |peer: &PeerPath| peer.path == "direct-udp";
        let path = alice.wait_path("bob", "direct UDP", PATIENCE, udp)?;
        ensure!(path.all.get("choice").is_some_and(|why| why == "UDP works"), "{:#}", path.all);

        let mut sink = b.ns.spawn(&["iperf3", "-s", "-B", &to, "--forceflush"])?;
        sink.wait_for_line("listening", PATIENCE)?;
        let _bulk = a.ns.spawn(&["iperf3", "-c", &to, "-t", "300"])?;
        let path = alice.wait_path("bob", "TCP beside UDP", PATIENCE, |peer| {
            peer.all.get("beside_endpoint").is_some_and(|at| at.is_string())
        })?;
        let said = path.all.get("choice").and_then(|why| why.as_str()).context("it says nothing")?;
        say(&format!("alice: {said}"));
        ensure!(said.contains("UDP lost") && said.contains("TCP traffic rides TCP"), "{said}");
        ensure!(path.path == "direct-udp", "a ping has no reason to move: {:#}", path.all);
        bob.wait_path("alice", "bob does the same", PATIENCE, |peer| {
            peer.all.get("beside_endpoint").is_some_and(|at| at.is_string())
        })?;
        Ok(())
    });
}
