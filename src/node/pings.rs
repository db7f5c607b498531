//! Pings that operators ask for: a probe of whatever carries to a peer, which need not carry yet.

use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::time::Now;
use crate::node::Node;
use crate::node::output::Notice;
use crate::node::output::Output;
use crate::node::peers::Kind;
use crate::node::peers::Peer;
use crate::node::peers::PeerId;
use crate::node::request::PeerRef;
use crate::node::request::Pong;
use crate::node::request::Reply;
use crate::node::request::Ticket;
use crate::node::snapshot;
use crate::path::Path;
use crate::wire::stun::TransactionId;

/// A ping without an answer is given up after this.
const PING_PATIENCE: Duration = Duration::from_secs(5);
/// Pings under way, at most.
const MAX_PINGS: usize = 256;

#[derive(Debug)]
pub(super) struct Ping {
    ticket: Ticket,
    pub(super) peer: PeerId,
    since: Instant,
    sent: Option<(TransactionId, Instant)>,
}

impl Node {
    pub(super) fn begin_ping(&mut self, peer: &PeerRef, ticket: Ticket, now: Now, out: &mut Output) -> Reply {
        let known = match peer {
            PeerRef::Name(name) => self.directory.get(name).cloned(),
            PeerRef::Addr(addr) => self.directory.by_addr(*addr).cloned(),
        };
        let Some(known) = known else {
            let stock = match peer {
                PeerRef::Name(name) => self.peers.by_name(name),
                PeerRef::Addr(addr) => self.routes.owner(*addr),
            };
            let is_stock = stock.and_then(|id| self.peers.get(id)).is_some();
            return Reply::Refused(match (is_stock, self.link.is_up()) {
                (true, _) => "that is a stock WireGuard peer: use the system's ping".to_owned(),
                (false, true) => "no such member: `ntcp-overlay peers` lists them".to_owned(),
                (false, false) => {
                    "no such member is known, and no broker can be asked: see `ntcp-overlay status`"
                        .to_owned()
                }
            });
        };
        let id = self.peer_of(&known, now, out);
        if self.pings.len() >= MAX_PINGS {
            return Reply::Refused("too many pings at once".to_owned());
        }
        self.pings.push(Ping { ticket, peer: id, since: now.instant, sent: None });
        if let Some(path) = self.peers.get_mut(id).and_then(Peer::path_mut) {
            path.handle_demand(now.instant);
        }
        self.pump(id, now, out);
        Reply::Accepted
    }

    pub(super) fn send_pings(&mut self, id: PeerId, now: Now, out: &mut Output) {
        if !self.pings.iter().any(|ping| ping.peer == id && ping.sent.is_none()) {
            return;
        }
        let Some(Some(transaction)) = self.with_path(id, now, out, Path::probe) else { return };
        // One probe answers all that wait.
        for ping in self.pings.iter_mut().filter(|ping| ping.peer == id && ping.sent.is_none()) {
            ping.sent = Some((transaction, now.instant));
        }
    }

    pub(super) fn answer_pings(
        &mut self,
        id: PeerId,
        transaction: TransactionId,
        now: Now,
        out: &mut Output,
    ) {
        let Some(peer) = self.peers.get(id) else { return };
        let (name, path) = (peer.name.clone(), snapshot::path_kind(peer));
        let addr = snapshot::addrs(peer).first().copied().unwrap_or(IpAddr::V4(self.me.addrs.v4));
        self.pings.retain(|ping| {
            let Some((_, at)) = ping.sent.filter(|(sent, _)| *sent == transaction) else { return true };
            let rtt = Ok(now.instant.saturating_duration_since(at));
            out.notices.push_back(Notice::Pong(Pong {
                ticket: ping.ticket,
                name: name.clone(),
                addr,
                path: path.clone(),
                rtt,
            }));
            false
        });
    }

    pub(super) fn expire_pings(&mut self, now: Now, out: &mut Output) {
        let peers = &self.peers;
        let fallback = IpAddr::V4(self.me.addrs.v4);
        self.pings.retain(|ping| {
            if now.instant < ping.since + PING_PATIENCE {
                return true;
            }
            if let Some(peer) = peers.get(ping.peer) {
                let why = match (&ping.sent, &peer.kind) {
                    (None, Kind::Mesh(mesh)) => {
                        mesh.path.why(now.instant).0.unwrap_or_else(|| "no path yet".to_owned())
                    }
                    _ => "no answer in time".to_owned(),
                };
                out.notices.push_back(Notice::Pong(Pong {
                    ticket: ping.ticket,
                    name: peer.name.clone(),
                    addr: snapshot::addrs(peer).first().copied().unwrap_or(fallback),
                    path: snapshot::path_kind(peer),
                    rtt: Err(why),
                }));
            }
            false
        });
    }
}
