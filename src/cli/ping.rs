//! `ping`: probes of the path to a peer, one line each.

use serde::Serialize;

use crate::cli::args::PingArgs;
use crate::cli::control_failure;
use crate::cli::output;
use crate::cli::render;
use crate::config::exit::Exit;
use crate::control::api::Kind;
use crate::control::api::Path;
use crate::control::api::Pong;
use crate::control::api::Reply;
use crate::control::api::Request;
use crate::control::api::SCHEMA;
use crate::control::client;
use crate::control::client::ControlError;

/// A handful, to see jitter.
const COUNT: u32 = 4;
/// Enough for a direct path to be found, at one a second.
const COUNT_UNTIL_DIRECT: u32 = 15;

/// What came back so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    sent: u32,
    answered: u32,
    direct: bool,
    last: Option<Path>,
}

/// What `ping --json` prints, a line each.
#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    #[serde(flatten)]
    pong: &'a Pong,
}

pub(super) fn run(args: &PingArgs) -> anyhow::Result<Exit> {
    let socket = args.control.socket();
    let count = args.count.unwrap_or(if args.until_direct { COUNT_UNTIL_DIRECT } else { COUNT });
    let timeout_ms = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX);
    let mut tally = Tally::default();
    for probe in 0..count {
        if probe > 0 {
            #[expect(
                clippy::disallowed_methods,
                reason = "a command waits between two probes; nothing else runs here"
            )]
            std::thread::sleep(args.interval);
        }
        match client::ask(&socket, Request::Ping { peer: args.peer.clone(), timeout_ms }) {
            Ok(Reply::Pong(pong)) => {
                tally.add(&pong);
                if args.json {
                    output::data(&(serde_json::to_string(&Line { schema: SCHEMA, pong: &pong })? + "\n"))?;
                } else {
                    output::data(&(render::pong(&pong) + "\n"))?;
                }
            }
            Ok(other) => anyhow::bail!("unexpected answer from ntcp-overlay: {other:?}"),
            Err(ControlError::Timeout(why)) => {
                tally.sent += 1;
                eprintln!("no reply from {}: {}", args.peer, render::clean(&why));
            }
            Err(error) => return Err(control_failure(error)),
        }
        if args.until_direct && tally.direct {
            break;
        }
    }
    if !args.json {
        output::data(&(tally.summary(&args.peer) + "\n"))?;
    }
    Ok(tally.exit(args.until_direct))
}

impl Tally {
    fn add(&mut self, pong: &Pong) {
        self.sent += 1;
        if pong.rtt_ms.is_some() {
            self.answered += 1;
            self.direct |= pong.path.kind.is_direct();
            self.last = Some(pong.path.clone());
        }
    }

    fn summary(&self, peer: &str) -> String {
        let counts = format!("{} sent, {} answered", self.sent, self.answered);
        match self.last.as_ref().map(|path| path.kind) {
            None => format!("{counts}: {peer} did not reply; `ntcp-overlay status -v` may say why"),
            Some(Kind::Relay | Kind::None) if !self.direct => {
                format!("{counts}: not direct; `ntcp-overlay status -v` says why")
            }
            Some(Kind::Relay | Kind::None) => format!("{counts}: relayed now, was direct before"),
            Some(Kind::DirectUdp) => format!("{counts}: direct over UDP"),
            Some(Kind::DirectTcp) => format!("{counts}: direct over TCP"),
        }
    }

    fn exit(&self, until_direct: bool) -> Exit {
        match (self.answered, until_direct && !self.direct) {
            (0, _) => Exit::Failed,
            (_, true) => Exit::NotDirect,
            (_, false) => Exit::Ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pong(kind: Kind, rtt_ms: Option<f64>) -> Pong {
        let path =
            Path { kind, endpoint: None, method: None, round: None, relay: None, relay_transport: None };
        Pong { name: "nas".to_owned(), address: "10.77.0.2".parse().unwrap(), path, rtt_ms, problem: None }
    }

    #[test]
    fn the_exit_code_says_whether_and_how_a_reply_came() {
        for (pongs, until_direct, exit, words) in [
            (&[][..], false, Exit::Failed, "did not reply"),
            (&[pong(Kind::None, None)], false, Exit::Failed, "1 sent, 0 answered: nas did not reply"),
            (&[pong(Kind::Relay, Some(9.0))], false, Exit::Ok, "1 sent, 1 answered: not direct"),
            (&[pong(Kind::Relay, Some(9.0))], true, Exit::NotDirect, "not direct"),
            (
                &[pong(Kind::Relay, Some(9.0)), pong(Kind::DirectUdp, Some(1.0))],
                true,
                Exit::Ok,
                "direct over UDP",
            ),
            (
                &[pong(Kind::DirectTcp, Some(1.0)), pong(Kind::None, None)],
                true,
                Exit::Ok,
                "2 sent, 1 answered: direct over TCP",
            ),
            (
                &[pong(Kind::DirectUdp, Some(1.0)), pong(Kind::Relay, Some(1.0))],
                false,
                Exit::Ok,
                "was direct before",
            ),
        ] {
            let mut tally = Tally::default();
            pongs.iter().for_each(|pong| tally.add(pong));
            assert_eq!(tally.exit(until_direct), exit, "{pongs:?}");
            let summary = tally.summary("nas");
            assert!(summary.contains(words), "{summary}");
        }
    }
}
