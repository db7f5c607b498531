//! A read-only view of an IP packet: as much as routing and source checks need.
