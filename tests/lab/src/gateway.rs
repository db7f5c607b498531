//! A router that opens ports on request: Debian's `miniupnpd`, which speaks UPnP IGD, NAT-PMP and PCP.
//!
//! It keeps its rules in a table of its own, `ntl_upnp`; what it forwards passes the NAT's filter as anything else that
//! has been translated. It refuses to serve where the router's outer address is private or meant for documentation, as a
//! real one does behind a carrier's NAT, and where its inner one is public. So that a gateway below a gateway can be had
//! at all, a carrier's inside may have addresses that look public: there it listens at a private address besides.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::process::Process;
use crate::topology::Router;

/// How long it may take to start.
const START: Duration = Duration::from_secs(10);

/// The chains that it puts its rules into. Translation comes after the NAT's own, which thereby wins.
const CHAINS: &str = "\
table inet ntl_upnp {
  chain forward { }
  chain back { type nat hook prerouting priority dstnat + 1; }
  chain out { type nat hook postrouting priority srcnat + 1; }
}
";

/// Where a gateway listens whose inside has addresses that look public.
const BESIDES: &str = "10.255.255.1";

/// What a gateway speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Speaks {
    /// UPnP IGD 1 and 2.
    pub upnp: bool,
    /// NAT-PMP and PCP, on the same port.
    pub pcp: bool,
}

impl Speaks {
    /// Everything.
    pub const ALL: Self = Self { upnp: true, pcp: true };
}

/// A running gateway daemon.
#[derive(Debug)]
pub struct Gateway {
    /// The process, whose log tells of every request.
    pub process: Process,
}

impl Gateway {
    /// Starts one on a router that translates.
    pub fn start(on: &Router<'_>, speaks: Speaks) -> Result<Self> {
        let yes = |on| if on { "yes" } else { "no" };
        let (inner, mut chains) = (on.inner(), CHAINS.to_owned());
        let listening = if inner.is_private() || is_shared(inner) {
            "lan".to_owned()
        } else {
            on.ns().ip(&format!("addr add {BESIDES}/32 dev lan\n"))?;
            chains += &format!(
                "add rule inet ntl_upnp back iifname \"lan\" ip daddr {inner} udp dport 5351 dnat ip to {BESIDES}\n"
            );
            // The mask says who counts as inside: everybody from 0.0.0.0 to 127.255.255.255.
            format!("{BESIDES}/1")
        };
        let config = format!(
            "ext_ifname=wan\n\
             listening_ip={listening}\n\
             enable_upnp={}\n\
             enable_natpmp={}\n\
             secure_mode=yes\n\
             http_port=5000\n\
             uuid=5f0a5d1e-0000-4000-8000-6e74636c6162\n\
             upnp_table_name=ntl_upnp\n\
             upnp_nat_table_name=ntl_upnp\n\
             upnp_forward_chain=forward\n\
             upnp_nat_chain=back\n\
             upnp_nat_postrouting_chain=out\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\n\
             deny 0-65535 0.0.0.0/0 0-65535\n",
            yes(speaks.upnp),
            yes(speaks.pcp)
        );
        let files = on.ns().files()?;
        let (file, pid) = (files.join("miniupnpd.conf"), files.join("miniupnpd.pid"));
        fs::write(&file, config)?;
        on.ns().nft(&chains)?;
        let [file, pid] = [&file, &pid].map(|path| path.to_str().context("a path of the lab is not UTF-8"));
        // In the foreground and talkative. The file of its process id is the lab's, not the machine's.
        let mut process = on.ns().spawn(&["miniupnpd", "-d", "-f", file?, "-P", pid?])?;
        let last = if speaks.pcp { "Listening for NAT-PMP/PCP" } else { "HTTP listening" };
        process.wait_for_line(last, START)?;
        Ok(Self { process })
    }
}

/// 100.64.0.0/10, between a carrier and its customers: RFC 6598.
fn is_shared(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [100, 64..=127, ..])
}
