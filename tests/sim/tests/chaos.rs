//! Whatever the network looks like and whatever happens to it: in the end everybody who can talk does, nobody has sent more
//! than there was reason for, and nothing is left behind.

use ntcp_overlay::punch::attempt;
use ntcp_sim::crowd::Crowd;
use ntcp_sim::crowd::Script;
use ntcp_sim::ms;
use ntcp_sim::secs;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Datagrams that a member and those who answer it send in a minute for each friend, introductions apart: registrations,
/// probes and refreshes of paths, questions and answers.
const UPKEEP: u64 = 400;

/// The same lots at every run, so that a change of the program and not chance decides; `PROPTEST_CASES` draws more of them.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { usual.cases } else { 6 };
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..usual }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn in_the_end_all_who_can_talk_do_without_a_storm_and_without_a_leak(
        seed in any::<u64>(),
        members in 3_usize..7,
        friends in 1_u32..4,
        steadiness in 1_u32..4,
        disasters in any::<bool>(),
    ) {
        let script = Script {
            members,
            arrival: secs(20),
            length: secs(180),
            friends,
            questions: 6,
            pause: ms(3000),
            rest: secs(40),
            steadiness,
            disasters,
        };
        let mut crowd = Crowd::new(script, seed);
        crowd.run();
        let trace = crowd.world.trace;
        let attempts = crowd.introductions() * 2 * attempt::MAX_PROBES as u64;
        let upkeep = UPKEEP * 3 * members as u64 * u64::from(friends);
        prop_assert!(trace.datagrams < attempts + upkeep, "{:?}", trace);

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
        prop_assert!(chatter <= 8 * members as u64, "{} datagrams at rest", chatter);
        for stats in crowd.world.server.relay_stats() {
            prop_assert_eq!((stats.sessions, stats.streams), (0, 0));
        }
        prop_assert!(crowd.world.under_way() <= 4 * members, "{} things under way", crowd.world.under_way());
    }
}
