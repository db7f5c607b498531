//! What each NAT of the lab should look like from outside.

use crate::classify::Character;
use crate::classify::Depends;
use crate::classify::Fate;
use crate::nat::Behaviour;
use crate::nat::Filtering;
use crate::nat::Mapping;
use crate::nat::Nat;
use crate::nat::Ports;
use crate::nat::Reaction;

/// A transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// What plain sockets should see of a NAT.
pub fn expected(nat: Nat, transport: Transport) -> Character {
    let tcp = transport == Transport::Tcp;
    let when_tcp = |fate| tcp.then_some(fate);
    let untranslated = |strangers, unmapped| Character {
        depends: Depends::Nothing,
        keeps_port: true,
        step: None,
        from_other_port: strangers,
        from_stranger: strangers,
        from_dialled: when_tcp(Fate::Passes),
        unmapped,
    };
    let does = match (nat, nat.behaviours()) {
        (_, Some((udp, tcp_does))) => {
            if tcp {
                tcp_does
            } else {
                udp
            }
        }
        (Nat::Open, _) => {
            return untranslated(Fate::Passes, if tcp { Fate::Reset } else { Fate::Unreachable });
        }
        (_, None) => return untranslated(Fate::Silence, Fate::Silence),
    };
    let Behaviour { mapping, filtering, reaction } = does;
    let refused = match reaction {
        Reaction::Drop => Fate::Silence,
        Reaction::Reset if tcp => Fate::Reset,
        Reaction::Reset | Reaction::Unreachable => Fate::Unreachable,
    };
    let passes = |yes| if yes { Fate::Passes } else { refused };
    let (depends, ports) = match mapping {
        Mapping::Kept | Mapping::Independent(_) => (Depends::Nothing, None),
        Mapping::Address(ports) => (Depends::Address, Some(ports)),
        Mapping::AddressAndPort(ports) => (Depends::AddressAndPort, Some(ports)),
        Mapping::Session(ports) if tcp => (Depends::Session, Some(ports)),
        Mapping::Session(ports) => (Depends::AddressAndPort, Some(ports)),
    };
    Character {
        depends,
        keeps_port: mapping == Mapping::Kept,
        step: match ports {
            Some(Ports::Step(step)) => Some(step),
            Some(Ports::Random) | None => None,
        },
        from_other_port: passes(matches!(filtering, Filtering::Independent | Filtering::Address)),
        from_stranger: passes(filtering == Filtering::Independent),
        from_dialled: when_tcp(passes(filtering != Filtering::NeverSyn)),
        unmapped: refused,
    }
}
