//! Everything that one machine needs to prove who it is, in one value.

use crate::identity::certificate::CertError;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::TrustAnchor;
use crate::identity::keys::SigningKey;
use crate::identity::keys::WgSecret;

/// A certificate, the CA that signed it, and the two private keys that belong to it.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Whom to believe.
    pub anchor: TrustAnchor,
    /// What the CA says about this machine.
    pub certificate: Certificate,
    /// For TLS and signatures.
    pub key: SigningKey,
    /// For tunnels and proofs towards relays.
    pub wg: WgSecret,
}

/// Why the parts do not make one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The certificate is not the anchor's.
    #[error("the certificate is not of this network's CA: {0}")]
    Authority(CertError),
    /// The certificate holds another Ed25519 key.
    #[error("the certificate belongs to another identity key")]
    SigningKey,
    /// The certificate holds another X25519 key.
    #[error("the certificate belongs to another WireGuard key")]
    WgKey,
}

impl Credentials {
    /// Puts the parts together. An expired certificate is let through, because its holder may renew it: ask
    /// [`TrustAnchor::verify`] whether it is valid now.
    ///
    /// # Errors
    /// [`Mismatch`] if the parts do not belong together.
    pub fn new(
        anchor: TrustAnchor,
        certificate: Certificate,
        key: SigningKey,
        wg: WgSecret,
    ) -> Result<Self, Mismatch> {
        anchor.verify(&certificate.der, certificate.not_before).map_err(Mismatch::Authority)?;
        if certificate.key != key.public() {
            return Err(Mismatch::SigningKey);
        }
        if certificate.subject.wg != wg.public() {
            return Err(Mismatch::WgKey);
        }
        Ok(Self { anchor, certificate, key, wg })
    }
}
