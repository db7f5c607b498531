//! Connecting through a proxy: HTTP `CONNECT` and SOCKS5, byte layouts in [`crate::wire::proxy`].

use std::io;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::config::proxy::Kind;
use crate::config::proxy::Proxy;
use crate::wire::WireError;
use crate::wire::enroll::BrokerAddr;
use crate::wire::proxy;
use crate::wire::proxy::Front;
use crate::wire::proxy::HttpAnswer;
use crate::wire::proxy::MAX_ANSWER;
use crate::wire::proxy::Method;
use crate::wire::proxy::Verdict;

/// Why a proxy did not connect us, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// No connection to the proxy itself.
    #[error("the proxy {0} cannot be reached ({1}): check member.proxy, or https_proxy in the environment")]
    Unreachable(Proxy, io::Error),
    /// It asks who we are, and nobody has told us.
    #[error(
        "the proxy {0} wants a user name and a password: set member.proxy = \"{scheme}://USER:PASSWORD@{at}\"",
        scheme = scheme(.0), at = .0.at
    )]
    WantsCredentials(Proxy),
    /// It does not take what we were told.
    #[error("the proxy {0} refuses our user name or password: correct member.proxy, or https_proxy")]
    WrongCredentials(Proxy),
    /// It knows only ways to authenticate that we do not.
    #[error(
        "the proxy {0} authenticates by {1} alone, and this program by user name and password (Basic): ask for an \
         exception, or run a local proxy that translates"
    )]
    OtherScheme(Proxy, String),
    /// Its rules forbid it.
    #[error(
        "the proxy {0} may not connect to {1} ({2}): many allow port 443 alone, so let the broker listen there too \
         (broker.listen, broker.advertise)"
    )]
    Forbidden(Proxy, BrokerAddr, String),
    /// It tried.
    #[error("the proxy {0} cannot reach {1} ({2}): is the address right, and is somebody listening there?")]
    Failed(Proxy, BrokerAddr, String),
    /// It is no proxy, or of another kind.
    #[error("{0} answers with what no proxy of that kind says: check member.proxy, or https_proxy")]
    Nonsense(Proxy),
}

impl ProxyError {
    /// Whether trying again is useless, or worse, until a person does something: wrong passwords lock accounts.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::WantsCredentials(_) | Self::WrongCredentials(_) | Self::OtherScheme(..))
    }
}

/// A connection to `to` through `proxy`.
///
/// # Errors
/// A [`ProxyError`] inside, or what the connection says.
pub async fn connect(proxy: &Proxy, to: &BrokerAddr) -> io::Result<TcpStream> {
    let dialled = match &proxy.at {
        BrokerAddr::Addr(addr) => TcpStream::connect(addr).await,
        BrokerAddr::Host(host, port) => TcpStream::connect((host.as_str(), *port)).await,
    };
    let mut stream =
        dialled.map_err(|error| io::Error::other(ProxyError::Unreachable(proxy.clone(), error)))?;
    stream.set_nodelay(true)?;
    match proxy.kind {
        Kind::Http => http(&mut stream, proxy, to).await?,
        Kind::Socks5 => socks(&mut stream, proxy, to).await?,
    }
    Ok(stream)
}

async fn http(stream: &mut TcpStream, proxy: &Proxy, to: &BrokerAddr) -> io::Result<()> {
    let credentials = proxy.credentials.as_ref().map(|(user, password)| (user.as_str(), password.0.as_str()));
    stream.write_all(&proxy::connect(to, credentials)).await?;
    let answer = answer(stream, proxy, proxy::http_answer).await?;
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    Err(io::Error::other(refusal(proxy, to, &answer)))
}

/// What an answer other than 2xx means.
fn refusal(proxy: &Proxy, to: &BrokerAddr, answer: &HttpAnswer) -> ProxyError {
    let words = format!("{} {}", answer.status, answer.reason);
    let basic = answer.schemes.is_empty() || answer.schemes.iter().any(|scheme| scheme == "basic");
    match answer.status {
        407 if !basic => ProxyError::OtherScheme(proxy.clone(), answer.schemes.join(", ")),
        407 if proxy.credentials.is_some() => ProxyError::WrongCredentials(proxy.clone()),
        407 => ProxyError::WantsCredentials(proxy.clone()),
        400..500 => ProxyError::Forbidden(proxy.clone(), to.clone(), words),
        _ => ProxyError::Failed(proxy.clone(), to.clone(), words),
    }
}

async fn socks(stream: &mut TcpStream, proxy: &Proxy, to: &BrokerAddr) -> io::Result<()> {
    stream.write_all(proxy::greeting(proxy.credentials.is_some())).await?;
    let method = answer(stream, proxy, |bytes| match proxy::method(bytes) {
        // "No acceptable methods" is an answer too.
        Err(WireError::Unknown) => Ok(Front::Whole(None, 2)),
        Ok(Front::Whole(method, len)) => Ok(Front::Whole(Some(method), len)),
        Ok(Front::Missing(n)) => Ok(Front::Missing(n)),
        Err(why) => Err(why),
    });
    match (method.await?, &proxy.credentials) {
        (Some(Method::Open), _) => {}
        (Some(Method::Credentials), Some((user, password))) => {
            let message = proxy::credentials(user, &password.0)
                .ok_or_else(|| io::Error::other(ProxyError::WrongCredentials(proxy.clone())))?;
            stream.write_all(&message).await?;
            if !answer(stream, proxy, proxy::accepted).await? {
                return Err(io::Error::other(ProxyError::WrongCredentials(proxy.clone())));
            }
        }
        (Some(Method::Credentials) | None, None) => {
            return Err(io::Error::other(ProxyError::WantsCredentials(proxy.clone())));
        }
        (None, Some(_)) => {
            let ways = "a way other than user name and password".to_owned();
            return Err(io::Error::other(ProxyError::OtherScheme(proxy.clone(), ways)));
        }
    }
    stream.write_all(&proxy::request(to)).await?;
    let (proxy, to) = (proxy.clone(), to.clone());
    let words = match answer(stream, &proxy, proxy::verdict).await? {
        Verdict::Granted => return Ok(()),
        Verdict::Forbidden => {
            return Err(io::Error::other(ProxyError::Forbidden(proxy, to, "its rules forbid it".to_owned())));
        }
        Verdict::Unreachable => "no answer from there".to_owned(),
        Verdict::Refused => "refused there".to_owned(),
        Verdict::Unsupported => "not that kind of address".to_owned(),
        Verdict::Failed(code) => format!("reply {code}"),
    };
    Err(io::Error::other(ProxyError::Failed(proxy, to, words)))
}

/// Reads one answer and not a byte more: what follows belongs to the connection that was asked for.
async fn answer<T>(
    stream: &mut TcpStream,
    proxy: &Proxy,
    parse: impl Fn(&[u8]) -> Result<Front<T>, WireError>,
) -> io::Result<T> {
    let nonsense = || io::Error::other(ProxyError::Nonsense(proxy.clone()));
    let mut bytes = Vec::new();
    loop {
        let missing = match parse(&bytes).map_err(|_| nonsense())? {
            Front::Whole(answer, _) => return Ok(answer),
            Front::Missing(n) => n.min(MAX_ANSWER),
        };
        let start = bytes.len();
        bytes.resize(start + missing, 0);
        let room = bytes.get_mut(start..).unwrap_or_default();
        if let Err(error) = stream.read_exact(room).await {
            // Some proxies refuse by hanging up.
            return Err(if error.kind() == io::ErrorKind::UnexpectedEof { nonsense() } else { error });
        }
    }
}

fn scheme(proxy: &Proxy) -> &'static str {
    match proxy.kind {
        Kind::Http => "http",
        Kind::Socks5 => "socks5",
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A proxy that sends these answers, one for each message that it reads, and then echoes.
    async fn connected(kind: &str, credentials: &str, answers: &[&[u8]]) -> io::Result<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            for answer in answers {
                let _ = stream.read(&mut buffer).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
            let n = stream.read(&mut buffer).await.unwrap();
            stream.write_all(&buffer[..n]).await.unwrap();
        });
        let proxy: Proxy = format!("{kind}://{credentials}{at}").parse().unwrap();
        connect(&proxy, &"vpn.example:443".parse().unwrap()).await
    }

    #[tokio::test]
    async fn a_granted_connection_carries_from_its_first_byte() {
        for (kind, credentials, answers) in [
            ("http", "", &[&b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhi"[..]][..]),
            ("socks5", "", &[&[5, 0], &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'h', b'i']]),
            ("socks5", "al:pw@", &[&[5, 2], &[1, 0], &[5, 0, 0, 3, 1, b'x', 0, 0, b'h', b'i']]),
        ] {
            let mut stream = connected(kind, credentials, answers).await.unwrap();
            let mut first = [0; 2];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"hi", "{kind}");
        }
    }

    #[tokio::test]
    async fn every_refusal_says_what_to_do() {
        for (kind, credentials, answers, words, fatal) in [
            (
                "http",
                "",
                &[&b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n"[..]][..],
                "USER:PASSWORD",
                true,
            ),
            (
                "http",
                "a:b@",
                &[&b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n"[..]],
                "correct member.proxy",
                true,
            ),
            (
                "http",
                "",
                &[&b"HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\n\r\n"[..]],
                "by ntlm alone",
                true,
            ),
            ("http", "", &[&b"HTTP/1.1 403 no\r\n\r\n"[..]], "port 443 alone", false),
            ("http", "", &[&b"HTTP/1.1 502 no\r\n\r\n"[..]], "cannot reach vpn.example:443 (502 no)", false),
            ("http", "", &[&b"SSH-2.0-x\r\n"[..]], "check member.proxy", false),
            ("socks5", "", &[&[5, 0xff][..]], "USER:PASSWORD", true),
            ("socks5", "a:b@", &[&[5, 2], &[1, 1]], "correct member.proxy", true),
            ("socks5", "", &[&[5, 0], &[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]], "port 443 alone", false),
            ("socks5", "", &[&[5, 0], &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]], "refused there", false),
            ("socks5", "", &[&b"HTTP/1.1 400"[..]], "check member.proxy", false),
        ] {
            let error = connected(kind, credentials, answers).await.unwrap_err();
            let why = error.get_ref().and_then(|inner| inner.downcast_ref::<ProxyError>()).unwrap();
            assert!(why.to_string().contains(words), "{why}");
            assert_eq!(why.is_fatal(), fatal, "{why}");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_is_not_there_is_named() {
        let proxy: Proxy = "http://127.0.0.1:1".parse().unwrap();
        let error = connect(&proxy, &"vpn:443".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("http://127.0.0.1:1 cannot be reached"), "{error}");
    }
}
