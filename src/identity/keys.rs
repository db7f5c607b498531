//! The two key pairs of every identity: X25519 for WireGuard's handshake and what is derived from it, Ed25519 for TLS and
//! signatures.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use ring::rand::SecureRandom as _;
use ring::signature::Ed25519KeyPair;
use ring::signature::KeyPair as _;
use zeroize::ZeroizeOnDrop;
use zeroize::Zeroizing;

use crate::identity::pem;

/// A text is no key: 32 bytes in base64 are 44 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: expected 44 characters of base64")]
pub struct BadKey;

/// Not an Ed25519 key in PKCS#8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 private key (PEM, \"BEGIN PRIVATE KEY\")")]
pub struct BadSigningKey;

/// An X25519 secret. Wiped when dropped; its `Debug` shows nothing.
#[derive(Clone, ZeroizeOnDrop)]
pub struct WgSecret([u8; 32]);

/// An X25519 public key: a member's identity towards other members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WgPublic(pub [u8; 32]);

impl WgSecret {
    /// A new key from the system's generator.
    #[must_use]
    pub fn generate() -> Self {
        Self(system_random())
    }

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

    /// As WireGuard writes keys: base64, for the key file.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
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
        self.derive_all(peer, label, [context]).map(|[key]| key)
    }

    /// As [`Self::derive`], for several contexts at the price of one Diffie-Hellman.
    #[must_use]
    pub fn derive_all<const N: usize>(
        &self,
        peer: WgPublic,
        label: &[u8],
        contexts: [&[u8]; N],
    ) -> Option<[[u8; 32]; N]> {
        expand(&self.shared_with(peer)?, label, contexts)
    }
}

/// HKDF-SHA256: one key per context.
pub(super) fn expand<const N: usize>(
    shared: &[u8; 32],
    label: &[u8],
    contexts: [&[u8]; N],
) -> Option<[[u8; 32]; N]> {
    let prk = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, label).extract(shared);
    let mut keys = [[0; 32]; N];
    for (key, context) in keys.iter_mut().zip(contexts) {
        prk.expand(&[context], ring::hkdf::HKDF_SHA256).and_then(|okm| okm.fill(key)).ok()?;
    }
    Some(keys)
}

impl fmt::Debug for WgSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WgSecret(hidden)")
    }
}

/// An Ed25519 private key (RFC 8032), kept as its 32-byte seed. Wiped when dropped; its `Debug` shows nothing.
#[derive(Clone, ZeroizeOnDrop)]
pub struct SigningKey {
    seed: [u8; 32],
    #[zeroize(skip)]
    public: [u8; 32],
}

/// PKCS#8 v1 around an Ed25519 seed (RFC 8410 7): everything before the seed is constant.
const PKCS8_PREFIX: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
const PKCS8_LABEL: &str = "PRIVATE KEY";

impl SigningKey {
    /// A new key from the system's generator.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_seed(&system_random())
    }

    /// The key that is a pure function of `seed` (RFC 8032 5.1.5).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let mut public = [0; 32];
        public.copy_from_slice(pair(seed).public_key().as_ref());
        Self { seed: *seed, public }
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Signs `message`. What is signed must say what it is: one key signs TLS handshakes, requests and tokens.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(pair(&self.seed).sign(message).as_ref());
        out
    }

    /// PKCS#8 in DER, as `rustls` takes it (`PrivatePkcs8KeyDer`).
    #[must_use]
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Vec::with_capacity(PKCS8_PREFIX.len() + self.seed.len());
        der.extend_from_slice(&PKCS8_PREFIX);
        der.extend_from_slice(&self.seed);
        Zeroizing::new(der)
    }

    /// PKCS#8 in PEM, as it stands in `identity.key`; `openssl pkey` reads it too.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode(PKCS8_LABEL, &self.to_pkcs8_der())
    }

    /// Reads PKCS#8 in DER, with or without the public key in it (versions 1 and 2).
    ///
    /// # Errors
    /// [`BadSigningKey`] for anything else, also for a public key that does not belong to the private one.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, BadSigningKey> {
        let checked = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| BadSigningKey)?;
        let seed = der.get(PKCS8_PREFIX.len()..).and_then(|rest| rest.first_chunk()).ok_or(BadSigningKey)?;
        let key = Self::from_seed(seed);
        if checked.public_key().as_ref() == key.public { Ok(key) } else { Err(BadSigningKey) }
    }

    /// Reads PKCS#8 in PEM.
    ///
    /// # Errors
    /// [`BadSigningKey`].
    pub fn from_pem(text: &str) -> Result<Self, BadSigningKey> {
        Self::from_pkcs8_der(&pem::decode(PKCS8_LABEL, text).ok_or(BadSigningKey)?)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(hidden)")
    }
}

impl rcgen::PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Self::sign(self, message).to_vec())
    }
}

/// Whether `signature` is `key`'s over `message` (Ed25519, RFC 8032 5.1.7).
#[must_use]
pub fn verify_signature(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key).verify(message, signature).is_ok()
}

/// Ring's pair lives only as long as one call, because it does not wipe itself. Rebuilding costs one multiplication.
fn pair(seed: &[u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32 bytes are an Ed25519 seed")
}

/// Bytes from the system's generator: for keys and serial numbers, which must not depend on a seed.
pub(super) fn system_random<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    ring::rand::SystemRandom::new()
        .fill(&mut out)
        .expect("getrandom(2) does not fail once the system has booted");
    out
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
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| BadKey)?);
    bytes.as_slice().try_into().map_err(|_| BadKey)
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
    fn a_signing_key_survives_its_file_and_signs_the_same() {
        let key = SigningKey::generate();
        let read = SigningKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(read.public(), key.public());
        let signature = read.sign(b"words");
        assert!(verify_signature(&key.public(), b"words", &signature));
        assert!(!verify_signature(&key.public(), b"other words", &signature));
        assert!(!verify_signature(&SigningKey::generate().public(), b"words", &signature));
        assert!(!verify_signature(&key.public(), b"words", &signature[..63]));
    }

    #[test]
    fn signatures_are_those_of_rfc_8032() {
        // RFC 8032 7.1, test 1.
        let key = SigningKey::from_seed(b"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60");
        assert_eq!(key.public()[..4], [0xd7, 0x5a, 0x98, 0x01]);
        assert_eq!(key.sign(b"")[..4], [0xe5, 0x56, 0x43, 0x00]);
    }

    #[test]
    fn ring_and_openssl_style_files_are_read_and_others_refused() {
        let key = SigningKey::generate();
        // Version 2, as `ring` writes it: the public key stands behind the private one.
        let mut v2 = b"\x30\x51\x02\x01\x01".to_vec();
        v2.extend_from_slice(&key.to_pkcs8_der()[5..]);
        v2.extend_from_slice(b"\x81\x21\x00");
        v2.extend_from_slice(&key.public());
        assert_eq!(SigningKey::from_pkcs8_der(&v2).map(|k| k.public()), Ok(key.public()));
        *v2.last_mut().unwrap() ^= 1;
        assert_eq!(SigningKey::from_pkcs8_der(&v2).map(|k| k.public()), Err(BadSigningKey));
        let der = key.to_pkcs8_der();
        for cut in 0..der.len() {
            assert!(SigningKey::from_pkcs8_der(&der[..cut]).is_err(), "{cut} bytes");
        }
        assert!(
            SigningKey::from_pem("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n")
                .is_err()
        );
        assert_eq!(format!("{key:?}"), "SigningKey(hidden)");
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
