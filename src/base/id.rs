//! Small identifiers, one type each, so that they cannot be mixed up.

use std::fmt;

/// One introduction of two members: both sides and the broker call it by this name. Unguessable, because it names the
/// key of the probes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub [u8; 16]);

/// One session on a relay: two sides, one name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelaySession(pub [u8; 16]);

/// A TCP stream of the data plane, numbered by whoever ordered or accepted it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub u32);

/// A local TCP port that one attempt at a direct connection has for itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u32);

/// A UDP socket of the data plane: one of the two below, or one that a search for ports has for itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The data socket for IPv4.
    pub const V4: Self = Self(0);
    /// The data socket for IPv6.
    pub const V6: Self = Self(1);
}

/// A question on the control connection, echoed by its answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RequestId(pub u32);

/// A member's registration at a broker, as named in its UDP registrations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegistrationId(pub u64);

macro_rules! short_hex {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    )*};
}
short_hex!(AttemptId, RelaySession);
