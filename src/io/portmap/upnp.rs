//! UPnP Internet Gateway Device: found by SSDP, spoken to by SOAP.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::num::NonZeroU16;
use std::time::Duration;

use igd_next::AddAnyPortError;
use igd_next::AddPortError;
use igd_next::GatewayIpVersion;
use igd_next::PortMappingProtocol;
use igd_next::RemovePortError;
use igd_next::RequestError;
use igd_next::SearchOptions;
use igd_next::aio::Gateway;
use igd_next::aio::tokio::Tokio;
use igd_next::aio::tokio::search_gateway;

use super::LIFETIME;
use super::Lease;
use super::Protocol;
use super::Trouble;
use crate::nat::candidate::Transport;

/// SSDP's port (UPnP Device Architecture 1.1, 1.3.2).
const SSDP_PORT: u16 = 1900;
/// SSDP's group.
const SSDP_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// How long a search waits: answers may take the 3 s that it allows (`MX`), and the description comes by HTTP.
const SEARCH: Duration = Duration::from_secs(4);
/// What the router's own pages will show.
const DESCRIPTION: &str = "ntcp-overlay";

/// A gateway's service for port mappings.
#[derive(Debug)]
pub(super) struct Device(Gateway<Tokio>);

impl Device {
    /// Asks the gateway itself, and then everybody on the local network, of whom only the gateway is believed.
    pub(super) async fn find(gateway: Ipv4Addr, local: Ipv4Addr) -> Result<Self, Trouble> {
        for asked in [gateway, SSDP_GROUP] {
            let mut options = SearchOptions::default();
            options.bind_addr = SocketAddr::new(IpAddr::V4(local), 0);
            options.broadcast_address = SocketAddr::new(IpAddr::V4(asked), SSDP_PORT);
            options.timeout = Some(SEARCH);
            options.single_search_timeout = Some(SEARCH);
            options.gateway_ip_version = GatewayIpVersion::V4;
            match search_gateway(options).await {
                Ok(found) if found.addr.ip() == IpAddr::V4(gateway) => return Ok(Self(found)),
                Ok(found) => tracing::debug!(at = %found.addr, "a UPnP device that is not the gateway"),
                Err(error) => tracing::debug!(%error, "no UPnP device"),
            }
        }
        Err(Trouble::Silent)
    }

    pub(super) async fn add(
        &self,
        local: Ipv4Addr,
        transport: Transport,
        internal: NonZeroU16,
        external: NonZeroU16,
    ) -> Result<Lease, Trouble> {
        let to = SocketAddr::new(IpAddr::V4(local), internal.get());
        let granted = match self.add_for(LIFETIME, to, transport, external.get()).await {
            // Some old devices know only leases without an end (error 725).
            Err(Failure::OnlyForEver) => {
                let port = self.add_for(Duration::ZERO, to, transport, external.get()).await;
                port.map(|port| (port, None))
            }
            other => other.map(|port| (port, Some(LIFETIME))),
        };
        let (port, lifetime) = granted.map_err(|failure| match failure {
            Failure::OnlyForEver => Trouble::Refused("no lease of any length".to_owned()),
            Failure::Other(trouble) => trouble,
        })?;
        let ip = self.0.get_external_ip().await.map_err(|error| Trouble::Refused(error.to_string()))?;
        let IpAddr::V4(ip) = ip.to_canonical() else {
            return Err(Trouble::Refused("an IPv6 address for an IPv4 port".to_owned()));
        };
        Ok(Lease {
            protocol: Protocol::Upnp,
            transport,
            internal,
            external: SocketAddrV4::new(ip, port),
            lifetime,
            pmp: None,
        })
    }

    pub(super) async fn remove(&self, transport: Transport, external: u16) -> Result<(), String> {
        match self.0.remove_port(protocol(transport), external).await {
            Ok(()) | Err(RemovePortError::NoSuchPortMapping) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The wanted port, or another if that is taken; the one that was granted.
    async fn add_for(
        &self,
        lifetime: Duration,
        to: SocketAddr,
        transport: Transport,
        external: u16,
    ) -> Result<u16, Failure> {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let wanted = self.0.add_port(protocol(transport), external, to, seconds, DESCRIPTION).await;
        match wanted {
            Ok(()) => Ok(external),
            Err(AddPortError::OnlyPermanentLeasesSupported) => Err(Failure::OnlyForEver),
            Err(AddPortError::PortInUse) => {
                let any = self.0.add_any_port(protocol(transport), to, seconds, DESCRIPTION).await;
                any.map_err(|error| match error {
                    AddAnyPortError::OnlyPermanentLeasesSupported => Failure::OnlyForEver,
                    AddAnyPortError::RequestError(error) => Failure::Other(trouble(&error)),
                    other => Failure::Other(Trouble::Refused(other.to_string())),
                })
            }
            Err(AddPortError::RequestError(error)) => Err(Failure::Other(trouble(&error))),
            Err(other) => Err(Failure::Other(Trouble::Refused(other.to_string()))),
        }
    }
}

enum Failure {
    OnlyForEver,
    Other(Trouble),
}

fn trouble(error: &RequestError) -> Trouble {
    match error {
        RequestError::ErrorCode(code, words) => Trouble::Refused(format!("error {code}: {words}")),
        RequestError::UnsupportedAction(_) | RequestError::InvalidResponse(_) => {
            Trouble::Refused(error.to_string())
        }
        _ => Trouble::Silent,
    }
}

const fn protocol(transport: Transport) -> PortMappingProtocol {
    match transport {
        Transport::Udp => PortMappingProtocol::UDP,
        Transport::Tcp => PortMappingProtocol::TCP,
    }
}
