//! TCP streams: whose they are, and what becomes of those of strangers.

use std::net::SocketAddr;

use crate::base::ecn::Ecn;
use crate::base::id::PortId;
use crate::base::id::StreamId;
use crate::base::time::Now;
use crate::base::transmit::Bound;
use crate::base::transmit::StreamEvent;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Via;
use crate::node::Node;
use crate::node::output::Order;
use crate::node::output::Output;
use crate::node::peers::PeerId;

/// Whose a stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// Nobody has proven anything yet.
    Stranger,
    /// A peer's, or of the way to one.
    Peer(PeerId),
    /// Of somebody whom we relay for.
    Relayed,
}

impl Node {
    /// Something happened to a stream.
    pub fn handle_stream(
        &mut self,
        id: StreamId,
        event: StreamEvent<'_>,
        from: SocketAddr,
        now: Now,
        out: &mut Output,
    ) {
        let owner = self.streams.get(&id).copied().unwrap_or(Owner::Stranger);
        let news = match event {
            StreamEvent::Frame(bytes) => return self.handle_frame(id, owner, from, bytes, now, out),
            StreamEvent::Dialled(packet) => {
                let Owner::Peer(owner) = owner else { return };
                self.with_path(owner, now, out, |path, _| path.handle_dialled(id, packet));
                return self.pump(owner, now, out);
            }
            StreamEvent::Opened => Ok(()),
            StreamEvent::Closed(gone) => {
                self.streams.remove(&id);
                Err(gone)
            }
        };
        let owner = match owner {
            Owner::Peer(owner) => owner,
            Owner::Stranger => return,
            Owner::Relayed => {
                if let (Err(_), Some(served)) = (&news, self.served.as_mut()) {
                    served.handle_stream_closed(id);
                }
                return;
            }
        };
        self.with_path(owner, now, out, |path, ctx| path.handle_stream(id, news, ctx));
        self.pump(owner, now, out);
    }

    /// A stream came in at a port of ours: the one of an attempt, or the listener that is always open. Nobody answers it
    /// before an authentic check came by it.
    pub fn handle_accepted(
        &mut self,
        id: StreamId,
        port: Option<PortId>,
        from: SocketAddr,
        now: Now,
        out: &mut Output,
    ) {
        let owner = port.and_then(|port| Some((port, self.ports.get(&port).copied()?)));
        if let Some((port, owner)) = owner {
            self.with_path(owner, now, out, |path, _| path.handle_accepted(id, port, from));
        }
        // Whose it is, only a check will tell.
        self.streams.insert(id, Owner::Stranger);
    }

    /// What an order to bind a port gave.
    pub fn handle_bound(&mut self, port: PortId, bound: Bound, now: Now, out: &mut Output) {
        let Some(owner) = self.ports.get(&port).copied() else { return };
        self.with_path(owner, now, out, |path, ctx| path.handle_bound(port, bound, ctx));
        self.pump(owner, now, out);
    }

    /// A message on a stream. A stranger has one to prove that it is a peer.
    fn handle_frame(
        &mut self,
        id: StreamId,
        owner: Owner,
        from: SocketAddr,
        bytes: &mut [u8],
        now: Now,
        out: &mut Output,
    ) {
        if let Owner::Peer(owner) = owner
            && self.with_path(owner, now, out, |path, ctx| path.handle_frame(id, bytes, ctx)) == Some(true)
        {
            return self.pump(owner, now, out);
        }
        if owner == Owner::Stranger {
            self.serve_stream(id, from, bytes, now);
        }
        self.handle_message(Via::Stream(id), from, Ecn::NotCapable, bytes, now, out);
        if self.streams.get(&id) == Some(&Owner::Stranger) {
            self.streams.remove(&id);
            out.orders.push_back(Order::Stream(StreamOrder::Close(id)));
        }
    }
}
