//! Floor: device.
