//! `cert`: the network's CA, and certificates by hand, where no invite can be used or the CA is kept offline.
//!
//! The way of a certificate: `cert init` makes the CA; on the machine that will own the keys, `cert request` makes them and a
//! request; where the CA is, `cert sign` answers it; two public files go back. Private keys never travel. Everything here
//! works on files alone, except taking back a certificate at a running broker.

mod init;
mod revoke;
mod show;
mod sign;

use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use ipnetwork::Ipv4Network;

use crate::base::time::UnixTime;
use crate::cli::args::ControlArgs;
use crate::cli::output;
use crate::config::build;
use crate::config::exit::Exit;
use crate::config::settings;
use crate::config::units;
use crate::engine::clock;
use crate::identity::certificate::CertError;
use crate::identity::certificate::Roles;
use crate::identity::certificate::Serial;
use crate::identity::names::GroupName;
use crate::identity::names::MemberName;
use crate::identity::names::NetworkName;

#[derive(Args, Debug)]
pub(super) struct CertArgs {
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Subcommand, Debug)]
enum CertCommand {
    /// Create a network: its CA, and the broker and relay that it starts with
    Init(InitArgs),
    /// Make this machine's keys and a request for a certificate
    Request(RequestArgs),
    /// Answer a request with a certificate, where the CA is
    Sign(SignArgs),
    /// Show what a certificate, a CA, a request or a revocation list says
    Show(ShowArgs),
    /// Take certificates back
    Revoke(RevokeArgs),
}

#[derive(Args, Debug)]
struct InitArgs {
    /// The name of the network
    #[arg(long, value_parser = str::parse::<NetworkName>)]
    network: NetworkName,
    /// Where the CA and the roles' directories go
    #[arg(long, value_name = "DIR", env = "NTCP_STATE_DIR", default_value = settings::DEFAULT_STATE_DIR)]
    dir: PathBuf,
    /// Where members' IPv4 addresses will be, for as long as the network lives
    #[arg(long, value_name = "PREFIX", default_value = settings::DEFAULT_PREFIX, value_parser = build::parse_prefix)]
    prefix: Ipv4Network,
    /// Also make a broker of that name, in DIR/broker
    #[arg(long, value_name = "NAME", value_parser = str::parse::<MemberName>)]
    broker: Option<MemberName>,
    /// Also make a relay of that name, in DIR/relay
    #[arg(long, value_name = "NAME", value_parser = str::parse::<MemberName>)]
    relay: Option<MemberName>,
    /// Give the broker no copy of the CA key: it will neither invite nor renew
    #[arg(long, requires = "broker")]
    offline: bool,
}

#[derive(Args, Debug)]
struct RequestArgs {
    /// The name that the machine will have
    #[arg(long, value_parser = str::parse::<MemberName>)]
    name: MemberName,
    /// Where the keys are kept, or made now
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Args, Debug)]
struct SignArgs {
    /// The directory of the CA
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// What `cert request` wrote
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Where the certificate goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What the holder may be [default: as before, or member]
    #[arg(long, value_name = "ROLE,..", value_delimiter = ',')]
    role: Vec<Role>,
    /// Groups of the holder [default: as before, or none]
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = str::parse::<GroupName>)]
    groups: Option<Vec<GroupName>>,
    /// Overlay address of a member [default: as before, or the next]
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Life of the certificate [default: 90d, brokers and relays 365d]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    ttl: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Role {
    Member,
    Broker,
    Relay,
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// A file, or a directory with an identity or a CA in it
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
}

#[derive(Args, Debug)]
#[command(after_help = "\
At a broker that holds the CA key:   cert revoke NAME
With the CA kept elsewhere:          cert revoke NAME --ca DIR --out FILE     (or --serial HEX)
  and then at any broker:            cert revoke --import FILE")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["name", "serial", "import"]))]
struct RevokeArgs {
    /// Whose certificates
    #[arg(value_parser = str::parse::<MemberName>)]
    name: Option<MemberName>,
    /// One certificate, by its number
    #[arg(long, value_name = "HEX", value_parser = serial, requires = "ca")]
    serial: Option<Serial>,
    /// The directory of the CA, if it is kept by hand
    #[arg(long, value_name = "DIR", requires = "out", conflicts_with = "import")]
    ca: Option<PathBuf>,
    /// Where the signed revocation list goes
    #[arg(long, value_name = "FILE", requires = "ca")]
    out: Option<PathBuf>,
    /// Bring a signed revocation list into force
    #[arg(long, value_name = "FILE")]
    import: Option<PathBuf>,
    #[command(flatten)]
    control: ControlArgs,
}

pub(super) fn run(args: CertArgs) -> anyhow::Result<Exit> {
    let now = clock::now().unix;
    let text = match args.command {
        CertCommand::Init(args) => init::run(&args, now)?,
        CertCommand::Request(args) => sign::request(&args)?,
        CertCommand::Sign(args) => sign::run(&args, now)?,
        CertCommand::Show(args) => show::run(&args.path, now)?,
        CertCommand::Revoke(args) => revoke::run(args, now)?,
    };
    output::data(&text)
}

fn serial(text: &str) -> Result<Serial, String> {
    let wrong = |_: CertError| "expected 32 hexadecimal digits, as `cert show` prints them".to_owned();
    text.to_ascii_lowercase().parse().map_err(wrong)
}

fn roles(list: &[Role]) -> Option<Roles> {
    let has = |role| list.contains(&role);
    let roles = Roles { member: has(Role::Member), broker: has(Role::Broker), relay: has(Role::Relay) };
    (!list.is_empty()).then_some(roles)
}

/// `2026-11-20 13:28 UTC`
fn date(time: UnixTime) -> String {
    // X.509 ends with the year 9999, and so do the dates that we print.
    let last = Duration::from_secs(253_402_300_799);
    let date = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(time.secs()).min(last);
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", date.hour(), date.minute())
}

fn fingerprint(bytes: &[u8; 32]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A path as it can be pasted into a shell.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | '=' | ',' | ':' | '@')
    };
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_paths_are_written_for_people() {
        for (secs, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (1_795_181_280, "2026-11-20 13:28 UTC"),
            (1_709_164_800, "2024-02-29 00:00 UTC"),
            (u64::MAX, "9999-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(UnixTime::from_secs(secs)), text);
        }
        for (path, text) in [("/a/b.crt", "/a/b.crt"), ("my dir", "'my dir'"), ("it's", "'it'\\''s'")] {
            assert_eq!(shell(Path::new(path)), text);
        }
    }
}
