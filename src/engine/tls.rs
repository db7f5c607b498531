//! How this network speaks TLS: version 1.3, one protocol name, its own CA and nothing of the system's.

use std::sync::Arc;

use anyhow::Context as _;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::ServerName;
use rustls::server::Accepted;
use rustls::server::Acceptor;
use rustls::server::NoServerSessionStorage;
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;

use crate::identity::certificate::BROKER_DNS;
use crate::identity::certificate::RELAY_DNS;
use crate::identity::credentials::Credentials;

/// Name of the protocol inside TLS (RFC 7301). A hello without it is not for us and gets no answer.
pub const ALPN: &[u8] = b"ntcp/1";

/// Name of the relay's protocol inside TLS: the frames that it speaks on plain TCP.
pub const RELAY_ALPN: &[u8] = b"ntcp-relay/1";

/// Largest client hello, bytes: ours has below 500, one with post-quantum key shares some 2,000.
const MAX_HELLO: usize = 16_384;

/// Exporter label (RFC 8446 7.5) of the key that a UDP registration is authenticated with.
pub const REGISTRATION_LABEL: &[u8] = b"EXPORTER-ntcp-udp-registration";

/// A broker's side. Clients may come without a certificate, to redeem an invite. Nothing is resumed: each connection
/// proves its certificate anew.
///
/// # Errors
/// If the credentials do not fit together.
pub fn server(credentials: &Credentials) -> anyhow::Result<Arc<ServerConfig>> {
    // No list of CAs in the certificate request: a stranger need not learn whose broker this is before it says hello.
    let clients = WebPkiClientVerifier::builder_with_provider(roots(&credentials.anchor.der)?, provider())
        .clear_root_hint_subjects()
        .allow_unauthenticated()
        .build()
        .context("cannot check clients with this CA")?;
    let (chain, key) = identity(credentials);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("no TLS 1.3")?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .context("the broker's certificate does not fit its key")?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A relay's side. Who may use it is the tokens' matter, so nobody is asked for a certificate.
///
/// # Errors
/// If the credentials do not fit together.
pub fn relay_server(credentials: &Credentials) -> anyhow::Result<Arc<ServerConfig>> {
    let (chain, key) = identity(credentials);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("no TLS 1.3")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the relay's certificate does not fit its key")?;
    config.alpn_protocols = vec![RELAY_ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A member's side towards a relay under the CA `ca` (DER).
///
/// # Errors
/// If `ca` is no CA certificate.
pub fn relay_client(ca: &[u8]) -> anyhow::Result<Arc<ClientConfig>> {
    let mut config = stranger(verifier(ca)?)?;
    Arc::make_mut(&mut config).alpn_protocols = vec![RELAY_ALPN.to_vec()];
    Ok(config)
}

/// Reads a client hello; `None` for anything else, which gets no byte in answer.
pub async fn hello<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Accepted> {
    let mut acceptor = Acceptor::default();
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        total += read;
        let mut bytes = buffer.get(..read)?;
        while !bytes.is_empty() {
            acceptor.read_tls(&mut bytes).ok().filter(|taken| *taken > 0)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Some(accepted),
            Ok(None) if total <= MAX_HELLO => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Whether a hello asks for this protocol.
#[must_use]
pub fn asks_for(hello: &Accepted, protocol: &[u8]) -> bool {
    hello.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == protocol))
}

/// A member's or relay's side towards a broker.
///
/// # Errors
/// If the credentials do not fit together.
pub fn client(credentials: &Credentials) -> anyhow::Result<Arc<ClientConfig>> {
    let servers = verifier(&credentials.anchor.der)?;
    let (chain, key) = identity(credentials);
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("no TLS 1.3")?
        .dangerous()
        .with_custom_certificate_verifier(servers)
        .with_client_auth_cert(chain, key)
        .context("the certificate does not fit its key")?;
    Ok(finish(config))
}

/// Somebody without a certificate, who believes what `servers` believes.
///
/// # Errors
/// If this build has no TLS 1.3: never.
pub fn stranger(servers: Arc<dyn ServerCertVerifier>) -> anyhow::Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("no TLS 1.3")?
        .dangerous()
        .with_custom_certificate_verifier(servers)
        .with_no_client_auth();
    Ok(finish(config))
}

/// The check of a server's certificate against the CA `ca` (DER): the ordinary one of webpki, with one root.
///
/// # Errors
/// If `ca` is no CA certificate.
pub fn verifier(ca: &[u8]) -> anyhow::Result<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider())
        .build()
        .context("cannot check servers with this CA")
}

/// The name that a broker's certificate must carry.
#[must_use]
pub fn broker_name() -> ServerName<'static> {
    ServerName::try_from(BROKER_DNS).expect("the constant is a DNS name")
}

/// The name that a relay's certificate must carry.
#[must_use]
pub fn relay_name() -> ServerName<'static> {
    ServerName::try_from(RELAY_DNS).expect("the constant is a DNS name")
}

/// The one cryptography provider.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn roots(ca: &[u8]) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.to_vec())).context("not a CA certificate")?;
    Ok(Arc::new(roots))
}

/// The chain with the CA in it, because an invite pins the CA by its hash and the guest must see it.
fn identity(credentials: &Credentials) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = [&credentials.certificate.der, &credentials.anchor.der];
    let key = PrivatePkcs8KeyDer::from(credentials.key.to_pkcs8_der().to_vec());
    (chain.map(|der| CertificateDer::from(der.clone())).to_vec(), PrivateKeyDer::from(key))
}
