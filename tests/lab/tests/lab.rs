//! The lab tested with nothing but plain sockets, ping and iperf3: its NATs are what they claim, its wires delay.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Host;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Profile;
use ntcp_lab::Site;
use ntcp_lab::check;
use ntcp_lab::check::Transport;
use ntcp_lab::classify::Vantage;
use ntcp_lab::lab;
use ntcp_lab::lab::say;
use ntcp_lab::nat::Rules;
use ntcp_lab::nat::V6;
use ntcp_lab::nat::kinds;
use ntcp_lab::nat::kinds::KINDS;
use ntcp_lab::nat::kinds::Kind;
use ntcp_lab::openssh::COUNTER;
use ntcp_lab::openssh::SshServer;
use ntcp_lab::probe;
use ntcp_lab::wire::Detour;
use ntcp_lab::wire::Toward;
use ntcp_lab::wireguard;
use ntcp_lab::wireguard::Peer;
use ntcp_lab::wireguard::Tunnel;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn pings(from: &Host, to: IpAddr) -> Result<bool> {
    Ok(from.ns.try_run(&["ping", "-c1", "-W1", &to.to_string()], ms(5000))?.status.success())
}

#[test]
fn a_site_behind_a_nat_reaches_the_outside_and_hides_its_inside() {
    lab::test(|lab| {
        let start = Instant::now();
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let work = net.site("work", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let (alice, _bob) = (home.host("alice")?, work.host("bob")?);
        say(&format!("a scenario of two sites and a server stood after {:.0?}", start.elapsed()));
        ensure!(pings(&alice, server.v4.into())?);
        ensure!(!pings(&server, alice.v4.into())?, "a private address is reachable from the internet");
        Ok(())
    });
}

#[test]
fn every_nat_maps_filters_and_refuses_as_its_name_says() {
    let examine = |kind: Kind| {
        lab::test(|lab| {
            let net = Internet::new(lab)?;
            let server = net.host("server", &Link::Plain)?;
            // Without any delay an ICMP error overtakes the system call that provoked it, and is not reported.
            let home = net.site("home", Site::new(kind.nat), &Link::delayed(ms(5)))?;
            let alice = home.host("alice")?;
            let vantage = Vantage::new(&server)?;
            let outer = if kind.nat.translates() { home.wan() } else { alice.v4 };
            for (transport, seen) in
                [(Transport::Udp, vantage.udp(&alice)?), (Transport::Tcp, vantage.tcp(&alice)?)]
            {
                let (found, wanted) = (seen.character(), check::expected(kind.nat, transport));
                ensure!(
                    found == wanted,
                    "{} {transport:?}: {seen:?}\nis {found:?}\nnot {wanted:?}",
                    kind.name
                );
                // A pool's addresses are in the same network as the router's own.
                let near = |mapped: &SocketAddrV4| mapped.ip().octets().starts_with(&outer.octets()[..3]);
                ensure!(seen.mapped.iter().all(near), "{}: {seen:?}", kind.name);
            }
            Ok(())
        });
    };
    std::thread::scope(|scope| {
        for kinds in KINDS.chunks(5) {
            scope.spawn(|| kinds.iter().copied().for_each(examine));
        }
    });
}

#[test]
fn hairpin_obeys_the_filter_and_is_off_unless_asked_for() {
    for hairpin in [false, true] {
        lab::test(|lab| {
            let net = Internet::new(lab)?;
            let server = net.host("server", &Link::Plain)?;
            let site = Site::new(Nat::PortRestricted);
            let home = net.site("home", if hairpin { site.hairpin() } else { site }, &Link::Plain)?;
            let (alice, bob) = (home.host("alice")?, home.host("bob")?);
            let at = |host: &Host, port| probe::socket(&host.ns, (host.v4, port).into());
            let (a, b, s) = (at(&alice, 4000)?, at(&bob, 5000)?, at(&server, 3478)?);
            let (a_outer, b_outer) = (probe::mapped(&a, &s)?, probe::mapped(&b, &s)?);
            a.send_to(b"early", b_outer)?;
            ensure!(b.recv_from(&mut [0; 64]).is_err(), "bob's filter let a stranger in");
            b.send_to(b"punch", a_outer)?;
            match a.recv_from(&mut [0; 64]) {
                Ok((_, from)) => ensure!(hairpin && from == b_outer, "hairpin={hairpin}, from {from}"),
                Err(_) => ensure!(!hairpin, "no hairpin where one was asked for"),
            }
            Ok(())
        });
    }
}

#[test]
fn udp_can_be_blocked_altogether_or_to_one_address_and_comes_back() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (server, other) = (net.host("server", &Link::Plain)?, net.host("other", &Link::Plain)?);
        let mut home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let alice = home.host("alice")?;
        let a = probe::socket(&alice.ns, (alice.v4, 4000).into())?;
        let s = probe::socket(&server.ns, (server.v4, 3478).into())?;
        let o = probe::socket(&other.ns, (other.v4, 3478).into())?;
        probe::mapped(&a, &s)?;
        home.block_udp(&[server.v4.into()])?;
        ensure!(probe::mapped(&a, &s).is_err(), "an established flow passes the block");
        probe::mapped(&a, &o)?;
        home.unblock()?;
        probe::mapped(&a, &s)?;
        home.change(Rules { udp: false, ..home.rules() })?;
        ensure!(probe::mapped(&a, &o).is_err(), "UDP passes where it is blocked");
        ensure!(pings(&alice, server.v4.into())?, "everything else is blocked too");
        Ok(())
    });
}

#[test]
fn a_router_becomes_another_nat_while_sessions_go_on() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (server, other) = (net.host("server", &Link::Plain)?, net.host("other", &Link::Plain)?);
        let mut home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let alice = home.host("alice")?;
        let a = probe::socket(&alice.ns, (alice.v4, 4000).into())?;
        let s = probe::socket(&server.ns, (server.v4, 3478).into())?;
        let o = probe::socket(&other.ns, (other.v4, 3478).into())?;
        let before = probe::mapped(&a, &s)?;
        ensure!(before.port() == 4000, "{before}");
        let nat = kinds::named("session-step1").context("no such NAT")?.nat;
        home.change(Rules { nat, ..home.rules() })?;
        ensure!(probe::mapped(&a, &s)? == before, "an established session has moved");
        let after = probe::mapped(&a, &o)?;
        ensure!(after.port() != 4000, "a new session is still mapped the old way: {after}");
        Ok(())
    });
}

#[test]
fn ipv6_behind_a_firewall_gets_answers_but_no_strangers() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let home = net.site("home", Site::new(Nat::PortRestricted).v6(V6::Firewall), &Link::Plain)?;
        let open = net.site("open", Site::new(Nat::PortRestricted).v6(V6::Open), &Link::Plain)?;
        let (alice, bob) = (home.host("alice")?, open.host("bob")?);
        let v6 = |host: &Host| host.v6.map(IpAddr::V6).context("no IPv6");
        ensure!(pings(&alice, v6(&server)?)?, "no answer behind the firewall");
        ensure!(pings(&server, v6(&bob)?)?, "the open site is closed");
        ensure!(!pings(&server, v6(&alice)?)?, "the firewall lets strangers in");
        Ok(())
    });
}

#[test]
fn a_home_behind_a_carrier_is_translated_twice() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let carrier = Site::new(Nat::PortRestricted).network([100, 64, 0, 0].into());
        let carrier = net.site("carrier", carrier, &Link::Plain)?;
        let home = carrier.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let alice = home.host("alice")?;
        ensure!(home.wan().octets().starts_with(&[100, 64]), "{}", home.wan());
        let a = probe::socket(&alice.ns, (alice.v4, 4000).into())?;
        let s = probe::socket(&server.ns, (server.v4, 3478).into())?;
        ensure!(probe::mapped(&a, &s)?.ip() == IpAddr::V4(carrier.wan()));
        Ok(())
    });
}

#[test]
fn a_wire_delays_loses_limits_and_breaks_as_told_while_it_runs() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (a, b) = (net.host("a", &Link::delayed(ms(20)))?, net.host("b", &Link::Plain)?);
        let wire = a.wire.clone().context("no wire")?;
        let target = b.v4.to_string();
        let ping = |count: &str, gap: &str| -> Result<String> {
            let words = ["ping", "-q", "-c", count, "-i", gap, "-W", "1", &target];
            Ok(a.ns.try_run(&words, ms(30_000))?.stdout)
        };
        let rate = || probe::tcp_rate(&a.ns, &b.ns, b.v4.into(), 2);

        ping("2", "0.2")?; // ARP
        let text = ping("20", "0.02")?;
        say(&format!("20 ms each way, 40 expected: {}", text.lines().last().unwrap_or_default()));
        ensure!(text.contains(" 0% packet loss"), "{text}");

        let delayed = wire.profile(Toward::First);
        let before = wire.counts(Toward::First).lost;
        wire.set(Toward::First, Profile { loss: 0.3, delay: Duration::ZERO, ..delayed })?;
        ping("200", "0.003")?;
        let lost = wire.counts(Toward::First).lost - before;
        ensure!((25..=95).contains(&lost), "30 % of 200 should be lost, not {lost}");

        wire.set_both(Profile { rate: Some(20_000_000), ..Profile::default() })?;
        let limited = rate()?;
        say(&format!("one TCP stream over a line of 20 Mbit/s: {limited:.1} Mbit/s"));
        ensure!(limited < 21.0, "faster than the line: {limited}");

        wire.up(false);
        ensure!(ping("2", "0.1")?.contains("100% packet loss"), "a cut wire carries");
        wire.up(true);
        ensure!(ping("2", "0.1")?.contains(" 0% packet loss"), "a mended wire does not carry");

        wire.set_both(Profile { delay: ms(10), ..Profile::default() })?;
        say(&format!("one TCP stream over 20 ms there and back: {:.0} Mbit/s", rate()?));
        Ok(())
    });
}

#[test]
fn a_wire_lets_packets_fall_behind_and_takes_a_longer_way_to_one_address() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (a, b) = (net.host("a", &Link::delayed(ms(2)))?, net.server("b", &Link::Plain)?);
        let wire = a.wire.clone().context("no wire")?;
        let from = probe::socket(&a.ns, (a.v4, 4000).into())?;
        let [near, far, _] = b.addresses;
        let at_near = probe::socket(&b.ns, (near, 4000).into())?;
        let at_both = probe::socket(&b.ns, (Ipv4Addr::UNSPECIFIED, 4001).into())?;
        probe::mapped(&from, &at_near)?; // ARP

        let order = |count: u8| -> Result<Vec<u8>> {
            for n in 0..count {
                from.send_to(&[n], (near, 4000))?;
            }
            let mut number = [0];
            (0..count).map(|_| Ok(at_near.recv(&mut number).map(|_| number[0])?)).collect()
        };
        let sorted: Vec<u8> = (0..100).collect();
        ensure!(order(100)? == sorted, "a plain delay reorders");
        wire.set_both(Profile { reorder: 0.2, ..wire.profile(Toward::First) })?;
        let mixed = order(100)?;
        let overtaken = |n: usize| mixed[..n].iter().any(|before| *before > mixed[n]);
        let behind = (0..mixed.len()).filter(|n| overtaken(*n)).count();
        ensure!((5..=40).contains(&behind), "20 of 100 should fall behind: {mixed:?}");

        let detour = Some(Detour { address: far, extra: ms(200) });
        wire.set(Toward::First, Profile { delay: ms(2), detour, ..Profile::default() })?;
        from.send_to(b"first", (far, 4001))?;
        from.send_to(b"second", (near, 4001))?;
        let mut came = [0; 8];
        let length = at_both.recv(&mut came)?;
        ensure!(&came[..length] == b"second", "the longer way takes no longer");
        ensure!(at_both.recv(&mut came)? == 5, "the longer way leads nowhere");
        Ok(())
    });
}

#[test]
fn a_machine_has_its_own_hosts_file_name_and_state_directories() {
    lab::test(|lab| {
        let (a, b) = (lab.machine("a")?, lab.machine("b")?);
        a.run(&["sh", "-c", "echo 10.0.0.1 friend >> /etc/hosts; touch /var/lib/here /run/here"])?;
        ensure!(a.run(&["getent", "hosts", "friend"])?.starts_with("10.0.0.1"));
        a.run(&["ls", "/var/lib/here", "/run/here"])?;
        ensure!(a.hosts().contains("friend") && !b.hosts().contains("friend"));
        ensure!(!b.try_run(&["ls", "/var/lib/here"], ms(5000))?.status.success());
        ensure!(!Path::new("/var/lib/here").exists() && !Path::new("/run/here").exists());
        ensure!(b.run(&["cat", "/proc/sys/kernel/hostname"])?.trim() == "b");
        Ok(())
    });
}

#[test]
fn openssh_and_wireguard_go_run_between_two_machines() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (a, b) = (net.host("a", &Link::Plain)?, net.host("b", &Link::Plain)?);
        let (a_keys, b_keys) = (wireguard::keys(&a.ns)?, wireguard::keys(&b.ns)?);
        let endpoint = format!("{}:51820", b.v4);
        let peer = |public, endpoint, allowed| Peer { public, endpoint, allowed, preshared: None };
        let to_a = peer(&a_keys.public, None, "10.99.0.1/32");
        let _b = Tunnel::start(&b.ns, &b_keys, [10, 99, 0, 2].into(), &to_a)?;
        let to_b = peer(&b_keys.public, Some(&endpoint), "10.99.0.2/32");
        let tunnel = Tunnel::start(&a.ns, &a_keys, [10, 99, 0, 1].into(), &to_b)?;
        ensure!(pings(&a, [10, 99, 0, 2].into())? && tunnel.last_handshake()? > 0);
        let sshd = SshServer::start(&b.ns, [10, 99, 0, 2].into())?;
        ensure!(sshd.run(&a.ns, "10.99.0.2", "hostname")?.trim() == "b");
        let mut session = sshd.session(&a.ns, "10.99.0.2", COUNTER)?;
        session.advance(3, ms(10_000))?;
        Ok(())
    });
}

#[test]
fn a_server_answers_at_three_addresses_and_a_nat_sees_three_destinations() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.server("server", &Link::Plain)?;
        let nat = kinds::named("address-step1").context("no such NAT")?.nat;
        let home = net.site("home", Site::new(nat), &Link::Plain)?;
        let alice = home.host("alice")?;
        let a = probe::socket(&alice.ns, (alice.v4, 4000).into())?;
        let mut mapped = Vec::new();
        for address in server.addresses {
            mapped.push(probe::mapped(&a, &probe::socket(&server.ns, (address, 3478).into())?)?);
        }
        let ports: BTreeSet<u16> = mapped.iter().map(SocketAddr::port).collect();
        ensure!(ports.len() == 3, "three addresses are not three destinations: {mapped:?}");
        ensure!(mapped.iter().all(|at| at.ip() == IpAddr::V4(home.wan())), "{mapped:?}");
        Ok(())
    });
}
