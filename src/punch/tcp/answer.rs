//! Rounds in which SYNs are not answered by the kernel that they were sent to: by the broker in its name, or by hand.

use std::net::IpAddr;
use std::net::SocketAddr;

use super::Attempt;
use super::Role;
use super::Stage;
use super::terms::Dialled;
use crate::base::id::StreamId;
use crate::base::transmit::StreamOrder;
use crate::punch::method::Answer;
use crate::wire::ip::Packet;
use crate::wire::syn::Syn;

/// Rounds after which answers that were sent and did not come are taken for lost on their way: one may be lost by chance.
const LOST_AFTER: u8 = 2;
/// Largest segment that is promised: what the peer's own SYN did.
const MAX_SEGMENT: u16 = u16::MAX;

/// What became of answers in others' names.
#[derive(Debug, Default)]
pub(super) struct Forgeries {
    /// The broker says that it sent them.
    sent: u8,
    arrived: bool,
}

impl Attempt {
    /// The SYN of a stream of ours has left: `packet`.
    pub fn handle_dialled(&mut self, id: StreamId, packet: &[u8]) {
        let punched = self.streams.get(&id).is_some_and(|s| matches!(s.role, Role::Punched { .. }));
        let (true, Some(round), Some(from)) = (punched, self.rounds.get(self.at), self.mapped) else {
            return;
        };
        let (Ok(whole), Ok(syn)) = (Packet::parse(packet), Syn::parse(packet)) else { return };
        self.syn = Some(syn);
        self.dialled = Some(Dialled {
            round: self.number(),
            forge: round.answer == Answer::Broker,
            from,
            syn: whole.payload().to_vec(),
        });
    }

    /// Both sides have dialled. The broker has answered us in the peer's name, or gives us the peer's SYN to answer it.
    pub fn handle_both_dialled(&mut self, round: u8, forged: bool, peer: &[u8]) {
        let answer = self.rounds.get(self.at).map(|round| round.answer);
        let ours = round == self.number() && matches!(self.stage, Stage::Dialling { .. });
        match (ours, forged, answer, self.syn) {
            (true, true, Some(Answer::Broker), _) => self.forgeries.sent += 1,
            (true, false, Some(Answer::Own), Some(own)) => self.print_answer(&own, peer),
            _ => {}
        }
    }

    /// What the broker is to be told of our SYN.
    pub fn poll_dialled(&mut self) -> Option<Dialled> {
        self.dialled.take()
    }

    /// Whether answers in the peer's name were sent to us, and none came.
    #[must_use]
    pub fn has_lost_forgeries(&self) -> bool {
        self.forgeries.sent >= LOST_AFTER && !self.forgeries.arrived
    }

    /// A stream that was dialled is open.
    pub(super) fn note_answer(&mut self) {
        if self.rounds.get(self.at).is_some_and(|round| round.answer == Answer::Broker) {
            self.forgeries.arrived = true;
        }
    }

    /// Only the endpoint that the peer's SYN comes from, where somebody else answers it.
    pub(super) fn answerable(answer: Answer, endpoints: Vec<SocketAddr>) -> Vec<SocketAddr> {
        match answer {
            Answer::Peer => endpoints,
            Answer::Broker | Answer::Own => {
                endpoints.into_iter().filter(SocketAddr::is_ipv4).take(1).collect()
            }
        }
    }

    fn print_answer(&mut self, own: &Syn, peer: &[u8]) {
        let Ok(peer) = Syn::between(peer, own.to, own.from) else { return };
        let (to, packet) = peer.answered_with(own, MAX_SEGMENT);
        if let IpAddr::V4(to) = to {
            self.orders.push_back(StreamOrder::Print(to, packet));
        }
    }

    fn number(&self) -> u8 {
        u8::try_from(self.at + 1).unwrap_or(u8::MAX)
    }
}
