//! Floor: tunnel.
