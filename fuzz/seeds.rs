//! Writes the inputs that fuzzing starts from: one good message of each kind. Run it after a format changed:
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`

use std::fs;
use std::path::Path;
use std::time::Duration;

use ntcp_overlay::base::cursor::Writer;
use ntcp_overlay::base::hidden::Hidden;
use ntcp_overlay::base::id::AttemptId;
use ntcp_overlay::base::id::RegistrationId;
use ntcp_overlay::base::id::RelaySession;
use ntcp_overlay::base::id::RequestId;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::identity::certificate::Roles;
use ntcp_overlay::identity::certificate::Serial;
use ntcp_overlay::identity::certificate::Subject;
use ntcp_overlay::identity::keys::SigningKey;
use ntcp_overlay::identity::keys::WgPublic;
use ntcp_overlay::identity::names::MemberUri;
use ntcp_overlay::nat::behavior::Profile;
use ntcp_overlay::nat::candidate::Candidate;
use ntcp_overlay::nat::candidate::Kind;
use ntcp_overlay::nat::candidate::Transport;
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::MemberRecord;
use ntcp_overlay::wire::broker::Offer;
use ntcp_overlay::wire::broker::Refusal;
use ntcp_overlay::wire::broker::Register;
use ntcp_overlay::wire::broker::Registered;
use ntcp_overlay::wire::broker::RelayDelay;
use ntcp_overlay::wire::broker::RelayOffer;
use ntcp_overlay::wire::broker::RelayPlace;
use ntcp_overlay::wire::broker::Target;
use ntcp_overlay::wire::broker::ToBroker;
use ntcp_overlay::wire::enroll::BrokerAddr;
use ntcp_overlay::wire::enroll::Invite;
use ntcp_overlay::wire::enroll::SigningRequest;
use ntcp_overlay::wire::frame;
use ntcp_overlay::wire::ip;
use ntcp_overlay::wire::ip::emit;
use ntcp_overlay::wire::relay::Channel;
use ntcp_overlay::wire::relay::Token;
use ntcp_overlay::wire::stun::Attribute;
use ntcp_overlay::wire::stun::BINDING;
use ntcp_overlay::wire::stun::Integrity;
use ntcp_overlay::wire::stun::Message;
use ntcp_overlay::wire::stun::RELAY_BIND;
use ntcp_overlay::wire::stun::STUNT_PROBE;
use ntcp_overlay::wire::stun::STUNT_SEEN;
use ntcp_overlay::wire::stun::TransactionId;
use ntcp_overlay::wire::stun::stunt;
use ntcp_overlay::wire::stun::stunt::Capabilities;
use ntcp_overlay::wire::stun::stunt::Event;
use ntcp_overlay::wire::stun::stunt::Outcome;
use ntcp_overlay::wire::stun::stunt::Segment;
use ntcp_overlay::wire::stun::stunt::Server;
use ntcp_overlay::wire::stun::stunt::Action;
use ntcp_overlay::wire::stun::stunt::Port;
use ntcp_overlay::wire::stun::stunt::Probe;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let now = UnixTime::from_secs(1_800_000_000);
    let key = SigningKey::from_seed(&[7; 32]);
    let ca = Authority::create_with(
        SigningKey::from_seed(&[1; 32]),
        &"home".parse()?,
        "10.77.0.0/16".parse()?,
        now,
    );
    let subject = Subject {
        uri: "ntcp://home/nas".parse::<MemberUri>()?,
        roles: Roles::MEMBER,
        addrs: Some(ca.anchor().overlay_addrs([10, 77, 0, 2].into())),
        groups: vec!["admin".parse()?, "storage".parse()?],
        wg: WgPublic([9; 32]),
    };
    let end = now.plus(Duration::from_secs(90 * 86_400));
    let certificate = ca.sign(&subject, &key.public(), Serial([3; 16]), now, end)?;
    write("certificate", "ca", &ca.anchor().der)?;
    write("certificate", "member", &certificate.der)?;

    let list = ntcp_overlay::identity::revocation::RevocationList {
        version: 2,
        issued: now,
        serials: vec![Serial([3; 16]), Serial([4; 16])],
    };
    let signed = ca.sign_revocations(&list);
    write("revocation", "signed", &signed)?;
    write("revocation", "unsigned", &signed[..signed.len() - 64])?;

    let token = Token {
        session: RelaySession([5; 16]),
        side: 1,
        member: WgPublic([9; 32]),
        relay: WgPublic([8; 32]),
        expires: end,
    };
    let token = token.with_signature(&key.sign(&token.signed_part()));
    write("relay_token", "token", &token)?;
    write("relay_token", "relayed", &[&Channel::new(1).header()[..], b"payload"].concat())?;

    let invite = Invite {
        network: "home".parse()?,
        ca: [2; 32],
        secret: [3; 32],
        brokers: vec![
            BrokerAddr::Addr("198.51.100.1:6060".parse()?),
            BrokerAddr::Addr("[2001:db8::1]:443".parse()?),
            BrokerAddr::Host("broker.example".to_owned(), 6060),
        ],
    };
    let request = SigningRequest::new(&"nas".parse()?, &key, WgPublic([9; 32])).emit();
    write("invite", "text", invite.to_text().as_bytes())?;
    write("invite", "body", &unpacked(&invite)?)?;
    write("invite", "request", &request)?;

    let candidates = vec![
        Candidate { transport: Transport::Udp, kind: Kind::Mapped, addr: "203.0.113.5:4242".parse()? },
        Candidate { transport: Transport::Tcp, kind: Kind::Host, addr: "[2001:db8::5]:4242".parse()? },
    ];
    let to = [
        ToBroker::Redeem { secret: Hidden([3; 32]), request: request.clone() },
        ToBroker::Register(Register {
            software: "0.1.0".to_owned(),
            candidates: candidates.clone(),
            profile: Profile::default(),
            relay: candidates.clone(),
            revocations: 2,
            watch: true,
        }),
        ToBroker::Update { candidates: candidates.clone(), profile: Profile::default() },
        ToBroker::Lookup { request: RequestId(1), target: Target::Addr("10.77.0.2".parse()?) },
        ToBroker::List { request: RequestId(2), after: Some("nas".parse()?) },
        ToBroker::Connect {
            request: RequestId(3),
            target: Target::Name("nas".parse()?),
            noise: vec![1; 148],
        },
        ToBroker::Convey { attempt: AttemptId([6; 16]), noise: vec![2; 92] },
        ToBroker::Ready {
            attempt: AttemptId([6; 16]),
            round: 1,
            endpoints: vec!["203.0.113.5:50000".parse()?; 2],
            rtt: 80,
        },
        ToBroker::Delays(vec![
            RelayDelay { name: "nas".parse()?, rtt: Some(40) },
            RelayDelay { name: "far".parse()?, rtt: None },
        ]),
        ToBroker::Dialled {
            attempt: AttemptId([6; 16]),
            round: 1,
            forge: true,
            from: "203.0.113.5:50000".parse()?,
            syn: vec![0x50; 40],
        },
        ToBroker::Renew { request: RequestId(4), csr: request },
        ToBroker::Ping { nonce: 5 },
    ];
    for (n, message) in to.iter().enumerate() {
        write("broker_pre_auth", &n.to_string(), &message.emit())?;
    }
    let member = MemberRecord { certificate: certificate.der.clone(), online: true, last_seen: now };
    let from = [
        FromBroker::Enrolled { certificate: certificate.der.clone() },
        FromBroker::Registered(Registered {
            registration: RegistrationId(7),
            udp: vec!["198.51.100.1:6060".parse()?],
            stun: vec!["198.51.100.1:3478".parse()?],
            observed: "203.0.113.5:50000".parse()?,
            time: now,
            forge: true,
        }),
        FromBroker::Found { request: RequestId(1), member: member.clone() },
        FromBroker::Listing { request: RequestId(2), members: vec![member.clone(); 2], more: true },
        FromBroker::Offer(Offer {
            attempt: AttemptId([6; 16]),
            request: Some(RequestId(3)),
            peer: member.clone(),
            candidates: candidates.clone(),
            profile: Profile::default(),
            relays: vec![RelayOffer {
                certificate: certificate.der.clone(),
                endpoints: candidates.clone(),
                session: RelaySession([5; 16]),
                token: Hidden(token.clone()),
            }],
            noise: vec![1; 148],
        }),
        FromBroker::Conveyed { attempt: AttemptId([6; 16]), noise: vec![2; 92] },
        FromBroker::Awaited { attempt: AttemptId([6; 16]), round: 1 },
        FromBroker::Go {
            attempt: AttemptId([6; 16]),
            round: 1,
            endpoints: vec!["203.0.113.5:50000".parse()?; 2],
            wait: 10,
        },
        FromBroker::Changed(member),
        FromBroker::Revocations(signed),
        FromBroker::Renewed { request: RequestId(4), certificate: certificate.der },
        FromBroker::Refused { request: RequestId(5), why: Refusal::Offline, text: "off".to_owned() },
        FromBroker::Pong { nonce: 5 },
        FromBroker::Relays(vec![RelayPlace { name: "nas".parse()?, endpoints: candidates }]),
    ];
    for (n, message) in from.iter().enumerate() {
        write("broker_from", &n.to_string(), &message.emit())?;
    }

    let id = TransactionId([1; 12]);
    let plain = Message::request(BINDING, id);
    let registration =
        plain.clone().with(Attribute::Username(vec![0; 8])).with(Attribute::Timestamp(now.micros()));
    let bind = Message::request(RELAY_BIND, id)
        .with(Attribute::RelayToken(token))
        .with(Attribute::Timestamp(now.micros()));
    let discovery = plain
        .clone()
        .with(Attribute::ChangeRequest { ip: true, port: true })
        .with(Attribute::ResponsePort(9))
        .with(Attribute::Padding(64));
    let answer = plain
        .success()
        .with(Attribute::XorMappedAddress("[2001:db8::5]:4242".parse()?))
        .with(Attribute::MappedAddress("203.0.113.5:4242".parse()?))
        .with(Attribute::ResponseOrigin("198.51.100.1:3478".parse()?))
        .with(Attribute::OtherAddress("198.51.100.2:3479".parse()?))
        .with(Attribute::RelayChannel(0x4001));
    let refusal = plain.refusal(420, "unknown").with(Attribute::UnknownAttributes(vec![0x7abc]));
    for (name, bytes) in [
        ("plain", plain.emit(Integrity::None)),
        ("classic", plain.emit_classic([1, 2, 3, 4])),
        ("registration", registration.emit(Integrity::Sha256(b"key"))),
        ("older", registration.emit(Integrity::Sha1(b"key"))),
        ("bind", bind.emit(Integrity::Sha256(b"key"))),
        ("discovery", discovery.emit(Integrity::None)),
        ("answer", answer.emit(Integrity::Sha256(b"key"))),
        ("refusal", refusal.emit(Integrity::None)),
    ] {
        write("stun", name, &bytes)?;
        write("demux_ip", name, &bytes)?;
        write("stun_server", name, &[&[0, 0, 0, u8::try_from(bytes.len())?], &bytes[..]].concat())?;
    }

    // One answer that serves every question of a survey, as often as there are questions.
    let can = Capabilities { connect: true, silent: true, own_syn: true, watch: true, forge: true };
    let addresses = vec!["198.51.100.1".parse()?, "198.51.100.2".parse()?];
    let server = Server { can, port: 3478, alternate: Some(3479), silent: Some(3480), addresses };
    let segment = Segment { flags: stunt::SYN, destination: 3480, source: 4242, ..Segment::default() };
    let everything = plain
        .success()
        .with(Attribute::XorMappedAddress("203.0.113.5:4242".parse()?))
        .with(Attribute::OtherAddress("198.51.100.2:3479".parse()?))
        .with(Attribute::StuntServer(server))
        .with(Attribute::StuntOutcome(Outcome { event: Event::Silence, after: Duration::from_secs(8) }))
        .with(Attribute::StuntSegment(segment));
    let bytes = everything.emit(Integrity::None);
    let answer = [&[u8::try_from(bytes.len())?][..], &bytes].concat();
    write("survey", "stunt", &answer.repeat(70))?;

    let probe = |action, port| {
        let probe = Probe { action, address: 1, port, target: None, watch: Duration::from_secs(3) };
        Message::request(STUNT_PROBE, id).with(Attribute::StuntProbe(probe)).emit(Integrity::None)
    };
    let mut knock = Writer::new();
    knock.u16(4001).u16(3480).u32(7).u32(0).u8(5 << 4).u8(stunt::SYN).u16(64_240).u32(0);
    let knock = emit::packet([203, 0, 113, 5].into(), [198, 51, 100, 2].into(), ip::TCP, 64, knock, 16);
    let offer =
        stunt::Server { port: 3478, addresses: vec![[198, 51, 100, 1].into()], ..stunt::Server::default() };
    let outcome =
        stunt::Outcome { event: stunt::Event::Icmp { kind: 3, code: 13 }, after: Duration::from_secs(6) };
    let segment =
        stunt::Segment { flags: stunt::SYN, options: vec![2, 4, 5, 180], ..stunt::Segment::default() };
    let told = plain.success().with(Attribute::StuntServer(offer)).with(Attribute::StuntOutcome(outcome));
    write("stun", "stunt-answer", &told.with(Attribute::StuntSegment(segment)).emit(Integrity::None))?;
    let seen = Message::request(STUNT_SEEN, id).emit(Integrity::None);
    let mut story = Vec::new();
    for (kind, bytes) in [
        (2, probe(Action::Connect, Port::Alternate)),
        (0, knock),
        (3, probe(Action::Connect, Port::Silent)),
        (6, probe(Action::SynAck, Port::Silent)),
        (2, probe(Action::Icmp { kind: 11, code: 0 }, Port::Silent)),
        (2, probe(Action::Wait { seconds: 9 }, Port::Main)),
        (3, seen),
    ] {
        write("stun", &format!("stunt-{}", story.len()), &bytes)?;
        story.extend([&[kind, 10, u8::try_from(bytes.len())?], &bytes[..]].concat());
    }
    write("stunt", "story", &story)?;

    let syn = [0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4];
    let mut v4 = vec![0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    v4.extend(syn);
    let mut v6 = vec![0x60, 0, 0, 0, 0, 40, 0, 64];
    v6.extend([0xfd; 16]);
    v6.extend([0xfc; 16]);
    v6.extend([44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9]);
    v6.extend(syn);
    write("demux_ip", "syn-v4", &v4)?;
    write("demux_ip", "syn-v6", &v6)?;
    write("demux_ip", "relayed", &[&Channel::new(1).header()[..], &v4].concat())?;

    let mut stream = vec![5];
    for payload in [&b"first"[..], b"", b"third and longer than a piece"] {
        stream.extend(frame::header(payload.len()).ok_or("short")?);
        stream.extend(payload);
    }
    write("frame", "three", &stream)?;
    Ok(())
}

/// The bytes inside an invite's text, without the checksum.
fn unpacked(invite: &Invite) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    use base64::Engine as _;
    let text = invite.to_text();
    let packed = text.strip_prefix("ntcp1-").ok_or("an invite begins with ntcp1-")?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(packed)?;
    Ok(bytes[..bytes.len() - 4].to_vec())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}
