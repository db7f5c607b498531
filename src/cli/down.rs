//! `down`: ends the daemon and waits until it is gone.

use std::path::Path;
use std::time::Duration;

use crate::cli::args::DownArgs;
use crate::cli::control_failure;
use crate::config::exit::Exit;
use crate::config::exit::Failure;
use crate::config::load;
use crate::control::api::Request;
use crate::control::client;
use crate::control::client::ControlError;
use crate::engine;

/// Between two looks whether the daemon is gone.
const LOOK: Duration = Duration::from_millis(50);
/// Looks; 10 s in all, within which routes and names are restored many times over.
const LOOKS: u32 = 200;

pub(super) fn run(args: &DownArgs) -> anyhow::Result<Exit> {
    let socket = args.control.socket();
    match client::ask(&socket, Request::Down {}) {
        Ok(_) => wait_until_gone(&socket)?,
        // Then only the leftovers are left.
        Err(ControlError::NotRunning) if args.cleanup => {}
        Err(error) => return Err(control_failure(error)),
    }
    if args.cleanup {
        let state_dir = args.state_dir.clone().unwrap_or_else(|| load::usual_places().state_dir);
        for removed in engine::cleanup::run(&state_dir)? {
            eprintln!("removed {removed}");
        }
    }
    Ok(Exit::Ok)
}

fn wait_until_gone(socket: &Path) -> anyhow::Result<()> {
    for _ in 0..LOOKS {
        if let Err(ControlError::NotRunning) = client::ask(socket, Request::Version {}) {
            return Ok(());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a command waits for the daemon; there is no loop to return to"
        )]
        std::thread::sleep(LOOK);
    }
    Err(Failure::new(Exit::Timeout, "ntcp-overlay was told to stop and still runs: see its log").into())
}
