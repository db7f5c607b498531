//! Floor 1, acting: one safe function per system call that no crate offers safely; the only `unsafe` code.
//!
//! Most of what the doors need comes from rustix and socket2, which are safe already. What is left stands here: datagrams
//! by the batch ([`batch`]) or with the address they arrived at ([`pktinfo`]), who reported an error about one
//! ([`errors`]), some socket options ([`option`]), the descriptor inside a crate's type ([`descriptor`]), a TUN device with
//! super-packets ([`tun`]), and what a device receives ([`packet`]).
//! Each `unsafe` block says why it is sound, no function here decides anything, and nothing unsafe leaks out: whatever
//! arguments a caller passes, the worst that happens is an error.

#![allow(unsafe_code, reason = "system calls; everywhere else the manifest denies it")]

pub mod batch;
mod control;
pub mod descriptor;
pub mod errors;
pub mod option;
pub mod packet;
pub mod pktinfo;
pub mod tun;
