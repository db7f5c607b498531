//! How a machine comes into a network: the invite that a person carries, and the signing request that answers it.

use std::net::SocketAddr;

use super::WireError;
use crate::identity::keys::WgPublic;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;

/// What an invite says. As text: `ntcp1-` and base64url without padding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invite {
    /// The network it leads into.
    pub network: NetworkName,
    /// SHA-256 of the CA certificate: whoever answers must show that CA.
    pub ca: [u8; 32],
    /// One-use secret.
    pub secret: [u8; 32],
    /// Where brokers listen, TCP. At most 16.
    pub brokers: Vec<BrokerAddr>,
}

/// An address of a broker: literal or to be looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BrokerAddr {
    /// A literal address.
    Addr(SocketAddr),
    /// A host name and port.
    Host(String, u16),
}

/// "Sign this": made and self-signed by the machine that holds the keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SigningRequest {
    /// The wanted name.
    pub name: MemberName,
    /// Ed25519 public key.
    pub key: [u8; 32],
    /// X25519 public key.
    pub wg: WgPublic,
    /// Ed25519 over everything before it, by `key`: the requester holds it.
    pub signature: [u8; 64],
}

impl Invite {
    /// The token as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        String::new()
    }

    /// Reads a token, with white space around it forgiven.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn from_text(text: &str) -> Result<Self, WireError> {
        let _ = text;
        Err(WireError::Unknown)
    }
}

impl SigningRequest {
    /// The bytes that the signature covers.
    #[must_use]
    pub fn signed_part(name: &MemberName, key: &[u8; 32], wg: WgPublic) -> Vec<u8> {
        let _ = (name, key, wg);
        Vec::new()
    }

    /// The request's bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// Whatever is wrong with it; [`WireError::Integrity`] for the signature.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let _ = bytes;
        Err(WireError::Unknown)
    }
}
