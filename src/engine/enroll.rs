//! Redeeming an invite: the only time when a machine without a certificate talks to a broker.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use tokio::io::AsyncWriteExt as _;

use crate::base::hidden::Hidden;
use crate::config::proxy::Proxies;
use crate::engine::clock;
use crate::engine::dial;
use crate::engine::dial::First;
use crate::engine::framed::FrameReader;
use crate::engine::framed::write_frame;
use crate::engine::tls;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::TrustAnchor;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MAX_AUTHENTICATED;
use crate::wire::broker::Refusal;
use crate::wire::broker::ToBroker;
use crate::wire::enroll::Invite;
use crate::wire::enroll::SigningRequest;

/// How long the broker may take to answer: it signs, and waits for its disk.
const ANSWER: Duration = Duration::from_secs(15);

/// Why this machine is no member now. Each says what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnrollError {
    /// No broker of the invite could be reached; the text names each address and why.
    #[error("no broker of the invite could be reached: {0}")]
    Unreachable(String),
    /// Whoever answers is of another network than the invite.
    #[error(
        "the broker that answers is not the one of this invite ({0}): the network was created anew, or somebody is in \
         between; ask for a new invite"
    )]
    Foreign(String),
    /// Unknown, expired or used.
    #[error("the invite is not valid any more (expired or used): ask for a new one, `ntcp-overlay invite`")]
    InvalidInvite,
    /// Another machine has the name.
    #[error(
        "the name {0} is taken: choose another with --name, or let the administrator revoke the other machine"
    )]
    NameTaken(String),
    /// Any other refusal, in the broker's words.
    #[error("the broker at {0} refused: {1}")]
    Refused(String, String),
    /// The answer is missing or makes no sense. The same invite can be tried again.
    #[error("the broker at {0} gave no usable answer ({1}): try the same invite again")]
    NoAnswer(String, String),
}

/// Shows `invite` to one of its brokers and gets `request` signed. Answers whom to believe from now on and the own
/// certificate, which was checked. May be repeated with the same keys if the answer was lost.
///
/// # Errors
/// [`EnrollError`].
pub async fn redeem(
    invite: &Invite,
    request: &SigningRequest,
    proxies: &Proxies,
) -> Result<(TrustAnchor, Certificate), EnrollError> {
    let pin = Arc::new(PinnedCa { pin: invite.ca, seen: Mutex::new(None) });
    let servers: Arc<dyn ServerCertVerifier> = Arc::clone(&pin) as _;
    let config = tls::stranger(servers).map_err(|why| EnrollError::Unreachable(format!("{why:#}")))?;
    let First { stream, broker, .. } =
        dial::first(&invite.brokers, proxies, None, &config).await.map_err(|failures| {
            let summary = dial::summary(&failures);
            if summary.fatal {
                EnrollError::Foreign(summary.why)
            } else {
                EnrollError::Unreachable(summary.why)
            }
        })?;
    let nonsense = |why: &str| EnrollError::NoAnswer(broker.to_string(), why.to_owned());
    let ca = pin.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    let anchor =
        ca.and_then(|der| TrustAnchor::parse(&der).ok()).ok_or_else(|| nonsense("no CA in its chain"))?;
    if anchor.network != invite.network {
        return Err(EnrollError::Foreign(format!("it serves the network {}", anchor.network)));
    }

    let (read, mut write) = tokio::io::split(stream);
    let question = ToBroker::Redeem { secret: Hidden(invite.secret), request: request.emit() };
    let mut reader = FrameReader::new(read, MAX_AUTHENTICATED);
    let exchange = async {
        write_frame(&mut write, &question.emit()).await?;
        reader.next().await
    };
    let answer = tokio::time::timeout(ANSWER, exchange).await;
    let bytes = match answer {
        Err(_) => return Err(nonsense("it took too long")),
        Ok(Err(error)) => return Err(nonsense(&dial::failure(&broker, &error).why)),
        Ok(Ok(None)) => return Err(nonsense("it closed the connection")),
        Ok(Ok(Some(bytes))) => bytes,
    };
    let _ = write.shutdown().await;
    match FromBroker::parse(&bytes) {
        Ok(FromBroker::Enrolled { certificate }) => {
            let certificate = check(&anchor, &certificate, request).map_err(|why| nonsense(&why))?;
            Ok((anchor, certificate))
        }
        Ok(FromBroker::Refused { why: Refusal::InvalidInvite, .. }) => Err(EnrollError::InvalidInvite),
        Ok(FromBroker::Refused { why: Refusal::NameTaken, .. }) => {
            Err(EnrollError::NameTaken(request.name.to_string()))
        }
        Ok(FromBroker::Refused { text, .. }) => Err(EnrollError::Refused(broker.to_string(), text)),
        Ok(_) => Err(nonsense("it answered another question")),
        Err(why) => Err(nonsense(&why.to_string())),
    }
}

/// The certificate must be the network's and carry our keys; the name is the broker's to decide.
fn check(anchor: &TrustAnchor, der: &[u8], request: &SigningRequest) -> Result<Certificate, String> {
    let certificate =
        anchor.verify(der, clock::now().unix).map_err(|why| format!("our new certificate: {why}"))?;
    if certificate.key != request.key || certificate.subject.wg != request.wg {
        return Err("our new certificate is for other keys".to_owned());
    }
    Ok(certificate)
}

/// Believes a server whose chain holds the CA that the invite names, and is a broker under that CA.
#[derive(Debug)]
struct PinnedCa {
    pin: [u8; 32],
    seen: Mutex<Option<Vec<u8>>>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let foreign = || rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let matches = |der: &&CertificateDer<'_>| {
            ring::digest::digest(&ring::digest::SHA256, der).as_ref() == self.pin.as_slice()
        };
        let ca = intermediates.iter().find(matches).ok_or_else(foreign)?;
        let verifier = tls::verifier(ca).map_err(|_| foreign())?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca.to_vec());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never asked: TLS 1.2 is not even compiled in.
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
