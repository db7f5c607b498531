//! Every key that `overlay.toml` may hold, as data: what is unknown, what was probably meant, what type is expected.

use std::fmt;

/// What a key's value has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `"text"`
    Text,
    /// `true` or `false`
    Flag,
    /// A whole number of at least 0 and at most this.
    Whole(u64),
    /// `["text", ...]`
    Texts,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("a text in quotes"),
            Self::Flag => f.write_str("true or false"),
            Self::Whole(max) => write!(f, "a whole number from 0 to {max}"),
            Self::Texts => f.write_str("a list of texts, like [\"a\", \"b\"]"),
        }
    }
}

/// A table of the file and its keys.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// As written between the brackets; empty for the top of the file.
    pub name: &'static str,
    /// Written `[[name]]`, any number of times.
    pub repeated: bool,
    /// Keys and what they hold.
    pub keys: &'static [(&'static str, Kind)],
}

use Kind::Flag;
use Kind::Text;
use Kind::Texts;
use Kind::Whole;

/// TOML's whole numbers are signed 64 bit.
const ANY: u64 = i64::MAX as u64;
const PORT: u64 = u16::MAX as u64;

/// The whole file, in the order of `overlay.toml.example`.
pub const SECTIONS: &[Section] = &[
    Section { name: "", repeated: false, keys: &[("state_dir", Text)] },
    Section { name: "network", repeated: false, keys: &[("name", Text), ("prefix", Text)] },
    Section {
        name: "member",
        repeated: false,
        keys: &[
            ("name", Text),
            ("join", Text),
            ("brokers", Texts),
            ("interface", Text),
            ("mtu", Whole(PORT)),
            ("listen_port", Whole(PORT)),
            ("candidates", Texts),
            ("stun_servers", Texts),
            ("hosts_file", Flag),
            ("relay", Flag),
            ("udp", Flag),
            ("transport", Text),
            ("offload", Flag),
            ("udp_offload", Flag),
            ("port_mapping", Flag),
            ("proxy", Text),
        ],
    },
    Section { name: "peer", repeated: true, keys: &[("name", Text), ("transport", Text)] },
    Section {
        name: "broker",
        repeated: false,
        keys: &[
            ("enabled", Flag),
            ("listen", Texts),
            ("advertise", Texts),
            ("stun_servers", Texts),
            ("certificate_ttl", Text),
            ("invite_ttl", Text),
            ("forge", Flag),
        ],
    },
    Section {
        name: "relay",
        repeated: false,
        keys: &[
            ("enabled", Flag),
            ("listen", Texts),
            ("advertise", Texts),
            ("max_sessions", Whole(u32::MAX as u64)),
            ("bytes_per_second", Whole(ANY)),
            ("splice_ports", Text),
            ("serve", Text),
            ("brokers", Texts),
        ],
    },
    Section {
        name: "stun",
        repeated: false,
        keys: &[
            ("enabled", Flag),
            ("listen", Texts),
            ("advertise", Texts),
            ("alternate_port", Whole(PORT)),
            ("silent_port", Whole(PORT)),
        ],
    },
    Section {
        name: "wireguard_peer",
        repeated: true,
        keys: &[
            ("name", Text),
            ("public_key", Text),
            ("addresses", Texts),
            ("endpoint", Text),
            ("preshared_key", Text),
            ("preshared_key_file", Text),
            ("persistent_keepalive", Whole(PORT)),
        ],
    },
    Section { name: "log", repeated: false, keys: &[("level", Text)] },
    Section { name: "control", repeated: false, keys: &[("socket", Text)] },
];

/// The section of that name.
#[must_use]
pub fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

impl Section {
    /// What `key` holds here.
    #[must_use]
    pub fn kind(&self, key: &str) -> Option<Kind> {
        self.keys.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
    }
}

/// What somebody who wrote `key` in `section` probably meant, as a sentence; `None` if nothing is near.
#[must_use]
pub fn meant(section: &Section, key: &str) -> Option<String> {
    if let Some(near) = nearest(key, section.keys.iter().map(|(name, _)| *name)) {
        return Some(format!("did you mean `{near}`?"));
    }
    let elsewhere = SECTIONS.iter().find(|other| other.kind(key).is_some());
    if let Some(home) = elsewhere {
        return Some(match home.name {
            "" => format!("`{key}` belongs at the top of the file, before the first [section]"),
            name => format!("`{key}` belongs in [{name}]"),
        });
    }
    if section.name.is_empty() {
        let near = nearest(key, SECTIONS.iter().map(|section| section.name).filter(|name| !name.is_empty()))?;
        return Some(format!("did you mean [{near}]?"));
    }
    None
}

/// The nearest of `known` to `word`, if it is near enough to be a slip of the fingers: at most a third of the letters.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance with transposed neighbours as one slip (restricted Damerau-Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let at = |row: &[usize], i: usize| row.get(i).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best =
                (at(&last, j) + usize::from(x != y)).min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    at(&last, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_finds_its_key() {
        let member = section("member").unwrap();
        for (word, answer) in [
            ("listen_prot", Some("did you mean `listen_port`?")),
            ("brokres", Some("did you mean `brokers`?")),
            ("mut", Some("did you mean `mtu`?")),
            ("certificate_ttl", Some("`certificate_ttl` belongs in [broker]")),
            ("state_dir", Some("`state_dir` belongs at the top of the file, before the first [section]")),
            ("wallpaper", None),
        ] {
            assert_eq!(meant(member, word).as_deref(), answer, "{word}");
        }
        assert_eq!(meant(section("").unwrap(), "memebr").as_deref(), Some("did you mean [member]?"));
    }

    #[test]
    fn distances_are_counted_in_slips() {
        for (a, b, slips) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("", "abc", 3)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (slips, slips), "{a} {b}");
        }
    }
}
