//! Debian's own OpenSSH between two machines of a lab: fresh keys, nothing of the machine's own configuration.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::ns::Namespace;
use crate::process::Process;
use crate::tools;

/// A running server, and what a client needs to log in.
#[derive(Debug)]
pub struct SshServer {
    /// The server itself.
    pub process: Process,
    /// Private key that it lets in.
    identity: PathBuf,
    /// Line for a client's known hosts: `* ssh-ed25519 …`.
    host_key: String,
}

impl SshServer {
    /// Starts `sshd` on this machine, listening on one address only.
    pub fn start(on: &Namespace, listen: IpAddr) -> Result<Self> {
        let dir = on.files()?.join("sshd");
        fs::create_dir_all(&dir)?;
        for key in ["host_key", "user_key"] {
            let file = dir.join(key);
            if !file.exists() {
                on.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", path(&file)?])?;
            }
        }
        // Without PAM sshd refuses an account whose password is locked by '!', as cloud images lock root's.
        let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
        let locked = shadow.lines().any(|line| line.starts_with("root:!"));
        let config = dir.join("sshd_config");
        fs::write(
            &config,
            format!(
                "ListenAddress {listen}\nPort 22\nHostKey {dir}/host_key\nAuthorizedKeysFile {dir}/user_key.pub\n\
                 PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 StrictModes no\nUsePAM {pam}\nUseDNS no\nPidFile none\nPrintMotd no\nPrintLastLog no\n",
                dir = dir.display(),
                pam = if locked { "yes" } else { "no" },
            ),
        )?;
        let sshd = tools::find("sshd").context("no sshd")?;
        let mut process = on.spawn(&[path(&sshd)?, "-D", "-e", "-f", path(&config)?])?;
        process.wait_for_line("Server listening", Duration::from_secs(10))?;
        let public = fs::read_to_string(dir.join("host_key.pub"))?;
        Ok(Self { process, identity: dir.join("user_key"), host_key: format!("* {public}") })
    }

    /// The words that run `command` there, to be started on another machine.
    pub fn login(&self, client: &Namespace, target: &str, command: &str) -> Result<Vec<String>> {
        let known = client.files()?.join("known_hosts");
        fs::write(&known, &self.host_key)?;
        let options = [
            "-F/dev/null".to_owned(),
            format!("-i{}", self.identity.display()),
            format!("-oUserKnownHostsFile={}", known.display()),
            "-oGlobalKnownHostsFile=/dev/null".to_owned(),
            "-oStrictHostKeyChecking=yes".to_owned(),
            "-oIdentitiesOnly=yes".to_owned(),
            "-oBatchMode=yes".to_owned(),
            "-oConnectTimeout=15".to_owned(),
        ];
        let mut words = vec!["ssh".to_owned()];
        words.extend(options);
        words.extend([format!("root@{target}"), command.to_owned()]);
        Ok(words)
    }

    /// Runs a command there and returns what it printed.
    pub fn run(&self, client: &Namespace, target: &str, command: &str) -> Result<String> {
        let words = self.login(client, target, command)?;
        client.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts a command there that goes on until the session is ended.
    pub fn session(&self, client: &Namespace, target: &str, command: &str) -> Result<Session> {
        let words = self.login(client, target, command)?;
        Ok(Session { process: client.spawn(&words.iter().map(String::as_str).collect::<Vec<_>>())? })
    }
}

fn path(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path of the lab is not UTF-8")
}

/// What a shell on the far side does in [`Session`]: says who it is, then counts five times a second.
pub const COUNTER: &str = "echo shell $$; i=0; while sleep 0.2; do i=$((i+1)); echo tick $i; done";

/// A login that counts: whether it lives, and whether it is still the same one, can be seen from its output.
#[derive(Debug)]
pub struct Session {
    /// The client.
    pub process: Process,
}

impl Session {
    /// The last number counted; an error if numbers are missing, the shell was another one, or the session has ended.
    pub fn ticks(&mut self) -> Result<u64> {
        let log = self.process.log();
        anyhow::ensure!(self.process.ended()?.is_none(), "the ssh session has ended; it said:\n{log}");
        let shells = log.lines().filter(|line| line.starts_with("shell ")).count();
        anyhow::ensure!(shells <= 1, "more than one shell in one session:\n{log}");
        let mut last = 0;
        for number in log.lines().filter_map(|line| line.strip_prefix("tick ")?.parse::<u64>().ok()) {
            anyhow::ensure!(number == last + 1, "the session lost a line between {last} and {number}");
            last = number;
        }
        Ok(last)
    }

    /// Waits until it has counted `more` numbers from now, and returns how far it is then.
    pub fn advance(&mut self, more: u64, limit: Duration) -> Result<u64> {
        let goal = self.ticks()? + more;
        crate::interrupt::wait_for(&format!("tick {goal} of the ssh session"), limit, || {
            Ok(Some(self.ticks()?).filter(|now| *now >= goal))
        })
    }
}
