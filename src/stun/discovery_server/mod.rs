//! The server of RFC 5780: answers from two addresses and two ports, so that a client sees what its NAT lets in.
//!
//! Also for clients of RFC 3489, which ask the same in older words. What an attacker could want of such a server, he does
//! not get:
//!
//! * To use it as a *reflector* against an address that he forges: over any time, a source gets no more bytes than came
//!   in its name, but for a small allowance ([`crate::stun::limiter`]). It cannot be nothing: an empty request has 20 bytes and
//!   must be answered, and the shortest answer has 32. Once a source has spent its allowance it gets only that shortest answer,
//!   as far as what trickles in suffices, and then none. Whoever pays, as our own client does (FILLER), is always served in
//!   full. PADDING comes back only as far as the request paid.
//! * To make it send to a *third party*: an answer goes to the source of its request. RESPONSE-PORT names another port of
//!   the same address, behind which other customers of a carrier may be; it is obeyed only if that very endpoint asked
//!   this server something a while ago.
//! * To make two servers *talk to each other*: answers are never answered, the ports of other talkative protocols neither.
//!
//! With one address there is no OTHER-ADDRESS, and what cannot be done is refused (420), not done in part.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::addr::canonical;
use crate::base::grid::Grid;
use crate::base::grid::Home;
use crate::stun::limiter::Limiter;
use crate::stun::server::is_answerable;
use crate::wire::stun::Attribute;
use crate::wire::stun::BINDING;
use crate::wire::stun::Class;
use crate::wire::stun::Message;
use crate::wire::stun::Received;
use crate::wire::stun::stunt;

/// RFC 5780 6.1: PADDING together with RESPONSE-PORT.
const BAD_REQUEST: u16 = 400;
/// RFC 8489 14.8; RFC 5780 6.1 for a server that cannot change as it should.
const UNKNOWN_ATTRIBUTE: u16 = 420;
/// Numbers of what may be refused.
const CHANGE_REQUEST: u16 = 0x0003;
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
/// Bytes of an attribute before its value.
const ATTRIBUTE_HEADER: usize = 4;
/// RFC 5780 7.6 wants the MTU of the outgoing interface: almost everywhere Ethernet's.
const LONGEST_PADDING: usize = 1500;
/// How long RESPONSE-PORT may name an endpoint that asked: longer than idle UDP mappings live (RFC 4787 4.3 recommends
/// 5 min), so that a client can find out how long.
const REMEMBERED: Duration = Duration::from_secs(900);
/// How many endpoints are remembered; about 64 bytes each, and the oldest makes room.
const MOST_REMEMBERED: usize = 32_768;

/// An answer on UDP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// From which of the server's own endpoints.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// The server. One for all its sockets.
#[derive(Debug)]
pub struct DiscoveryServer {
    grid: Grid,
    limiter: Limiter,
    asked: Asked,
}

impl DiscoveryServer {
    /// Nobody asked yet.
    #[must_use]
    pub fn new(grid: Grid, now: Instant) -> Self {
        Self { grid, limiter: Limiter::new(now), asked: Asked::default() }
    }

    /// The answer to a datagram from `from` that arrived at `local`, an endpoint of this server; `None` for whatever
    /// deserves none.
    pub fn handle_datagram(
        &mut self,
        bytes: &[u8],
        from: SocketAddr,
        local: SocketAddr,
        now: Instant,
    ) -> Option<Reply> {
        let (from, local) = (canonical(from), canonical(local));
        let received = Received::parse(bytes).ok().filter(is_binding)?;
        if !is_answerable(from) || self.is_own(from) || !self.limiter.allow(from, now) {
            return None;
        }
        let (answers, origin, to) = match self.judge(&received, from, local, now) {
            Ok((origin, to)) => {
                (vec![self.answer(&received, from, local, origin), shortest(&received, from)], origin, to)
            }
            Err(refusal) => (vec![refusal], local, from),
        };
        let mut answers = answers.into_iter().map(|answer| answer.emit_classic(received.cookie));
        let bytes = answers.find(|bytes| self.limiter.spend(from, received.wire_len(), bytes.len(), now))?;
        self.asked.insert(from, now);
        Some(Reply { from: origin, to, bytes })
    }

    /// The answer on a TCP connection from `from` to `local`; `offers` is what the server does there besides. `None` for
    /// whatever deserves none. Whoever has a connection has proved his address, so nothing is counted here.
    #[must_use]
    pub fn answer_on_stream(
        &self,
        received: &Received<'_>,
        from: SocketAddr,
        local: SocketAddr,
        offers: Option<stunt::Server>,
    ) -> Option<Vec<u8>> {
        if !is_binding(received) {
            return None;
        }
        let mut cannot = received.unknown_required.clone();
        cannot.extend(received.message.attributes.iter().filter_map(|attribute| match attribute {
            // A connection has two fixed ends (RFC 5780 3).
            Attribute::ChangeRequest { ip, port } if *ip || *port => Some(CHANGE_REQUEST),
            Attribute::ResponsePort(_) => Some(RESPONSE_PORT),
            Attribute::Padding(_) => Some(PADDING),
            _ => None,
        }));
        let (from, local) = (canonical(from), canonical(local));
        let answer = if cannot.is_empty() {
            let answer = self.answer(received, from, local, local);
            offers.into_iter().fold(answer, |answer, offers| answer.with(Attribute::StuntServer(offers)))
        } else {
            refuse(&received.message, cannot)
        };
        Some(answer.emit_classic(received.cookie))
    }

    /// From where to where the answer goes, or the refusal.
    fn judge(
        &self,
        received: &Received<'_>,
        from: SocketAddr,
        local: SocketAddr,
        now: Instant,
    ) -> Result<(SocketAddr, SocketAddr), Message> {
        let request = &received.message;
        if !received.unknown_required.is_empty() {
            return Err(refuse(request, received.unknown_required.clone()));
        }
        let (mut origin, mut to, mut padded) = (local, from, false);
        for attribute in &request.attributes {
            match attribute {
                Attribute::ChangeRequest { ip, port } => {
                    let changed = self.changed(local, *ip, *port);
                    origin = changed.ok_or_else(|| refuse(request, vec![CHANGE_REQUEST]))?;
                }
                Attribute::ResponsePort(port) => {
                    to.set_port(*port);
                    if !is_answerable(to) || !self.asked.knows(to, now) {
                        return Err(refuse(request, vec![RESPONSE_PORT]));
                    }
                }
                Attribute::Padding(_) => padded = true,
                _ => {}
            }
        }
        if padded && to != from {
            return Err(request.refusal(BAD_REQUEST, ""));
        }
        Ok((origin, to))
    }

    /// The success of a request that came from `from` to `local` and is answered from `origin`.
    fn answer(
        &self,
        received: &Received<'_>,
        from: SocketAddr,
        local: SocketAddr,
        origin: SocketAddr,
    ) -> Message {
        let other = self.changed(local, true, true).map(|other| self.grid.seen(other));
        let origin = self.grid.seen(origin);
        let answer = received.message.success().with(Attribute::MappedAddress(from));
        if !received.has_cookie {
            let answer = answer.with(Attribute::SourceAddress(origin));
            return other
                .into_iter()
                .fold(answer, |answer, other| answer.with(Attribute::ChangedAddress(other)));
        }
        let answer = answer.with(Attribute::XorMappedAddress(from)).with(Attribute::ResponseOrigin(origin));
        let answer =
            other.into_iter().fold(answer, |answer, other| answer.with(Attribute::OtherAddress(other)));
        if !received.message.attributes.iter().any(|attribute| matches!(attribute, Attribute::Padding(_))) {
            return answer;
        }
        let len = answer.emit_classic(received.cookie).len() + ATTRIBUTE_HEADER;
        let paid = received.wire_len().saturating_sub(len).min(LONGEST_PADDING);
        match u16::try_from(paid / 4 * 4) {
            Ok(padding) if padding > 0 => answer.with(Attribute::Padding(padding)),
            _ => answer,
        }
    }

    /// The endpoint with the other address or the other port, or both, if there is one.
    fn changed(&self, local: SocketAddr, ip: bool, port: bool) -> Option<SocketAddr> {
        let ip = if ip { self.grid.homes(local.ip()).get(1)?.bound } else { local.ip() };
        let port = if port { self.grid.other_port(local.port())? } else { local.port() };
        Some(SocketAddr::new(ip, port))
    }

    /// Whether a datagram claims to come from this very server.
    fn is_own(&self, from: SocketAddr) -> bool {
        let is_port = from.port() == self.grid.port() || Some(from.port()) == self.grid.alternate();
        let is_home = |home: &Home| home.bound == from.ip() || home.seen == from.ip();
        is_port && self.grid.all().iter().any(is_home)
    }
}

/// Whether it is a stranger's Binding request. Those with USERNAME or an integrity hash are somebody else's.
fn is_binding(received: &Received<'_>) -> bool {
    let request = &received.message;
    request.class == Class::Request
        && request.method == BINDING
        && request.username().is_none()
        && !received.has_integrity()
}

/// The least that is an answer: the address and nothing else.
fn shortest(received: &Received<'_>, from: SocketAddr) -> Message {
    let mapped =
        if received.has_cookie { Attribute::XorMappedAddress(from) } else { Attribute::MappedAddress(from) };
    received.message.success().with(mapped)
}

fn refuse(request: &Message, attributes: Vec<u16>) -> Message {
    request.refusal(UNKNOWN_ATTRIBUTE, "").with(Attribute::UnknownAttributes(attributes))
}

/// The endpoints that asked lately.
#[derive(Debug, Default)]
struct Asked {
    last: BTreeMap<SocketAddr, Instant>,
    order: VecDeque<(SocketAddr, Instant)>,
}

impl Asked {
    fn knows(&self, endpoint: SocketAddr, now: Instant) -> bool {
        self.last.get(&endpoint).is_some_and(|at| now.saturating_duration_since(*at) <= REMEMBERED)
    }

    fn insert(&mut self, endpoint: SocketAddr, now: Instant) {
        self.last.insert(endpoint, now);
        self.order.push_back((endpoint, now));
        while self.order.len() > MOST_REMEMBERED {
            let Some((oldest, at)) = self.order.pop_front() else { return };
            // Whoever asked again since has a later entry.
            if self.last.get(&oldest) == Some(&at) {
                self.last.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
