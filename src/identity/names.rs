//! Names that people choose: networks, members, groups. Each is a DNS label, so it can stand in a host name, a URI and a
//! log line without escaping.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a name must not be empty")]
    Empty,
    /// RFC 1035 2.3.4.
    #[error("a name may have at most 63 characters")]
    TooLong,
    /// RFC 1123 2.1, lower case only.
    #[error("a name may hold only a-z, 0-9 and '-', and must not start or end with '-'")]
    BadCharacter,
    /// Not of the form `ntcp://network/name`.
    #[error("expected ntcp://<network>/<name>")]
    BadUri,
}

fn check_label(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > 63 {
        return Err(NameError::TooLong);
    }
    let fit = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !fit || text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::BadCharacter);
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_label(text)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label! {
    /// The name of a network.
    NetworkName
}
label! {
    /// The name of a member, broker or relay within its network.
    MemberName
}
label! {
    /// A group that a certificate puts its holder into.
    GroupName
}

impl MemberName {
    /// The nearest valid name to a host name or whatever else a machine calls itself; `node` if nothing is left of it.
    #[must_use]
    pub fn nearest(text: &str) -> Self {
        let first = text.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let kept: String =
            first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
        kept.trim_matches('-').parse().unwrap_or_else(|_| Self("node".to_owned()))
    }
}

/// `ntcp://<network>/<name>`: the URI that a certificate binds to its key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberUri {
    /// The network.
    pub network: NetworkName,
    /// The member in it.
    pub name: MemberName,
}

impl fmt::Display for MemberUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ntcp://{}/{}", self.network, self.name)
    }
}

impl FromStr for MemberUri {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (network, name) =
            text.strip_prefix("ntcp://").and_then(|rest| rest.split_once('/')).ok_or(NameError::BadUri)?;
        Ok(Self { network: network.parse()?, name: name.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for (text, result) in [
            ("laptop-7", Ok(())),
            ("", Err(NameError::Empty)),
            ("-a", Err(NameError::BadCharacter)),
            ("a-", Err(NameError::BadCharacter)),
            ("Laptop", Err(NameError::BadCharacter)),
            ("a.b", Err(NameError::BadCharacter)),
            ("a\n", Err(NameError::BadCharacter)),
        ] {
            assert_eq!(text.parse::<MemberName>().map(drop), result, "{text:?}");
        }
        assert_eq!("a".repeat(64).parse::<MemberName>().map(drop), Err(NameError::TooLong));
    }

    #[test]
    fn a_host_name_becomes_the_nearest_name() {
        for (host, name) in
            [("Anna's MacBook.local", "anna-s-macbook"), ("vm", "vm"), ("...", "node"), ("_x_", "x")]
        {
            assert_eq!(MemberName::nearest(host).as_str(), name);
        }
    }

    #[test]
    fn a_uri_reads_back() {
        let uri: MemberUri = "ntcp://home/nas".parse().unwrap();
        assert_eq!(uri.to_string(), "ntcp://home/nas");
        assert_eq!("http://home/nas".parse::<MemberUri>(), Err(NameError::BadUri));
        assert_eq!("ntcp://home".parse::<MemberUri>(), Err(NameError::BadUri));
        assert!("ntcp://home/a/b".parse::<MemberUri>().is_err());
    }
}
