//! An internet in memory: real members, a real broker and real relays of ntcp-overlay, behind NATs that are values, in
//! virtual time.
//!
//! The thinking half of the product takes time and chance as arguments, so thousands of members fit into one process and
//! ten minutes into seconds, and one seed always gives one trace. Nothing here knows how members find each other; the
//! simulation only carries what they send, as an internet does: late, lost, twice translated, or to nobody.
//!
//! | module | one line |
//! |---|---|
//! | [`world`] | everything, and the one queue that drives it |
//! | [`net`] | realms, NATs, links: how anything gets from one to another |
//! | [`nat`] | one NAT |
//! | [`tcp`] | sockets, segments, and what NATs do with those |
//! | [`machine`] | a member, and what an engine, a kernel and a user do around it |
//! | `link` | a member's connection to the broker, dialled and lost |
//! | [`server`] | the broker and the relays |
//! | [`crowd`] | thousands of members, and what happens to them |
//! | [`oracle`] | can these two meet directly? Answered without the product and without the simulation |
//! | [`trace`] | what happened, as one number |
//! | [`clock`] | virtual time, also for those who ask the system |
//!
//! **What is modelled.** NATs, nested ones too, by their mapping, filtering, port assignment, hairpin and lifetimes, and
//! for TCP by sessions, windows, refusals and hops. Lines with delay, jitter, loss and cuts; an internet that falls into
//! two. TCP by its segments: SYNs that cross, are refused, are repeated or die on their way; ports that listen and dial at
//! once; messages in order, repeated until they are confirmed; keep-alives and time-outs. The clock of WireGuard.
//!
//! **What is not.** Bytes on lines: nothing is ever slow for being large, no buffer fills, and no packet is too large for a
//! line. The inside of TCP: windows, congestion, TIME_WAIT. IPv6. TLS and the connection to the broker, which is a
//! message queue that breaks as a connection would. The survey of the NATs: members are told the truth after the time that
//! it takes. What the kernels really do is for `tests/lab`.
//!
//! The tests are in `tests/`: `stories` tells what happens to two members, `tcp` what their SYNs do, `pairs` asks the oracle about every pair of NATs,
//! `chaos` draws small networks and their misfortunes by lot, `crowd` lets two thousand live for ten minutes.

#![allow(clippy::missing_panics_doc, reason = "a test that cannot go on fails")]

pub mod clock;
pub mod crowd;
mod link;
pub mod machine;
pub mod nat;
pub mod net;
pub mod oracle;
pub mod server;
pub mod tcp;
pub mod trace;
pub mod world;

use std::time::Duration;

pub use net::NatId;
pub use net::TO_THE_MIDDLE;
pub use trace::Trace;
pub use world::Seen;
pub use world::World;

/// Round trip between a member and the broker: the unit of "how long until".
pub const BROKER_RTT: Duration = ms(80);

/// A machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Who(pub usize);

/// Milliseconds.
#[must_use]
pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Seconds.
#[must_use]
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
