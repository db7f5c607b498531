//! Two thousand members on one internet for ten virtual minutes.

use ntcp_sim::Trace;
use ntcp_sim::clock;
use ntcp_sim::crowd::Crowd;
use ntcp_sim::crowd::Script;
use ntcp_sim::crowd::Tally;
use ntcp_sim::secs;

#[test]
fn two_thousand_members_come_talk_move_and_survive_disasters() {
    let members = std::env::var("N").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let begun = clock::real();
    let mut crowd = Crowd::new(Script { members, ..Script::TWO_THOUSAND }, 1);
    println!("settled after {:?}", clock::real() - begun);
    for minute in 1..=10 {
        crowd.run_for(secs(60));
        println!("minute {minute}: {:?}", clock::real() - begun);
    }
    println!("{:?}\n{:?} {} answers", crowd.world.trace, crowd.tally, crowd.answers());
}

#[test]
fn one_seed_makes_one_trace_and_another_seed_another() {
    let (first, second, other) = (small(7), small(7), small(8));
    assert_eq!(first, second);
    assert_ne!(first.0.hash, other.0.hash);
}

fn small(seed: u64) -> (Trace, Tally, u64) {
    let script = Script { members: 60, arrival: secs(10), length: secs(200), ..Script::TWO_THOUSAND };
    let mut crowd = Crowd::new(script, seed);
    crowd.run();
    (crowd.world.trace, crowd.tally, crowd.answers())
}
