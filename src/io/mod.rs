//! Floor 3, acting: the kernel's doors for bytes, and its tables. See [`doors::Doors`], [`netlink::Netlink`], [`hosts`],
//! [`portmap::Gateway`], [`splice::Splicer`], [`printer::Printer`].

pub mod doors;
pub mod hosts;
pub mod netlink;
pub mod portmap;
pub mod printer;
pub mod splice;
