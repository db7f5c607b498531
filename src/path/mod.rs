//! Floor: path.
