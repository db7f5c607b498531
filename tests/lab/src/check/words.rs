//! What was seen of a NAT, in one line.

use crate::classify::Character;
use crate::classify::Depends;
use crate::classify::Fate;
use crate::temper::Left;
use crate::temper::Temper;
use crate::temper::Turned;

/// What plain sockets have seen.
pub(super) fn character(character: &Character) -> String {
    let depends = match character.depends {
        Depends::Nothing => "one outer port",
        Depends::Address => "a port per address",
        Depends::AddressAndPort => "a port per address and port",
        Depends::Session => "a port per session",
    };
    let ports = match (character.keeps_port, character.step) {
        (true, _) => ", kept".to_owned(),
        (false, Some(step)) => format!(", the next is +{step}"),
        (false, None) => ", anywhere".to_owned(),
    };
    let fate = |fate| match fate {
        Fate::Passes => "passes",
        Fate::Silence => "silence",
        Fate::Reset => "RST",
        Fate::Unreachable => "ICMP",
        Fate::Prohibited => "ICMP prohibited",
    };
    let syns = character.from_dialled.zip(character.reversed);
    let syns = syns.map_or_else(String::new, |(crossing, reversed)| {
        format!("; crossing SYN: {}, later: {}", fate(crossing), fate(reversed))
    });
    format!(
        "{depends}{ports}; other port: {}; stranger: {}{syns}; unmapped: {}",
        fate(character.from_other_port),
        fate(character.from_stranger),
        fate(character.unmapped)
    )
}

/// What single packets have provoked.
pub(super) fn temper(temper: &Temper) -> String {
    let Temper { pooled, turned, after_icmp, tcp } = temper;
    let mut words = vec![
        if *pooled { "many outer addresses" } else { "one outer address" }.to_owned(),
        match turned {
            Turned::Never => "no hairpin",
            Turned::FromOuter => "hairpin from outer",
            Turned::FromInner => "hairpin from inner",
        }
        .to_owned(),
        format!("after ICMP {}", left(after_icmp)),
    ];
    if let Some(tcp) = tcp {
        words.push(format!("after RST {}", left(&tcp.after_reset)));
        words.push(match (tcp.syn_ack_out, tcp.any_out) {
            (true, true) => "anything leaves after SYN".to_owned(),
            (true, false) => "SYN-ACK leaves after SYN".to_owned(),
            (false, true) => "all but SYN-ACK leaves after SYN".to_owned(),
            (false, false) => "no SYN-ACK after SYN".to_owned(),
        });
        if !tcp.same_numbers {
            words.push("numbers rewritten".to_owned());
        }
        match tcp.late_reset {
            [false, false] => {}
            [true, false] => words.push("late RST, none if dialled".to_owned()),
            [_, true] => words.push("late RST even if dialled".to_owned()),
        }
    }
    words.join("; ")
}

fn left(left: &Left) -> String {
    let gone = match (left.answer, left.syn) {
        (true, None | Some(true)) => "all passes",
        (true, Some(false)) => "answers pass",
        (false, Some(true)) => "SYNs pass",
        (false, None | Some(false)) => "nothing passes",
    };
    let heard = if left.heard { "" } else { " (not heard inside)" };
    let port = if left.same_port { "" } else { ", another port" };
    format!("{gone}{port}{heard}")
}
