//! Whatever the network looks like and whatever happens to it: in the end everybody who can talk does, nobody has sent more
//! than there was reason for, and nothing is left behind.

use ntcp_overlay::node::status::Holdings;
use ntcp_overlay::punch::attempt;
use ntcp_sim::crowd::Crowd;
use ntcp_sim::crowd::Script;
use ntcp_sim::machine::Sockets;
use ntcp_sim::ms;
use ntcp_sim::secs;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Datagrams that a member and those who answer it send in a minute for each friend, introductions apart: registrations,
/// probes and refreshes of paths, questions and answers.
const UPKEEP: u64 = 400;
/// SYNs that a member sends in a minute, introductions apart: to relays where UDP does not pass, and again after each
/// misfortune.
const SYNS: u64 = 10;
/// SYNs of both sides of an introduction, in the mean. One that fails in all its rounds takes up to 130 of each (see
/// `tcp`); most succeed in the first, or need none because UDP does.
const SYNS_EACH: u64 = 20;

/// The same lots at every run, so that a change of the program and not chance decides; `PROPTEST_CASES` draws more of them.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { usual.cases } else { 6 };
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..usual }
}

/// Three minutes of a small network, drawn by lot.
fn script() -> impl Strategy<Value = (u64, Script)> {
    let few = (3_usize..7, 1_u32..4, 1_u32..4);
    (any::<u64>(), few, any::<bool>()).prop_map(|(seed, (members, friends, steadiness), disasters)| {
        let script = Script {
            members,
            arrival: secs(20),
            length: secs(180),
            friends,
            questions: 6,
            pause: ms(3000),
            rest: secs(40),
            steadiness,
            tcp: None,
            disasters,
        };
        (seed, script)
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn in_the_end_all_who_can_talk_do_without_a_storm_and_without_a_leak((seed, script) in script()) {
        lives(seed, script)?;
    }

    #[test]
    fn and_so_do_those_who_meet_over_tcp_because_many_of_their_networks_block_udp(
        (seed, script) in script(),
        blocked in 30_u32..=100,
    ) {
        lives(seed, Script { tcp: Some(blocked), ..script })?;
    }
}

fn lives(seed: u64, script: Script) -> Result<(), TestCaseError> {
    let members = script.members as u64;
    let mut crowd = Crowd::new(script, seed);
    crowd.run();
    let trace = crowd.world.trace;
    let attempts = crowd.introductions() * 2 * attempt::MAX_PROBES as u64;
    let upkeep = UPKEEP * 3 * members * u64::from(script.friends);
    prop_assert!(trace.datagrams < attempts + upkeep, "{:?}", trace);
    let syns = if script.tcp.is_some() { crowd.introductions() * SYNS_EACH } else { 0 };
    prop_assert!(trace.syns < syns + SYNS * 3 * members, "{:?}", trace);

    crowd.calm_down();
    crowd.run_for(secs(60));
    // The longest rest between two introductions is five minutes.
    let (mute, _) = crowd.who_cannot_talk(secs(320));
    prop_assert_eq!(mute, []);

    // Paths end five minutes after the last packet, relays forget two minutes after the last bind.
    crowd.run_for(secs(450));
    let before = crowd.world.trace;
    crowd.run_for(secs(60));
    let chatter = crowd.world.trace.datagrams - before.datagrams;
    prop_assert!(chatter <= 8 * members, "{} datagrams at rest", chatter);
    prop_assert_eq!(crowd.world.trace.segments, before.segments, "segments at rest");
    for stats in crowd.world.server.relay_stats() {
        prop_assert_eq!((stats.sessions, stats.streams), (0, 0));
    }
    for machine in &crowd.world.machines {
        prop_assert_eq!(machine.node().holdings(), Holdings::default(), "{}", &machine.name);
        prop_assert_eq!(machine.sockets(), Sockets::default(), "{}", &machine.name);
    }
    prop_assert_eq!(crowd.world.server.connections(), 0);
    prop_assert!(
        crowd.world.under_way() as u64 <= 4 * members,
        "{} things under way",
        crowd.world.under_way()
    );
    Ok(())
}

#[test]
fn one_seed_makes_one_trace_over_tcp_too() {
    let run = |seed| {
        let script =
            Script { members: 10, arrival: secs(5), length: secs(60), tcp: Some(70), ..Script::TWO_THOUSAND };
        let mut crowd = Crowd::new(script, seed);
        crowd.run();
        (crowd.world.trace, crowd.answers())
    };
    let (first, other) = (run(3), run(4));
    assert_eq!(first, run(3));
    assert_ne!(first.0.hash, other.0.hash);
    assert!(first.0.syns > 0, "{first:?}");
}
