//! Which packets of the device the tap lets through: bare SYNs for the port range, and routers' words about packets that
//! were too big. A classic BPF program, run by the kernel for each packet, so that user space is woken by nothing else.

use std::ops::RangeInclusive;

use socket2::SockFilter;

/// Bytes of a packet that are copied: the longest headers and a quoted packet, with some to spare.
const SNAP: u32 = 512;

const LD_B: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const LD_H: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LD_H_X: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
const LD_B_X: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
const LDX_MSH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const LDX_IMM: u16 = (libc::BPF_LDX | libc::BPF_IMM) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JGE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JGT: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JSET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Where the program ends, by line.
const REJECT: usize = 24;
const ACCEPT: usize = 25;

/// The program. Packets begin with their IP header.
pub(super) fn program(ports: &RangeInclusive<u16>) -> Vec<SockFilter> {
    let (low, high) = (u32::from(*ports.start()), u32::from(*ports.end()));
    // Operation, operand, and for jumps the lines to go on at.
    let lines: [(u16, u32, usize, usize); 26] = [
        /*  0 */ (LD_B, 0, 0, 0),
        /*  1 */ (AND, 0xf0, 0, 0),
        /*  2 */ (JEQ, 0x40, 4, 3),
        /*  3 */ (JEQ, 0x60, 12, REJECT),
        /*  4: IPv4, no later fragment */ (LD_H, 6, 0, 0),
        /*  5 */ (JSET, 0x1fff, REJECT, 6),
        /*  6 */ (LDX_MSH, 0, 0, 0),
        /*  7 */ (LD_B, 9, 0, 0),
        /*  8 */ (JEQ, 6, 18, 9),
        /*  9 */ (JEQ, 1, 10, REJECT),
        /* 10: ICMP type and code */ (LD_H_X, 0, 0, 0),
        /* 11 */ (JEQ, 0x0304, ACCEPT, REJECT),
        /* 12: IPv6 without extensions */ (LD_B, 6, 0, 0),
        /* 13 */ (LDX_IMM, 40, 0, 0),
        /* 14 */ (JEQ, 6, 18, 15),
        /* 15 */ (JEQ, 58, 16, REJECT),
        /* 16: ICMPv6 type */ (LD_B_X, 0, 0, 0),
        /* 17 */ (JEQ, 2, ACCEPT, REJECT),
        /* 18: TCP, destination port */ (LD_H_X, 2, 0, 0),
        /* 19 */ (JGE, low, 20, REJECT),
        /* 20 */ (JGT, high, REJECT, 21),
        /* 21: flags, SYN without ACK */ (LD_B_X, 13, 0, 0),
        /* 22 */ (AND, 0x12, 0, 0),
        /* 23 */ (JEQ, 0x02, ACCEPT, REJECT),
        /* 24 */ (RET, 0, 0, 0),
        /* 25 */ (RET, SNAP, 0, 0),
    ];
    let offset = |at: usize, to: usize| u8::try_from(to.saturating_sub(at + 1)).unwrap_or(u8::MAX);
    let line = |(at, (code, k, yes, no)): (usize, (u16, u32, usize, usize))| {
        SockFilter::new(code, offset(at, yes), offset(at, no), k)
    };
    lines.into_iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use socket2::SockRef;

    use super::*;

    /// The kernel runs the program on whatever a datagram socket receives.
    fn passes(packet: &[u8]) -> bool {
        let (near, far) = UnixDatagram::pair().unwrap();
        SockRef::from(&far).attach_filter(&program(&(20_000..=29_999))).unwrap();
        far.set_nonblocking(true).unwrap();
        // A packet that is filtered out is refused right away.
        let sent = near.send(packet);
        sent.is_ok() && far.recv(&mut [0; 64]).is_ok()
    }

    fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x46, 0, 0, 64, 0, 0];
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 0, 0, 0]);
        packet.extend(payload);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 20, next, 64];
        packet.extend([0x20; 32]);
        packet.extend(payload);
        packet
    }

    fn tcp(port: u16, flags: u8) -> Vec<u8> {
        let mut segment = vec![0x30, 0x39];
        segment.extend(port.to_be_bytes());
        segment.extend([0; 8]);
        segment.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        segment
    }

    #[test]
    fn only_syns_for_the_ports_and_words_about_size_pass() {
        for (case, packet, wanted) in [
            ("a SYN", v4(6, 0x4000, &tcp(20_000, 0x02)), true),
            ("a SYN with ECN", v4(6, 0, &tcp(29_999, 0xc2)), true),
            ("a SYN over IPv6", v6(6, &tcp(25_000, 0x02)), true),
            ("below the ports", v4(6, 0, &tcp(19_999, 0x02)), false),
            ("above the ports", v6(6, &tcp(30_000, 0x02)), false),
            ("a SYN-ACK", v4(6, 0, &tcp(20_000, 0x12)), false),
            ("data", v4(6, 0, &tcp(20_000, 0x18)), false),
            ("a later fragment", v4(6, 0x2001, &tcp(20_000, 0x02)), false),
            ("UDP", v4(17, 0, &tcp(20_000, 0x02)), false),
            ("fragmentation needed", v4(1, 0, &[3, 4, 0, 0]), true),
            ("another ICMP message", v4(1, 0, &[3, 3, 0, 0]), false),
            ("packet too big", v6(58, &[2, 0, 0, 0]), true),
            ("a neighbour's question", v6(58, &[135, 0, 0, 0]), false),
            ("no IP", vec![0; 60], false),
            ("nearly nothing", vec![0x45], false),
        ] {
            assert_eq!(passes(&packet), wanted, "{case}");
        }
    }
}
