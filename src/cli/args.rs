//! The command line as clap sees it; no logic.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;

use crate::cli::cert::CertArgs;
use crate::config::load;
use crate::config::settings::BROKER_PORT;
use crate::config::settings::Overrides;
use crate::config::settings::STUN_PORT;
use crate::config::settings::Secret;
use crate::config::units;
use crate::identity::names::GroupName;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;
use crate::wire::enroll::BrokerAddr;

/// A mesh VPN that stays direct where others fall back to a relay.
#[derive(Parser, Debug)]
#[command(name = "ntcp-overlay", version, propagate_version = false, max_term_width = 100)]
#[command(after_help = "\
First machine:   sudo ntcp-overlay up
Other machines:  sudo ntcp-overlay up --join <token>     (the first one prints the token)

Exit codes: 0 ok, 1 failed or not running, 2 usage, 3 configuration invalid, 4 permission, 5 timeout.")]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Bring this machine into its network, creating one if there is none, and stay until stopped
    Up(UpArgs),
    /// Run the broker, relay and STUN roles of this machine, without root; with --join it becomes a relay
    Serve(ServeArgs),
    /// Stop the running daemon
    Down(DownArgs),
    /// Show this member, its brokers and the path to every peer
    Status(StatusArgs),
    /// List the members of the network
    Peers(PeersArgs),
    /// Probe the path to a peer, connecting first if need be
    Ping(PingArgs),
    /// Measure how the NATs before this machine treat UDP and TCP, and what to expect of direct connections
    Netcheck(NetcheckArgs),
    /// Print a token that lets one more machine join
    Invite(InviteArgs),
    /// Create, sign, show and revoke certificates
    Cert(CertArgs),
    /// Check a configuration without starting anything
    CheckConfig(CheckConfigArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the version
    Version,
}

/// Where the configuration is.
#[derive(Args, Debug)]
pub(super) struct ConfigArg {
    /// Configuration file [default: /etc/ntcp-overlay/overlay.toml if it exists]
    #[arg(long, value_name = "FILE", env = "NTCP_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

/// How to reach the daemon.
#[derive(Args, Debug)]
pub(super) struct ControlArgs {
    /// Control socket of the daemon [default: as configured, or /run/ntcp-overlay/control.sock]
    #[arg(long, value_name = "SOCK", env = "NTCP_CONTROL")]
    control: Option<PathBuf>,
}

impl ControlArgs {
    pub(super) fn socket(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| load::usual_places().control)
    }
}

/// What every daemon is started with.
#[derive(Args, Debug)]
pub(super) struct StartArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Join the network of this invite: the token, or file:PATH. Keep it out of `ps` with NTCP_JOIN or NTCP_JOIN_FILE
    #[arg(long, value_name = "TOKEN", env = "NTCP_JOIN", hide_env_values = true)]
    join: Option<String>,
    /// Set by NTCP_JOIN_FILE alone
    #[arg(long, hide = true, env = "NTCP_JOIN_FILE")]
    join_file: Option<PathBuf>,
    /// This machine's name in the network [default: the host name]
    #[arg(long, env = "NTCP_NAME", value_parser = str::parse::<MemberName>)]
    name: Option<MemberName>,
    /// Where keys, certificates and the broker's database are kept [default: /var/lib/ntcp-overlay]
    #[arg(long, value_name = "DIR", env = "NTCP_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Control socket to listen on [default: /run/ntcp-overlay/control.sock]
    #[arg(long, value_name = "SOCK", env = "NTCP_CONTROL")]
    control: Option<PathBuf>,
}

impl StartArgs {
    /// The configuration file, if one is named, and what wins over it.
    pub(super) fn into_overrides(self) -> (Option<PathBuf>, Overrides) {
        // Set but empty is how unit files say "none".
        let token = self.join.as_deref().filter(|token| !token.trim().is_empty());
        let join = token.map(Secret::parse).or_else(|| self.join_file.map(Secret::File));
        let (state_dir, control, name) = (self.state_dir, self.control, self.name);
        (self.config.config, Overrides { state_dir, control, name, join, ..Overrides::default() })
    }
}

#[derive(Args, Debug)]
pub(super) struct UpArgs {
    #[command(flatten)]
    pub(super) start: StartArgs,
    /// What a network that is created here is called
    #[arg(long, env = "NTCP_NETWORK", value_parser = str::parse::<NetworkName>)]
    pub(super) network: Option<NetworkName>,
    /// How others reach this machine's broker, if it has one; may be repeated
    #[arg(long, value_name = "HOST:PORT", env = "NTCP_ADVERTISE", value_delimiter = ',', value_parser = endpoint)]
    pub(super) advertise: Vec<BrokerAddr>,
    /// Keep the members' names in /etc/hosts
    #[arg(long)]
    pub(super) hosts: bool,
    /// Go into the background once the network is up
    #[arg(long)]
    pub(super) detach: bool,
    /// This is the process in the background
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(super) in_background: bool,
}

/// Server roles; `--join` wants an invite for a relay (`ntcp-overlay invite --relay`).
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) start: StartArgs,
}

#[derive(Args, Debug)]
pub(super) struct DownArgs {
    #[command(flatten)]
    pub(super) control: ControlArgs,
    /// Also remove what a daemon that was killed left behind (interface, routes, names)
    #[arg(long)]
    pub(super) cleanup: bool,
    /// With --cleanup: whose leftovers to remove [default: as configured, or /var/lib/ntcp-overlay]
    #[arg(long, value_name = "DIR", env = "NTCP_STATE_DIR")]
    pub(super) state_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(super) json: bool,
    /// Also say why a path is not direct, keys, NATs and counters
    #[arg(short, long)]
    pub(super) verbose: bool,
    #[command(flatten)]
    pub(super) control: ControlArgs,
}

#[derive(Args, Debug)]
pub(super) struct PeersArgs {
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) control: ControlArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: 0 a reply came, 1 none came, 2 replies came but none directly though --until-direct asked for it.
A reply here while the system's own ping gets none means that the peer's firewall drops ICMP.")]
pub(super) struct PingArgs {
    /// Name or overlay address
    pub(super) peer: String,
    /// How many probes [default: 4; 15 with --until-direct]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) count: Option<u32>,
    /// Seconds between two probes
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub(super) interval: Duration,
    /// Seconds to wait for each reply
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// Stop at the first reply that came directly; fail if none did
    #[arg(long)]
    pub(super) until_direct: bool,
    /// Print one JSON object a line (schema 1)
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) control: ControlArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Works without a network. Without --server, the STUN servers of the configuration (member.stun_servers) are asked, or else
those that the broker of the running daemon names. Any server of RFC 5780 can measure UDP; TCP's filter needs one of ours.
As root, two more tests of TCP are possible.

Exit codes: 0 measured, 1 no server is known, 5 no server answered.")]
pub(super) struct NetcheckArgs {
    /// STUN server to measure with; may be repeated
    #[arg(long = "server", value_name = "HOST:PORT", value_parser = stun_server)]
    pub(super) servers: Vec<BrokerAddr>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(super) json: bool,
    /// Also print every figure
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Also measure how long idle mappings of UDP and TCP live (two minutes more)
    #[arg(long)]
    pub(super) lifetimes: bool,
    #[command(flatten)]
    pub(super) config: ConfigArg,
    #[command(flatten)]
    pub(super) control: ControlArgs,
}

#[derive(Args, Debug)]
pub(super) struct InviteArgs {
    /// The name that the machine will have [default: the one it asks for]
    #[arg(long, value_parser = str::parse::<MemberName>)]
    pub(super) name: Option<MemberName>,
    /// Groups that its certificate will name
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = str::parse::<GroupName>)]
    pub(super) groups: Vec<GroupName>,
    /// How long the token is good, like 30m, 24h or 7d [default: as the broker is configured, or 24h]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(super) ttl: Option<Duration>,
    /// Make the machine a relay, instead of a member
    #[arg(long, conflicts_with = "may_relay")]
    pub(super) relay: bool,
    /// Let the member carry others' traffic too, if its owner sets relay.serve = "network"
    #[arg(long)]
    pub(super) may_relay: bool,
    #[command(flatten)]
    pub(super) control: ControlArgs,
}

#[derive(Args, Debug)]
pub(super) struct CheckConfigArgs {
    /// The file [default: /etc/ntcp-overlay/overlay.toml]
    #[arg(value_name = "FILE", env = "NTCP_CONFIG")]
    pub(super) file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// For which shell
    pub(super) shell: clap_complete::Shell,
}

fn endpoint(text: &str) -> Result<BrokerAddr, String> {
    units::parse_endpoint(text, BROKER_PORT)
}

fn stun_server(text: &str) -> Result<BrokerAddr, String> {
    units::parse_endpoint(text, STUN_PORT)
}

/// `0.2`, `1`, `30`: seconds as ping(8) takes them.
fn seconds(text: &str) -> Result<Duration, String> {
    let secs = text.parse().ok().filter(|secs: &f64| (0.01..=3600.0).contains(secs));
    secs.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds from 0.01 to 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn clap_finds_no_contradiction_in_the_command_line() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn seconds_may_have_a_fraction_and_must_be_sane() {
        assert_eq!(seconds("0.2"), Ok(Duration::from_millis(200)));
        for bad in ["0", "-1", "x", "inf", "NaN", "1e9"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
