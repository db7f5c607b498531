//! Durations and endpoints as people write them.

use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::enroll::BrokerAddr;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Reads `90d`, `24h`, `30m` or `45s`.
///
/// # Errors
/// In words, what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("\"{}\" is not a duration: write it like 45s, 30m, 24h or 90d", text.escape_debug());
    let text = text.trim();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "s" => 1,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(wrong)
}

/// The same the other way round, in the largest unit that loses nothing.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let secs = duration.as_secs();
    for (unit, letter) in [(DAY, 'd'), (HOUR, 'h'), (MINUTE, 'm')] {
        if secs != 0 && secs.is_multiple_of(unit) {
            return format!("{}{letter}", secs / unit);
        }
    }
    format!("{secs}s")
}

/// Reads `host:port`, `1.2.3.4:port` or `[v6]:port`; without a port it is `default_port`.
///
/// # Errors
/// In words, what an endpoint looks like.
pub fn parse_endpoint(text: &str, default_port: u16) -> Result<BrokerAddr, String> {
    let wrong = |why: &str| format!("\"{}\" is not HOST:PORT: {why}", text.escape_debug());
    let text = text.trim();
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return if addr.port() == 0 {
            Err(wrong("port 0 cannot be reached"))
        } else {
            Ok(BrokerAddr::Addr(addr))
        };
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(BrokerAddr::Addr(SocketAddr::new(ip, default_port)));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            (host, port.parse::<u16>().map_err(|_| wrong("the port must be a number from 1 to 65535"))?)
        }
        None => (text, default_port),
    };
    if port == 0 {
        return Err(wrong("port 0 cannot be reached"));
    }
    if !is_host_name(host) {
        return Err(wrong("expected a host name, an IPv4 address, or an IPv6 address in [brackets]"));
    }
    Ok(BrokerAddr::Host(host.to_ascii_lowercase(), port))
}

/// RFC 1123 2.1, and not something that only looks like an IPv4 address.
fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let numeric_end = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && host.split('.').all(label) && !numeric_end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, secs) in [("45s", 45), ("30m", 1800), ("24h", 86_400), ("90d", 7_776_000), (" 1h ", 3600)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        for text in ["", "h", "5", "5w", "-5h", "1.5h", "99999999999999999999h", "9999999999999999999d", "5ä"]
        {
            assert!(parse_duration(text).unwrap_err().contains("24h"), "{text}");
        }
        for text in ["45s", "90s", "30m", "1d", "90d", "0s"] {
            assert_eq!(duration_text(parse_duration(text).unwrap()), if text == "24h" { "1d" } else { text });
        }
    }

    #[test]
    fn endpoints_are_names_or_addresses() {
        let addr = |text: &str| Some(BrokerAddr::Addr(text.parse().unwrap()));
        let host = |name: &str, port| Some(BrokerAddr::Host(name.to_owned(), port));
        for (text, answer) in [
            ("192.0.2.1:7", addr("192.0.2.1:7")),
            ("192.0.2.1", addr("192.0.2.1:6060")),
            ("[2001:db8::1]:7", addr("[2001:db8::1]:7")),
            ("2001:db8::1", addr("[2001:db8::1]:6060")),
            ("[2001:db8::1]", addr("[2001:db8::1]:6060")),
            ("Vpn.example.org:443", host("vpn.example.org", 443)),
            ("vpn", host("vpn", 6060)),
            ("vpn:", None),
            ("vpn:0", None),
            ("192.0.2.1:0", None),
            ("vpn:70000", None),
            ("300.1.1.1:5", None),
            ("http://vpn:5", None),
            ("-x:5", None),
            ("", None),
            (":5", None),
        ] {
            assert_eq!(parse_endpoint(text, 6060).ok(), answer, "{text}");
        }
    }
}
