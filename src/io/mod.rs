//! Floor 3, acting: the kernel's doors for bytes. See [`doors::Doors`].

pub mod doors;
