//! Members and `netcheck` measure the NATs of the lab; `make discovery` does so before every one of them.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Site;
use ntcp_lab::discovery;
use ntcp_lab::discovery::Helper;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::nat::Rules;
use ntcp_lab::nat::kinds;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;
use ntcp_lab::tools;
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_ntcp-overlay");
/// How long anything may take; generous, because tests share the machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn examine(helper: Helper, names: &[&str]) {
    if let Some(problem) = tools::missing() {
        return say(&format!("NOT RUN: discovery: {problem}"));
    }
    let found = discovery::examine(Path::new(BIN), helper, names, 3).expect("the lab works");
    let table: Vec<String> = found.iter().map(discovery::line).collect();
    say(&table.join("\n"));
    assert!(found.iter().all(discovery::is_right), "{}", table.join("\n"));
}

#[test]
fn netcheck_names_what_these_nats_do() {
    examine(
        Helper::Ours,
        &["linux-rst", "full-cone", "session-step2", "never-syn", "seq-rewritten", "no-udp", "ipv6"],
    );
}

#[test]
fn netcheck_measures_with_the_help_of_a_server_that_others_wrote() {
    if tools::find("turnserver").is_none() {
        return say("NOT RUN: netcheck against coturn: turnserver is not installed");
    }
    let nats = ["firewall", "full-cone", "address-restricted", "linux", "port-step1", "session-random"];
    examine(Helper::Coturn, &nats);
}

#[test]
fn netcheck_measures_udp_with_the_help_of_a_server_of_2003() {
    if tools::find("stund").is_none() {
        return say(
            "NOT RUN: netcheck against an RFC 3489 server: stund is not installed (Debian: stun-server)",
        );
    }
    examine(Helper::Stund, &["full-cone", "address-restricted", "session-step2"]);
}

#[test]
fn a_member_measures_its_nat_at_the_start_and_when_the_network_changes() {
    lab::test(|lab: &Lab| {
        let product = Product::new(BIN)?;
        let net = Internet::new(lab)?;
        let server = net.server("server", &Link::Plain)?;
        let listen: Vec<String> = server.addresses.iter().map(|ip| format!("\"{ip}:3478\"")).collect();
        let config = format!("[stun]\nenabled = true\nlisten = [{}]\n", listen.join(", "));
        let mesh = Mesh::found(&product, &server, &config)?;
        let stepping = kinds::named("session-step1").unwrap().nat;
        let mut home = net.site("home", Site::new(stepping), &Link::delayed(Duration::from_millis(20)))?;
        let host = home.host("alice")?;
        let alice = mesh.join(&host, &[])?;
        wait_for(&alice, "/nat/tcp/mapping", "session-dependent")?;
        wait_for(&alice, "/nat/tcp/ports", "delta 1")?;
        wait_for(&alice, "/nat/tcp/filtering", "address-and-port-dependent")?;

        home.change(Rules { nat: Nat::FullCone, ..home.rules() })?;
        host.ns.ip("addr add 192.168.1.77/24 dev eth0\n")?;
        wait_for(&alice, "/nat/tcp/filtering", "endpoint-independent")?;
        wait_for(&alice, "/nat/udp/filtering", "endpoint-independent")?;

        let said: Value = serde_json::from_str(&alice.run(&["netcheck", "--json"])?)?;
        ensure!(said.get("schema") == Some(&Value::from(1)), "{said:#}");
        ensure!(
            said.pointer("/tcp/filtering") == Some(&Value::from("endpoint-independent")),
            "it asks the servers that the broker named: {said:#}"
        );
        Ok(())
    });
}

fn wait_for(member: &Daemon, field: &str, wanted: &str) -> Result<()> {
    interrupt::wait_for(&format!("{field} to be {wanted}"), PATIENCE, || {
        Ok((member.status()?.pointer(field) == Some(&Value::from(wanted))).then_some(()))
    })
}
