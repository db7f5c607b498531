//! The Internet checksum over whole packets, fast: the data plane adds up every byte twice.

/// A sum in progress (RFC 1071), kept in the machine's byte order, which the arithmetic allows.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes; all parts but the last must have an even length.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        // Words of 32 bits, so that 2^32 of them fit; in this form the compiler adds many at a time.
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        self.0 += sum;
    }

    /// Adds a number of 16 bits.
    pub(super) fn add_word(&mut self, word: u16) {
        self.0 += u64::from(word.to_be());
    }

    /// The sum in 16 bits, not complemented.
    pub(super) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(u16::try_from(sum).unwrap_or(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(bytes: &[u8]) -> u16 {
        let mut sum = Sum::default();
        sum.add(bytes);
        sum.folded()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!((sum(&[]), sum(&[0x12])), (0, 0x1200));
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_words_wherever_it_is_cut(bytes: Vec<u8>, cut: proptest::sample::Index, word: u16) {
            let slow = bytes.chunks(2).fold(u64::from(word), |sum, pair| {
                sum + (u64::from(pair[0]) << 8) + u64::from(pair.get(1).copied().unwrap_or(0))
            });
            let cut = cut.index(bytes.len() + 1) / 2 * 2;
            let mut fast = Sum::default();
            fast.add(&bytes[..cut]);
            fast.add(&bytes[cut..]);
            fast.add_word(word);
            // Equal as numbers modulo 0xffff; zero comes from nothing but zeroes.
            prop_assert_eq!(u64::from(fast.folded()) % 0xffff, slow % 0xffff);
            prop_assert_eq!(fast.folded() == 0, slow == 0);
        }
    }
}
