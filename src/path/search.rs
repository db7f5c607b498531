//! Searches for ports over UDP: the one of the newest introduction, and the sockets that it and the ways have.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use crate::base::id::AttemptId;
use crate::base::id::SocketId;
use crate::base::transmit::StreamOrder;
use crate::base::transmit::Via;
use crate::nat::candidate::Kind;
use crate::path::Ctx;
use crate::path::Introduction;
use crate::path::Path;
use crate::path::Transport;
use crate::path::leg::Leg;
use crate::punch::attempt;
use crate::punch::method::How;
use crate::punch::plan;
use crate::punch::search;
use crate::punch::search::Deed;
use crate::punch::search::Part;
use crate::punch::search::Search;
use crate::punch::search::Terms;
use crate::punch::tcp::Ready;
use crate::wire::stun;

/// Sockets beside the data sockets.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: BTreeSet<SocketId>,
    /// What the latest search had checked, from where.
    found: BTreeMap<(Via, SocketAddr), How>,
    orders: VecDeque<StreamOrder>,
}

impl Sockets {
    fn open(&mut self, id: SocketId) {
        self.open.insert(id);
        self.orders.push_back(StreamOrder::OpenUdp(id));
    }

    /// Closes those that are not to be kept.
    fn close_unless(&mut self, keep: impl Fn(SocketId) -> bool) {
        let orders = &mut self.orders;
        self.open.retain(|id| {
            let kept = keep(*id);
            if !kept {
                orders.push_back(StreamOrder::CloseUdp(*id));
            }
            kept
        });
    }

    pub(super) fn poll_order(&mut self) -> Option<StreamOrder> {
        self.orders.pop_front()
    }
}

impl Path {
    /// A STUN message came to a socket of ours that is no data socket, and it is no check. False if nobody asked for it.
    pub fn handle_look(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        received: &stun::Received<'_>,
        ctx: &mut Ctx<'_>,
    ) -> bool {
        let search = self.search.as_mut();
        let known = search.is_some_and(|s| s.handle_answer(socket, from, received, &mut ctx.hands()));
        if known {
            self.drive(ctx);
        }
        known
    }

    /// Prepares a search, if the two NATs need one. True if they do.
    pub(super) fn prepare_search(
        &mut self,
        introduction: &Introduction,
        targets: &[SocketAddr],
        ctx: &Ctx<'_>,
    ) -> bool {
        self.search = self.search_for(introduction, targets, ctx);
        if self.search.is_some() {
            self.sockets.found.clear();
        }
        self.search.is_some()
    }

    fn search_for(
        &self,
        introduction: &Introduction,
        targets: &[SocketAddr],
        ctx: &Ctx<'_>,
    ) -> Option<Search> {
        if !ctx.local.udp || ctx.local.udp_blocked || self.transport == Transport::Tcp {
            return None;
        }
        let part = search::part(ctx.profile, &introduction.profile)?;
        let now = ctx.now.instant;
        let rests = self.swept.is_some_and(|at| now < at + search::REST);
        if rests && matches!(part, Part::Many | Part::Sweep) {
            return None;
        }
        // IPv6 is not translated.
        let view = ctx.view.filter(|view| view.mapped.is_ipv4())?;
        let seen = |kind: Kind| kind == Kind::Mapped;
        let mut mapped = introduction.candidates.iter().filter(|c| seen(c.kind)).map(|c| c.addr);
        let peer = mapped.find(|to| to.is_ipv4() && plan::is_target(ctx.local, *to))?;
        let terms = Terms { broker: view.from, mapped: view.mapped, peer };
        // Guesses count from the last port that was given out: the first packets of all checks go before.
        let first_rung = u32::try_from(targets.len()).unwrap_or(0) + 1;
        let wait = match part {
            Part::Next(_) => attempt::PACE * first_rung,
            Part::Told | Part::Between(_) | Part::Many | Part::Sweep => Duration::ZERO,
        };
        Some(Search::new(introduction.attempt, part, terms, now + wait))
    }

    /// Does what the search wants.
    pub(super) fn drive_search(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.instant;
        let direct = self.ways.best_proven(self.carrier).is_some();
        if let Some(search) = self.search.as_mut() {
            let attempt = search.attempt();
            if direct {
                search.give_up();
                ctx.turn.end(attempt, now);
            }
            search.handle_timeout(&mut ctx.hands());
            let attempt = self.attempts.iter_mut().find(|a| a.keys().attempt() == attempt);
            // Without an attempt nobody would take an answer.
            let Some(attempt) = attempt else {
                self.search = None;
                return self.close_sockets();
            };
            while let Some(deed) = search.poll_deed() {
                match deed {
                    Deed::Open(socket) => self.sockets.open(socket),
                    Deed::Ask(socket, to, question) => {
                        ctx.outbox.push(Via::Udp(socket), to, &question);
                    }
                    Deed::Knock(socket, to) => {
                        if search.is_large() {
                            self.swept = Some(now);
                        }
                        self.sockets.found.insert((Via::Udp(socket), to), search.how());
                        let check = attempt.keys().request(self.numbers.next(ctx.rng), 0);
                        ctx.outbox.push(Via::Udp(socket), to, &check);
                    }
                    Deed::Check(via, to) => {
                        self.sockets.found.insert((via, to), search.how());
                        attempt.check(via, to, now);
                    }
                }
            }
        }
        self.close_sockets();
    }

    /// Closes the sockets that neither the search nor a way needs.
    pub(super) fn close_sockets(&mut self) {
        let (search, ways) = (&self.search, &self.ways);
        let of_a_way = |id| ways.healths().any(|(leg, ..)| leg.via == Via::Udp(id));
        self.sockets.close_unless(|id| search.as_ref().is_some_and(|s| s.uses(id)) || of_a_way(id));
    }

    /// How a way over UDP was found, if it took a search.
    pub(super) fn how_found(&self, leg: Leg) -> Option<How> {
        self.sockets.found.get(&(leg.via, leg.to)).copied()
    }

    pub(super) fn poll_search_ready(&mut self) -> Option<(AttemptId, Ready)> {
        let search = self.search.as_mut()?;
        Some((search.attempt(), search.poll_ready()?))
    }

    /// The search of this introduction, if `round` is one of a search.
    pub(super) fn search_of(&mut self, attempt: AttemptId, round: u8) -> Option<&mut Search> {
        self.search.as_mut().filter(|s| round >= search::FIRST_ROUND && s.attempt() == attempt)
    }

    pub(super) fn search_timeout(&self) -> Option<Instant> {
        self.search.as_ref()?.poll_timeout()
    }
}
