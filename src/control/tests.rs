//! Both ends of the control socket against each other.

use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::net::UnixStream as Blocking;

use super::*;
use crate::control::client;
use crate::control::client::ControlError;

/// A daemon in a thread that answers with `reply`, and its socket.
struct Daemon {
    dir: tempfile::TempDir,
    _stop: oneshot::Sender<()>,
}

impl Daemon {
    fn new(reply: impl Fn(Request) -> Option<Reply> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = ControlServer::bind(&dir.path().join("run/control.sock")).unwrap();
        let (stop, mut stopped) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (asks, mut asked) = mpsc::channel(1);
                let serving = tokio::spawn(server.run(asks));
                loop {
                    tokio::select! {
                        _ = &mut stopped => break,
                        Some(ask) = asked.recv() => {
                            if let Some(answer) = reply(ask.request) {
                                ask.reply.send(answer).unwrap();
                            }
                        }
                    }
                }
                serving.abort();
            });
        });
        Self { dir, _stop: stop }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/control.sock")
    }

    /// Sends raw bytes, closes the sending side, answers what comes back.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = Blocking::connect(self.socket()).unwrap();
        // The server may close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }
}

fn version() -> Reply {
    Reply::Version { version: "9".to_owned(), pid: 1 }
}

#[test]
fn a_request_is_answered_and_the_socket_is_for_its_group() {
    let daemon = Daemon::new(|_| Some(version()));
    assert_eq!(client::ask(&daemon.socket(), Request::Version {}).unwrap(), version());
    let mode = fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn one_connection_may_ask_twice() {
    let daemon = Daemon::new(|_| Some(version()));
    let line = "{\"schema\":1,\"request\":{\"op\":\"version\"}}\n";
    assert_eq!(daemon.raw(line.repeat(2).as_bytes()).lines().count(), 2);
}

#[test]
fn garbage_gets_a_refusal_and_the_daemon_goes_on() {
    let daemon = Daemon::new(|_| Some(version()));
    for (bytes, answer) in [
        (b"\xff\xfe\n".to_vec(), "not JSON"),
        (b"{}\n".to_vec(), "speaks schema 1"),
        (b"{\"schema\":2,\"request\":{\"op\":\"version\"}}\n".to_vec(), "speaks schema 1"),
        (b"{\"schema\":1,\"request\":{\"op\":\"dance\"}}\n".to_vec(), "not a request"),
        (vec![b'x'; 70_000], "may have 65536 bytes"),
    ] {
        let reply = daemon.raw(&bytes);
        assert!(reply.contains(answer), "{reply}");
    }
    assert_eq!(daemon.raw(b"{\"schema\":1,"), "", "half a line is no request");
    assert_eq!(client::ask(&daemon.socket(), Request::Version {}).unwrap(), version());
}

#[test]
fn a_refusal_reaches_the_command_as_an_error() {
    let daemon = Daemon::new(|_| Some(Reply::refused(Reason::Failed, "no such member: x")));
    let error = client::ask(&daemon.socket(), Request::Revoke { name: "x".to_owned() }).unwrap_err();
    assert!(matches!(&error, ControlError::Failed(text) if text == "no such member: x"), "{error}");
}

#[test]
fn an_engine_that_drops_the_question_is_answered_for() {
    let daemon = Daemon::new(|_| None);
    let error = client::ask(&daemon.socket(), Request::Status {}).unwrap_err();
    assert_eq!(error.to_string(), "ntcp-overlay is shutting down");
}

#[test]
fn without_a_daemon_the_user_reads_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let ask = || client::ask(&socket, Request::Status {}).unwrap_err();
    assert!(matches!(ask(), ControlError::NotRunning));
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(matches!(ask(), ControlError::NotRunning), "the socket of a dead daemon");
}

#[test]
fn a_live_daemon_keeps_its_socket_and_a_dead_ones_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let first = ControlServer::bind(&socket).unwrap();
    let error = ControlServer::bind(&socket).unwrap_err().to_string();
    assert!(error.starts_with("another ntcp-overlay answers at "), "{error}");
    drop(first);
    assert!(!socket.exists(), "the socket goes with its daemon");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_refused_in_words() {
    let error = ControlServer::bind(Path::new(&format!("/tmp/{}", "x".repeat(120)))).unwrap_err().to_string();
    assert!(error.contains("too long"), "{error}");
}

#[test]
fn only_root_and_the_daemons_user_may_change_something() {
    for (uid, daemon, request, may) in [
        (0, 500, Request::Down {}, true),
        (500, 500, Request::Down {}, true),
        (501, 500, Request::Down {}, false),
        (501, 0, Request::Down {}, false),
        (501, 500, Request::Status {}, true),
    ] {
        assert_eq!(Asker { uid }.may(&request, daemon), may, "{uid} {daemon} {request:?}");
    }
}

#[test]
fn a_file_that_is_no_socket_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("important");
    fs::write(&file, "data").unwrap();
    let error = ControlServer::bind(&file).unwrap_err().to_string();
    assert!(error.contains("in the way"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "data");
}
