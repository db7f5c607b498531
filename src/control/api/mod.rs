//! What commands and daemon say to each other, and what `--json` prints. Schema 1: fields are only ever added.

mod convert;
mod status;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

pub use status::Broker;
pub use status::BrokerRole;
pub use status::Candidate;
pub use status::Dropped;
pub use status::Forwarded;
pub use status::Gateway;
pub use status::Kind;
pub use status::Nat;
pub use status::Path;
pub use status::Peer;
pub use status::RelayDelay;
pub use status::RelayRole;
pub use status::RelayedSession;
pub use status::State;
pub use status::Status;
pub use status::StunRole;
pub use status::Treatment;
pub use status::Tried;

/// Version of everything here.
pub const SCHEMA: u32 = 1;

/// One line from a command to the daemon.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`SCHEMA`] of the sender.
    pub schema: u32,
    /// What it wants.
    pub request: Request,
}

/// What a command may want. Written as `{"op": "status"}`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Everything; answered by [`Reply::Status`].
    Status {},
    /// Which program is running; answered by [`Reply::Version`].
    Version {},
    /// One probe of the path to a peer, connecting first if need be; answered by [`Reply::Pong`].
    Ping {
        /// Name or overlay address.
        peer: String,
        /// How long to wait, milliseconds.
        timeout_ms: u64,
    },
    /// A new invite; answered by [`Reply::Invite`].
    Invite {
        /// The name that the invited machine will get; without it, the one it asks for.
        name: Option<String>,
        /// Groups that its certificate will name.
        groups: Vec<String>,
        /// Validity in seconds; without it, what the configuration says.
        ttl_s: Option<u64>,
        /// Whether the invited machine becomes a relay, and no member.
        relay: bool,
        /// Whether the invited member may carry others' traffic too.
        #[serde(default)]
        may_relay: bool,
    },
    /// Takes a member's certificates back; answered by [`Reply::Done`].
    Revoke {
        /// Its name.
        name: String,
    },
    /// Puts a revocation list into force that was signed elsewhere; answered by [`Reply::Done`].
    ImportRevocations {
        /// The signed list.
        base64: String,
    },
    /// Ends the daemon; answered by [`Reply::Done`] before it ends.
    Down {},
}

impl Request {
    /// Whether it changes anything, so that only root and the daemon's own user may ask it. A ping makes traffic and
    /// nothing else.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        match self {
            Self::Status {} | Self::Version {} | Self::Ping { .. } => false,
            Self::Invite { .. } | Self::Revoke { .. } | Self::ImportRevocations { .. } | Self::Down {} => {
                true
            }
        }
    }

    /// How long the daemon may take for it.
    #[must_use]
    pub const fn time_limit(&self) -> Duration {
        match self {
            Self::Ping { timeout_ms, .. } => Duration::from_millis(*timeout_ms).saturating_add(SLACK),
            _ => LIMIT,
        }
    }
}

/// Answers come from memory or one database transaction; a daemon that needs longer is stuck.
const LIMIT: Duration = Duration::from_secs(10);
/// On top of a ping's own limit, for the way through the socket.
const SLACK: Duration = Duration::from_secs(2);

/// One line from the daemon to a command.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Version`].
    Version {
        /// As in `Cargo.toml`.
        version: String,
        /// Process id of the daemon.
        pid: u32,
    },
    /// To [`Request::Ping`].
    Pong(Pong),
    /// To [`Request::Invite`].
    Invite {
        /// What the invited machine passes to `up --join`.
        token: String,
        /// Validity in seconds.
        ttl_s: u64,
    },
    /// It is done, in words.
    Done {
        /// What was done.
        message: String,
    },
    /// It is not done.
    Refused {
        /// Whose fault it is.
        reason: Reason,
        /// In words, with the next thing to do.
        message: String,
    },
}

/// Why a request was refused, as far as a script may care.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It could not be done.
    Failed,
    /// The request makes no sense.
    Malformed,
    /// The asker may not.
    Permission,
    /// Nobody answered in time.
    Timeout,
}

impl Reply {
    /// A refusal in words.
    #[must_use]
    pub fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::Refused { reason, message: message.into() }
    }
}

/// The answer to a ping.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Pong {
    /// Who.
    pub name: String,
    /// Its overlay address.
    pub address: IpAddr,
    /// By which path.
    #[serde(flatten)]
    pub path: Path,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why there was no answer, if there was none.
    pub problem: Option<String>,
}
