//! Ports that the gateway forwards to this machine on request: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP IGD.
//!
//! A [`Gateway`] is asked for one [`Lease`] after another; it finds out what the gateway speaks, tries PCP first (it has
//! both transports, a lifetime and a nonce), and stays with what worked. The protocols are the crates `crab_nat` and
//! `igd-next`; what is decided here is whom to trust and how much to ask:
//!
//! - Only the default gateway is asked and believed: whoever else on the local network answers a search is left alone.
//! - A port is asked for by number, never "any" in the form of 0, which some gateways take for "all".
//! - Leases are short ([`LIFETIME`]), so that what a killed process left goes away; whoever holds one renews it.
//! - Answers are small and parsed by the crates with caps: a datagram, or 1 MiB of XML without entities.
//!
//! When to ask again, and what a lease is worth, is the caller's business.

mod pmp;
mod upnp;

use std::fmt;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::UdpSocket;
use std::num::NonZeroU16;
use std::time::Duration;

use crate::nat::candidate::Transport;

/// What a lease is asked for: what a killed process leaves behind is gone after an hour.
pub const LIFETIME: Duration = Duration::from_secs(3600);

/// How a gateway is spoken to, in order of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// Port Control Protocol, RFC 6887.
    Pcp,
    /// NAT Port Mapping Protocol, RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device, versions 1 and 2.
    Upnp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];

    /// Its usual name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port that the gateway forwards.
#[derive(Clone, Debug)]
pub struct Lease {
    /// How it was obtained.
    pub protocol: Protocol,
    /// Which transport.
    pub transport: Transport,
    /// The port here.
    pub internal: NonZeroU16,
    /// Where the gateway claims to forward from.
    pub external: SocketAddrV4,
    /// How long it lasts; `None` for ever, or until it is given back.
    pub lifetime: Option<Duration>,
    pmp: Option<crab_nat::PortMapping>,
}

/// Why a protocol did not help.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// No answer.
    Silent,
    /// The gateway says no; why, in words.
    Refused(String),
}

/// Why no port is forwarded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoLease {
    gateway: Ipv4Addr,
    troubles: Vec<(Protocol, Trouble)>,
}

impl fmt::Display for NoLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.troubles.iter().filter_map(|(protocol, trouble)| match trouble {
            Trouble::Refused(why) => Some(format!("{protocol}: {why}")),
            Trouble::Silent => None,
        });
        let refused: Vec<String> = refused.collect();
        let by_hand = "or forward a port by hand (member.listen_port, member.candidates)";
        if refused.is_empty() {
            let gateway = self.gateway;
            return write!(
                f,
                "the router {gateway} speaks neither PCP, NAT-PMP nor UPnP: switch it on there, {by_hand}"
            );
        }
        write!(
            f,
            "the router {} forwards no port ({}): allow it there, {by_hand}",
            self.gateway,
            refused.join("; ")
        )
    }
}

/// One gateway, and what is known of it.
#[derive(Debug)]
pub struct Gateway {
    /// Its address.
    pub address: Ipv4Addr,
    /// Ours, towards it.
    pub local: Ipv4Addr,
    speaks: Option<Protocol>,
    device: Option<upnp::Device>,
}

impl Gateway {
    /// The gateway at `address`; `None` if this machine has no address towards it.
    #[must_use]
    pub fn new(address: Ipv4Addr) -> Option<Self> {
        Some(Self { address, local: local_towards(address)?, speaks: None, device: None })
    }

    /// Asks for a port, the same outside as inside if it can be had.
    ///
    /// # Errors
    /// Why there is none, and what to do.
    pub async fn lease(&mut self, transport: Transport, internal: NonZeroU16) -> Result<Lease, NoLease> {
        let mut troubles = Vec::new();
        let first = self.speaks;
        for protocol in first.into_iter().chain(Protocol::ALL.into_iter().filter(|p| Some(*p) != first)) {
            match self.ask(protocol, transport, internal, internal).await {
                Ok(lease) => {
                    self.speaks = Some(protocol);
                    return Ok(lease);
                }
                Err(trouble) => troubles.push((protocol, trouble)),
            }
        }
        self.speaks = None;
        troubles.sort_by_key(|(protocol, _)| *protocol);
        Err(NoLease { gateway: self.address, troubles })
    }

    /// Asks for the same again: longer, or anew if the gateway has forgotten it.
    ///
    /// # Errors
    /// Why not; the lease may still be in force.
    pub async fn renew(&mut self, lease: &Lease) -> Result<Lease, Trouble> {
        if let Some(mapping) = &lease.pmp {
            return pmp::renew(mapping, lease).await;
        }
        let external = NonZeroU16::new(lease.external.port()).unwrap_or(lease.internal);
        self.ask(lease.protocol, lease.transport, lease.internal, external).await
    }

    /// Gives a lease back.
    pub async fn release(&mut self, lease: Lease) {
        let done = match (lease.pmp, &self.device) {
            (Some(mapping), _) => mapping.try_drop().await.map_err(|(why, _)| why.to_string()),
            (None, Some(device)) => device.remove(lease.transport, lease.external.port()).await,
            (None, None) => Ok(()),
        };
        if let Err(why) = done {
            tracing::debug!(why, "a forwarded port could not be given back: it ends by itself");
        }
    }

    async fn ask(
        &mut self,
        protocol: Protocol,
        transport: Transport,
        internal: NonZeroU16,
        external: NonZeroU16,
    ) -> Result<Lease, Trouble> {
        match protocol {
            Protocol::Pcp => pmp::pcp(self.address, self.local, transport, internal, external).await,
            Protocol::NatPmp => pmp::nat_pmp(self.address, transport, internal, external).await,
            Protocol::Upnp => {
                let device = match self.device.take() {
                    Some(device) => device,
                    None => upnp::Device::find(self.address, self.local).await?,
                };
                let lease = device.add(self.local, transport, internal, external).await;
                // A device that does not answer any more is looked for anew the next time.
                self.device = (lease != Err(Trouble::Silent)).then_some(device);
                lease
            }
        }
    }
}

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        let key = |lease: &Self| (lease.protocol, lease.transport, lease.internal, lease.external);
        key(self) == key(other)
    }
}

/// The address that this machine has towards `gateway`, as the kernel would choose it; nothing is sent.
fn local_towards(gateway: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((gateway, crab_nat::GATEWAY_PORT)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(v4) if !v4.is_unspecified() => Some(v4),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_no_port_names_the_router_and_what_to_do() {
        let gateway = Ipv4Addr::new(192, 168, 1, 1);
        let silent = Protocol::ALL.map(|protocol| (protocol, Trouble::Silent)).to_vec();
        let text = NoLease { gateway, troubles: silent.clone() }.to_string();
        assert!(text.contains("192.168.1.1 speaks neither") && text.contains("member.candidates"), "{text}");
        let mut troubles = silent;
        if let Some(last) = troubles.last_mut() {
            last.1 = Trouble::Refused("not authorised".to_owned());
        }
        let text = NoLease { gateway, troubles }.to_string();
        assert!(text.contains("(UPnP: not authorised)") && !text.contains("PCP:"), "{text}");
    }

    /// A router of 2005 that knows NAT-PMP alone, and forwards from 203.0.113.5 at one port higher.
    fn nat_pmp_router(at: Ipv4Addr) -> std::thread::JoinHandle<Vec<Vec<u8>>> {
        let socket = UdpSocket::bind((at, crab_nat::GATEWAY_PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        std::thread::spawn(move || {
            let mut heard = Vec::new();
            let mut buffer = [0; 1100];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let request = buffer.get(..len).unwrap_or_default().to_vec();
                let answer = match request.as_slice() {
                    [0, 0] => [&[0, 0x80, 0, 0, 0, 0, 0, 9][..], &[203, 0, 113, 5]].concat(),
                    [0, op, _, _, inner @ .., _, _, l0, l1, l2, l3] if inner.len() == 2 => {
                        let port = u16::from_be_bytes([inner[0], inner[1]]);
                        let gone = [*l0, *l1, *l2, *l3] == [0; 4];
                        let outer = if gone { 0 } else { port + 1 };
                        let fields = [inner, &outer.to_be_bytes(), &[*l0, *l1, *l2, *l3]].concat();
                        [&[0, 0x80 | op, 0, 0, 0, 0, 0, 9], fields.as_slice()].concat()
                    }
                    // "Unsupported version", in the form of NAT-PMP (RFC 6886 9.2).
                    _ => vec![0, 0x80, 0, 1, 0, 0, 0, 9],
                };
                let done = request.len() == 12 && request.ends_with(&[0; 4]);
                heard.push(request);
                socket.send_to(&answer, from).unwrap();
                if done {
                    break;
                }
            }
            heard
        })
    }

    #[tokio::test]
    async fn an_old_router_is_spoken_to_by_nat_pmp_and_told_at_the_end() {
        let at = Ipv4Addr::new(127, 53, 51, 1);
        let router = nat_pmp_router(at);
        let mut gateway = Gateway::new(at).unwrap();
        let lease = gateway.lease(Transport::Tcp, NonZeroU16::new(4000).unwrap()).await.unwrap();
        assert_eq!((lease.protocol, lease.external), (Protocol::NatPmp, "203.0.113.5:4001".parse().unwrap()));
        assert_eq!(lease.lifetime, Some(LIFETIME));
        let renewed = gateway.renew(&lease).await.unwrap();
        assert_eq!(renewed, lease);
        gateway.release(renewed).await;
        let heard = router.join().unwrap();
        let asked_for_port_0 = heard.iter().filter(
            |request| matches!(request.as_slice(), [0, 1 | 2, _, _, _, _, 0, 0, life @ ..] if life != [0; 4]),
        );
        assert_eq!(asked_for_port_0.count(), 0, "{heard:?}");
        assert!(heard.iter().filter(|request| request.first() == Some(&0)).count() >= 5, "{heard:?}");
    }

    #[test]
    fn towards_the_loopback_network_this_machine_is_itself() {
        assert_eq!(local_towards(Ipv4Addr::LOCALHOST), Some(Ipv4Addr::LOCALHOST));
    }
}
