//! Floor 6: how commands reach the daemon.
//!
//! A Unix socket, one JSON value a line: a request goes in, exactly one reply comes out, and the next request may
//! follow. Who may connect is decided by the socket's mode (0660) and directory, who may change something by the peer
//! credentials that the kernel reports: root and the daemon's own user. There is no TCP listener, and no request names a
//! path that the daemon would open.
//!
//! [`api`] holds the types of both ends, separate from the program's own types: the JSON is a promise to scripts and
//! grows only by new fields. [`server`] passes requests to the engine as values with a way back; [`client`] is
//! blocking and turns every failure into words and a next step.

pub mod api;
pub mod client;
pub mod server;
