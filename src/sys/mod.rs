//! Floor: sys.
