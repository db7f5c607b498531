//! Floor 4: how the NATs before this machine treat UDP and TCP.
//!
//! A [`Survey`] knows what to ask and what the answers mean; whoever drives it owns the sockets. It is one table:
//! [`question`] says for each [`Question`] what must be known before it makes sense and which [`Probe`] answers it, so the
//! order of the tests follows from what they need. The driver takes probes ([`Survey::poll_probe`]), carries each out and
//! hands back its [`Finding`]; when there is no probe left and none under way, the survey is over. At any time
//! [`Survey::report`] says what is known by then.
//!
//! * Tests that would spoil each other use ports of their own: a filter is measured on a port that no mapping test has
//!   used, and while ports are sampled nothing else is sent that would take a port in between.
//! * What cannot be measured here is unknown, and the report says why ([`report::Unknown`]).
//! * Nothing is sent but to the servers that were named, the addresses that they name as their own, and the machine's own
//!   outer address. [`BUDGET`] bounds how much.
//!
//! A survey keeps nothing afterwards and decides nothing about how to reach anybody.

pub mod half_open;
pub mod probe;
pub mod question;
pub mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::base::addr::canonical;
use crate::base::rng::Rng;
use crate::base::rng::Seed;
use crate::discovery::probe::Finding;
use crate::discovery::probe::Probe;
use crate::discovery::question::Question;

/// Packets that a survey sends at most, repetitions of what is lost or ignored included. Half of it suffices where everything
/// is answered.
pub const BUDGET: u32 = 270;
/// What lifetimes cost on top of it, in two minutes.
pub const LIFETIMES_BUDGET: u32 = 130;

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Also how long idle mappings live; takes more than two minutes.
    pub lifetimes: bool,
    /// Whether segments may be made by hand (CAP_NET_RAW) and sequence numbers read (CAP_NET_ADMIN).
    pub privileged: bool,
}

/// One measurement of the NATs before this machine, from its first question to its last.
#[derive(Debug)]
pub struct Survey {
    servers: Vec<SocketAddr>,
    scope: Scope,
    rng: Rng,
    asked: BTreeSet<Question>,
    found: BTreeMap<Question, Finding>,
}

impl Survey {
    /// With the help of `servers`, the best first; all are asked at the start, one of them later on.
    #[must_use]
    pub fn new(servers: &[SocketAddr], scope: Scope, seed: Seed) -> Self {
        let mut servers: Vec<SocketAddr> = servers.iter().copied().map(canonical).collect();
        // One family: a NAT64 or an IPv6 firewall would be mixed up with the IPv4 NAT otherwise.
        if let Some(ipv4) =
            servers.iter().find(|server| server.is_ipv4()).or_else(|| servers.first()).map(|s| s.is_ipv4())
        {
            servers.retain(|server| server.is_ipv4() == ipv4);
        }
        let mut seen = BTreeSet::new();
        servers.retain(|server| seen.insert(*server));
        servers.truncate(question::MAX_SERVERS);
        Self { servers, scope, rng: Rng::new(seed), asked: BTreeSet::new(), found: BTreeMap::new() }
    }

    /// Something to carry out now, until there is nothing more to do before another finding comes. The order counts:
    /// what is given out first must leave first.
    pub fn poll_probe(&mut self) -> Option<(Question, Probe)> {
        let open: Vec<Question> =
            Question::all(self.scope).filter(|question| !self.asked.contains(question)).collect();
        let (question, probe) =
            open.into_iter().find_map(|question| Some((question, self.probe(question)?)))?;
        self.asked.insert(question);
        Some((question, probe))
    }

    /// What a probe came to.
    pub fn handle_finding(&mut self, question: Question, finding: Finding) {
        self.found.insert(question, finding);
    }

    /// The first of the servers.
    #[must_use]
    pub fn server(&self) -> Option<SocketAddr> {
        self.servers.first().copied()
    }

    /// How much of the report stands by now: grows a few times in a survey, whenever it is worth telling others.
    #[must_use]
    pub fn firmness(&self) -> usize {
        let over = |question| !self.asked.contains(&question) || self.is_over(question);
        let is_measured =
            Question::all(self.scope).filter(|question| !question.is_about_idleness()).all(over);
        let steps =
            [self.is_sampled(), self.is_tcp_sampled(), self.is_usable(), self.is_usable() && is_measured];
        steps.into_iter().filter(|step| *step).count()
    }

    /// What is going on, for people who wait.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        if !self.is_sampled() {
            "measuring UDP"
        } else if !self.is_tcp_sampled() {
            "measuring TCP"
        } else if [Question::Idle, Question::TcpIdle].iter().any(|idle| self.is_over(idle(question::IDLE[0])))
        {
            "leaving mappings idle for two minutes"
        } else {
            "waiting for answers that may never come"
        }
    }
}
