//! What a certificate of this network says, and when it is believed.
//!
//! | part of X.509 v3 | content |
//! |---|---|
//! | algorithms | Ed25519 for the signature and for the key (RFC 8410) |
//! | subject alternative name | URI `ntcp://network/name`; a member's overlay IPv4 and IPv6; DNS names of server roles |
//! | extended key usage | clientAuth; brokers and relays also serverAuth |
//! | extension 1.3.6.1.4.1.32473.6060.1 | roles, X25519 key, groups: see `claims.rs` |
//!
//! The CA's own certificate is self-signed and carries the URI `ntcp://network` and, as a name constraint (RFC 5280
//! 4.2.1.10), the network's IPv4 prefix and all unique local IPv6 addresses: no certificate of this CA can speak for an
//! address outside, and everybody who holds the CA certificate knows the prefix.

use std::fmt;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use ipnetwork::Ipv6Network;
use rustls::pki_types::CertificateDer;
use webpki::KeyUsage;
use x509_parser::extensions::GeneralName;
use x509_parser::extensions::ParsedExtension;

use crate::base::addr::OverlayAddrs;
use crate::base::time::UnixTime;
use crate::identity::claims;
use crate::identity::claims::Claims;
use crate::identity::keys::WgPublic;
use crate::identity::keys::system_random;
use crate::identity::keys::verify_signature;
use crate::identity::names::GroupName;
use crate::identity::names::MemberUri;
use crate::identity::names::NetworkName;
use crate::identity::x509;
use crate::identity::x509::Names;

/// DNS name in a broker's certificate. TLS clients ask for this name, whatever address they dialled: so it is TLS itself
/// that refuses a member's certificate in a broker's place.
pub const BROKER_DNS: &str = "broker.ntcp-overlay.internal";
/// DNS name in a relay's certificate.
pub const RELAY_DNS: &str = "relay.ntcp-overlay.internal";

/// Groups in one certificate. Keeps certificates small enough that an introduction with several fits one message.
pub const MAX_GROUPS: usize = 32;
/// Largest certificate, bytes: 32 groups of 63 characters and everything else fit into 3000.
pub const MAX_DER: usize = 4096;

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
    /// Where its members' IPv4 addresses are.
    pub prefix: Ipv4Network,
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

impl Roles {
    /// The DNS names that a certificate with these roles carries.
    pub fn dns_names(self) -> impl Iterator<Item = &'static str> {
        [(self.broker, BROKER_DNS), (self.relay, RELAY_DNS)]
            .into_iter()
            .filter_map(|(has, name)| has.then_some(name))
    }

    /// Whether every role in `wanted` is here.
    #[must_use]
    pub const fn include(self, wanted: Self) -> bool {
        (self.member || !wanted.member) && (self.broker || !wanted.broker) && (self.relay || !wanted.relay)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(self.member, "member"), (self.broker, "broker"), (self.relay, "relay")];
        for (nth, (_, name)) in names.iter().filter(|(has, _)| *has).enumerate() {
            write!(f, "{}{name}", if nth == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Serial {
    /// A new one from the system's generator.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_random(system_random())
    }

    /// From 16 random bytes: the first bit is cleared so that it is positive, the second set so that it is 16 bytes long
    /// in every encoding.
    #[must_use]
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Self(bytes)
    }
}

impl FromStr for Serial {
    type Err = CertError;
    /// 32 hexadecimal digits, as written by `Display`.
    fn from_str(text: &str) -> Result<Self, CertError> {
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(CertError::Malformed);
        }
        u128::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes())).map_err(malformed)
    }
}

impl Certificate {
    /// Reads a certificate without believing it.
    ///
    /// # Errors
    /// [`CertError::Malformed`] for anything that this network's CA would not have written.
    pub fn parse(der: &[u8]) -> Result<Self, CertError> {
        let cert = x509::read_x509(der)?;
        let key = x509::ed25519_key(&cert)?;
        let (mut names, mut claims) = (None, None);
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    x509::set_once(&mut names, Names::read(&san.general_names)?)?
                }
                ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::SubjectKeyIdentifier(_)
                | ParsedExtension::AuthorityKeyIdentifier(_) => {}
                ParsedExtension::BasicConstraints(basic) if !basic.ca => {}
                _ if extension.oid.as_bytes() == claims::OID_DER => {
                    x509::set_once(&mut claims, Claims::parse(extension.value)?)?;
                }
                _ if extension.critical => return Err(CertError::Malformed),
                _ => {}
            }
        }
        let names = names.ok_or(CertError::Malformed)?;
        let Claims { roles, wg, groups } = claims.ok_or(CertError::Malformed)?;
        if names.addrs.is_some() != roles.member || !names.dns.iter().copied().eq(roles.dns_names()) {
            return Err(CertError::Malformed);
        }
        Ok(Self {
            subject: Subject { uri: names.uri, roles, addrs: names.addrs, groups, wg },
            serial: x509::read_serial(cert.raw_serial())?,
            not_before: x509::unix(cert.validity().not_before)?,
            not_after: x509::unix(cert.validity().not_after)?,
            key,
            der: der.to_vec(),
        })
    }

    /// SHA-256 of the certificate, for people who compare.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// When to ask for the next one: at two thirds of its life, so that a broker may be away for the last third.
    #[must_use]
    pub fn renew_at(&self) -> UnixTime {
        self.not_before.plus(self.not_after.since(self.not_before) * 2 / 3)
    }

    /// Whether it is believed at `now` as far as time is concerned; for one whose signature was checked before.
    ///
    /// # Errors
    /// [`CertError::NotYetValid`] or [`CertError::Expired`].
    pub fn check_time(&self, now: UnixTime) -> Result<(), CertError> {
        if now.plus(CLOCK_SKEW) < self.not_before {
            return Err(CertError::NotYetValid);
        }
        if now > self.not_after {
            return Err(CertError::Expired);
        }
        Ok(())
    }
}

impl TrustAnchor {
    /// Reads the CA certificate itself.
    ///
    /// # Errors
    /// [`CertError::Malformed`] if it is no CA certificate of an overlay network.
    pub fn parse(der: &[u8]) -> Result<Self, CertError> {
        let cert = x509::read_x509(der)?;
        let key = x509::ed25519_key(&cert)?;
        let (mut network, mut prefix, mut is_ca) = (None, None, false);
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => match san.general_names[..] {
                    [GeneralName::URI(uri)] => {
                        let name = uri.strip_prefix("ntcp://").ok_or(CertError::Malformed)?;
                        x509::set_once(&mut network, name.parse().map_err(malformed)?)?;
                    }
                    _ => return Err(CertError::Malformed),
                },
                ParsedExtension::NameConstraints(constraints) => {
                    x509::set_once(
                        &mut prefix,
                        x509::permitted_v4(constraints).ok_or(CertError::Malformed)?,
                    )?;
                }
                ParsedExtension::BasicConstraints(basic) => is_ca = basic.ca,
                _ => {}
            }
        }
        let signed = verify_signature(&key, cert.tbs_certificate.as_ref(), &cert.signature_value.data);
        let usable = webpki::anchor_from_trusted_cert(&CertificateDer::from(der)).is_ok();
        if !(is_ca && signed && usable) {
            return Err(CertError::Malformed);
        }
        let (Some(network), Some(prefix)) = (network, prefix) else {
            return Err(CertError::Malformed);
        };
        Ok(Self { network, prefix, der: der.to_vec(), key })
    }

    /// SHA-256 of the CA certificate: what an invite pins.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// Reads a certificate and believes it: signed by this CA, of this network, valid at `now`. Revocation is the
    /// caller's next question ([`crate::identity::revocation::RevocationList::contains`]).
    ///
    /// # Errors
    /// The first reason not to believe it.
    pub fn verify(&self, der: &[u8], now: UnixTime) -> Result<Certificate, CertError> {
        let certificate = Certificate::parse(der)?;
        self.verify_chain(&certificate)?;
        if certificate.subject.uri.network != self.network {
            return Err(CertError::WrongNetwork);
        }
        certificate.check_time(now)?;
        Ok(certificate)
    }

    /// The signature and the usages, by the same code that checks TLS. Time is left out: it has its own two answers.
    fn verify_chain(&self, certificate: &Certificate) -> Result<(), CertError> {
        let (anchor, der) = (CertificateDer::from(&self.der[..]), CertificateDer::from(&certificate.der[..]));
        let anchors = [webpki::anchor_from_trusted_cert(&anchor).map_err(|_| CertError::WrongAuthority)?];
        let leaf = webpki::EndEntityCert::try_from(&der).map_err(malformed)?;
        let time =
            rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(certificate.not_before.secs()));
        let roles = certificate.subject.roles;
        let serves = roles.broker || roles.relay;
        for usage in [Some(KeyUsage::client_auth()), serves.then(KeyUsage::server_auth)].into_iter().flatten()
        {
            let path =
                leaf.verify_for_usage(&[webpki::ring::ED25519], &anchors, &[], time, usage, None, None);
            path.map_err(|error| match error {
                webpki::Error::RequiredEkuNotFoundContext(_) => CertError::WrongRole,
                _ => CertError::WrongAuthority,
            })?;
        }
        Ok(())
    }

    /// Whether a member may have that IPv4 address: in the prefix, and neither its first nor its last address, which the
    /// kernel takes for the network and for broadcasts.
    #[must_use]
    pub fn is_assignable(&self, v4: Ipv4Addr) -> bool {
        self.prefix.contains(v4) && v4 != self.prefix.network() && v4 != self.prefix.broadcast()
    }

    /// The network's IPv6 prefix: a unique local /64 (RFC 4193) made of the first 7 bytes of the CA's fingerprint.
    #[must_use]
    pub fn overlay_prefix_v6(&self) -> Ipv6Network {
        let [a, b, c, d, e, f, g, ..] = self.fingerprint();
        let prefix = u64::from_be_bytes([0xfd, a, b, c, d, e, f, g]);
        Ipv6Network::new(Ipv6Addr::from_bits(u128::from(prefix) << 64), 64)
            .expect("64 is a prefix length of IPv6")
    }

    /// The IPv6 address that goes with an IPv4 address: the IPv4 address in the low 32 bits.
    #[must_use]
    pub fn overlay_v6(&self, v4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.overlay_prefix_v6().ip().to_bits() | u128::from(v4.to_bits()))
    }

    /// Both addresses of the member with that IPv4 address.
    #[must_use]
    pub fn overlay_addrs(&self, v4: Ipv4Addr) -> OverlayAddrs {
        OverlayAddrs { v4, v6: self.overlay_v6(v4) }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    out
}

fn malformed<E>(_: E) -> CertError {
    CertError::Malformed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::BasicConstraints;
    use rcgen::CertificateParams;
    use rcgen::IsCa;
    use rcgen::SanType;

    use super::*;
    use crate::identity::authority::Authority;
    use crate::identity::authority::MEMBER_LIFETIME;
    use crate::identity::authority::member_params;
    use crate::identity::authority::validity;
    use crate::identity::keys::SigningKey;

    const T0: UnixTime = UnixTime::from_secs(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn founded(network: &str) -> Authority {
        Authority::create(&network.parse().unwrap(), "10.77.0.0/16".parse().unwrap(), T0)
    }

    fn subject(ca: &Authority, roles: Roles) -> Subject {
        Subject {
            uri: MemberUri { network: ca.anchor().network.clone(), name: "nas".parse().unwrap() },
            roles,
            addrs: roles.member.then(|| ca.anchor().overlay_addrs(Ipv4Addr::new(10, 77, 0, 9))),
            groups: vec!["admins".parse().unwrap(), "servers".parse().unwrap()],
            wg: WgPublic([8; 32]),
        }
    }

    fn signed(ca: &Authority, roles: Roles) -> Certificate {
        let (from, until) = validity(T0, MEMBER_LIFETIME);
        ca.sign(
            &subject(ca, roles),
            &SigningKey::from_seed(&[4; 32]).public(),
            Serial::generate(),
            from,
            until,
        )
        .unwrap()
    }

    #[test]
    fn what_the_ca_signed_is_what_a_member_reads() {
        let ca = founded("home");
        for roles in
            [Roles::MEMBER, Roles::BROKER, Roles::RELAY, Roles { member: true, broker: true, relay: true }]
        {
            let written = signed(&ca, roles);
            let read = ca.anchor().verify(&written.der, T0).unwrap();
            assert_eq!(read, written);
            assert_eq!(read.subject, subject(&ca, roles));
            assert_eq!(read.key, SigningKey::from_seed(&[4; 32]).public());
            assert_eq!((read.not_before, read.not_after), validity(T0, MEMBER_LIFETIME));
            let half = read.not_before.plus(MEMBER_LIFETIME / 2);
            assert!(half < read.renew_at() && read.renew_at() < read.not_after);
        }
    }

    #[test]
    fn a_certificate_is_believed_only_from_its_ca_and_in_its_time() {
        let (ca, impostor) = (founded("home"), founded("home"));
        let der = signed(&ca, Roles::MEMBER).der;
        let (from, until) = validity(T0, MEMBER_LIFETIME);
        let second = Duration::from_secs(1);
        let before_skew = UnixTime::from_secs(from.secs() - CLOCK_SKEW.as_secs());
        for (what, anchor, now, answer) in [
            ("now", ca.anchor(), T0, Ok(())),
            ("in its last second", ca.anchor(), until, Ok(())),
            ("after it", ca.anchor(), until.plus(second), Err(CertError::Expired)),
            ("by a clock that is a little late", ca.anchor(), before_skew, Ok(())),
            (
                "by a clock in the past",
                ca.anchor(),
                UnixTime::from_secs(before_skew.secs() - 1),
                Err(CertError::NotYetValid),
            ),
            ("by a clock at zero", ca.anchor(), UnixTime::default(), Err(CertError::NotYetValid)),
            ("another CA of the same name", impostor.anchor(), T0, Err(CertError::WrongAuthority)),
            ("another network", founded("work").anchor(), T0, Err(CertError::WrongAuthority)),
            ("another CA, and expired", impostor.anchor(), until.plus(HOUR), Err(CertError::WrongAuthority)),
        ] {
            assert_eq!(anchor.verify(&der, now).map(drop), answer, "{what}");
        }
    }

    #[test]
    fn a_ca_that_speaks_for_another_network_is_not_believed() {
        let ca = founded("home");
        let mut relabelled = ca.anchor().clone();
        relabelled.network = "work".parse().unwrap();
        let der = signed(&ca, Roles::MEMBER).der;
        assert_eq!(relabelled.verify(&der, T0), Err(CertError::WrongNetwork));
    }

    #[test]
    fn no_byte_of_a_certificate_can_be_changed_or_cut() {
        let ca = founded("home");
        let good = signed(&ca, Roles { member: true, broker: true, relay: false }).der;
        for at in 0..good.len() {
            assert!(Certificate::parse(&good[..at]).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(ca.anchor().verify(&bad, T0).is_err(), "flipped at {at}");
        }
        assert_eq!(Certificate::parse(&[&good[..], &[0]].concat()), Err(CertError::Malformed));
        let anchor = &ca.anchor().der;
        for at in 0..anchor.len() {
            assert!(TrustAnchor::parse(&anchor[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn certificates_with_something_missing_or_strange_are_refused() {
        let ca = founded("home");
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        type Twist<'a> = &'a dyn Fn(&mut CertificateParams);
        let cases: [(&str, Twist<'_>, Result<(), CertError>); 14] = [
            ("as it should be", &|_| {}, Ok(())),
            ("no extension of ours", &|p| p.custom_extensions.clear(), Err(CertError::Malformed)),
            (
                "an unreadable extension of ours",
                &|p| p.custom_extensions[0] = extension(&claims::OID),
                Err(CertError::Malformed),
            ),
            ("no names", &|p| p.subject_alt_names.clear(), Err(CertError::Malformed)),
            ("one address", &|p| drop(p.subject_alt_names.pop()), Err(CertError::Malformed)),
            ("two names", &|p| p.subject_alt_names.push(uri("ntcp://home/b")), Err(CertError::Malformed)),
            (
                "a foreign URI",
                &|p| p.subject_alt_names[0] = uri("http://home/nas"),
                Err(CertError::Malformed),
            ),
            ("the CA's URI", &|p| p.subject_alt_names[0] = uri("ntcp://home"), Err(CertError::Malformed)),
            (
                "an address outside of the network",
                &|p| {
                    *p.subject_alt_names.iter_mut().rev().nth(1).unwrap() =
                        SanType::IpAddress([10, 78, 0, 9].into())
                },
                Err(CertError::WrongAuthority),
            ),
            ("no DNS name for the role", &|p| drop(p.subject_alt_names.remove(1)), Err(CertError::Malformed)),
            (
                "another role's DNS name",
                &|p| p.subject_alt_names.push(SanType::DnsName(RELAY_DNS.try_into().unwrap())),
                Err(CertError::Malformed),
            ),
            ("a CA", &|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), Err(CertError::Malformed)),
            (
                "an unknown extension that must be understood",
                &|p| {
                    p.custom_extensions.push(extension(&[1, 2, 3]));
                    p.custom_extensions[1].set_criticality(true);
                },
                Err(CertError::Malformed),
            ),
            (
                "a broker that may not serve",
                &|p| drop(p.extended_key_usages.pop()),
                Err(CertError::WrongRole),
            ),
        ];
        for (what, twist, answer) in cases {
            let subject = subject(&ca, Roles { member: true, broker: true, relay: false });
            let mut params = member_params(&subject, Serial::generate(), T0, T0.plus(HOUR));
            twist(&mut params);
            let der = ca.issue(&params, &[5; 32]).unwrap();
            assert_eq!(ca.anchor().verify(&der, T0).map(drop), answer, "{what}");
        }
    }

    fn extension(oid: &[u64]) -> rcgen::CustomExtension {
        rcgen::CustomExtension::from_oid_content(oid, vec![5, 0])
    }

    #[test]
    fn a_member_is_no_anchor_and_an_anchor_no_member() {
        let ca = founded("home");
        assert_eq!(TrustAnchor::parse(&signed(&ca, Roles::MEMBER).der).map(drop), Err(CertError::Malformed));
        assert_eq!(Certificate::parse(&ca.anchor().der), Err(CertError::Malformed));
        assert_eq!(ca.anchor().verify(&ca.anchor().der, T0), Err(CertError::Malformed));
    }

    #[test]
    fn roles_and_serials_read_as_people_write_them() {
        assert_eq!(Roles { member: true, broker: false, relay: true }.to_string(), "member, relay");
        assert!(Roles { member: true, broker: true, relay: false }.include(Roles::BROKER));
        assert!(!Roles::MEMBER.include(Roles::BROKER));
        let serial = Serial::from_random([0xff; 16]);
        assert_eq!(serial.to_string(), "7fffffffffffffffffffffffffffffff");
        assert_eq!(serial.to_string().parse(), Ok(serial));
        assert_eq!("7f".parse::<Serial>(), Err(CertError::Malformed));
        assert_eq!("+fffffffffffffffffffffffffffffff".parse::<Serial>(), Err(CertError::Malformed));
    }

    proptest! {
        #[test]
        fn garbage_is_no_certificate(bytes: Vec<u8>) {
            prop_assert!(Certificate::parse(&bytes).is_err());
            prop_assert!(TrustAnchor::parse(&bytes).is_err());
        }

        #[test]
        fn a_certificate_with_bytes_replaced_is_refused_without_a_panic(
            at in 0..600_usize, bytes in prop::collection::vec(any::<u8>(), 1..8),
        ) {
            let ca = founded("home");
            let good = signed(&ca, Roles::MEMBER).der;
            let mut bad = good.clone();
            let at = at % (bad.len() - bytes.len());
            bad[at..at + bytes.len()].copy_from_slice(&bytes);
            prop_assert_eq!(ca.anchor().verify(&bad, T0).is_ok(), bad == good);
        }
    }
}
