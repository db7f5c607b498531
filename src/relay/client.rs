//! One side of a relay session, as a member sees it: bind, refresh, wrap.
//!
//! Binding goes over UDP first; a stream is opened beside it when UDP stays silent for a moment, or at once when the
//! owner knows that UDP is blocked. The relay believes the newest bind, so a side that has asked over two ways and settles
//! on the one that it asked last but one asks there once more: the last word is always spoken on the way that carries.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use zeroize::ZeroizeOnDrop;

use crate::base::addr::canonical;
use crate::base::hidden::Hidden;
use crate::base::id::RelaySession;
use crate::base::id::StreamId;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::base::schedule::Timers;
use crate::base::time::Now;
use crate::base::transmit::Outbox;
use crate::base::transmit::Via;
use crate::identity::agreement::Agreements;
use crate::identity::certificate::Certificate;
use crate::nat::candidate::Transport;
use crate::wire::broker::RelayOffer;
use crate::wire::relay::Channel;
use crate::wire::relay::Gate;
use crate::wire::relay::HEADER_LEN;
use crate::wire::stun;

/// What the key between member and relay is for (`WgSecret::derive`'s label); the context is the session.
pub const KEY_LABEL: &[u8] = b"ntcp relay bind";

/// Gaps between binds that are not answered. Shorter than RFC 8489 6.2.1 (500 ms first), because a user's first packet
/// waits for the answer; the sum, 3.1 s, is as long as a person waits before wondering.
pub const LADDER: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// How long UDP may stay silent before a stream is opened beside it: longer than nearly all round trips, so that a stream
/// is the exception.
pub const STREAM_AFTER: Duration = Duration::from_millis(300);

/// How often a bound side binds again: below the 30 s after which the strictest NATs forget a UDP mapping (RFC 4787 4.3
/// asks for 2 minutes; 30 s is what is seen).
pub const REFRESH: Duration = Duration::from_secs(25);

/// How many unanswered binds are remembered: two ladders over two ways.
const MAX_ASKED: usize = 2 * 2 * LADDER.len();

/// Why a side cannot be bound, or is not bound any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Lost {
    /// The offer names no endpoint that this side could use.
    #[error("the broker offered no usable address of the relay")]
    NoEndpoint,
    /// The relay's certificate holds a key of low order, which no honest relay has.
    #[error("the relay's key is unusable: renew the relay's certificate")]
    BadKey,
    /// Nothing came back over UDP, and over TCP neither; `tcp` says how that failed, if it was tried.
    #[error(
        "the relay does not answer (tcp: {tcp}): it is down or out of reach, or the two clocks differ by more than 5 minutes"
    )]
    Silent {
        /// In words.
        tcp: String,
    },
}

/// Work for the owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Open a stream to this address, tell its number at once by [`Side::on_stream_named`], and later what becomes of it.
    Open(SocketAddr),
    /// Close this stream; it carries nothing for this side any more.
    Close(StreamId),
}

/// What became of the side's stream; frames go through [`Side::handle_response`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamNews {
    /// Connected.
    Opened,
    /// Gone, or never came up; in words.
    Closed(String),
}

/// News for the owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Messages may flow; comes again when anything in it but the round trip has changed.
    Bound(Bound),
    /// The other side is dialling its gate: so should this one.
    Summoned,
    /// Given up; the value is inert from now on. Ask the broker for another session.
    Lost(Lost),
}

/// Where and how a side is bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bound {
    /// The door.
    pub via: Via,
    /// The relay's address behind it.
    pub endpoint: SocketAddr,
    /// The number that this side's messages bear, both ways.
    pub channel: Channel,
    /// This side's address as the relay sees it.
    pub mapped: SocketAddr,
    /// Between the newest answered bind and its answer.
    pub rtt: Duration,
    /// Where the relay's kernel would splice a TCP connection of this side's, at the endpoint's address.
    pub gate: Option<Gate>,
}

/// One side of one session.
#[derive(Debug)]
pub struct Side {
    session: RelaySession,
    token: Hidden<Vec<u8>>,
    key: Key,
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
    rng: Rng,
    state: State,
    stream: Stream,
    /// Binds without an answer, oldest first.
    asked: VecDeque<Asked>,
    /// The way of the last bind: that is where the relay will stand when all binds have arrived.
    last_asked: Option<Way>,
    last_stamp: u64,
    timers: Timers<3>,
    transmits: VecDeque<(Via, SocketAddr, Vec<u8>)>,
    orders: VecDeque<Order>,
    tcp_trouble: String,
}

#[derive(Clone, Copy)]
enum Timer {
    /// The next rung of the ladder.
    Ask,
    /// Time to open a stream beside UDP.
    Stream,
    /// Time to bind again.
    Refresh,
}

#[derive(ZeroizeOnDrop)]
struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// A door and the relay's address behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    via: Via,
    endpoint: SocketAddr,
}

#[derive(Debug)]
struct Asked {
    transaction: stun::TransactionId,
    way: Way,
    at: Instant,
}

#[derive(Debug)]
enum State {
    /// Asking over every way: so many rungs of the ladder were climbed, so many TCP endpoints were tried.
    Binding { rung: usize, tried: usize },
    /// Bound and resting.
    Bound(Bound),
    /// Still bound, binding again over the same way.
    Refreshing { bound: Bound, rung: usize },
    /// Given up.
    Lost,
}

#[derive(Debug)]
enum Stream {
    None,
    /// Ordered, not yet named.
    Ordered(SocketAddr),
    Opening(StreamId, SocketAddr),
    Open(StreamId, SocketAddr),
}

impl Side {
    /// Begins to bind. `relay` is the certificate in `offer`, which the caller has verified (signed by the network's CA,
    /// role relay, not revoked).
    ///
    /// # Errors
    /// [`Lost::NoEndpoint`] and [`Lost::BadKey`], when there is nothing to begin with.
    pub fn new(
        offer: &RelayOffer,
        wg: &mut Agreements,
        relay: &Certificate,
        now: Now,
        seed: Seed,
    ) -> Result<Self, Lost> {
        let key = wg.derive(relay.subject.wg, KEY_LABEL, &offer.session.0).ok_or(Lost::BadKey)?;
        let over = |transport| {
            let fit =
                move |c: &&crate::nat::candidate::Candidate| c.transport == transport && c.addr.port() != 0;
            offer.endpoints.iter().filter(fit).map(|c| canonical(c.addr))
        };
        let (udp, tcp): (Vec<_>, Vec<_>) = (over(Transport::Udp).collect(), over(Transport::Tcp).collect());
        if udp.is_empty() && tcp.is_empty() {
            return Err(Lost::NoEndpoint);
        }
        let mut side = Self {
            session: offer.session,
            token: offer.token.clone(),
            key: Key(key),
            udp,
            tcp,
            rng: Rng::new(seed),
            state: State::Lost,
            stream: Stream::None,
            asked: VecDeque::new(),
            last_asked: None,
            last_stamp: 0,
            timers: Timers::default(),
            transmits: VecDeque::new(),
            orders: VecDeque::new(),
            tcp_trouble: "not tried".to_owned(),
        };
        let patience = if side.udp.is_empty() { Duration::ZERO } else { STREAM_AFTER };
        side.begin(now, patience);
        Ok(side)
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> RelaySession {
        self.session
    }

    /// Where and how this side is bound; `None` while it is not.
    #[must_use]
    pub fn bound(&self) -> Option<&Bound> {
        match &self.state {
            State::Bound(bound) | State::Refreshing { bound, .. } => Some(bound),
            State::Binding { .. } | State::Lost => None,
        }
    }

    /// Whether a relayed message on `channel` that came in this way is one of this session's.
    #[must_use]
    pub fn carries(&self, via: Via, from: SocketAddr, channel: Channel) -> bool {
        self.bound().is_some_and(|b| b.channel == channel && b.via == via && b.endpoint == from)
    }

    /// Queues `payload` for the other side; false while this side is not bound.
    pub fn wrap(&self, payload: &[u8], out: &mut Outbox) -> bool {
        let Some(bound) = self.bound() else { return false };
        let write = |slot: &mut [u8]| {
            let (head, rest) = slot.split_first_chunk_mut::<HEADER_LEN>()?;
            *head = bound.channel.header();
            rest.copy_from_slice(payload);
            Some(HEADER_LEN + payload.len())
        };
        out.fill(bound.via, bound.endpoint, HEADER_LEN + payload.len(), write).is_some()
    }

    /// UDP gets nowhere here, or so the owner believes: opens a stream without waiting for UDP's silence.
    pub fn handle_udp_blocked(&mut self, now: Now) {
        if self.timers.at(Timer::Stream as usize).is_some() {
            self.timers.set(Timer::Stream as usize, Some(now.instant));
        }
    }

    /// The machine's addresses have changed, or the path has gone silent: binds again now instead of at the next refresh.
    pub fn handle_doubt(&mut self, now: Now) {
        if let State::Bound(bound) = self.state {
            self.refresh(bound, 0, now);
        }
    }

    /// Takes in a STUN message from the relay; anything that is not the authentic answer to one of this side's binds
    /// changes nothing.
    pub fn handle_response(
        &mut self,
        via: Via,
        from: SocketAddr,
        answer: &stun::Received<'_>,
        now: Now,
    ) -> Option<Event> {
        let message = &answer.message;
        if message.method != stun::RELAY_BIND {
            return None;
        }
        if message.class == stun::Class::Indication {
            return self.on_summons(via, from, answer);
        }
        if message.class != stun::Class::Success {
            return None;
        }
        let way = Way { via, endpoint: canonical(from) };
        let known = |a: &Asked| a.transaction == message.transaction && a.way == way;
        let at = self.asked.iter().find(|a| known(a))?.at;
        if !answer.is_authentic(&self.key.0) {
            return None;
        }
        let channel = message.attributes.iter().find_map(|a| match a {
            stun::Attribute::RelayChannel(number) => Channel::parse(*number).ok(),
            _ => None,
        })?;
        let gate = gate_in(message);
        let mapped = canonical(message.mapped()?);
        let rtt = now.instant.saturating_duration_since(at);
        // Binds that went out before this one over the same way need no answer any more.
        self.asked.retain(|a| a.way != way || a.at > at);
        self.on_answer(Bound { via, endpoint: way.endpoint, channel, mapped, rtt, gate }, now)
    }

    /// Whether [`Self::handle_response`] may have a use for a message: it answers a bind, or comes from where this side is
    /// bound. Says nothing about whether it is authentic.
    #[must_use]
    pub fn awaits(&self, via: Via, from: SocketAddr, message: &stun::Message) -> bool {
        let way = Way { via, endpoint: canonical(from) };
        self.asked.iter().any(|asked| asked.transaction == message.transaction && asked.way == way)
            || self.bound().is_some_and(|bound| {
                message.class == stun::Class::Indication
                    && (bound.via, bound.endpoint) == (way.via, way.endpoint)
            })
    }

    /// The stream that was ordered last has this number.
    pub fn on_stream_named(&mut self, id: StreamId) {
        if let Stream::Ordered(to) = self.stream {
            self.stream = Stream::Opening(id, to);
        }
    }

    /// The far end of stream `id`, if it is this side's.
    #[must_use]
    pub fn stream_endpoint(&self, id: StreamId) -> Option<SocketAddr> {
        match self.stream {
            Stream::Opening(own, to) | Stream::Open(own, to) if own == id => Some(to),
            Stream::None | Stream::Ordered(_) | Stream::Opening(..) | Stream::Open(..) => None,
        }
    }

    /// Whether `id` is this side's stream.
    #[must_use]
    pub fn owns_stream(&self, id: StreamId) -> bool {
        self.stream_endpoint(id).is_some()
    }

    /// Whether a stream is being opened: news will come.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        matches!(self.stream, Stream::Ordered(_) | Stream::Opening(..))
    }

    /// Something happened to stream `id`.
    pub fn handle_stream(&mut self, id: StreamId, news: StreamNews, now: Now) -> Option<Event> {
        if !self.owns_stream(id) {
            return None;
        }
        match (news, &self.stream) {
            (StreamNews::Opened, Stream::Opening(_, to)) => {
                let way = Way { via: Via::Stream(id), endpoint: *to };
                self.stream = Stream::Open(id, way.endpoint);
                self.ask(way, now);
                self.postpone_end(now);
                None
            }
            (StreamNews::Opened, _) => None,
            (StreamNews::Closed(why), _) => {
                self.stream = Stream::None;
                self.on_stream_gone(id, why, now)
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) -> Option<Event> {
        if self.timers.take_due(Timer::Stream as usize, now.instant) {
            self.open_stream(now);
        }
        let ask = self.timers.take_due(Timer::Ask as usize, now.instant);
        let refresh = self.timers.take_due(Timer::Refresh as usize, now.instant);
        match self.state {
            State::Binding { rung, tried } if ask => self.climb(rung, tried, now),
            State::Bound(bound) if refresh => {
                self.refresh(bound, 0, now);
                None
            }
            State::Refreshing { bound, rung } if ask => {
                self.refresh(bound, rung, now);
                None
            }
            State::Binding { .. } | State::Bound(_) | State::Refreshing { .. } | State::Lost => None,
        }
    }

    /// The next message to send: door, destination, bytes.
    pub fn poll_transmit(&mut self) -> Option<(Via, SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next piece of work.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// When [`Side::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The owner does not need the session any more: closes the stream and falls silent; the relay forgets by itself.
    pub fn close(&mut self) {
        self.drop_stream();
        self.fall_silent();
    }

    fn begin(&mut self, now: Now, stream_after: Duration) {
        self.timers = Timers::default();
        if !self.tcp.is_empty() {
            self.timers.set(Timer::Stream as usize, Some(now.instant + stream_after));
        }
        let event = self.climb(0, 0, now);
        debug_assert!(event.is_none(), "the first rung is not the last");
    }

    /// One rung of the first bind: UDP endpoints take turns; a stream, being reliable, is asked when it opens.
    fn climb(&mut self, rung: usize, tried: usize, now: Now) -> Option<Event> {
        let Some(gap) = LADDER.get(rung) else {
            self.drop_stream();
            return if tried < self.tcp.len() {
                self.open_stream(now);
                None
            } else {
                self.give_up()
            };
        };
        if let Some(endpoint) = self.udp.iter().cycle().nth(rung).copied() {
            self.ask(Way { via: Via::udp_for(endpoint), endpoint }, now);
        }
        self.state = State::Binding { rung: rung + 1, tried };
        self.timers.set(Timer::Ask as usize, Some(now.instant + *gap));
        None
    }

    fn refresh(&mut self, bound: Bound, rung: usize, now: Now) {
        let Some(gap) = LADDER.get(rung) else {
            // The way is dead; whatever else there is gets its chance at once.
            self.drop_stream();
            return self.begin(now, Duration::ZERO);
        };
        self.ask(Way { via: bound.via, endpoint: bound.endpoint }, now);
        self.state = State::Refreshing { bound, rung: rung + 1 };
        self.timers.set(Timer::Refresh as usize, None);
        self.timers.set(Timer::Ask as usize, Some(now.instant + *gap));
    }

    fn on_answer(&mut self, new: Bound, now: Now) -> Option<Event> {
        let old = match &self.state {
            State::Lost => return None,
            State::Binding { .. } => None,
            State::Bound(old) | State::Refreshing { bound: old, .. } => Some(*old),
        };
        let same_way = |b: &Bound| b.via == new.via && b.endpoint == new.endpoint;
        let is_udp = |b: &Bound| matches!(b.via, Via::Udp(_));
        if old.is_some_and(|old| !same_way(&old) && (is_udp(&old) || !is_udp(&new))) {
            return None;
        }
        if is_udp(&new) {
            self.drop_stream();
        }
        self.timers = Timers::default();
        let way = Way { via: new.via, endpoint: new.endpoint };
        if self.last_asked == Some(way) {
            self.state = State::Bound(new);
            self.timers.set(Timer::Refresh as usize, Some(now.instant + REFRESH));
        } else {
            self.refresh(new, 0, now);
        }
        let changed = old.is_none_or(|old| Bound { rtt: new.rtt, ..old } != new);
        changed.then_some(Event::Bound(new))
    }

    /// Whoever repeats an old one makes this side dial its relay once more, and no more than that.
    fn on_summons(&mut self, via: Via, from: SocketAddr, summons: &stun::Received<'_>) -> Option<Event> {
        let (State::Bound(bound) | State::Refreshing { bound, .. }) = &mut self.state else { return None };
        if (bound.via, bound.endpoint) != (via, canonical(from)) || !summons.is_authentic(&self.key.0) {
            return None;
        }
        bound.gate = Some(gate_in(&summons.message)?);
        Some(Event::Summoned)
    }

    fn on_stream_gone(&mut self, id: StreamId, why: String, now: Now) -> Option<Event> {
        self.tcp_trouble = why;
        self.asked.retain(|a| a.way.via != Via::Stream(id));
        let carried = self.bound().is_some_and(|b| b.via == Via::Stream(id));
        match self.state {
            State::Bound(_) | State::Refreshing { .. } if carried => {
                self.begin(now, STREAM_AFTER);
                None
            }
            State::Binding { tried, .. } if tried < self.tcp.len() => {
                self.timers.set(Timer::Stream as usize, Some(now.instant));
                None
            }
            State::Binding { .. } if self.udp.is_empty() => self.give_up(),
            State::Binding { .. } | State::Bound(_) | State::Refreshing { .. } | State::Lost => None,
        }
    }

    fn open_stream(&mut self, now: Now) {
        let (State::Binding { tried, .. }, Stream::None) = (&mut self.state, &self.stream) else { return };
        let Some(to) = self.tcp.get(*tried) else { return };
        *tried += 1;
        "no answer".clone_into(&mut self.tcp_trouble);
        self.orders.push_back(Order::Open(*to));
        self.stream = Stream::Ordered(*to);
        self.postpone_end(now);
    }

    /// A stream that has just moved on gets a last rung's time, even when UDP's ladder is spent.
    fn postpone_end(&mut self, now: Now) {
        let (State::Binding { rung, .. }, [.., last]) = (&self.state, LADDER) else { return };
        if *rung >= LADDER.len() {
            self.timers.set(Timer::Ask as usize, Some(now.instant + last));
        }
    }

    fn drop_stream(&mut self) {
        match std::mem::replace(&mut self.stream, Stream::None) {
            Stream::None => {}
            Stream::Ordered(_) => self.orders.retain(|order| !matches!(order, Order::Open(_))),
            Stream::Opening(id, _) | Stream::Open(id, _) => {
                self.asked.retain(|a| a.way.via != Via::Stream(id));
                self.orders.push_back(Order::Close(id));
            }
        }
    }

    fn give_up(&mut self) -> Option<Event> {
        self.drop_stream();
        self.fall_silent();
        Some(Event::Lost(Lost::Silent { tcp: self.tcp_trouble.clone() }))
    }

    fn fall_silent(&mut self) {
        self.state = State::Lost;
        self.timers = Timers::default();
        self.asked.clear();
        self.transmits.clear();
    }

    /// Every bind is a question of its own with a newer time, so that each answer tells the round trip and none of them
    /// looks like a replay.
    fn ask(&mut self, way: Way, now: Now) {
        let transaction = stun::TransactionId(self.rng.bytes());
        self.last_stamp = now.unix.micros().max(self.last_stamp + 1);
        let request = stun::Message {
            class: stun::Class::Request,
            method: stun::RELAY_BIND,
            transaction,
            attributes: vec![
                stun::Attribute::RelayToken(self.token.0.clone()),
                stun::Attribute::Timestamp(self.last_stamp),
            ],
        };
        let bytes = request.emit(stun::Integrity::Sha256(&self.key.0));
        self.transmits.push_back((way.via, way.endpoint, bytes));
        self.asked.push_back(Asked { transaction, way, at: now.instant });
        if self.asked.len() > MAX_ASKED {
            self.asked.pop_front();
        }
        self.last_asked = Some(way);
    }
}

fn gate_in(message: &stun::Message) -> Option<Gate> {
    message.attributes.iter().find_map(|a| match a {
        stun::Attribute::RelaySplice(gate) if gate.port != 0 => Some(*gate),
        _ => None,
    })
}
