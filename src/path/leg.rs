//! One way for bytes to leave by: a socket or stream, a far end, and a relay channel if it is not the peer's own.

use std::net::SocketAddr;

use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::wire::relay;
use crate::wire::relay::Channel;

/// Where to put a message so that it reaches the peer; also where a message came from, so that it can be answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Leg {
    /// The door.
    pub via: Via,
    /// The far end: the peer, or the relay.
    pub to: SocketAddr,
    /// The relay's channel.
    pub channel: Option<Channel>,
}

impl Leg {
    /// Straight to a peer over UDP.
    #[must_use]
    pub fn udp(to: SocketAddr) -> Self {
        Self { via: Via::udp_for(to), to, channel: None }
    }

    /// Whether this is a stream whose far end is the peer itself.
    #[must_use]
    pub fn is_direct_stream(&self) -> bool {
        matches!(self.via, Via::Stream(_)) && self.channel.is_none()
    }

    /// Writes one message in place: `write` gets `room` bytes and answers how many it used, or `None`. Returns that.
    pub fn fill(
        &self,
        outbox: &mut Outbox,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<usize> {
        let Some(channel) = self.channel else { return outbox.fill(self.via, self.to, room, write) };
        outbox
            .fill(self.via, self.to, room + relay::HEADER_LEN, |slot| {
                let (head, body) = slot.split_first_chunk_mut::<{ relay::HEADER_LEN }>()?;
                *head = channel.header();
                Some(write(body)? + relay::HEADER_LEN)
            })
            .map(|n| n - relay::HEADER_LEN)
    }

    /// Queues a copy of `message`.
    pub fn push(&self, outbox: &mut Outbox, message: &[u8]) {
        let _ = self.fill(outbox, message.len(), |slot| {
            slot.copy_from_slice(message);
            Some(message.len())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayed_message_has_its_header_before_it() {
        let mut outbox = Outbox::default();
        let to: SocketAddr = "192.0.2.1:6061".parse().unwrap();
        let leg = Leg { channel: Some(Channel::new(5)), ..Leg::udp(to) };
        leg.push(&mut outbox, b"abc");
        assert_eq!(leg.fill(&mut outbox, 9, |_| None), None);
        Leg::udp(to).push(&mut outbox, b"de");
        let sent: Vec<&[u8]> = outbox.sends().iter().map(|t| outbox.bytes(t.range.clone())).collect();
        assert_eq!(sent, [&b"\x40\x05\0\0abc"[..], b"de"]);
        assert_eq!(relay::split(sent[0]), Ok((Channel::new(5), &b"abc"[..])));
    }
}
