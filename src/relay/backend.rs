//! What carries a session at a relay: one decision, and words for why.

use std::net::IpAddr;

/// What hands a session's messages on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Backend {
    /// The relay's thread copies each message, whatever transports the two sides use.
    Userspace,
    /// The relay's kernel readdresses packets: of one TCP connection from end to end, or of two UDP endpoints.
    Kernel,
}

impl Backend {
    /// One word, for programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
        }
    }
}

/// Why a session is carried as it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Why {
    /// The kernel backend does it.
    #[error("both members have dialled the session's port")]
    Spliced,
    /// The kernel backend does it, without that anybody had to dial.
    #[error("both members are bound over UDP")]
    Joined,
    /// It could, and the members have not come.
    #[error(
        "the members have not both dialled the session's port: they have found a direct path, or a firewall lets the port range not through"
    )]
    NotDialled,
    /// Whether it could is not known yet.
    #[error("the other member is not here yet")]
    Alone,
    /// No kernel backend; the relay's status says why.
    #[error("the kernel backend is off")]
    NoKernel,
    /// `relay.bytes_per_second` is set: only user space counts bytes as they pass.
    #[error("relay.bytes_per_second is set, and only user space can keep it")]
    Limited,
    /// One side came over IPv4, the other over IPv6.
    #[error("one member uses IPv4 and the other one IPv6")]
    Families,
    /// Packets of a member on the relay's own machine do not pass its network device.
    #[error("a member runs on the relay's own machine")]
    SameMachine,
    /// The members have dialled two addresses of the relay.
    #[error("the members have dialled two different addresses of the relay")]
    TwoAddresses,
    /// The kernel said no; the log has its words.
    #[error("the kernel refused")]
    Refused,
}

/// What is known when the decision is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Whether there is a kernel backend.
    pub kernel: bool,
    /// Whether the relay limits the bytes of a session.
    pub limited: bool,
    /// Where the two sides are bound from, as far as they are.
    pub sides: [Option<IpAddr>; 2],
    /// Whether one of them is on this machine.
    pub same_machine: bool,
}

/// What the members of a session are to be offered. [`Backend::Kernel`] is offered to the side that comes first, too: its
/// SYN may wait for the other one, and that saves a round trip.
#[must_use]
pub fn choose(facts: &Facts) -> (Backend, Why) {
    let why = match facts.sides {
        _ if !facts.kernel => Why::NoKernel,
        _ if facts.limited => Why::Limited,
        _ if facts.same_machine => Why::SameMachine,
        [Some(a), Some(b)] if a.is_ipv4() != b.is_ipv4() => Why::Families,
        [Some(_), Some(_)] => return (Backend::Kernel, Why::NotDialled),
        _ => return (Backend::Kernel, Why::Alone),
    };
    (Backend::Userspace, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_carries_what_it_can_and_user_space_the_rest() {
        let v4 = Some("192.0.2.1".parse().unwrap());
        let other = Some("192.0.2.2".parse().unwrap());
        let v6 = Some("2001:db8::1".parse().unwrap());
        let good = Facts { kernel: true, limited: false, sides: [v4, other], same_machine: false };
        for (case, facts, wanted) in [
            ("two on IPv4", good, (Backend::Kernel, Why::NotDialled)),
            ("two on IPv6", Facts { sides: [v6, v6], ..good }, (Backend::Kernel, Why::NotDialled)),
            ("two behind one address", Facts { sides: [v4, v4], ..good }, (Backend::Kernel, Why::NotDialled)),
            ("the first to come", Facts { sides: [None, v4], ..good }, (Backend::Kernel, Why::Alone)),
            ("mixed", Facts { sides: [v4, v6], ..good }, (Backend::Userspace, Why::Families)),
            ("no kernel backend", Facts { kernel: false, ..good }, (Backend::Userspace, Why::NoKernel)),
            ("a byte rate", Facts { limited: true, ..good }, (Backend::Userspace, Why::Limited)),
            ("on this machine", Facts { same_machine: true, ..good }, (Backend::Userspace, Why::SameMachine)),
        ] {
            assert_eq!(choose(&facts), wanted, "{case}");
        }
    }
}
