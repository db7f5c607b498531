//! When a certificate may be exchanged for a fresh one: same holder, same rights, old enough.

use crate::base::time::UnixTime;
use crate::identity::certificate::Certificate;
use crate::wire::broker::Refusal;
use crate::wire::enroll::SigningRequest;

/// A certificate past this share of its life may be renewed; early enough that a broker may be down for weeks of a
/// certificate that lives 90 days.
pub const RENEW_AFTER: (u64, u64) = (1, 3);

/// Whether `certificate` has lived long enough to be renewed at `now`.
#[must_use]
pub fn is_due(certificate: &Certificate, now: UnixTime) -> bool {
    let life = certificate.not_after.since(certificate.not_before).as_secs();
    let lived = now.since(certificate.not_before).as_secs();
    lived.saturating_mul(RENEW_AFTER.1) >= life.saturating_mul(RENEW_AFTER.0)
}

/// Whether the holder of `current` may have a fresh certificate for the same subject.
///
/// # Errors
/// Why not, and the same in words.
pub fn check(
    current: &Certificate,
    request: &SigningRequest,
    now: UnixTime,
) -> Result<(), (Refusal, &'static str)> {
    if request.name != current.subject.uri.name {
        return Err((Refusal::Forbidden, "a renewal keeps the name; enrol anew for another one"));
    }
    if request.key != current.key || request.wg != current.subject.wg {
        return Err((Refusal::Forbidden, "a renewal keeps the keys; enrol anew for other ones"));
    }
    if !is_due(current, now) {
        return Err((Refusal::TooMany, "the certificate is fresh enough"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::tests::certificate;
    use crate::identity::keys::WgPublic;

    #[test]
    fn only_the_holder_renews_and_only_past_a_third_of_the_life() {
        let cert = certificate("anna", 1);
        let request = SigningRequest {
            name: "anna".parse().unwrap(),
            key: cert.key,
            wg: cert.subject.wg,
            signature: [0; 64],
        };
        let at = |share: f64| {
            let life = cert.not_after.since(cert.not_before);
            cert.not_before.plus(life.mul_f64(share))
        };
        let other_key = SigningRequest { key: [7; 32], ..request.clone() };
        let other_wg = SigningRequest { wg: WgPublic([7; 32]), ..request.clone() };
        let other_name = SigningRequest { name: "bert".parse().unwrap(), ..request.clone() };
        for (case, request, share, wanted) in [
            ("fresh", &request, 0.3, Err(Refusal::TooMany)),
            ("past a third", &request, 0.34, Ok(())),
            ("at the end", &request, 0.99, Ok(())),
            ("another key", &other_key, 0.5, Err(Refusal::Forbidden)),
            ("another WireGuard key", &other_wg, 0.5, Err(Refusal::Forbidden)),
            ("another name", &other_name, 0.5, Err(Refusal::Forbidden)),
        ] {
            assert_eq!(check(&cert, request, at(share)).map_err(|(why, _)| why), wanted, "{case}");
        }
    }
}
