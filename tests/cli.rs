//! The commands as a user meets them: exit codes, words, and what goes to which stream. Nothing here makes an interface.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ntcp-overlay");

/// What a command did.
#[derive(Debug)]
struct Outcome {
    code: i32,
    out: String,
    err: String,
}

/// A place where no other instance is.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NTCP_")) {
            command.env_remove(name);
        }
        // So that no command of a test ever talks to an instance that the machine really runs.
        command.env("NTCP_CONTROL", self.path("control.sock")).env("NTCP_STATE_DIR", self.path("state"));
        command.env_remove("RUST_LOG").current_dir(self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Outcome {
        finish(self.command(PROGRAM).args(args))
    }

    /// The program, run by a user without privileges; `None`, with the reason printed, if that cannot be done here.
    fn as_somebody(&self) -> Option<Command> {
        // Somebody else has to be able to reach it. Copied by another process: what this one has open for writing would be
        // "busy" in whatever another test starts meanwhile.
        let program = self.path("program");
        assert!(Command::new("cp").arg(PROGRAM).arg(&program).status().unwrap().success());
        for path in [self.dir.path(), &program] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        if !rustix::process::geteuid().is_root() {
            return Some(self.command(program.to_str().unwrap()));
        }
        if !Path::new("/usr/bin/setpriv").exists() {
            println!("skipped: root cannot become somebody else without setpriv (Debian package util-linux)");
            return None;
        }
        let mut command = self.command("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
        Some(command)
    }

    /// A daemon that answers one request on the control socket with `reply`, and hands over what it was asked.
    fn daemon(&self, reply: &'static str) -> thread::JoinHandle<String> {
        let listener = UnixListener::bind(self.path("control.sock")).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(format!("{reply}\n").as_bytes()).unwrap();
            line
        })
    }
}

fn finish(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_configuration_without_mistakes_is_ok() {
    let place = Place::new();
    let file = place.write("overlay.toml", "[member]\nname = \"nas\"\n");
    let checked = place.run(&["check-config", &file]);
    assert_eq!((checked.code, checked.out, checked.err), (0, format!("{file}: ok\n"), String::new()));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/overlay.toml.example");
    assert_eq!(place.run(&["check-config", example]).code, 0);
}

#[test]
fn a_mistake_in_the_configuration_is_exit_3_with_line_column_and_advice() {
    let place = Place::new();
    for (text, words) in [
        (
            "[member]\nname = \"a\"\nlisten_prot = 5\n",
            "line 3, column 1: unknown key `listen_prot` in [member]: did you mean `listen_port`?",
        ),
        ("[member]\nudp = \"no\"\n", "line 2, column 7: `udp` must be true or false, and this is a text"),
        (
            "[network]\nprefix = \"10.77.0.0\"\n",
            "line 2, column 10: `prefix` cannot be \"10.77.0.0\": write it like \"10.77.0.0/16\"",
        ),
        ("[member\n", "line 1, column 8"),
        ("[member]\njoin = \"ntcp1-garbage\"\n", "this is not a join token"),
        ("[member]\njoin = \"file:/nonexistent/token\"\n", "the join token in /nonexistent/token"),
    ] {
        let file = place.write("overlay.toml", text);
        for args in [&["check-config", &file][..], &["up", "--config", &file], &["serve", "--config", &file]]
        {
            let run = place.run(args);
            assert_eq!((run.code, run.out.as_str()), (3, ""), "{args:?} {run:?}");
            assert!(run.err.contains(words), "{args:?} {run:?}");
        }
    }
    let missing = place.run(&["check-config", "/nonexistent.toml"]);
    assert_eq!(missing.code, 3);
    assert!(missing.err.contains("/nonexistent.toml: cannot be read"), "{missing:?}");
}

#[test]
fn a_secret_in_a_file_that_everybody_may_read_gets_a_warning() {
    let place = Place::new();
    let file = place.write(
        "overlay.toml",
        "[[wireguard_peer]]\nname = \"p\"\npublic_key = \"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=\"\naddresses = [\"10.77.9.9\"]\npreshared_key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n",
    );
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(place.run(&["check-config", &file]).err.contains("holds a secret"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(place.run(&["check-config", &file]).err, "");
}

#[test]
fn nonsense_on_the_command_line_is_exit_2() {
    let place = Place::new();
    for args in [
        &["dance"][..],
        &[],
        &["up", "--name", "Not A Name"],
        &["up", "--advertise", "host:port"],
        &["invite", "--ttl", "soon"],
        &["ping", "nas", "-c", "0"],
        &["up", "--config"],
        &["completions", "tcsh"],
    ] {
        let run = place.run(args);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{args:?} {run:?}");
    }
    assert!(place.run(&["stauts"]).err.contains("status"), "the nearest command is named");
}

#[test]
fn a_garbage_token_is_refused_wherever_it_comes_from() {
    let place = Place::new();
    let file = place.write("token", "ntcp1-AAAA\n");
    let words = "this is not a join token";
    for run in [
        place.run(&["up", "--join", "garbage"]),
        place.run(&["up", "--join", &format!("file:{file}")]),
        finish(place.command(PROGRAM).arg("up").env("NTCP_JOIN", "garbage")),
        finish(place.command(PROGRAM).arg("up").env("NTCP_JOIN_FILE", &file)),
    ] {
        assert_eq!(run.code, 3, "{run:?}");
        assert!(run.err.contains(words), "{run:?}");
        assert!(!run.err.contains("garbage") && !run.err.contains("AAAA"), "a token is a secret: {run:?}");
    }
}

#[test]
fn without_a_daemon_every_command_says_how_to_start_it() {
    let place = Place::new();
    for args in [&["status"][..], &["status", "--json"], &["peers"], &["ping", "nas"], &["invite"], &["down"]]
    {
        let run = place.run(args);
        assert_eq!(
            (run.code, run.out.as_str(), run.err.as_str()),
            (1, "", "ntcp-overlay is not running: start it with `sudo ntcp-overlay up`\n"),
            "{args:?}"
        );
    }
}

#[test]
fn serve_without_a_role_says_what_to_write() {
    let place = Place::new();
    let file = place.write("overlay.toml", "");
    let run = place.run(&["serve", "--config", &file]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("enabled = true"), "{run:?}");
}

#[test]
fn up_without_privileges_is_exit_4_and_says_sudo() {
    let place = Place::new();
    let Some(mut command) = place.as_somebody() else { return };
    let run = finish(command.arg("up"));
    assert_eq!((run.code, run.out.as_str()), (4, ""), "{run:?}");
    assert!(run.err.contains("sudo ntcp-overlay up"), "{run:?}");
}

#[test]
fn a_socket_that_may_not_be_opened_is_exit_4_and_says_sudo() {
    let place = Place::new();
    let Some(mut command) = place.as_somebody() else { return };
    let _listener = UnixListener::bind(place.path("control.sock")).unwrap();
    fs::set_permissions(place.path("control.sock"), fs::Permissions::from_mode(0o000)).unwrap();
    let run = finish(command.arg("status"));
    assert_eq!((run.code, run.out.as_str()), (4, ""), "{run:?}");
    assert!(run.err.contains("use sudo"), "{run:?}");
}

#[test]
fn an_invite_prints_the_token_alone_on_stdout() {
    let place = Place::new();
    let daemon = place.daemon(r#"{"kind":"invite","token":"ntcp1-abc","ttl_s":86400}"#);
    let run = place.run(&["invite", "--name", "nas", "--groups", "a,b", "--ttl", "2h"]);
    assert_eq!((run.code, run.out.as_str()), (0, "ntcp1-abc\n"), "{run:?}");
    assert!(run.err.contains("1d"), "{run:?}");
    assert_eq!(
        daemon.join().unwrap(),
        "{\"schema\":1,\"request\":{\"op\":\"invite\",\"name\":\"nas\",\"groups\":[\"a\",\"b\"],\"ttl_s\":7200,\"relay\":false,\"may_relay\":false}}\n"
    );
}

#[test]
fn a_refusal_of_the_daemon_sets_the_exit_code() {
    for (reply, code, words) in [
        (
            r#"{"kind":"refused","reason":"permission","message":"only root may do that: use sudo"}"#,
            4,
            "use sudo",
        ),
        (r#"{"kind":"refused","reason":"timeout","message":"took too long"}"#, 5, "took too long"),
        (r#"{"kind":"refused","reason":"failed","message":"no broker here"}"#, 1, "no broker here"),
        (r#"{"kind":"juggling"}"#, 1, "talking to ntcp-overlay"),
    ] {
        let place = Place::new();
        let daemon = place.daemon(reply);
        let run = place.run(&["invite"]);
        assert_eq!((run.code, run.out.as_str()), (code, ""), "{run:?}");
        assert!(run.err.contains(words), "{run:?}");
        daemon.join().unwrap();
    }
}

#[test]
fn a_ping_over_a_relay_fails_where_a_direct_path_was_asked_for() {
    const PONG: &str = r#"{"kind":"pong","name":"nas","address":"10.77.0.2","path":"relay","endpoint":"203.0.113.1:6061","relay":"hub","relay_transport":"udp","rtt_ms":31.5,"problem":null}"#;
    for (args, code) in
        [(&["ping", "nas", "-c", "1"][..], 0), (&["ping", "nas", "-c", "1", "--until-direct"], 2)]
    {
        let place = Place::new();
        let daemon = place.daemon(PONG);
        let run = place.run(args);
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.out.starts_with("pong from nas (10.77.0.2) via relay hub(udp) in 31.5 ms\n"), "{run:?}");
        daemon.join().unwrap();
    }
}

#[test]
fn commands_find_the_socket_that_the_configuration_names() {
    let place = Place::new();
    let daemon = place.daemon(r#"{"kind":"invite","token":"ntcp1-abc","ttl_s":60}"#);
    // A mistake elsewhere in the file does not matter to them.
    let text = format!("[member]\nmtu = 1\n[control]\nsocket = {:?}\n", place.path("control.sock"));
    let file = place.write("overlay.toml", &text);
    let run =
        finish(place.command(PROGRAM).env_remove("NTCP_CONTROL").env("NTCP_CONFIG", file).arg("invite"));
    assert_eq!((run.code, run.out.as_str()), (0, "ntcp1-abc\n"), "{run:?}");
    daemon.join().unwrap();
}

#[test]
fn version_and_completions_go_to_stdout() {
    let place = Place::new();
    let version = concat!("ntcp-overlay ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(place.run(&["version"]).out, version);
    assert_eq!(place.run(&["--version"]).out, version);
    for shell in ["bash", "zsh", "fish"] {
        let run = place.run(&["completions", shell]);
        assert_eq!(run.code, 0);
        assert!(run.out.contains("check-config"), "{shell}");
    }
}
