//! What TCP sends, message by message.

/// Hops that a host's segments may take, unless somebody chose fewer.
pub(crate) const TTL: u8 = 64;

/// One segment, or an ICMP error about one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Hops that it may still take.
    pub ttl: u8,
    /// What it says.
    pub kind: Kind,
}

impl Segment {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self { ttl: TTL, kind }
    }
}

/// What a segment says. Initial sequence numbers are those of TCP; after that messages are counted, not bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A SYN, with its socket's initial sequence number.
    Syn(u32),
    /// A SYN-ACK: its own socket's number, and the one that it answers.
    SynAck(u32, u32),
    /// All messages before this one have arrived.
    Ack(u64),
    /// The message of this number.
    Data(u64, Vec<u8>),
    /// A keep-alive, which wants an answer.
    Probe,
    /// The sender has closed.
    Fin,
    /// There is no such connection; the number of the SYN if it answers one.
    Reset(Option<u32>),
    /// ICMP: the SYN of this number was refused on its way.
    Unreachable(u32),
    /// ICMP: the SYN of this number has used up its hops.
    Expired(u32),
}

impl Kind {
    /// For the trace: which kind it is.
    pub(crate) const fn code(&self) -> u64 {
        match self {
            Self::Syn(_) => 16,
            Self::SynAck(..) => 17,
            Self::Ack(_) => 18,
            Self::Data(..) => 19,
            Self::Probe => 20,
            Self::Fin => 21,
            Self::Reset(_) => 22,
            Self::Unreachable(_) => 23,
            Self::Expired(_) => 24,
        }
    }
}
