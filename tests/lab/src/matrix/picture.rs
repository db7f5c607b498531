//! The matrix as a picture: rows and columns are NATs, the colour is what carried, one panel with UDP and one without.

use std::fmt::Write as _;

use super::Outcome;
use super::Outcomes;
use super::find;
use super::mix::MIXES;
use super::report::title;
use crate::nat::kinds::Kind;

/// Width and height of a cell, pixels.
const CELL: (usize, usize) = (68, 34);

/// Room for the names of rows, and above the columns for theirs, pixels.
const NAMES: (usize, usize) = (150, 112);

/// Room for the title and the meaning of the colours, pixels.
const HEAD: usize = 84;

/// The paths, best first: what `carried` says, its name here, its colour and that of the text on it.
const PATHS: [(&str, &str, &str, &str); 4] = [
    ("direct-udp", "direct UDP", "#2e8b57", "#ffffff"),
    ("direct-tcp", "direct TCP", "#2f6db5", "#ffffff"),
    ("relay", "relay", "#f2b84b", "#3a2a00"),
    ("none", "not connected", "#c0392b", "#ffffff"),
];

/// The picture as SVG.
pub(super) fn svg(kinds: &[Kind], outcomes: &Outcomes) -> String {
    let grid = (NAMES.0 + kinds.len() * CELL.0, NAMES.1 + kinds.len() * CELL.1);
    let (width, height) = ((grid.0 + 40).max(760), HEAD + 2 * (grid.1 + 56) + 10);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"18\">Two members behind NATs: what carries their traffic</text>\n\
         <text x=\"16\" y=\"46\" fill=\"#555\">In a direct cell: seconds from the first ping to the direct path, and the method \
         that opened it; 20 ms each way on every line.</text>\n"
    );
    let mut x = 16;
    for (_, name, colour, _) in PATHS {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"58\" width=\"16\" height=\"16\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"71\">{name}</text>",
            x + 22
        );
        x += 40 + name.len() * 8;
    }
    for (n, udp) in [true, false].into_iter().enumerate() {
        panel(&mut out, kinds, udp, outcomes, HEAD + n * (grid.1 + 56));
    }
    out + "</svg>\n"
}

fn panel(out: &mut String, kinds: &[Kind], udp: bool, outcomes: &Outcomes, top: usize) {
    let shares: Vec<String> = MIXES
        .iter()
        .filter_map(|mix| {
            Some(format!("{:.1} % of {}'s pairs", mix.direct(udp, outcomes)? * 100.0, mix.name))
        })
        .collect();
    let shares =
        if shares.is_empty() { String::new() } else { format!(": direct for {}", shares.join(", ")) };
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"{}\" font-size=\"15\" font-weight=\"bold\">{}{shares}</text>",
        top + 34,
        title(udp)
    );
    let (left, top) = (16 + NAMES.0, top + 44 + NAMES.1);
    for (n, kind) in kinds.iter().enumerate() {
        let (x, y) = (left + n * CELL.0, top + n * CELL.1);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <text transform=\"translate({},{}) rotate(-55)\">{name}</text>",
            left - 8,
            y + 21,
            x + CELL.0 / 2,
            top - 6,
            name = kind.name,
        );
        for (m, column) in kinds.iter().enumerate() {
            cell(out, (left + m * CELL.0, y), (kind, column), find(outcomes, kind.name, column.name, udp));
        }
    }
}

fn cell(out: &mut String, (x, y): (usize, usize), (row, column): (&Kind, &Kind), found: Option<&Outcome>) {
    let path = found.and_then(|outcome| PATHS.iter().find(|(path, ..)| *path == outcome.carried));
    let (_, name, colour, ink) = path.copied().unwrap_or(("", "not tried", "#dddddd", "#555555"));
    let said = match found {
        Some(outcome) if outcome.is_direct() => outcome.direct_seconds(),
        Some(outcome) if outcome.is_connected() => outcome.carried.clone(),
        Some(_) => "none".to_owned(),
        None => "?".to_owned(),
    };
    let method = found.and_then(|outcome| outcome.method.clone()).unwrap_or_default();
    let method = method.replace('&', "&amp;").replace('<', "&lt;");
    let (middle, line) = (x + CELL.0 / 2 - 1, if method.is_empty() { y + 20 } else { y + 14 });
    let _ = writeln!(
        out,
        "<g><title>{} x {}: {name} {method}</title>\
         <rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{colour}\"/>\
         <text x=\"{middle}\" y=\"{line}\" text-anchor=\"middle\" fill=\"{ink}\">{said}</text>\
         <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" fill=\"{ink}\" font-size=\"9\">{method}</text></g>",
        row.name,
        column.name,
        CELL.0 - 2,
        CELL.1 - 2,
        y + 26,
    );
}

#[cfg(test)]
mod tests {
    use super::super::named;
    use super::super::tests::outcome;
    use super::*;

    #[test]
    fn the_picture_has_a_cell_for_each_pair_in_both_orders_and_names_what_was_not_tried() {
        let kinds = ["public", "linux"].map(|name| named(name).unwrap());
        let mut outcomes = Outcomes::new();
        outcomes.insert(("public", "linux", true), outcome("direct-udp"));
        outcomes.insert(("public", "linux", false), outcome("relay"));
        let picture = svg(&kinds, &outcomes);
        assert_eq!(picture.matches("<title>").count(), 8);
        assert_eq!(picture.matches("linux x public: direct UDP").count(), 1);
        assert_eq!(picture.matches("public x linux: relay").count(), 1);
        assert_eq!(picture.matches("not tried").count(), 4);
        assert_eq!(picture.matches("<g>").count(), picture.matches("</g>").count());
    }
}
