//! A broker, machines that enrol with it and members that meet through it: real TLS and real sockets on loopback.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::io::BufRead as _;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ntcp_overlay::base::id::RequestId;
use ntcp_overlay::config::credentials::load_authority;
use ntcp_overlay::config::proxy::Proxies;
use ntcp_overlay::config::settings::Listen;
use ntcp_overlay::engine::broker::BrokerConfig;
use ntcp_overlay::engine::broker::BrokerServer;
use ntcp_overlay::engine::broker::Handle;
use ntcp_overlay::engine::broker::Stats;
use ntcp_overlay::engine::broker::create_network;
use ntcp_overlay::engine::broker::store::Grant;
use ntcp_overlay::engine::broker::store::Store;
use ntcp_overlay::engine::clock;
use ntcp_overlay::engine::enroll;
use ntcp_overlay::engine::enroll::EnrollError;
use ntcp_overlay::engine::framed::FrameReader;
use ntcp_overlay::engine::framed::write_frame;
use ntcp_overlay::engine::link::Link;
use ntcp_overlay::engine::link::LinkConfig;
use ntcp_overlay::engine::link::LinkEvent;
use ntcp_overlay::engine::link::LinkHandle;
use ntcp_overlay::engine::tls;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::identity::authority::validity;
use ntcp_overlay::identity::certificate::Certificate;
use ntcp_overlay::identity::certificate::Roles;
use ntcp_overlay::identity::certificate::Serial;
use ntcp_overlay::identity::credentials::Credentials;
use ntcp_overlay::identity::keys::SigningKey;
use ntcp_overlay::identity::keys::WgSecret;
use ntcp_overlay::identity::revocation::RevocationList;
use ntcp_overlay::nat::behavior::Profile;
use ntcp_overlay::nat::candidate::Candidate;
use ntcp_overlay::nat::candidate::Kind;
use ntcp_overlay::nat::candidate::Transport;
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::MAX_UNAUTHENTICATED;
use ntcp_overlay::wire::broker::Offer;
use ntcp_overlay::wire::broker::Refusal;
use ntcp_overlay::wire::broker::Register;
use ntcp_overlay::wire::broker::Registered;
use ntcp_overlay::wire::broker::Target;
use ntcp_overlay::wire::broker::ToBroker;
use ntcp_overlay::wire::enroll::BrokerAddr;
use ntcp_overlay::wire::enroll::Invite;
use ntcp_overlay::wire::enroll::SigningRequest;
use ntcp_overlay::wire::stun::Attribute;
use ntcp_overlay::wire::stun::BINDING;
use ntcp_overlay::wire::stun::Integrity;
use ntcp_overlay::wire::stun::Message;
use ntcp_overlay::wire::stun::Received;
use ntcp_overlay::wire::stun::TransactionId;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where the broker believes that it is reached from outside.
const PUBLIC: std::net::Ipv4Addr = std::net::Ipv4Addr::new(203, 0, 113, 1);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// So that a test that waits for what never comes fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_machine_enrols_and_may_repeat_a_lost_answer() {
    let net = Network::new().await;
    let invite = net.invite(None, DAY).await;
    let machine = Machine::new("anna");
    let first = machine.redeem(&invite).await.unwrap();
    assert_eq!(first.subject.addrs.unwrap().v4.to_string(), "10.77.0.1");
    assert_eq!(first.subject.uri.to_string(), "ntcp://home/anna");
    assert_eq!(machine.redeem(&invite).await.unwrap(), first, "the same keys get the same answer");
    assert_eq!(machine.redeem(&net.invite(None, DAY).await).await.unwrap().subject, first.subject);
    assert_eq!(net.broker().members().await.unwrap().len(), 1);
}

#[tokio::test]
async fn used_expired_and_unknown_invites_are_refused_in_words() {
    let net = Network::new().await;
    let used = net.invite(None, DAY).await;
    Machine::new("anna").redeem(&used).await.unwrap();
    let unknown = Invite { secret: [9; 32], ..used.clone() };
    let expired = net.expired_invite().await;
    for (case, invite) in [("used", &used), ("unknown", &unknown), ("expired", &expired)] {
        let error = Machine::new("bert").redeem(invite).await.unwrap_err();
        assert_eq!(error, EnrollError::InvalidInvite, "{case}");
        assert!(error.to_string().contains("ask for a new one"));
    }
    assert_eq!((net.stats().enrolled, net.stats().refused_guests), (1, 3));
}

#[tokio::test]
async fn a_taken_name_is_refused_and_the_invite_stays_good() {
    let net = Network::new().await;
    net.member("anna").await;
    let invite = net.invite(None, DAY).await;
    let error = Machine::new("anna").redeem(&invite).await.unwrap_err();
    assert_eq!(error, EnrollError::NameTaken("anna".to_owned()));
    assert!(Machine::new("bert").redeem(&invite).await.is_ok());
    let servers = net.invite(None, DAY).await;
    assert_eq!(
        Machine::new("broker").redeem(&servers).await.unwrap_err(),
        EnrollError::NameTaken("broker".to_owned()),
        "nor may a member call itself like the broker"
    );
}

#[tokio::test]
async fn an_invite_of_another_network_tells_so_and_shows_nobody_its_secret() {
    let (net, other) = (Network::new().await, Network::new().await);
    let invite = Invite { brokers: other.brokers(), ..net.invite(None, DAY).await };
    let error = Machine::new("anna").redeem(&invite).await.unwrap_err();
    assert!(matches!(error, EnrollError::Foreign(_)), "{error}");
    assert_eq!(other.stats().refused_guests, 0);
}

#[tokio::test]
async fn an_unreachable_broker_is_named_with_the_reason_for_each_address() {
    let net = Network::new().await;
    let closed = free_port();
    let brokers = vec![BrokerAddr::Addr(closed), BrokerAddr::Host("no-such-host.invalid".to_owned(), 6060)];
    let invite = Invite { brokers, ..net.invite(None, DAY).await };
    let error = Machine::new("anna").redeem(&invite).await.unwrap_err().to_string();
    for words in [&closed.to_string(), "refused", "no-such-host.invalid", "does not resolve"] {
        assert!(error.contains(words), "{words} in {error}");
    }
}

#[tokio::test]
async fn an_address_that_does_not_work_does_not_keep_a_machine_from_the_next() {
    let net = Network::new().await;
    let mut brokers = vec![BrokerAddr::Addr(free_port())];
    brokers.extend(net.brokers());
    let invite = Invite { brokers, ..net.invite(None, DAY).await };
    assert!(Machine::new("anna").redeem(&invite).await.is_ok());
}

#[tokio::test]
async fn two_members_are_introduced_and_talk_through_the_broker() {
    let net = Network::new().await;
    let (anna, bert) = (net.member("anna").await, net.member("bert").await);
    let (mut anna, a) = net.join(&anna).await;
    let (mut bert, _) = net.join(&bert).await;
    assert_eq!(a.observed, anna.local);

    let target = Target::Addr("10.77.0.2".parse().unwrap());
    anna.say(ToBroker::Connect { request: RequestId(7), target, noise: vec![1; 148] });
    let (to_anna, to_bert) = (anna.offer().await, bert.offer().await);
    assert_eq!(to_anna.attempt, to_bert.attempt);
    assert_eq!((to_anna.request, to_bert.request), (Some(RequestId(7)), None));
    assert_eq!(to_bert.noise, vec![1; 148], "the handshake rides on the introduction");
    let peer = net.authority.anchor().verify(&to_anna.peer.certificate, clock::now().unix).unwrap();
    assert_eq!(peer.subject.uri.name.as_str(), "bert");

    bert.say(ToBroker::Convey { attempt: to_bert.attempt, noise: vec![2; 92] });
    let conveyed = anna.message().await;
    assert_eq!(conveyed, FromBroker::Conveyed { attempt: to_anna.attempt, noise: vec![2; 92] });
    assert_eq!((net.stats().introduced, net.stats().conveyed), (1, 1));
}

#[tokio::test]
async fn questions_about_the_network_are_answered() {
    let net = Network::new().await;
    let (anna, _bert) = (net.member("anna").await, net.member("bert").await);
    let (mut anna, _) = net.join(&anna).await;
    anna.say(ToBroker::List { request: RequestId(1), after: None });
    let FromBroker::Listing { members, more, .. } = anna.message().await else { panic!("a listing") };
    let online: Vec<bool> = members.iter().map(|member| member.online).collect();
    assert_eq!((online, more), (vec![true, false], false));
    let target = Target::Name("bert".parse().unwrap());
    anna.say(ToBroker::Connect { request: RequestId(2), target, noise: vec![] });
    assert_eq!(anna.refusal().await, (RequestId(2), Refusal::Offline));
    anna.say(ToBroker::Lookup { request: RequestId(3), target: Target::Name("carl".parse().unwrap()) });
    assert_eq!(anna.refusal().await, (RequestId(3), Refusal::NotFound));
}

#[tokio::test]
async fn a_revoked_member_is_cut_off_and_the_others_get_the_list() {
    let net = Network::new().await;
    let (anna, bert) = (net.member("anna").await, net.member("bert").await);
    let (mut a, _) = net.join(&anna).await;
    let (mut b, _) = net.join(&bert).await;
    assert_eq!(net.broker().revoke("bert".parse().unwrap()).await.unwrap(), 1);

    let FromBroker::Revocations(signed) = a.message().await else { panic!("the list") };
    let list = RevocationList::parse_signed(&signed, net.authority.anchor()).unwrap();
    assert!(list.contains(&bert.certificate.serial) && !list.contains(&anna.certificate.serial));

    let (why, fatal) = b.down().await;
    assert!(fatal && why.contains("revoked") && why.contains("new invite"), "{why}");
    let (why, fatal) = net.refused(&bert).await;
    assert!(fatal && why.contains("revoked"), "it cannot come back: {why}");
    a.say(ToBroker::Lookup { request: RequestId(1), target: Target::Name("bert".parse().unwrap()) });
    assert_eq!(a.refusal().await, (RequestId(1), Refusal::NotFound));
    assert!(net.broker().revoke("nobody".parse().unwrap()).await.is_err());
    assert!(net.broker().revoke("broker".parse().unwrap()).await.is_err(), "not the branch it sits on");
}

#[tokio::test]
async fn a_certificate_signed_elsewhere_is_good_and_a_foreign_one_is_not() {
    let net = Network::new().await;
    let by_hand = net.signed_by_hand("nas", "10.77.3.4", DAY);
    let (_nas, _) = net.join(&by_hand).await;
    let members = net.broker().members().await.unwrap();
    assert_eq!(members.len(), 1, "it is written down when it first comes");

    let other = Network::new().await;
    let foreign = other.signed_by_hand("nas", "10.77.3.4", DAY);
    let (why, fatal) = net.refused(&foreign).await;
    assert!(fatal && why.contains("another network"), "{why}");

    let thief = net.signed_by_hand("thief", "10.77.3.4", DAY);
    let (why, fatal) = net.refused(&thief).await;
    assert!(fatal && why.contains("belongs to nas"), "{why}");
}

#[tokio::test]
async fn a_member_renews_its_certificate_over_the_connection() {
    let net = Network::new().await;
    // An hour-long life that began before the clock skew allowance: more than a third of it is over.
    let old = net.signed_at("anna", "10.77.0.1", clock::now().unix.secs() - 3600, Duration::from_secs(7200));
    let (mut anna, _) = net.join(&old).await;
    let csr = SigningRequest::new(&"anna".parse().unwrap(), &old.key, old.wg.public());
    anna.say(ToBroker::Renew { request: RequestId(1), csr: csr.emit() });
    let FromBroker::Renewed { certificate, .. } = anna.message().await else { panic!("a certificate") };
    let renewed = net.authority.anchor().verify(&certificate, clock::now().unix).unwrap();
    assert_eq!(renewed.subject, old.certificate.subject);
    assert!(renewed.not_after > old.certificate.not_after);

    anna.say(ToBroker::Renew { request: RequestId(2), csr: csr.emit() });
    assert_eq!(anna.refusal().await, (RequestId(2), Refusal::TooMany), "the new one is fresh");

    assert!(anna.link.replace_certificate(renewed.clone()));
    net.broker().revoke("anna".parse().unwrap()).await.unwrap();
    let (why, fatal) = net.refused(&old).await;
    assert!(fatal && why.contains("revoked"), "the older certificate is taken back too: {why}");
}

#[tokio::test]
async fn bytes_that_are_no_hello_get_no_answer_and_are_counted() {
    let net = Network::new().await;
    let hello = client_hello(&net, tls::ALPN);
    let foreign = client_hello(&net, b"h2");
    let garbage: [(&str, Vec<u8>); 8] = [
        ("nothing", vec![]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-scanner\r\n".to_vec()),
        ("ones", vec![0xff; 20_000]),
        ("zeroes", vec![0; 20_000]),
        ("a record that claims to be long", vec![0x16, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xff]),
        ("half a hello", hello.get(..hello.len() / 2).unwrap().to_vec()),
        ("a hello for another protocol", foreign),
    ];
    for (n, (case, bytes)) in garbage.into_iter().enumerate() {
        assert_eq!(answer_to(&net, &bytes).await, 0, "{case}");
        let counted = net.until(|stats| stats.garbage >= u64::try_from(n + 1).unwrap()).await;
        assert_eq!(counted.accepted, u64::try_from(n + 1).unwrap());
    }
    assert!(answer_to(&net, &hello).await > 0, "the whole hello is answered");
}

#[tokio::test]
async fn a_guest_may_redeem_and_nothing_else() {
    let net = Network::new().await;
    let too_long = vec![0; MAX_UNAUTHENTICATED + 1];
    for (n, message) in [
        ToBroker::Ping { nonce: 1 }.emit(),
        ToBroker::Register(register()).emit(),
        ToBroker::List { request: RequestId(1), after: None }.emit(),
        vec![],
        too_long,
    ]
    .into_iter()
    .enumerate()
    {
        let mut guest = net.guest().await;
        write_frame(&mut guest, &message).await.unwrap();
        let mut reader = FrameReader::new(guest, 65_535);
        let answer = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap();
        assert!(!matches!(answer, Ok(Some(_))), "message {n} was answered");
        net.until(|stats| stats.malformed > u64::try_from(n).unwrap()).await;
    }
}

#[tokio::test]
async fn a_member_that_talks_nonsense_is_cut_off() {
    let net = Network::new().await;
    let anna = net.member("anna").await;
    let mut stream = net.tls(tls::client(&anna).unwrap()).await;
    write_frame(&mut stream, &ToBroker::List { request: RequestId(1), after: None }.emit()).await.unwrap();
    let mut reader = FrameReader::new(stream, 65_535);
    let first = reader.next().await.unwrap().unwrap();
    let said = FromBroker::parse(&first).unwrap();
    assert!(matches!(said, FromBroker::Refused { why: Refusal::Malformed, .. }), "{said:?}");
    assert!(!matches!(tokio::time::timeout(PATIENCE, reader.next()).await.unwrap(), Ok(Some(_))));
    net.until(|stats| stats.connections == 0).await;
}

#[tokio::test]
async fn a_udp_registration_tells_both_sides_the_mapped_address_and_replays_do_not() {
    let net = Network::new().await;
    let (anna, bert) = (net.member("anna").await, net.member("bert").await);
    let (mut a, _) = net.join(&anna).await;
    let (b, registered) = net.join(&bert).await;
    let server = net.address;
    assert!(registered.udp.contains(&server), "{registered:?}");
    let (home, away) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());

    let first = registration(&registered, &b.key, 100);
    assert_eq!(exchange(&home, server, &first, &b.key).await, Some(home.local_addr().unwrap()));
    assert_eq!(mapped_of_bert(&mut a).await, [outside(&home)]);

    // The thief of the first message cannot move the registration to where he is; the second message proves that the
    // server went on after his.
    let later = registration(&registered, &b.key, 200);
    away.send_to(&first, server).await.unwrap();
    assert_eq!(exchange(&home, server, &later, &b.key).await, Some(home.local_addr().unwrap()));
    assert_eq!(mapped_of_bert(&mut a).await, [outside(&home)]);
    assert_eq!(net.stats().udp_refused, 1);

    let moved = registration(&registered, &b.key, 300);
    assert_eq!(exchange(&away, server, &moved, &b.key).await, Some(away.local_addr().unwrap()));
    assert_eq!(mapped_of_bert(&mut a).await, [outside(&away)]);
}

#[tokio::test]
async fn a_member_learns_what_its_tcp_connection_looks_like_and_a_stranger_learns_nothing() {
    let net = Network::new().await;
    let anna = net.member("anna").await;
    let (anna, registered) = net.join(&anna).await;
    let ask = async |question: &[u8]| {
        let mut stream = TcpStream::connect(net.address).await.unwrap();
        let local = stream.local_addr().unwrap();
        stream.write_all(question).await.unwrap();
        let mut answer = vec![0; 512];
        let len = stream.read(&mut answer).await.unwrap_or(0);
        answer.truncate(len);
        (local, answer)
    };
    let (local, answer) = ask(&registration(&registered, &anna.key, 1)).await;
    let answer = Received::parse(&answer).unwrap();
    assert!(answer.is_authentic(&anna.key));
    assert_eq!(answer.message.mapped(), Some(local));
    let (_, answer) = ask(&registration(&registered, &[9; 32], 2)).await;
    assert_eq!(answer, b"", "a wrong key");
    let plain = Message::request(BINDING, TransactionId([1; 12])).emit(Integrity::None);
    assert_eq!(ask(&plain).await.1, b"", "no key at all");
}

#[tokio::test]
async fn strangers_get_a_plain_binding_answer_and_garbage_gets_none() {
    let net = Network::new().await;
    let server = net.address;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for garbage in [&b""[..], b"hello", &[0xff; 1200], &[0, 1, 0, 0]] {
        socket.send_to(garbage, server).await.unwrap();
    }
    let unknown = Message::request(BINDING, TransactionId([2; 12]))
        .with(Attribute::Username(vec![0; 8]))
        .with(Attribute::Timestamp(1))
        .emit(Integrity::Sha256(&[0; 32]));
    socket.send_to(&unknown, server).await.unwrap();
    // Only the last question is answered, so the first answer that comes is its.
    let question = Message::request(BINDING, TransactionId([3; 12]));
    socket.send_to(&question.emit(Integrity::None), server).await.unwrap();
    let mut buffer = [0; 1500];
    let (len, _) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    let answer = Received::parse(buffer.get(..len).unwrap()).unwrap().message;
    assert_eq!((answer.transaction, answer.mapped()), (question.transaction, socket.local_addr().ok()));
    let stats = net.stats();
    assert_eq!((stats.udp_bindings, stats.udp_refused), (1, 1));
    assert!(stats.udp_garbage >= 3);
}

#[tokio::test]
async fn a_restart_forgets_nobody_and_members_come_back_by_themselves() {
    let mut net = Network::new().await;
    let (anna, bert) = (net.member("anna").await, net.member("bert").await);
    let used = net.invite(None, DAY).await;
    Machine::new("carl").redeem(&used).await.unwrap();
    let unused = net.invite(None, DAY).await;
    net.broker().revoke("bert".parse().unwrap()).await.unwrap();
    let (mut a, before) = net.join(&anna).await;
    net.restart().await;

    let (why, fatal) = a.down().await;
    assert!(!fatal, "{why}");
    let after = a.up().await;
    assert_ne!(after.registration, before.registration);
    assert!(matches!(a.message().await, FromBroker::Revocations(_)), "the list is still in force");
    let names: Vec<String> = net
        .broker()
        .members()
        .await
        .unwrap()
        .iter()
        .map(|m| m.certificate.subject.uri.name.to_string())
        .collect();
    assert_eq!(names, ["anna", "carl"].map(str::to_owned));
    assert!(net.refused(&bert).await.0.contains("revoked"));
    assert_eq!(Machine::new("dora").redeem(&used).await, Err(EnrollError::InvalidInvite));
    let dora = Machine::new("dora").redeem(&unused).await.unwrap();
    assert_eq!(dora.subject.addrs.unwrap().v4.to_string(), "10.77.0.4", "bert's address rests");
}

/// Names the directory for the child of the next test, which is this same program.
const CHILD_DIR: &str = "NTCP_TEST_ENROL_UNTIL_KILLED";

#[test]
fn a_broker_that_is_killed_has_forgotten_nobody_whom_it_answered() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        enrol_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut answered = Vec::new();
    for _ in 0..3 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_broker_that_is_killed_has_forgotten_nobody_whom_it_answered", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut names = lines.filter_map(|line| line.strip_prefix("enrolled ").map(str::to_owned));
        answered.extend(names.by_ref().take(5));
        child.kill().unwrap();
        child.wait().unwrap();
        answered.extend(names);
    }
    let (store, _) = open_store(dir.path());
    let members = store.members().unwrap();
    let known: Vec<&str> = members.iter().map(|m| m.certificate.subject.uri.name.as_str()).collect();
    assert!(
        answered.len() >= 15 && answered.iter().all(|name| known.contains(&name.as_str())),
        "{answered:?} {known:?}"
    );
    let mut addresses: Vec<_> = members.iter().map(|m| m.certificate.subject.addrs.unwrap()).collect();
    let count = addresses.len();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), count, "no address was given out twice");
}

fn enrol_until_killed(dir: &Path) -> ! {
    let (store, authority) = open_store(dir);
    let now = clock::now().unix;
    loop {
        let (secret, name) = (clock::random(), format!("m{:016x}", u64::from_be_bytes(clock::random())));
        let grant = Grant { name: None, groups: vec![], roles: Roles::MEMBER, expires: now.plus(DAY) };
        store.add_invite(&secret, &grant, now).unwrap();
        let request = SigningRequest::new(
            &name.parse().unwrap(),
            &SigningKey::generate(),
            WgSecret::generate().public(),
        );
        store
            .redeem(&secret, &request, None, &authority, DAY, now)
            .unwrap_or_else(|error| panic!("{error:?}"));
        println!("\nenrolled {name}");
    }
}

fn open_store(dir: &Path) -> (Store, Authority) {
    let authority = match load_authority(&dir.join("broker")).unwrap() {
        Some(authority) => authority,
        None => create_network(dir, &"home".parse().unwrap(), "10.77.0.0/16".parse().unwrap()).unwrap().0,
    };
    (Store::open(&dir.join("broker/broker.redb"), authority.anchor().clone()).unwrap(), authority)
}

#[tokio::test]
async fn a_second_connection_of_a_member_ends_the_first() {
    let net = Network::new().await;
    let anna = net.member("anna").await;
    let (mut first, _) = net.join(&anna).await;
    let (_second, _) = net.join(&anna).await;
    let (why, fatal) = first.down().await;
    assert!(!fatal && why.contains("connected from elsewhere"), "{why}");
}

#[tokio::test]
async fn a_local_relay_is_offered_where_the_member_reached_the_broker() {
    let net = Network::new().await;
    let endpoint = Candidate {
        transport: Transport::Udp,
        kind: Kind::Configured,
        addr: "0.0.0.0:6061".parse().unwrap(),
    };
    net.broker().add_local_relay(net.relay.certificate.clone(), &[endpoint]);
    let (anna, bert) = (net.member("anna").await, net.member("bert").await);
    let (mut a, _) = net.join(&anna).await;
    let (mut b, _) = net.join(&bert).await;
    let target = Target::Name("bert".parse().unwrap());
    a.say(ToBroker::Connect { request: RequestId(1), target, noise: vec![] });
    let (to_a, to_b) = (a.offer().await, b.offer().await);
    let ([ra], [rb]) = (to_a.relays.as_slice(), to_b.relays.as_slice()) else { panic!("one relay each") };
    assert_eq!(ra.endpoints.first().unwrap().addr, "127.0.0.1:6061".parse().unwrap());
    assert_eq!(ra.session, rb.session);
    assert_ne!(ra.token, rb.token);
    assert_eq!(ra.certificate, net.relay.certificate.der);
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_tried_again_and_the_words_say_so() {
    let net = Network::new().await;
    let anna = net.member("anna").await;
    let closed = free_port();
    let (link, mut events) = link_to(vec![BrokerAddr::Addr(closed)], &anna);
    let LinkEvent::Down { why, fatal, .. } = next(&mut events).await else { panic!("nobody is there") };
    assert!(!fatal && why.contains("is the broker running") && why.contains(&closed.to_string()), "{why}");
    assert!(matches!(next(&mut events).await, LinkEvent::Down { .. }), "and again");
    drop(link);
    assert!(tokio::time::timeout(PATIENCE, async { while events.recv().await.is_some() {} }).await.is_ok());
}

#[tokio::test]
async fn an_expired_certificate_says_what_to_do() {
    let net = Network::new().await;
    let expired =
        net.signed_at("anna", "10.77.0.1", clock::now().unix.secs() - 7200, Duration::from_secs(3600));
    let (why, fatal) = net.refused(&expired).await;
    assert!(fatal && why.contains("expired") && why.contains("clock"), "{why}");
}

/// A network with its broker in this process.
struct Network {
    dir: tempfile::TempDir,
    authority: Authority,
    relay: Credentials,
    broker: Option<Handle>,
    address: SocketAddr,
}

impl Network {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let prefix = "10.77.0.0/16".parse().unwrap();
        let (authority, broker, relay) =
            create_network(dir.path(), &"home".parse().unwrap(), prefix).unwrap();
        let broker = start(dir.path(), "127.0.0.1:0".parse().unwrap(), &authority, broker).await;
        let address = *broker.listen().first().unwrap();
        Self { dir, authority, relay, broker: Some(broker), address }
    }

    async fn restart(&mut self) {
        self.broker.take().unwrap().shutdown().await;
        let credentials = ntcp_overlay::config::credentials::load(&self.dir.path().join("broker")).unwrap();
        self.broker = Some(start(self.dir.path(), self.address, &self.authority, credentials).await);
    }

    fn broker(&self) -> &Handle {
        self.broker.as_ref().unwrap()
    }

    fn brokers(&self) -> Vec<BrokerAddr> {
        vec![BrokerAddr::Addr(self.address)]
    }

    fn stats(&self) -> Stats {
        self.broker().stats()
    }

    /// Waits until the counters say so.
    async fn until(&self, wanted: impl Fn(&Stats) -> bool) -> Stats {
        let wait = async {
            while !wanted(&self.stats()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{:?}", self.stats()));
        self.stats()
    }

    async fn invite(&self, name: Option<&str>, ttl: Duration) -> Invite {
        let name = name.map(|name| name.parse().unwrap());
        let invite = self.broker().create_invite(name, vec![], Roles::MEMBER, ttl).await.unwrap();
        let [BrokerAddr::Addr(advertised)] = invite.brokers.as_slice() else { panic!("{invite:?}") };
        assert_eq!(advertised.ip(), PUBLIC);
        Invite { brokers: self.brokers(), ..invite }
    }

    /// Valid for no time at all, and that time is over.
    async fn expired_invite(&self) -> Invite {
        let invite = self.invite(None, Duration::ZERO).await;
        let made = clock::now().unix.secs();
        while clock::now().unix.secs() <= made {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        invite
    }

    /// A machine that enrolled.
    async fn member(&self, name: &str) -> Credentials {
        let machine = Machine::new(name);
        let certificate = machine.redeem(&self.invite(None, DAY).await).await.unwrap();
        machine.with(self.authority.anchor().clone(), certificate)
    }

    fn signed_by_hand(&self, name: &str, addr: &str, life: Duration) -> Credentials {
        self.signed_at(name, addr, clock::now().unix.secs(), life)
    }

    fn signed_at(&self, name: &str, addr: &str, at: u64, life: Duration) -> Credentials {
        let (machine, anchor) = (Machine::new(name), self.authority.anchor());
        let subject = ntcp_overlay::identity::certificate::Subject {
            uri: format!("ntcp://{}/{name}", anchor.network).parse().unwrap(),
            roles: Roles::MEMBER,
            addrs: Some(anchor.overlay_addrs(addr.parse().unwrap())),
            groups: vec![],
            wg: machine.wg.public(),
        };
        let (from, until) = validity(ntcp_overlay::base::time::UnixTime::from_secs(at), life);
        let certificate =
            self.authority.sign(&subject, &machine.key.public(), Serial::generate(), from, until).unwrap();
        machine.with(anchor.clone(), certificate)
    }

    /// Connects and registers.
    async fn join(&self, who: &Credentials) -> (Member, Registered) {
        let (link, events) = link_to(self.brokers(), who);
        let local = "0.0.0.0:0".parse().unwrap();
        let mut member = Member { link, events, key: [0; 32], local };
        let registered = member.up().await;
        (member, registered)
    }

    /// What somebody hears who cannot come in.
    async fn refused(&self, who: &Credentials) -> (String, bool) {
        let (_link, mut events) = link_to(self.brokers(), who);
        loop {
            match next(&mut events).await {
                LinkEvent::Down { why, fatal, .. } => return (why, fatal),
                LinkEvent::Message(_) => {}
                up @ LinkEvent::Up { .. } => panic!("let in: {up:?}"),
            }
        }
    }

    async fn guest(&self) -> TlsStream<TcpStream> {
        let verifier = tls::verifier(&self.authority.anchor().der).unwrap();
        self.tls(tls::stranger(verifier).unwrap()).await
    }

    async fn tls(&self, config: Arc<rustls::ClientConfig>) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(config).connect(tls::broker_name(), stream).await.unwrap()
    }
}

async fn start(dir: &Path, listen: SocketAddr, authority: &Authority, credentials: Credentials) -> Handle {
    let config = BrokerConfig {
        listen: vec![Listen { addr: listen, optional: false }],
        // Members of these tests are on the broker's own machine: this is where it says that they are.
        advertise: vec![BrokerAddr::Addr(SocketAddr::from((PUBLIC, listen.port())))],
        dir: dir.join("broker"),
        credentials,
        authority: Some(authority.clone()),
        certificate_ttl: DAY * 90,
        forge: false,
    };
    BrokerServer::start(config).await.unwrap()
}

/// A machine that has keys and no certificate.
struct Machine {
    key: SigningKey,
    wg: WgSecret,
    request: SigningRequest,
}

impl Machine {
    fn new(name: &str) -> Self {
        let (key, wg) = (SigningKey::generate(), WgSecret::generate());
        let request = SigningRequest::new(&name.parse().unwrap(), &key, wg.public());
        Self { key, wg, request }
    }

    async fn redeem(&self, invite: &Invite) -> Result<Certificate, EnrollError> {
        enroll::redeem(invite, &self.request, &Proxies::none()).await.map(|(_, certificate)| certificate)
    }

    fn with(
        self,
        anchor: ntcp_overlay::identity::certificate::TrustAnchor,
        certificate: Certificate,
    ) -> Credentials {
        Credentials::new(anchor, certificate, self.key, self.wg).unwrap()
    }
}

/// A member that is connected.
struct Member {
    link: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
    key: [u8; 32],
    local: SocketAddr,
}

impl Member {
    fn say(&self, message: ToBroker) {
        assert!(self.link.send(message));
    }

    async fn up(&mut self) -> Registered {
        loop {
            match next(&mut self.events).await {
                LinkEvent::Up { registered, registration_key, local, broker_name, .. } => {
                    assert_eq!(broker_name.as_str(), "broker");
                    (self.key, self.local) = (registration_key, local);
                    return registered;
                }
                LinkEvent::Down { fatal: true, why, .. } => panic!("refused: {why}"),
                LinkEvent::Down { .. } | LinkEvent::Message(_) => {}
            }
        }
    }

    async fn down(&mut self) -> (String, bool) {
        loop {
            if let LinkEvent::Down { why, fatal, .. } = next(&mut self.events).await {
                return (why, fatal);
            }
        }
    }

    async fn message(&mut self) -> FromBroker {
        match next(&mut self.events).await {
            LinkEvent::Message(message) => message,
            other => panic!("a message was expected, not {other:?}"),
        }
    }

    async fn offer(&mut self) -> Offer {
        match self.message().await {
            FromBroker::Offer(offer) => offer,
            other => panic!("an offer was expected, not {other:?}"),
        }
    }

    async fn refusal(&mut self) -> (RequestId, Refusal) {
        match self.message().await {
            FromBroker::Refused { request, why, .. } => (request, why),
            other => panic!("a refusal was expected, not {other:?}"),
        }
    }
}

fn link_to(brokers: Vec<BrokerAddr>, who: &Credentials) -> (LinkHandle, mpsc::Receiver<LinkEvent>) {
    let (sender, events) = mpsc::channel(64);
    let config =
        LinkConfig { brokers, proxies: Proxies::none(), credentials: who.clone(), register: register() };
    (Link::spawn(config, sender), events)
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event").expect("a link")
}

fn register() -> Register {
    Register {
        software: "test".to_owned(),
        candidates: vec![],
        profile: Profile::default(),
        relay: vec![],
        revocations: 0,
        watch: false,
    }
}

/// The addresses at which the broker says that Bert is.
async fn mapped_of_bert(asker: &mut Member) -> Vec<SocketAddr> {
    let target = Target::Name("bert".parse().unwrap());
    asker.say(ToBroker::Connect { request: RequestId(1), target, noise: vec![] });
    let mapped = |c: &&Candidate| c.kind == Kind::Mapped && c.transport == Transport::Udp;
    asker.offer().await.candidates.iter().filter(mapped).map(|c| c.addr).collect()
}

/// How others are told of a socket on the broker's own machine.
fn outside(socket: &UdpSocket) -> SocketAddr {
    SocketAddr::from((PUBLIC, socket.local_addr().unwrap().port()))
}

fn registration(registered: &Registered, key: &[u8; 32], time: u64) -> Vec<u8> {
    Message::request(BINDING, TransactionId([1; 12]))
        .with(Attribute::Username(registered.registration.0.to_be_bytes().to_vec()))
        .with(Attribute::Timestamp(time))
        .emit(Integrity::Sha256(key))
}

/// Sends a registration and answers the mapped address that an authentic answer names.
async fn exchange(
    socket: &UdpSocket,
    server: SocketAddr,
    bytes: &[u8],
    key: &[u8; 32],
) -> Option<SocketAddr> {
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = [0; 1500];
    let (len, _) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    let answer = Received::parse(buffer.get(..len).unwrap()).unwrap();
    assert!(answer.is_authentic(key));
    answer.message.mapped()
}

/// Sends raw bytes, then nothing more, and counts what comes back.
async fn answer_to(net: &Network, bytes: &[u8]) -> usize {
    let mut stream = TcpStream::connect(net.address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    // An abrupt end is as good as a clean one.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    answer.len()
}

/// The first bytes of a TLS client that asks for `protocol`.
fn client_hello(net: &Network, protocol: &[u8]) -> Vec<u8> {
    let verifier = tls::verifier(&net.authority.anchor().der).unwrap();
    let mut config = (*tls::stranger(verifier).unwrap()).clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    let mut client = rustls::ClientConnection::new(Arc::new(config), tls::broker_name()).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    assert_eq!(client.reader().read(&mut [0]).map_err(|e| e.kind()), Err(std::io::ErrorKind::WouldBlock));
    bytes
}

/// A port of loopback on which nobody listens.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
