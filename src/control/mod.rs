//! Floor: control.
