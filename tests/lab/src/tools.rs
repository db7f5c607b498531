//! What must be installed for the lab, and what is missing.

use std::env;
use std::path::Path;
use std::path::PathBuf;

use crate::sys;

/// Command and the Debian package that holds it.
pub const TOOLS: [(&str, &str); 18] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("curl", "curl"),
    ("python3", "python3"),
    ("iperf3", "iperf3"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("tinyproxy", "tinyproxy-bin"),
    ("microsocks", "microsocks"),
    ("haproxy", "haproxy"),
    ("miniupnpd", "miniupnpd-nftables"),
    ("upnpc", "miniupnpc"),
    ("natpmpc", "natpmpc"),
];

/// Finds a command on the path, where Debian puts administrators' tools, and where `make` puts what comes from PyPI.
pub fn find(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin", "target/pystun3/bin"].map(PathBuf::from))
        .map(|dir| dir.join(command))
        .find(|file| file.is_file())
        .and_then(|file| std::path::absolute(file).ok())
}

/// One line about what keeps the lab from working here, or nothing.
pub fn missing() -> Option<String> {
    if !sys::is_root() {
        return Some("not root: network namespaces need it (try: sudo make test)".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("no /dev/net/tun: load the tun module (modprobe tun)".to_owned());
    }
    let packages: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| find(tool).is_none()).map(|(_, p)| *p).collect();
    if packages.is_empty() {
        return None;
    }
    Some(format!("not installed: apt-get install --no-install-recommends {}", packages.join(" ")))
}
