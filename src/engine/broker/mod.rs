//! The broker's acting half: its database, its TLS server, its UDP sockets.

pub mod store;
