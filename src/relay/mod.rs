//! Floor 3: relays, for pairs that nothing direct can join (the theses' Internet Service Translator).
//!
//! A broker gives both members of a pair a token for the same session on one relay. Each member binds its side: a STUN
//! request that carries the token and proves that the sender holds the X25519 key in it. The relay answers with a channel
//! number, and from then on hands what arrives on the channel of one side to the other side, on that side's channel, over
//! whatever transport it bound with. A side binds again every 25 seconds, which keeps its NAT's mapping and, because the
//! newest bind wins, follows it wherever it goes: another address, another NAT mapping, TCP instead of UDP.
//!
//! Life of a session at the relay: the first valid bind creates it; the other side's bind completes it; it ends when a
//! side was silent for two minutes. A token creates no session after it has expired, but a bound side stays bound.
//!
//! Where the relay's kernel can do it, it hands on the messages of sides that are bound over UDP, and no side sees a
//! difference. A side is also told a TCP port to dial. When both have come, the kernel rewrites the
//! packets of the two connections so that they are one, from member to member; the relay's process sees no byte of it any
//! more. The channels stay bound meanwhile: they carry until then, and again if the connection breaks.
//!
//! What a relay refuses to do: it answers nobody who does not prove a token, it reaches no address that did not bind, it
//! reads no payload, and it holds no secret but the key of its own certificate. Queues in front of it are bounded and
//! everything beyond is dropped, because the tunnels inside have their own retransmissions.
//!
//! - [`client`]: one side, as a member drives it.
//! - [`server`]: the relay's decisions; `table` holds who is bound where.
//! - [`backend`]: what carries a session, and why; [`splices`]: the connections that the kernel joins; `flows`: the
//!   sessions over UDP that it carries.

pub mod backend;
pub mod client;
pub mod server;
pub mod splices;

mod flows;
mod sources;
mod table;

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod flows_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod splices_tests;
#[cfg(test)]
mod testing;
