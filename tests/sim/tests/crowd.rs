//! Two thousand members on one internet for ten virtual minutes: churn, moves, reboots, and every server dies once.
//!
//! Without optimisation, as `cargo test` builds, the crowd is smaller, and says so; `make test` runs it whole.

use ntcp_overlay::punch::attempt;
use ntcp_sim::Trace;
use ntcp_sim::clock;
use ntcp_sim::crowd::Crowd;
use ntcp_sim::crowd::Script;
use ntcp_sim::crowd::Tally;
use ntcp_sim::secs;

/// A datagram is sent for a reason: connectivity checks of introductions, probes of paths, registrations, payload. In ten
/// minutes of this script a member needs about 1,500; a storm is what needs twice that.
const BUDGET: u64 = 3_000;

#[test]
fn thousands_come_talk_move_and_survive_disasters_and_then_it_is_quiet() {
    let members = if cfg!(debug_assertions) {
        println!("NOT RUN with 2000 members, but with 60: this build is not optimised (make test runs both)");
        60
    } else {
        2000
    };
    let begun = (clock::real(), clock::used());
    let mut crowd = Crowd::new(Script { members, ..Script::TWO_THOUSAND }, 1);
    crowd.run();
    let trace = crowd.world.trace;
    println!(
        "{members} members, 10 minutes in {:.1?}, {:.1?} of one core: {trace:?}\n{:?}, {} answers, {} introductions",
        clock::real() - begun.0,
        clock::used() - begun.1,
        crowd.tally,
        crowd.answers(),
        crowd.introductions(),
    );
    let each = trace.datagrams / members as u64;
    assert!(each < BUDGET, "{each} datagrams a member");
    let checks = crowd.introductions() * 2 * attempt::MAX_PROBES as u64;
    assert!(trace.stun < checks + 600 * members as u64, "{} checks and probes", trace.stun);
    let share = crowd.answers() as f64 / crowd.tally.asked as f64;
    assert!(share > 0.85, "{share:.3} of the questions were answered, with all that happened");

    crowd.calm_down();
    crowd.run_for(secs(60));
    let (mute, pairs) = crowd.who_cannot_talk(secs(12));
    assert_eq!(mute, [], "of {pairs} pairs, in the end");

    // Five minutes of silence end all paths, two more the relays' sessions.
    crowd.run_for(secs(330));
    let before = crowd.world.trace;
    crowd.run_for(secs(60));
    let after = crowd.world.trace;
    let chatter = (after.datagrams - before.datagrams) as f64 / members as f64;
    println!("at rest {chatter:.1} datagrams a member and minute");
    assert!(chatter < 6.0, "{chatter}: a registration and its answer each 25 s, and nothing else");
    assert_eq!(after.relayed, before.relayed);
    crowd.run_for(secs(60));
    for stats in crowd.world.server.relay_stats() {
        assert_eq!((stats.sessions, stats.streams), (0, 0), "the relays let go: {stats:?}");
    }
}

#[test]
fn one_seed_makes_one_trace_and_another_seed_another() {
    let (first, second, other) = (small(7), small(7), small(8));
    assert_eq!(first, second);
    assert_ne!(first.0.hash, other.0.hash);
}

fn small(seed: u64) -> (Trace, Tally, u64) {
    let script = Script { members: 40, arrival: secs(10), length: secs(120), ..Script::TWO_THOUSAND };
    let mut crowd = Crowd::new(script, seed);
    crowd.run();
    (crowd.world.trace, crowd.tally, crowd.answers())
}
