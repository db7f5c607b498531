//! A member's surveys: one when the broker has named the servers, one after each change of the network, and now and then
//! one more, because routers are replaced behind the back of those who use them.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::discovery::Scope;
use crate::discovery::Survey;
use crate::engine::clock;
use crate::engine::discovery;
use crate::nat::behavior::Profile;

/// A survey that found something is repeated after this.
const EVERY: Duration = Duration::from_secs(6 * 3600);
/// One that no server answered is repeated after this.
const RETRY: Duration = Duration::from_secs(300);

/// The surveys of one member.
#[derive(Debug)]
pub struct Surveyor {
    servers: Vec<SocketAddr>,
    addrs: Vec<IpAddr>,
    task: Option<JoinHandle<()>>,
    found: (mpsc::UnboundedSender<Profile>, mpsc::UnboundedReceiver<Profile>),
}

impl Default for Surveyor {
    fn default() -> Self {
        Self::new()
    }
}

impl Surveyor {
    /// Nothing is measured before there are servers.
    #[must_use]
    pub fn new() -> Self {
        Self { servers: Vec::new(), addrs: Vec::new(), task: None, found: mpsc::unbounded_channel() }
    }

    /// The servers to measure with, as the broker names them. Begins anew if they are others than before.
    pub fn set_servers(&mut self, servers: &[SocketAddr]) {
        if self.servers != servers {
            servers.clone_into(&mut self.servers);
            self.begin();
        }
    }

    /// See [`Self::set_servers`].
    #[must_use]
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// The machine's addresses. Begins anew if they are others than before: what was measured is about another network.
    pub fn handle_network(&mut self, addrs: &[IpAddr]) {
        if self.addrs != addrs {
            addrs.clone_into(&mut self.addrs);
            self.begin();
        }
    }

    /// What is known by now, each time it is worth telling; never ends.
    pub async fn next(&mut self) -> Profile {
        match self.found.1.recv().await {
            Some(profile) => profile,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    fn begin(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        // What the old survey has said may be about the old network.
        self.found = mpsc::unbounded_channel();
        if !self.servers.is_empty() {
            self.task = Some(tokio::spawn(repeat(self.servers.clone(), self.found.0.clone())));
        }
    }
}

impl Drop for Surveyor {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn repeat(servers: Vec<SocketAddr>, found: mpsc::UnboundedSender<Profile>) {
    let scope = Scope { lifetimes: true, privileged: discovery::is_privileged() };
    loop {
        let mut survey = Survey::new(&servers, scope, clock::seed());
        let mut firmness = 0;
        let mut told = |survey: &Survey| {
            if survey.firmness() > firmness {
                firmness = survey.firmness();
                let _ = found.send(survey.report().profile);
            }
        };
        if let Err(error) = discovery::run(&mut survey, &mut told).await {
            tracing::debug!(error = format!("{error:#}"), "the NATs in front cannot be measured now");
        }
        let profile = survey.report().profile;
        let is_known = profile.udp.passes.is_some() || profile.tcp.passes.is_some();
        if is_known {
            tracing::debug!(?profile, "the NATs in front are measured");
            let _ = found.send(profile);
        }
        tokio::time::sleep(if is_known { EVERY } else { RETRY }).await;
    }
}
