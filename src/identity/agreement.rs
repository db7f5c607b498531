//! An own tunnel key, and the secrets that it has lately agreed on: one Diffie-Hellman with somebody serves every key that
//! follows from it.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::identity::keys::WgPublic;
use crate::identity::keys::WgSecret;
use crate::identity::keys::expand;

/// Agreements in a generation: when one is full, it becomes the older of two, and the oldest is wiped. So those with the
/// last 4,096 others are remembered, and never more than 8,192, below a MiB: what a busy relay sees in an hour. Each saves
/// 40 µs, the multiplication on the curve.
const GENERATION: usize = 4096;

/// A secret key that remembers with whom it has agreed on what. Only those whose certificate, or whose broker's signature,
/// was checked should get this far: strangers must not be able to push others out.
pub struct Agreements {
    own: WgSecret,
    newer: BTreeMap<WgPublic, Zeroizing<[u8; 32]>>,
    older: BTreeMap<WgPublic, Zeroizing<[u8; 32]>>,
}

impl Agreements {
    /// Of the holder of `own`, with nobody yet.
    #[must_use]
    pub fn new(own: WgSecret) -> Self {
        Self { own, newer: BTreeMap::new(), older: BTreeMap::new() }
    }

    /// As [`WgSecret::derive`].
    #[must_use]
    pub fn derive(&mut self, peer: WgPublic, label: &[u8], context: &[u8]) -> Option<[u8; 32]> {
        self.derive_all(peer, label, [context]).map(|[key]| key)
    }

    /// As [`WgSecret::derive`], for several contexts.
    #[must_use]
    pub fn derive_all<const N: usize>(
        &mut self,
        peer: WgPublic,
        label: &[u8],
        contexts: [&[u8]; N],
    ) -> Option<[[u8; 32]; N]> {
        expand(&*self.shared_with(peer)?, label, contexts)
    }

    fn shared_with(&mut self, peer: WgPublic) -> Option<Zeroizing<[u8; 32]>> {
        if let Some(known) = self.newer.get(&peer) {
            return Some(known.clone());
        }
        let shared = match self.older.remove(&peer) {
            Some(known) => known,
            None => Zeroizing::new(self.own.shared_with(peer)?),
        };
        self.remember(peer, shared.clone());
        Some(shared)
    }

    fn remember(&mut self, peer: WgPublic, shared: Zeroizing<[u8; 32]>) {
        if self.newer.len() == GENERATION {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(peer, shared);
    }
}

impl std::fmt::Debug for Agreements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agreements(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_what_would_be_worked_out_again() {
        let own = WgSecret::new([1; 32]);
        let mut agreements = Agreements::new(own.clone());
        for round in 0..3 {
            for n in 0..3 {
                let peer = WgSecret::new([10 + n; 32]).public();
                let key = agreements.derive(peer, b"label", &[round]);
                assert_eq!(key, own.derive(peer, b"label", &[round]));
            }
        }
        assert_eq!(agreements.newer.len(), 3);
    }

    #[test]
    fn a_key_of_low_order_is_refused_each_time() {
        let mut agreements = Agreements::new(WgSecret::new([1; 32]));
        for _ in 0..2 {
            assert_eq!(agreements.derive(WgPublic([0; 32]), b"label", b""), None);
        }
    }

    #[test]
    fn memory_is_bounded_and_whoever_comes_back_in_time_is_kept() {
        let mut agreements = Agreements::new(WgSecret::new([1; 32]));
        let regular = WgSecret::new([2; 32]).public();
        let _ = agreements.derive(regular, b"label", b"");
        for n in 0..3 * GENERATION {
            let mut stranger = [9; 32];
            stranger[..8].copy_from_slice(&n.to_le_bytes());
            agreements.remember(WgPublic(stranger), Zeroizing::new([7; 32]));
            assert!(agreements.newer.contains_key(&regular) || agreements.older.contains_key(&regular));
            let _ = agreements.derive(regular, b"label", b"");
            assert!(agreements.newer.len() <= GENERATION && agreements.older.len() <= GENERATION);
        }
    }
}
