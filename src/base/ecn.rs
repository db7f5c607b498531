//! Explicit congestion notification: two bits of every IP header (RFC 3168 5), and how those of a tunnel's outer header
//! become the inner one's (RFC 6040).

/// What the two bits say.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Ecn {
    /// The transport does not know of it.
    #[default]
    NotCapable,
    /// ECT(1), which L4S uses (RFC 9331).
    Capable1,
    /// ECT(0).
    Capable0,
    /// A queue on the way was about to overflow.
    Congested,
}

impl Ecn {
    /// From the lower two bits of the IPv4 type of service or the IPv6 traffic class.
    #[must_use]
    pub const fn of(traffic_class: u8) -> Self {
        match traffic_class & 3 {
            0 => Self::NotCapable,
            1 => Self::Capable1,
            2 => Self::Capable0,
            _ => Self::Congested,
        }
    }

    /// The two bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::NotCapable => 0,
            Self::Capable1 => 1,
            Self::Capable0 => 2,
            Self::Congested => 3,
        }
    }

    /// What a packet with this mark leaves the tunnel with, if it came in one marked `outer` (RFC 6040 4.2, figure 4).
    /// `None`: it must be dropped, because its transport could not be told of the congestion otherwise.
    #[must_use]
    pub const fn out_of(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotCapable, Self::Congested) => None,
            (Self::NotCapable, _) => Some(Self::NotCapable),
            (Self::Congested, _) | (_, Self::Congested) => Some(Self::Congested),
            (Self::Capable1, _) | (Self::Capable0, Self::Capable1) => Some(Self::Capable1),
            (Self::Capable0, _) => Some(Self::Capable0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_a_tunnel_is_figure_4_of_rfc_6040() {
        use Ecn::Capable0 as Ect0;
        use Ecn::Capable1 as Ect1;
        use Ecn::Congested as Ce;
        use Ecn::NotCapable as Not;
        let outer = [Not, Ect0, Ect1, Ce];
        let table = [
            (Not, [Some(Not), Some(Not), Some(Not), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in table {
            assert_eq!(outer.map(|outer| inner.out_of(outer)), row, "{inner:?}");
        }
    }

    #[test]
    fn the_bits_are_those_of_rfc_3168() {
        for bits in 0..=u8::MAX {
            assert_eq!(Ecn::of(bits).bits(), bits & 3);
        }
        assert_eq!([Ecn::of(1), Ecn::of(2), Ecn::of(3)], [Ecn::Capable1, Ecn::Capable0, Ecn::Congested]);
    }
}
