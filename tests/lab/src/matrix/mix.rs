//! How common the NATs are: what a share of pairs in the matrix means for people.

use super::Outcome;
use super::Outcomes;
use super::find;

/// A market: kinds of NAT and the share of users behind each.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// For the report.
    pub name: &'static str,
    /// Names of kinds and shares that sum up to 1.
    pub shares: &'static [(&'static str, f64)],
}

/// The market of 2005 (Guha and Francis, "Characterization and measurement of TCP traversal through NATs and
/// firewalls", IMC 2005, as Gaballo's Tables 3.3 and 5.1 give it). That 16.1 % refuse SYNs is counted among the boxes with one outer
/// port alone, because the source does not say how the two figures go together.
pub const OF_2005: Mix = Mix {
    name: "2005",
    shares: &[
        ("linux", 0.598),
        ("never-syn", 0.161),
        ("address-step1", 0.025),
        ("port-step1", 0.187),
        ("session-step1", 0.029),
    ],
};

/// An estimate of today's; `docs/nat.md` has the reason for each figure.
pub const TODAY: Mix = Mix {
    name: "today",
    shares: &[
        ("linux", 0.33),
        ("linux-rst", 0.08),
        ("linux-liberal", 0.05),
        ("full-cone", 0.10),
        ("address-restricted", 0.06),
        ("port-restricted", 0.16),
        ("session-random", 0.13),
        ("port-step1", 0.02),
        ("never-syn", 0.03),
        ("firewall", 0.02),
        ("public", 0.02),
    ],
};

/// Those that the matrix is weighted by.
pub const MIXES: [Mix; 2] = [OF_2005, TODAY];

impl Mix {
    /// The share of direct pairs if both ends are drawn from this market; `None` if a pair of it was not tried.
    pub fn direct(&self, udp: bool, outcomes: &Outcomes) -> Option<f64> {
        let mut share = 0.0;
        for (a, weight_a) in self.shares {
            for (b, weight_b) in self.shares {
                if find(outcomes, a, b, udp).map(Outcome::is_direct)? {
                    share += weight_a * weight_b;
                }
            }
        }
        Some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::named;
    use super::super::tests::outcome;
    use super::*;

    #[test]
    fn every_nat_of_a_market_exists_and_the_markets_are_whole() {
        for mix in MIXES {
            assert!(mix.shares.iter().all(|(name, _)| named(name).is_ok()), "{}", mix.name);
            let sum: f64 = mix.shares.iter().map(|(_, share)| share).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{}: {sum}", mix.name);
        }
    }

    #[test]
    fn the_weighted_share_counts_a_pair_in_both_orders_and_needs_all_pairs() {
        let mut outcomes = Outcomes::new();
        for (n, (a, _)) in OF_2005.shares.iter().enumerate() {
            for (b, _) in OF_2005.shares.iter().skip(n) {
                assert_eq!(OF_2005.direct(true, &outcomes), None);
                let both = *a == "linux" && *b == "never-syn";
                outcomes.insert((a, b, true), outcome(if both { "direct-tcp" } else { "relay" }));
            }
        }
        let share = OF_2005.direct(true, &outcomes).unwrap();
        assert!((share - 2.0 * 0.598 * 0.161).abs() < 1e-9, "{share}");
    }
}
