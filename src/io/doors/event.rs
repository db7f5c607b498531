//! What the doors tell: events as they come in, counters for whoever asks.

use std::net::SocketAddr;

use crate::base::ecn::Ecn;
use crate::base::id::PortId;
use crate::base::id::StreamId;
use crate::base::transmit::StreamEvent;
use crate::base::transmit::Via;

/// Something came in.
#[derive(Debug)]
pub enum Event<'a> {
    /// A datagram.
    Datagram {
        /// The socket.
        via: Via,
        /// Its source, IPv4-mapped addresses made plain.
        from: SocketAddr,
        /// Its congestion mark.
        ecn: Ecn,
        /// Its bytes, writable so that they can be opened in place.
        bytes: &'a mut [u8],
    },
    /// A listener accepted a stream; `Opened` does not follow.
    Accepted {
        /// Numbered by the doors, from the top half of the range (bit 31 set).
        id: StreamId,
        /// Far end.
        from: SocketAddr,
        /// Near end.
        to: SocketAddr,
        /// The port of an attempt at which it came in; `None` for a listener that is open for good.
        port: Option<PortId>,
    },
    /// Something happened to a stream.
    Stream {
        /// Which.
        id: StreamId,
        /// What.
        event: StreamEvent<'a>,
    },
    /// The device can be read.
    Device,
    /// Somebody called [`super::Waker::wake`].
    Woken,
}

/// What the doors have done since they were made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams that the kernel took.
    pub datagrams_out: u64,
    /// Datagrams that the kernel refused; they are lost.
    pub datagrams_refused: u64,
    /// Among these, larger than the device on their way out takes.
    pub too_big: u64,
    /// Runs of datagrams that the kernel took as one message each (`UDP_SEGMENT`).
    pub runs_out: u64,
    /// Runs that it did not take as one; their datagrams were sent one by one.
    pub runs_refused: u64,
    /// Frames received on streams.
    pub frames_in: u64,
    /// Frames sent or queued on streams; some of the queued ones may be dropped later.
    pub frames_out: u64,
    /// Messages for streams that were dropped: a slow far end, no such stream, longer than a frame can be.
    pub stream_messages_dropped: u64,
    /// Streams accepted.
    pub accepted: u64,
    /// Streams closed at once because there were too many already.
    pub accept_refused: u64,
    /// Streams closed because they sent what is no frame.
    pub bad_frames: u64,
    /// Streams closed because they sent no first frame, or did not finish one, in time.
    pub silent_streams: u64,
}
