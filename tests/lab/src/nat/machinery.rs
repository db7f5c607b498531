//! What a router needs besides rules: more outer addresses, loops by which packets come back to it, kernel parameters.
//!
//! All of it is built when a behaviour first asks for it, also while the router runs, and then stays.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use super::Behaviour;
use super::Forgetting;
use super::Hairpin;
use super::OnIcmp;
use super::POOL;
use super::Pooling;
use super::Reaction;
use super::Rules;
use super::forgetting;
use super::forgetting::Watch;
use super::rules;
use super::rules::Outside;
use crate::lab::lock;
use crate::ns::Namespace;
use crate::wire;
use crate::wire::Link;

/// How long an unsolicited SYN waits for its refusal: RFC 5382, REQ-4.
const LATE: Duration = Duration::from_secs(6);

/// Turns a namespace with the interfaces `wan` and `lan` into a router that obeys rules.
#[derive(Debug)]
pub(crate) struct Machinery {
    ns: Namespace,
    outside: Outside,
    hairpin: bool,
    late: bool,
    watch: Option<Watch>,
}

impl Machinery {
    /// Of a router whose outer address is `wan`; nothing is in force yet.
    pub(crate) fn new(ns: &Namespace, wan: Ipv4Addr) -> Self {
        let outside = Outside { addresses: vec![wan], restarts: 0 };
        Self { ns: ns.clone(), outside, hairpin: false, late: false, watch: None }
    }

    /// Puts rules into force, in place of those that are. What is established and still allowed goes on.
    pub(crate) fn enforce(&mut self, rules: &Rules) -> Result<()> {
        if let Some((udp, tcp)) = rules.nat.behaviours() {
            let any = |has: fn(&Behaviour) -> bool| has(&udp) || has(&tcp);
            if any(|does| does.pooling == Pooling::Arbitrary) {
                self.pool()?;
            }
            if any(|does| does.hairpin == Hairpin::External) {
                self.hairpin_loop()?;
            }
            if any(|does| does.hairpin == Hairpin::Internal) {
                // Nobody is to tell the hosts that they could have reached each other without the router.
                self.ns.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
                self.ns.sysctl("net/ipv4/conf/lan/send_redirects", "0")?;
            }
            if any(|does| does.reaction == Reaction::LateReset) {
                self.slow_loop()?;
            }
            if any(|does| does.icmp == OnIcmp::Mapping) || self.watch.is_some() {
                let watch = match self.watch.take() {
                    Some(watch) => watch,
                    None => self.watch()?,
                };
                watch.set(udp.icmp == OnIcmp::Mapping, tcp.icmp == OnIcmp::Mapping);
                self.watch = Some(watch);
            }
        }
        self.ns.nft(&format!("{}{}", rules::RESET, rules::ruleset(rules, &self.outside)))?;
        // These exist once conntrack is in use.
        rules.sysctls().iter().try_for_each(|(key, value)| self.ns.sysctl(key, value))
    }

    /// Power off and on: every mapping is lost, and ports step from elsewhere.
    pub(crate) fn restart(&mut self, rules: &Rules) -> Result<()> {
        self.outside.restarts += 1;
        self.enforce(rules)?;
        self.ns.inside(forgetting::everything)?.context("cannot clear the table of connections")
    }

    /// More outer addresses.
    fn pool(&mut self) -> Result<()> {
        let [a, b, c, wan] = self.outside.addresses.first().context("a router has an address")?.octets();
        if self.outside.addresses.len() > 1 {
            return Ok(());
        }
        // From the top down, for neighbours below a carrier have pools too.
        let top = 254_u8.checked_sub((wan - 1) * (POOL - 1)).context("no addresses left for a pool")?;
        for last in top..top + POOL - 1 {
            let address = Ipv4Addr::new(a, b, c, last);
            self.ns.ip(&format!("addr add {address}/24 dev wan\n"))?;
            if self.hairpin {
                self.turn_back(address)?;
            }
            self.outside.addresses.push(address);
        }
        Ok(())
    }

    /// The veth loop that brings packets for the router's own outer addresses back in, translated.
    fn hairpin_loop(&mut self) -> Result<()> {
        if self.hairpin {
            return Ok(());
        }
        self.ns.ip(
            "link add hp0 address 02:00:00:00:00:10 type veth peer name hp1 address 02:00:00:00:00:11\n\
             link set hp0 up\n\
             link set hp1 up\n\
             rule add pref 100 lookup local\n\
             rule del pref 0\n",
        )?;
        for address in &self.outside.addresses {
            self.turn_back(*address)?;
        }
        // A packet with the router's own address as its source is what this loop is for.
        self.ns.sysctl("net/ipv4/conf/hp1/accept_local", "1")?;
        self.hairpin = true;
        Ok(())
    }

    /// Sends what comes from inside for this address into the loop.
    fn turn_back(&self, address: Ipv4Addr) -> Result<()> {
        // Fixed hardware addresses, so that no ARP with the router's own address as its source is needed.
        self.ns.ip(&format!(
            "route add {address}/32 dev hp0 table 77\n\
             neigh add {address} lladdr 02:00:00:00:00:11 dev hp0 nud permanent\n\
             rule add pref 10 iif lan to {address} ipproto udp lookup 77\n\
             rule add pref 10 iif lan to {address} ipproto tcp lookup 77\n"
        ))
    }

    /// The wire through which unsolicited SYNs go before they are refused.
    fn slow_loop(&mut self) -> Result<()> {
        if self.late {
            return Ok(());
        }
        wire::join((&self.ns, "late0"), (&self.ns, "late1"), &Link::delayed(LATE))?;
        self.ns.ip("link set late0 address 02:00:00:00:00:20\n\
             link set late1 address 02:00:00:00:00:21\n\
             link set late0 up\n\
             link set late1 up\n\
             route add 192.0.2.1/32 dev late0\n\
             neigh add 192.0.2.1 lladdr 02:00:00:00:00:21 dev late0 nud permanent\n")?;
        self.ns.sysctl("net/ipv4/conf/late1/rp_filter", "0")?;
        self.late = true;
        Ok(())
    }

    fn watch(&self) -> Result<Watch> {
        let forgetting = Forgetting::start(&self.ns)?;
        let watch = forgetting.watch();
        lock(&self.ns.lab().forgetting).push(forgetting);
        Ok(watch)
    }
}
