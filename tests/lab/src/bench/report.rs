//! The table, the ratios, `bench.json` and `bench.svg`.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;

use super::Plan;
use super::Row;
use super::contestants::Carrier;
use super::measure::Figures;

/// A column: its heading and what it shows.
type Column = (&'static str, fn(&Figures) -> f64);

const COLUMNS: [Column; 12] = [
    ("1 stream", |f| f.one),
    ("4", |f| f.four),
    ("reverse", |f| f.reverse),
    ("both", |f| f.both_ways),
    ("64 B k/s", |f| f.small),
    ("RTT ms", |f| f.idle.0),
    ("p99", |f| f.idle.1),
    ("loaded", |f| f.loaded.0),
    ("p99", |f| f.loaded.1),
    ("CPU s/GB", |f| f.cpu),
    ("MiB", |f| f.memory.0),
    ("loaded", |f| f.memory.1),
];

/// Medians, then ratios.
pub(super) fn print(rows: &[Row], plan: &Plan) {
    println!(
        "\nmedians of {} rounds, TCP streams of {} s in Mbit/s (CPU and memory: all processes of a tunnel, both ends, \
         on one machine)\n",
        plan.rounds, plan.seconds
    );
    print!("{:<22}", "");
    COLUMNS.iter().for_each(|(heading, _)| print!("{heading:>9}"));
    println!();
    for row in rows.iter().filter(|row| row.figures.iter().any(Option::is_some)) {
        print!("{:<22}", row.contestant.name());
        for (_, pick) in COLUMNS {
            let value = median(row.figures.iter().flatten().map(pick).collect()).unwrap_or_default();
            print!("{:>9}", number(value));
        }
        println!();
    }
    println!("\nratios of one stream, medians over the rounds:");
    for ours in rows.iter().filter(|row| row.contestant.is_ours()) {
        for other in rows.iter().filter(|row| is_comparable(ours, row)) {
            if let Some(ratio) = ratio(ours, other) {
                println!("  {:<20} {ratio:>6.2} x {}", ours.contestant.name(), other.contestant.name());
            }
        }
        let of = |pick: fn(&Figures) -> f64| {
            median(ours.figures.iter().flatten().map(|f| pick(f) / f.one).collect())
        };
        if let (Some(four), Some(reverse)) = (of(|f| f.four), of(|f| f.reverse)) {
            let name = ours.contestant.name();
            println!("  {name:<20} {four:>6.2} x itself with four streams, {reverse:.2} x in reverse");
        }
    }
    for row in rows {
        if let Some(trouble) = &row.trouble {
            println!("NOT RUN: {}: {}", row.contestant.name(), trouble.lines().next().unwrap_or_default());
        }
    }
}

/// Every round's figures, and a picture of one stream.
pub(super) fn write(rows: &[Row], plan: &Plan) -> Result<()> {
    let all: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.contestant.name(),
                "not_run": row.trouble,
                "rounds": row.figures.iter().map(|f| f.as_ref().map(json)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let document = json!({ "schema": 1, "rounds": plan.rounds, "seconds": plan.seconds, "rows": all });
    fs::create_dir_all(&plan.out)?;
    let (data, picture) = (plan.out.join("bench.json"), plan.out.join("bench.svg"));
    fs::write(&data, serde_json::to_string_pretty(&document)? + "\n")?;
    fs::write(&picture, svg(rows)).context("cannot write the picture")?;
    println!("\nwritten: {}, {}", data.display(), picture.display());
    Ok(())
}

fn json(figures: &Figures) -> Value {
    json!({
        "mbit_s": {
            "one": figures.one, "four": figures.four, "reverse": figures.reverse, "both": figures.both_ways,
        },
        "small_kpps": figures.small,
        "rtt_ms": { "idle": figures.idle.0, "idle_p99": figures.idle.1 },
        "rtt_loaded_ms": { "median": figures.loaded.0, "p99": figures.loaded.1 },
        "cpu_s_per_gb": figures.cpu,
        "rss_mib": { "idle": figures.memory.0, "loaded": figures.memory.1 },
    })
}

/// Horizontal bars of the median of one stream.
fn svg(rows: &[Row]) -> String {
    const HEIGHT: usize = 24;
    let bars: Vec<(&Row, f64)> = rows
        .iter()
        .filter_map(|row| Some((row, median(row.figures.iter().flatten().map(|f| f.one).collect())?)))
        .collect();
    let most = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let mut out = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='820' height='{}' font-family='sans-serif' font-size='13'>\n\
         <text x='8' y='18'>one TCP stream, Mbit/s</text>\n",
        HEIGHT * (bars.len() + 2)
    );
    for (index, (row, value)) in bars.iter().enumerate() {
        let (y, width) = (HEIGHT * (index + 1) + 6, value / most * 540.0);
        let colour = if row.contestant.is_ours() { "#2266aa" } else { "#aaaaaa" };
        let name = row.contestant.name();
        let _ = writeln!(
            out,
            "<text x='8' y='{}'>{name}</text><rect x='190' y='{y}' width='{width:.0}' height='18' fill='{colour}'/>\
             <text x='{:.0}' y='{}'>{value:.0}</text>",
            y + 14,
            196.0 + width,
            y + 14
        );
    }
    out + "</svg>\n"
}

/// Others on the same carrier, the bare wire, and for the relay the direct path.
fn is_comparable(ours: &Row, other: &Row) -> bool {
    let (mine, theirs) = (ours.contestant.carrier, other.contestant.carrier);
    let direct = mine == Carrier::Relay && theirs == Carrier::Udp && other.contestant.is_ours();
    theirs == Carrier::Wire || direct || (mine == theirs && !other.contestant.is_ours())
}

fn ratio(ours: &Row, other: &Row) -> Option<f64> {
    let pairs = ours.figures.iter().zip(&other.figures);
    median(pairs.filter_map(|(a, b)| Some(a.as_ref()?.one / b.as_ref()?.one)).collect())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
