//! Ports that the gateway forwards to this member: obtained, kept, judged, given back.
//!
//! One task. It asks the default gateway for the ports of the data sockets, UDP and TCP, and asks again in time: PCP and
//! NAT-PMP every minute, because that is how a gateway that has started anew is noticed, UPnP every five, because it costs
//! a TCP connection; a gateway that forwards nothing is left alone for ten, unless it did a moment ago and may only be
//! starting anew. So there are two to five packets a minute each
//! way, and some 25 when a gateway is met that speaks nothing at all. It asks at once, but never twice within ten seconds,
//! when the network changes and when the broker is reached again: what cut the link may have been the gateway's restart.
//!
//! What a forwarded port is worth is [`crate::nat::gateway`]'s matter; it goes to the node as candidates.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::addr::is_private;
use crate::control::api;
use crate::engine::member::Command;
use crate::engine::member::Commands;
use crate::io::netlink::Netlink;
use crate::io::portmap::Gateway;
use crate::io::portmap::Lease;
use crate::io::portmap::Protocol;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::Transport;
use crate::nat::gateway::Worth;
use crate::nat::gateway::worth;

/// Between two renewals by PCP and NAT-PMP.
const KEEP_PMP: Duration = Duration::from_secs(60);
/// Between two renewals by UPnP.
const KEEP_UPNP: Duration = Duration::from_secs(300);
/// Before a gateway that forwards nothing is asked again.
const REST: Duration = Duration::from_secs(600);
/// How often a gateway that has stopped forwarding is asked at [`KEEP_PMP`]: home routers need a minute or two to start.
const HOPE: u8 = 5;
/// Never more often than this, whatever happens.
const APART: Duration = Duration::from_secs(10);
/// How long giving the ports back may take at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What there is to say about the gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Its address, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// What it forwards.
    pub forwarded: Vec<Forwarded>,
    /// Why it forwards nothing, or not all, in words.
    pub problem: Option<String>,
}

/// A forwarded port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// How it was obtained.
    pub protocol: Protocol,
    /// Which transport.
    pub transport: Transport,
    /// The port here.
    pub internal: u16,
    /// Where the gateway forwards from, as it says.
    pub external: SocketAddr,
    /// What that is worth.
    pub worth: Worth,
}

/// The holder's end; the task ends when it is dropped, and then leases run out by themselves.
pub struct Handle {
    notes: mpsc::UnboundedSender<Note>,
    stop: mpsc::Sender<Done>,
    report: watch::Receiver<Report>,
}

enum Note {
    /// Addresses or routes have changed.
    Network,
    /// The broker was reached; where it sees us, if it can tell.
    Reached(Option<IpAddr>),
}

/// Told when everything was given back.
struct Done(oneshot::Sender<()>);

impl Handle {
    /// The network has changed.
    pub fn on_network(&self) {
        let _ = self.notes.send(Note::Network);
    }

    /// The broker was reached, and sees us there; `None` if a proxy stands in between.
    pub fn on_reached(&self, seen: Option<IpAddr>) {
        let _ = self.notes.send(Note::Reached(seen));
    }

    /// How things are.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// Gives all ports back.
    pub async fn stop(&self) {
        let (done, is_done) = oneshot::channel();
        if self.stop.send(Done(done)).await.is_ok() {
            let _ = tokio::time::timeout(FAREWELL, is_done).await;
        }
    }
}

/// Begins to have these ports forwarded, UDP and TCP; 0 for a transport that is not to be.
#[must_use]
pub fn spawn(udp: u16, tcp: u16, member: Commands) -> Handle {
    let wanted = [(Transport::Udp, udp), (Transport::Tcp, tcp)];
    let wanted = wanted.into_iter().filter_map(|(transport, port)| Some((transport, NonZeroU16::new(port)?)));
    let (notes, inbox) = mpsc::unbounded_channel();
    let (stop, stopped) = mpsc::channel(1);
    let (out, report) = watch::channel(Report::default());
    let keeper = Keeper {
        wanted: wanted.collect(),
        member,
        out,
        gateway: None,
        leases: Vec::new(),
        seen: None,
        problem: None,
        told: Vec::new(),
        hope: 0,
    };
    tokio::spawn(keeper.run(inbox, stopped));
    Handle { notes, stop, report }
}

struct Keeper {
    wanted: Vec<(Transport, NonZeroU16)>,
    member: Commands,
    out: watch::Sender<Report>,
    gateway: Option<Gateway>,
    leases: Vec<Lease>,
    seen: Option<IpAddr>,
    problem: Option<String>,
    told: Vec<Candidate>,
    /// How often a gateway that forwards nothing now is still asked soon.
    hope: u8,
}

impl Keeper {
    async fn run(mut self, mut notes: mpsc::UnboundedReceiver<Note>, mut stop: mpsc::Receiver<Done>) {
        let mut due = Instant::now();
        loop {
            tokio::select! {
                note = notes.recv() => {
                    let soon = Instant::now() + APART;
                    match note {
                        Some(Note::Network) => {}
                        Some(Note::Reached(seen)) => {
                            self.seen = seen;
                            self.tell();
                        }
                        None => return,
                    }
                    due = due.min(soon);
                }
                done = stop.recv() => return self.give_back(done).await,
                () = tokio::time::sleep_until(due) => {
                    tokio::select! {
                        () = self.ask() => {}
                        done = stop.recv() => return self.give_back(done).await,
                    }
                    self.tell();
                    self.hope = if self.leases.is_empty() { self.hope.saturating_sub(1) } else { HOPE };
                    let held = self.leases.iter().map(|lease| (lease.protocol, lease.lifetime));
                    due = Instant::now() + pause(held, self.hope);
                }
            }
        }
    }

    /// Renews what there is and asks for what is missing. May be dropped on the way: what is held stays known.
    async fn ask(&mut self) {
        self.problem = self.find_gateway().await.err();
        let Some(gateway) = &mut self.gateway else { return self.leases.clear() };
        for (transport, port) in self.wanted.clone() {
            let held = self.leases.iter().find(|lease| lease.transport == transport).cloned();
            let renewed = match &held {
                Some(held) => gateway.renew(held).await.ok(),
                None => None,
            };
            let lease = match renewed {
                Some(lease) => Ok(lease),
                None => gateway.lease(transport, port).await,
            };
            self.leases.retain(|lease| lease.transport != transport);
            match lease {
                Ok(lease) => self.leases.push(lease),
                Err(why) => {
                    self.problem = Some(why.to_string());
                    // What speaks nothing for one transport speaks nothing for the other.
                    if self.leases.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// The default gateway, if it is one that could forward something to us.
    async fn find_gateway(&mut self) -> Result<(), String> {
        let routed = match Netlink::open() {
            Ok(netlink) => netlink.default_gateway().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let found = routed?.and_then(Gateway::new);
        let Some(found) = found else {
            self.gateway = None;
            return Err("this machine has no IPv4 default gateway".to_owned());
        };
        if !is_private(IpAddr::V4(found.local)) {
            self.gateway = None;
            return Err("this machine has a public address, so no NAT needs to forward anything".to_owned());
        }
        let same =
            self.gateway.as_ref().is_some_and(|old| (old.address, old.local) == (found.address, found.local));
        if !same {
            // Another network: what the old gateway forwarded ends by itself, and so does what it told us.
            self.leases.clear();
            self.hope = 0;
            self.gateway = Some(found);
        }
        Ok(())
    }

    /// Candidates to the node, and everything to whoever asks for the status.
    fn tell(&mut self) {
        let forwarded: Vec<Forwarded> = self
            .leases
            .iter()
            .map(|lease| {
                let external = SocketAddr::V4(lease.external);
                Forwarded {
                    protocol: lease.protocol,
                    transport: lease.transport,
                    internal: lease.internal.get(),
                    external,
                    worth: worth(external, self.seen),
                }
            })
            .collect();
        let candidates: Vec<Candidate> = forwarded
            .iter()
            .filter_map(|f| {
                Some(Candidate { transport: f.transport, kind: f.worth.kind()?, addr: f.external })
            })
            .collect();
        if candidates != self.told {
            for Forwarded { protocol, transport, internal, worth, .. } in &forwarded {
                tracing::info!(%protocol, ?transport, internal, ?worth, "the router forwards a port");
            }
            self.told.clone_from(&candidates);
            self.member.send(Command::Forwarded(candidates));
        }
        let gateway = self.gateway.as_ref().map(|gateway| gateway.address);
        let report = Report { gateway, forwarded, problem: self.problem.clone() };
        self.out.send_if_modified(|old| {
            if let (Some(why), true) = (&report.problem, old.problem != report.problem) {
                tracing::info!(why, "no port is forwarded");
            }
            let changed = *old != report;
            *old = report;
            changed
        });
    }

    async fn give_back(mut self, done: Option<Done>) {
        if let Some(gateway) = &mut self.gateway {
            for lease in std::mem::take(&mut self.leases) {
                gateway.release(lease).await;
            }
        }
        if let Some(Done(done)) = done {
            let _ = done.send(());
        }
    }
}

/// Until the next time: by protocol, well before any lease ends, and soon while there is hope.
fn pause(held: impl Iterator<Item = (Protocol, Option<Duration>)>, hope: u8) -> Duration {
    let each = held.map(|(protocol, lifetime)| {
        let keep = match protocol {
            Protocol::Pcp | Protocol::NatPmp => KEEP_PMP,
            Protocol::Upnp => KEEP_UPNP,
        };
        lifetime.map_or(keep, |lifetime| keep.min(lifetime / 2))
    });
    let nothing = if hope > 0 { KEEP_PMP } else { REST };
    each.min().unwrap_or(nothing).max(APART)
}

impl From<Report> for api::Gateway {
    fn from(report: Report) -> Self {
        let forwarded = report.forwarded.into_iter().map(|f| api::Forwarded {
            transport: match f.transport {
                Transport::Udp => "udp".to_owned(),
                Transport::Tcp => "tcp".to_owned(),
            },
            protocol: f.protocol.name().to_ascii_lowercase(),
            internal: f.internal,
            external: f.external,
            worth: match f.worth {
                Worth::Public => "public".to_owned(),
                Worth::Nested => "nested".to_owned(),
                Worth::Elsewhere => "elsewhere".to_owned(),
                Worth::Nothing => "nothing".to_owned(),
            },
        });
        Self { address: report.gateway, forwarded: forwarded.collect(), problem: report.problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_asked_in_time_and_not_too_often() {
        const HOUR: Option<Duration> = Some(Duration::from_secs(3600));
        let seconds =
            |held: &[(Protocol, Option<Duration>)], hope| pause(held.iter().copied(), hope).as_secs();
        for (name, held, hope, wanted) in [
            ("PCP", &[(Protocol::Pcp, HOUR), (Protocol::Pcp, HOUR)][..], HOPE, 60),
            ("UPnP", &[(Protocol::Upnp, HOUR)], HOPE, 300),
            ("UPnP for ever", &[(Protocol::Upnp, None)], HOPE, 300),
            ("a short lease", &[(Protocol::Upnp, Some(Duration::from_secs(120)))], HOPE, 60),
            ("a lease that nobody could keep", &[(Protocol::Pcp, Some(Duration::from_secs(1)))], HOPE, 10),
            ("forwarded a moment ago", &[], 1, 60),
            ("forwards nothing", &[], 0, 600),
        ] {
            assert_eq!(seconds(held, hope), wanted, "{name}");
        }
    }
}
