//! The matrix as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use super::DELAY;
use super::Outcome;
use super::Outcomes;
use super::Plan;
use super::find;
use super::mix::MIXES;
use crate::nat::kinds::Kind;

/// Whether UDP passed, in words.
pub(super) fn title(udp: bool) -> &'static str {
    if udp { "UDP passes" } else { "UDP is blocked at both sites" }
}

/// Rows and columns are kinds; a cell is what carried and the seconds until it was direct.
pub(super) fn table(kinds: &[Kind], udp: bool, outcomes: &Outcomes) -> String {
    let mut text = format!("{}\n{:<24}", title(udp), "");
    for n in 1..=kinds.len() {
        let _ = write!(text, "{n:>9}");
    }
    for (n, row) in kinds.iter().enumerate() {
        let _ = write!(text, "\n{:>3} {:<20}", n + 1, row.name);
        for column in kinds {
            let cell =
                find(outcomes, row.name, column.name, udp).map_or_else(|| "?".to_owned(), Outcome::cell);
            let _ = write!(text, "{cell:>9}");
        }
    }
    text
}

/// What the tables come to, a line for each fact.
pub(super) fn summary(outcomes: &Outcomes) -> Vec<String> {
    let mut lines = Vec::new();
    for udp in [true, false] {
        let of: Vec<&Outcome> =
            outcomes.iter().filter(|((.., with), _)| *with == udp).map(|(_, outcome)| outcome).collect();
        if of.is_empty() {
            continue;
        }
        let count = |such: &dyn Fn(&&&Outcome) -> bool| of.iter().filter(such).count();
        lines.push(format!(
            "{}: {} pairs, {} connected, {} direct",
            title(udp),
            of.len(),
            count(&|outcome| outcome.is_connected()),
            count(&|outcome| outcome.is_direct())
        ));
        let time = |of: Vec<Duration>| {
            spread(of).map_or_else(
                || "-".to_owned(),
                |(median, most)| format!("{:.1} s (at most {:.1})", median.as_secs_f64(), most.as_secs_f64()),
            )
        };
        lines.push(format!(
            "  first reply after {}, direct after {}",
            time(of.iter().filter_map(|outcome| outcome.first_reply).collect()),
            time(of.iter().filter_map(|outcome| outcome.direct).collect())
        ));
        let packets = |of: Vec<u64>| {
            spread(of).map_or_else(|| "-".to_owned(), |(median, most)| format!("{median} (at most {most})"))
        };
        lines.push(format!(
            "  packets between the sites {}, to the server {}",
            packets(of.iter().map(|outcome| outcome.to_peer).collect()),
            packets(of.iter().map(|outcome| outcome.to_server).collect())
        ));
        lines.extend(methods(&of));
        for mix in MIXES {
            if let Some(share) = mix.direct(udp, outcomes) {
                lines.push(format!("  direct, weighted by the NATs of {}: {:.1} %", mix.name, share * 100.0));
            }
        }
    }
    lines
}

/// What each path, and each of its methods, came to: how many pairs it carried, how soon after the first ping, and how
/// often in the first round.
fn methods(of: &[&Outcome]) -> Vec<String> {
    let mut all: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in of {
        let how = outcome.method.as_ref().map_or_else(String::new, |method| format!(" ({method})"));
        all.entry(format!("{}{how}", outcome.carried)).or_default().push(outcome);
    }
    let line = |(how, of): (&String, &Vec<&Outcome>)| {
        let direct = spread(of.iter().filter_map(|outcome| outcome.direct).collect());
        let direct = direct.map_or_else(String::new, |(median, most)| {
            format!(", after {:.1} s (at most {:.1})", median.as_secs_f64(), most.as_secs_f64())
        });
        let rounds: Vec<u64> = of.iter().filter_map(|outcome| outcome.round).collect();
        let first = rounds.iter().filter(|round| **round == 1).count();
        let first = if rounds.is_empty() {
            String::new()
        } else {
            format!(", {first} of {} in the first round", rounds.len())
        };
        let pairs = if of.len() == 1 { "pair" } else { "pairs" };
        format!("  carried by {how}: {} {pairs}{direct}{first}", of.len())
    };
    all.iter().map(line).collect()
}

/// The median and the greatest.
fn spread<T: Ord + Copy>(mut of: Vec<T>) -> Option<(T, T)> {
    of.sort();
    Some((*of.get(of.len() / 2)?, *of.last()?))
}

/// Everything, for programs.
pub(super) fn json(plan: &Plan, outcomes: &Outcomes) -> Value {
    let weighted = MIXES.map(|mix| {
        let share = |udp| mix.direct(udp, outcomes);
        (mix.name.to_owned(), json!({ "udp": share(true), "udp_blocked": share(false) }))
    });
    json!({
        "schema": 2,
        "delay_ms": DELAY.as_millis(),
        "skew_ms": plan.skew.as_millis(),
        "runs": outcomes.iter().map(row).collect::<Vec<_>>(),
        "direct_weighted": weighted.into_iter().collect::<serde_json::Map<_, _>>(),
    })
}

fn row(((a, b, udp), outcome): (&(&'static str, &'static str, bool), &Outcome)) -> Value {
    let millis = |time: Option<Duration>| time.map(|time| time.as_millis());
    json!({
        "a": a,
        "b": b,
        "udp": udp,
        "carried": outcome.carried,
        "method": outcome.method,
        "round": outcome.round,
        "first_reply_ms": millis(outcome.first_reply),
        "direct_ms": millis(outcome.direct),
        "packets_to_peer": outcome.to_peer,
        "packets_to_server": outcome.to_server,
        "why": outcome.why,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;

    #[test]
    fn each_method_has_a_line_with_its_pairs_its_median_and_its_first_rounds() {
        let opened = |round, tenths: u64| Outcome {
            method: Some("prediction".to_owned()),
            round: Some(round),
            direct: Some(Duration::from_millis(tenths * 100)),
            ..outcome("direct-tcp")
        };
        let all = [opened(1, 5), opened(3, 9), opened(1, 4), outcome("relay")];
        let lines = methods(&all.iter().collect::<Vec<_>>());
        assert_eq!(
            lines,
            [
                "  carried by direct-tcp (prediction): 3 pairs, after 0.5 s (at most 0.9), 2 of 3 in the first round",
                "  carried by relay: 1 pair",
            ]
        );
    }
}
