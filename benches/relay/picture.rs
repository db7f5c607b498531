//! `target/relay.svg`: the series, with the axes of Liu's Figs. 5.5, 5.6, 5.8 and 5.10.

use std::fmt::Write as _;

use crate::DATAGRAM;
use crate::Plan;
use crate::RATES;
use crate::Row;
use crate::SIZES;
use crate::report::lost;
use crate::report::mid;
use crate::report::rates;

/// A panel's size, and the room around it for words, points.
const PANEL: (f64, f64) = (380.0, 220.0);
const ROOM: (f64, f64) = (70.0, 70.0);
/// One for each means, in the order of the rows.
const COLOURS: [&str; 7] = ["#888888", "#222222", "#c0392b", "#f2a23a", "#2f6db5", "#2e8b57", "#8e44ad"];

/// One line of a panel: its colour, and points from 0 to 1 along x with their values.
type Line = (&'static str, Vec<(f64, f64)>);

/// The picture.
pub(crate) fn svg(rows: &[Row], plan: &Plan) -> String {
    let (width, height) = (2.0 * (PANEL.0 + ROOM.0) + 20.0, 2.0 * (PANEL.1 + ROOM.1) + 60.0);
    let mut out = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-family='sans-serif' font-size='11'>\n\
         <rect width='{width}' height='{height}' fill='#ffffff'/>\n"
    );
    let rows: Vec<(&Row, &'static str)> = rows.iter().zip(COLOURS).collect();
    for (at, (row, colour)) in rows.iter().enumerate() {
        let x = 16.0 + at as f64 * 128.0;
        let _ = writeln!(
            out,
            "<rect x='{x}' y='10' width='12' height='12' fill='{colour}'/><text x='{}' y='20'>{}</text>",
            x + 16.0,
            row.means.name()
        );
    }
    let spread = |n: usize, of: usize| n as f64 / of.saturating_sub(1).max(1) as f64;
    let series = |values: &dyn Fn(&Row) -> Vec<f64>| -> Vec<Line> {
        let line = |row: &Row| {
            let values = values(row);
            let points = values.iter().enumerate().map(|(n, value)| (spread(n, values.len()), *value));
            points.filter(|(_, value)| value.is_finite()).collect::<Vec<_>>()
        };
        rows.iter().map(|(row, colour)| (*colour, line(row))).collect()
    };
    let bulk = series(&|row| row.bulk.iter().map(|all| mid(&rates(all))).collect());
    let counts: Vec<String> = plan.connections.iter().map(ToString::to_string).collect();
    panel(&mut out, (0, 0), ["TCP throughput, Mbit/s (Fig. 5.6)", "connections"], &counts, &bulk);
    // A short level line for each: there is nothing to go along x.
    let rtt: Vec<Line> = rows
        .iter()
        .enumerate()
        .map(|(n, (row, colour))| {
            let (x, value) = (spread(n, rows.len()) * 0.9, mid(&row.rtt));
            (*colour, if value.is_finite() { vec![(x, value), (x + 0.1, value)] } else { Vec::new() })
        })
        .collect();
    panel(&mut out, (1, 0), ["round trip, us (Fig. 5.5)", "means"], &[], &rtt);
    let by_rate = series(&|row| row.by_rate.iter().map(|losses| lost(losses)).collect());
    let heading = format!("UDP loss, %, {DATAGRAM} bytes (Fig. 5.8)");
    let names: Vec<String> = RATES.iter().map(ToString::to_string).collect();
    panel(&mut out, (0, 1), [&heading, "sending rate, Mbit/s"], &names, &by_rate);
    let by_size = series(&|row| row.by_size.iter().map(|losses| lost(losses)).collect());
    let names: Vec<String> = SIZES.iter().map(ToString::to_string).collect();
    panel(&mut out, (1, 1), ["UDP loss, %, full speed (Fig. 5.10)", "bytes"], &names, &by_size);
    out + "</svg>\n"
}

/// `labels` stand at equal distances below the x axis, from one end to the other.
fn panel(
    out: &mut String,
    (column, row): (u8, u8),
    [heading, axis]: [&str; 2],
    labels: &[String],
    lines: &[Line],
) {
    let left = ROOM.0 + f64::from(column) * (PANEL.0 + ROOM.0);
    let top = 60.0 + f64::from(row) * (PANEL.1 + ROOM.1);
    let values = lines.iter().flat_map(|(_, points)| points.iter().map(|(_, value)| *value));
    let most = values.fold(1.0, f64::max) * 1.05;
    let _ = writeln!(
        out,
        "<text x='{left}' y='{}' font-size='13'>{heading}</text>\
         <rect x='{left}' y='{top}' width='{}' height='{}' fill='none' stroke='#999999'/>\
         <text x='{}' y='{}' text-anchor='middle'>{axis}</text>",
        top - 8.0,
        PANEL.0,
        PANEL.1,
        left + PANEL.0 / 2.0,
        top + PANEL.1 + 30.0
    );
    for quarter in 0..=4 {
        let part = f64::from(quarter) / 4.0;
        let _ = writeln!(
            out,
            "<text x='{}' y='{}' text-anchor='end'>{:.0}</text>",
            left - 6.0,
            top + PANEL.1 * (1.0 - part) + 4.0,
            most * part
        );
    }
    for (n, label) in labels.iter().enumerate() {
        let x = left + PANEL.0 * n as f64 / labels.len().saturating_sub(1).max(1) as f64;
        let _ =
            writeln!(out, "<text x='{x}' y='{}' text-anchor='middle'>{label}</text>", top + PANEL.1 + 15.0);
    }
    for (colour, points) in lines.iter().filter(|(_, points)| !points.is_empty()) {
        let at = |(x, value): &(f64, f64)| {
            format!("{:.1},{:.1}", left + PANEL.0 * x, top + PANEL.1 * (1.0 - value / most))
        };
        let path: Vec<String> = points.iter().map(at).collect();
        let _ = writeln!(
            out,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>",
            path.join(" ")
        );
    }
}
