//! What somebody wrote into `overlay.toml`: spelling and types are checked here, meaning is not.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use super::schema;
use super::schema::Kind;
use super::schema::Section;

/// The file as written. Every key is optional; what each means stands in `overlay.toml.example`.
#[derive(Deserialize, Clone, Default, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "overlay.toml.example documents the keys, and settings.rs what becomes of them"
)]
pub struct File {
    pub state_dir: Option<String>,
    pub network: Network,
    pub member: Member,
    pub peer: Vec<Peer>,
    pub broker: Broker,
    pub relay: Relay,
    pub stun: Stun,
    pub wireguard_peer: Vec<WireguardPeer>,
    pub log: Log,
    pub control: Control,
}

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($key:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Deserialize, Clone, Default, PartialEq, Eq, Debug)]
        #[serde(deny_unknown_fields, default)]
        #[allow(missing_docs, reason = "overlay.toml.example documents the keys, and settings.rs what becomes of them")]
        pub struct $name {
            $(pub $key: Option<$type>,)*
        }
    )*};
}

sections! {
    /// `[network]`
    Network { name: String, prefix: String, }
    /// `[member]`
    Member {
        name: String,
        join: String,
        brokers: Vec<String>,
        interface: String,
        mtu: u16,
        listen_port: u16,
        candidates: Vec<String>,
        stun_servers: Vec<String>,
        hosts_file: bool,
        relay: bool,
        udp: bool,
        transport: String,
        offload: bool,
        udp_offload: bool,
        port_mapping: bool,
        proxy: String,
    }
    /// `[[peer]]`
    Peer { name: String, transport: String, }
    /// `[broker]`
    Broker {
        enabled: bool,
        listen: Vec<String>,
        advertise: Vec<String>,
        stun_servers: Vec<String>,
        certificate_ttl: String,
        invite_ttl: String,
        forge: bool,
    }
    /// `[relay]`
    Relay {
        enabled: bool,
        listen: Vec<String>,
        advertise: Vec<String>,
        max_sessions: u32,
        bytes_per_second: u64,
        splice_ports: String,
        serve: String,
        brokers: Vec<String>,
    }
    /// `[stun]`
    Stun {
        enabled: bool,
        listen: Vec<String>,
        advertise: Vec<String>,
        alternate_port: u16,
        silent_port: u16,
    }
    /// `[[wireguard_peer]]`
    WireguardPeer {
        name: String,
        public_key: String,
        addresses: Vec<String>,
        endpoint: String,
        preshared_key: String,
        preshared_key_file: String,
        persistent_keepalive: u16,
    }
    /// `[log]`
    Log { level: String, }
    /// `[control]`
    Control { socket: String, }
}

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// What is wrong with a configuration, where, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// Where in the file; `None` when it is not about a place.
    pub place: Option<Place>,
    /// What is wrong and what to do next.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "{place}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A file that was read, and where each value stands in it, by names like `member.mtu` and `wireguard_peer.0.name`.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The values.
    pub file: File,
    /// The places of the values.
    pub places: BTreeMap<String, Place>,
}

/// Reads a configuration's text.
///
/// # Errors
/// The first mistake of syntax, spelling or type, with its place.
pub fn parse(text: &str) -> Result<Parsed, ConfigError> {
    let at = |span: Range<usize>| Some(place(text, span.start));
    let syntax = |error: toml::de::Error| ConfigError {
        place: error.span().and_then(at),
        problem: error.message().lines().collect::<Vec<_>>().join(", "),
    };
    let table = DeTable::parse(text).map_err(syntax)?;
    let mut walk = Walk { text, places: BTreeMap::new() };
    walk.top(table.get_ref())?;
    let file = toml::from_str(text).map_err(syntax)?;
    Ok(Parsed { file, places: walk.places })
}

/// Compares what is there with the schema, in the order of the alphabet; notes the places on the way.
struct Walk<'a> {
    text: &'a str,
    places: BTreeMap<String, Place>,
}

impl Walk<'_> {
    fn top(&mut self, table: &DeTable<'_>) -> Result<(), ConfigError> {
        let top = schema::section("").expect("the schema has a top");
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let Some(section) = schema::section(name).filter(|section| !section.name.is_empty()) else {
                self.key(top, "", name, key.span(), value)?;
                continue;
            };
            match (value.get_ref(), section.repeated) {
                (DeValue::Table(inner), false) => self.section(section, name, inner)?,
                (DeValue::Array(items), true) => {
                    for (index, item) in items.iter().enumerate() {
                        let DeValue::Table(inner) = item.get_ref() else {
                            return Err(
                                self.wrong(item.span(), format!("write [[{name}]] and its keys below"))
                            );
                        };
                        self.places.insert(format!("{name}.{index}"), place(self.text, item.span().start));
                        self.section(section, &format!("{name}.{index}"), inner)?;
                    }
                }
                (_, true) => {
                    return Err(self.wrong(key.span(), format!("write [[{name}]], with two brackets")));
                }
                (_, false) => {
                    return Err(self.wrong(key.span(), format!("write [{name}] and its keys below")));
                }
            }
        }
        Ok(())
    }

    fn section(&mut self, section: &Section, path: &str, table: &DeTable<'_>) -> Result<(), ConfigError> {
        for (key, value) in table {
            self.key(section, path, key.get_ref().as_ref(), key.span(), value)?;
        }
        Ok(())
    }

    fn key(
        &mut self,
        section: &Section,
        path: &str,
        key: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let Some(kind) = section.kind(key) else {
            let what = match (section.name, value.get_ref()) {
                ("", DeValue::Table(_)) => format!("unknown section [{}]", key.escape_debug()),
                ("", _) => format!("unknown key `{}`", key.escape_debug()),
                (name, _) => format!("unknown key `{}` in [{name}]", key.escape_debug()),
            };
            let hint = schema::meant(section, key)
                .unwrap_or_else(|| "overlay.toml.example shows every key".to_owned());
            return Err(self.wrong(span, format!("{what}: {hint}")));
        };
        if !fits(kind, value.get_ref()) {
            let found = found(value.get_ref());
            return Err(self.wrong(value.span(), format!("`{key}` must be {kind}, and this is {found}")));
        }
        let name = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        self.places.insert(name, place(self.text, value.span().start));
        Ok(())
    }

    fn wrong(&self, span: Range<usize>, problem: String) -> ConfigError {
        ConfigError { place: Some(place(self.text, span.start)), problem }
    }
}

fn fits(kind: Kind, value: &DeValue<'_>) -> bool {
    match (kind, value) {
        (Kind::Text, DeValue::String(_)) | (Kind::Flag, DeValue::Boolean(_)) => true,
        (Kind::Whole(max), DeValue::Integer(number)) => {
            u64::from_str_radix(number.as_str(), number.radix()).is_ok_and(|number| number <= max)
        }
        (Kind::Texts, DeValue::Array(items)) => {
            items.iter().all(|item| matches!(item.get_ref(), DeValue::String(_)))
        }
        _ => false,
    }
}

fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a text".to_owned(),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(_) => "a number with a fraction".to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list with something else in it".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn place(text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    Place { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn every_mistake_names_its_place_and_the_way_out() {
        for (text, answer) in [
            (
                "[member]\nname = \"a\"\nlisten_prot = 5\n",
                "line 3, column 1: unknown key `listen_prot` in [member]: did you mean `listen_port`?",
            ),
            ("[memebr]\n", "line 1, column 2: unknown section [memebr]: did you mean [member]?"),
            ("stat_dir = \"/x\"\n", "line 1, column 1: unknown key `stat_dir`: did you mean `state_dir`?"),
            (
                "[member]\nflavour = 1",
                "line 2, column 1: unknown key `flavour` in [member]: overlay.toml.example shows every key",
            ),
            (
                "[member]\nmtu = \"1380\"",
                "line 2, column 7: `mtu` must be a whole number from 0 to 65535, and this is a text",
            ),
            (
                "[member]\nmtu = -1",
                "line 2, column 7: `mtu` must be a whole number from 0 to 65535, and this is the number -1",
            ),
            (
                "[member]\nmtu = 70000",
                "line 2, column 7: `mtu` must be a whole number from 0 to 65535, and this is the number 70000",
            ),
            ("[member]\n  udp = \"no\"", "line 2, column 9: `udp` must be true or false, and this is a text"),
            (
                "[broker]\nlisten = \"0.0.0.0:1\"",
                "line 2, column 10: `listen` must be a list of texts, like [\"a\", \"b\"], and this is a text",
            ),
            (
                "[broker]\nlisten = [1]",
                "line 2, column 10: `listen` must be a list of texts, like [\"a\", \"b\"], and this is a list with something else in it",
            ),
            ("[wireguard_peer]\n", "line 1, column 2: write [[wireguard_peer]], with two brackets"),
            ("member = 3\n", "line 1, column 1: write [member] and its keys below"),
            (
                "[[wireguard_peer]]\nkey = \"x\"",
                "line 2, column 1: unknown key `key` in [wireguard_peer]: overlay.toml.example shows every key",
            ),
        ] {
            assert_eq!(problem(text), answer, "{text}");
        }
    }

    #[test]
    fn broken_syntax_names_its_place() {
        assert!(
            problem("[member]\nname = \n").starts_with("line 2, column 8: "),
            "{}",
            problem("[member]\nname = \n")
        );
        assert!(problem("[member]\n[member]\n").starts_with("line 2, column "));
    }

    #[test]
    fn an_empty_file_says_nothing_and_is_fine() {
        assert_eq!(parse("# nothing\n").unwrap(), Parsed::default());
    }

    #[test]
    fn places_are_counted_in_characters() {
        let parsed = parse("[network]\nname = \"ä\" # ö\nprefix = \"10.0.0.0/8\"\n").unwrap();
        assert_eq!(parsed.places["network.prefix"], Place { line: 3, column: 10 });
    }

    #[test]
    fn every_key_of_the_schema_reads_into_the_file() {
        let mut text = String::new();
        for section in schema::SECTIONS {
            match (section.name, section.repeated) {
                ("", _) => {}
                (name, false) => text += &format!("[{name}]\n"),
                (name, true) => text += &format!("[[{name}]]\n"),
            }
            for (key, kind) in section.keys {
                let value = match kind {
                    Kind::Text => "\"x\"".to_owned(),
                    Kind::Flag => "true".to_owned(),
                    Kind::Whole(max) => max.to_string(),
                    Kind::Texts => "[\"x\"]".to_owned(),
                };
                text += &format!("{key} = {value}\n");
            }
        }
        let parsed = parse(&text).unwrap();
        assert_eq!(parsed.file.relay.bytes_per_second, Some(i64::MAX as u64));
        assert_eq!(parsed.file.wireguard_peer[0].persistent_keepalive, Some(u16::MAX));
    }
}
