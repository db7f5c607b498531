//! The X25519 pair that WireGuard's handshake uses, and what is derived from it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use zeroize::ZeroizeOnDrop;

/// A text is no key: 32 bytes in base64 are 44 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: expected 44 characters of base64")]
pub struct BadKey;

/// An X25519 secret. Wiped when dropped; its `Debug` shows nothing.
#[derive(Clone, ZeroizeOnDrop)]
pub struct WgSecret([u8; 32]);

/// An X25519 public key: a member's identity towards other members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WgPublic(pub [u8; 32]);

impl WgSecret {
    /// From 32 random bytes (or a stored key).
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for storing and for the tunnel.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> WgPublic {
        WgPublic(x25519::PublicKey::from(&x25519::StaticSecret::from(self.0)).to_bytes())
    }

    /// The static-static Diffie-Hellman secret with `peer`: known to both members and to nobody between them. `None`
    /// for a public key of low order, which would make the secret predictable (RFC 7748 6.1).
    #[must_use]
    pub fn shared_with(&self, peer: WgPublic) -> Option<[u8; 32]> {
        let shared =
            x25519::StaticSecret::from(self.0).diffie_hellman(&x25519::PublicKey::from(peer.0)).to_bytes();
        (shared != [0; 32]).then_some(shared)
    }

    /// The key with which the two holders authenticate what is not WireGuard's: HKDF-SHA256 (RFC 5869) over the
    /// static-static secret, one key per `label` (what for) and `context` (which attempt, which session).
    #[must_use]
    pub fn derive(&self, peer: WgPublic, label: &[u8], context: &[u8]) -> Option<[u8; 32]> {
        let shared = self.shared_with(peer)?;
        let prk = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, label).extract(&shared);
        let mut key = [0; 32];
        prk.expand(&[context], ring::hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).ok()?;
        Some(key)
    }
}

impl fmt::Debug for WgSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WgSecret(hidden)")
    }
}

impl fmt::Display for WgPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WgPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.8}", STANDARD.encode(self.0))
    }
}

fn parse_base64(text: &str) -> Result<[u8; 32], BadKey> {
    STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(BadKey)
}

impl FromStr for WgPublic {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        parse_base64(text).map(Self)
    }
}

impl FromStr for WgSecret {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        parse_base64(text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_derive_the_same_key_and_another_label_gives_another() {
        let (a, b) = (WgSecret::new([1; 32]), WgSecret::new([2; 32]));
        let ab = a.derive(b.public(), b"probe", b"x").unwrap();
        assert_eq!(Some(ab), b.derive(a.public(), b"probe", b"x"));
        assert_ne!(Some(ab), a.derive(b.public(), b"relay", b"x"));
        assert_ne!(Some(ab), a.derive(b.public(), b"probe", b"y"));
    }

    #[test]
    fn a_key_of_low_order_gives_no_secret() {
        assert_eq!(WgSecret::new([1; 32]).shared_with(WgPublic([0; 32])), None);
    }

    #[test]
    fn keys_are_written_as_wireguard_writes_them() {
        let text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        let key: WgPublic = text.parse().unwrap();
        assert_eq!(key.to_string(), text);
        assert_eq!("abc".parse::<WgPublic>(), Err(BadKey));
        assert_eq!(format!("{:?}", WgSecret::new([7; 32])), "WgSecret(hidden)");
    }
}
