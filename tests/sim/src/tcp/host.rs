//! TCP of one machine: what its kernel does with segments, and `io::doors` with streams.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Instant;

use ntcp_overlay::base::id::PortId;
use ntcp_overlay::base::id::StreamId;
use ntcp_overlay::base::transmit::Bound;
use ntcp_overlay::base::transmit::Dial;
use ntcp_overlay::base::transmit::Gone;
use ntcp_overlay::base::transmit::Why;

use super::segment::Kind;
use super::segment::Segment;
use super::segment::TTL;
use super::socket::Socket;
use super::socket::State;
use super::socket::Told;

/// Ports that the system chooses begin here (Linux: `ip_local_port_range`).
const FIRST_PORT: u16 = 32_768;
/// Accepted streams are numbered from here, as by `io::doors`.
const ACCEPTED_FROM: u32 = 1 << 31;

/// A segment on its way out: from, to, what.
pub(crate) type Outgoing = (SocketAddr, SocketAddr, Segment);

/// What the machine's program is told.
#[derive(Debug)]
pub(crate) enum News {
    /// A stream came in from there: at a port that an attempt has bound, or at one that is open for good.
    Accepted { id: StreamId, port: Option<PortId>, from: SocketAddr },
    /// A stream that was dialled is open.
    Opened(StreamId),
    /// A message came by a stream.
    Frame(StreamId, Vec<u8>),
    /// A stream is gone, or never came up.
    Closed(StreamId, Gone),
}

/// The TCP of one machine.
#[derive(Debug, Default)]
pub(crate) struct Host {
    listeners: BTreeMap<u16, Option<PortId>>,
    sockets: BTreeMap<(SocketAddr, SocketAddr), Socket>,
    places: BTreeMap<StreamId, (SocketAddr, SocketAddr)>,
    news: VecDeque<News>,
    sent: VecDeque<Outgoing>,
    ports: u16,
    numbers: u32,
    accepted: u32,
    /// The earliest deadline; `None` when it must be looked for again. Thousands of events ask for it between two changes.
    soonest: Option<Option<Instant>>,
}

impl Host {
    /// Listens for good.
    pub(crate) fn listen(&mut self, port: u16) {
        self.listeners.insert(port, None);
    }

    /// Takes a free port and listens on it.
    pub(crate) fn bind(&mut self, id: PortId) -> Bound {
        self.unbind(id);
        let port = self.free_port();
        self.listeners.insert(port, Some(id));
        Bound { v4: Some(port), v6: None }
    }

    /// Gives a port back. Streams that are open live on; what was not accepted yet is forgotten.
    pub(crate) fn unbind(&mut self, id: PortId) {
        let Some(port) = self.port_of(id) else { return };
        self.listeners.remove(&port);
        self.soonest = None;
        self.sockets.retain(|(local, _), socket| local.port() != port || socket.state != State::Invited);
    }

    /// Begins to open a stream from the address `ip`; [`News`] follow.
    pub(crate) fn open(&mut self, id: StreamId, dial: Dial, ip: IpAddr, now: Instant) {
        let port = match dial.from {
            None => Some(self.free_port()),
            Some(port) => self.port_of(port),
        };
        let Some(port) = port else {
            return self.fail(id, Why::Unreachable, "cannot connect: no local port of that address family");
        };
        let place = (SocketAddr::new(ip, port), dial.to);
        if self.sockets.contains_key(&place) {
            return self.fail(id, Why::Taken, "cannot connect: the address is taken");
        }
        self.numbers += 1;
        let mut socket = Socket::new(id, State::Dialling, self.numbers, now);
        socket.ttl = dial.ttl.unwrap_or(TTL);
        socket.ignores_expiry = dial.ttl.is_some();
        self.sent.push_back((place.0, place.1, socket.syn()));
        self.sockets.insert(place, socket);
        self.soonest = None;
        self.places.insert(id, place);
    }

    /// The system's time to live for a stream that was opened with another.
    pub(crate) fn raise_ttl(&mut self, id: StreamId) {
        if let Some(socket) = self.places.get(&id).and_then(|place| self.sockets.get_mut(place)) {
            socket.ttl = TTL;
        }
    }

    /// Closes a stream; no news follow. A SYN that was sent is not taken back.
    pub(crate) fn close(&mut self, id: StreamId) {
        let Some(place) = self.places.remove(&id) else { return };
        let Some(socket) = self.sockets.remove(&place) else { return };
        self.soonest = None;
        if socket.state == State::Open {
            self.sent.push_back((place.0, place.1, Segment::new(Kind::Fin)));
        }
    }

    /// A message for the far end of a stream; nothing happens if there is no such stream.
    pub(crate) fn send(&mut self, id: StreamId, bytes: Vec<u8>, now: Instant) {
        let Some(place) = self.places.get(&id).copied() else { return };
        let Some(socket) = self.sockets.get_mut(&place) else { return };
        self.soonest = None;
        let segment = socket.push(bytes, now);
        self.sent.extend(segment.map(|segment| (place.0, place.1, segment)));
    }

    /// The power fails, or the program ends: everything is forgotten, and nobody is told.
    pub(crate) fn clear(&mut self) {
        *self = Self { ports: self.ports, numbers: self.numbers, ..Self::default() };
    }

    /// The program ends: the kernel closes its streams.
    pub(crate) fn end(&mut self) {
        let open: Vec<StreamId> = self.places.keys().copied().collect();
        open.into_iter().for_each(|id| self.close(id));
        self.listeners.clear();
        self.news.clear();
    }

    /// A segment came in.
    pub(crate) fn handle_segment(&mut self, from: SocketAddr, to: SocketAddr, kind: Kind, now: Instant) {
        let place = (to, from);
        self.soonest = None;
        if let Some(socket) = self.sockets.get_mut(&place) {
            let id = socket.id;
            let told = socket.handle(kind, now);
            return self.tell(place, id, told);
        }
        match (kind, self.listeners.get(&to.port())) {
            (Kind::Syn(theirs), Some(port)) => {
                let id = StreamId(ACCEPTED_FROM + self.accepted);
                self.accepted = (self.accepted + 1) & (ACCEPTED_FROM - 1);
                self.numbers += 1;
                let mut socket = Socket::new(id, State::Invited, self.numbers, now);
                (socket.theirs, socket.port) = (theirs, *port);
                self.sent.push_back((to, from, socket.syn_ack()));
                self.sockets.insert(place, socket);
            }
            (Kind::Syn(number), None) => {
                self.sent.push_back((to, from, Segment::new(Kind::Reset(Some(number)))));
            }
            (Kind::SynAck(..) | Kind::Ack(_) | Kind::Data(..) | Kind::Probe | Kind::Fin, _) => {
                self.sent.push_back((to, from, Segment::new(Kind::Reset(None))));
            }
            (Kind::Reset(_) | Kind::Unreachable(_) | Kind::Expired(_), _) => {}
        }
    }

    /// Time passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| now < at) {
            return;
        }
        self.soonest = None;
        let due: Vec<_> =
            self.sockets.iter().filter(|(_, s)| s.due() <= now).map(|(place, _)| *place).collect();
        for place in due {
            if let Some(socket) = self.sockets.get_mut(&place) {
                let id = socket.id;
                let told = socket.handle_timeout(now);
                self.tell(place, id, told);
            }
        }
    }

    /// When to call [`Self::handle_timeout`].
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        *self.soonest.get_or_insert_with(|| self.sockets.values().map(Socket::due).min())
    }

    pub(crate) fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    pub(crate) fn poll_sent(&mut self) -> Option<Outgoing> {
        self.sent.pop_front()
    }

    /// Ports of attempts, connections that are not open yet, and open ones.
    pub(crate) fn count(&self) -> (usize, usize, usize) {
        let ports = self.listeners.values().flatten().count();
        let open = self.sockets.values().filter(|socket| socket.state == State::Open).count();
        (ports, self.sockets.len() - open, open)
    }

    /// What came of a segment or of time for one socket.
    fn tell(&mut self, place: (SocketAddr, SocketAddr), id: StreamId, told: Told) {
        let Told { segments, opened, frames, gone } = told;
        self.sent.extend(segments.into_iter().map(|segment| (place.0, place.1, segment)));
        let Some(socket) = self.sockets.get(&place) else { return };
        if opened {
            // Whoever dialled knows the stream already.
            let known = self.places.insert(id, place).is_some();
            let accepted = News::Accepted { id, port: socket.port, from: place.1 };
            self.news.push_back(if known { News::Opened(id) } else { accepted });
        }
        self.news.extend(frames.into_iter().map(|bytes| News::Frame(id, bytes)));
        if let Some(gone) = gone {
            self.sockets.remove(&place);
            if self.places.remove(&id).is_some() {
                self.news.push_back(News::Closed(id, gone));
            }
        }
    }

    fn fail(&mut self, id: StreamId, why: Why, text: &str) {
        self.news.push_back(News::Closed(id, Gone::new(why, text)));
    }

    fn port_of(&self, id: PortId) -> Option<u16> {
        self.listeners.iter().find(|(_, bound)| **bound == Some(id)).map(|(port, _)| *port)
    }

    fn free_port(&mut self) -> u16 {
        loop {
            let port = FIRST_PORT + self.ports;
            self.ports = (self.ports + 1) % (u16::MAX - FIRST_PORT);
            let taken = self.listeners.contains_key(&port)
                || self.sockets.keys().any(|(local, _)| local.port() == port);
            if !taken {
                return port;
            }
        }
    }
}
