//! A network with two brokers and two relays, built from the command line as an administrator would.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Site;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::product::Daemon;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;
use ntcp_lab::product::write_config;
use serde_json::Value;

/// How long anything may take; generous, because tests share the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a member is registered with a broker at this address.
fn registered(member: &Daemon, broker: Ipv4Addr) -> Result<bool> {
    let status = member.status()?;
    let brokers = status.get("brokers").and_then(Value::as_array).context("no brokers in the status")?;
    let at = |entry: &Value| {
        let address = entry.get("address").and_then(Value::as_str).unwrap_or_default();
        address.starts_with(&broker.to_string()) && entry.get("connected") == Some(&Value::Bool(true))
    };
    Ok(brokers.iter().any(at))
}

#[test]
fn when_the_first_broker_and_relay_die_members_meet_by_the_second_ones() {
    lab::test(|lab| {
        let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
        let net = Internet::new(lab)?;
        let [hub, hub2, ferry2] = ["server", "hub2", "ferry2"].map(|name| net.host(name, &Link::Plain));
        let (hub, hub2, ferry2) = (hub?, hub2?, ferry2?);
        let mut mesh = Mesh::found(&product, &hub, "")?;
        let _second = mesh.add_broker(&hub2)?;
        let _relay = mesh.add_relay(&ferry2, &[hub.v4, hub2.v4])?;
        let mut members = Vec::new();
        for (name, site) in [("alice", "home"), ("bob", "work")] {
            let host = net.site(site, Site::new(Nat::SymmetricRandom), &Link::Plain)?.host(name)?;
            let config = format!("[member]\nbrokers = [\"{}:6060\", \"{}:6060\"]\n", hub.v4, hub2.v4);
            members.push(mesh.join(&host, &["--config", &write_config(&host, &config)?])?);
        }
        let [alice, bob] = members.as_slice() else { unreachable!("two were made") };
        mesh.server.take().context("the server does not run")?.crash()?;
        for member in [alice, bob] {
            interrupt::wait_for("the second broker", PATIENCE, || {
                Ok(registered(member, hub2.v4)?.then_some(()))
            })
            .with_context(|| format!("{:#}", member.status().unwrap_or_default()))?;
        }
        alice.first_ping(&bob.address()?.to_string(), PATIENCE)?;
        let path = alice.peer("bob")?.context("alice has forgotten bob")?;
        ensure!(path.endpoint.starts_with(&ferry2.v4.to_string()), "{:#}", path.all);
        Ok(())
    });
}
