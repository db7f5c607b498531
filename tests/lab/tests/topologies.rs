//! Each kind of network that the lab offers, shown with programs that others wrote: it lets pass what it says, and nothing
//! else.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Egress;
use ntcp_lab::Gateway;
use ntcp_lab::Host;
use ntcp_lab::Internet;
use ntcp_lab::Link;
use ntcp_lab::Nat;
use ntcp_lab::Process;
use ntcp_lab::Proxy;
use ntcp_lab::Router;
use ntcp_lab::Site;
use ntcp_lab::gateway::Speaks;
use ntcp_lab::lab;
use ntcp_lab::nat::V6;
use ntcp_lab::probe;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn pings(from: &Host, to: IpAddr) -> Result<bool> {
    Ok(from.ns.try_run(&["ping", "-c1", "-W1", &to.to_string()], ms(5000))?.status.success())
}

/// Whether curl on this host gets a page with these words.
fn gets(on: &Host, words: &[&str]) -> Result<bool> {
    // "-q" and "--noproxy": whatever proxies this machine itself uses are not meant.
    let mut all =
        vec!["curl", "-q", "-sS", "--fail", "--max-time", "2", "--noproxy", "nobody", "-o", "/dev/null"];
    all.extend(words);
    Ok(on.ns.try_run(&all, ms(10_000))?.status.success())
}

/// Python's web server; every address of the host answers.
fn web(on: &Host, port: u16) -> Result<Process> {
    let dir = on.ns.files()?.join("www");
    std::fs::create_dir_all(&dir)?;
    let (port, dir) = (port.to_string(), dir.to_str().context("not UTF-8")?.to_owned());
    let mut server =
        on.ns.spawn(&["python3", "-u", "-m", "http.server", &port, "--bind", "::", "-d", &dir])?;
    server.wait_for_line("Serving HTTP", ms(10_000))?;
    Ok(server)
}

/// The address under which `server` sees a fresh UDP socket of `host`, and that socket.
fn mapped(host: &Host, port: u16, server: &Host) -> Result<(std::net::UdpSocket, SocketAddr)> {
    let socket = probe::socket(&host.ns, (host.v4, port).into())?;
    let there = probe::socket(&server.ns, (server.v4, 0).into())?;
    let at = probe::mapped(&socket, &there)?;
    Ok((socket, at))
}

#[test]
fn three_sites_of_two_hosts_each_reach_the_server_and_their_neighbour_but_no_other_site() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.server("server", &Link::Plain)?;
        let mut hosts = Vec::new();
        for (site, n) in [("north", 1), ("south", 2), ("west", 3)] {
            let router = net.site(site, Site::new(Nat::PortRestricted).lan(n), &Link::Plain)?;
            hosts.push([router.host(&format!("{site}1"))?, router.host(&format!("{site}2"))?]);
        }
        for (n, [one, two]) in hosts.iter().enumerate() {
            ensure!(pings(one, server.v4.into())? && pings(two, server.v4.into())?);
            ensure!(pings(one, two.v4.into())?, "neighbours do not reach each other");
            let [elsewhere, _] = &hosts[(n + 1) % hosts.len()];
            ensure!(!pings(one, elsewhere.v4.into())?, "another site's inside is reachable");
        }
        Ok(())
    });
}

#[test]
fn homes_of_one_carrier_meet_inside_it_and_homes_of_two_carriers_outside() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let carrier = Site::new(Nat::FullCone).network([100, 64, 0, 0].into());
        let [one, other] = ["one", "other"].map(|name| net.site(name, carrier, &Link::Plain));
        let (one, other) = (one?, other?);
        let inside = one.host("inside")?;
        let home = |name, carrier: &Router<'_>| -> Result<Host> {
            carrier.site(&format!("{name}-home"), Site::new(Nat::FullCone), &Link::Plain)?.host(name)
        };
        let (alice, bob, carol) = (home("alice", &one)?, home("bob", &one)?, home("carol", &other)?);
        let (a, a_outer) = mapped(&alice, 4000, &server)?;
        let (b, b_outer) = mapped(&bob, 4001, &server)?;
        let (c, c_outer) = mapped(&carol, 4002, &server)?;
        ensure!(
            a_outer.ip() == b_outer.ip() && a_outer.ip() != c_outer.ip(),
            "{a_outer} {b_outer} {c_outer}"
        );

        let (inner, b_inner) = mapped(&bob, 4003, &inside)?;
        ensure!(b_inner.ip().to_string().starts_with("100.64."), "{b_inner}");
        a.send_to(b"neighbour", b_inner)?;
        ensure!(inner.recv_from(&mut [0; 64]).is_ok(), "no way inside the carrier");
        a.send_to(b"neighbour", b_outer)?;
        ensure!(b.recv_from(&mut [0; 64]).is_err(), "a carrier that does not hairpin does");
        a.send_to(b"stranger", c_outer)?;
        ensure!(c.recv_from(&mut [0; 64]).is_ok(), "no way from one carrier to the other");
        c.send_to(b"stranger", b_inner)?;
        ensure!(inner.recv_from(&mut [0; 64]).is_err(), "a carrier's inside is reachable from another's");
        Ok(())
    });
}

#[test]
fn where_only_tcp_443_gets_out_nothing_else_does() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let (_https, _http) = (web(&server, 443)?, web(&server, 80)?);
        let hotel = net.site("hotel", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let guest = hotel.host("guest")?;
        let page = |port: u16| format!("http://{}:{port}/", server.v4);
        ensure!(gets(&guest, &[&page(80)])?);
        hotel.restrict(Egress::Tcp(443))?;
        ensure!(gets(&guest, &[&page(443)])?, "TCP 443 is blocked");
        ensure!(!gets(&guest, &[&page(80)])?, "TCP 80 passes");
        ensure!(mapped(&guest, 4000, &server).is_err(), "UDP passes");
        ensure!(!pings(&guest, server.v4.into())?, "ping passes");
        hotel.restrict(Egress::All)?;
        ensure!(gets(&guest, &[&page(80)])? && pings(&guest, server.v4.into())?);
        Ok(())
    });
}

#[test]
fn behind_an_http_proxy_only_connect_to_its_ports_gets_out() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let (_https, _other) = (web(&server, 443)?, web(&server, 8080)?);
        let office = net.site("office", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let (clerk, gate) = (office.host("clerk")?, office.host("gate")?);
        let proxy = Proxy::http(&gate, &[443])?;
        office.restrict(Egress::Through(gate.v4))?;
        let by = format!("http://{}", proxy.address);
        let through = |port: u16| gets(&clerk, &["-p", "-x", &by, &format!("http://{}:{port}/", server.v4)]);
        ensure!(through(443)?, "CONNECT to 443 fails: {}", proxy.process.log());
        ensure!(!through(8080)?, "CONNECT to any port succeeds");
        ensure!(!gets(&clerk, &[&format!("http://{}:443/", server.v4)])?, "the proxy can be passed by");
        ensure!(mapped(&clerk, 4000, &server).is_err(), "UDP passes");
        Ok(())
    });
}

#[test]
fn behind_a_socks_proxy_every_tcp_port_is_reached_through_it_and_none_without() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let _page = web(&server, 8080)?;
        let office = net.site("office", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let (clerk, gate) = (office.host("clerk")?, office.host("gate")?);
        let proxy = Proxy::socks(&gate)?;
        office.restrict(Egress::Through(gate.v4))?;
        let page = format!("http://{}:8080/", server.v4);
        ensure!(gets(&clerk, &["--socks5", &proxy.address.to_string(), &page])?);
        ensure!(!gets(&clerk, &[&page])?, "the proxy can be passed by");
        ensure!(mapped(&clerk, 4000, &server).is_err(), "UDP passes");
        Ok(())
    });
}

#[test]
fn a_host_has_both_internet_protocols_or_either_one_alone() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let _page = web(&server, 8080)?;
        let site = |name, site| net.site(name, site, &Link::Plain)?.host(&format!("{name}-host"));
        let dual = site("dual", Site::new(Nat::PortRestricted).v6(V6::Firewall))?;
        let six = site("six", Site::new(Nat::PortRestricted).v6_only(V6::Firewall))?;
        let four = site("four", Site::new(Nat::PortRestricted))?;
        let v6 = server.v6.context("the server has no IPv6")?;
        for (host, by_v4, by_v6) in [(&dual, true, true), (&six, false, true), (&four, true, false)] {
            let name = host.ns.name();
            ensure!(gets(host, &[&format!("http://{}:8080/", server.v4)])? == by_v4, "{name} by IPv4");
            ensure!(gets(host, &[&format!("http://[{v6}]:8080/")])? == by_v6, "{name} by IPv6");
            ensure!(host.v6.is_some() == by_v6 && host.v4.is_unspecified() != by_v4, "{name}: {host:?}");
        }
        Ok(())
    });
}

#[test]
fn two_sites_may_have_the_same_private_addresses() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let server = net.host("server", &Link::Plain)?;
        let site = |name| net.site(name, Site::new(Nat::PortRestricted), &Link::Plain);
        let (home, work) = (site("home")?, site("work")?);
        let (alice, bob) = (home.host("alice")?, work.host("bob")?);
        ensure!(alice.v4 == bob.v4, "{} and {}", alice.v4, bob.v4);
        let ((_a, a_outer), (_b, b_outer)) = (mapped(&alice, 4000, &server)?, mapped(&bob, 4000, &server)?);
        ensure!(a_outer == (home.wan(), 4000).into() && b_outer == (work.wan(), 4000).into());
        Ok(())
    });
}

#[test]
fn a_gateway_opens_ports_by_upnp_nat_pmp_and_pcp() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let stranger = net.host("stranger", &Link::Plain)?;
        let home = net.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let alice = home.host("alice")?;
        let gateway = Gateway::start(&home, Speaks::ALL)?;
        let (own, router) = (alice.v4.to_string(), home.inner().to_string());

        let a = probe::socket(&alice.ns, (alice.v4, 4000).into())?;
        let s = probe::socket(&stranger.ns, (stranger.v4, 4000).into())?;
        let outer: SocketAddr = (home.wan(), 40_000).into();
        ensure!(!probe::passes(&s, &a, outer)?, "the port is open before anybody asked");
        let said = alice.ns.run(&["upnpc", "-e", "lab", "-a", &own, "4000", "40000", "UDP", "600"])?;
        ensure!(said.contains("is redirected to internal"), "upnpc: {said}\n{}", gateway.process.log());
        ensure!(probe::passes(&s, &a, outer)?, "UPnP opened nothing");

        let listener = alice.ns.inside({
            let at = SocketAddr::from((alice.v4, 4001));
            move || TcpListener::bind(at)
        })??;
        let said = alice.ns.run(&["natpmpc", "-g", &router, "-a", "40001", "4001", "tcp", "600"])?;
        ensure!(said.contains("Mapped public port 40001"), "natpmpc: {said}");
        let outer = SocketAddr::from((home.wan(), 40_001));
        stranger.ns.inside(move || TcpStream::connect_timeout(&outer, ms(2000)))??;
        drop(listener);

        let a = probe::socket(&alice.ns, (alice.v4, 4002).into())?;
        let mapping = pcp_map(&alice, &router, 4002)?;
        ensure!(mapping.ip() == home.wan(), "PCP says {mapping}");
        ensure!(probe::passes(&s, &a, mapping)?, "PCP opened nothing");
        Ok(())
    });
}

/// Asks a router by PCP for a UDP port (RFC 6887, 7.1 and 11.1) and returns the outer address that it gave.
fn pcp_map(host: &Host, router: &str, port: u16) -> Result<SocketAddr> {
    let mapped = |v4: std::net::Ipv4Addr| v4.to_ipv6_mapped().octets();
    let mut request = vec![2, 1, 0, 0]; // version, opcode MAP
    request.extend(600u32.to_be_bytes());
    request.extend(mapped(host.v4));
    request.extend([7; 12]); // nonce
    request.extend([17, 0, 0, 0]); // UDP
    request.extend(port.to_be_bytes());
    request.extend([0; 2]);
    request.extend(mapped(std::net::Ipv4Addr::UNSPECIFIED));
    let socket = probe::socket(&host.ns, (host.v4, 0).into())?;
    socket.send_to(&request, format!("{router}:5351"))?;
    let mut answer = [0; 1100];
    let length = socket.recv(&mut answer).context("no answer by PCP")?;
    ensure!(length >= 60 && answer[..4] == [2, 0x81, 0, 0], "PCP refuses: {:?}", &answer[..length]);
    let outer: [u8; 16] = answer[44..60].try_into()?;
    let outer = std::net::Ipv6Addr::from(outer).to_ipv4_mapped().context("not IPv4")?;
    Ok((outer, u16::from_be_bytes([answer[42], answer[43]])).into())
}

#[test]
fn below_a_carrier_a_port_is_open_only_once_both_gateways_have_opened_it() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let stranger = net.host("stranger", &Link::Plain)?;
        // Addresses that look public: below a carrier with 100.64.0.0/10 the inner gateway would refuse at once.
        let carrier = Site::new(Nat::PortRestricted).network([20, 9, 0, 0].into());
        let carrier = net.site("carrier", carrier, &Link::Plain)?;
        let home = carrier.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let alice = home.host("alice")?;
        let (_outer, _inner) = (Gateway::start(&carrier, Speaks::ALL)?, Gateway::start(&home, Speaks::ALL)?);
        let ask = |router: &Router<'_>, outside: &str, inside: &str| {
            let router = router.inner().to_string();
            alice.ns.run(&["natpmpc", "-g", &router, "-a", outside, inside, "udp", "600"])
        };

        let a = probe::socket(&alice.ns, (alice.v4, 4000).into())?;
        let s = probe::socket(&stranger.ns, (stranger.v4, 4000).into())?;
        let said = ask(&home, "40000", "4000")?;
        ensure!(said.contains(&format!("Public IP address : {}", home.wan())), "natpmpc: {said}");
        let outer: SocketAddr = (carrier.wan(), 40_000).into();
        ensure!(!probe::passes(&s, &a, outer)?, "the carrier lets strangers in by itself");
        let said = ask(&carrier, "40000", "40000")?;
        ensure!(said.contains(&format!("Public IP address : {}", carrier.wan())), "natpmpc: {said}");
        ensure!(probe::passes(&s, &a, outer)?, "both are open and nothing passes");
        Ok(())
    });
}

#[test]
fn a_gateway_with_a_private_outer_address_opens_nothing() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let carrier = Site::new(Nat::PortRestricted).network([100, 64, 0, 0].into());
        let carrier = net.site("carrier", carrier, &Link::Plain)?;
        let home = carrier.site("home", Site::new(Nat::PortRestricted), &Link::Plain)?;
        let alice = home.host("alice")?;
        let _gateway = Gateway::start(&home, Speaks::ALL)?;
        let words = ["natpmpc", "-g", &home.inner().to_string(), "-a", "40000", "4000", "udp", "600"];
        let said = alice.ns.try_run(&words, ms(30_000))?;
        ensure!(!said.stdout.contains("Mapped public port"), "natpmpc: {}", said.stdout);
        Ok(())
    });
}

#[test]
fn spoofed_sources_pass_until_the_internet_filters_them() {
    lab::test(|lab| {
        let net = Internet::new(lab)?;
        let (server, target) = (net.server("server", &Link::Plain)?, net.host("target", &Link::Plain)?);
        let campus = net.site("campus", Site::new(Nat::Open), &Link::Plain)?;
        let student = campus.host("student")?;
        let t = probe::socket(&target.ns, (target.v4, 5000).into())?;
        let arrives = |from: &Host, source: &str| -> Result<bool> {
            let s = probe::socket(&from.ns, format!("{source}:4000").parse()?)?;
            probe::passes(&s, &t, t.local_addr()?)
        };
        for (host, forged) in [(&server.host, "20.0.199.7"), (&student, "20.0.198.7")] {
            host.ns.ip(&format!("addr add {forged}/32 dev lo\n"))?;
            ensure!(arrives(host, forged)?, "a forged source does not pass before there is a filter");
        }
        server.filter_spoofed(true)?;
        campus.filter_spoofed(true)?;
        ensure!(!arrives(&server, "20.0.199.7")?, "a forged source passes the server's filter");
        ensure!(!arrives(&student, "20.0.198.7")?, "a forged source passes the campus's filter");
        for own in server.addresses {
            ensure!(arrives(&server, &own.to_string())?, "the filter drops the server's own {own}");
        }
        ensure!(arrives(&student, &student.v4.to_string())?, "the filter drops the campus's own addresses");
        ensure!(pings(&server, target.v4.into())?);
        server.filter_spoofed(false)?;
        ensure!(arrives(&server, "20.0.199.7")?, "the filter stays");
        Ok(())
    });
}
