//! `up`: a member of the mesh.

use crate::config::exit::Exit;
use crate::config::settings::Settings;
use crate::wire::enroll::Invite;

/// What a start has to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Announcement {
    /// A line for people, on stdout.
    Say(String),
    /// The interface is up and the control socket answers: whoever waits for the start may go on.
    Ready,
}

/// Runs until SIGTERM, SIGINT or `down`.
///
/// # Errors
/// Whatever keeps it from starting or going on; a `config::exit::Failure` in the chain sets the exit code.
pub fn run(
    settings: &Settings,
    join: Option<Invite>,
    announce: &mut dyn FnMut(Announcement),
) -> anyhow::Result<Exit> {
    let _ = (settings, join, announce);
    anyhow::bail!("not built yet")
}
