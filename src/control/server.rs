//! The daemon's end of the control socket: who may ask, how much, how long; the answers come from the engine.

use std::fs;
use std::io;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::api::Envelope;
use super::api::Reason;
use super::api::Reply;
use super::api::Request;
use super::api::SCHEMA;

/// Longest request, bytes: a revocation list of 2,000 serials in base64 is 43 KiB.
pub const MAX_REQUEST: u64 = 64 * 1024;
/// Commands at a time. People type, scripts poll; more is a mistake.
pub const MAX_CONNECTIONS: usize = 32;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// `sun_path` has 108 bytes with the zero at the end, and binding goes through a longer name.
const MAX_PATH: usize = 100;

/// A request on its way to the engine, and the way back. A dropped `reply` is answered for.
#[derive(Debug)]
pub struct Ask {
    /// What is wanted; whoever asks may.
    pub request: Request,
    /// Takes exactly one reply.
    pub reply: oneshot::Sender<Reply>,
}

/// The bound socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlServer {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Who is on the other end, as the kernel says (`SO_PEERCRED`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Asker {
    uid: u32,
}

impl Asker {
    /// Reads are for everybody whom the socket's mode let in, writes for root and the daemon's own user.
    fn may(self, request: &Request, daemon_uid: u32) -> bool {
        !request.is_write() || self.uid == 0 || self.uid == daemon_uid
    }
}

impl ControlServer {
    /// Takes the socket at `path`: makes the directory (0755), refuses if a daemon answers there already, replaces what a
    /// dead one left. Needs no runtime.
    ///
    /// # Errors
    /// In words, for the user.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        anyhow::ensure!(
            path.as_os_str().len() <= MAX_PATH,
            "the control socket's path {shown} is too long: {MAX_PATH} bytes are the most"
        );
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            anyhow::bail!(
                "another ntcp-overlay answers at {shown}: stop it with `ntcp-overlay down`, or give this one its own --control and --state-dir"
            );
        }
        let stranger = fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_socket());
        anyhow::ensure!(
            !stranger,
            "{shown} is in the way of the control socket and is none: remove it, or choose another --control"
        );
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
            made.with_context(|| format!("making {} for the control socket", dir.display()))?;
        }
        // Bound under another name and renamed once its mode is right: nobody can connect before, and the rename
        // replaces what a dead daemon left.
        let fresh = path.with_extension(format!("{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let bound = std::os::unix::net::UnixListener::bind(&fresh)
            .and_then(|listener| {
                fs::set_permissions(&fresh, fs::Permissions::from_mode(0o660))?;
                listener.set_nonblocking(true)?;
                let inode = fs::symlink_metadata(&fresh)?.ino();
                fs::rename(&fresh, path)?;
                Ok((listener, inode))
            })
            .inspect_err(|_| drop(fs::remove_file(&fresh)));
        let (listener, inode) = bound.with_context(|| format!("listening on the control socket {shown}"))?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Serves until the future is dropped; each request becomes an [`Ask`].
    ///
    /// # Errors
    /// When the socket itself fails.
    pub async fn run(self, asks: mpsc::Sender<Ask>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let mut connections = JoinSet::new();
        loop {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(serve(stream, asks.clone()));
                }
                Ok(_) => tracing::debug!("control connection refused: {MAX_CONNECTIONS} are open"),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors, say: others will free some.
                    tracing::warn!(%error, "accepting a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Not if a successor has replaced it.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// One connection: request, reply, request, reply, until either side has enough.
async fn serve(stream: UnixStream, asks: mpsc::Sender<Ask>) {
    let Ok(cred) = stream.peer_cred() else { return };
    let asker = Asker { uid: cred.uid() };
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let (reply, more) = match timeout(IDLE, read_line(&mut read)).await {
            Err(_) | Ok(Err(_) | Ok(Line::End)) => return,
            Ok(Ok(Line::TooLong)) => {
                (Reply::refused(Reason::Malformed, format!("a request may have {MAX_REQUEST} bytes")), false)
            }
            Ok(Ok(Line::Whole(line))) => (answer(&line, asker, &asks).await, true),
        };
        let mut text = serde_json::to_vec(&reply).expect("replies have no maps with odd keys");
        text.push(b'\n');
        if !matches!(timeout(IDLE, write.write_all(&text)).await, Ok(Ok(()))) || !more {
            return;
        }
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

async fn read_line(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Line> {
    let mut line = Vec::new();
    read.take(MAX_REQUEST + 1).read_until(b'\n', &mut line).await?;
    Ok(match line.pop() {
        None => Line::End,
        Some(b'\n') => Line::Whole(line),
        Some(_) if line.len() as u64 >= MAX_REQUEST => Line::TooLong,
        // The asker closed its side in the middle of a line.
        Some(_) => Line::End,
    })
}

async fn answer(line: &[u8], asker: Asker, asks: &mpsc::Sender<Ask>) -> Reply {
    let request = match parse(line) {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    let daemon = rustix::process::geteuid().as_raw();
    if !asker.may(&request, daemon) {
        tracing::warn!(uid = asker.uid, "control request without permission");
        return Reply::refused(Reason::Permission, "only root may do that: use sudo");
    }
    let limit = request.time_limit();
    let (reply, answered) = oneshot::channel();
    if asks.send(Ask { request, reply }).await.is_err() {
        return Reply::refused(Reason::Failed, "ntcp-overlay is shutting down");
    }
    match timeout(limit, answered).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => Reply::refused(Reason::Failed, "ntcp-overlay is shutting down"),
        Err(_) => Reply::refused(Reason::Timeout, "ntcp-overlay took too long to answer"),
    }
}

/// Reads the schema first, so that a newer command gets a sensible answer from an older daemon.
fn parse(line: &[u8]) -> Result<Request, Box<Reply>> {
    let malformed = |text: String| Box::new(Reply::refused(Reason::Malformed, text));
    let value: serde_json::Value =
        serde_json::from_slice(line).map_err(|error| malformed(format!("not JSON: {error}")))?;
    if value.get("schema").and_then(serde_json::Value::as_u64) != Some(u64::from(SCHEMA)) {
        return Err(malformed(format!(
            "this daemon speaks schema {SCHEMA} (version {}): use the ntcp-overlay command of the same version",
            env!("CARGO_PKG_VERSION")
        )));
    }
    let envelope: Envelope =
        serde_json::from_value(value).map_err(|error| malformed(format!("not a request: {error}")))?;
    Ok(envelope.request)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
