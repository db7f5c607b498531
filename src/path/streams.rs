//! Direct TCP: the attempts of one path's introductions, and the streams that came of them.
//!
//! At most one attempt is open, that of the newest introduction; an older one may still wait for the peer to settle on a
//! stream.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::id::PortId;
use crate::base::id::StreamId;
use crate::base::transmit::Bound;
use crate::base::transmit::Gone;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Via;
use crate::path::Ctx;
use crate::path::Introduction;
use crate::path::Means;
use crate::path::Outcome;
use crate::path::Path;
use crate::path::Transport;
use crate::path::leg::Leg;
use crate::punch::keys::Numbers;
use crate::punch::keys::PairKeys;
use crate::punch::method::How;
use crate::punch::method::Method;
use crate::punch::method::Round;
use crate::punch::plan;
use crate::punch::tcp;
use crate::punch::tcp::Attempt;
use crate::punch::tcp::Dialled;
use crate::punch::tcp::Opened;
use crate::punch::tcp::Ready;
use crate::wire::stun::TransactionId;

/// Attempts at direct TCP with one peer, and how the streams that they gave came to be.
#[derive(Debug, Default)]
pub(super) struct Streams {
    attempts: Vec<Attempt>,
    how: BTreeMap<StreamId, How>,
    orders: VecDeque<StreamOrder>,
    ready: VecDeque<(AttemptId, Ready)>,
    dialled: VecDeque<(AttemptId, Dialled)>,
    /// Answers in the peer's name were sent to us, and none came.
    lost_forgeries: bool,
    failed: Option<(u32, Option<String>)>,
    outcomes: VecDeque<Outcome>,
}

impl Streams {
    /// One more attempt, which begins when it is due. Those before it are given up: it knows more. The broker tells both
    /// sides of introductions in the same order, so both give up the same.
    pub(super) fn add(&mut self, attempt: Attempt) {
        self.give_up();
        self.attempts.retain(|attempt| !attempt.is_over());
        self.attempts.push(attempt);
    }

    pub(super) fn handle_bound(&mut self, port: PortId, bound: Bound, ctx: &mut Ctx<'_>) {
        for attempt in &mut self.attempts {
            attempt.handle_bound(port, bound, &mut ctx.hands());
        }
        self.collect();
    }

    /// A stream came up, or is gone.
    pub(super) fn handle_stream(
        &mut self,
        id: StreamId,
        news: Result<(), &Gone>,
        numbers: &mut Numbers,
        ctx: &mut Ctx<'_>,
    ) {
        let Some(attempt) = self.attempts.iter_mut().find(|a| a.owns(id)) else { return };
        match news {
            Ok(()) => match attempt.handle_opened(id, &mut ctx.hands()) {
                Opened::Ask(to, question) => ctx.outbox.push(Via::Stream(id), to, &question),
                Opened::Greet(to) => {
                    self.how.extend(attempt.how(id).map(|how| (id, how)));
                    let transaction = numbers.next(ctx.rng);
                    stream_leg(id, to).push(ctx.outbox, &attempt.keys().request(transaction, 0));
                    attempt.greeted(id, transaction, ctx.now.instant);
                }
                Opened::Nothing => {}
            },
            Err(gone) => attempt.handle_closed(id, gone, &mut ctx.hands()),
        }
        self.collect();
    }

    /// The SYN of a stream has left.
    pub(super) fn handle_dialled(&mut self, id: StreamId, packet: &[u8]) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.owns(id)) {
            attempt.handle_dialled(id, packet);
        }
        self.collect();
    }

    /// The broker says that both sides have dialled.
    pub(super) fn handle_both_dialled(&mut self, attempt: AttemptId, round: u8, forged: bool, syn: &[u8]) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.keys().attempt() == attempt) {
            attempt.handle_both_dialled(round, forged, syn);
        }
        self.collect();
    }

    /// A stream came in at a port of ours; true if it is one of an attempt here.
    pub(super) fn handle_accepted(&mut self, id: StreamId, port: PortId, from: SocketAddr) -> bool {
        for attempt in &mut self.attempts {
            if attempt.handle_accepted(id, port, from) {
                self.how.extend(attempt.how(id).map(|how| (id, how)));
                return true;
            }
        }
        false
    }

    /// A message on a stream; true if it was for an attempt itself.
    pub(super) fn handle_frame(&mut self, id: StreamId, bytes: &[u8], ctx: &mut Ctx<'_>) -> bool {
        let taken = self.attempts.iter_mut().any(|a| a.handle_frame(id, bytes, &mut ctx.hands()));
        self.collect();
        taken
    }

    /// The peer is ready for a round and waits.
    pub(super) fn handle_awaited(&mut self, attempt: AttemptId, round: u8, ctx: &mut Ctx<'_>) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.keys().attempt() == attempt) {
            attempt.handle_awaited(round, &mut ctx.hands());
        }
        self.collect();
    }

    /// Both are ready.
    pub(super) fn handle_go(
        &mut self,
        attempt: AttemptId,
        round: u8,
        endpoints: Vec<SocketAddr>,
        wait: Duration,
        ctx: &mut Ctx<'_>,
    ) {
        if let Some(found) = self.attempts.iter_mut().find(|a| a.keys().attempt() == attempt) {
            found.handle_go(round, endpoints, wait, ctx.now.instant);
            found.handle_timeout(&mut ctx.hands());
        }
        self.collect();
    }

    /// The peer answered the greeting of a stream of ours.
    pub(super) fn handle_success(
        &mut self,
        keys: &PairKeys,
        transaction: TransactionId,
        now: Instant,
    ) -> Option<(StreamId, Duration)> {
        let attempt = self.attempts.iter_mut().find(|a| a.keys().attempt() == keys.attempt())?;
        attempt.handle_success(transaction, now)
    }

    /// A stream is proven: the others go. `first` if nothing was tried in vain before this introduction.
    pub(super) fn win(&mut self, winner: StreamId, first: bool, now: Instant) {
        if self.is_open() {
            let means = Means::Tcp(self.how(winner).method);
            if means == Means::Tcp(Method::Reversal) {
                self.tell(Outcome::Tried(means));
            }
            self.tell(Outcome::Opened { means, first });
        }
        for attempt in &mut self.attempts {
            attempt.win(winner, now);
        }
        self.collect();
    }

    /// TCP is not needed.
    pub(super) fn give_up(&mut self) {
        for attempt in self.attempts.iter_mut().filter(|a| a.is_open()) {
            attempt.give_up();
        }
        self.collect();
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        for attempt in &mut self.attempts {
            attempt.handle_timeout(&mut ctx.hands());
        }
        self.collect();
        let (failed, outcomes, lost) = (&mut self.failed, &mut self.outcomes, &mut self.lost_forgeries);
        self.attempts.retain(|attempt| {
            if attempt.has_failed() {
                outcomes.push_back(Outcome::Exhausted);
            }
            if attempt.is_over() {
                let (dials, why) = attempt.tally();
                *failed = Some((dials, why.map(str::to_owned)));
                *lost |= attempt.has_lost_forgeries();
            }
            !attempt.is_over()
        });
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.attempts.iter().filter_map(Attempt::poll_timeout).min()
    }

    /// Whether something may still come of it.
    pub(super) fn is_open(&self) -> bool {
        self.attempts.iter().any(Attempt::is_open)
    }

    /// How many there are, those too that only wait for the peer to settle.
    pub(super) fn attempts(&self) -> usize {
        self.attempts.len()
    }

    /// What the last attempt that failed says: connections tried, and what went wrong in the end.
    pub(super) fn failure(&self) -> Option<(u32, Option<&str>)> {
        self.failed.as_ref().map(|(dials, why)| (*dials, why.as_deref()))
    }

    /// News for whoever counts.
    pub(super) fn tell(&mut self, outcome: Outcome) {
        self.outcomes.push_back(outcome);
    }

    pub(super) fn poll_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    pub(super) fn poll_order(&mut self) -> Option<StreamOrder> {
        self.orders.pop_front()
    }

    pub(super) fn poll_ready(&mut self) -> Option<(AttemptId, Ready)> {
        self.ready.pop_front()
    }

    /// How a stream came to be: one that no attempt of ours has to do with was dialled by the peer.
    pub(super) fn how(&self, id: StreamId) -> How {
        self.how.get(&id).copied().unwrap_or(How { method: Method::Reversal, round: None })
    }

    /// A stream is gone, or is not a way any more and to be closed.
    pub(super) fn forget(&mut self, id: StreamId, close: bool) {
        self.how.remove(&id);
        if close {
            self.orders.push_back(StreamOrder::Close(id));
        }
    }

    fn collect(&mut self) {
        for attempt in &mut self.attempts {
            self.orders.extend(std::iter::from_fn(|| attempt.poll_order()));
            let tried = std::iter::from_fn(|| attempt.poll_tried());
            self.outcomes.extend(tried.map(|method| Outcome::Tried(Means::Tcp(method))));
            let id = attempt.keys().attempt();
            self.ready.extend(attempt.poll_ready().map(|ready| (id, ready)));
            self.dialled.extend(attempt.poll_dialled().map(|dialled| (id, dialled)));
        }
    }
}

/// The leg that a stream to the peer itself is.
pub(super) const fn stream_leg(id: StreamId, to: SocketAddr) -> Leg {
    Leg { via: Via::Stream(id), to, channel: None }
}

impl Path {
    /// A port that this path had ordered was bound.
    pub fn handle_bound(&mut self, port: PortId, bound: Bound, ctx: &mut Ctx<'_>) {
        self.streams.handle_bound(port, bound, ctx);
        self.drive(ctx);
    }

    /// A stream came in at a port of this path; false if it has none of this name any more.
    pub fn handle_accepted(&mut self, id: StreamId, port: PortId, from: SocketAddr) -> bool {
        self.streams.handle_accepted(id, port, from)
    }

    /// A message on a stream of this path; false if it is from the peer, to be read by whoever can.
    pub fn handle_frame(&mut self, id: StreamId, bytes: &[u8], ctx: &mut Ctx<'_>) -> bool {
        let taken = self.streams.handle_frame(id, bytes, ctx);
        if taken {
            self.drive(ctx);
        }
        taken
    }

    /// The peer is ready for a round of TCP punching or of a search, and waits for us.
    pub fn handle_awaited(&mut self, attempt: AttemptId, round: u8, ctx: &mut Ctx<'_>) {
        match self.search_of(attempt, round) {
            Some(search) => search.handle_awaited(round, &mut ctx.hands()),
            None => self.streams.handle_awaited(attempt, round, ctx),
        }
        self.drive(ctx);
    }

    /// Both sides are ready for a round: it starts after `wait`.
    pub fn handle_go(
        &mut self,
        attempt: AttemptId,
        round: u8,
        endpoints: Vec<SocketAddr>,
        wait: Duration,
        ctx: &mut Ctx<'_>,
    ) {
        match self.search_of(attempt, round) {
            Some(search) => search.handle_go(round, endpoints, wait, ctx.now.instant),
            None => self.streams.handle_go(attempt, round, endpoints, wait, ctx),
        }
        self.drive(ctx);
    }

    /// What the broker is to be told for a round.
    pub fn poll_ready(&mut self) -> Option<(AttemptId, Ready)> {
        self.poll_search_ready().or_else(|| self.streams.poll_ready())
    }

    /// The SYN of a stream that this path had ordered has left.
    pub fn handle_dialled(&mut self, id: StreamId, packet: &[u8]) {
        self.streams.handle_dialled(id, packet);
    }

    /// Both sides have dialled, and the broker has answered us in the peer's name, or gives us the peer's SYN to answer.
    pub fn handle_both_dialled(&mut self, attempt: AttemptId, round: u8, forged: bool, syn: &[u8]) {
        self.streams.handle_both_dialled(attempt, round, forged, syn);
    }

    /// What the broker is to be told of our SYNs.
    pub fn poll_dialled(&mut self) -> Option<(AttemptId, Dialled)> {
        self.streams.dialled.pop_front()
    }

    /// Whether answers in the peer's name were sent to us, and none came; told once.
    pub fn take_lost_forgeries(&mut self) -> bool {
        std::mem::take(&mut self.streams.lost_forgeries)
    }

    /// An attempt over TCP begins now if UDP cannot be hoped for, and a little later otherwise: twice as much if ports
    /// have to be found first.
    pub(super) fn prepare_streams(
        &mut self,
        introduction: &Introduction,
        keys: &PairKeys,
        udp: bool,
        searches: bool,
        ctx: &Ctx<'_>,
    ) {
        if !ctx.local.tcp || self.transport == Transport::Udp {
            return;
        }
        let blocked = ctx.local.udp_blocked || introduction.profile.udp.passes == Some(false);
        let head_start = match (udp && !blocked && !self.wants_stream(), searches) {
            (false, _) => Duration::ZERO,
            (true, false) => tcp::HEAD_START,
            (true, true) => 2 * tcp::HEAD_START,
        };
        let start = ctx.now.instant + head_start;
        let over_v6 = |hopeless| plan::over_v6(ctx.local, &introduction.candidates).ok_or(hopeless);
        let rounds = plan::choose(ctx.profile, &introduction.profile, introduction.side).or_else(over_v6);
        if let Err(hopeless) = &rounds
            && (blocked || !udp)
        {
            self.trouble = Some(hopeless.to_string());
        }
        let rounds = rounds.unwrap_or_default();
        let remembered = |round: &Round| Some(round.method) == introduction.remembered;
        let plan = tcp::Plan {
            own: ctx.profile.tcp,
            public: ctx.local.public.clone(),
            observer: ctx.observer,
            targets: plan::tcp_targets(ctx.local, &introduction.candidates),
            first: rounds.iter().position(remembered).unwrap_or(0),
            rounds,
        };
        self.streams.add(Attempt::new(keys.clone(), plan, start));
    }

    /// Whether the owner wants traffic there at all.
    pub(super) fn is_wanted(&self, leg: Leg) -> bool {
        self.relays.owns(leg)
            || match (leg.via, self.transport) {
                (_, Transport::Auto) => true,
                (Via::Udp(_), transport) => transport == Transport::Udp,
                (Via::Stream(_), transport) => transport == Transport::Tcp,
            }
    }

    /// Whether one of the two wants a stream beside UDP.
    pub(super) fn wants_stream(&self) -> bool {
        self.choice.wants_stream() || self.peer_wants_stream
    }

    /// With a direct way, attempts at others are over.
    pub(super) fn settle_streams(&mut self, now: Instant) {
        if !self.streams.is_open() {
            return;
        }
        let first = self.effort.rung() == 0;
        match self.ways.best_proven(self.carrier).map(|leg| leg.via) {
            Some(Via::Stream(winner)) => self.streams.win(winner, first, now),
            Some(Via::Udp(_)) if self.wants_stream() => {
                if let Some(Leg { via: Via::Stream(winner), .. }) =
                    self.ways.best_stream(self.beside.or(self.carrier))
                {
                    self.streams.win(winner, first, now);
                }
            }
            Some(Via::Udp(_)) => self.streams.give_up(),
            None => {}
        }
    }
}
