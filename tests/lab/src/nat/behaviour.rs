//! What a NAT does with one transport: one small value per habit, each with the boxes known to have it.

/// What a NAT does with one transport. Values compose freely; start from [`Behaviour::LINUX`] and change what differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviour {
    /// How outer ports are chosen.
    pub mapping: Mapping,
    /// How outer addresses are chosen.
    pub pooling: Pooling,
    /// Who may send to them.
    pub filtering: Filtering,
    /// What happens to everything else from outside.
    pub reaction: Reaction,
    /// Whether inside hosts reach each other by their outer endpoints.
    pub hairpin: Hairpin,
    /// What an ICMP error from outside does to a mapping.
    pub icmp: OnIcmp,
    /// For TCP: what a RST from outside does to a mapping.
    pub reset: OnReset,
    /// For TCP: which segments of a session pass.
    pub states: States,
    /// For TCP: what becomes of sequence numbers.
    pub numbers: Numbers,
}

impl Behaviour {
    /// Plain masquerade behind a silent firewall.
    pub const LINUX: Self = Self {
        mapping: Mapping::Kept,
        pooling: Pooling::Paired,
        filtering: Filtering::AddressAndPort,
        reaction: Reaction::Drop,
        hairpin: Hairpin::No,
        icmp: OnIcmp::Ignored,
        reset: OnReset::Session,
        states: States::Checked,
        numbers: Numbers::Kept,
    };
}

/// What an outer port depends on, besides the inner endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// On nothing, and the outer port is the inner one while nobody else inside uses it towards the same destination:
    /// netfilter's masquerade and whatever is built on it.
    Kept,
    /// On nothing, but it is another port: RFC 4787's endpoint-independent mapping, as carriers' NATs have it.
    Independent(Ports),
    /// On the destination's address: rare, 2.5 % of the market in 2005.
    Address(Ports),
    /// On the destination's address and port, and the same again for a later session: 18.7 % of the market in 2005.
    AddressAndPort(Ports),
    /// On the session: every new one gets a new port. pf (OPNsense, pfSense), netfilter's `--random-fully`, many cellular
    /// and cloud NATs.
    Session(Ports),
}

/// Which outer port a new mapping gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    /// This much above the last one: what most symmetric NATs of 2005 did; 2 where ports are given out in RTP/RTCP pairs.
    Step(u16),
    /// Any: RFC 6056's advice, today's rule among symmetric NATs.
    Random,
}

/// Which outer address a new mapping gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pooling {
    /// Always the router's one: homes, and carriers that keep a subscriber on one address (RFC 4787, REQ-2).
    Paired,
    /// Any of [`POOL`] for each mapping: carriers' and cloud NATs that spread load over a pool.
    Arbitrary,
}

/// How many outer addresses a router with [`Pooling::Arbitrary`] has.
pub const POOL: u8 = 3;

/// From where packets may come in to a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filtering {
    /// From anywhere: "full cone" as an option of home routers, carriers that follow RFC 6888.
    Independent,
    /// From addresses that were written to: "address restricted".
    Address,
    /// From addresses and ports that were written to: netfilter and nearly all firewalls.
    AddressAndPort,
    /// As before, but a SYN never, not even from where one was sent to: Linux before 2.6.31, strict TCP inspection. For UDP
    /// the same as [`Self::AddressAndPort`].
    NeverSyn,
}

/// What a packet gets that no mapping takes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Silence: most home routers.
    Drop,
    /// A RST (for UDP, which has none, ICMP port unreachable): OpenWrt's `REJECT`, its default on the outside.
    Reset,
    /// A RST for a SYN, but only after six seconds and if no SYN has left for its sender meanwhile: routers that follow RFC
    /// 5382, REQ-4 so that early SYNs of a simultaneous open do no harm. Silence for UDP, and for a SYN to a mapping that
    /// takes none ([`Filtering::NeverSyn`]).
    LateReset,
    /// ICMP port unreachable: a plain iptables `REJECT`.
    Unreachable,
    /// ICMP communication administratively prohibited: routers with access lists (Cisco IOS), `admin-prohibited` rejects.
    Prohibited,
}

/// What a packet from inside to an outer endpoint of the same router becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hairpin {
    /// Nothing: 76 % of home routers for UDP and 87 % for TCP in 2005, most Linux ones today.
    No,
    /// It comes back with its sender's outer endpoint and under the filter, as RFC 4787, REQ-9 wants: carriers' NATs.
    External,
    /// It comes back with its sender's inner address, past the filter, so that the answer goes straight to the sender from
    /// an endpoint that it has never heard of: port forwarding without masquerade, a common mistake of home routers.
    Internal,
}

/// What an ICMP error from outside (unreachable, time exceeded) about a mapping does to it. The host gets it either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnIcmp {
    /// Nothing: RFC 4787, REQ-12; netfilter.
    Ignored,
    /// It ends the mapping: 4.5 % of the market in 2005, to which low-TTL punching is fatal.
    Mapping,
}

/// What a RST from outside does. The host gets it either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnReset {
    /// It ends the session; a mapping that does not depend on the session stays: netfilter.
    Session,
    /// It ends the mapping and what was let in by it: routers with one table, 17.1 % of the market in 2005.
    Mapping,
    /// Nothing, whatever it claims: routers after RFC 7857, 2.2, and those that do not look at flags.
    Ignored,
}

/// How much of TCP's state machine a NAT knows. It matters where a port that has sent a SYN and given up answers a SYN
/// from there (its SYN-ACK has another initial sequence number), and where a forged SYN-ACK is to open the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum States {
    /// Only what is legal and fits the windows that were seen passes: netfilter as it is shipped.
    Checked,
    /// What is legal passes, whatever its sequence numbers: netfilter with `nf_conntrack_tcp_be_liberal`.
    WindowsIgnored,
    /// As [`Self::Checked`], but a SYN-ACK may leave after a SYN, although none has come: what NATBlaster counts on, found
    /// among NATs of 2005 that look at the direction only.
    SynAckOut,
    /// Nothing is known but the session's endpoints and when a packet last left, so nothing ends it but time, whatever
    /// [`OnReset`] and [`OnIcmp`] say: cheap routers of 2005, stateless translators of carriers and of load balancers (MAP-T,
    /// lw4o6).
    None,
}

/// What becomes of TCP's sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbers {
    /// Nothing.
    Kept,
    /// Those of the inside are shifted by half their range on the way out, and back in acknowledgements and SACK blocks;
    /// quotations in ICMP errors are not, so hosts ignore those errors. Cisco PIX and ASA randomise initial sequence numbers
    /// so by default, pf with `modulate state`.
    Shifted,
}
