//! Floor 2: every byte layout that crosses the network, one file per format.
//!
//! Each file draws its layout, parses into a value that cannot be wrong, and emits the exact inverse. Reading goes
//! through [`crate::base::cursor::Reader`] alone: truncated, oversized or nonsensical input is an error value and never
//! a panic. Nothing above this floor sees the bytes of a protocol message.

pub mod broker;
pub mod demux;
pub mod dress;
pub mod enroll;
pub mod frame;
pub mod ip;
pub mod profile;
pub mod proxy;
pub mod relay;
pub mod segment;
pub mod stun;
pub mod super_packet;
pub mod syn;
pub mod tlv;

/// What can be wrong with a message. Counted, not logged: whoever sends garbage decides how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Ends too early.
    #[error("truncated")]
    Truncated,
    /// Longer than its kind may be.
    #[error("too long")]
    TooLong,
    /// A field holds what it may not hold.
    #[error("invalid field")]
    Invalid,
    /// A required field is missing.
    #[error("missing field")]
    Missing,
    /// A kind or version that this program does not know.
    #[error("unknown kind")]
    Unknown,
    /// A checksum or keyed hash does not match.
    #[error("integrity check failed")]
    Integrity,
}

impl From<crate::base::cursor::Truncated> for WireError {
    fn from(_: crate::base::cursor::Truncated) -> Self {
        Self::Truncated
    }
}
