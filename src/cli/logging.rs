//! Where the daemon's log goes: stderr, as the journal or a terminal likes it.

use std::io;
use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Starts logging; `RUST_LOG` beats `level`.
pub(super) fn start(level: Level) {
    // Other people's crates only speak up when something is wrong.
    let usual = || EnvFilter::new(format!("warn,ntcp_overlay={}", level.to_string().to_lowercase()));
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(&directives).unwrap_or_else(|error| {
            eprintln!("ntcp-overlay: RUST_LOG is ignored: {error}");
            usual()
        }),
        _ => usual(),
    };
    let log = fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // systemd sets JOURNAL_STREAM; the journal has its own clock and no use for colour. A second start (in tests) is
    // no error.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().with_ansi(false).try_init()
    } else {
        log.with_ansi(io::stderr().is_terminal()).try_init()
    };
}
