//! The commands' end of the control socket: blocking, one request at a time.

use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::api::Envelope;
use super::api::Reason;
use super::api::Reply;
use super::api::Request;
use super::api::SCHEMA;

/// Longest reply, bytes: 65,534 peers of at most 1 KiB.
const MAX_REPLY: u64 = 64 << 20;
/// On top of the daemon's own limit, so that its words arrive before ours.
const SLACK: Duration = Duration::from_secs(3);

/// Why there is no answer; the words are for the user.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("ntcp-overlay is not running: start it with `sudo ntcp-overlay up`")]
    NotRunning,
    /// The socket's mode or the daemon itself says no.
    #[error("{0}")]
    Permission(String),
    /// It did not answer in time.
    #[error("{0}")]
    Timeout(String),
    /// It answered that it cannot be done.
    #[error("{0}")]
    Failed(String),
    /// It answered something that is no answer.
    #[error("{0}")]
    Protocol(String),
}

/// Asks the daemon at `socket` and waits for its reply; refusals are errors.
///
/// # Errors
/// See [`ControlError`].
pub fn ask(socket: &Path, request: Request) -> Result<Reply, ControlError> {
    let patience = request.time_limit() + SLACK;
    let reply = exchange(socket, request, patience).map_err(|error| in_words(socket, &error))?;
    match reply {
        Reply::Refused { reason: Reason::Permission, message } => Err(ControlError::Permission(message)),
        Reply::Refused { reason: Reason::Timeout, message } => Err(ControlError::Timeout(message)),
        Reply::Refused { reason: Reason::Failed, message } => Err(ControlError::Failed(message)),
        Reply::Refused { reason: Reason::Malformed, message } => Err(ControlError::Protocol(message)),
        reply => Ok(reply),
    }
}

fn exchange(socket: &Path, request: Request, patience: Duration) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(&Envelope { schema: SCHEMA, request })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = Vec::new();
    BufReader::new(stream).take(MAX_REPLY).read_until(b'\n', &mut reply)?;
    if reply.last() != Some(&b'\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&reply)?)
}

fn in_words(socket: &Path, error: &io::Error) -> ControlError {
    let shown = socket.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ControlError::NotRunning,
        ErrorKind::PermissionDenied => {
            ControlError::Permission(format!("not allowed to talk to ntcp-overlay at {shown}: use sudo"))
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            ControlError::Timeout(format!("ntcp-overlay at {shown} does not answer: see its log"))
        }
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            ControlError::Failed(format!(
                "ntcp-overlay at {shown} closed the connection: it is busy or going down; try again"
            ))
        }
        _ => ControlError::Protocol(format!("talking to ntcp-overlay at {shown}: {error}")),
    }
}
