//! Tests of the way from file to settings.

use super::*;

const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

fn build(text: &str, over: Overrides) -> Result<Settings, ConfigError> {
    let read = |path: &Path| match path.to_str() {
        Some("/psk") => Ok(format!("{KEY}\n")),
        Some("/garbage") => Ok("hunter2".to_owned()),
        _ => Err("is missing".to_owned()),
    };
    let around = Surroundings { hostname: "Anna's Laptop.lan", read: &read };
    Settings::build(&file::parse(text)?, over, &around)
}

fn settings(text: &str) -> Settings {
    build(text, Overrides::default()).unwrap()
}

fn problem(text: &str) -> String {
    build(text, Overrides::default()).unwrap_err().to_string()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let s = settings("");
    assert_eq!(s.member.name.as_str(), "anna-s-laptop");
    assert_eq!(s.network.name_or_default().as_str(), "overlay");
    assert_eq!(s.network.prefix.to_string(), "10.77.0.0/16");
    assert_eq!((s.member.mtu, s.member.listen_port, s.member.udp, s.member.relay), (1380, 0, true, true));
    assert!(s.member.offload && s.member.udp_offload);
    assert_eq!((s.broker.enabled, s.relay.enabled, s.stun.enabled), (None, None, None));
    let listen: Vec<_> = s.broker.listen.iter().map(|l| (l.addr.to_string(), l.optional)).collect();
    assert_eq!(listen, [("0.0.0.0:6060".to_owned(), false), ("[::]:6060".to_owned(), true)]);
    assert_eq!((s.relay.bytes_per_second, s.relay.splice_ports), (None, Some(20_000..=20_999)));
}

#[test]
fn the_example_states_every_key_and_its_true_default() {
    let example = include_str!("../../overlay.toml.example");
    assert_eq!(settings(example), settings(""), "the example as it stands changes nothing");

    // "#key = value" is a setting, "# text" is a comment.
    let uncommented: String = example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let parsed = file::parse(&uncommented).unwrap();
    for section in crate::config::schema::SECTIONS {
        for (key, _) in section.keys {
            let path = match (section.name, section.repeated) {
                ("", _) => (*key).to_owned(),
                (name, false) => format!("{name}.{key}"),
                (name, true) => format!("{name}.0.{key}"),
            };
            assert!(parsed.places.contains_key(&path), "overlay.toml.example does not show {path}");
        }
    }

    // Keys without a default show an example, and are marked so.
    let defaults: String =
        uncommented.lines().filter(|line| !line.ends_with("# example")).map(|l| format!("{l}\n")).collect();
    let defaults = defaults.replace("[[wireguard_peer]]", "").replace("[[peer]]", "");
    assert_eq!(
        settings(&defaults),
        Settings { ..settings("") },
        "a default in the example is not the true one"
    );
}

#[test]
fn a_proxy_is_of_the_environment_unless_written() {
    let choice = |text: &str| settings(&format!("[member]\nproxy = \"{text}\"")).member.proxy;
    assert_eq!(settings("").member.proxy, ProxyChoice::Environment);
    assert_eq!(choice("none"), ProxyChoice::Written(Proxies::none()));
    let proxy = "http://al:pw@proxy:3128".parse().unwrap();
    assert_eq!(choice("http://al:pw@proxy:3128"), ProxyChoice::Written(Proxies::fixed(proxy)));
    let wrong = problem("[member]\nproxy = \"ftp://x\"");
    assert!(wrong.starts_with("line 2, column 9: `proxy` begins with \"ftp\""), "{wrong}");
}

#[test]
fn what_cannot_be_used_names_its_place_and_what_to_write() {
    for (text, answer) in [
        (
            "[network]\nprefix = \"10.77.0.0\"",
            "line 2, column 10: `prefix` cannot be \"10.77.0.0\": write it like \"10.77.0.0/16\"",
        ),
        (
            "[network]\nprefix = \"10.77.0.1/16\"",
            "line 2, column 10: `prefix` cannot be \"10.77.0.1/16\": write \"10.77.0.0/16\"",
        ),
        (
            "[network]\nprefix = \"10.0.0.0/30\"",
            "line 2, column 10: `prefix` cannot be \"10.0.0.0/30\": its length must be from /8 to /29",
        ),
        (
            "[network]\nprefix = \"8.8.0.0/16\"",
            "line 2, column 10: `prefix` cannot be \"8.8.0.0/16\": choose one in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10",
        ),
        (
            "[network]\nprefix = \"172.0.0.0/8\"",
            "line 2, column 10: `prefix` cannot be \"172.0.0.0/8\": choose one in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10",
        ),
        (
            "[network]\nname = \"My Net\"",
            "line 2, column 8: `name` cannot be \"My Net\": a name may hold only a-z, 0-9 and '-', and must not start or end with '-'",
        ),
        ("[member]\nmtu = 1500", "line 2, column 7: `mtu` must be from 1280 to 1420, and this is 1500"),
        (
            "[member]\ninterface = \"eth 0\"",
            "line 2, column 13: `interface` cannot be \"eth 0\": an interface's name has 1 to 15 letters, digits, '-' or '_', and may hold one %d",
        ),
        (
            "[member]\nudp = false\ntransport = \"udp\"",
            "line 3, column 13: `transport` is \"udp\", but `udp` is false",
        ),
        (
            "[member]\ntransport = \"sctp\"",
            "line 2, column 13: `transport` must be \"auto\", \"tcp\" or \"udp\"",
        ),
        ("[[peer]]\nname = \"nas\"", "line 1, column 1: [[peer]] needs a `name` and a `transport`"),
        (
            "[[peer]]\nname = \"nas\"\ntransport = \"TCP\"",
            "line 3, column 13: `transport` must be \"auto\", \"tcp\" or \"udp\"",
        ),
        (
            "[member]\nudp = false\n[[peer]]\nname = \"nas\"\ntransport = \"udp\"",
            "line 5, column 13: `transport` is \"udp\", but `udp` is false",
        ),
        (
            "[[peer]]\nname = \"nas\"\ntransport = \"tcp\"\n[[peer]]\nname = \"nas\"\ntransport = \"udp\"",
            "line 5, column 8: `name` stands in another [[peer]] too: keep one",
        ),
        (
            "[[peer]]\nname = \"anna-s-laptop\"\ntransport = \"tcp\"",
            "line 2, column 8: `name` is this machine: name another member",
        ),
        (
            "[member]\ncandidates = [\"127.0.0.1:5\"]",
            "line 2, column 14: `candidates` holds \"127.0.0.1:5\", which is not the IP:PORT of a reachable machine",
        ),
        (
            "[member]\nbrokers = [\"x:y\"]",
            "line 2, column 11: `brokers` holds \"x:y\" is not HOST:PORT: the port must be a number from 1 to 65535",
        ),
        ("[broker]\nlisten = []", "line 2, column 10: `listen` must hold at least one address"),
        (
            "[broker]\nlisten = [\"6060\"]",
            "line 2, column 10: `listen` holds \"6060\", which is not IP:PORT: write it like \"0.0.0.0:6060\" or \"[::]:6060\"",
        ),
        (
            "[broker]\ninvite_ttl = \"1 day\"",
            "line 2, column 14: `invite_ttl` is wrong: \"1 day\" is not a duration: write it like 45s, 30m, 24h or 90d",
        ),
        (
            "[broker]\ncertificate_ttl = \"1s\"",
            "line 2, column 19: `certificate_ttl` must be from 1h to 3650d",
        ),
        (
            "[relay]\nmax_sessions = 0",
            "line 2, column 16: `max_sessions` must be at least 1; `enabled = false` switches it off",
        ),
        (
            "[log]\nlevel = \"loud\"",
            "line 2, column 9: `level` must be one of error, warn, info, debug, trace",
        ),
        (
            "[[wireguard_peer]]\nname = \"phone\"",
            "line 1, column 1: [[wireguard_peer]] needs a `name` and a `public_key`",
        ),
    ] {
        assert_eq!(problem(text), answer, "{text}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let over = Overrides {
        name: Some("flag".parse().unwrap()),
        network: Some("net".parse().unwrap()),
        state_dir: Some("/s".into()),
        control: Some("/c".into()),
        join: Some(Secret::parse("ntcp1-x")),
        advertise: vec![units::parse_endpoint("a", 6060).unwrap()],
        hosts_file: true,
    };
    let text = "state_dir = \"/f\"\n[network]\nname = \"f\"\n[member]\nname = \"f\"\njoin = \"f\"\n[broker]\nadvertise = [\"f\"]\n[control]\nsocket = \"/f\"\n";
    let s = build(text, over.clone()).unwrap();
    assert_eq!((s.member.name, s.network.name), (over.name.unwrap(), over.network));
    assert_eq!((Some(s.state_dir), Some(s.control)), (over.state_dir, over.control));
    assert_eq!((s.member.join, s.broker.advertise), (over.join, over.advertise));
    assert!(s.member.hosts_file);
    let s = settings(text);
    assert_eq!((s.state_dir.to_str(), s.member.name.as_str()), (Some("/f"), "f"));
}

fn peer(rest: &str) -> String {
    format!(
        "[[wireguard_peer]]\nname = \"phone\"\npublic_key = \"{KEY}\"\naddresses = [\"10.77.255.1\"]\n{rest}\n"
    )
}

#[test]
fn a_stock_wireguard_peer_is_read_with_its_preshared_key() {
    let s = settings(&peer(
        "endpoint = \"192.0.2.1:51820\"\npreshared_key_file = \"/psk\"\npersistent_keepalive = 25",
    ));
    assert_eq!(s.wireguard_peers.len(), 1);
    let peer = &s.wireguard_peers[0];
    assert_eq!(peer.preshared_key, Some(KEY.parse::<WgPublic>().unwrap().0));
    assert_eq!(peer.addresses[0].to_string(), "10.77.255.1/32");
    assert_eq!((peer.endpoint, peer.persistent_keepalive), ("192.0.2.1:51820".parse().ok(), Some(25)));
    assert!(!format!("{peer:?}").contains(KEY));
}

#[test]
fn a_member_serves_the_network_as_a_relay_if_its_owner_says_so() {
    let serves = |text: &str| settings(text).relay.serve;
    assert!(!serves(""));
    assert!(!serves("[relay]\nserve = \"none\""));
    assert!(serves("[relay]\nserve = \"network\""));
    let error = problem("[relay]\nserve = \"everybody\"");
    assert!(error.contains("line 2, column 9: `serve` must be \"network\" or \"none\""), "{error}");
}

#[test]
fn splice_ports_are_a_range_or_none() {
    let ports = |text: &str| settings(&format!("[relay]\nsplice_ports = \"{text}\"")).relay.splice_ports;
    assert_eq!(ports("30000-31999"), Some(30_000..=31_999));
    assert_eq!(ports("none"), None);
    for text in ["", "5", "9-5", "80-90", "1-70000", "2000-"] {
        let error = problem(&format!("[relay]\nsplice_ports = \"{text}\""));
        assert!(error.contains("line 2, column 16: `splice_ports` must be"), "{text}: {error}");
    }
}

#[test]
fn a_stock_wireguard_peer_must_be_complete_and_unlike_the_others() {
    let other = KEY.replace("HIgo", "AIgo");
    for (text, answer) in [
        (peer("preshared_key_file = \"/nowhere\""), "line 5, column 22: `preshared_key_file` is missing"),
        (
            peer("preshared_key_file = \"/garbage\""),
            "line 5, column 22: `preshared_key_file` must hold what `wg genpsk` prints",
        ),
        (
            peer("preshared_key = \"hunter2\""),
            "line 5, column 17: `preshared_key` must hold what `wg genpsk` prints",
        ),
        (
            peer("preshared_key = \"x\"\npreshared_key_file = \"/psk\""),
            "line 5, column 17: `preshared_key` and `preshared_key_file` are both there: keep one",
        ),
        (
            peer("endpoint = \"phone.lan:5\""),
            "line 5, column 12: `endpoint` must be IP:PORT; names are not looked up",
        ),
        (
            peer("").replace("255.1", "255.1/24"),
            "line 4, column 13: `addresses` holds \"10.77.255.1/24\": write \"10.77.255.0/24\"",
        ),
        (
            peer("").replace("\"10.77.255.1\"", ""),
            "line 1, column 1: [[wireguard_peer]] needs `addresses`: at least one overlay address, like [\"10.77.255.1\"]",
        ),
        (
            peer("").replace(KEY, "short"),
            "line 3, column 14: `public_key` cannot be \"short\": not a WireGuard key: expected 44 characters of base64",
        ),
        (peer("") + &peer(""), "line 7, column 8: `name` is taken: there is another \"phone\""),
        (
            peer("") + &peer("").replace("phone", "b"),
            "line 8, column 14: `public_key` is also that of \"phone\"",
        ),
        (
            peer("") + &peer("").replace("phone", "b").replace(KEY, &other),
            "line 9, column 13: `addresses` holds an address of \"phone\"",
        ),
        (
            peer("") + "[member]\nname = \"phone\"\n",
            "line 2, column 8: `name` is taken: there is another \"phone\"",
        ),
    ] {
        assert_eq!(problem(&text), answer, "{text}");
    }
}

#[test]
fn a_secret_does_not_show_in_debug_output() {
    let s = settings("[member]\njoin = \"ntcp1-topsecret\"");
    assert!(!format!("{s:?}").contains("topsecret"));
    assert_eq!(Secret::parse("file:/run/token"), Secret::File("/run/token".into()));
}

#[test]
fn listening_on_ipv6_alone_is_not_optional() {
    let s = settings("[broker]\nlisten = [\"[::]:443\"]");
    assert_eq!(s.broker.listen, [Listen { addr: "[::]:443".parse().unwrap(), optional: false }]);
}
