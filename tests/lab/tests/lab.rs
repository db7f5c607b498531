//! The lab tested with nothing but plain sockets, ping and iperf3: its NATs are what they claim, its wires delay.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Profile;
use ntcp_lab::Site;
use ntcp_lab::nat::V6;
use ntcp_lab::probe;
use ntcp_lab::tools;
use ntcp_lab::wire::Toward;

/// Visible although the test harness captures what tests print.
fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// A lab, or a visible word on why there is none.
fn lab() -> Option<Lab> {
    if let Some(problem) = tools::missing() {
        say(&format!("NOT RUN: a lab test: {problem}"));
        return None;
    }
    Some(Lab::new().unwrap())
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_site_with_nat_stands_in_well_under_a_second_and_reaches_the_outside() {
    let Some(lab) = lab() else { return };
    let start = Instant::now();
    let net = Internet::new(&lab).unwrap();
    let server = net.host("server", &Link::Plain).unwrap();
    let home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain).unwrap();
    let work = net.site("work", Site::new(Nat::PortRestricted), &Link::Plain).unwrap();
    let alice = home.host("alice").unwrap();
    let _bob = work.host("bob").unwrap();
    say(&format!("scenario of two sites and a server: {:?}", start.elapsed()));
    alice.ns.run(&["ping", "-c1", "-W2", &server.v4.to_string()]).unwrap();
    let outcome = server.ns.try_run(&["ping", "-c1", "-W1", &alice.v4.to_string()], ms(5000)).unwrap();
    assert!(!outcome.status.success(), "a private address is reachable from the internet");
}

#[test]
fn every_nat_maps_and_filters_as_its_name_says() {
    for (nat, independent, other_port, stranger) in [
        (Nat::Open, true, true, true),
        (Nat::StatefulFirewall, true, false, false),
        (Nat::FullCone, true, true, true),
        (Nat::PortRestricted, true, false, false),
        (Nat::SymmetricRandom, false, false, false),
    ] {
        let Some(lab) = lab() else { return };
        let net = Internet::new(&lab).unwrap();
        let server = net.host("server", &Link::Plain).unwrap();
        let home = net.site("home", Site::new(nat), &Link::Plain).unwrap();
        let alice = home.host("alice").unwrap();
        let seen = probe::nat(&alice, &server).unwrap();
        let [mapped, ..] = seen.mapped;
        let outer = if nat.translates() { home.wan() } else { alice.v4 };
        assert_eq!(mapped.ip(), IpAddr::V4(outer), "{nat:?}");
        let found = (seen.endpoint_independent(), seen.other_port_may_answer, seen.stranger_may_answer);
        assert_eq!(found, (independent, other_port, stranger), "{nat:?}: {seen:?}");
    }
}

#[test]
fn hairpin_obeys_the_filter_and_is_off_unless_asked_for() {
    for hairpin in [false, true] {
        let Some(lab) = lab() else { return };
        let net = Internet::new(&lab).unwrap();
        let server = net.host("server", &Link::Plain).unwrap();
        let site = Site::new(Nat::PortRestricted);
        let home = net.site("home", if hairpin { site.hairpin() } else { site }, &Link::Plain).unwrap();
        let (alice, bob) = (home.host("alice").unwrap(), home.host("bob").unwrap());
        let at = |host: &ntcp_lab::Host, port| probe::socket(&host.ns, (host.v4, port).into()).unwrap();
        let (a, b, s) = (at(&alice, 4000), at(&bob, 5000), at(&server, 3478));
        let (a_outer, b_outer) = (probe::mapped(&a, &s).unwrap(), probe::mapped(&b, &s).unwrap());
        a.send_to(b"early", b_outer).unwrap();
        assert!(b.recv_from(&mut [0; 64]).is_err(), "bob's filter let a stranger in");
        b.send_to(b"punch", a_outer).unwrap();
        let got = a.recv_from(&mut [0; 64]);
        match hairpin {
            true => assert_eq!(got.unwrap().1, b_outer),
            false => assert!(got.is_err(), "there is a hairpin where none should be"),
        }
    }
}

#[test]
fn udp_can_be_blocked_altogether_or_to_one_address_and_comes_back() {
    let Some(lab) = lab() else { return };
    let net = Internet::new(&lab).unwrap();
    let (server, other) =
        (net.host("server", &Link::Plain).unwrap(), net.host("other", &Link::Plain).unwrap());
    let mut home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain).unwrap();
    let alice = home.host("alice").unwrap();
    let a = probe::socket(&alice.ns, (alice.v4, 4000).into()).unwrap();
    let s = probe::socket(&server.ns, (server.v4, 3478).into()).unwrap();
    let o = probe::socket(&other.ns, (other.v4, 3478).into()).unwrap();
    probe::mapped(&a, &s).unwrap();
    home.block_udp(&[server.v4.into()]).unwrap();
    assert!(probe::mapped(&a, &s).is_err(), "an established flow passes the block");
    probe::mapped(&a, &o).unwrap();
    home.unblock().unwrap();
    probe::mapped(&a, &s).unwrap();
    let open = home.rules();
    home.change(ntcp_lab::nat::Rules { udp: false, ..open }).unwrap();
    assert!(probe::mapped(&a, &o).is_err());
    alice.ns.run(&["ping", "-c1", "-W2", &server.v4.to_string()]).unwrap();
}

#[test]
fn ipv6_behind_a_firewall_gets_answers_but_no_strangers() {
    let Some(lab) = lab() else { return };
    let net = Internet::new(&lab).unwrap();
    let server = net.host("server", &Link::Plain).unwrap();
    let home = net.site("home", Site::new(Nat::PortRestricted).v6(V6::Firewall), &Link::Plain).unwrap();
    let open = net.site("open", Site::new(Nat::PortRestricted).v6(V6::Open), &Link::Plain).unwrap();
    let (alice, bob) = (home.host("alice").unwrap(), open.host("bob").unwrap());
    let (server6, alice6, bob6) =
        [server.v6, alice.v6, bob.v6].map(|address| address.unwrap().to_string()).into();
    alice.ns.run(&["ping", "-c1", "-W2", &server6]).unwrap();
    server.ns.run(&["ping", "-c1", "-W2", &bob6]).unwrap();
    assert!(!server.ns.try_run(&["ping", "-c1", "-W1", &alice6], ms(5000)).unwrap().status.success());
}

#[test]
fn a_home_behind_a_carrier_is_translated_twice() {
    let Some(lab) = lab() else { return };
    let net = Internet::new(&lab).unwrap();
    let server = net.host("server", &Link::Plain).unwrap();
    let carrier = net
        .site("carrier", Site::new(Nat::PortRestricted).network([100, 64, 0, 0].into()), &Link::Plain)
        .unwrap();
    let home = carrier.site("home", Site::new(Nat::PortRestricted), &Link::Plain).unwrap();
    let alice = home.host("alice").unwrap();
    assert_eq!(home.wan().octets().first(), Some(&100));
    let a = probe::socket(&alice.ns, (alice.v4, 4000).into()).unwrap();
    let s = probe::socket(&server.ns, (server.v4, 3478).into()).unwrap();
    assert_eq!(probe::mapped(&a, &s).unwrap().ip(), IpAddr::V4(carrier.wan()));
}

#[test]
fn a_wire_delays_loses_and_limits_as_told_while_it_runs() {
    let Some(lab) = lab() else { return };
    let net = Internet::new(&lab).unwrap();
    let (a, b) = (net.host("a", &Link::delayed(ms(20))).unwrap(), net.host("b", &Link::Plain).unwrap());
    let target = b.v4.to_string();
    let ping = |count: &str, gap: &str| {
        let words = ["ping", "-q", "-c", count, "-i", gap, "-W", "1", &target];
        a.ns.try_run(&words, ms(30_000)).unwrap().stdout
    };
    let text = ping("20", "0.02");
    say(&format!("20 ms each way, expected 40: {}", text.lines().last().unwrap_or_default()));
    assert!(text.contains(" 0% packet loss"), "{text}");
    let wire = a.wire.as_ref().unwrap();
    let profile = wire.profile(Toward::First);
    wire.set(Toward::First, Profile { loss: 0.3, delay: Duration::ZERO, ..profile }).unwrap();
    ping("200", "0.003");
    let counts = wire.counts(Toward::First);
    assert!((25..=95).contains(&counts.lost), "30 % of about 200 were to be lost: {counts:?}");
    wire.set_both(Profile { rate: Some(20_000_000), ..Profile::default() }).unwrap();
    let rate = iperf(&a, &b);
    say(&format!("one TCP stream over 20 Mbit/s: {rate:.1} Mbit/s"));
    assert!(rate < 21.0, "faster than the line: {rate}");
    wire.up(false);
    assert!(ping("2", "0.1").contains("100% packet loss"));
    wire.up(true);
    assert!(ping("2", "0.1").contains(" 0% packet loss"));
    wire.set_both(Profile { delay: ms(10), ..Profile::default() }).unwrap();
    say(&format!("one TCP stream over 20 ms there and back: {:.0} Mbit/s", iperf(&a, &b)));
}

fn iperf(client: &ntcp_lab::Host, server: &ntcp_lab::Host) -> f64 {
    let mut listening = server.ns.spawn(&["iperf3", "-s", "-1", "--forceflush"]).unwrap();
    listening.wait_for_line("listening", ms(5000)).unwrap();
    let report = client.ns.run(&["iperf3", "-c", &server.v4.to_string(), "-t", "3", "-J"]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64).unwrap() / 1e6
}

#[test]
fn a_machine_has_its_own_hosts_file_name_and_state_directories() {
    let Some(lab) = lab() else { return };
    let (a, b) = (lab.machine("a").unwrap(), lab.machine("b").unwrap());
    a.run(&["sh", "-c", "echo 10.0.0.1 friend >> /etc/hosts; touch /var/lib/here /run/here"]).unwrap();
    assert!(a.run(&["getent", "hosts", "friend"]).unwrap().starts_with("10.0.0.1"));
    a.run(&["ls", "/var/lib/here", "/run/here"]).unwrap();
    assert!(a.hosts().contains("friend") && !b.hosts().contains("friend"));
    assert!(!b.try_run(&["ls", "/var/lib/here"], ms(5000)).unwrap().status.success());
    assert!(!Path::new("/var/lib/here").exists() && !Path::new("/run/here").exists());
    assert_eq!(b.run(&["cat", "/proc/sys/kernel/hostname"]).unwrap().trim(), "b");
}

#[test]
fn what_a_killed_lab_leaves_is_removed_by_the_next_clean_and_nothing_else() {
    let Some(mine) = lab() else { return };
    let _here = mine.machine("bystander").unwrap();
    let tool = env!("CARGO_BIN_EXE_ntcp-lab");
    let mut victim = Command::new(tool).arg("hold").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(victim.stdout.take().unwrap()), &mut line)
        .unwrap();
    let id = line.trim().to_owned();
    let spaces = |id: &str| {
        let list =
            String::from_utf8(Command::new("ip").args(["netns", "list"]).output().unwrap().stdout).unwrap();
        list.lines().filter(|line| line.starts_with(&format!("ntl-{id}-"))).count()
    };
    assert!(spaces(&id) > 2, "the victim has not built anything: {line:?}");
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(Command::new(tool).arg("clean").status().unwrap().success());
    assert_eq!((spaces(&id), spaces(mine.id())), (0, 1));
    assert!(!Path::new(&format!("/run/ntl/{id}")).exists() && mine.dir().exists());
    let busy = Command::new("sh").args(["-c", "pgrep -f 'sleep 98765$'"]).output().unwrap();
    assert!(busy.stdout.is_empty(), "a process of the dead lab still runs");
}

#[test]
fn a_lab_takes_everything_with_it() {
    let Some(lab) = lab() else { return };
    let net = Internet::new(&lab).unwrap();
    let a = net.host("a", &Link::delayed(ms(1))).unwrap();
    let running = a.ns.spawn(&["sleep", "100"]).unwrap();
    let (id, dir, pid) = (lab.id().to_owned(), lab.dir().to_owned(), running.pid());
    drop(net);
    drop(lab);
    drop(running);
    assert!(!dir.exists() && !Path::new(&format!("/proc/{pid}")).exists());
    let list = std::fs::read_dir("/run/netns").unwrap().flatten();
    assert_eq!(
        list.filter(|e| e.file_name().to_string_lossy().starts_with(&format!("ntl-{id}-"))).count(),
        0
    );
}
