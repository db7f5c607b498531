//! Members in networks that have little in common reach each other all the same.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Site;
use ntcp_lab::lab;
use ntcp_lab::nat::V6;
use ntcp_lab::product::Mesh;
use ntcp_lab::product::Product;
use ntcp_lab::product::stun_role;

/// How long anything may take; generous, because tests share the machine.
const PATIENCE: Duration = Duration::from_secs(40);

fn product() -> Result<Product> {
    Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))
}

#[test]
fn a_member_that_has_only_ipv6_and_one_that_has_only_ipv4_meet_by_the_relay() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let (v4, v6) = (server.v4, server.v6.context("no IPv6")?);
        let config = format!(
            "[broker]\nenabled = true\nadvertise = [\"{v4}:6060\", \"[{v6}]:6060\"]\n\
             [relay]\nenabled = true\nadvertise = [\"{v4}:6061\", \"[{v6}]:6061\"]\n"
        );
        let mesh = Mesh::found_with(&product()?, &server, &config)?;
        let site = |name, site| net.site(name, site, &Link::Plain)?.host(&format!("{name}-host"));
        let six = site("six", Site::new(Nat::PortRestricted).v6_only(V6::Firewall))?;
        let four = site("four", Site::new(Nat::PortRestricted))?;
        let (alice, bob) = (mesh.join(&six, &[])?, mesh.join(&four, &[])?);
        alice.wait_knows("four-host", PATIENCE)?;
        alice.first_ping(&bob.address()?.to_string(), PATIENCE)?;
        bob.first_ping(&alice.address()?.to_string(), PATIENCE)?;
        alice.wait_relay("four-host", PATIENCE)?;
        Ok(())
    });
}

#[test]
fn without_udp_and_behind_hopeless_nats_ipv6_firewalls_are_opened_by_crossing_syns() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let link = Link::delayed(Duration::from_millis(10));
        let server = net.server("server", &link)?;
        let mesh = Mesh::found(&product()?, &server, &stun_role(&server))?;
        let site = |name, lan| {
            let site = Site::new(Nat::SymmetricRandom).lan(lan).v6(V6::Firewall).no_udp();
            net.site(name, site, &link)?.host(&format!("{name}-host"))
        };
        let (home, work) = (site("home", 1)?, site("work", 2)?);
        let (alice, bob) = (mesh.join(&home, &[])?, mesh.join(&work, &[])?);
        alice.wait_knows("work-host", PATIENCE)?;
        for member in [&alice, &bob] {
            member.wait_surveyed(PATIENCE)?;
        }
        alice.first_ping(&bob.address()?.to_string(), PATIENCE)?;
        let path = alice.wait_path("work-host", "direct TCP", PATIENCE, |peer| peer.path == "direct-tcp")?;
        let v6 = work.v6.context("no IPv6")?;
        ensure!(path.endpoint.starts_with(&format!("[{v6}]:")), "not over IPv6: {:#}", path.all);
        ensure!(path.all.get("method").is_some_and(|method| method == "p2pnat"), "{:#}", path.all);
        Ok(())
    });
}

#[test]
fn six_members_at_three_sites_all_reach_each_other_and_neighbours_directly() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let mesh = Mesh::found(&product()?, &net.host("server", &Link::Plain)?, "")?;
        let mut members = Vec::new();
        for (name, nat) in
            [("north", Nat::PortRestricted), ("south", Nat::FullCone), ("west", Nat::SymmetricRandom)]
        {
            let router = net.site(name, Site::new(nat), &Link::Plain)?;
            for n in [1, 2] {
                members.push(mesh.join(&router.host(&format!("{name}{n}"))?, &[])?);
            }
        }
        for one in &members {
            for other in members.iter().filter(|other| other.ns().name() != one.ns().name()) {
                one.wait_knows(other.ns().name(), PATIENCE)?;
                one.first_ping(&other.address()?.to_string(), PATIENCE)
                    .with_context(|| format!("from {} to {}", one.ns().name(), other.ns().name()))?;
            }
        }
        for pair in members.chunks(2) {
            let [one, other] = pair else { continue };
            let path = one.wait_direct(other.ns().name(), PATIENCE)?;
            ensure!(path.endpoint.starts_with("192.168."), "not by the inner address: {:#}", path.all);
        }
        Ok(())
    });
}
