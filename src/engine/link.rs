//! A member's or relay's connection to its brokers: kept up for ever, with a reason in words whenever it is down.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::base::addr::is_candidate;
use crate::base::id::RequestId;
use crate::base::rng::Rng;
use crate::base::schedule::Backoff;
use crate::base::time::Now;
use crate::base::time::UnixTime;
use crate::config::proxy::Proxies;
use crate::engine::clock;
use crate::engine::dial;
use crate::engine::dial::Dialled;
use crate::engine::dial::Failure;
use crate::engine::dial::Reached;
use crate::engine::framed::FrameReader;
use crate::engine::framed::write_frame;
use crate::identity::certificate::CLOCK_SKEW;
use crate::identity::certificate::Certificate;
use crate::identity::credentials::Credentials;
use crate::identity::names::MemberName;
use crate::identity::revocation::RevocationList;
use crate::wire::WireError;
use crate::wire::broker::FromBroker;
use crate::wire::broker::MAX_AUTHENTICATED;
use crate::wire::broker::Register;
use crate::wire::broker::Registered;
use crate::wire::broker::ToBroker;
use crate::wire::enroll::BrokerAddr;

/// A ping when nothing came for so long; below the broker's idle limit of 90 s by a wide margin.
const PING_AFTER: Duration = Duration::from_secs(20);
/// And the connection is dead when nothing came for so long after it.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How long the broker may take to answer `Register`.
const REGISTER_WITHIN: Duration = Duration::from_secs(10);
/// A connection that lasted so long was a good one: the next try comes at once.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Between tries: first and longest. A broker that was restarted has its members back within the latter; ten thousand of
/// them cost it a fifth of a core meanwhile.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Between tries that only a person can help: the broker is not asked more often than that.
const RETRY_FATAL: Duration = Duration::from_secs(60);
/// Messages that wait for the connection; more than a node makes between two turns of the loop.
const QUEUE: usize = 1024;

/// What a link needs.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// The brokers; all their addresses are tried, in this order, but first the one that worked the last time.
    pub brokers: Vec<BrokerAddr>,
    /// How they are reached.
    pub proxies: Proxies,
    /// Who we are.
    pub credentials: Credentials,
    /// What to say when connected.
    pub register: Register,
}

/// What happens on a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Connected and registered.
    Up {
        /// The broker's address; where a proxy looked up its name, the one that it tells of itself.
        broker: SocketAddr,
        /// Whether a proxy stands in between: then what the broker observed is the proxy's address.
        proxied: bool,
        /// Its name.
        broker_name: MemberName,
        /// Its certificate, verified.
        broker_cert: Box<Certificate>,
        /// Key of the UDP registrations of this connection.
        registration_key: [u8; 32],
        /// Our end of the connection.
        local: SocketAddr,
        /// What the broker answered.
        registered: Registered,
    },
    /// A message of the broker.
    Message(FromBroker),
    /// Not connected.
    Down {
        /// Why, and what to do about it, in words.
        why: String,
        /// When the next try begins.
        retry_in: Duration,
        /// Whether trying again is useless until a person does something.
        fatal: bool,
    },
}

enum Command {
    Send(Box<ToBroker>),
    SetRegister(Box<Register>),
    ReplaceCertificate(Box<Certificate>),
    RetryNow,
}

/// The holder's end of a link; the link ends when it is dropped.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    commands: mpsc::Sender<Command>,
}

impl LinkHandle {
    /// Sends a message. False if the link's queue is full. While the link is down messages are dropped: they would be
    /// answers to a past that the next connection does not know.
    pub fn send(&self, message: ToBroker) -> bool {
        self.command(Command::Send(Box::new(message)))
    }

    /// Replaces what is said at registration, and tells a connected broker what changed.
    pub fn set_register(&self, register: Register) -> bool {
        self.command(Command::SetRegister(Box::new(register)))
    }

    /// Uses another certificate (of the same keys) from the next connection on.
    pub fn replace_certificate(&self, certificate: Certificate) -> bool {
        self.command(Command::ReplaceCertificate(Box::new(certificate)))
    }

    /// Ends a wait between tries: the network changed.
    pub fn retry_now(&self) -> bool {
        self.command(Command::RetryNow)
    }

    fn command(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }
}

/// The link itself.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<LinkEvent>,
    backoff: Backoff,
    rng: Rng,
    worked: Option<BrokerAddr>,
}

/// Why one connection ended.
enum End {
    /// Nobody holds the handle, or nobody listens.
    Unwanted,
    /// It failed; how long it had been up.
    Failed(Failure, Option<Duration>),
}

impl Link {
    /// Starts a link on the current tokio runtime. Events come until the handle is dropped.
    #[must_use]
    pub fn spawn(config: LinkConfig, events: mpsc::Sender<LinkEvent>) -> LinkHandle {
        let (sender, commands) = mpsc::channel(QUEUE);
        let backoff = Backoff::new(RETRY.0, RETRY.1);
        let rng = Rng::new(clock::seed());
        let link = Self { config, commands, events, backoff, rng, worked: None };
        tokio::spawn(link.run());
        LinkHandle { commands: sender }
    }

    async fn run(mut self) {
        loop {
            let End::Failed(failure, lasted) = self.once().await else { return };
            let retry_in = match lasted {
                _ if failure.fatal => RETRY_FATAL,
                Some(lasted) if lasted >= GOOD_AFTER => {
                    self.backoff.reset();
                    Duration::ZERO
                }
                _ => self.backoff.next(self.rng.u32()),
            };
            let down = LinkEvent::Down { why: failure.why, retry_in, fatal: failure.fatal };
            if self.events.send(down).await.is_err() || !self.wait(retry_in).await {
                return;
            }
        }
    }

    /// Sleeps between tries; false when nobody wants the link any more.
    async fn wait(&mut self, retry_in: Duration) -> bool {
        let mut sleep = std::pin::pin!(tokio::time::sleep(retry_in));
        loop {
            tokio::select! {
                () = &mut sleep => return true,
                command = self.commands.recv() => match command {
                    None => return false,
                    Some(Command::RetryNow) => return true,
                    Some(command) => self.keep(command),
                },
            }
        }
    }

    /// What a command means while there is no connection.
    fn keep(&mut self, command: Command) {
        match command {
            Command::SetRegister(register) => self.config.register = *register,
            Command::ReplaceCertificate(certificate) => self.replace(*certificate),
            Command::Send(_) | Command::RetryNow => {}
        }
    }

    fn replace(&mut self, certificate: Certificate) {
        let old = &self.config.credentials;
        match Credentials::new(old.anchor.clone(), certificate, old.key.clone(), old.wg.clone()) {
            Ok(new) => self.config.credentials = new,
            Err(why) => tracing::warn!(%why, "a renewed certificate does not fit and is not used"),
        }
    }

    /// One connection, from the first address tried to its end.
    async fn once(&mut self) -> End {
        let LinkConfig { brokers, proxies, credentials, .. } = self.config.clone();
        let mut dialling = Box::pin(dial::dial(brokers, proxies, self.worked.clone(), credentials));
        let dialled = loop {
            tokio::select! {
                dialled = &mut dialling => break dialled,
                command = self.commands.recv() => match command {
                    None => return End::Unwanted,
                    Some(command) => self.keep(command),
                },
            }
        };
        match dialled {
            Ok(dialled) => self.serve(dialled).await,
            Err(failure) => End::Failed(failure, None),
        }
    }
    /// Registers and passes messages on until the connection ends.
    async fn serve(&mut self, dialled: Dialled) -> End {
        let Dialled { stream, broker, certificate, registration_key, local } = dialled;
        let began = clock::now().instant;
        let (read, mut write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, MAX_AUTHENTICATED);
        let register = ToBroker::Register(self.config.register.clone());
        if let Err(error) = write_frame(&mut write, &register.emit()).await {
            return End::Failed(dial::failure(&broker, &error), None);
        }
        let mut session = Session::new(broker.clone(), began, self.config.credentials.clone());
        let mut up = Some((certificate, registration_key, local));
        loop {
            let deadline = tokio::time::sleep_until(session.deadline().into());
            tokio::select! {
                frame = reader.next() => {
                    let now = clock::now();
                    let message = match session.on_frame(frame, now) {
                        Ok(Some(message)) => message,
                        Ok(None) => continue,
                        Err(failure) => return End::Failed(failure, session.lasted(now.instant)),
                    };
                    let event = match message {
                        FromBroker::Registered(registered) => match up.take() {
                            Some(first) => {
                                self.worked = Some(broker.at.clone());
                                up_event(&broker, first, registered)
                            }
                            // The answer to a registration that was changed while connected.
                            None => continue,
                        },
                        message => LinkEvent::Message(message),
                    };
                    if self.events.send(event).await.is_err() {
                        return End::Unwanted;
                    }
                }
                command = self.commands.recv() => {
                    let Some(command) = command else { return End::Unwanted };
                    let Some(message) = self.on_command(command, up.is_none()) else { continue };
                    if let Err(error) = write_frame(&mut write, &message.emit()).await {
                        let failure = session.explain(dial::failure(&broker, &error));
                        return End::Failed(failure, session.lasted(clock::now().instant));
                    }
                }
                () = deadline => {
                    let now = clock::now().instant;
                    let Some(ping) = session.on_deadline(now, &mut self.rng) else {
                        return End::Failed(session.silent(), session.lasted(now));
                    };
                    if let Err(error) = write_frame(&mut write, &ping.emit()).await {
                        return End::Failed(dial::failure(&broker, &error), session.lasted(now));
                    }
                }
            }
        }
    }

    /// What a command makes us say on a connection.
    fn on_command(&mut self, command: Command, registered: bool) -> Option<ToBroker> {
        match command {
            Command::Send(message) => registered.then_some(*message),
            Command::SetRegister(register) => {
                let old = std::mem::replace(&mut self.config.register, *register);
                let new = &self.config.register;
                let same_member =
                    old.software == new.software && old.relay == new.relay && old.watch == new.watch;
                if !same_member {
                    return Some(ToBroker::Register(new.clone()));
                }
                let moved = old.candidates != new.candidates || old.profile != new.profile;
                moved.then(|| ToBroker::Update { candidates: new.candidates.clone(), profile: new.profile })
            }
            Command::ReplaceCertificate(certificate) => {
                self.replace(*certificate);
                None
            }
            Command::RetryNow => None,
        }
    }
}

/// What is remembered of one connection, apart from its bytes.
struct Session {
    broker: Reached,
    began: Instant,
    credentials: Credentials,
    registered: Option<Instant>,
    heard: Instant,
    pinged: bool,
    /// The last refusal that named no request: if the connection ends now, that is why.
    last_words: Option<String>,
    revoked: bool,
}

impl Session {
    const fn new(broker: Reached, began: Instant, credentials: Credentials) -> Self {
        let (registered, last_words) = (None, None);
        Self {
            broker,
            began,
            credentials,
            registered,
            heard: began,
            pinged: false,
            last_words,
            revoked: false,
        }
    }

    fn deadline(&self) -> Instant {
        match self.registered {
            None => self.began + REGISTER_WITHIN,
            Some(_) if self.pinged => self.heard + PING_AFTER + PONG_WITHIN,
            Some(_) => self.heard + PING_AFTER,
        }
    }

    /// A ping, or nothing when the broker is gone.
    fn on_deadline(&mut self, now: Instant, rng: &mut Rng) -> Option<ToBroker> {
        if self.registered.is_none() || self.pinged && now >= self.deadline() {
            return None;
        }
        self.pinged = true;
        Some(ToBroker::Ping { nonce: rng.u32() })
    }

    fn on_frame(
        &mut self,
        frame: io::Result<Option<Vec<u8>>>,
        now: Now,
    ) -> Result<Option<FromBroker>, Failure> {
        let bytes = match frame {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(self.explain(self.closed())),
            Err(error) => return Err(self.explain(dial::failure(&self.broker, &error))),
        };
        (self.heard, self.pinged) = (now.instant, false);
        let message = match FromBroker::parse(&bytes) {
            Ok(message) => message,
            Err(WireError::Unknown) => return Ok(None),
            Err(why) => {
                let why = format!("the broker at {} sent a message that makes no sense: {why}", self.broker);
                return Err(Failure { why, fatal: false });
            }
        };
        match &message {
            FromBroker::Registered(registered) => {
                self.registered.get_or_insert(now.instant);
                warn_about_clocks(&self.broker, registered.time, now.unix);
            }
            FromBroker::Refused { request: RequestId(0), text, .. } => self.last_words = Some(text.clone()),
            FromBroker::Revocations(bytes) => {
                let list = RevocationList::parse_signed(bytes, &self.credentials.anchor);
                self.revoked |= list.is_ok_and(|list| list.contains(&self.credentials.certificate.serial));
            }
            FromBroker::Pong { .. } => return Ok(None),
            _ => self.last_words = None,
        }
        Ok(Some(message))
    }

    fn lasted(&self, now: Instant) -> Option<Duration> {
        self.registered.map(|at| now.saturating_duration_since(at))
    }

    fn closed(&self) -> Failure {
        Failure { why: format!("the broker at {} closed the connection", self.broker), fatal: false }
    }

    fn silent(&self) -> Failure {
        Failure { why: format!("the broker at {} does not answer any more", self.broker), fatal: false }
    }

    /// The broker's own last words say more than the way in which the connection ended.
    fn explain(&self, failure: Failure) -> Failure {
        if self.revoked {
            let why = "this machine's certificate was revoked: ask the administrator for a new invite, then `up --join`";
            return Failure { why: why.to_owned(), fatal: true };
        }
        let Some(words) = &self.last_words else { return failure };
        let why = format!("the broker at {} refused: {words}", self.broker);
        Failure { why, fatal: self.registered.is_none() }
    }
}

fn up_event(
    reached: &Reached,
    (certificate, registration_key, local): (Certificate, [u8; 32], SocketAddr),
    mut registered: Registered,
) -> LinkEvent {
    // The broker may stand behind a NAT that it does not know of: then the address that we reached it at is the best.
    let udp = registered.udp.first().copied();
    if let Some(broker) = reached.addr() {
        let known = registered.udp.iter().any(|addr| addr.ip().to_canonical() == broker.ip());
        if let Some(port) = udp.map(|addr| addr.port()).filter(|_| !known) {
            registered.udp.insert(0, SocketAddr::new(broker.ip(), port));
        }
    }
    let told = udp.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |addr| addr.ip());
    let broker = reached.addr().unwrap_or_else(|| SocketAddr::new(told, reached.at.port()));
    // Through loopback no NAT is seen.
    let here = (!broker.ip().is_loopback()).then_some(broker.ip());
    let fill = |addr: SocketAddr| match here {
        _ if !addr.ip().is_unspecified() => Some(addr),
        Some(ip) if ip.is_ipv4() == addr.is_ipv4() => Some(SocketAddr::new(ip, addr.port())),
        _ => None,
    };
    registered.stun =
        registered.stun.into_iter().filter_map(fill).filter(|addr| is_candidate(*addr)).collect();
    let broker_name = certificate.subject.uri.name.clone();
    let broker_cert = Box::new(certificate);
    let proxied = reached.proxy.is_some();
    LinkEvent::Up { broker, proxied, broker_name, broker_cert, registration_key, local, registered }
}

fn warn_about_clocks(broker: &Reached, theirs: UnixTime, ours: UnixTime) {
    let off = theirs.since(ours).max(ours.since(theirs));
    if off > CLOCK_SKEW {
        tracing::warn!(
            %broker,
            seconds = off.as_secs(),
            "this machine's clock and the broker's differ: certificates and relay tokens may be refused, set the clock"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::RegistrationId;
    use crate::identity::authority::Authority;
    use crate::identity::authority::validity;
    use crate::identity::certificate::Roles;
    use crate::identity::certificate::Serial;
    use crate::identity::certificate::Subject;
    use crate::identity::keys::SigningKey;
    use crate::identity::keys::WgSecret;
    use crate::identity::names::MemberUri;
    use crate::wire::broker::Refusal;

    fn straight(at: &str) -> Reached {
        Reached { at: at.parse().unwrap(), proxy: None }
    }

    fn session() -> Session {
        let now = clock::now();
        let ca = Authority::create(&"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), now.unix);
        let (key, wg) = (SigningKey::generate(), WgSecret::generate());
        let subject = Subject {
            uri: MemberUri { network: ca.anchor().network.clone(), name: "anna".parse().unwrap() },
            roles: Roles::RELAY,
            addrs: None,
            groups: vec![],
            wg: wg.public(),
        };
        let (from, until) = validity(now.unix, Duration::from_secs(3600));
        let certificate = ca.sign(&subject, &key.public(), Serial::generate(), from, until).unwrap();
        let credentials = Credentials::new(ca.anchor().clone(), certificate, key, wg).unwrap();
        Session::new(straight("192.0.2.1:6060"), now.instant, credentials)
    }

    fn registered(session: &mut Session, now: Now) {
        let answer = Registered { time: now.unix, ..told_by_a_broker() };
        let frame = Ok(Some(FromBroker::Registered(answer).emit()));
        assert!(session.on_frame(frame, now).unwrap().is_some());
    }

    #[test]
    fn a_silent_broker_is_pinged_once_and_then_given_up() {
        let mut s = session();
        let now = clock::now();
        let mut rng = Rng::new(clock::seed());
        registered(&mut s, now);
        let first = s.deadline();
        assert_eq!(first - now.instant, PING_AFTER);
        assert!(matches!(s.on_deadline(first, &mut rng), Some(ToBroker::Ping { .. })));
        assert_eq!(s.deadline() - first, PONG_WITHIN);
        assert_eq!(s.on_deadline(s.deadline(), &mut rng), None);
    }

    #[test]
    fn anything_heard_starts_the_silence_over() {
        let mut s = session();
        let now = clock::now();
        let mut rng = Rng::new(clock::seed());
        registered(&mut s, now);
        s.on_deadline(s.deadline(), &mut rng);
        let later = now.plus(PING_AFTER + PONG_WITHIN / 2);
        s.on_frame(Ok(Some(FromBroker::Pong { nonce: 1 }.emit())), later).unwrap();
        assert_eq!(s.deadline() - later.instant, PING_AFTER);
    }

    #[test]
    fn the_brokers_last_words_explain_the_end() {
        let mut s = session();
        let now = clock::now();
        let refused = FromBroker::Refused {
            request: RequestId(0),
            why: Refusal::Forbidden,
            text: "the name belongs to another machine".to_owned(),
        };
        s.on_frame(Ok(Some(refused.emit())), now).unwrap();
        let failure = s.on_frame(Ok(None), now).unwrap_err();
        assert!(failure.fatal && failure.why.contains("the name belongs to another machine"), "{failure:?}");
    }

    #[test]
    fn a_broker_that_does_not_answer_register_is_given_up() {
        let mut s = session();
        let mut rng = Rng::new(clock::seed());
        assert_eq!(s.on_deadline(s.deadline(), &mut rng), None);
    }

    #[test]
    fn udp_registrations_go_to_where_the_broker_was_reached() {
        for (told, wanted) in [
            (vec!["10.0.0.1:6060"], vec!["203.0.113.1:6060", "10.0.0.1:6060"]),
            (vec!["203.0.113.1:6060"], vec!["203.0.113.1:6060"]),
            (vec![], vec![]),
        ] {
            let answer = Registered { udp: parse(&told), ..told_by_a_broker() };
            assert_eq!(up("203.0.113.1:443", answer).udp, parse(&wanted));
        }
    }

    #[test]
    fn stun_servers_beside_the_broker_are_where_the_broker_was_reached() {
        let told = ["192.0.2.9:3478", "0.0.0.0:3478", "[::]:3478", "224.0.0.1:3478"];
        for (broker, wanted) in [
            ("203.0.113.1:443", vec!["192.0.2.9:3478", "203.0.113.1:3478"]),
            ("[2001:db8::1]:443", vec!["192.0.2.9:3478", "[2001:db8::1]:3478"]),
            ("127.0.0.1:6060", vec!["192.0.2.9:3478"]),
        ] {
            let answer = Registered { stun: parse(&told), ..told_by_a_broker() };
            assert_eq!(up(broker, answer).stun, parse(&wanted));
        }
    }

    #[test]
    fn behind_a_proxy_the_broker_is_where_it_says_it_is() {
        let proxy = Some("http://proxy:3128".parse().unwrap());
        let reached = Reached { at: "vpn.example:443".parse().unwrap(), proxy };
        for (told, wanted) in [(&["203.0.113.1:6060"][..], "203.0.113.1:443"), (&[], "0.0.0.0:443")] {
            let answer = Registered { udp: parse(told), ..told_by_a_broker() };
            let (broker, registered, proxied) = up_from(&reached, answer);
            assert_eq!((broker.to_string().as_str(), registered.udp, proxied), (wanted, parse(told), true));
        }
    }

    fn up(broker: &str, answer: Registered) -> Registered {
        up_from(&straight(broker), answer).1
    }

    fn up_from(reached: &Reached, answer: Registered) -> (SocketAddr, Registered, bool) {
        let first = (session().credentials.certificate, [0; 32], "10.0.0.2:5".parse().unwrap());
        let LinkEvent::Up { broker, registered, proxied, .. } = up_event(reached, first, answer) else {
            unreachable!("an up event was made")
        };
        (broker, registered, proxied)
    }

    fn told_by_a_broker() -> Registered {
        Registered {
            registration: RegistrationId(1),
            udp: vec![],
            stun: vec![],
            observed: "198.51.100.1:7".parse().unwrap(),
            time: UnixTime::default(),
            forge: false,
        }
    }

    fn parse(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|addr| addr.parse().unwrap()).collect()
    }
}
