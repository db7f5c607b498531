//! The means that are compared.

/// What carries between the two members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Means {
    /// The relay's machine routes.
    Router,
    /// It is an ordinary NAT (masquerading).
    Nat,
    /// Our relay, kernel backend.
    Kernel,
    /// Our relay, user space, over TCP channels.
    Userspace,
    /// A forwarder that moves bytes between two sockets by splice(2).
    Splice2,
    /// A forwarder that reads and writes, 256 KiB at a time.
    Copy,
    /// coturn, both members its clients over TCP, or over UDP.
    Coturn,
}

impl Means {
    pub(crate) const ALL: [Self; 7] =
        [Self::Router, Self::Nat, Self::Kernel, Self::Userspace, Self::Splice2, Self::Copy, Self::Coturn];
    /// Those that carry datagrams.
    pub(crate) const DATAGRAMS: [Self; 5] =
        [Self::Router, Self::Nat, Self::Kernel, Self::Userspace, Self::Coturn];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Router => "kernel router",
            Self::Nat => "kernel NAT",
            Self::Kernel => "relay, kernel",
            Self::Userspace => "relay, user space",
            Self::Splice2 => "splice(2) forwarder",
            Self::Copy => "copying forwarder",
            Self::Coturn => "coturn",
        }
    }
}
