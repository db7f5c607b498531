//! The connection of a member to the broker, as the engine keeps it: dialled, lost, dialled again.

use std::net::IpAddr;
use std::time::Duration;

use ntcp_overlay::base::schedule::Backoff;
use ntcp_overlay::wire::broker::ToBroker;

use crate::Who;
use crate::ms;
use crate::net::TO_THE_MIDDLE;
use crate::secs;
use crate::world::Arrival;
use crate::world::World;

/// TCP's and TLS 1.3's handshakes, and the way of the first message.
const DIALLING: Duration = TO_THE_MIDDLE.saturating_mul(10);
/// Between tries, at least and at most (as in `engine::link`).
const RETRY: (Duration, Duration) = (ms(500), secs(10));
/// A connection that carries nothing is given up after this (as in `engine::link`: a ping, and patience).
const SILENT_FOR: Duration = secs(30);

/// The pauses between tries.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(RETRY.0, RETRY.1)
}

impl World {
    /// Begins a new connection; an old one is forgotten.
    pub(crate) fn dial(&mut self, who: Who) {
        let machine = &mut self.machines[who.0];
        machine.link += 1;
        machine.held.clear();
        let link = machine.link;
        self.schedule(DIALLING, Arrival::Dialled { who, link });
    }

    pub(crate) fn on_dialled(&mut self, who: Who, link: u32) {
        let machine = &self.machines[who.0];
        let Some(node) = machine.node.as_ref().filter(|_| machine.link == link) else { return };
        if !self.server.is_up() || !self.reaches_servers(who) {
            return self.redial(who, link);
        }
        let mut register = node.register();
        register.watch &= !machine.uninformed;
        let (certificate, now) = (machine.certificate.clone(), self.now);
        let source = std::net::SocketAddr::new(self.outside(who), 41_000);
        self.server.connect(who, link, certificate, source);
        self.server.handle_message(who, ToBroker::Register(register), now);
        self.collect_server();
    }

    fn redial(&mut self, who: Who, link: u32) {
        let random = self.rng.u32();
        let after = self.machines[who.0].backoff.next(random);
        self.schedule(after, Arrival::Redial { who, link });
    }

    /// The connection number `link` is no more.
    pub(crate) fn on_link_lost(&mut self, who: Who, link: u32, why: &str) {
        let machine = &mut self.machines[who.0];
        if machine.link != link || machine.node.is_none() {
            return;
        }
        machine.link += 1;
        machine.held.clear();
        let (next, now) = (machine.link, self.now);
        self.at_member(who, |m| m.handle_link_down(why, now));
        self.redial(who, next);
    }

    /// A machine's site loses, or gets back, its connection to everything outside.
    pub fn cut_off(&mut self, who: Who, cut: bool) {
        self.cut_line(self.outside(who), cut);
    }

    /// The same for the site at a public address, whoever is there by then.
    pub(crate) fn cut_line(&mut self, public: IpAddr, cut: bool) {
        self.net.link(public).up = !cut;
        let here = |world: &Self, other: &Who| world.outside(*other) == public;
        let all: Vec<Who> = (0..self.machines.len()).map(Who).filter(|other| here(self, other)).collect();
        all.into_iter().for_each(|other| self.on_reach_changed(other));
    }

    /// The internet falls into two halves, or grows together again: sites of region 1 on one side, everybody else, with the
    /// servers, on the other.
    pub fn split(&mut self, split: bool) {
        self.net.split = split;
        for n in 0..self.machines.len() {
            self.on_reach_changed(Who(n));
        }
    }

    fn on_reach_changed(&mut self, who: Who) {
        let link = self.machines[who.0].link;
        if self.reaches_servers(who) {
            for arrival in std::mem::take(&mut self.machines[who.0].held) {
                self.schedule(TO_THE_MIDDLE * 2, arrival);
            }
        } else {
            self.schedule(SILENT_FOR, Arrival::LinkSilent { who, link });
        }
    }

    /// The broker's program ends: all connections break.
    pub fn stop_broker(&mut self) {
        self.server.stop_broker();
        self.collect_server();
    }

    /// A relay's program ends.
    pub fn stop_relay(&mut self, n: usize) {
        self.server.stop_relay(n);
        self.collect_server();
    }

    /// The broker's program starts anew: it has its directory and knows nobody's whereabouts.
    pub fn start_broker(&mut self) {
        self.server.start_broker(&self.authority, self.now);
    }
}
