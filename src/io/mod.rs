//! Floor 3, acting: the kernel's doors for bytes, and its tables. See [`doors::Doors`], [`netlink::Netlink`], [`hosts`].

pub mod doors;
pub mod hosts;
pub mod netlink;
