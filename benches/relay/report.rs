//! The tables: medians over all rounds, and ratios of the same round.

use crate::DATAGRAM;
use crate::Figures;
use crate::Plan;
use crate::RATES;
use crate::Row;
use crate::SIZES;
use crate::datagrams::Loss;
use crate::means::Means;
use crate::median;

/// All of them.
pub(crate) fn print(rows: &[Row], plan: &Plan) {
    let nat = rows.iter().find(|row| row.means == Means::Nat);
    println!("\nover TCP: Mbit/s, of the NAT's, CPU s/GB; round trip, us");
    print!("{:<20}", "");
    plan.connections.iter().for_each(|n| print!("{n:>10} connections    "));
    println!("{:>10} {:>6}", "RTT", "of NAT");
    for row in rows.iter().filter(|row| !row.rtt.is_empty()) {
        print!("{:<20}", row.means.name());
        for (at, bulk) in row.bulk.iter().enumerate() {
            let others = nat.and_then(|nat| nat.bulk.get(at)).map(|all| rates(all)).unwrap_or_default();
            let costs: Vec<f64> = bulk.iter().map(|f| f.cpu_per_gb).collect();
            print!("{:>10.0} {:>6.2} {:>6.2} ", mid(&rates(bulk)), ratio(&rates(bulk), &others), mid(&costs));
        }
        let others = nat.map(|nat| nat.rtt.clone()).unwrap_or_default();
        println!("{:>10.1} {:>6.2}", mid(&row.rtt), ratio(&row.rtt, &others));
    }
    println!(
        "\nover UDP, percent lost: {DATAGRAM} bytes at Mbit/s; then as fast as it goes, by size, with Mbit/s sent"
    );
    print!("{:<20}", "");
    RATES.iter().for_each(|rate| print!("{rate:>8.0}"));
    SIZES.iter().for_each(|size| print!("{size:>15}"));
    println!();
    for row in rows.iter().filter(|row| row.by_size.iter().any(|losses| !losses.is_empty())) {
        print!("{:<20}", row.means.name());
        row.by_rate.iter().for_each(|losses| print!("{:>8.1}", lost(losses)));
        for losses in &row.by_size {
            let offered: Vec<f64> = losses.iter().map(|loss| loss.offered).collect();
            print!("{:>7.1} ({:>5.0})", lost(losses), mid(&offered));
        }
        println!();
    }
}

/// Median, percent.
pub(crate) fn lost(losses: &[Loss]) -> f64 {
    mid(&losses.iter().map(|loss| loss.lost * 100.0).collect::<Vec<_>>())
}

/// Mbit/s.
pub(crate) fn rates(all: &[Figures]) -> Vec<f64> {
    all.iter().map(|figures| figures.mbits).collect()
}

/// The median.
pub(crate) fn mid(values: &[f64]) -> f64 {
    median(&mut values.to_vec())
}

fn ratio(own: &[f64], others: &[f64]) -> f64 {
    mid(&own.iter().zip(others).map(|(a, b)| a / b).collect::<Vec<_>>())
}
