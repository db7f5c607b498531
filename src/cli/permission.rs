//! What `up` needs from the kernel, checked before anything is touched.

use std::fs;
use std::io;
use std::io::ErrorKind;
use std::path::Path;

use crate::config::exit::Failure;

/// Bit of CAP_NET_ADMIN (linux/capability.h).
const NET_ADMIN: u32 = 12;
/// The door to all TUN devices (Documentation/networking/tuntap.rst).
const TUN: &str = "/dev/net/tun";

/// Whether this process may make a network interface.
pub(super) fn check() -> Result<(), Failure> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Without /proc nobody knows: the kernel will say it later.
    if effective(&status).is_some_and(|caps| caps & (1 << NET_ADMIN) == 0) {
        return Err(Failure::permission(
            "up makes a network interface, which needs root (or CAP_NET_ADMIN): run `sudo ntcp-overlay up`",
        ));
    }
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(TUN)
        .map(drop)
        .map_err(|error| no_tun(Path::new(TUN), &error))
}

fn no_tun(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    // ENXIO and ENODEV: the device file is there and the module is not.
    Failure::permission(match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) | (_, Some(libc::ENXIO | libc::ENODEV)) => format!(
            "there is no {path}: load the module with `sudo modprobe tun`, or give the container --device {path}"
        ),
        (ErrorKind::PermissionDenied, _) => format!(
            "{path} may not be opened here: run it with sudo, or allow the device (container: --device {path}; systemd: DeviceAllow={path} rw)"
        ),
        _ => format!("{path} cannot be opened: {error}"),
    })
}

/// The effective capabilities in the text of `/proc/self/status` (proc(5)).
fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_proc() {
        let status = "Name:\tcat\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\n";
        assert_eq!(effective(status), Some(1 << NET_ADMIN));
        assert_eq!(effective("CapEff:\t000001ffffffffff\n"), Some((1 << 41) - 1));
        assert_eq!(effective("Name:\tcat\n"), None);
    }

    #[test]
    fn a_missing_tun_says_how_to_get_it() {
        for (errno, part) in [
            (libc::ENOENT, "modprobe tun"),
            (libc::ENODEV, "modprobe tun"),
            (libc::EPERM, "DeviceAllow"),
            (libc::EMFILE, "cannot be opened"),
        ] {
            let text = no_tun(Path::new(TUN), &io::Error::from_raw_os_error(errno)).message;
            assert!(text.contains(part), "{text}");
        }
    }
}
