//! Drives a [`Survey`]: carries its probes out and hands back what came of them.
//!
//! What is given out first leaves first: the first packet of a probe is sent before the next probe is taken, because a
//! NAT's next port depends on the order. All waiting is done side by side.

pub mod surveyor;
mod tcp;
mod trace;
mod udp;

use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;

use anyhow::Context as _;
use tokio::task::JoinSet;

use crate::discovery::Survey;
use crate::discovery::probe::Finding;
use crate::discovery::probe::Probe;
use crate::discovery::question::Question;
use tcp::Lines;
use udp::Ears;

/// The probes under way, each with the question that it answers.
type Tasks = JoinSet<(Question, Finding)>;

/// Runs a survey to its end, and says after each finding how far it is.
///
/// # Errors
/// When this machine has no way to the servers at all.
pub async fn run(survey: &mut Survey, told: &mut (dyn FnMut(&Survey) + Send)) -> anyhow::Result<()> {
    let Some(server) = survey.server() else { anyhow::bail!("no STUN server is known") };
    let local = local_address(server)
        .with_context(|| format!("this machine has no route to the STUN server {server}"))?;
    let mut tasks = Tasks::new();
    let (mut ears, mut lines) = (Ears::new(local), Lines::new(local));
    loop {
        while let Some((question, probe)) = survey.poll_probe() {
            tracing::trace!(?question, "asked");
            match probe {
                Probe::Udp(datagram) => ears.send(question, datagram, &mut tasks),
                Probe::Trace { to, message, hops } => {
                    trace::start(question, local, to, message, hops, &mut tasks)
                }
                Probe::Wait(time) => {
                    tasks.spawn(async move {
                        tokio::time::sleep(time).await;
                        (question, Finding::Done(None))
                    });
                }
                other => lines.start(question, other, &mut tasks),
            }
        }
        let Some(done) = tasks.join_next().await else { return Ok(()) };
        let (question, finding) = done.context("a probe panicked")?;
        tracing::debug!(?question, ?finding, "found");
        survey.handle_finding(question, finding);
        told(survey);
    }
}

/// The address that packets to `server` leave from.
fn local_address(server: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

/// What keeps a probe from being carried out, in words.
fn failed(what: &str, error: &std::io::Error) -> Finding {
    Finding::Failed(format!("{what}: {error}"))
}

/// Whether this process may make segments by hand and read sequence numbers.
#[must_use]
pub fn is_privileged() -> bool {
    use rustix::thread::CapabilitySet;
    let needed = CapabilitySet::NET_RAW | CapabilitySet::NET_ADMIN;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}
