//! Thousands of members on one internet, and what happens to them in ten minutes: they come and go, talk in pairs, move,
//! their routers reboot, their providers fail, the broker and the relays die and return.
//!
//! A crowd is a pure function of its seed. It keeps a diary of what is to happen; [`Crowd::run`] lets the world go on from
//! entry to entry.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::time::Duration;

use ntcp_overlay::base::rng::Rng;
use ntcp_overlay::base::rng::Seed;

use crate::Who;
use crate::ms;
use crate::nat::Behavior;
use crate::nat::Filtering;
use crate::nat::Mapping;
use crate::nat::OPEN;
use crate::nat::PORT_RESTRICTED;
use crate::nat::Ports;
use crate::nat::SYMMETRIC;
use crate::nat::simple;
use crate::net::NatId;
use crate::secs;
use crate::world::World;

/// Of a hundred sites, so many have such a NAT: mostly what home routers do, some carriers and offices.
const MIX: [(u32, Behavior); 6] = [
    (50, PORT_RESTRICTED),
    (12, Behavior { ports: Ports::Kept, hairpin: true, ..PORT_RESTRICTED }),
    (10, OPEN),
    (10, simple(Mapping::EndpointIndependent, Filtering::AddressDependent)),
    (10, SYMMETRIC),
    (8, Behavior { ports: Ports::Random, ..SYMMETRIC }),
];

/// What happens in a crowd.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// So many members.
    pub members: usize,
    /// Within this time all of them come.
    pub arrival: Duration,
    /// The crowd is looked at for so long.
    pub length: Duration,
    /// Whom each member talks to: so many others, chosen once.
    pub friends: u32,
    /// A conversation is so many questions.
    pub questions: u32,
    /// The pause between two questions, at most.
    pub pause: Duration,
    /// The rest between two conversations of one member, at most.
    pub rest: Duration,
    /// In the mean, one member in so many leaves, moves, or loses its router's memory each minute.
    pub steadiness: u32,
    /// Whether peers are met over TCP too, and then in how many of a hundred homes UDP does not pass.
    pub tcp: Option<u32>,
    /// Whether broker and relays die and return, and the internet falls into two for a while.
    pub disasters: bool,
}

impl Script {
    /// Two thousand members in ten minutes.
    pub const TWO_THOUSAND: Self = Self {
        members: 2000,
        arrival: secs(90),
        length: secs(600),
        friends: 3,
        questions: 5,
        pause: ms(6000),
        rest: secs(240),
        steadiness: 20,
        tcp: None,
        disasters: true,
    };
}

/// An entry of the diary.
#[derive(Clone, Copy, Debug)]
enum Event {
    Comes(Who),
    Leaves(Who),
    Moves(Who),
    Reboots(NatId),
    CutOff(Who),
    /// The line of a site is mended.
    Mended(IpAddr),
    Asks {
        who: Who,
        of: Who,
        left: u32,
    },
    Rests(Who),
    Incident,
    Broker(bool),
    Relay(usize, bool),
    Split(bool),
}

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Questions asked while both members were on and connected.
    pub asked: u64,
    /// Members that came or came back.
    pub came: u64,
    /// Members that left, half of them without a word.
    pub left: u64,
    /// Moves to another network.
    pub moved: u64,
    /// Routers that lost their memory.
    pub rebooted: u64,
    /// Sites that were cut off for a while.
    pub cut_off: u64,
}

/// Many members.
pub struct Crowd {
    /// Where they are.
    pub world: World,
    /// How it goes.
    pub tally: Tally,
    /// Everybody.
    pub members: Vec<Who>,
    script: Script,
    rng: Rng,
    diary: BTreeMap<(Duration, u64), Event>,
    entries: u64,
    nats: Vec<NatId>,
    friends: Vec<Vec<Who>>,
    away: Vec<bool>,
}

impl Crowd {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(script: Script, seed: u64) -> Self {
        let mut world = World::seeded(seed);
        world.records = false;
        world.server.add_relay(&world.authority, world.now);
        let mut bytes = [9; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut crowd = Self {
            world,
            tally: Tally::default(),
            members: Vec::new(),
            script,
            rng: Rng::new(Seed(bytes)),
            diary: BTreeMap::new(),
            entries: 0,
            nats: Vec::new(),
            friends: Vec::new(),
            away: Vec::new(),
        };
        crowd.settle();
        crowd
    }

    /// Lets the script's time pass.
    pub fn run(&mut self) {
        self.run_for(self.script.length);
    }

    /// Nothing happens any more: nobody comes, goes, moves or asks; what was broken is whole again.
    pub fn calm_down(&mut self) {
        let diary = std::mem::take(&mut self.diary);
        for event in diary.into_values() {
            match event {
                Event::Comes(_) | Event::Mended(_) | Event::Broker(true) | Event::Relay(_, true) => {
                    self.happens(event);
                }
                Event::Split(false) => self.happens(event),
                _ => {}
            }
        }
        self.diary.clear();
        self.members.clone().into_iter().for_each(|who| self.comes(who));
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.world.since_start() + time;
        while let Some(entry) = self.diary.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.world.run(at.saturating_sub(self.world.since_start()));
            self.happens(event);
        }
        self.world.run(end - self.world.since_start());
    }

    /// Sites with NATs of all kinds, one to three members each; some on a carrier's network, some in public.
    fn settle(&mut self) {
        let carriers: Vec<NatId> = (0..self.script.members.div_ceil(200))
            .map(|_| self.world.nat(Behavior { hairpin: true, ..PORT_RESTRICTED }))
            .collect();
        while self.members.len() < self.script.members {
            let nat = match self.rng.below(100) {
                0..5 => None,
                5..15 => {
                    let carrier = one_of(&carriers, &mut self.rng);
                    let behavior = self.behavior();
                    Some(self.world.nat_behind(carrier, behavior))
                }
                _ => {
                    let behavior = self.behavior();
                    Some(self.world.nat(behavior))
                }
            };
            self.nats.extend(nat);
            let people = if nat.is_some() { 1 + self.rng.below(10) / 7 + self.rng.below(10) / 9 } else { 1 };
            for _ in 0..people {
                if self.members.len() < self.script.members {
                    self.settle_one(nat);
                }
            }
        }
        for who in self.members.clone() {
            let others = (0..self.script.friends).map(|_| one_of(&self.members, &mut self.rng));
            self.friends.push(others.filter(|friend| *friend != who).collect());
        }
        for minute in 0..self.script.length.as_secs() / 60 {
            for _ in 0..self.members.len() / self.script.steadiness as usize {
                let at = secs(minute * 60) + self.within(secs(60));
                self.note(at, Event::Incident);
            }
        }
        if self.script.disasters {
            self.plan_disasters();
        }
    }

    fn settle_one(&mut self, nat: Option<NatId>) {
        let who = self.world.member(&format!("m{}", self.members.len()), nat);
        let chance = self.rng.below(100);
        let machine = &mut self.world.machines[who.0];
        machine.tcp = self.script.tcp.is_some();
        machine.no_udp = nat.is_some() && chance < self.script.tcp.unwrap_or(4);
        // In a large crowd one in fifty hears of everybody; for the others the network is larger than a directory.
        machine.uninformed = self.script.members > 100 && chance % 50 != 49;
        let public = self.world.outside(who);
        let (delay, jitter, loss) = (5 + self.rng.below(45), self.rng.below(4), self.rng.below(3));
        let region = u8::from(self.rng.below(3) == 0);
        let link = self.world.net.link(public);
        (link.delay, link.jitter) = (ms(delay.into()), ms(jitter.into()));
        (link.loss, link.region) = (f64::from(loss) / 200.0, region);
        self.members.push(who);
        self.away.push(true);
        let at = self.within(self.script.arrival);
        self.note(at, Event::Comes(who));
    }

    /// The broker is away for half a minute, then each relay, then the internet falls into two.
    fn plan_disasters(&mut self) {
        let of = |percent: u32| self.script.length * percent / 100;
        let plan: [(Duration, Event); 8] = [
            (of(40), Event::Broker(false)),
            (of(40) + secs(30), Event::Broker(true)),
            (of(55), Event::Relay(0, false)),
            (of(55) + secs(40), Event::Relay(0, true)),
            (of(65), Event::Relay(1, false)),
            (of(65) + secs(20), Event::Relay(1, true)),
            (of(75), Event::Split(true)),
            (of(75) + secs(20), Event::Split(false)),
        ];
        plan.into_iter().for_each(|(at, event)| self.note(at, event));
    }

    fn happens(&mut self, event: Event) {
        let now = self.world.since_start();
        match event {
            Event::Comes(who) => self.comes(who),
            Event::Leaves(who) if !self.away[who.0] => {
                self.tally.left += 1;
                self.away[who.0] = true;
                let noticed = self.rng.below(2) == 0;
                self.world.switch_off(who, noticed);
                let back = now + secs(5) + self.within(secs(60));
                self.note(back, Event::Comes(who));
            }
            Event::Moves(who) if !self.away[who.0] => {
                self.tally.moved += 1;
                let nat = one_of(&self.nats, &mut self.rng);
                let n = u16::try_from(who.0).expect("at most 65,534 members").to_be_bytes();
                self.world.roam(who, Some(nat), Ipv4Addr::new(192, 168, 128 + n[0] % 64, n[1]));
            }
            Event::Reboots(nat) => {
                self.tally.rebooted += 1;
                self.world.net.nats[nat.0].reboot();
            }
            Event::CutOff(who) => {
                self.tally.cut_off += 1;
                // Whoever is cut off may be elsewhere by the time the line is mended.
                let line = self.world.outside(who);
                self.world.cut_line(line, true);
                let back = now + secs(2) + self.within(secs(50));
                self.note(back, Event::Mended(line));
            }
            Event::Mended(line) => self.world.cut_line(line, false),
            Event::Asks { who, of, left } => self.asks(who, of, left),
            Event::Rests(who) => self.begins(who),
            Event::Incident => self.incident(),
            Event::Broker(true) => self.world.start_broker(),
            Event::Broker(false) => self.world.stop_broker(),
            Event::Relay(n, true) => self.world.server.start_relay(n, self.world.now),
            Event::Relay(n, false) => self.world.stop_relay(n),
            Event::Split(split) => self.world.split(split),
            Event::Leaves(_) | Event::Moves(_) => {}
        }
    }

    /// Is there, if it was not.
    fn comes(&mut self, who: Who) {
        if self.away[who.0] {
            self.away[who.0] = false;
            self.tally.came += 1;
            self.world.switch_on(who);
            let first = self.world.since_start() + secs(2) + self.within(self.script.rest / 4);
            self.note(first, Event::Rests(who));
        }
    }

    fn incident(&mut self) {
        let who = one_of(&self.members, &mut self.rng);
        let event = match self.rng.below(10) {
            0..4 => Event::Leaves(who),
            4..7 => Event::Moves(who),
            7..9 => Event::Reboots(one_of(&self.nats, &mut self.rng)),
            _ => Event::CutOff(who),
        };
        self.happens(event);
    }

    fn begins(&mut self, who: Who) {
        if self.away[who.0] || self.friends[who.0].is_empty() {
            return;
        }
        let of = one_of(&self.friends[who.0], &mut self.rng);
        self.asks(who, of, self.script.questions);
        let next = self.world.since_start() + self.script.rest / 2 + self.within(self.script.rest / 2);
        self.note(next, Event::Rests(who));
    }

    fn asks(&mut self, who: Who, of: Who, left: u32) {
        if self.away[who.0] || left == 0 {
            return;
        }
        if !self.away[of.0] && self.world.reaches_servers(who) && self.world.reaches_servers(of) {
            self.tally.asked += 1;
        }
        self.world.say(who, of, &format!("ping {left}"));
        let next = self.world.since_start() + self.script.pause / 4 + self.within(self.script.pause * 3 / 4);
        self.note(next, Event::Asks { who, of, left: left - 1 });
    }

    /// Introductions that brokers made, all lives together.
    #[must_use]
    pub fn introductions(&self) -> u64 {
        self.world.trace.introductions
    }

    /// Every member asks one other, and again each second, for `patience`: who got no answer from whom, and how many
    /// asked.
    pub fn who_cannot_talk(&mut self, patience: Duration) -> (Vec<(Who, Who)>, usize) {
        let count = self.members.len();
        let pairs: Vec<(Who, Who)> =
            (0..count).map(|n| (self.members[n], self.members[(n + count / 2) % count])).collect();
        let before: Vec<u64> = self.world.machines.iter().map(|machine| machine.answers).collect();
        let mut mute = pairs;
        for _ in 0..patience.as_secs() {
            for (who, of) in mute.clone() {
                self.world.say(who, of, "ping again");
            }
            self.run_for(secs(1));
            mute.retain(|(who, _)| self.world.machines[who.0].answers == before[who.0]);
            if mute.is_empty() {
                break;
            }
        }
        (mute, count)
    }

    /// How many answers came to all of them together.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.world.machines.iter().map(|machine| machine.answers).sum()
    }

    fn behavior(&mut self) -> Behavior {
        let mut at = self.rng.below(MIX.iter().map(|(share, _)| share).sum());
        for (share, behavior) in MIX {
            if at < share {
                return behavior;
            }
            at -= share;
        }
        PORT_RESTRICTED
    }

    fn within(&mut self, time: Duration) -> Duration {
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Duration::from_micros(self.rng.below(micros).into())
    }

    fn note(&mut self, at: Duration, event: Event) {
        self.entries += 1;
        self.diary.insert((at, self.entries), event);
    }
}

fn one_of<T: Copy>(all: &[T], rng: &mut Rng) -> T {
    all[rng.below(u32::try_from(all.len()).unwrap_or(u32::MAX)) as usize]
}
