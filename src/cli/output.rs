//! The two streams: data to stdout, and whether colour is welcome there.

use std::io;
use std::io::ErrorKind;
use std::io::IsTerminal as _;
use std::io::Write as _;

use anyhow::Context as _;

use crate::config::exit::Exit;

/// Writes data to stdout. A reader that has seen enough (`| head`) is no error.
pub(super) fn data(text: &str) -> anyhow::Result<Exit> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("writing to stdout"),
        _ => Ok(Exit::Ok),
    }
}

/// The value as JSON with one field a line.
pub(super) fn json(value: &impl serde::Serialize) -> anyhow::Result<Exit> {
    data(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Whether stdout is a terminal whose owner did not say NO_COLOR (no-color.org).
pub(super) fn is_colourful() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}
