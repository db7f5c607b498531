//! What plain sockets and single packets should see of a NAT, from its description.

use crate::classify::Character;
use crate::classify::Depends;
use crate::classify::Fate;
use crate::nat::Behaviour;
use crate::nat::Filtering;
use crate::nat::Hairpin;
use crate::nat::Mapping;
use crate::nat::Nat;
use crate::nat::Numbers;
use crate::nat::OnIcmp;
use crate::nat::OnReset;
use crate::nat::Pooling;
use crate::nat::Ports;
use crate::nat::Reaction;
use crate::nat::States;
use crate::temper::Left;
use crate::temper::Tcp;
use crate::temper::Temper;
use crate::temper::Turned;

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
    let untranslated = |strangers, reversed, unmapped| Character {
        depends: Depends::Nothing,
        keeps_port: true,
        step: None,
        from_other_port: strangers,
        from_stranger: strangers,
        from_dialled: when_tcp(Fate::Passes),
        reversed: when_tcp(reversed),
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
            return untranslated(
                Fate::Passes,
                Fate::Passes,
                if tcp { Fate::Reset } else { Fate::Unreachable },
            );
        }
        (_, None) => return untranslated(Fate::Silence, Fate::Silence, Fate::Silence),
    };
    let Behaviour { mapping, filtering, reaction, states, .. } = does;
    let refused = match reaction {
        Reaction::Drop | Reaction::LateReset => Fate::Silence,
        Reaction::Reset if tcp => Fate::Reset,
        Reaction::Reset | Reaction::Unreachable => Fate::Unreachable,
        Reaction::Prohibited => Fate::Prohibited,
    };
    let passes = |yes| if yes { Fate::Passes } else { refused };
    let (depends, ports) = match mapping {
        Mapping::Kept | Mapping::Independent(_) => (Depends::Nothing, None),
        Mapping::Address(ports) => (Depends::Address, Some(ports)),
        Mapping::AddressAndPort(ports) => (Depends::AddressAndPort, Some(ports)),
        // Without states a session never ends, so it never begins again.
        Mapping::Session(ports) if tcp && states != States::None => (Depends::Session, Some(ports)),
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
        // The SYN gets in either way; a router that checks windows drops the answer.
        reversed: when_tcp(match (filtering, states) {
            (Filtering::NeverSyn, _) => refused,
            (_, States::Checked | States::SynAckOut) => Fate::Silence,
            (_, States::WindowsIgnored | States::None) => Fate::Passes,
        }),
        unmapped: refused,
    }
}

/// What single packets should provoke.
pub fn expected_temper(nat: Nat, transport: Transport) -> Temper {
    let tcp = transport == Transport::Tcp;
    let Some((udp_does, tcp_does)) = nat.behaviours() else { return untranslated(nat, tcp) };
    let does = if tcp { tcp_does } else { udp_does };
    // Where no states are kept, nothing ends a mapping but time.
    let none = tcp && does.states == States::None;
    let after_icmp = match does.icmp {
        OnIcmp::Mapping if !none => End::Mapping,
        OnIcmp::Mapping | OnIcmp::Ignored => End::Nothing,
    };
    let after_reset = match does.reset {
        OnReset::Session if !none => End::Session,
        OnReset::Mapping if !none => End::Mapping,
        OnReset::Session | OnReset::Mapping | OnReset::Ignored => End::Nothing,
    };
    let one_port = matches!(does.mapping, Mapping::Kept | Mapping::Independent(_));
    // Both hosts have written to each other, but where ports depend on the destination not from the ports that were asked
    // for, so only a filter that lets anybody in does.
    let turned_in = match does.filtering {
        Filtering::Independent => true,
        Filtering::Address | Filtering::AddressAndPort => one_port,
        Filtering::NeverSyn => one_port && !tcp,
    };
    let turned = match does.hairpin {
        Hairpin::External if turned_in => Turned::FromOuter,
        Hairpin::External | Hairpin::No => Turned::Never,
        Hairpin::Internal => Turned::FromInner,
    };
    let late = does.reaction == Reaction::LateReset;
    Temper {
        pooled: does.pooling == Pooling::Arbitrary,
        turned,
        after_icmp: left(does, after_icmp, tcp),
        tcp: tcp.then_some(Tcp {
            after_reset: left(does, after_reset, tcp),
            syn_ack_out: matches!(does.states, States::SynAckOut | States::None),
            any_out: none,
            same_numbers: does.numbers == Numbers::Kept,
            // The probe knows by which port its SYN will leave only where that is kept.
            late_reset: [late, late && does.mapping != Mapping::Kept],
        }),
    }
}

/// What an event ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Nothing,
    Session,
    Mapping,
}

fn left(does: Behaviour, end: End, tcp: bool) -> Left {
    let strangers = matches!(does.filtering, Filtering::Independent | Filtering::Address);
    let per_session = matches!(does.mapping, Mapping::Session(_));
    Left {
        heard: true,
        // A SYN-ACK never begins a session; a datagram may.
        answer: end == End::Nothing || (!tcp && end == End::Session && strangers),
        syn: tcp.then_some(match end {
            End::Nothing => does.filtering != Filtering::NeverSyn,
            End::Session => strangers,
            End::Mapping => false,
        }),
        same_port: match end {
            End::Nothing => true,
            End::Session => !per_session,
            End::Mapping => does.mapping == Mapping::Kept,
        },
    }
}

/// Of a router that does not translate: its hosts' outer endpoints are their inner ones.
fn untranslated(nat: Nat, tcp: bool) -> Temper {
    let open = nat == Nat::Open;
    let all = |answer| Left { heard: true, answer, syn: tcp.then_some(answer), same_port: true };
    Temper {
        pooled: false,
        turned: Turned::FromOuter,
        after_icmp: all(true),
        tcp: tcp.then_some(Tcp {
            after_reset: all(open),
            syn_ack_out: open,
            any_out: open,
            same_numbers: true,
            late_reset: [false; 2],
        }),
    }
}
