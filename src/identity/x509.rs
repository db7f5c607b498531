//! Reading X.509: the parts that certificates of this network have, each in exactly one way. Whatever else a certificate
//! could say in that place makes it unreadable.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnetwork::Ipv4Network;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::extensions::NameConstraints;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use crate::base::addr::OverlayAddrs;
use crate::base::time::UnixTime;
use crate::identity::certificate::CertError;
use crate::identity::certificate::MAX_DER;
use crate::identity::certificate::Serial;
use crate::identity::names::MemberUri;

/// What stands in the subject alternative names: one URI, a member's two addresses, the DNS names of its server roles.
pub(super) struct Names<'a> {
    pub(super) uri: MemberUri,
    pub(super) addrs: Option<OverlayAddrs>,
    pub(super) dns: Vec<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn read(names: &[GeneralName<'a>]) -> Result<Self, CertError> {
        let (mut uri, mut v4, mut v6, mut dns) = (None, None, None, Vec::new());
        for name in names {
            match *name {
                GeneralName::URI(text) => set_once(&mut uri, text.parse().map_err(malformed)?)?,
                GeneralName::DNSName(name) => dns.push(name),
                GeneralName::IPAddress(bytes) => {
                    match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
                        (Ok(bytes), _) => set_once(&mut v4, Ipv4Addr::from(bytes))?,
                        (_, Ok(bytes)) => set_once(&mut v6, Ipv6Addr::from(bytes))?,
                        _ => return Err(CertError::Malformed),
                    }
                }
                _ => return Err(CertError::Malformed),
            }
        }
        let addrs = match (v4, v6) {
            (Some(v4), Some(v6)) => Some(OverlayAddrs { v4, v6 }),
            (None, None) => None,
            _ => return Err(CertError::Malformed),
        };
        Ok(Self { uri: uri.ok_or(CertError::Malformed)?, addrs, dns })
    }
}

/// The one IPv4 prefix among the permitted names.
pub(super) fn permitted_v4(constraints: &NameConstraints<'_>) -> Option<Ipv4Network> {
    let mut found = None;
    for subtree in constraints.permitted_subtrees.as_ref()? {
        let GeneralName::IPAddress(bytes) = subtree.base else { return None };
        if let Ok([a, b, c, d, mask @ ..]) = <[u8; 8]>::try_from(bytes) {
            let prefix = Ipv4Network::with_netmask(Ipv4Addr::new(a, b, c, d), Ipv4Addr::from(mask)).ok()?;
            set_once(&mut found, prefix).ok()?;
        }
    }
    found
}

pub(super) fn read_x509(der: &[u8]) -> Result<X509Certificate<'_>, CertError> {
    if der.len() > MAX_DER {
        return Err(CertError::Malformed);
    }
    match X509Certificate::from_der(der) {
        Ok((&[], x509)) if x509.version() == X509Version::V3 => Ok(x509),
        _ => Err(CertError::Malformed),
    }
}

/// The certificate's key, if key and signature are both Ed25519 (RFC 8410: same identifier, no parameters).
pub(super) fn ed25519_key(x509: &X509Certificate<'_>) -> Result<[u8; 32], CertError> {
    let spki = x509.public_key();
    if spki.algorithm.algorithm != OID_SIG_ED25519 || x509.signature_algorithm.algorithm != OID_SIG_ED25519 {
        return Err(CertError::Malformed);
    }
    spki.subject_public_key.data.as_ref().try_into().map_err(malformed)
}

/// A positive number of at most 16 bytes.
pub(super) fn read_serial(raw: &[u8]) -> Result<Serial, CertError> {
    let mut serial = [0; 16];
    let at = serial.len().checked_sub(raw.len()).ok_or(CertError::Malformed)?;
    serial.iter_mut().skip(at).zip(raw).for_each(|(to, from)| *to = *from);
    if raw.first().is_none_or(|first| first & 0x80 != 0) {
        Err(CertError::Malformed)
    } else {
        Ok(Serial(serial))
    }
}

pub(super) fn unix(time: ASN1Time) -> Result<UnixTime, CertError> {
    u64::try_from(time.timestamp()).map(UnixTime::from_secs).map_err(malformed)
}

pub(super) fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<(), CertError> {
    if slot.replace(value).is_some() { Err(CertError::Malformed) } else { Ok(()) }
}

fn malformed<E>(_: E) -> CertError {
    CertError::Malformed
}
