//! The extension in which a certificate of this network says what X.509 has no words for: roles, groups and the X25519 key.
//!
//! ```text
//! 0        1
//! +--------+---------------- - -
//! | format | fields
//! +--------+---------------- - -
//!
//! field:
//! +--------+--------+----- - -      type 1  roles, one byte: 1 member, 2 broker, 4 relay
//! |  type  | length | value         type 2  X25519 public key, 32 bytes
//! +--------+--------+----- - -      type 3  one group, its name; repeated, in ascending order
//! ```
//!
//! `format` is 1. Types ascend; 1 and 2 must be there. An unknown type below 128 makes the extension unreadable, from 128
//! on it is skipped: that is how a later version says whether its news may be ignored.

use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::identity::certificate::CertError;
use crate::identity::certificate::MAX_GROUPS;
use crate::identity::certificate::Roles;
use crate::identity::keys::WgPublic;
use crate::identity::names::GroupName;

/// The extension's object identifier, below the enterprise number that RFC 5612 gives to whoever has none.
pub(super) const OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 32473, 6060, 1];
/// The same, as X.509 carries it.
pub(super) const OID_DER: &[u8] = b"\x2b\x06\x01\x04\x01\x81\xfd\x59\xaf\x2c\x01";

const FORMAT: u8 = 1;
const ROLES: u8 = 1;
const WG_KEY: u8 = 2;
const GROUP: u8 = 3;
const FIRST_OPTIONAL: u8 = 128;

/// What the extension says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Claims {
    pub(super) roles: Roles,
    pub(super) wg: WgPublic,
    /// Sorted, without repetition, at most [`MAX_GROUPS`].
    pub(super) groups: Vec<GroupName>,
}

impl Claims {
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(FORMAT);
        w.u8(ROLES).u8(1).u8(roles_to_bits(self.roles));
        w.u8(WG_KEY).u8(32).put(&self.wg.0);
        for group in &self.groups {
            let name = group.as_str().as_bytes();
            w.u8(GROUP).u8(u8::try_from(name.len()).expect("a name has at most 63 characters")).put(name);
        }
        w.finish()
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        let mut r = Reader::new(bytes);
        let (mut roles, mut wg, mut groups) = (None, None, Vec::<GroupName>::new());
        if r.u8().map_err(malformed)? != FORMAT {
            return Err(CertError::Malformed);
        }
        let mut last = 0;
        while !r.is_empty() {
            let kind = r.u8().map_err(malformed)?;
            let length = r.u8().map_err(malformed)?;
            let value = r.take(length.into()).map_err(malformed)?;
            if kind < last || (kind == last && kind < FIRST_OPTIONAL && kind != GROUP) {
                return Err(CertError::Malformed);
            }
            last = kind;
            match (kind, value) {
                (ROLES, &[bits]) => roles = Some(roles_from_bits(bits)?),
                (WG_KEY, key) => wg = Some(WgPublic(key.try_into().map_err(malformed)?)),
                (GROUP, name) => {
                    let name: GroupName =
                        std::str::from_utf8(name).map_err(malformed)?.parse().map_err(malformed)?;
                    if groups.last().is_some_and(|last| *last >= name) || groups.len() == MAX_GROUPS {
                        return Err(CertError::Malformed);
                    }
                    groups.push(name);
                }
                (FIRST_OPTIONAL.., _) => {}
                _ => return Err(CertError::Malformed),
            }
        }
        let (Some(roles), Some(wg)) = (roles, wg) else {
            return Err(CertError::Malformed);
        };
        Ok(Self { roles, wg, groups })
    }
}

fn malformed<E>(_: E) -> CertError {
    CertError::Malformed
}

fn roles_to_bits(roles: Roles) -> u8 {
    u8::from(roles.member) | u8::from(roles.broker) << 1 | u8::from(roles.relay) << 2
}

/// No role at all is no certificate, and a role that we do not know may forbid what we know.
fn roles_from_bits(bits: u8) -> Result<Roles, CertError> {
    if bits == 0 || bits > 0b111 {
        return Err(CertError::Malformed);
    }
    Ok(Roles { member: bits & 1 != 0, broker: bits & 2 != 0, relay: bits & 4 != 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims() -> Claims {
        Claims {
            roles: Roles { member: true, broker: true, relay: false },
            wg: WgPublic([9; 32]),
            groups: vec!["admins".parse().unwrap(), "servers".parse().unwrap()],
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_drawing() {
        let bytes = claims().emit();
        assert_eq!(bytes[..6], [1, 1, 1, 0b011, 2, 32]);
        assert_eq!(bytes[38..46], *b"\x03\x06admins");
        assert_eq!(Claims::parse(&bytes), Ok(claims()));
    }

    #[test]
    fn a_cut_extension_is_refused_or_says_less_and_never_something_else() {
        let whole = claims();
        let bytes = whole.emit();
        for cut in 0..bytes.len() {
            if let Ok(read) = Claims::parse(&bytes[..cut]) {
                assert!(
                    whole.groups.starts_with(&read.groups) && read.groups.len() < whole.groups.len(),
                    "{cut}"
                );
            }
        }
    }

    #[test]
    fn what_must_not_be_ignored_is_refused() {
        let good = claims().emit();
        let with = |extra: &[u8]| [&good[..], extra].concat();
        for (what, bytes, readable) in [
            ("an optional field of the future", with(&[200, 1, 0]), true),
            ("a mandatory field of the future", with(&[4, 1, 0]), false),
            ("a field out of order", with(&[1, 1, 1]), false),
            ("a repeated group", with(b"\x03\x07servers"), false),
            ("groups out of order", with(b"\x03\x01a"), false),
            ("a name that is none", with(b"\x03\x01Z"), false),
            ("another format", [&[2], &good[1..]].concat(), false),
            ("no role", [&[1, 1, 1, 0], &good[4..]].concat(), false),
            ("an unknown role", [&[1, 1, 1, 8], &good[4..]].concat(), false),
            ("no key", good[..4].to_vec(), false),
        ] {
            assert_eq!(Claims::parse(&bytes).is_ok(), readable, "{what}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_reads_back(bytes: Vec<u8>) {
            if let Ok(claims) = Claims::parse(&bytes) {
                prop_assert_eq!(Claims::parse(&claims.emit()), Ok(claims));
            }
        }
    }
}
