//! The relay's table in nf_tables: maps that say where a packet goes, and the few rules that look there.
//!
//! The rules are the same for one session and for ten thousand: only maps grow, and they are hash tables. They stand at
//! the ingress of the network device, before routing, connection tracking and the firewall of this machine, so no
//! forwarding has to be switched on, and packets of a session meet nothing of the machine's own. What comes to the port
//! range and is in no map is dropped there: nothing answers. What comes to the relay's UDP ports and is in no map goes on
//! to its sockets, and so does every fragment: only whole datagrams have a header to look at.
//!
//! | map | key | value |
//! |---|---|---|
//! | `id4`, `id6` | source address, source port, destination port | direction: a number of its own |
//! | `ud4`, `ud6` | the same, and the first four bytes of the message | direction |
//! | `da4`, `da6` | direction | new destination |
//! | `nh4`, `nh6` | direction | the router to it, or itself |
//! | `dp`, `sp` | direction | new destination port, new source port (TCP) |
//!
//! Each element of the maps that are asked first counts what it lets pass.

use std::fmt::Write as _;
use std::io;
use std::io::Write as _;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

/// The table, of family netdev. There is one on a machine (in a network namespace).
pub(super) const TABLE: &str = "ntcp_relay";

/// Where the tool is.
const TOOL: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// What the rules are made of. Nothing of it comes from the network.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// The device, by name; see [`is_plain`].
    pub(super) device: &'a str,
    /// This machine's addresses on it.
    pub(super) here: &'a [IpAddr],
    /// TCP ports that are the relay's.
    pub(super) ports: &'a RangeInclusive<u16>,
    /// Its UDP sockets' ports, each once.
    pub(super) doors: &'a [u16],
    /// Sessions that there may be.
    pub(super) sessions: usize,
}

impl Rules<'_> {
    /// The whole table, in place of the one that was there, in the words of `nft -f`.
    pub(super) fn text(&self) -> String {
        let (device, low, high) = (self.device, self.ports.start(), self.ports.end());
        // Two directions a session, over TCP and over UDP. With a size the kernel takes a table of fixed size, which is
        // faster to look up.
        let size = (self.sessions * 2).clamp(64, 1 << 20);
        let both = size * 2;
        let mut text =
            format!("add table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\n");
        let mut line = |args: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "  {args}");
        };
        for (n, address) in [(4, "ipv4_addr"), (6, "ipv6_addr")] {
            line(format_args!(
                "map id{n} {{ type {address} . inet_service . inet_service : mark; size {size}; counter; }}"
            ));
            let ip = if n == 4 { "ip" } else { "ip6" };
            line(format_args!(
                "map ud{n} {{ typeof {ip} saddr . udp sport . udp dport . @th,64,32 : meta mark; size {size}; counter; }}"
            ));
            line(format_args!("map da{n} {{ type mark : {address}; size {both}; }}"));
            line(format_args!("map nh{n} {{ type mark : {address}; size {both}; }}"));
        }
        line(format_args!("map dp {{ type mark : inet_service; size {both}; }}"));
        line(format_args!("map sp {{ type mark : inet_service; size {size}; }}"));
        line(format_args!("chain ingress {{"));
        line(format_args!("  type filter hook ingress device \"{device}\" priority -300; policy accept;"));
        for ip in self.here {
            match ip {
                IpAddr::V4(ip) => line(format_args!("  ip daddr {ip} tcp dport {low}-{high} goto splice4")),
                IpAddr::V6(ip) => line(format_args!("  ip6 daddr {ip} tcp dport {low}-{high} goto splice6")),
            }
            for port in self.doors {
                match ip {
                    IpAddr::V4(ip) => line(format_args!("  ip daddr {ip} udp dport {port} goto join4")),
                    IpAddr::V6(ip) => line(format_args!("  ip6 daddr {ip} udp dport {port} goto join6")),
                }
            }
        }
        line(format_args!("}}"));
        for (n, ip) in [(4, "ip"), (6, "ip6")] {
            line(format_args!("chain splice{n} {{"));
            line(format_args!("  tcp flags & (syn | ack) == syn drop"));
            line(format_args!("  meta mark set {ip} saddr . tcp sport . tcp dport map @id{n}"));
            line(format_args!("  meta mark 0 drop"));
            line(format_args!("  tcp sport set meta mark map @sp"));
            line(format_args!("  tcp dport set meta mark map @dp"));
            line(format_args!("  {ip} saddr set {ip} daddr"));
            line(format_args!("  {ip} daddr set meta mark map @da{n}"));
            line(format_args!("  fwd {ip} to meta mark map @nh{n} device \"{device}\""));
            line(format_args!("  drop"));
            line(format_args!("}}"));
            let fragment = if n == 4 { "ip frag-off & 0x3fff != 0" } else { "exthdr frag exists" };
            line(format_args!("chain join{n} {{"));
            line(format_args!("  {fragment} accept"));
            line(format_args!("  meta mark set {ip} saddr . udp sport . udp dport . @th,64,32 map @ud{n}"));
            line(format_args!("  meta mark 0 accept"));
            line(format_args!("  udp sport set udp dport"));
            line(format_args!("  udp dport set meta mark map @dp"));
            line(format_args!("  {ip} saddr set {ip} daddr"));
            line(format_args!("  {ip} daddr set meta mark map @da{n}"));
            line(format_args!("  fwd {ip} to meta mark map @nh{n} device \"{device}\""));
            line(format_args!("  drop"));
            line(format_args!("}}"));
        }
        text.push_str("}\n");
        text
    }
}

/// The words that remove the table, whether it is there or not.
pub(super) fn removal() -> String {
    format!("add table netdev {TABLE}\ndelete table netdev {TABLE}\n")
}

/// Whether a device's name can stand between quotes.
pub(super) fn is_plain(device: &str) -> bool {
    !device.is_empty() && device.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b))
}

/// Has the `nft` tool do all that `text` says, or nothing.
pub(super) fn load(text: &str) -> io::Result<()> {
    run(&["-f", "-"], text).map(|_| ())
}

/// Whether there is a table of this name, ours or one that was left behind.
pub(super) fn is_loaded() -> io::Result<bool> {
    let tables = run(&["list", "tables", "netdev"], "")?;
    Ok(tables.lines().any(|line| line.trim() == format!("table netdev {TABLE}")))
}

/// Whether the `nft` tool is where it is usually installed.
pub(super) fn has_tool() -> bool {
    TOOL.iter().any(|path| Path::new(path).is_file())
}

fn run(arguments: &[&str], input: &str) -> io::Result<String> {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other("the nft tool is not installed: install the package nftables")
        }
        _ => e,
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let first = words.lines().next().unwrap_or("no reason given");
    Err(io::Error::other(if first.contains("not permitted") {
        "not permitted: run as root, or give the process CAP_NET_ADMIN and CAP_NET_RAW".to_owned()
    } else {
        format!("nft: {first}")
    }))
}

/// Services do not always have the administrators' directories on their path.
fn program() -> PathBuf {
    TOOL.map(PathBuf::from).into_iter().find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("nft"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_an_old_one_and_holds_no_rule_for_a_session() {
        let here = ["203.0.113.5".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        let ports = 20_000..=29_999;
        let rules =
            Rules { device: "eth0", here: &here, ports: &ports, doors: &[6061, 443], sessions: 10_000 };
        let text = rules.text();
        assert!(text.starts_with("add table netdev ntcp_relay\ndelete table netdev ntcp_relay\n"));
        assert!(text.contains("ip daddr 203.0.113.5 tcp dport 20000-29999 goto splice4"));
        assert!(text.contains("ip6 daddr 2001:db8::5 tcp dport 20000-29999 goto splice6"));
        assert!(text.contains("ip daddr 203.0.113.5 udp dport 443 goto join4"));
        assert!(text.contains("ip6 daddr 2001:db8::5 udp dport 6061 goto join6"));
        assert!(text.contains("size 20000;"));
        assert!(text.lines().count() < 80, "{text}");
    }

    #[test]
    fn a_device_whose_name_is_not_plain_is_not_quoted() {
        for (name, plain) in
            [("eth0", true), ("br-lan.7", true), ("", false), ("a\"b", false), ("a b", false)]
        {
            assert_eq!(is_plain(name), plain, "{name:?}");
        }
    }
}
