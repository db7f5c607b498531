//! Machines that programs run on.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::ops::Deref;

use anyhow::Result;

use super::Uplink;
use crate::ns::Namespace;
use crate::wire::Wire;

/// A machine that programs run on.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Namespace,
    /// Its IPv4 address on `eth0`; 0.0.0.0 in a site that has IPv6 alone.
    pub v4: Ipv4Addr,
    /// Its IPv6 address on `eth0`.
    pub v6: Option<Ipv6Addr>,
    /// The wire of its link, if that is one.
    pub wire: Option<Wire>,
    pub(super) uplink: Uplink,
}

impl Host {
    /// Whether the internet drops what this public host sends with a source address that is not of its network.
    pub fn filter_spoofed(&self, on: bool) -> Result<()> {
        self.uplink.filter_spoofed(on)
    }

    /// Gives it one more IPv4 address in its network, with this last byte, and returns it.
    pub fn more_address(&self, last: u8) -> Result<Ipv4Addr> {
        let [a, b, c, _] = self.v4.octets();
        let address = Ipv4Addr::new(a, b, c, last);
        self.ns.ip(&format!("addr add {address}/24 dev eth0\n"))?;
        Ok(address)
    }
}

/// A public host with three addresses. It is used like any [`Host`], whose own address is the first.
#[derive(Clone, Debug)]
pub struct Server {
    /// The machine.
    pub host: Host,
    /// What it is reached at.
    pub addresses: [Ipv4Addr; 3],
}

impl Deref for Server {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}
