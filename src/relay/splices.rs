//! Sessions that the kernel carries: which TCP connections belong together, and what is to be done about it.
//!
//! Each side of a session has a gate of its own: a TCP port of the relay that is its alone, among all that come from the
//! same source address. So two members behind one public address are told apart, and nobody reaches a gate but from the
//! address that has proven its token. Gates are chosen at random: whoever shares an address with a member has to guess.
//! Each side is told the other's port, to dial from if it can: where NATs keep ports, the relay then changes addresses only.
//!
//! Life of a splice: a SYN at the gate waits for the other side's; when both are there, the kernel gets the order to
//! rewrite, and once it does, each side gets the answer made of the other's SYN. A SYN that comes again is answered again;
//! a new one of the same side replaces the old, and waits for a new one of the other, because a connection that has begun
//! cannot be joined. What the kernel rewrites already goes on until there is something better or the session ends.
//!
//! Nothing here grows with what strangers send: a gate holds one SYN.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;
use std::time::Instant;

use crate::base::rng::Rng;
use crate::relay::backend::Why;
use crate::relay::table::End;
use crate::relay::table::Reject;
use crate::relay::table::Seat;
use crate::wire::relay::Flow;
use crate::wire::relay::Gate;
use crate::wire::syn::Pair;
use crate::wire::syn::Syn;
use crate::wire::syn::TooBig;

/// How long a SYN waits for the other side's, from when it was first seen: a member gives up after 5 s, and an answer that
/// comes when it has is worse than none.
const SYN_LIFE: Duration = Duration::from_millis(4500);
/// How often a free port is guessed; with half the range taken by one source, one guess in a thousand billion fails.
const PORT_TRIES: usize = 40;

/// What the kernel backend can do here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// TCP ports that are its own.
    pub ports: RangeInclusive<u16>,
    /// This machine's addresses: who comes from one of them does not pass the network device.
    pub here: Vec<IpAddr>,
    /// Largest packet of the network device, bytes.
    pub mtu: u16,
    /// The relay's own UDP sockets, whose messages it can carry too: socket n is the nth.
    pub doors: Vec<SocketAddr>,
}

/// Work for the executor that drives the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Rewrite the packets of this pair from now on; then tell [`crate::relay::server::Relay::handle_spliced`].
    Splice {
        /// Stands for the pair until it is released.
        number: u32,
        /// Who has dialled what.
        pair: Pair,
    },
    /// Do that no longer.
    Release {
        /// As given with the order to splice.
        number: u32,
        /// The same pair.
        pair: Pair,
    },
    /// Carry the messages of these two endpoints from now on; then tell [`crate::relay::server::Relay::handle_joined`].
    Join {
        /// Stands for the flow until it is parted.
        number: u32,
        /// Whose messages.
        flow: Flow,
    },
    /// Do that no longer.
    Part {
        /// As given with the order to join.
        number: u32,
        /// The same flow.
        flow: Flow,
    },
    /// Send this IP packet.
    Send {
        /// Its destination.
        to: IpAddr,
        /// From the IP header on.
        packet: Vec<u8>,
    },
}

/// What a SYN led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialled {
    /// The other side has to come too: tell it.
    Waits,
    /// Both are there, or it was answered again.
    Answered,
}

/// Gates and splices. Invariants: `by_gate` names exactly the parties; a pair's sides are parties of one session.
pub(super) struct Splices {
    kernel: Option<Kernel>,
    by_gate: HashMap<(IpAddr, u16), Seat>,
    parties: HashMap<Seat, Party>,
    /// By session.
    pairs: HashMap<usize, Splice>,
    /// How many of them the kernel rewrites: asked for at every turn.
    working: usize,
    /// Sessions for which the kernel said no: it is not asked again.
    refused: HashMap<usize, Why>,
    orders: VecDeque<Order>,
}

struct Party {
    source: IpAddr,
    port: u16,
    /// The other side's port: what it has, or is to have if it can.
    across: u16,
    waiting: Option<(Syn, Instant)>,
}

struct Splice {
    pair: Pair,
    /// The kernel has said that it rewrites.
    works: bool,
}

impl Splices {
    pub(super) fn new() -> Self {
        Self {
            kernel: None,
            by_gate: HashMap::new(),
            parties: HashMap::new(),
            pairs: HashMap::new(),
            working: 0,
            refused: HashMap::new(),
            orders: VecDeque::new(),
        }
    }

    pub(super) fn set_kernel(&mut self, kernel: Kernel) {
        self.kernel = Some(kernel);
    }

    pub(super) fn kernel(&self) -> Option<&Kernel> {
        self.kernel.as_ref()
    }

    /// Pairs that the kernel rewrites.
    pub(super) fn count(&self) -> usize {
        self.working
    }

    /// Whether the kernel carries this session, or why it does not although it could.
    pub(super) fn state(&self, slot: usize) -> Result<(), Option<Why>> {
        match (self.refused.get(&slot), self.pairs.get(&slot)) {
            (None, Some(splice)) if splice.works => Ok(()),
            (why, _) => Err(why.copied()),
        }
    }

    /// The gate of a side that is bound from `source` now; `None` if there is no port left for it.
    pub(super) fn gate(&mut self, seat: Seat, source: IpAddr, rng: &mut Rng) -> Option<Gate> {
        if self.refused.contains_key(&seat.slot) {
            return None;
        }
        let ports = self.kernel.as_ref()?.ports.clone();
        let beyond = self.parties.get(&seat.other()).map(|party| (party.port, party.across));
        let known = self.parties.get(&seat).map(|party| (party.source, party.port, party.across));
        if let Some((at, port, across)) = known
            && at == source
        {
            return Some(Gate { port, from: beyond.map_or(across, |(port, _)| port) });
        }
        self.drop_party(seat);
        let span = u32::from(ports.end().saturating_sub(*ports.start())) + 1;
        let mut guess =
            || u16::try_from(rng.below(span)).map_or_else(|_| *ports.start(), |n| *ports.start() + n);
        let across = beyond.map_or_else(&mut guess, |(port, _)| port);
        let wanted = known.map(|(_, port, _)| port).or_else(|| beyond.map(|(_, port)| port));
        let free = |port: &u16| !self.by_gate.contains_key(&(source, *port)) && *port != across;
        let port = wanted.into_iter().chain(std::iter::repeat_with(guess).take(PORT_TRIES)).find(free)?;
        self.by_gate.insert((source, port), seat);
        self.parties.insert(seat, Party { source, port, across, waiting: None });
        Some(Gate { port, from: across })
    }

    /// Takes in a SYN: who came, and what follows.
    pub(super) fn handle_syn(&mut self, syn: Syn, now: Instant) -> Result<(Seat, Dialled), Reject> {
        let seat = *self.by_gate.get(&(syn.from.ip(), syn.to.port())).ok_or(Reject::Unbound)?;
        if let Some(Splice { pair, works }) = self.pairs.get(&seat.slot)
            && own(pair, seat.end) == syn
        {
            if *works {
                let (to, packet) = syn.answered_with(&own(pair, seat.other().end), self.max_segment(syn.to));
                self.orders.push_back(Order::Send { to, packet });
            }
            return Ok((seat, Dialled::Answered));
        }
        let party = self.parties.get_mut(&seat).ok_or(Reject::Unbound)?;
        match &mut party.waiting {
            // The timestamp of a repetition is newer.
            Some((known, _)) if known.from == syn.from && known.isn == syn.isn => *known = syn,
            waiting => *waiting = Some((syn, now)),
        }
        let Some(pair) = self.take_both(seat, now) else { return Ok((seat, Dialled::Waits)) };
        if pair.first.to.ip() != pair.second.to.ip() {
            self.refused.insert(seat.slot, Why::TwoAddresses);
            return Err(Reject::Unspliced);
        }
        let number = number_of(seat.slot);
        if let Some(old) = self.pairs.insert(seat.slot, Splice { pair, works: false }) {
            self.working -= usize::from(old.works);
            self.orders.push_back(Order::Release { number, pair: old.pair });
        }
        self.orders.push_back(Order::Splice { number, pair });
        Ok((seat, Dialled::Answered))
    }

    /// The kernel rewrites, or says why it does not.
    pub(super) fn handle_spliced(&mut self, number: u32, done: bool) {
        let slot = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(splice) = self.pairs.get_mut(&slot) else { return };
        if !done {
            self.working -= usize::from(splice.works);
            self.pairs.remove(&slot);
            self.refused.insert(slot, Why::Refused);
            return;
        }
        self.working += usize::from(!splice.works);
        splice.works = true;
        let pair = splice.pair;
        for (to, packet) in pair.answers(self.max_segment(pair.first.to)) {
            self.orders.push_back(Order::Send { to, packet });
        }
    }

    /// A router between the relay and one of the members has dropped a packet because of its size: the member that it came
    /// from is told.
    pub(super) fn handle_too_big(&mut self, word: &TooBig) -> Result<(), Reject> {
        let seat = *self.by_gate.get(&(word.to.ip(), word.from.port())).ok_or(Reject::Unbound)?;
        let splice = self.pairs.get(&seat.slot).ok_or(Reject::Unbound)?;
        let (addressee, sender) = (own(&splice.pair, seat.end), own(&splice.pair, seat.other().end));
        if (addressee.from, addressee.to) != (word.to, word.from) {
            return Err(Reject::Unbound);
        }
        let (to, packet) = word.passed_on(sender.from, sender.to);
        self.orders.push_back(Order::Send { to, packet });
        Ok(())
    }

    /// The session is over.
    pub(super) fn end(&mut self, slot: usize) {
        for end in [End::First, End::Second] {
            self.drop_party(Seat { slot, end });
        }
        self.refused.remove(&slot);
        if let Some(splice) = self.pairs.remove(&slot) {
            self.working -= usize::from(splice.works);
            self.orders.push_back(Order::Release { number: number_of(slot), pair: splice.pair });
        }
    }

    pub(super) fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Both sides' SYNs, if both wait and neither has waited too long.
    fn take_both(&mut self, seat: Seat, now: Instant) -> Option<Pair> {
        let waiting = |end| {
            let (syn, since) = self.parties.get(&Seat { end, ..seat })?.waiting?;
            (now < since + SYN_LIFE).then_some(syn)
        };
        let pair = Pair { first: waiting(End::First)?, second: waiting(End::Second)? };
        for end in [End::First, End::Second] {
            if let Some(party) = self.parties.get_mut(&Seat { end, ..seat }) {
                party.waiting = None;
            }
        }
        Some(pair)
    }

    fn drop_party(&mut self, seat: Seat) {
        if let Some(party) = self.parties.remove(&seat) {
            self.by_gate.remove(&(party.source, party.port));
        }
    }

    /// The largest TCP segment that leaves the relay's device in one packet.
    fn max_segment(&self, towards: SocketAddr) -> u16 {
        crate::wire::ip::max_mss(self.kernel.as_ref().map_or(u16::MAX, |kernel| kernel.mtu), towards.ip())
    }
}

fn own(pair: &Pair, end: End) -> Syn {
    match end {
        End::First => pair.first,
        End::Second => pair.second,
    }
}

/// What stands for the session in `slot` in orders.
pub(super) fn number_of(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}
