//! Floor: broker.
