//! Everything a node can give out: messages, packets, work for the engine, news.

use std::collections::VecDeque;

use crate::base::transmit::Outbox;
use crate::base::transmit::PacketBatch;
use crate::base::transmit::StreamOrder;
use crate::identity::names::MemberName;
use crate::node::request::Pong;
use crate::node::status::PathKind;
use crate::wire::broker::Register;
use crate::wire::broker::ToBroker;

/// Work for the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Work on TCP streams.
    Stream(StreamOrder),
    /// Send to the broker.
    Broker(ToBroker),
    /// What we say about ourselves changed: tell the broker now, and again whenever the link comes up.
    Register(Register),
    /// The certificate was renewed: store it (DER) and use it for the next control connection.
    StoreCertificate(Vec<u8>),
    /// A newer revocation list was accepted: store it (signed bytes).
    StoreRevocations(Vec<u8>),
}

/// News for people and logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Another path carries now.
    Path {
        /// The peer.
        peer: MemberName,
        /// What carries.
        path: PathKind,
        /// Why it changed, in words.
        why: String,
    },
    /// The answer to a ping.
    Pong(Pong),
    /// The broker knows us now, or no longer.
    Broker {
        /// Registered.
        connected: bool,
        /// In words.
        what: String,
    },
    /// Names and addresses in the mesh changed (hosts file).
    Directory(Vec<(MemberName, crate::base::addr::OverlayAddrs)>),
    /// Our own certificate is no longer believed: the member must stop. In words.
    Expelled(String),
}

/// Filled by every `handle_*`, emptied by the engine after each.
#[derive(Debug, Default)]
pub struct Output {
    /// For sockets and streams.
    pub outbox: Outbox,
    /// For the device.
    pub packets: PacketBatch,
    /// For the engine.
    pub orders: VecDeque<Order>,
    /// For people.
    pub notices: VecDeque<Notice>,
}
