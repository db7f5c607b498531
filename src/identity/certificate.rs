//! What a certificate of this network says, and when it is believed.

use std::fmt;
use std::time::Duration;

use crate::base::addr::OverlayAddrs;
use crate::base::time::UnixTime;
use crate::identity::keys::WgPublic;
use crate::identity::names::GroupName;
use crate::identity::names::MemberUri;
use crate::identity::names::NetworkName;

/// What a certificate's holder may be in the network; a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Roles {
    /// May join as a member: has overlay addresses.
    pub member: bool,
    /// May serve as a broker.
    pub broker: bool,
    /// May serve as a relay.
    pub relay: bool,
}

impl Roles {
    /// A plain member.
    pub const MEMBER: Self = Self { member: true, broker: false, relay: false };
    /// A broker and nothing else.
    pub const BROKER: Self = Self { member: false, broker: true, relay: false };
    /// A relay and nothing else.
    pub const RELAY: Self = Self { member: false, broker: false, relay: true };
}

/// A certificate's serial number: 16 random bytes, first bit clear (RFC 5280 4.1.2.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub [u8; 16]);

/// Whom a certificate is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// `ntcp://network/name`.
    pub uri: MemberUri,
    /// What the holder may be.
    pub roles: Roles,
    /// Present if and only if `roles.member`.
    pub addrs: Option<OverlayAddrs>,
    /// Sorted, without repetition.
    pub groups: Vec<GroupName>,
    /// The key of its tunnels and of its proofs towards relays.
    pub wg: WgPublic,
}

/// A parsed certificate. Parsing believes nothing: see [`TrustAnchor::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it is about.
    pub subject: Subject,
    /// Its number, by which it is revoked.
    pub serial: Serial,
    /// Valid from.
    pub not_before: UnixTime,
    /// Valid until.
    pub not_after: UnixTime,
    /// The Ed25519 key that TLS and signatures use.
    pub key: [u8; 32],
    /// The certificate itself.
    pub der: Vec<u8>,
}

/// Why a certificate is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Not X.509, or not what this network puts into one.
    #[error("not a certificate of an overlay network")]
    Malformed,
    /// The signature is not of the network's CA, or the chain is wrong.
    #[error("not signed by this network's CA")]
    WrongAuthority,
    /// Names another network.
    #[error("belongs to another network")]
    WrongNetwork,
    /// Past its end. Renew it, or set the clock.
    #[error("expired")]
    Expired,
    /// Before its beginning: one of the two clocks is off.
    #[error("not valid yet: is the clock right?")]
    NotYetValid,
    /// On the revocation list.
    #[error("revoked")]
    Revoked,
    /// The holder may not be what it claims to be.
    #[error("does not grant that role")]
    WrongRole,
}

/// How far two clocks may differ before a fresh certificate is "not valid yet".
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// The network's CA certificate, which everything is checked against.
#[derive(Clone)]
pub struct TrustAnchor {
    /// The network it speaks for.
    pub network: NetworkName,
    /// The CA certificate.
    pub der: Vec<u8>,
    /// The CA's Ed25519 key.
    pub key: [u8; 32],
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} #{})", self.subject.uri, self.serial)
    }
}

impl fmt::Debug for TrustAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustAnchor({})", self.network)
    }
}

impl Certificate {
    /// Reads a certificate without believing it.
    ///
    /// # Errors
    /// [`CertError::Malformed`] for anything that this network's CA would not have written.
    pub fn parse(der: &[u8]) -> Result<Self, CertError> {
        let _ = der;
        Err(CertError::Malformed)
    }
}

impl TrustAnchor {
    /// Reads the CA certificate itself.
    ///
    /// # Errors
    /// [`CertError::Malformed`] if it is no CA certificate of an overlay network.
    pub fn parse(der: &[u8]) -> Result<Self, CertError> {
        let _ = der;
        Err(CertError::Malformed)
    }

    /// SHA-256 of the CA certificate: what an invite pins.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &self.der).as_ref());
        out
    }

    /// Reads a certificate and believes it: signed by this CA, of this network, valid at `now`. Revocation is the
    /// caller's next question ([`crate::identity::revocation::RevocationList::contains`]).
    ///
    /// # Errors
    /// The first reason not to believe it.
    pub fn verify(&self, der: &[u8], now: UnixTime) -> Result<Certificate, CertError> {
        let _ = (der, now);
        Err(CertError::Malformed)
    }
}
