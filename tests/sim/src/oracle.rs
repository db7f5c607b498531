//! Can these two meet directly? Answered from the words of RFC 4787, RFC 5128 and the theses alone, without a clock, a
//! socket or a line of the product: so the product, the simulation and this check each other.
//!
//! For datagrams the answer is a closure of what follows from what. Each side knows the other's endpoint as the broker sees
//! it, and sends there. Its NAT gives that destination an outside endpoint of its own; the other NAT lets it in, or does
//! not. What is let in tells its receiver an endpoint that it did not know. The two can meet if in the end some pair of
//! endpoints passes in both directions. Where nothing more follows, they cannot, unless somebody guesses a port.
//!
//! Ports can also be found: where they step, or where only one side's are random (with a birthday's chances). For TCP it is
//! what Gaballo's tables 3.3 and 5.1 and the simultaneous open of RFC 793 allow.

use std::collections::BTreeSet;

use crate::nat::Filtering;
use crate::nat::Mapping;

/// By what two members can send to each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Carrier {
    /// Datagrams, straight.
    Udp,
    /// A TCP connection, straight.
    Tcp,
    /// A relay.
    Relay,
}

/// An outside endpoint of one side, by what it was made for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Endpoint {
    /// The one that all destinations share.
    Common,
    /// For everything at the broker's address.
    ForBroker,
    /// For everything at the peer's address.
    ForPeer,
    /// For one endpoint of the peer.
    For(Box<Self>),
}

impl Endpoint {
    fn depth(&self) -> usize {
        match self {
            Self::Common | Self::ForBroker | Self::ForPeer => 0,
            Self::For(of) => 1 + of.depth(),
        }
    }
}

/// What follows from four endpoints deep is known after that; two NATs that map per endpoint go on for ever.
const DEEP: usize = 4;

/// A datagram that was sent, by its outside source and destination.
type Flow = (Endpoint, Endpoint);

/// Whether two members, each behind a NAT of its own, can exchange datagrams without a relay.
#[must_use]
pub fn meet(a: (Mapping, Filtering), b: (Mapping, Filtering)) -> bool {
    let sides = [a, b];
    let mut knows = [BTreeSet::from([as_the_broker_sees(b.0)]), BTreeSet::from([as_the_broker_sees(a.0)])];
    let mut sent: [BTreeSet<Flow>; 2] = [BTreeSet::new(), BTreeSet::new()];
    loop {
        let before = (knows.clone(), sent.clone());
        for (own, other) in [(0, 1), (1, 0)] {
            for to in &knows[own] {
                sent[own].insert((outside(sides[own].0, to), to.clone()));
            }
            for (from, to) in sent[own].clone() {
                if lets_in(sides[other].1, &to, &from, &sent[other]) && from.depth() < DEEP {
                    knows[other].insert(from);
                }
            }
        }
        if (&knows, &sent) == (&before.0, &before.1) {
            break;
        }
    }
    sent[0].iter().any(|(from, to)| {
        sent[1].contains(&(to.clone(), from.clone()))
            && lets_in(b.1, to, from, &sent[1])
            && lets_in(a.1, from, to, &sent[0])
    })
}

fn as_the_broker_sees(mapping: Mapping) -> Endpoint {
    match mapping {
        Mapping::EndpointIndependent => Endpoint::Common,
        Mapping::AddressDependent | Mapping::AddressAndPortDependent => Endpoint::ForBroker,
    }
}

/// Where something for `to` comes from.
fn outside(mapping: Mapping, to: &Endpoint) -> Endpoint {
    match mapping {
        Mapping::EndpointIndependent => Endpoint::Common,
        Mapping::AddressDependent => Endpoint::ForPeer,
        Mapping::AddressAndPortDependent => Endpoint::For(Box::new(to.clone())),
    }
}

/// Whether a filter passes something from `from` to `own`, after `sent` has left.
fn lets_in(filtering: Filtering, own: &Endpoint, from: &Endpoint, sent: &BTreeSet<Flow>) -> bool {
    match filtering {
        Filtering::EndpointIndependent => true,
        Filtering::AddressDependent => sent.iter().any(|(source, _)| source == own),
        Filtering::AddressAndPortDependent => sent.contains(&(own.clone(), from.clone())),
    }
}

/// One member's network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// Whether it lets datagrams out.
    pub udp: bool,
    /// How its NAT treats them.
    pub datagrams: (Mapping, Filtering),
    /// How its NAT gives ports to them, and what it does with TCP.
    pub tcp: (TcpPort, TcpDoor),
}

/// The best way that there is between two members who both listen on TCP too: datagrams, else a connection, else a relay.
#[must_use]
pub fn carrier(a: Site, b: Site) -> Carrier {
    let known = |site: Site| site.tcp.0 != TcpPort::Random;
    // Random ports are met from one that is known, by enough tries: 98 times of 100.
    let one = |site: Site| site.datagrams.0 == Mapping::EndpointIndependent;
    let found = known(a) && known(b) || one(a) || one(b);
    if a.udp && b.udp && (meet(a.datagrams, b.datagrams) || found) {
        Carrier::Udp
    } else if open(a.tcp, b.tcp) {
        Carrier::Tcp
    } else {
        Carrier::Relay
    }
}

/// Which outside port a connection gets (Gaballo's Table 3.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TcpPort {
    /// One for all destinations: known beforehand.
    Same,
    /// The next one after the last: can be guessed.
    Next,
    /// Any.
    Random,
}

/// Which SYN from outside is let in, after one has gone out (Gaballo's Table 5.1; filtering as in RFC 5382 4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TcpDoor {
    /// From anybody.
    Anybody,
    /// From any port of the address that was written to.
    Address,
    /// From exactly where the SYN went.
    Endpoint,
    /// None, not even then (16.1 % of the market of 2005).
    Nobody,
}

/// Whether two members, each behind a NAT of its own, can open a TCP connection without forged packets: the SYN of at least
/// one must come in at the other, and whoever lets in only the expected has to know what to expect.
#[must_use]
pub fn open(a: (TcpPort, TcpDoor), b: (TcpPort, TcpDoor)) -> bool {
    let enters = |from: TcpPort, door: TcpDoor| match door {
        TcpDoor::Anybody | TcpDoor::Address => true,
        TcpDoor::Endpoint => from != TcpPort::Random,
        TcpDoor::Nobody => false,
    };
    // Whoever dials must know which port the other's NAT opens for it; who lets in anybody is met at the port that the
    // broker saw.
    let aims = |(port, door): (TcpPort, TcpDoor)| port != TcpPort::Random || door == TcpDoor::Anybody;
    let a_enters = enters(a.0, b.1) && aims(b);
    let b_enters = enters(b.0, a.1) && aims(a);
    a_enters || b_enters
}

#[cfg(test)]
mod tests {
    use super::*;

    use Filtering::AddressAndPortDependent as Strict;
    use Filtering::AddressDependent as ByAddress;
    use Filtering::EndpointIndependent as Open;
    use Mapping::AddressAndPortDependent as PerEndpoint;
    use Mapping::AddressDependent as PerAddress;
    use Mapping::EndpointIndependent as One;

    #[test]
    fn what_rfc_5128_says_comes_out() {
        for (a, b, wanted) in [
            ((One, Strict), (One, Strict), true),
            ((One, Open), (PerEndpoint, Strict), true),
            ((One, ByAddress), (PerEndpoint, Strict), true),
            ((One, Strict), (PerEndpoint, Strict), false),
            ((One, Strict), (PerAddress, Strict), false),
            ((PerEndpoint, Strict), (PerEndpoint, Strict), false),
            ((PerAddress, Open), (PerAddress, Open), true),
            ((PerEndpoint, Open), (PerEndpoint, Open), false),
        ] {
            assert_eq!(meet(a, b), wanted, "{a:?} {b:?}");
            assert_eq!(meet(b, a), wanted, "{b:?} {a:?}");
        }
    }
}
