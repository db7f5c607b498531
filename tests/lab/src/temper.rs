//! What a NAT does when it is provoked: segments out of order, RSTs, ICMP errors, packets to itself; found out with single
//! packets by hosts inside and one outside.
//!
//! As [`classify`](crate::classify), this knows nothing of how the lab's NATs are made.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use crate::raw::ACK;
use crate::raw::Bare;
use crate::raw::FIN;
use crate::raw::Load;
use crate::raw::Packet;
use crate::raw::RST;
use crate::raw::SYN;
use crate::raw::Seen;
use crate::topology::Host;

/// How long a packet may take before it counts as dropped.
const PATIENCE: Duration = Duration::from_millis(800);

/// Inner ports in use, one per question.
const INNER: u16 = 43_000;

/// Outer ports in use.
const OUTER: u16 = 3600;

/// How many ports are opened to see outer addresses: three addresses are all the same by chance once in 3^15.
const OPENED: u16 = 16;

/// An outer port that no mapping has.
const UNMAPPED: u16 = 778;

/// The first sequence number of the host inside.
const INSIDE_NUMBER: u32 = 1_000_000;

/// The first sequence number of the host outside.
const OUTSIDE_NUMBER: u32 = 5_000_000;

/// How a packet from inside to an outer endpoint comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turned {
    /// Not at all.
    Never,
    /// From its sender's outer endpoint.
    FromOuter,
    /// From its sender's inner endpoint.
    FromInner,
}

/// What is left of a mapping after something has come in that might end it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    /// The host inside has got that too.
    pub heard: bool,
    /// An answer (for TCP a SYN-ACK) still comes in from where the first packet went.
    pub answer: bool,
    /// For TCP: so does a SYN.
    pub syn: Option<bool>,
    /// The next first packet to there leaves by the same outer port.
    pub same_port: bool,
}

/// What was seen for one transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Temper {
    /// Whether inner endpoints of one host have different outer addresses.
    pub pooled: bool,
    /// What becomes of a packet from one inside host to another's outer endpoint, when both have sent one.
    pub turned: Turned,
    /// After an ICMP error (time exceeded for TCP, port unreachable for UDP) about the first packet out.
    pub after_icmp: Left,
    /// For TCP.
    pub tcp: Option<Tcp>,
}

/// What TCP alone has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// After a RST in answer to a SYN.
    pub after_reset: Left,
    /// A SYN-ACK leaves after a SYN, though no SYN has come.
    pub syn_ack_out: bool,
    /// Any segment leaves after a SYN, though nothing has come.
    pub any_out: bool,
    /// Sequence numbers arrive as they were sent.
    pub same_numbers: bool,
    /// A SYN to a port without mapping is answered by a RST, but only after some seconds; and whether it still is if a SYN
    /// has left for its sender meanwhile.
    pub late_reset: [bool; 2],
}

/// Two hosts inside, and one outside with two addresses.
#[derive(Debug)]
pub struct Provoker {
    inside: [(Bare, Ipv4Addr); 2],
    outside: Bare,
    outside_host: Host,
    addresses: [Ipv4Addr; 2],
}

impl Provoker {
    /// Takes some ports of the hosts for itself. The second address of the outside host is where strangers' packets and
    /// ICMP errors come from.
    pub fn new(inside: [&Host; 2], outside: &Host, second: Ipv4Addr) -> Result<Self> {
        let [alice, bob] = inside;
        let bare = |host: &Host, first| Bare::new(&host.ns, first..=first + 99);
        Ok(Self {
            inside: [(bare(alice, INNER)?, alice.v4), (bare(bob, INNER)?, bob.v4)],
            outside: bare(outside, OUTER)?,
            outside_host: outside.clone(),
            addresses: [outside.v4, second],
        })
    }

    /// Examines what the NAT does with UDP.
    pub fn udp(&self) -> Result<Temper> {
        self.drain()?;
        let first = Load::Datagram;
        let after_icmp = self.left(20, first, |mapped| self.complain(mapped, false), Seen::error)?;
        Ok(Temper { pooled: self.pooled(first)?, turned: self.turned(30, first)?, after_icmp, tcp: None })
    }

    /// Examines what the NAT does with TCP.
    pub fn tcp(&self) -> Result<Temper> {
        self.drain()?;
        let outer = *self.opened(0, 51, syn())?.source.ip();
        thread::scope(|scope| {
            let late_reset = scope.spawn(move || self.late_reset(outer));
            let after_icmp = self.left(20, syn(), |mapped| self.complain(mapped, true), Seen::error)?;
            let reset = |mapped: &Packet| {
                let Load::Segment { number, .. } = mapped.load else { return Ok(()) };
                let load = segment(RST | ACK, 0, number.wrapping_add(1));
                self.outside.send(&Packet { source: mapped.destination, destination: mapped.source, load })
            };
            let after_reset = self.left(24, syn(), reset, Seen::reset)?;
            let (pooled, turned) = (self.pooled(syn())?, self.turned(30, syn())?);
            let tcp = Tcp {
                after_reset,
                syn_ack_out: self.leaves_too(40, segment(SYN | ACK, INSIDE_NUMBER, OUTSIDE_NUMBER + 1))?,
                any_out: self.leaves_too(41, segment(ACK, INSIDE_NUMBER + 1, OUTSIDE_NUMBER + 1))?,
                same_numbers: self.same_numbers(42)?,
                late_reset: late_reset.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??,
            };
            Ok(Temper { pooled, turned, after_icmp, tcp: Some(tcp) })
        })
    }

    /// Throws away what has come and nobody has asked for.
    fn drain(&self) -> Result<()> {
        let [(alice, _), (bob, _)] = &self.inside;
        for host in [alice, bob, &self.outside] {
            host.wait(Duration::ZERO, |_| -> Option<()> { None })?;
        }
        Ok(())
    }

    /// What the `n`th inner port has to do with the `n`th outer one.
    fn outward(&self, who: usize, n: u16, load: Load) -> Packet {
        let (inner, outer) =
            (self.inside.get(who).map_or(Ipv4Addr::UNSPECIFIED, |host| host.1), self.addresses[0]);
        let source = SocketAddrV4::new(inner, INNER + n);
        Packet { source, destination: SocketAddrV4::new(outer, OUTER + n), load }
    }

    /// Sends a packet out and returns it as it is seen outside, if it is.
    fn leaves(&self, who: usize, n: u16, load: Load) -> Result<Option<Packet>> {
        let Some((host, _)) = self.inside.get(who) else { return Ok(None) };
        host.send(&self.outward(who, n, load))?;
        self.outside.arrival(OUTER + n, load, PATIENCE)
    }

    fn opened(&self, who: usize, n: u16, load: Load) -> Result<Packet> {
        self.leaves(who, n, load)?.with_context(|| format!("{load:?} does not get out of the NAT"))
    }

    /// Whether a packet from outside, in answer to one that was seen there, gets to the `n`th inner port.
    fn comes(&self, n: u16, mapped: &Packet, load: Load) -> Result<bool> {
        let [(host, _), _] = &self.inside;
        self.outside.send(&Packet { source: mapped.destination, destination: mapped.source, load })?;
        Ok(host.arrival(INNER + n, load, PATIENCE)?.is_some())
    }

    /// What is left of two mappings after `harm`, which is `heard` inside when it arrives.
    fn left(
        &self,
        n: u16,
        load: Load,
        harm: impl Fn(&Packet) -> Result<()>,
        heard: fn(Seen) -> Option<u16>,
    ) -> Result<Left> {
        let [(host, _), _] = &self.inside;
        let harmed = |n| -> Result<(Packet, bool)> {
            let mapped = self.opened(0, n, load)?;
            harm(&mapped)?;
            let arrived = host.wait(PATIENCE, |seen| heard(seen).filter(|port| *port == INNER + n))?;
            thread::sleep(HARM_DONE);
            Ok((mapped, arrived.is_some()))
        };
        let (mapped, heard) = harmed(n)?;
        let answer = self.comes(n, &mapped, mapped.load.answer())?;
        let again = self.opened(0, n, load)?;
        let syn = match load {
            Load::Datagram => None,
            Load::Segment { .. } => {
                let (mapped, _) = harmed(n + 1)?;
                Some(self.comes(n + 1, &mapped, segment(SYN, OUTSIDE_NUMBER, 0))?)
            }
        };
        Ok(Left { heard, answer, syn, same_port: again.source.port() == mapped.source.port() })
    }

    fn complain(&self, about: &Packet, exceeded: bool) -> Result<()> {
        self.outside.complain(self.addresses[1], about, exceeded)
    }

    fn pooled(&self, load: Load) -> Result<bool> {
        let seen: Result<BTreeSet<Ipv4Addr>> =
            (0..OPENED).map(|n| Ok(*self.opened(0, n, load)?.source.ip())).collect();
        Ok(seen?.len() > 1)
    }

    fn turned(&self, n: u16, load: Load) -> Result<Turned> {
        let [(alice, inner), (bob, _)] = &self.inside;
        let (a, b) = (self.opened(0, n, load)?.source, self.opened(1, n + 1, load)?.source);
        let send = |host: &Bare, who, n, destination| {
            host.send(&Packet { destination, ..self.outward(who, n, load) })
        };
        send(bob, 1, n + 1, a)?;
        thread::sleep(HARM_DONE);
        send(alice, 0, n, b)?;
        let Some(back) = bob.arrival(INNER + n + 1, load, PATIENCE)? else { return Ok(Turned::Never) };
        let inner = SocketAddrV4::new(*inner, INNER + n);
        // Where ports depend on the destination, it has another outer endpoint than `a`.
        Ok(if back.source == inner && inner != a { Turned::FromInner } else { Turned::FromOuter })
    }

    /// Whether a segment leaves after a SYN by the same outer port.
    fn leaves_too(&self, n: u16, load: Load) -> Result<bool> {
        let mapped = self.opened(0, n, syn())?;
        let after = self.leaves(0, n, load)?;
        Ok(after.is_some_and(|after| after.source == mapped.source))
    }

    fn same_numbers(&self, n: u16) -> Result<bool> {
        let mapped = self.opened(0, n, syn())?;
        Ok(mapped.load == syn())
    }

    /// Whether mappings let a packet in after each of these idle times: one that has sent a SYN, one that is established,
    /// and one that has been closed. `stranger` says who sends that packet: an address never written to, with a SYN, or
    /// the one that was.
    pub fn lives(&self, idle: &[Duration], stranger: bool) -> Result<Vec<[bool; 3]>> {
        let mut opened = Vec::new();
        for (round, _) in (60..).step_by(3).zip(idle) {
            opened.push([self.opening(round)?, self.established(round + 1)?, self.closed(round + 2)?]);
        }
        let start = Instant::now();
        let mut lives = Vec::new();
        for ((mapped, idle), round) in opened.iter().zip(idle).zip((60..).step_by(3)) {
            thread::sleep(idle.saturating_sub(start.elapsed()));
            let mut alive = [false; 3];
            for ((mapped, alive), n) in mapped.iter().zip(&mut alive).zip(round..) {
                let acknowledged = match mapped.load {
                    Load::Segment { number, .. } => number.wrapping_add(1),
                    Load::Datagram => 0,
                };
                // What a peer would say next.
                let next = match n % 3 {
                    _ if stranger => syn(),
                    0 => segment(SYN | ACK, OUTSIDE_NUMBER, acknowledged),
                    _ => segment(ACK, OUTSIDE_NUMBER + 1, acknowledged),
                };
                let from = SocketAddrV4::new(self.addresses[1], OUTER + n);
                let destination = if stranger { from } else { mapped.destination };
                *alive = self.comes(n, &Packet { destination, ..*mapped }, next)?;
            }
            lives.push(alive);
        }
        Ok(lives)
    }

    fn opening(&self, n: u16) -> Result<Packet> {
        self.opened(0, n, syn())
    }

    fn established(&self, n: u16) -> Result<Packet> {
        let mapped = self.opening(n)?;
        ensure!(self.comes(n, &mapped, mapped.load.answer())?, "no SYN-ACK comes in");
        self.opened(0, n, segment(ACK, INSIDE_NUMBER + 1, OUTSIDE_NUMBER + 1))?;
        Ok(mapped)
    }

    fn closed(&self, n: u16) -> Result<Packet> {
        let mapped = self.established(n)?;
        self.opened(0, n, segment(FIN | ACK, INSIDE_NUMBER + 1, OUTSIDE_NUMBER + 1))?;
        let Load::Segment { number, .. } = mapped.load else { return Ok(mapped) };
        let fin = segment(FIN | ACK, OUTSIDE_NUMBER + 1, number.wrapping_add(2));
        ensure!(self.comes(n, &mapped, fin)?, "no FIN comes in");
        self.opened(0, n, segment(ACK, INSIDE_NUMBER + 2, OUTSIDE_NUMBER + 2))?;
        Ok(mapped)
    }

    /// Whether SYNs to ports without mapping are answered late: one, and one for whose sender a SYN leaves meanwhile.
    fn late_reset(&self, outer: Ipv4Addr) -> Result<[bool; 2]> {
        /// A RST before this is not late; RFC 5382 wants six seconds.
        const EARLY: Duration = Duration::from_secs(4);
        /// No RST comes after this.
        const LATE: Duration = Duration::from_secs(8);
        let outside = Bare::beside(&self.outside_host.ns)?;
        let dialled = self.outward(0, 50, syn());
        let unsolicited = |source, port| {
            outside.send(&Packet { source, destination: SocketAddrV4::new(outer, port), load: syn() })
        };
        let stranger = SocketAddrV4::new(self.addresses[1], OUTER + 52);
        unsolicited(stranger, UNMAPPED)?;
        unsolicited(dialled.destination, dialled.source.port())?;
        let start = Instant::now();
        self.inside[0].0.send(&dialled)?;
        let mut late = [false; 2];
        outside.wait(LATE, |seen| -> Option<()> {
            if let Seen::Packet(packet) = seen
                && packet.load.flags() & RST != 0
                && start.elapsed() > EARLY
            {
                late[0] |= packet.destination == stranger;
                late[1] |= packet.destination == dialled.destination;
            }
            None
        })?;
        Ok(late)
    }
}

/// Until an error or a RST has done what it does.
const HARM_DONE: Duration = Duration::from_millis(100);

fn segment(flags: u8, number: u32, acknowledged: u32) -> Load {
    Load::Segment { flags, number, acknowledged }
}

fn syn() -> Load {
    segment(SYN, INSIDE_NUMBER, 0)
}

impl Seen {
    /// The port that an ICMP error is about.
    fn error(self) -> Option<u16> {
        match self {
            Self::Error { source } => Some(source.port()),
            Self::Packet(_) => None,
        }
    }

    /// The port that a RST is for.
    fn reset(self) -> Option<u16> {
        match self {
            Self::Packet(packet) if packet.load.flags() & RST != 0 => Some(packet.destination.port()),
            Self::Packet(_) | Self::Error { .. } => None,
        }
    }
}

impl Load {
    /// What a server would answer to it, as it is seen outside.
    fn answer(self) -> Self {
        match self {
            Self::Segment { number, .. } => segment(SYN | ACK, OUTSIDE_NUMBER, number.wrapping_add(1)),
            Self::Datagram => Self::Datagram,
        }
    }
}
