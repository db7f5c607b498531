//! `serve`: broker, relay and STUN server without a member. Needs no privilege but that for ports below 1024.

use sd_notify::NotifyState;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;

use crate::config::exit::Exit;
use crate::config::settings::Settings;
use crate::control::api;
use crate::control::server::ControlServer;
use crate::engine::roles::HEALTH;
use crate::engine::roles::Servers;
use crate::engine::up::FAREWELL;
use crate::wire::enroll::Invite;

/// Runs until SIGTERM, SIGINT or `down`. With `join`, this machine becomes a relay of that network first.
///
/// # Errors
/// Whatever keeps it from starting or going on; a `config::exit::Failure` in the chain sets the exit code.
pub fn run(settings: &Settings, join: Option<&Invite>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_async(settings, join))
}

async fn run_async(settings: &Settings, join: Option<&Invite>) -> anyhow::Result<Exit> {
    let control = ControlServer::bind(&settings.control)?;
    let servers = Servers::start(settings, false, join).await?;
    anyhow::ensure!(
        !servers.is_empty(),
        "no server role is set up here: make keys with `ntcp-overlay cert init --network NAME --broker NAME --relay NAME --dir {}`, or set stun.enabled = true",
        settings.state_dir.display()
    );
    let (asks_in, mut asks) = mpsc::channel(32);
    let socket = tokio::spawn(control.run(asks_in));
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("Serving")]);
    tracing::info!("serving");
    let mut health = tokio::time::interval(HEALTH);
    let outcome = loop {
        tokio::select! {
            _ = term.recv() => break Ok(Exit::Ok),
            _ = int.recv() => break Ok(Exit::Ok),
            _ = health.tick() => if let Err(error) = servers.health() {
                break Err(error);
            },
            Some(ask) = asks.recv() => {
                let answer = match ask.request {
                    api::Request::Down {} => {
                        let _ = ask.reply.send(api::Reply::Done { message: "stopping".to_owned() });
                        break Ok(Exit::Ok);
                    }
                    api::Request::Status {} => {
                        let mut status = api::Status::serving();
                        servers.describe(&mut status).await;
                        api::Reply::Status(Box::new(status))
                    }
                    other => servers.answer(other).await,
                };
                let _ = ask.reply.send(answer);
            }
        }
    };
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    tokio::time::sleep(FAREWELL).await;
    socket.abort();
    servers.shutdown().await;
    outcome
}
