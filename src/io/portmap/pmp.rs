//! PCP and NAT-PMP: two generations of one protocol, on one port.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::InternetProtocol;
use crab_nat::MappingFailure;
use crab_nat::PortMapping;
use crab_nat::PortMappingOptions;
use crab_nat::PortMappingType;
use crab_nat::TimeoutConfig;
use crab_nat::natpmp;
use crab_nat::pcp;

use super::LIFETIME;
use super::Lease;
use super::Protocol;
use super::Trouble;
use crate::nat::candidate::Transport;

/// Three packets within 1.75 s. Both RFCs ask for more patience, over minutes; a gateway is one hop away, and whoever asks
/// comes again later.
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };

pub(super) async fn pcp(
    gateway: Ipv4Addr,
    local: Ipv4Addr,
    transport: Transport,
    internal: NonZeroU16,
    external: NonZeroU16,
) -> Result<Lease, Trouble> {
    let base = pcp::BaseMapRequest::new(gateway.into(), IpAddr::V4(local), protocol(transport), internal);
    let mapping = pcp::port_mapping(base, None, None, options(external)).await.map_err(pcp_trouble)?;
    lease(mapping, transport).await
}

pub(super) async fn nat_pmp(
    gateway: Ipv4Addr,
    transport: Transport,
    internal: NonZeroU16,
    external: NonZeroU16,
) -> Result<Lease, Trouble> {
    let asked = natpmp::port_mapping(gateway.into(), protocol(transport), internal, options(external)).await;
    lease(asked.map_err(nat_pmp_trouble)?, transport).await
}

pub(super) async fn renew(mapping: &PortMapping, old: &Lease) -> Result<Lease, Trouble> {
    let mut mapping = mapping.clone();
    mapping.timeout_config = PATIENCE;
    mapping.renew().await.map_err(|failure| match failure {
        MappingFailure::NatPmp(failure) => nat_pmp_trouble(failure),
        MappingFailure::Pcp(failure) => pcp_trouble(failure),
    })?;
    if mapping.gateway_epoch() < old.pmp.as_ref().map_or(0, PortMapping::gateway_epoch) {
        tracing::info!("the router has started anew: forwarded ports were asked for again");
    }
    lease(mapping, old.transport).await
}

/// What was granted. PCP says the outer address itself; NAT-PMP has to be asked.
async fn lease(mapping: PortMapping, transport: Transport) -> Result<Lease, Trouble> {
    let (protocol, ip) = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => match external_ip.to_canonical() {
            IpAddr::V4(v4) => (Protocol::Pcp, v4),
            IpAddr::V6(_) => return Err(Trouble::Refused("an IPv6 address for an IPv4 port".to_owned())),
        },
        PortMappingType::NatPmp => {
            let asked = natpmp::external_address(mapping.gateway(), Some(PATIENCE)).await;
            (Protocol::NatPmp, asked.map_err(nat_pmp_trouble)?)
        }
    };
    Ok(Lease {
        protocol,
        transport,
        internal: mapping.internal_port(),
        external: SocketAddrV4::new(ip, mapping.external_port().get()),
        lifetime: Some(Duration::from_secs(mapping.lifetime().into())),
        pmp: Some(mapping),
    })
}

fn options(external: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(external),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(PATIENCE),
    }
}

const fn protocol(transport: Transport) -> InternetProtocol {
    match transport {
        Transport::Udp => InternetProtocol::Udp,
        Transport::Tcp => InternetProtocol::Tcp,
    }
}

fn pcp_trouble(failure: pcp::Failure) -> Trouble {
    match failure {
        // Nobody listens: an ICMP error.
        pcp::Failure::Timeout | pcp::Failure::Socket(_) | pcp::Failure::UnsupportedVersion(_) => {
            Trouble::Silent
        }
        other => Trouble::Refused(other.to_string()),
    }
}

fn nat_pmp_trouble(failure: natpmp::Failure) -> Trouble {
    match failure {
        natpmp::Failure::Timeout | natpmp::Failure::Socket(_) | natpmp::Failure::UnsupportedVersion(_) => {
            Trouble::Silent
        }
        other => Trouble::Refused(other.to_string()),
    }
}
