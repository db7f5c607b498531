//! The signed list of certificates that are no longer believed.
//!
//! ```text
//! 0        8         16       24      26
//! +--------+---------+--------+-------+----------------- - -+--------------------+
//! | magic  | version | issued | count | count x 16 serials  | Ed25519 signature  |
//! +--------+---------+--------+-------+----------------- - -+--------------------+
//! ```
//!
//! `magic` is "NTCPREV1": it names the format and keeps the signature from being one of anything else. `version` and
//! `issued` (seconds since 1970) have 8 bytes, `count` has 2, all big-endian. Serials ascend, the first bit of each is 0.
//! The CA signs everything before the signature. Nothing follows.

use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::base::time::UnixTime;
use crate::identity::certificate::CertError;
use crate::identity::certificate::Serial;
use crate::identity::certificate::TrustAnchor;
use crate::identity::keys::verify_signature;

const MAGIC: &[u8; 8] = b"NTCPREV1";
const SIGNATURE_LEN: usize = 64;

/// Most serials in one list: so that it fits one message of 65,535 bytes with room for its header. Serials of expired
/// certificates leave the list.
pub const MAX_REVOKED: usize = 4_000;

/// Which certificates were taken back. Versions only grow; a member keeps the highest that it has seen, so an old list
/// cannot bring a revoked member back.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RevocationList {
    /// Grows by one with each revocation; 0 is the empty list that needs no signature.
    pub version: u64,
    /// When it was signed.
    pub issued: UnixTime,
    /// Sorted.
    pub serials: Vec<Serial>,
}

/// One more serial does not fit the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the revocation list is full ({MAX_REVOKED} certificates that have not expired yet)")]
pub struct TooManyRevoked;

impl RevocationList {
    /// Whether `serial` was taken back.
    #[must_use]
    pub fn contains(&self, serial: &Serial) -> bool {
        self.serials.binary_search(serial).is_ok()
    }

    /// Whether this list replaces `old`: versions alone decide, not clocks.
    #[must_use]
    pub const fn supersedes(&self, old: &Self) -> bool {
        self.version > old.version
    }

    /// The list after this one. `serials` are all that it shall hold: who knows which certificates have expired leaves
    /// those out.
    ///
    /// # Errors
    /// [`TooManyRevoked`] above [`MAX_REVOKED`].
    pub fn next(
        &self,
        issued: UnixTime,
        serials: impl IntoIterator<Item = Serial>,
    ) -> Result<Self, TooManyRevoked> {
        let mut serials: Vec<Serial> = serials.into_iter().collect();
        serials.sort_unstable();
        serials.dedup();
        if serials.len() > MAX_REVOKED {
            return Err(TooManyRevoked);
        }
        Ok(Self {
            version: self.version.saturating_add(1),
            issued: UnixTime::from_secs(issued.secs()),
            serials,
        })
    }

    /// The bytes that the CA signs; [`crate::identity::authority::Authority::sign_revocations`] adds the signature.
    pub(super) fn signed_part(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.put(MAGIC).u64(self.version).u64(self.issued.secs());
        w.u16(u16::try_from(self.serials.len()).unwrap_or(u16::MAX));
        for serial in &self.serials {
            w.put(&serial.0);
        }
        w.finish()
    }

    /// Reads a signed list (layout above and in `docs/protocol.md`).
    ///
    /// # Errors
    /// [`CertError::Malformed`], or [`CertError::WrongAuthority`] if the signature is not the CA's.
    pub fn parse_signed(bytes: &[u8], anchor: &TrustAnchor) -> Result<Self, CertError> {
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(CertError::Malformed)?;
        let list = Self::parse(signed)?;
        if verify_signature(&anchor.key, signed, signature) {
            Ok(list)
        } else {
            Err(CertError::WrongAuthority)
        }
    }

    fn parse(signed: &[u8]) -> Result<Self, CertError> {
        let mut r = Reader::new(signed);
        if r.array().map_err(malformed)? != *MAGIC {
            return Err(CertError::Malformed);
        }
        let version = r.u64().map_err(malformed)?;
        let issued = UnixTime::from_secs(r.u64().map_err(malformed)?);
        let count = usize::from(r.u16().map_err(malformed)?);
        if version == 0 || count > MAX_REVOKED || r.remaining() != count * 16 {
            return Err(CertError::Malformed);
        }
        let mut serials = Vec::with_capacity(count);
        while !r.is_empty() {
            serials.push(Serial(r.array().map_err(malformed)?));
        }
        let ascend = serials.is_sorted_by(|a, b| a < b);
        let positive = serials.iter().all(|serial| serial.0.first().is_some_and(|first| first & 0x80 == 0));
        if ascend && positive { Ok(Self { version, issued, serials }) } else { Err(CertError::Malformed) }
    }
}

fn malformed<E>(_: E) -> CertError {
    CertError::Malformed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::authority::Authority;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn serial(n: u8) -> Serial {
        Serial([n & 0x7f; 16])
    }

    fn authority() -> Authority {
        Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0)
    }

    #[test]
    fn a_revoked_member_stays_revoked_in_the_next_list() {
        let first = RevocationList::default().next(T0, [serial(9), serial(3), serial(9)]).unwrap();
        assert_eq!((first.version, first.serials.len()), (1, 2));
        let second = first.next(T0, first.serials.iter().copied().chain([serial(5)])).unwrap();
        assert!(second.supersedes(&first) && !first.supersedes(&second) && !first.supersedes(&first));
        assert!(second.contains(&serial(9)) && second.contains(&serial(5)) && !second.contains(&serial(4)));
    }

    #[test]
    fn a_signed_list_reads_back_and_only_under_its_own_ca() {
        let ca = authority();
        let list = RevocationList::default().next(T0, [serial(1), serial(2)]).unwrap();
        let bytes = ca.sign_revocations(&list);
        assert_eq!(bytes[..8], *MAGIC);
        assert_eq!(bytes[24..26], [0, 2]);
        assert_eq!(RevocationList::parse_signed(&bytes, ca.anchor()), Ok(list));
        assert_eq!(
            RevocationList::parse_signed(&bytes, authority().anchor()),
            Err(CertError::WrongAuthority)
        );
    }

    #[test]
    fn a_list_that_was_touched_anywhere_is_refused() {
        let ca = authority();
        let good = ca.sign_revocations(&RevocationList::default().next(T0, [serial(1), serial(2)]).unwrap());
        for at in 0..good.len() {
            assert!(RevocationList::parse_signed(&good[..at], ca.anchor()).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(RevocationList::parse_signed(&bad, ca.anchor()).is_err(), "flipped at {at}");
        }
        let longer = [&good[..], &[0]].concat();
        assert!(RevocationList::parse_signed(&longer, ca.anchor()).is_err());
    }

    #[test]
    fn even_the_ca_cannot_sign_an_unsorted_list_or_version_zero() {
        let ca = authority();
        for (what, version, serials) in [
            ("unsorted", 1, vec![serial(2), serial(1)]),
            ("repeated", 1, vec![serial(1), serial(1)]),
            ("negative", 1, vec![Serial([0xff; 16])]),
            ("version 0", 0, vec![]),
            (
                "too long",
                1,
                (0..=u16::try_from(MAX_REVOKED).unwrap())
                    .map(|n| {
                        let [a, b] = n.to_be_bytes();
                        Serial([0, a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                    })
                    .collect(),
            ),
        ] {
            let bytes = ca.sign_revocations(&RevocationList { version, issued: T0, serials });
            assert_eq!(
                RevocationList::parse_signed(&bytes, ca.anchor()),
                Err(CertError::Malformed),
                "{what}"
            );
        }
    }

    #[test]
    fn a_full_list_says_so() {
        let many = (0..=u16::try_from(MAX_REVOKED).unwrap()).map(|n| {
            let mut bytes = [0; 16];
            bytes[14..].copy_from_slice(&n.to_be_bytes());
            Serial(bytes)
        });
        assert_eq!(RevocationList::default().next(T0, many), Err(TooManyRevoked));
    }

    proptest! {
        #[test]
        fn every_list_reads_back(version in 0..u64::MAX, bytes: Vec<[u8; 16]>) {
            let ca = authority();
            let base = RevocationList { version, ..Default::default() };
            let list = base.next(T0, bytes.into_iter().map(Serial::from_random)).unwrap();
            prop_assert_eq!(RevocationList::parse_signed(&ca.sign_revocations(&list), ca.anchor()), Ok(list));
        }

        #[test]
        fn garbage_is_refused(mut bytes: Vec<u8>, with_magic: bool) {
            if with_magic {
                bytes.splice(0..0, *MAGIC);
            }
            prop_assert!(RevocationList::parse_signed(&bytes, authority().anchor()).is_err());
        }
    }
}
