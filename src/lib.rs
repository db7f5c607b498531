//! ntcp-overlay: a mesh VPN that stays direct where others fall back to a relay.
//!
//! The modules stand on floors, and a module uses only modules on lower floors (`tests/floors.rs` checks it). The
//! thinking half is deterministic: it has no socket, clock, file or thread, and takes time and chance as arguments. The
//! acting half moves bytes and time between the kernel and the thinking half and decides nothing about protocols.
//!
//! | floor | module | half | one line |
//! |---|---|---|---|
//! | 8 | `cli` | acting | words typed by people |
//! | 7 | `engine` | acting | the loops: move bytes and time between kernel and thought |
//! | 6 | `config` | acting | file to validated settings |
//! | 6 | `control` | acting | the API on the Unix socket |
//! | 5 | `node` | thinking | a whole member of the mesh as one value |
//! | 4 | `discovery` | thinking | how the NATs before this machine treat UDP and TCP |
//! | 4 | `path` | thinking | which way to one peer, and how to get a better one |
//! | 3 | `stun` `stunt` `punch` `relay` `broker` `tunnel` | thinking | one protocol each |
//! | 3 | `io` `device` | acting | the kernel's doors: sockets, netlink, TUN |
//! | 2 | `wire` | thinking | every byte layout that crosses the network |
//! | 1 | `identity` `nat` | thinking | keys, certificates and names; what NATs do |
//! | 1 | `sys` | acting | one safe function per system call; the only `unsafe` code |
//! | 0 | `base` | thinking | addresses, buffers, timers, cursors, ids |

pub mod base;

pub mod identity;
pub mod nat;
pub mod sys;

pub mod wire;

pub mod broker;
pub mod device;
pub mod io;
pub mod punch;
pub mod relay;
pub mod stun;
pub mod stunt;
pub mod tunnel;

pub mod discovery;
pub mod path;

pub mod node;

pub mod config;
pub mod control;

pub mod engine;

pub mod cli;
