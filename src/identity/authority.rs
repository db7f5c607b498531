//! The certificate authority of a network: the one key that says who belongs to it.

use std::net::Ipv6Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CidrSubnet;
use rcgen::CustomExtension;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::GeneralSubtree;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyUsagePurpose;
use rcgen::NameConstraints;
use rcgen::PublicKeyData;
use rcgen::SanType;
use rcgen::SerialNumber;
use rustls::pki_types::CertificateDer;

use crate::base::time::UnixTime;
use crate::identity::certificate::CLOCK_SKEW;
use crate::identity::certificate::CertError;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Roles;
use crate::identity::certificate::Serial;
use crate::identity::certificate::Subject;
use crate::identity::certificate::TrustAnchor;
use crate::identity::claims;
use crate::identity::claims::Claims;
use crate::identity::keys::SigningKey;
use crate::identity::names::NetworkName;
use crate::identity::revocation::RevocationList;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Life of the CA certificate. Replacing it means a new invite for every member, so it outlives the hardware.
pub const CA_LIFETIME: Duration = DAY.saturating_mul(20 * 365);
/// Life of a member's certificate; renewed over the broker at two thirds. Bounds how long a forgotten machine stays in.
pub const MEMBER_LIFETIME: Duration = DAY.saturating_mul(90);
/// Life of a broker's or relay's certificate: renewed by hand where the CA is kept offline.
pub const SERVER_LIFETIME: Duration = DAY.saturating_mul(365);

/// All unique local addresses that are assigned locally (RFC 4193 3.2). The network's own /64 cannot be named here: it is
/// made of the fingerprint of the certificate that this goes into.
const UNIQUE_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
const UNIQUE_LOCAL_LEN: u8 = 8;

/// Latest time that X.509 can write: the end of the year 9999 (RFC 5280 4.1.2.5).
const LAST_SECOND: u64 = 253_402_300_799;

/// A network's CA: its certificate and its private key.
#[derive(Clone, Debug)]
pub struct Authority {
    anchor: TrustAnchor,
    key: SigningKey,
}

impl Authority {
    /// Founds a network: makes the CA's key and its self-signed certificate. `prefix` is where members' IPv4 addresses
    /// will be, for as long as the network lives.
    #[must_use]
    pub fn create(network: &NetworkName, prefix: Ipv4Network, now: UnixTime) -> Self {
        Self::create_with(SigningKey::generate(), network, prefix, now)
    }

    /// The same with a key that exists already. The certificate is new, so the network is another one than before.
    #[must_use]
    pub fn create_with(key: SigningKey, network: &NetworkName, prefix: Ipv4Network, now: UnixTime) -> Self {
        let (not_before, not_after) = validity(now, CA_LIFETIME);
        let mut params = params(network.as_str(), Serial::generate(), not_before, not_after);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(ia5(&format!("ntcp://{network}")))];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![
                GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix(
                    prefix.network().octets(),
                    prefix.prefix(),
                )),
                GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(
                    UNIQUE_LOCAL.octets(),
                    UNIQUE_LOCAL_LEN,
                )),
            ],
            excluded_subtrees: Vec::new(),
        });
        let certificate = params.self_signed(&key).expect("all fields are set and the key is ours");
        let anchor = TrustAnchor::parse(certificate.der()).expect("what we write, we read");
        Self { anchor, key }
    }

    /// From a stored certificate and key.
    ///
    /// # Errors
    /// [`CertError::Malformed`] if the certificate is no CA's, [`CertError::WrongAuthority`] if the key is another's.
    pub fn from_parts(ca: &[u8], key: SigningKey) -> Result<Self, CertError> {
        let anchor = TrustAnchor::parse(ca)?;
        if anchor.key == key.public() { Ok(Self { anchor, key }) } else { Err(CertError::WrongAuthority) }
    }

    /// The public half, which everybody in the network holds.
    #[must_use]
    pub const fn anchor(&self) -> &TrustAnchor {
        &self.anchor
    }

    /// The private key, for storing it.
    #[must_use]
    pub const fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Signs that `subject` holds the Ed25519 key `key`. Both ends of the validity are inclusive; see [`validity`].
    ///
    /// # Errors
    /// [`CertError::WrongNetwork`] if the subject's URI names another network; [`CertError::Malformed`] if the subject
    /// contradicts itself: a member without addresses or with addresses of another network, no role, groups that are
    /// unsorted or more than [`MAX_GROUPS`](crate::identity::certificate::MAX_GROUPS), a validity that ends before it begins.
    pub fn sign(
        &self,
        subject: &Subject,
        key: &[u8; 32],
        serial: Serial,
        not_before: UnixTime,
        not_after: UnixTime,
    ) -> Result<Certificate, CertError> {
        if subject.uri.network != self.anchor.network {
            return Err(CertError::WrongNetwork);
        }
        let native = subject.addrs.is_none_or(|addrs| {
            self.anchor.is_assignable(addrs.v4) && addrs == self.anchor.overlay_addrs(addrs.v4)
        });
        if !native || not_after < not_before {
            return Err(CertError::Malformed);
        }
        let signed = self.issue(&member_params(subject, serial, not_before, not_after), key)?;
        // Reading it back refuses whatever no member would believe, before it leaves this machine.
        let certificate = self.anchor.verify(&signed, not_before)?;
        if certificate.subject == *subject { Ok(certificate) } else { Err(CertError::Malformed) }
    }

    pub(super) fn issue(&self, params: &CertificateParams, key: &[u8; 32]) -> Result<Vec<u8>, CertError> {
        let ca = CertificateDer::from(&self.anchor.der[..]);
        let issuer = Issuer::from_ca_cert_der(&ca, &self.key).map_err(|_| CertError::Malformed)?;
        let signed = params.signed_by(&HolderKey(*key), &issuer).map_err(|_| CertError::Malformed)?;
        Ok(signed.der().to_vec())
    }

    /// Signs a revocation list; [`RevocationList::parse_signed`] reads it.
    #[must_use]
    pub fn sign_revocations(&self, list: &RevocationList) -> Vec<u8> {
        let mut bytes = list.signed_part();
        let signature = self.key.sign(&bytes);
        bytes.extend_from_slice(&signature);
        bytes
    }
}

/// First and last moment of a certificate signed at `now` for `lifetime`. Begins [`CLOCK_SKEW`] early, because the TLS
/// library of somebody whose clock is late knows no tolerance.
#[must_use]
pub fn validity(now: UnixTime, lifetime: Duration) -> (UnixTime, UnixTime) {
    (UnixTime::from_secs(now.secs().saturating_sub(CLOCK_SKEW.as_secs())), now.plus(lifetime))
}

/// How long a certificate with these roles lives unless somebody says otherwise.
#[must_use]
pub const fn default_lifetime(roles: Roles) -> Duration {
    // A member that may relay lives like a member: what it mostly is.
    if roles.broker || roles.relay && !roles.member { SERVER_LIFETIME } else { MEMBER_LIFETIME }
}

/// What a certificate of `subject` says.
pub(super) fn member_params(
    subject: &Subject,
    serial: Serial,
    not_before: UnixTime,
    not_after: UnixTime,
) -> CertificateParams {
    let mut params = params(subject.uri.name.as_str(), serial, not_before, not_after);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if subject.roles.broker || subject.roles.relay {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.subject_alt_names.push(SanType::URI(ia5(&subject.uri.to_string())));
    params.subject_alt_names.extend(subject.roles.dns_names().map(|name| SanType::DnsName(ia5(name))));
    if let Some(addrs) = subject.addrs {
        params.subject_alt_names.push(SanType::IpAddress(addrs.v4.into()));
        params.subject_alt_names.push(SanType::IpAddress(addrs.v6.into()));
    }
    let claims = Claims { roles: subject.roles, wg: subject.wg, groups: subject.groups.clone() };
    params.custom_extensions = vec![CustomExtension::from_oid_content(&claims::OID, claims.emit())];
    params
}

fn params(name: &str, serial: Serial, not_before: UnixTime, not_after: UnixTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let date =
        |time: UnixTime| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(time.secs().min(LAST_SECOND));
    (params.not_before, params.not_after) = (date(not_before), date(not_after));
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ia5(text: &str) -> rcgen::string::Ia5String {
    text.try_into().expect("names are ASCII")
}

/// The key that goes into a certificate.
struct HolderKey([u8; 32]);

impl PublicKeyData for HolderKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::server::WebPkiClientVerifier;

    use super::*;
    use crate::identity::certificate::BROKER_DNS;
    use crate::identity::certificate::RELAY_DNS;
    use crate::identity::keys::WgPublic;
    use crate::identity::names::MemberUri;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn founded() -> Authority {
        Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0)
    }

    fn subject(ca: &Authority) -> Subject {
        Subject {
            uri: MemberUri { network: ca.anchor().network.clone(), name: "nas".parse().unwrap() },
            roles: Roles::MEMBER,
            addrs: Some(ca.anchor().overlay_addrs(Ipv4Addr::new(10, 77, 0, 9))),
            groups: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            wg: WgPublic([8; 32]),
        }
    }

    #[test]
    fn an_authority_survives_its_files_and_rejects_a_foreign_key() {
        let ca = founded();
        let read = Authority::from_parts(&ca.anchor().der, ca.key().clone()).unwrap();
        assert_eq!(read.anchor().fingerprint(), ca.anchor().fingerprint());
        assert_eq!(read.anchor().network.as_str(), "home");
        assert_eq!(read.anchor().prefix.to_string(), "10.77.0.0/16");
        let foreign = Authority::from_parts(&ca.anchor().der, SigningKey::generate());
        assert_eq!(foreign.map(drop), Err(CertError::WrongAuthority));
    }

    #[test]
    fn an_authority_refuses_to_sign_what_contradicts_itself() {
        let ca = founded();
        let (from, until) = validity(T0, MEMBER_LIFETIME);
        let good = subject(&ca);
        let other = founded();
        let foreign_uri = MemberUri { network: "work".parse().unwrap(), ..good.uri.clone() };
        let groups = |n: u32| (0..n).map(|n| format!("g{n:02}").parse().unwrap()).collect::<Vec<_>>();
        for (what, subject, from, until, answer) in [
            ("a good one", good.clone(), from, until, Ok(())),
            ("as many groups as fit", Subject { groups: groups(32), ..good.clone() }, from, until, Ok(())),
            (
                "one group more",
                Subject { groups: groups(33), ..good.clone() },
                from,
                until,
                Err(CertError::Malformed),
            ),
            (
                "unsorted groups",
                Subject { groups: good.groups.iter().rev().cloned().collect(), ..good.clone() },
                from,
                until,
                Err(CertError::Malformed),
            ),
            (
                "another network",
                Subject { uri: foreign_uri, ..good.clone() },
                from,
                until,
                Err(CertError::WrongNetwork),
            ),
            (
                "another network's address",
                Subject { addrs: subject(&other).addrs, ..good.clone() },
                from,
                until,
                Err(CertError::Malformed),
            ),
            (
                "the prefix's own address",
                Subject {
                    addrs: Some(ca.anchor().overlay_addrs(Ipv4Addr::new(10, 77, 0, 0))),
                    ..good.clone()
                },
                from,
                until,
                Err(CertError::Malformed),
            ),
            (
                "an address outside of the prefix",
                Subject {
                    addrs: Some(ca.anchor().overlay_addrs(Ipv4Addr::new(10, 78, 0, 1))),
                    ..good.clone()
                },
                from,
                until,
                Err(CertError::Malformed),
            ),
            (
                "a member without address",
                Subject { addrs: None, ..good.clone() },
                from,
                until,
                Err(CertError::Malformed),
            ),
            (
                "a relay with address",
                Subject { roles: Roles::RELAY, ..good.clone() },
                from,
                until,
                Err(CertError::Malformed),
            ),
            (
                "no role",
                Subject { roles: Roles::default(), addrs: None, ..good.clone() },
                from,
                until,
                Err(CertError::Malformed),
            ),
            ("an end before the beginning", good.clone(), until, from, Err(CertError::Malformed)),
        ] {
            assert_eq!(
                ca.sign(&subject, &[3; 32], Serial::generate(), from, until).map(drop),
                answer,
                "{what}"
            );
        }
    }

    #[test]
    fn members_of_a_network_live_in_one_prefix_of_their_own() {
        let ca = founded();
        let prefix = ca.anchor().overlay_prefix_v6();
        let addrs = ca.anchor().overlay_addrs(Ipv4Addr::new(10, 77, 1, 2));
        assert_eq!((prefix.prefix(), prefix.ip().octets()[0]), (64, 0xfd));
        assert!(prefix.contains(addrs.v6));
        assert_eq!(addrs.v6.octets()[8..], [0, 0, 0, 0, 10, 77, 1, 2]);
        assert_eq!(prefix.ip().octets()[1..8], ca.anchor().fingerprint()[..7]);
        assert!(!founded().anchor().overlay_prefix_v6().contains(addrs.v6));
    }

    #[test]
    fn a_time_beyond_what_x509_can_write_is_the_last_that_it_can() {
        let ca = founded();
        let forever = T0.plus(Duration::MAX);
        let certificate = ca.sign(&subject(&ca), &[3; 32], Serial::generate(), T0, forever).unwrap();
        assert_eq!(certificate.not_after.secs(), LAST_SECOND);
    }

    /// A TLS handshake in memory at `T0`: `holder` serves and is asked for as `name`. What the client says of it.
    fn handshake(ca: &Authority, holder: Roles, name: &'static str) -> Result<(), rustls::Error> {
        let key = SigningKey::generate();
        let mut subject = Subject { roles: holder, ..subject(ca) };
        subject.addrs = subject.addrs.filter(|_| holder.member);
        let (from, until) = validity(T0, MEMBER_LIFETIME);
        let certificate = ca.sign(&subject, &key.public(), Serial::generate(), from, until).unwrap();
        let pkcs8 = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_pkcs8_der().to_vec()));
        let chain = || vec![CertificateDer::from(certificate.der.clone())];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(ca.anchor().der.clone())).unwrap();
        let roots = Arc::new(roots);
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let server = rustls::ServerConfig::builder_with_details(provider.clone(), Arc::new(Standstill))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain(), pkcs8())
            .unwrap();
        let client = rustls::ClientConfig::builder_with_details(provider, Arc::new(Standstill))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain(), pkcs8())
            .unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name.try_into().unwrap()).unwrap();
        while server.is_handshaking() || client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().expect("the client's certificate is as good as any member's");
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[derive(Debug)]
    struct Standstill;

    impl rustls::time_provider::TimeProvider for Standstill {
        fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
            Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(T0.secs())))
        }
    }

    #[test]
    fn tls_itself_refuses_whoever_stands_in_a_brokers_place() {
        let ca = founded();
        let all = Roles { member: true, broker: true, relay: true };
        for (holder, name, believed) in [
            (Roles::BROKER, BROKER_DNS, true),
            (Roles::RELAY, RELAY_DNS, true),
            (all, BROKER_DNS, true),
            (Roles::MEMBER, BROKER_DNS, false),
            (Roles::RELAY, BROKER_DNS, false),
            (Roles::BROKER, RELAY_DNS, false),
        ] {
            assert_eq!(handshake(&ca, holder, name).is_ok(), believed, "{holder} as {name}");
        }
    }
}
