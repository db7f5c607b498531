//! How far the network's relays are from this member: the broker asks, because it chooses the relay of a pair by the sum
//! of both sides' round trips.
//!
//! Measured by opening a TCP connection and closing it: that takes one round trip, and the relay need not answer anything
//! that it does not answer anyway.

use std::net::SocketAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;

use crate::base::addr;
use crate::config::proxy::Proxies;
use crate::engine::clock;
use crate::nat::candidate::Transport;
use crate::wire::broker::RelayDelay;
use crate::wire::broker::RelayPlace;

/// Measured again after this: routes change by the hour.
const EVERY: Duration = Duration::from_secs(15 * 60);
/// Whoever has not answered by then is no relay for us.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections to one endpoint, of which the fastest counts: the first one may have to wait for a neighbour's address.
const TRIES: usize = 2;
/// Endpoints of one relay that are tried before it counts as out of reach: two families, two ports.
const MAX_ENDPOINTS: usize = 4;

/// Measures now and then, and whenever something has changed.
#[derive(Debug)]
pub struct RelayDelays {
    relays: Vec<RelayPlace>,
    proxies: Proxies,
    overlay: Vec<IpNetwork>,
    /// The broker is on this machine, and perhaps a relay beside it.
    beside_broker: bool,
    last: Vec<RelayDelay>,
    task: Option<JoinHandle<()>>,
    found: (mpsc::UnboundedSender<Vec<RelayDelay>>, mpsc::UnboundedReceiver<Vec<RelayDelay>>),
}

impl RelayDelays {
    /// Nothing is measured before the broker has asked. What is only reached through a proxy is not measured at all, and
    /// nothing inside the overlay is.
    #[must_use]
    pub fn new(proxies: Proxies, overlay: Vec<IpNetwork>) -> Self {
        let found = mpsc::unbounded_channel();
        Self {
            relays: Vec::new(),
            proxies,
            overlay,
            beside_broker: false,
            last: Vec::new(),
            task: None,
            found,
        }
    }

    /// A broker is connected, on this very machine or elsewhere: only the former may name loopback addresses.
    pub fn on_reached(&mut self, beside_broker: bool) {
        self.beside_broker = beside_broker;
    }

    /// The broker asks about these. Says again what it knows if they are the same as before, and measures if not.
    pub fn on_asked(&mut self, relays: Vec<RelayPlace>) {
        if self.relays != relays {
            self.relays = relays;
            self.begin();
        } else if !self.last.is_empty() {
            let _ = self.found.0.send(self.last.clone());
        }
    }

    /// The machine is elsewhere.
    pub fn on_network(&mut self) {
        self.begin();
    }

    /// What was measured, when it is; never ends otherwise.
    pub async fn next(&mut self) -> Vec<RelayDelay> {
        match self.found.1.recv().await {
            Some(delays) => {
                self.last.clone_from(&delays);
                delays
            }
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// What was measured last.
    #[must_use]
    pub fn known(&self) -> &[RelayDelay] {
        &self.last
    }

    fn begin(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.last.clear();
        if self.relays.is_empty() {
            return;
        }
        let to = self.relays.iter().map(|relay| (relay.clone(), self.endpoints(relay))).collect();
        self.task = Some(tokio::spawn(repeat(to, self.found.0.clone())));
    }

    fn endpoints(&self, relay: &RelayPlace) -> Vec<SocketAddr> {
        let tcp = relay.endpoints.iter().filter(|e| e.transport == Transport::Tcp).map(|e| e.addr);
        let inside = |at: &SocketAddr| self.overlay.iter().any(|net| net.contains(at.ip()));
        let plain = |at: &SocketAddr| self.proxies.route_addr(*at).is_none();
        let here = |at: &SocketAddr| self.beside_broker && at.ip().is_loopback();
        let fit = |at: &SocketAddr| here(at) || addr::is_candidate(*at) && !inside(at);
        tcp.filter(fit).filter(plain).take(MAX_ENDPOINTS).collect()
    }
}

impl Drop for RelayDelays {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn repeat(to: Vec<(RelayPlace, Vec<SocketAddr>)>, found: mpsc::UnboundedSender<Vec<RelayDelay>>) {
    loop {
        let mut measuring = JoinSet::new();
        for (relay, endpoints) in to.iter().filter(|(_, endpoints)| !endpoints.is_empty()).cloned() {
            measuring.spawn(async move { RelayDelay { name: relay.name, rtt: measure(&endpoints).await } });
        }
        let mut delays = measuring.join_all().await;
        delays.sort_by(|a, b| a.name.cmp(&b.name));
        tracing::debug!(?delays, "the way to the relays is measured");
        if !delays.is_empty() {
            let _ = found.send(delays);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The round trip to the first of `endpoints` that answers, in milliseconds.
async fn measure(endpoints: &[SocketAddr]) -> Option<u16> {
    for at in endpoints {
        let mut best: Option<Duration> = None;
        for _ in 0..TRIES {
            let begun = clock::now().instant;
            let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(at)).await;
            let took = clock::now().instant.duration_since(begun);
            if !matches!(connected, Ok(Ok(_))) {
                break;
            }
            best = Some(best.map_or(took, |best| best.min(took)));
        }
        if let Some(best) = best {
            return Some(u16::try_from(best.as_millis()).unwrap_or(u16::MAX - 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::nat::candidate::Candidate;
    use crate::nat::candidate::Kind;

    fn place(name: &str, at: &[SocketAddr]) -> RelayPlace {
        let tcp = |addr: &SocketAddr| Candidate { transport: Transport::Tcp, kind: Kind::Host, addr: *addr };
        RelayPlace { name: name.parse().unwrap(), endpoints: at.iter().map(tcp).collect() }
    }

    #[tokio::test]
    async fn a_relay_that_answers_has_a_delay_and_one_that_does_not_has_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut delays = RelayDelays::new(Proxies::none(), Vec::new());
        delays.on_reached(true);
        let asked = vec![place("here", &[gone, here]), place("gone", &[gone]), place("udp-only", &[])];
        delays.on_asked(asked.clone());
        let first = delays.next().await;
        let names: Vec<&str> = first.iter().map(|delay| delay.name.as_str()).collect();
        assert_eq!(names, ["gone", "here"], "what cannot be measured is not told");
        assert_eq!(first[0].rtt, None);
        assert!(first[1].rtt.is_some(), "its second endpoint answers");

        drop(listener);
        delays.on_asked(asked);
        assert_eq!(delays.next().await, first, "a broker that asks the same again hears the same at once");
    }

    #[test]
    fn nothing_inside_the_overlay_and_nothing_behind_a_proxy_is_dialled() {
        let inside: SocketAddr = "10.77.0.9:6061".parse().unwrap();
        let outside: SocketAddr = "192.0.2.9:6061".parse().unwrap();
        let delays = RelayDelays::new(Proxies::none(), vec!["10.77.0.0/16".parse().unwrap()]);
        let here = "127.0.0.1:6061".parse().unwrap();
        assert_eq!(
            delays.endpoints(&place("r", &[inside, here, outside])),
            [outside],
            "nor what is on this machine"
        );
        let proxied = Proxies::fixed("http://proxy.example:3128".parse().unwrap());
        let delays = RelayDelays::new(proxied, Vec::new());
        assert_eq!(delays.endpoints(&place("r", &[outside])), []);
    }
}
