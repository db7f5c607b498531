//! Reaching a broker: every address of every broker, a little apart, and the first that proves itself wins. Where a proxy
//! is to be used, a broker's name goes to it as it stands.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::AlertDescription;
use rustls::CertificateError;
use rustls::ClientConfig;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::base::addr::canonical;
use crate::config::proxy::Proxies;
use crate::config::proxy::Proxy;
use crate::engine::clock;
use crate::engine::proxy;
use crate::engine::proxy::ProxyError;
use crate::engine::tls;
use crate::engine::websocket;
use crate::identity::certificate::CLOCK_SKEW;
use crate::identity::certificate::CertError;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::TrustAnchor;
use crate::identity::credentials::Credentials;
use crate::wire::dress::Dress;
use crate::wire::enroll::BrokerAddr;

/// How long an address may take before the next one is tried beside it (RFC 8305 5 proposes 250 ms for TCP alone; here
/// TLS is part of it, at three round trips, and brokers are rarely many).
const STAGGER: Duration = Duration::from_millis(750);
/// How long one address may take in all: TCP gets two retransmissions of its SYN (1 s and 3 s).
pub(super) const GIVE_UP: Duration = Duration::from_secs(8);
/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(5);
/// Addresses tried in one round.
const MAX_ADDRESSES: usize = 32;
/// A connection whose bytes nobody acknowledges for so long is dead (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Unsent bytes that the kernel may hold: two frames of the data plane.
const NOTSENT_LOWAT: u32 = 128 << 10;

/// A stream of bytes, whatever it is made of.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Why no broker, or no further, in words that say what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// In words.
    pub why: String,
    /// Whether trying again is useless until a person does something.
    pub fatal: bool,
}

/// A connection to a broker that has shown a valid certificate.
pub struct Dialled {
    /// The connection.
    pub stream: TlsStream<Box<dyn Duplex>>,
    /// Its far end.
    pub broker: Reached,
    /// The broker's certificate.
    pub certificate: Certificate,
    /// Key of the UDP registrations that belong to it.
    pub registration_key: [u8; 32],
    /// Its near end.
    pub local: SocketAddr,
}

/// A TLS connection to whoever has the right certificate.
pub struct First {
    /// The connection.
    pub stream: TlsStream<Box<dyn Duplex>>,
    /// Its far end.
    pub broker: Reached,
    /// Its near end.
    pub local: SocketAddr,
}

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reached {
    /// The address, or the name where a proxy looked it up.
    pub at: BrokerAddr,
    /// The proxy in between.
    pub proxy: Option<Proxy>,
}

impl Reached {
    /// The far end's address, as far as this machine knows it.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        match &self.at {
            BrokerAddr::Addr(addr) => Some(*addr),
            BrokerAddr::Host(..) => None,
        }
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.proxy {
            None => write!(f, "{}", self.at),
            Some(proxy) => write!(f, "{} (through {proxy})", self.at),
        }
    }
}

/// Connects to the first of `brokers` that answers and is one of the network's; `favourite`, where it worked the last
/// time, is tried before the others.
///
/// # Errors
/// What went wrong with each address.
pub async fn dial(
    brokers: Vec<BrokerAddr>,
    proxies: Proxies,
    favourite: Option<BrokerAddr>,
    credentials: Credentials,
) -> Result<Dialled, Failure> {
    let now = clock::now().unix;
    match credentials.anchor.verify(&credentials.certificate.der, now) {
        Err(CertError::Expired) => {
            let why = "this machine's certificate has expired (or its clock is wrong): set the clock, or ask the \
                       administrator for an invite and run `up --join`";
            return Err(Failure { why: why.to_owned(), fatal: true });
        }
        Err(CertError::NotYetValid) => {
            let why = "this machine's certificate is not valid yet: its clock is late, set it";
            return Err(Failure { why: why.to_owned(), fatal: false });
        }
        _ => {}
    }
    let config = tls::client(&credentials).map_err(|why| Failure { why: format!("{why:#}"), fatal: true })?;
    let First { stream, broker, local } =
        first(&brokers, &proxies, favourite, &config).await.map_err(|all| summary(&all))?;
    let nonsense = |why: &str| Failure { why: format!("the broker at {broker} {why}"), fatal: false };
    let certificate = peer_certificate(&stream, &credentials.anchor)
        .ok_or_else(|| nonsense("has a certificate that is not one of this network's brokers"))?;
    let registration_key = stream
        .get_ref()
        .1
        .export_keying_material([0; 32], tls::REGISTRATION_LABEL, None)
        .map_err(|_| nonsense("agreed on no key"))?;
    Ok(Dialled { stream, broker, certificate, registration_key, local })
}

/// The first TLS connection that succeeds, or what each address said.
///
/// # Errors
/// One failure per address, or per name that did not resolve.
pub async fn first(
    brokers: &[BrokerAddr],
    proxies: &Proxies,
    favourite: Option<BrokerAddr>,
    config: &Arc<ClientConfig>,
) -> Result<First, Vec<Failure>> {
    let (mut waiting, mut failures) = resolve(brokers, proxies).await;
    if let Some(index) = waiting.iter().position(|way| Some(&way.at) == favourite.as_ref())
        && let Some(way) = waiting.remove(index)
    {
        waiting.push_front(way);
    }
    let mut trying = JoinSet::new();
    loop {
        if let Some(way) = waiting.pop_front() {
            trying.spawn(attempt(way, Arc::clone(config)));
        } else if trying.is_empty() {
            return Err(failures);
        }
        // The next address starts when one fails or the stagger is over, whichever comes first.
        let next = async {
            if waiting.is_empty() { std::future::pending().await } else { tokio::time::sleep(STAGGER).await }
        };
        tokio::select! {
            () = next => {}
            Some(done) = trying.join_next() => match done {
                Ok(Ok(won)) => return Ok(won),
                Ok(Err(failure)) => failures.push(failure),
                Err(why) => failures.push(Failure { why: why.to_string(), fatal: false }),
            },
        }
    }
}

/// All failures in one line; fatal only if each of them is.
#[must_use]
pub fn summary(failures: &[Failure]) -> Failure {
    let why: Vec<&str> = failures.iter().map(|f| f.why.as_str()).collect();
    if why.is_empty() {
        return Failure { why: "no broker is configured".to_owned(), fatal: true };
    }
    Failure { why: why.join("; "), fatal: failures.iter().all(|f| f.fatal) }
}

async fn attempt(way: Reached, config: Arc<ClientConfig>) -> Result<First, Failure> {
    let connect = async {
        let (stream, local) = open(&way).await?;
        Ok((TlsConnector::from(config).connect(tls::broker_name(), stream).await?, local))
    };
    let (stream, local) = tokio::time::timeout(GIVE_UP, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| failure(&way, &error))?;
    if stream.get_ref().1.alpn_protocol() != Some(tls::ALPN) {
        return Err(Failure { why: format!("{way} speaks TLS but is no broker"), fatal: false });
    }
    Ok(First { stream, broker: way, local })
}

/// A tuned connection that TLS or frames may begin on, and its near end: TCP, through the proxy if there is one, and in a
/// WebSocket where the port demands it.
pub(super) async fn open(way: &Reached) -> io::Result<(Box<dyn Duplex>, SocketAddr)> {
    let stream = match (&way.proxy, &way.at) {
        (Some(proxy), at) => proxy::connect(proxy, at).await?,
        (None, BrokerAddr::Addr(addr)) => TcpStream::connect(addr).await?,
        (None, BrokerAddr::Host(host, port)) => TcpStream::connect((host.as_str(), *port)).await?,
    };
    stream.set_nodelay(true)?;
    tune(&SockRef::from(&stream))?;
    let local = canonical(stream.local_addr()?);
    Ok(match Dress::of(way.at.port()) {
        Dress::WebSocket => (Box::new(websocket::connect(stream, &way.at.to_string()).await?), local),
        Dress::Tls | Dress::Plain => (Box::new(stream), local),
    })
}

/// What a connection that lasts wants: to notice in time that its far end is gone, and to queue little.
pub(super) fn tune(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    let keepalive = TcpKeepalive::new().with_time(USER_TIMEOUT).with_interval(USER_TIMEOUT / 3);
    socket.set_tcp_keepalive(&keepalive)
}

/// The ways to the brokers: names are looked up here, or by the proxy if one is on the way.
async fn resolve(brokers: &[BrokerAddr], proxies: &Proxies) -> (VecDeque<Reached>, Vec<Failure>) {
    let (mut ways, mut failures) = (Vec::new(), Vec::new());
    for broker in brokers {
        if let Some(proxy) = proxies.route(broker) {
            ways.push(Reached { at: broker.clone(), proxy: Some(proxy.clone()) });
            continue;
        }
        let found = match broker {
            BrokerAddr::Addr(addr) => Ok(vec![*addr]),
            BrokerAddr::Host(host, port) => lookup(host, *port).await.map_err(|why| Failure {
                why: format!("the name {host} does not resolve ({why}): check the name and the DNS"),
                fatal: false,
            }),
        };
        match found {
            Ok(found) => ways.extend(
                found.into_iter().map(|addr| Reached { at: BrokerAddr::Addr(canonical(addr)), proxy: None }),
            ),
            Err(failure) => failures.push(failure),
        }
    }
    let mut unique = VecDeque::new();
    for way in ways {
        if !unique.contains(&way) && unique.len() < MAX_ADDRESSES {
            unique.push_back(way);
        }
    }
    (unique, failures)
}

async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let lookup = tokio::net::lookup_host((host, port));
    let found = tokio::time::timeout(RESOLVE, lookup).await;
    let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(found.collect())
}

fn peer_certificate(stream: &TlsStream<Box<dyn Duplex>>, anchor: &TrustAnchor) -> Option<Certificate> {
    let leaf = stream.get_ref().1.peer_certificates()?.first()?;
    let certificate = anchor.verify(leaf, clock::now().unix).ok()?;
    certificate.subject.roles.broker.then_some(certificate)
}

/// What an error of a connection to `broker` means and what to do about it.
#[must_use]
pub fn failure(broker: &Reached, error: &io::Error) -> Failure {
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<ProxyError>());
    if let Some(refused) = refused {
        return Failure { why: refused.to_string(), fatal: refused.is_fatal() };
    }
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(tls) = tls {
        return tls_failure(broker, tls);
    }
    let port = broker.at.port();
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("{broker} refused the connection: is the broker running there?")
        }
        io::ErrorKind::TimedOut => {
            format!(
                "{broker} does not answer: is the machine up, and does a firewall let TCP port {port} in?"
            )
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            format!("{broker} cannot be reached: no route; is this machine online?")
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            format!("{broker} closed the connection: too many connections from here, or no broker")
        }
        _ => format!("{broker}: {error}"),
    };
    Failure { why, fatal: false }
}

fn tls_failure(broker: &Reached, error: &rustls::Error) -> Failure {
    let clock = CLOCK_SKEW.as_secs() / 60;
    let (why, fatal) = match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) if broker.proxy.is_some() => (
            "shows a certificate that our CA did not sign: it belongs to another network, or the proxy opens TLS itself \
             and must leave this address alone"
                .to_owned(),
            true,
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => ("belongs to another network: its certificate is not signed by our CA".to_owned(), true),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => ("shows an expired certificate: renew it there, or set this machine's clock".to_owned(), false),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => (
            format!("shows a certificate that is not valid yet: a clock is off by more than {clock} minutes"),
            false,
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => ("is of our network but may not be a broker".to_owned(), true),
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            ("belongs to another network than the invite".to_owned(), true)
        }
        rustls::Error::InvalidCertificate(why) => {
            (format!("shows a certificate that we cannot believe: {why}"), true)
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => (
            "takes our certificate for expired or not valid yet: compare the clocks, or enrol anew"
                .to_owned(),
            true,
        ),
        rustls::Error::AlertReceived(AlertDescription::CertificateRevoked) => {
            ("says that our certificate was revoked: ask the administrator for an invite".to_owned(), true)
        }
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::DecryptError | AlertDescription::BadCertificate,
        ) => ("does not believe our certificate: it is of another network".to_owned(), true),
        rustls::Error::InvalidMessage(_) => {
            ("answers, but not with TLS: that is no broker".to_owned(), false)
        }
        other => (format!("cannot agree with us on TLS: {other}"), false),
    };
    Failure { why: format!("{broker} {why}"), fatal }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: &str = "192.0.2.1:6060";

    #[test]
    fn every_kind_of_failure_says_what_to_do() {
        let tls = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, words, fatal) in [
            (io::ErrorKind::ConnectionRefused.into(), "is the broker running", false),
            (io::ErrorKind::TimedOut.into(), "firewall", false),
            (io::ErrorKind::NetworkUnreachable.into(), "online", false),
            (
                tls(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
                "another network",
                true,
            ),
            (tls(rustls::Error::InvalidCertificate(CertificateError::Expired)), "clock", false),
            (tls(rustls::Error::InvalidCertificate(CertificateError::NotValidYet)), "clock", false),
            (
                tls(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)),
                "compare the clocks",
                true,
            ),
            (tls(rustls::Error::AlertReceived(AlertDescription::UnknownCA)), "another network", true),
            (
                tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
                "no broker",
                false,
            ),
        ] {
            let failure = failure(&Reached { at: BROKER.parse().unwrap(), proxy: None }, &error);
            assert!(failure.why.contains(words) && failure.why.contains(BROKER), "{failure:?}");
            assert_eq!(failure.fatal, fatal, "{failure:?}");
        }
    }

    #[test]
    fn one_address_that_may_work_later_keeps_the_whole_from_being_hopeless() {
        let hopeless = Failure { why: "a".to_owned(), fatal: true };
        let maybe = Failure { why: "b".to_owned(), fatal: false };
        assert!(summary(&[hopeless.clone(), hopeless.clone()]).fatal);
        assert_eq!(summary(&[hopeless, maybe]), Failure { why: "a; b".to_owned(), fatal: false });
        assert!(summary(&[]).fatal);
    }
}
