//! What a driver can be asked to do, and what may come of it.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use super::question::Question;
use crate::wire::stun::Message;
use crate::wire::stun::STUNT_SEEN;

/// One local port, by number: the driver takes a fresh one when a slot is first used, and keeps it until the survey is
/// over. UDP and TCP have slots of their own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u8);

/// After how long a datagram is sent again, and at last given up. 1.8 s in all: silence is an answer in many of these
/// tests, and three losses in a row are rarer than the NATs that would be mistaken for it.
pub const WAITS: [Duration; 3] = [ms(300), ms(600), ms(900)];
/// How long a connection may take, and an answer on it: the kernel sends a SYN again after 1 s.
pub const PATIENCE: Duration = ms(2500);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An experiment for the driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// A datagram.
    Udp(Datagram),
    /// Packets to `to` that expire on the way, one for each TTL from 1 to the last; who said so?
    Trace {
        /// Where they would go.
        to: SocketAddr,
        /// The content of datagrams, a question that does no harm if it arrives; `None` for TCP's SYNs.
        message: Option<Message>,
        /// The last TTL.
        hops: u8,
    },
    /// A TCP connection, with a question on it.
    Dial(Dial),
    /// A question on the connection that another question has made and kept.
    Ask(Ask),
    /// Whoever connects to this slot's TCP port is let in.
    Listen(Slot),
    /// A SYN to where nothing will answer by itself.
    Syn {
        /// The port that dials.
        from: Slot,
        /// Where to.
        to: SocketAddr,
        /// Whether the socket goes on dialling; otherwise this is the only SYN.
        goes_on: bool,
    },
    /// A TCP segment made by hand: SYN and ACK, from a port that is dialling (needs CAP_NET_RAW).
    SynAck {
        /// The port that it comes from.
        from: Slot,
        /// Where to.
        to: SocketAddr,
        /// Its sequence number, that of the SYN before.
        sequence: u32,
    },
    /// Nothing, for so long.
    Wait(Duration),
}

impl Probe {
    /// Packets that it sends at most, those that answer the other side's included.
    #[must_use]
    pub fn cost(&self) -> u32 {
        match self {
            Self::Udp(_) => WAITS.len() as u32,
            Self::Trace { hops, .. } => u32::from(*hops),
            // SYN, its acknowledgment, the request, the answer's acknowledgment, FIN, and its acknowledgment: more than
            // the three SYNs of one that is not answered.
            Self::Dial(_) => 6,
            // The request and the answer's acknowledgment; SYN-ACK, and two more, to a connection back.
            Self::Ask(ask) if ask.message.method == STUNT_SEEN => 2,
            Self::Ask(_) => 5,
            // The kernel's SYNs after 0, 1, 2, 3, 4, 5 and 7 s; or one, and the RST that answers what comes back.
            Self::Syn { goes_on: true, .. } => 7,
            Self::Syn { goes_on: false, .. } => 2,
            Self::SynAck { .. } => 1,
            Self::Listen(_) | Self::Wait(_) => 0,
        }
    }
}

/// A STUN message by UDP: sent, and sent again after each of [`WAITS`], until something with its transaction id arrives
/// where it is expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// The port that sends.
    pub from: Slot,
    /// The port that listens for the answer, or for the message itself.
    pub hear: Slot,
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub message: Message,
    /// How long to keep still before.
    pub after: Duration,
}

/// A TCP connection; given up after [`PATIENCE`]. An answer on it may take so long and [`Self::wait`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dial {
    /// The port that dials; others may dial and listen on it at the same time.
    pub from: Slot,
    /// Where to.
    pub to: SocketAddr,
    /// What to ask on it.
    pub message: Option<Message>,
    /// How long to keep still before.
    pub after: Duration,
    /// How long the answer is meant to take.
    pub wait: Duration,
    /// What becomes of it after the answer.
    pub end: End,
    /// Whether to read the initial sequence number from the kernel (needs CAP_NET_ADMIN).
    pub sequence: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// With the survey.
    Keep,
    /// From this side as soon as the question is asked, with a FIN; from the other with the answer.
    Half,
    /// At once, politely.
    Close,
    /// At once, with a RST, so that the same port may dial the same place again.
    Reset,
}

/// A question on a connection that stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The question that made it.
    pub on: Question,
    /// What to ask.
    pub message: Message,
    /// How long to keep still before.
    pub after: Duration,
    /// How long to wait for the answer.
    pub wait: Duration,
}

/// What came of a probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Something with the probe's transaction id arrived.
    Heard(Heard),
    /// The connection stands; nothing was asked on it.
    Connected,
    /// Nothing came.
    Silence,
    /// A RST, or an ICMP error.
    Refused,
    /// Who reported which TTL as expired.
    Routers(Vec<(u8, IpAddr)>),
    /// It is done: the time is over, the segment sent; or it listens, and where.
    Done(Option<SocketAddr>),
    /// This machine could not do it; why, in words.
    Failed(String),
}

/// What arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Its source.
    pub source: SocketAddr,
    /// The inner endpoint of the slot that sent the question.
    pub local: SocketAddr,
    /// What it says.
    pub message: Message,
    /// The initial sequence number of the connection, where it was to be read.
    pub sequence: Option<u32>,
}
