//! Where everything is plugged in: the internet, the networks behind NATs, and how a datagram gets from one to another.
//!
//! A [`Realm`] is a network in which addresses mean something: the internet, a carrier's network, a home. Every realm but
//! the internet stands behind one NAT, whose outside is an address in another realm; so NATs may be nested. Datagrams are
//! translated outward the moment they are sent (the NAT is next door) and inward when they arrive.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use ntcp_overlay::base::rng::Rng;

use crate::Who;
use crate::ms;
use crate::nat::Behavior;
use crate::nat::Nat;
use crate::server;

/// From anybody to the middle of the internet, and from there to anybody.
pub const TO_THE_MIDDLE: Duration = ms(20);
/// Within one realm that is not the internet.
const ON_THE_LAN: Duration = ms(1);

/// A network in which addresses mean something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Realm(usize);

/// The realm that is behind no NAT.
pub const INTERNET: Realm = Realm(0);

/// A NAT.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NatId(pub usize);

/// How a public address hangs on the internet.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// To the middle of the internet, in each direction.
    pub delay: Duration,
    /// Up to so much is added to the delay of a datagram, so datagrams overtake each other.
    pub jitter: Duration,
    /// Share of datagrams that get lost, in each direction.
    pub loss: f64,
    /// Whether anything passes at all.
    pub up: bool,
    /// Which side of a split internet it is on.
    pub region: u8,
}

impl Default for Link {
    fn default() -> Self {
        Self { delay: TO_THE_MIDDLE, jitter: Duration::ZERO, loss: 0.0, up: true, region: 0 }
    }
}

/// Who answers at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A machine.
    Machine(Who),
    /// A NAT's outside.
    Nat(NatId),
    /// The broker or a relay.
    Server,
}

/// What becomes of a datagram that leaves a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// The source as the realm sees it in which the destination is looked for.
    pub from: SocketAddr,
    /// That realm.
    pub realm: Realm,
    /// When it arrives; `None` if it never does.
    pub after: Option<Duration>,
}

/// The way of something through the NATs before its sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// What becomes of it.
    pub(crate) sent: Sent,
    /// Whether it crosses the middle of the internet.
    pub(crate) crosses: bool,
}

/// All realms, NATs and links.
#[derive(Debug)]
pub struct Net {
    /// The NATs.
    pub nats: Vec<Nat>,
    /// Pairs of public addresses between which nothing passes, in this direction.
    pub blocked: BTreeSet<(IpAddr, IpAddr)>,
    /// Whether the regions of the internet are cut off from each other.
    pub split: bool,
    /// Share of all datagrams and segments that get lost, beside what links lose.
    pub loss: f64,
    /// The NAT before each realm; the internet has none.
    gateways: Vec<Option<NatId>>,
    outsides: Vec<Realm>,
    owners: HashMap<(Realm, IpAddr), Owner>,
    links: HashMap<IpAddr, Link>,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            nats: Vec::new(),
            blocked: BTreeSet::new(),
            split: false,
            loss: 0.0,
            gateways: vec![None],
            outsides: Vec::new(),
            owners: HashMap::new(),
            links: HashMap::new(),
        }
    }
}

impl Net {
    /// A NAT whose outside is in `outside`.
    pub(crate) fn add_nat(&mut self, outside: Realm, behavior: Behavior) -> NatId {
        let n = u32::try_from(self.nats.len()).unwrap_or(u32::MAX);
        let public = match (outside, u8::try_from(n)) {
            (INTERNET, Ok(n)) if n < 200 => Ipv4Addr::new(203, 0, 113, 10 + n),
            (INTERNET, _) => Ipv4Addr::from(u32::from(Ipv4Addr::new(45, 0, 0, 0)) + n),
            // RFC 6598: what carriers number their customers' routers with.
            _ => Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 1)) + n),
        };
        let id = NatId(self.nats.len());
        self.nats.push(Nat::new(public, behavior));
        self.gateways.push(Some(id));
        self.outsides.push(outside);
        self.owners.insert((outside, public.into()), Owner::Nat(id));
        id
    }

    /// The realm behind a NAT.
    #[must_use]
    pub fn behind(&self, nat: Option<NatId>) -> Realm {
        nat.map_or(INTERNET, |nat| Realm(nat.0 + 1))
    }

    /// The public address through which the world sees `ip` of `realm`.
    #[must_use]
    pub fn outside(&self, realm: Realm, ip: IpAddr) -> IpAddr {
        let (mut realm, mut ip) = (realm, ip);
        while let Some(nat) = self.gateways[realm.0] {
            (realm, ip) = (self.outsides[nat.0], self.nats[nat.0].public.into());
        }
        ip
    }

    /// How a public address hangs on the internet.
    pub fn link(&mut self, public: IpAddr) -> &mut Link {
        self.links.entry(public).or_default()
    }

    /// Whether anything passes between a public address and the servers.
    #[must_use]
    pub fn is_up(&self, public: IpAddr) -> bool {
        self.links.get(&public).is_none_or(|link| link.up)
    }

    pub(crate) fn plug_in(&mut self, realm: Realm, ip: IpAddr, who: Who) {
        self.owners.insert((realm, ip), Owner::Machine(who));
    }

    pub(crate) fn unplug(&mut self, realm: Realm, ip: IpAddr) {
        self.owners.remove(&(realm, ip));
    }

    /// Who has `ip` in `realm`.
    #[must_use]
    pub fn owner(&self, realm: Realm, ip: IpAddr) -> Option<Owner> {
        if realm == INTERNET && server::is_here(ip) {
            return Some(Owner::Server);
        }
        self.owners.get(&(realm, ip)).copied()
    }

    /// The NATs before whoever is behind `nat`, the innermost first.
    pub(crate) fn before(&self, nat: Option<NatId>) -> impl Iterator<Item = NatId> {
        std::iter::successors(nat, |nat| self.gateways[self.outsides[nat.0].0])
    }

    /// Sends a datagram from `from` in `realm`: outward through NATs until somebody has the destination's address.
    pub(crate) fn send(
        &mut self,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
        rng: &mut Rng,
    ) -> Sent {
        let way = self.route(realm, from, to, rng, |nat, _, source| Some(nat.outward(source, to, now)));
        way.map_or(Sent { from, realm, after: None }, |way| way.sent)
    }

    /// The way of something from `from` in `realm`, which `outward` takes out through each NAT: told the realm out there
    /// and the source in here, it answers the source out there, or `None` if it goes no further.
    pub(crate) fn route(
        &mut self,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
        rng: &mut Rng,
        mut outward: impl FnMut(&mut Nat, Realm, SocketAddr) -> Option<SocketAddr>,
    ) -> Option<Way> {
        let (mut at, mut source, mut left) = (realm, from, None);
        loop {
            if let Some(owner) = self.owner(at, to.ip()) {
                let returns = left.filter(|nat| owner == Owner::Nat(*nat));
                let after = match returns {
                    Some(nat) if !self.nats[nat.0].behavior.hairpin => None,
                    Some(_) => Some(ON_THE_LAN),
                    None if at == INTERNET => self.cross(source.ip(), to.ip(), rng),
                    None => Some(ON_THE_LAN),
                };
                let crosses = at == INTERNET && returns.is_none();
                return Some(Way { sent: Sent { from: source, realm: at, after }, crosses });
            }
            let Some(nat) = self.gateways[at.0] else {
                // Nobody has the address; who injects datagrams may want to see what is sent there all the same.
                let is_public = matches!(to.ip(), IpAddr::V4(v4) if !v4.is_private() && !is_shared(v4));
                let after = is_public.then(|| self.cross(source.ip(), to.ip(), rng)).flatten();
                return Some(Way { sent: Sent { from: source, realm: at, after }, crosses: true });
            };
            let outside = self.outsides[nat.0];
            source = outward(&mut self.nats[nat.0], outside, source)?;
            (at, left) = (outside, Some(nat));
        }
    }

    /// Through the middle of the internet; `None` if it gets lost.
    pub(crate) fn cross(&self, from: IpAddr, to: IpAddr, rng: &mut Rng) -> Option<Duration> {
        let default = Link::default();
        let [a, b] = [from, to].map(|ip| self.links.get(&ip).unwrap_or(&default));
        if !a.up || !b.up || self.split && a.region != b.region || self.blocked.contains(&(from, to)) {
            return None;
        }
        let passes = (1.0 - self.loss) * (1.0 - a.loss) * (1.0 - b.loss);
        if passes < 1.0 && f64::from(rng.u32()) >= passes * f64::from(u32::MAX) {
            return None;
        }
        let jitter = u32::try_from((a.jitter + b.jitter).as_micros()).unwrap_or(0);
        let extra = if jitter > 0 { Duration::from_micros(rng.below(jitter).into()) } else { Duration::ZERO };
        Some(a.delay + b.delay + extra)
    }

    /// Who gets a datagram that arrived for `to` in `realm`, and at which address, after all NATs have let it in; `Err` if
    /// one did not or nobody has the address.
    pub(crate) fn receive(
        &mut self,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Result<(Owner, SocketAddr), Lost> {
        self.admit(realm, to, |nat, _, port| nat.inward(from, port, now))
    }

    /// Who gets something that arrived for `to` in `realm`, and at which address, if `inward` takes it in through each NAT:
    /// told the realm out there and the port that it arrived at, it answers where it goes in here.
    pub(crate) fn admit(
        &mut self,
        realm: Realm,
        to: SocketAddr,
        mut inward: impl FnMut(&mut Nat, Realm, u16) -> Option<SocketAddr>,
    ) -> Result<(Owner, SocketAddr), Lost> {
        let (mut at, mut to) = (realm, to);
        loop {
            match self.owner(at, to.ip()) {
                Some(Owner::Nat(nat)) => {
                    to = inward(&mut self.nats[nat.0], at, to.port()).ok_or(Lost::Filtered)?;
                    at = self.behind(Some(nat));
                }
                Some(owner) => return Ok((owner, to)),
                None => return Err(Lost::Nobody),
            }
        }
    }
}

/// Why a datagram that arrived reaches nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// A NAT did not let it in.
    Filtered,
    /// Nobody has the address.
    Nobody,
}

fn is_shared(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64
}
