//! Other people's tunnels, set up as their manuals say, with ChaCha20-Poly1305 where there is a choice.

use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use super::Standing;
use crate::interrupt;
use crate::ns::Namespace;
use crate::topology::Host;
use crate::wireguard;
use crate::wireguard::Peer;
use crate::wireguard::Tunnel;

/// The tunnel's addresses.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
/// How long a tunnel may take to stand.
const START: Duration = Duration::from_secs(20);

/// wireguard-go, of this build; MTU 1380, as the overlay's.
pub(super) fn wireguard(program: &str, a: &Host, b: &Host) -> Result<Standing> {
    let (a_keys, b_keys) = (wireguard::keys(&a.ns)?, wireguard::keys(&b.ns)?);
    let [a_inner, b_inner] = INNER.map(IpAddr::V4);
    let endpoint = format!("{}:51820", b.v4);
    let (to_a, to_b) = (format!("{a_inner}/32"), format!("{b_inner}/32"));
    let peer_b = Peer { public: &b_keys.public, endpoint: Some(&endpoint), allowed: &to_b, preshared: None };
    let peer_a = Peer { public: &a_keys.public, endpoint: None, allowed: &to_a, preshared: None };
    let far = Tunnel::start_program(program, &b.ns, &b_keys, b_inner, &peer_a)?;
    let near = Tunnel::start_program(program, &a.ns, &a_keys, a_inner, &peer_b)?;
    let pids = vec![near.pid(), far.pid()];
    Standing::of(b_inner, pids, (near, far)).wait(a)
}

/// tinc 1.0, over UDP or over TCP alone.
pub(super) fn tinc(tcp: bool, a: &Host, b: &Host) -> Result<Standing> {
    let mut dirs = Vec::new();
    for (n, host) in [a, b].into_iter().enumerate() {
        let dir = fresh(&host.ns, "tinc")?;
        fs::create_dir(dir.join("hosts"))?;
        let name = ["a", "b"][n];
        let mut conf = format!("Name = {name}\nDeviceType = tun\nInterface = tinc0\nAddressFamily = ipv4\n");
        if n == 0 {
            conf += "ConnectTo = b\n";
        }
        if tcp {
            conf += "TCPOnly = yes\n";
        }
        fs::write(dir.join("tinc.conf"), conf)?;
        fs::write(
            dir.join("hosts").join(name),
            format!("Address = {}\nSubnet = {}/32\n", host.v4, INNER[n]),
        )?;
        let up = format!(
            "#!/bin/sh\nip link set tinc0 mtu 1400 up\nip addr add {} peer {} dev tinc0\n",
            INNER[n],
            INNER[1 - n]
        );
        script(&dir.join("tinc-up"), &up)?;
        host.ns.run(&["tincd", "-c", text(&dir)?, "-K2048"])?;
        dirs.push(dir);
    }
    for (from, to, name) in [(0, 1, "a"), (1, 0, "b")] {
        fs::copy(dirs[from].join("hosts").join(name), dirs[to].join("hosts").join(name))?;
    }
    let mut running = Vec::new();
    for (host, dir) in [(b, &dirs[1]), (a, &dirs[0])] {
        let pid_file = dir.join("pid");
        running.push(host.ns.spawn(&["tincd", "-c", text(dir)?, "-D", "--pidfile", text(&pid_file)?])?);
    }
    let pids = running.iter().map(crate::Process::pid).collect();
    Standing::of(IpAddr::V4(INNER[1]), pids, running).wait(a)
}

/// OpenVPN between two ends that know each other's certificates, over UDP or TCP, without its kernel module.
pub(super) fn openvpn(tcp: bool, a: &Host, b: &Host) -> Result<Standing> {
    let mut prints = Vec::new();
    for host in [a, b] {
        let dir = fresh(&host.ns, "openvpn")?;
        let (key, cert) = (dir.join("key.pem"), dir.join("cert.pem"));
        let make = format!(
            "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
             -subj /CN={} -keyout key.pem -out cert.pem 2>/dev/null && openssl x509 -in cert.pem -noout \
             -fingerprint -sha256",
            text(&dir)?,
            host.ns.name()
        );
        let said = host.ns.run(&["sh", "-c", &make])?;
        let print = said.trim().rsplit_once('=').context("openssl printed no fingerprint")?.1.to_owned();
        prints.push((print, text(&key)?.to_owned(), text(&cert)?.to_owned()));
    }
    let mut running = Vec::new();
    for (n, host, other) in [(1, b, a), (0, a, b)] {
        let (inner, far, address) = (INNER[n].to_string(), INNER[1 - n].to_string(), other.v4.to_string());
        let (_, key, cert) = &prints[n];
        let proto = match (tcp, n) {
            (false, _) => "udp4",
            (true, 0) => "tcp4-client",
            (true, _) => "tcp4-server",
        };
        let mut words = vec!["openvpn", "--dev", "ovpn0", "--dev-type", "tun", "--proto", proto];
        words.extend(["--remote", &address, "--ifconfig", &inner, &far, "--key", key, "--cert", cert]);
        words.extend(["--peer-fingerprint", &prints[1 - n].0, "--data-ciphers", "CHACHA20-POLY1305"]);
        words.extend(["--verb", "1", "--disable-dco", "--connect-retry", "1"]);
        words.push(if n == 0 { "--tls-client" } else { "--tls-server" });
        if n == 1 {
            words.extend(["--dh", "none"]);
        }
        running.push(host.ns.spawn(&words)?);
    }
    let pids = running.iter().map(crate::Process::pid).collect();
    Standing::of(IpAddr::V4(INNER[1]), pids, running).wait(a)
}

/// nebula with its defaults but for the cipher, one of the two being the lighthouse.
pub(super) fn nebula(program: &str, a: &Host, b: &Host) -> Result<Standing> {
    let dir = fresh(&b.ns, "nebula")?;
    let cert = program.strip_suffix("nebula").map(|path| format!("{path}nebula-cert"));
    let cert = cert.context("the program is not called nebula")?;
    let dir_text = text(&dir)?;
    let mut make = format!("cd {dir_text} && {cert} ca -name lab");
    for (name, inner) in [("a", INNER[0]), ("b", INNER[1])] {
        make += &format!(" && {cert} sign -name {name} -ip {inner}/24");
    }
    b.ns.run(&["sh", "-c", &make])?;
    let mut running = Vec::new();
    for (host, name) in [(b, "b"), (a, "a")] {
        let file = dir.join(format!("{name}.yml"));
        let lighthouse = if name == "b" { "am_lighthouse: true" } else { "hosts: [\"10.99.0.2\"]" };
        let config = format!(
            "pki: {{ca: {dir_text}/ca.crt, cert: {dir_text}/{name}.crt, key: {dir_text}/{name}.key}}\n\
             static_host_map: {{\"10.99.0.2\": [\"{}:4242\"]}}\nlighthouse:\n  {lighthouse}\n\
             listen: {{host: 0.0.0.0, port: 4242}}\ncipher: chachapoly\ntun: {{dev: neb0, mtu: 1380}}\n\
             firewall: {{outbound: [{{port: any, proto: any, host: any}}], \
             inbound: [{{port: any, proto: any, host: any}}]}}\n",
            b.v4
        );
        fs::write(&file, config)?;
        running.push(host.ns.spawn(&[program, "-config", text(&file)?])?);
    }
    let pids = running.iter().map(crate::Process::pid).collect();
    Standing::of(IpAddr::V4(INNER[1]), pids, running).wait(a)
}

/// EasyTier with its defaults, over UDP or TCP.
pub(super) fn easytier(program: &str, tcp: bool, a: &Host, b: &Host) -> Result<Standing> {
    let proto = if tcp { "tcp" } else { "udp" };
    let listen = format!("{proto}://0.0.0.0:11010");
    let to = format!("{proto}://{}:11010", b.v4);
    let mut running = Vec::new();
    for (host, inner, more) in
        [(b, INNER[1], &["-l", &listen][..]), (a, INNER[0], &["--no-listener", "-p", &to])]
    {
        let inner = inner.to_string();
        let words = [program, "--network-name", "lab", "--network-secret", "lab", "-i", &inner];
        running.push(host.ns.spawn(&[&words[..], more].concat())?);
    }
    let pids = running.iter().map(crate::Process::pid).collect();
    Standing::of(IpAddr::V4(INNER[1]), pids, running).wait(a)
}

impl Standing {
    /// Waits until the other side answers pings.
    pub(super) fn wait(self, a: &Host) -> Result<Self> {
        let target = self.target.to_string();
        interrupt::wait_for("the tunnel to stand", START, || {
            let words = ["ping", "-n", "-c", "1", "-W", "1", &target];
            let output = a.ns.try_run(&words, Duration::from_secs(5))?;
            Ok(output.status.success().then_some(()))
        })?;
        Ok(self)
    }
}

/// An empty directory of this machine's.
fn fresh(ns: &Namespace, name: &str) -> Result<std::path::PathBuf> {
    let dir = ns.files()?.join(name);
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn script(file: &std::path::Path, content: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, content)?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
}

fn text(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path of the lab is not UTF-8")
}
