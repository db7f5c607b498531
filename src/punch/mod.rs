//! Floor: punch.
