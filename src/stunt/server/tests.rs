//! Stories about the STUNT server: who gets what done, how often, and to whom never.

use proptest::prelude::*;

use super::*;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::wire::stun::BINDING;
use crate::wire::stun::TransactionId;
use crate::wire::stun::captured;

const ANNA: &str = "203.0.113.5:4242";
const BERT: &str = "203.0.113.9:4242";
const HERE: &str = "198.51.100.1:3478";
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_connection_back_goes_to_the_asker_from_wherever_he_names() {
    for (address, port, target, from, to) in [
        (0, Port::Alternate, None, "198.51.100.1:3479", ANNA),
        (1, Port::Main, None, "198.51.100.2:3478", ANNA),
        (2, Port::Alternate, None, "198.51.100.3:3479", ANNA),
        (1, Port::Silent, None, "198.51.100.2:3480", ANNA),
        (2, Port::Any, None, "198.51.100.3:0", ANNA),
        (1, Port::Main, Some(4242), "198.51.100.2:3478", ANNA),
        (1, Port::Main, Some(50_000), "198.51.100.2:3478", "203.0.113.5:50000"),
    ] {
        let mut story = Story::new(Means { own_syn: true, raw: true });
        let probe = Probe { address, port, target, ..connect() };
        let (ticket, order) = story.acts(ANNA, probe).unwrap();
        assert_eq!(order, Order::Connect { from: addr(from), to: addr(to), watch: SECOND });
        let outcome = Outcome { event: Event::Reset, after: SECOND };
        let local = if addr(from).port() == 0 { addr("198.51.100.3:61000") } else { addr(from) };
        let done = story.server.handle_done(ticket, Done::Outcome { from: local, outcome }).unwrap();
        let answer = Received::parse(&done).unwrap().message;
        assert_eq!((answer.stunt_outcome(), answer.origin()), (Some(outcome), Some(local)));
        assert_eq!((answer.mapped(), answer.class), (Some(addr(to)), Class::Success));
        assert_eq!(story.server.handle_done(ticket, Done::Taken), None, "it is over");
    }
}

#[test]
fn what_is_not_offered_or_not_allowed_is_refused_with_a_reason() {
    let everything = Means { own_syn: true, raw: true };
    let forged = |action| Probe { action, port: Port::Silent, ..connect() };
    for (text, means, probe, code) in [
        ("a fourth address", everything, Probe { address: 3, ..connect() }, 403),
        ("a system port", everything, Probe { target: Some(22), ..connect() }, 403),
        ("forged without the means", Means::default(), forged(Action::Reset), 403),
        ("forged from a port that listens", everything, Probe { action: Action::SynAck, ..connect() }, 403),
        ("no SYN to answer", everything, forged(Action::SynAck), 404),
    ] {
        let mut story = Story::new(means);
        assert_eq!(story.acts(ANNA, probe).unwrap_err(), code, "{text}");
    }
    let mut story = Story::new(everything);
    story.syn(ANNA, 1);
    let redirect = Probe { address: 1, ..forged(Action::Icmp { kind: 5, code: 1 }) };
    assert_eq!(story.acts(ANNA, redirect).unwrap_err(), 403);
    let empty = Message::request(STUNT_PROBE, TransactionId([1; 12]));
    assert_eq!(story.asks(ANNA, &empty).unwrap_err(), 400);
    let small = Grid::new(vec![home("198.51.100.1")], 3478, None, None);
    let mut story = Story::at(small, everything);
    for port in [Port::Alternate, Port::Silent] {
        assert_eq!(story.acts(ANNA, Probe { port, ..connect() }).unwrap_err(), 403);
    }
    assert!(!story.server.offers(addr(HERE)).can.forge, "there is no silent port");
}

#[test]
fn what_is_no_stunt_request_ends_the_connection_and_what_it_needs_too_much_is_refused() {
    let mut story = Story::new(Means::default());
    let probe = Message::request(STUNT_PROBE, TransactionId([1; 12]));
    for message in [probe.success(), Message { method: BINDING, ..probe.clone() }] {
        assert_eq!(story.hears(ANNA, &message.emit(Integrity::None)), None);
    }
    let mut strange = probe.with(Attribute::Priority(1)).emit(Integrity::None);
    strange[20..22].copy_from_slice(&[0x7a, 0xbc]);
    let Some(Verdict::Answer(answer)) = story.hears(ANNA, &strange) else { unreachable!("it is refused") };
    let answer = Received::parse(&answer).unwrap().message;
    assert!(answer.attributes.contains(&Attribute::UnknownAttributes(vec![0x7abc])));
}

#[test]
fn strange_ports_of_ones_own_address_are_few() {
    let mut story = Story::new(Means::default());
    let at = |port| Probe { target: Some(port), address: 1, ..connect() };
    for port in 5000..5004 {
        story.does(ANNA, at(port));
    }
    assert_eq!(story.acts(ANNA, at(5004)).unwrap_err(), 486);
    story.does(ANNA, at(4242)); // the port that he comes from is no stranger
    story.server.handle_connected(addr("203.0.113.5:5005"), story.now);
    story.does(ANNA, at(5005)); // nor one that another connection came from
    story.syn("203.0.113.5:5006", 1);
    story.now += Duration::from_secs(60);
    assert_eq!(story.acts(ANNA, at(5007)).unwrap_err(), 486);
    story.now += Duration::from_secs(100);
    story.does(ANNA, at(5007));
}

#[test]
fn a_syn_back_from_the_silent_port_finds_the_port_that_the_syn_came_from() {
    let mut story = Story::new(Means { own_syn: true, raw: true });
    story.syn("203.0.113.5:7777", 1);
    story.syn("203.0.113.9:8888", 1);
    let probe = Probe { port: Port::Silent, address: 1, ..connect() };
    let (_, order) = story.acts(ANNA, probe).unwrap();
    assert_eq!(
        order,
        Order::Connect { from: addr("198.51.100.2:3480"), to: addr("203.0.113.5:7777"), watch: SECOND }
    );
    for _ in 0..7 {
        story.does(ANNA, probe); // his SYN proves the port better than an allowance
    }
    story.now += ANSWERED_FOR + SECOND;
    let (_, order) = story.acts(ANNA, probe).unwrap();
    assert!(matches!(order, Order::Connect { to, .. } if to == addr(ANNA)), "the SYN is forgotten");
}

#[test]
fn forged_answers_go_to_a_syn_that_came_and_few_to_each() {
    let mut story = Story::new(Means { own_syn: true, raw: true });
    let forged = |action, target| Probe { action, address: 1, port: Port::Silent, target, ..connect() };
    story.syn("203.0.113.5:7777", 100);
    story.syn("203.0.113.5:7778", 200);
    assert_eq!(story.acts(BERT, forged(Action::Reset, Some(7777))).unwrap_err(), 404, "it is not his");
    assert_eq!(story.acts(ANNA, forged(Action::Reset, Some(7779))).unwrap_err(), 404);
    let elsewhere = Probe { address: 0, ..forged(Action::Reset, None) };
    assert_eq!(story.acts(ANNA, elsewhere).unwrap_err(), 404, "it went to the other address");

    let (ticket, order) = story.acts(ANNA, forged(Action::Reset, Some(7777))).unwrap();
    let Order::Send { packet, to, watch: None } = order else { unreachable!("{order:?}") };
    let (from, target, segment) = captured::read(&packet).unwrap();
    assert_eq!((from, target), (addr("198.51.100.2:3480"), addr("203.0.113.5:7777")));
    assert_eq!((to, segment.flags, segment.acknowledgment), (target.ip(), RST | ACK, 101));
    story.server.handle_abandoned(ticket);

    let (_, order) = story.acts(ANNA, forged(Action::Icmp { kind: 11, code: 0 }, None)).unwrap();
    assert!(matches!(order, Order::Send { to, .. } if to == addr(ANNA).ip()), "to the newest");
    for n in 0..4 {
        let again = story.acts(ANNA, forged(Action::Reset, Some(7777)));
        assert_eq!(again.is_ok(), n < 3, "the fifth answer to one SYN");
    }
    story.syn("203.0.113.5:7777", 100);
    assert_eq!(
        story.acts(ANNA, forged(Action::Reset, Some(7777))).unwrap_err(),
        486,
        "repeated, it is the same"
    );
}

#[test]
fn a_forged_syn_ack_is_watched_until_its_answer_comes() {
    for (flags, ack_off, event) in [
        (ACK, 0, Some(Event::Connected)),
        (ACK, 1, None),
        (RST, 0, Some(Event::Reset)),
        (RST | ACK, 7, Some(Event::Reset)),
        (SYN, 0, None),
    ] {
        let mut story = Story::new(Means { own_syn: true, raw: true });
        story.syn("203.0.113.5:7777", 100);
        let probe = Probe { action: Action::SynAck, address: 1, port: Port::Silent, ..connect() };
        let (ticket, order) = story.acts(ANNA, probe).unwrap();
        let Order::Send { packet, watch: Some(SECOND), .. } = order else { unreachable!("{order:?}") };
        let (_, to, sent) = captured::read(&packet).unwrap();
        assert_eq!((sent.flags, sent.acknowledgment), (SYN | ACK, 101));
        story.now += Duration::from_millis(40);
        let acknowledgment = sent.sequence.wrapping_add(1 + ack_off);
        let segment = Segment { flags, acknowledgment, ..Segment::default() };
        story.server.handle_segment(
            addr("203.0.113.5:7778"),
            addr("198.51.100.2:3480"),
            segment.clone(),
            story.now,
        );
        assert_eq!(story.server.poll_outcome(), None, "of another port");
        story.server.handle_segment(to, addr("198.51.100.2:3480"), segment, story.now);
        let after = Duration::from_millis(40);
        let wanted = event.map(|event| (ticket, Outcome { event, after }));
        assert_eq!(story.server.poll_outcome(), wanted, "{flags:#x}");
        assert_eq!(story.server.poll_outcome(), None, "it is told once");
    }
}

#[test]
fn a_client_hears_of_his_own_segments_newest_first_and_of_nobody_elses() {
    let mut story = Story::new(Means { own_syn: true, raw: true });
    story.syn("203.0.113.5:7777", 1);
    story.now += SECOND;
    story.syn("203.0.113.9:1", 9);
    let crafted = Segment { flags: SYN | ACK, sequence: 2, source: 7777, ..Segment::default() };
    story.server.handle_segment(addr("203.0.113.5:7777"), addr("198.51.100.3:3480"), crafted, story.now);
    story.server.handle_segment(addr(ANNA), addr(HERE), Segment::default(), story.now); // at no silent port
    let own = Segment { flags: SYN, sequence: 3, source: 4242, ..Segment::default() };
    let request = Message::request(STUNT_SEEN, TransactionId([1; 12]));
    let answer = story.says(ANNA, &request, Some(&own));
    let told: Vec<_> = answer.stunt_segments().map(|s| (s.sequence, s.flags, s.address, s.age)).collect();
    assert_eq!(told, [(3, SYN, 0, Duration::ZERO), (2, SYN | ACK, 2, Duration::ZERO), (1, SYN, 1, SECOND)]);
    story.now += SEEN_FOR;
    assert_eq!(story.says(ANNA, &request, None).stunt_segments().count(), 1);
}

#[test]
fn segments_are_kept_within_bounds_for_each_and_for_all() {
    let mut story = Story::new(Means { own_syn: true, raw: true });
    for n in 0..10_000u32 {
        let from = SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + n / 100).into(), 1);
        let segment = Segment { flags: SYN, sequence: n, ..Segment::default() };
        story.server.handle_segment(from, addr("198.51.100.2:3480"), segment, story.now);
    }
    assert_eq!(story.server.seen.len(), SEEN.1);
    let newest: IpAddr = std::net::Ipv4Addr::from(0x0a00_0000 + 9_999 / 100).into();
    assert_eq!(story.server.seen.iter().filter(|seen| seen.from.ip() == newest).count(), SEEN.0);
}

#[test]
fn nobody_has_more_than_his_share() {
    let mut story = Story::new(Means::default());
    let probe = Probe { address: 1, ..connect() };
    let tickets: Vec<Ticket> = (0..8).map(|_| story.acts(ANNA, probe).unwrap().0).collect();
    assert_eq!(story.acts(ANNA, probe).unwrap_err(), 486, "eight at a time");
    let wait = Probe { action: Action::Wait { seconds: 9999 }, ..connect() };
    let (_, order) = story.acts(ANNA, wait).unwrap();
    assert_eq!(order, Order::Wait(MAX_WAIT), "a wait is no probe, and has an end");
    story.server.handle_abandoned(tickets[0]);
    story.does(ANNA, probe);
    story.does(BERT, probe);
    let waits = (0..200).filter(|_| story.acts(ANNA, wait).is_ok()).count();
    assert_eq!(waits, WAITING.0 - 1);
    let seen = Message::request(STUNT_SEEN, TransactionId([1; 12]));
    assert_eq!(
        story.says(ANNA, &seen, None).error().map(|(code, _)| code),
        Some(486),
        "and so many requests"
    );

    for n in 0..CONNECTIONS.0 {
        let host = SocketAddr::from(([192, 0, 2, 1], u16::try_from(n).unwrap()));
        assert!(story.server.handle_connected(host, story.now));
    }
    assert!(!story.server.handle_connected(addr("192.0.2.1:9999"), story.now), "so many connections");
    assert!(story.server.handle_connected(addr("192.0.2.2:9999"), story.now), "others have theirs");
    story.server.handle_closed(addr("192.0.2.1:0"));
    assert!(story.server.handle_connected(addr("192.0.2.1:9999"), story.now));
}

#[test]
fn everybody_together_has_bounds_too() {
    let mut story = Story::new(Means::default());
    let host = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 4242);
    let mut running = 0;
    for n in 0..300 {
        story.server.handle_connected(host(n), story.now);
        running += usize::from(story.acts(&host(n).to_string(), Probe { address: 1, ..connect() }).is_ok());
    }
    assert_eq!(running, RUNNING.1);
    let mut connected = story.server.connections;
    while story.server.handle_connected(host(u32::try_from(connected).unwrap()), story.now) {
        connected += 1;
    }
    assert_eq!(connected, CONNECTIONS.1);
    let strangers = (0..20_000u32).filter(|n| {
        let came = story.server.handle_connected(host(100_000 + n), story.now);
        if came {
            story.server.handle_closed(host(100_000 + n));
        }
        came
    });
    assert_eq!(strangers.count(), 0);
    assert!(story.server.sources.len() <= MAX_SOURCES);
}

#[test]
fn ipv6_has_no_forged_answers_and_a_whole_site_is_one_source() {
    let grid = Grid::new(vec![home("2001:db8::1"), home("198.51.100.1")], 3478, Some(3479), Some(3480));
    let story = Story::at(grid, Means { own_syn: true, raw: true });
    let six = story.server.offers(addr("[2001:db8::1]:3478"));
    assert!(six.can.silent && !six.can.forge && !six.can.watch);
    assert_eq!(six.addresses, [addr("[2001:db8::1]:1").ip()]);
    assert!(story.server.offers(addr(HERE)).can.forge);
    let site = ["2001:db8:5::1", "2001:db8:5::2:3"].map(|ip| source_of(ip.parse().unwrap()));
    assert_eq!(site[0], site[1]);
}

proptest! {
    /// The promise of the module's essay, against whatever a client can ask.
    #[test]
    fn nothing_is_ever_done_to_another_address_than_the_askers(
        asks in proptest::collection::vec((probe(), any::<bool>(), 0u64..3000), 1..120),
        syns in proptest::collection::vec((any::<bool>(), any::<u16>()), 0..20),
    ) {
        let mut story = Story::new(Means { own_syn: true, raw: true });
        for (is_anna, port) in syns {
            let host = if is_anna { addr(ANNA) } else { addr(BERT) };
            story.syn(&SocketAddr::new(host.ip(), port).to_string(), port.into());
        }
        for (probe, is_anna, wait) in asks {
            story.now += Duration::from_millis(wait);
            let asker = if is_anna { ANNA } else { BERT };
            let Ok((ticket, order)) = story.acts(asker, probe) else { continue };
            match order {
                Order::Connect { from, to, watch } => {
                    prop_assert_eq!(to.ip(), addr(asker).ip());
                    prop_assert!(to.port() >= FIRST_USER_PORT || probe.port == Port::Silent || to == addr(asker));
                    prop_assert!(from.port() == 0 || (3478..=3480).contains(&from.port()));
                    prop_assert!(watch <= MAX_WATCH);
                }
                Order::Send { packet, to, .. } => {
                    prop_assert_eq!(to, addr(asker).ip());
                    prop_assert!(packet.len() <= 60, "no more than the SYN had");
                    prop_assert_eq!(packet.get(16..20), Some(&match to { IpAddr::V4(v4) => v4.octets(), IpAddr::V6(_) => [0; 4] }[..]));
                }
                Order::Wait(wait) => prop_assert!(wait <= MAX_WAIT),
            }
            if wait % 2 == 0 {
                story.server.handle_abandoned(ticket);
            }
        }
    }
}

fn probe() -> impl Strategy<Value = Probe> {
    let action = prop_oneof![
        Just(Action::Connect),
        Just(Action::Connect),
        Just(Action::Reset),
        any::<(u8, u8)>().prop_map(|(kind, code)| Action::Icmp { kind, code }),
        Just(Action::Icmp { kind: 11, code: 0 }),
        Just(Action::SynAck),
        any::<u16>().prop_map(|seconds| Action::Wait { seconds }),
    ];
    let port = prop_oneof![Just(Port::Main), Just(Port::Alternate), Just(Port::Silent), Just(Port::Any)];
    let target = proptest::option::of(any::<u16>());
    (action, 0u8..4, port, target, 0u64..20_000).prop_map(|(action, address, port, target, watch)| Probe {
        action,
        address,
        port,
        target,
        watch: Duration::from_millis(watch),
    })
}

fn connect() -> Probe {
    Probe { action: Action::Connect, address: 0, port: Port::Main, target: None, watch: SECOND }
}

struct Story {
    server: StuntServer,
    now: Instant,
}

impl Story {
    /// Three addresses, three ports; Anna and Bert are connected.
    fn new(means: Means) -> Self {
        let homes = ["198.51.100.1", "198.51.100.2", "198.51.100.3"].map(home);
        Self::at(Grid::new(homes.to_vec(), 3478, Some(3479), Some(3480)), means)
    }

    fn at(grid: Grid, means: Means) -> Self {
        let now = origin();
        let mut server = StuntServer::new(grid, means, Rng::new(Seed([1; 32])), now);
        assert!(server.handle_connected(addr(ANNA), now) && server.handle_connected(addr(BERT), now));
        Self { server, now }
    }

    fn hears(&mut self, from: &str, bytes: &[u8]) -> Option<Verdict> {
        let received = Received::parse(bytes).unwrap();
        self.server.handle_request(&received, (addr(from), addr(HERE)), None, self.now)
    }

    /// The order, or the error code of the refusal.
    fn asks(&mut self, from: &str, request: &Message) -> Result<(Ticket, Order), u16> {
        match self.hears(from, &request.emit(Integrity::None)).unwrap() {
            Verdict::Act(ticket, order) => Ok((ticket, order)),
            Verdict::Answer(answer) => Err(Received::parse(&answer).unwrap().message.error().unwrap().0),
        }
    }

    fn acts(&mut self, from: &str, probe: Probe) -> Result<(Ticket, Order), u16> {
        let request = Message::request(STUNT_PROBE, TransactionId([1; 12]));
        self.asks(from, &request.with(Attribute::StuntProbe(probe)))
    }

    /// Begins and ends at once.
    fn does(&mut self, from: &str, probe: Probe) {
        let (ticket, _) = self.acts(from, probe).unwrap();
        self.server.handle_done(ticket, Done::Failed).unwrap();
    }

    fn says(&mut self, from: &str, request: &Message, own_syn: Option<&Segment>) -> Message {
        let bytes = request.emit(Integrity::None);
        let received = Received::parse(&bytes).unwrap();
        let verdict = self.server.handle_request(&received, (addr(from), addr(HERE)), own_syn, self.now);
        let Some(Verdict::Answer(answer)) = verdict else { unreachable!("{verdict:?}") };
        Received::parse(&answer).unwrap().message
    }

    /// A SYN comes to the second address.
    fn syn(&mut self, from: &str, sequence: u32) {
        let segment = Segment { flags: SYN, sequence, source: addr(from).port(), ..Segment::default() };
        self.server.handle_segment(addr(from), addr("198.51.100.2:3480"), segment, self.now);
    }
}

fn home(text: &str) -> Home {
    Home { bound: text.parse().unwrap(), seen: text.parse().unwrap() }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test needs some origin to count from")]
fn origin() -> Instant {
    Instant::now()
}
