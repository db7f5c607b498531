//! Floor 7: the loops. They move bytes and time between the kernel and the thinking half.
//!
//! [`up`] runs a member and [`serve`] the server roles; [`roles`] is what both share. A process has one tokio thread for
//! everything slow (the broker's connections, the [`link`] to a broker, the control socket, netlink, signals) and a plain
//! thread for everything that carries packets: [`member`] for the member, [`relay`] for the relay, one for each UDP
//! address of a broker or STUN server. They share no state that a packet would wait for, and talk by values.
//!
//! Time and chance enter here, in [`clock`], and nowhere else.
//!
//! What the engine refuses to do: decide anything about a protocol. Which message answers which, what is believed, when
//! something is tried again, stands on the floors below, where it can be tested without a kernel.

pub mod bridge;
pub mod broker;
pub mod cleanup;
pub mod clock;
pub mod dial;
pub mod discovery;
pub mod enroll;
pub mod entry;
pub mod framed;
pub mod gateway;
pub mod link;
pub mod member;
pub mod membership;
pub mod proxy;
pub mod relay;
pub mod relay_delays;
pub mod relay_role;
pub mod responder;
pub mod roles;
pub mod serve;
pub mod stun_server;
pub mod tls;
pub mod up;
pub mod websocket;
