//! Which connections go through a proxy: as configured, or as the environment says, in the words that other programs
//! use.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;

use super::units;
use crate::base::hidden::Hidden;
use crate::wire::enroll::BrokerAddr;
use crate::wire::proxy::MAX_CREDENTIAL;

/// What a proxy speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// HTTP `CONNECT`.
    Http,
    /// SOCKS5.
    Socks5,
}

/// One proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy {
    /// What it speaks.
    pub kind: Kind,
    /// Where it is.
    pub at: BrokerAddr,
    /// User name and password.
    pub credentials: Option<(String, Hidden<String>)>,
}

/// For every connection: through which proxy, or none.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Proxies {
    proxy: Option<Proxy>,
    except: Vec<Except>,
}

/// Where the proxy is not used.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Except {
    /// `*`
    Everything,
    /// An address or network.
    Network(IpNetwork),
    /// A host and the hosts in its domain; perhaps one port alone.
    Domain(String, Option<u16>),
}

impl Proxies {
    /// Everything goes straight.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything goes through this one, but what is on this machine.
    #[must_use]
    pub fn fixed(proxy: Proxy) -> Self {
        Self { proxy: Some(proxy), except: Vec::new() }
    }

    /// As `https_proxy` says, or else `all_proxy`; not where `no_proxy` says so. Lower case wins over upper, as with curl.
    ///
    /// # Errors
    /// In words, which variable cannot be used and what to do; the environment may be meant for other programs.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let find = |name: &str| {
            [name.to_owned(), name.to_ascii_uppercase()].into_iter().find_map(|name| {
                let value = get(&name)?.trim().to_owned();
                (!value.is_empty()).then_some((name, value))
            })
        };
        let proxy = match find("https_proxy").or_else(|| find("all_proxy")) {
            None => return Ok(Self::none()),
            Some((name, text)) => text.parse().map_err(|why| {
                format!("{name} in the environment is not used: it {why}; member.proxy in the configuration wins over it")
            })?,
        };
        let except = find("no_proxy").map(|(_, list)| list.split(',').filter_map(Except::parse).collect());
        Ok(Self { proxy: Some(proxy), except: except.unwrap_or_default() })
    }

    /// The proxy on the way to `to`. Nobody else's loopback is meant by ours, so that is never proxied.
    #[must_use]
    pub fn route(&self, to: &BrokerAddr) -> Option<&Proxy> {
        let here = match to {
            BrokerAddr::Addr(addr) => addr.ip().to_canonical().is_loopback(),
            BrokerAddr::Host(host, _) => host == "localhost",
        };
        let excepted = here || self.except.iter().any(|except| except.covers(to));
        self.proxy.as_ref().filter(|_| !excepted)
    }

    /// The same for an address.
    #[must_use]
    pub fn route_addr(&self, to: SocketAddr) -> Option<&Proxy> {
        self.route(&BrokerAddr::Addr(to))
    }

    /// The proxy, for people.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        self.proxy.as_ref().map(ToString::to_string)
    }
}

impl Except {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::Everything);
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(network) = bare.parse() {
            return Some(Self::Network(network));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        Some(match host.parse::<IpAddr>() {
            Ok(ip) if port.is_none() => Self::Network(ip.into()),
            _ => {
                Self::Domain(host.trim_start_matches("*").trim_start_matches('.').to_ascii_lowercase(), port)
            }
        })
    }

    fn covers(&self, to: &BrokerAddr) -> bool {
        match (self, to) {
            (Self::Everything, _) => true,
            (Self::Network(network), BrokerAddr::Addr(addr)) => network.contains(addr.ip().to_canonical()),
            (Self::Network(_), BrokerAddr::Host(..)) => false,
            (Self::Domain(domain, port), _) => {
                let (host, to_port) = match to {
                    BrokerAddr::Addr(addr) => (addr.ip().to_string(), addr.port()),
                    BrokerAddr::Host(host, port) => (host.to_ascii_lowercase(), *port),
                };
                let inside = host
                    .strip_suffix(domain.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                inside && port.is_none_or(|port| port == to_port)
            }
        }
    }
}

impl FromStr for Proxy {
    type Err = String;
    /// `http://user:password@host:port` or `socks5://...`, the first part and the last optional as elsewhere.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (kind, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http, 80),
            "socks5" | "socks5h" | "socks" => (Kind::Socks5, 1080),
            "https" => return Err("asks for TLS to the proxy itself, which this program does not do: write http://HOST:PORT if the proxy takes that too".to_owned()),
            other => return Err(format!("begins with \"{}\": a proxy is http://HOST:PORT or socks5://HOST:PORT", other.escape_debug())),
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, at) = match rest.rsplit_once('@') {
            Some((credentials, at)) => (Some(credentials), at),
            None => (None, rest),
        };
        let credentials = credentials.map(|text| {
            let (user, password) = text.split_once(':').unwrap_or((text, ""));
            let (user, password) = (unescape(user)?, unescape(password)?);
            // Of a colon in the user's name nobody could tell which part is the password (RFC 7617 2).
            if user.is_empty()
                || user.contains(':')
                || user.len() > MAX_CREDENTIAL
                || password.len() > MAX_CREDENTIAL
            {
                return Err(format!(
                    "holds a user name or password that no proxy takes: 1 to {MAX_CREDENTIAL} bytes"
                ));
            }
            if kind == Kind::Socks5 && password.is_empty() {
                return Err(
                    "holds a user name without a password, which SOCKS5 does not know (RFC 1929)".to_owned()
                );
            }
            Ok((user, Hidden(password)))
        });
        let at = units::parse_endpoint(at, default_port).map_err(|_| {
            "names no HOST:PORT after the scheme: a proxy is http://HOST:PORT or socks5://HOST:PORT"
                .to_owned()
        })?;
        Ok(Self { kind, at, credentials: credentials.transpose()? })
    }
}

impl fmt::Display for Proxy {
    /// Without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", self.at)
    }
}

/// Percent-encoding of URLs (RFC 3986 2.1).
fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.split_at_checked(2).and_then(|(digits, tail)| {
            let byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            Some((byte, tail))
        });
        let (byte, tail) = digits.ok_or("holds a '%' that is not followed by two hexadecimal digits")?;
        bytes.push(byte);
        rest = tail;
    }
    let text =
        String::from_utf8(bytes).map_err(|_| "holds a user name or password that is not UTF-8".to_owned())?;
    if text.chars().any(char::is_control) {
        return Err("holds control characters in the user name or password".to_owned());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Result<Proxies, String> {
        Proxies::from_environment(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn route(proxies: &Proxies, to: &str) -> Option<String> {
        proxies.route(&to.parse().unwrap()).map(ToString::to_string)
    }

    #[test]
    fn a_proxy_is_written_as_everywhere() {
        for (text, shown) in [
            ("http://proxy:3128", "http://proxy:3128"),
            ("proxy:3128", "http://proxy:3128"),
            ("proxy", "http://proxy:80"),
            ("http://proxy/", "http://proxy:80"),
            ("socks5h://10.0.0.1", "socks5://10.0.0.1:1080"),
            ("SOCKS5://[2001:db8::1]:9", "socks5://[2001:db8::1]:9"),
        ] {
            assert_eq!(text.parse::<Proxy>().unwrap().to_string(), shown, "{text}");
        }
        let proxy: Proxy = "http://al%40x:p%3Aw@proxy:1".parse().unwrap();
        assert_eq!(proxy.credentials, Some(("al@x".to_owned(), Hidden("p:w".to_owned()))));
        assert!(!format!("{proxy:?} {proxy}").contains("p:w"), "a password is in no log");
    }

    #[test]
    fn what_cannot_be_a_proxy_says_what_one_looks_like() {
        for (text, words) in [
            ("https://proxy:1", "http://HOST:PORT"),
            ("ftp://proxy", "socks5://HOST:PORT"),
            ("http://", "HOST:PORT"),
            ("http://proxy:0", "HOST:PORT"),
            ("http://u%zz@proxy", "hexadecimal"),
            ("http://u%0a@proxy", "control"),
            ("socks5://u@proxy", "RFC 1929"),
            ("http://:p@proxy", "user name"),
        ] {
            let why = text.parse::<Proxy>().unwrap_err();
            assert!(why.contains(words), "{text}: {why}");
        }
    }

    #[test]
    fn the_environment_is_read_as_other_programs_read_it() {
        let proxy = "http://p:1";
        for (pairs, to, through) in [
            (&[][..], "vpn:443", None),
            (&[("HTTPS_PROXY", "http://p:1")], "vpn:443", Some(proxy)),
            (&[("HTTPS_PROXY", "http://q:1"), ("https_proxy", "http://p:1")], "vpn:443", Some(proxy)),
            (&[("ALL_PROXY", "socks5://s:1"), ("https_proxy", "p:1")], "vpn:443", Some(proxy)),
            (&[("all_proxy", "socks5://s:1")], "vpn:443", Some("socks5://s:1")),
            (&[("https_proxy", " "), ("HTTPS_PROXY", "p:1")], "vpn:443", Some(proxy)),
            (&[("HTTP_PROXY", "http://p:1")], "vpn:443", None),
            (&[("https_proxy", "p:1")], "127.0.0.1:6060", None),
            (&[("https_proxy", "p:1"), ("no_proxy", "*")], "vpn:443", None),
            (&[("https_proxy", "p:1"), ("NO_PROXY", "example.org, .corp")], "vpn.corp:443", None),
            (&[("https_proxy", "p:1"), ("NO_PROXY", "example.org, .corp")], "vpn.example.org:443", None),
            (
                &[("https_proxy", "p:1"), ("NO_PROXY", "example.org, .corp")],
                "badexample.org:443",
                Some(proxy),
            ),
            (&[("https_proxy", "p:1"), ("no_proxy", "192.0.2.0/24")], "192.0.2.9:443", None),
            (&[("https_proxy", "p:1"), ("no_proxy", "192.0.2.9")], "192.0.2.9:443", None),
            (&[("https_proxy", "p:1"), ("no_proxy", "vpn:6060")], "vpn:443", Some(proxy)),
            (&[("https_proxy", "p:1"), ("no_proxy", "vpn:443")], "vpn:443", None),
        ] {
            let proxies = environment(pairs).unwrap();
            assert_eq!(route(&proxies, to).as_deref(), through, "{pairs:?} {to}");
        }
        let why = environment(&[("https_proxy", "https://p:1")]).unwrap_err();
        assert!(why.contains("https_proxy") && why.contains("member.proxy"), "{why}");
    }
}
