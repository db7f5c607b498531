//! The congestion mark of an IP packet: read where it stands, and changed in passing.

use super::fold;
use crate::base::ecn::Ecn;

/// Where the header checksum of IPv4 stands.
const V4_CHECKSUM: std::ops::Range<usize> = 10..12;

/// The mark of what begins like an IP packet.
#[must_use]
pub fn mark_of(packet: &[u8]) -> Ecn {
    match packet {
        [version, class, ..] if version >> 4 == 4 => Ecn::of(*class),
        // Version 4 bits, traffic class 8, flow label 20.
        [version, class, ..] if version >> 4 == 6 => Ecn::of(class >> 4),
        _ => Ecn::NotCapable,
    }
}

/// Gives an IP packet a mark, and repairs the checksum of an IPv4 header incrementally (RFC 1624), so that one that was
/// wrong stays wrong.
pub fn set_mark(packet: &mut [u8], mark: Ecn) {
    match packet {
        [version, class, ..] if *version >> 4 == 4 => {
            let (before, after) = (*class, *class & !3 | mark.bits());
            *class = after;
            let place: Option<&mut [u8; 2]> =
                packet.get_mut(V4_CHECKSUM).and_then(|place| place.as_mut_array());
            if let Some(place) = place
                && before != after
            {
                // The version stands in the same word on both sides, and cancels out.
                let change = u32::from(!u16::from(before)) + u32::from(after);
                let sum = u32::from(!u16::from_be_bytes(*place)) + change;
                *place = (!fold(sum)).to_be_bytes();
            }
        }
        [version, class, ..] if *version >> 4 == 6 => *class = *class & !0x30 | mark.bits() << 4,
        _ => {}
    }
}
