//! Broker messages as bytes: a kind and self-describing fields ([`crate::wire::tlv`]).
//!
//! ```text
//! +---------------+---------------+-------------------------------+---------------
//! | kind, u8      | tag, u8       | length of the value, u16      | value ...       more fields ...
//! +---------------+---------------+-------------------------------+---------------
//! ```
//!
//! | kind | to the broker | fields | kind | from the broker | fields |
//! |---|---|---|---|---|---|
//! | 0x01 | Redeem | SECRET SIGNING_REQUEST | 0x81 | Enrolled | CERTIFICATE |
//! | 0x02 | Register | SOFTWARE CANDIDATE* PROFILE ENDPOINT* VERSION WATCH | 0x82 | Registered | REGISTRATION UDP* STUN* OBSERVED TIME FORGE |
//! | 0x03 | Update | CANDIDATE* PROFILE | | | |
//! | 0x04 | Lookup | REQUEST, NAME or ADDRESS | 0x84 | Found | REQUEST MEMBER |
//! | 0x05 | List | REQUEST NAME | 0x85 | Listing | REQUEST MEMBER* MORE |
//! | 0x06 | Connect | REQUEST, NAME or ADDRESS, NOISE | 0x86 | Offer | ATTEMPT REQUEST MEMBER CANDIDATE* PROFILE RELAY* NOISE |
//! | 0x07 | Convey | ATTEMPT NOISE | 0x87 | Conveyed | ATTEMPT NOISE |
//! | 0x08 | Ready | ATTEMPT ROUND ENDPOINT* MILLIS | 0x88 | Changed | MEMBER |
//! | | | | 0x8d | Awaited | ATTEMPT ROUND |
//! | | | | 0x8e | Go | ATTEMPT ROUND ENDPOINT* MILLIS |
//! | 0x09 | Delays | DELAY* | 0x8f | Relays | PLACE* |
//! | 0x0d | Dialled | ATTEMPT ROUND FORGE OBSERVED SYN | 0x90 | Dialled | ATTEMPT ROUND FORGE SYN |
//! | | | | 0x89 | Revocations | REVOCATIONS |
//! | 0x0a | Renew | REQUEST SIGNING_REQUEST | 0x8a | Renewed | REQUEST CERTIFICATE |
//! | | | | 0x8b | Refused | REQUEST REFUSAL TEXT |
//! | 0x0c | Ping | NONCE | 0x8c | Pong | NONCE |
//!
//! MEMBER holds the fields CERTIFICATE ONLINE LAST_SEEN; RELAY holds CERTIFICATE ENDPOINT* SESSION TOKEN; PLACE holds NAME
//! ENDPOINT*; DELAY is a number of milliseconds (u16, all ones: unreachable) and a name. `*` is a list.
//! Integers are big-endian; addresses, candidates and profiles look as in [`crate::wire::profile`]; times are
//! microseconds since 1970. A tag means the same in every message.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use super::FromBroker;
use super::MAX_AUTHENTICATED;
use super::MAX_CERTIFICATE;
use super::MAX_ENDPOINTS;
use super::MAX_LISTED;
use super::MAX_NOISE;
use super::MAX_PLACES;
use super::MAX_RELAYS;
use super::MAX_REQUEST;
use super::MAX_REVOCATIONS;
use super::MAX_STUN;
use super::MAX_SYN;
use super::MAX_TOKEN;
use super::MAX_UDP;
use super::MAX_WAIT;
use super::MemberRecord;
use super::Offer;
use super::Refusal;
use super::Register;
use super::Registered;
use super::RelayDelay;
use super::RelayOffer;
use super::RelayPlace;
use super::Target;
use super::ToBroker;
use crate::base::cursor::Reader;
use crate::base::cursor::Writer;
use crate::base::hidden::Hidden;
use crate::base::id::AttemptId;
use crate::base::id::RegistrationId;
use crate::base::id::RelaySession;
use crate::base::id::RequestId;
use crate::base::time::UnixTime;
use crate::identity::names::MemberName;
use crate::nat::behavior::Profile;
use crate::nat::candidate::Candidate;
use crate::nat::candidate::MAX_CANDIDATES;
use crate::wire::WireError;
use crate::wire::profile;
use crate::wire::tlv::Emitter;
use crate::wire::tlv::FIELD_HEADER;
use crate::wire::tlv::Fields;

mod kind {
    pub(super) const REDEEM: u8 = 0x01;
    pub(super) const REGISTER: u8 = 0x02;
    pub(super) const UPDATE: u8 = 0x03;
    pub(super) const LOOKUP: u8 = 0x04;
    pub(super) const LIST: u8 = 0x05;
    pub(super) const CONNECT: u8 = 0x06;
    pub(super) const CONVEY: u8 = 0x07;
    pub(super) const READY: u8 = 0x08;
    pub(super) const DELAYS: u8 = 0x09;
    pub(super) const DIALLED: u8 = 0x0d;
    pub(super) const RENEW: u8 = 0x0a;
    pub(super) const PING: u8 = 0x0c;
    pub(super) const ENROLLED: u8 = 0x81;
    pub(super) const REGISTERED: u8 = 0x82;
    pub(super) const FOUND: u8 = 0x84;
    pub(super) const LISTING: u8 = 0x85;
    pub(super) const OFFER: u8 = 0x86;
    pub(super) const CONVEYED: u8 = 0x87;
    pub(super) const CHANGED: u8 = 0x88;
    pub(super) const REVOCATIONS: u8 = 0x89;
    pub(super) const RENEWED: u8 = 0x8a;
    pub(super) const REFUSED: u8 = 0x8b;
    pub(super) const PONG: u8 = 0x8c;
    pub(super) const AWAITED: u8 = 0x8d;
    pub(super) const GO: u8 = 0x8e;
    pub(super) const RELAYS: u8 = 0x8f;
    pub(super) const BOTH_DIALLED: u8 = 0x90;
}

mod tag {
    pub(super) const REQUEST: u8 = 1;
    pub(super) const NONCE: u8 = 2;
    pub(super) const SECRET: u8 = 3;
    pub(super) const SIGNING_REQUEST: u8 = 4;
    pub(super) const CERTIFICATE: u8 = 5;
    pub(super) const NAME: u8 = 6;
    pub(super) const ADDRESS: u8 = 7;
    pub(super) const SOFTWARE: u8 = 8;
    pub(super) const CANDIDATE: u8 = 9;
    pub(super) const PROFILE: u8 = 10;
    pub(super) const ENDPOINT: u8 = 11;
    pub(super) const VERSION: u8 = 12;
    pub(super) const WATCH: u8 = 13;
    pub(super) const NOISE: u8 = 14;
    pub(super) const ATTEMPT: u8 = 15;
    pub(super) const MEMBER: u8 = 16;
    pub(super) const ONLINE: u8 = 17;
    pub(super) const LAST_SEEN: u8 = 18;
    pub(super) const RELAY: u8 = 19;
    pub(super) const SESSION: u8 = 20;
    pub(super) const TOKEN: u8 = 21;
    pub(super) const REGISTRATION: u8 = 22;
    pub(super) const UDP: u8 = 23;
    pub(super) const OBSERVED: u8 = 24;
    pub(super) const TIME: u8 = 25;
    pub(super) const MORE: u8 = 26;
    pub(super) const REVOCATIONS: u8 = 27;
    pub(super) const REFUSAL: u8 = 28;
    pub(super) const TEXT: u8 = 29;
    pub(super) const STUN: u8 = 30;
    pub(super) const ROUND: u8 = 31;
    pub(super) const MILLIS: u8 = 32;
    pub(super) const DELAY: u8 = 33;
    pub(super) const PLACE: u8 = 34;
    pub(super) const SYN: u8 = 35;
    pub(super) const FORGE: u8 = 36;
}

/// In the place of a delay: the relay cannot be reached.
const UNREACHABLE: u16 = u16::MAX;

impl ToBroker {
    /// The message's bytes; never more than [`MAX_AUTHENTICATED`]. What exceeds a cap (of a list, of a text) is cut off.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut m = Emitter::message(match self {
            Self::Redeem { .. } => kind::REDEEM,
            Self::Register(_) => kind::REGISTER,
            Self::Update { .. } => kind::UPDATE,
            Self::Lookup { .. } => kind::LOOKUP,
            Self::List { .. } => kind::LIST,
            Self::Connect { .. } => kind::CONNECT,
            Self::Convey { .. } => kind::CONVEY,
            Self::Ready { .. } => kind::READY,
            Self::Delays(_) => kind::DELAYS,
            Self::Dialled { .. } => kind::DIALLED,
            Self::Renew { .. } => kind::RENEW,
            Self::Ping { .. } => kind::PING,
        });
        match self {
            Self::Redeem { secret, request } => {
                m.field(tag::SECRET, &secret.0).capped(tag::SIGNING_REQUEST, request, MAX_REQUEST);
            }
            Self::Register(register) => {
                m.text(tag::SOFTWARE, &register.software)
                    .candidates(tag::CANDIDATE, &register.candidates)
                    .profile(&register.profile)
                    .candidates(tag::ENDPOINT, &register.relay);
                if register.revocations != 0 {
                    m.field(tag::VERSION, &register.revocations.to_be_bytes());
                }
                m.flag(tag::WATCH, register.watch);
            }
            Self::Update { candidates, profile } => {
                m.candidates(tag::CANDIDATE, candidates).profile(profile);
            }
            Self::Lookup { request, target } => {
                m.request(*request).target(target);
            }
            Self::List { request, after } => {
                m.request(*request)
                    .unless_empty(tag::NAME, after.as_ref().map_or(&[], |name| name.as_str().as_bytes()));
            }
            Self::Connect { request, target, noise } => {
                m.request(*request).target(target).noise(noise);
            }
            Self::Convey { attempt, noise } => {
                m.field(tag::ATTEMPT, &attempt.0).noise(noise);
            }
            Self::Ready { attempt, round, endpoints, rtt } => {
                m.round(*attempt, *round).endpoints(endpoints).millis(*rtt);
            }
            Self::Delays(delays) => {
                for delay in delays.iter().take(MAX_PLACES) {
                    m.field(tag::DELAY, &emit_delay(delay));
                }
            }
            Self::Dialled { attempt, round, forge, from, syn } => {
                m.round(*attempt, *round).flag(tag::FORGE, *forge).endpoint(tag::OBSERVED, *from);
                m.capped(tag::SYN, syn, MAX_SYN);
            }
            Self::Renew { request, csr } => {
                m.request(*request).capped(tag::SIGNING_REQUEST, csr, MAX_REQUEST);
            }
            Self::Ping { nonce } => {
                m.field(tag::NONCE, &nonce.to_be_bytes());
            }
        }
        m.finish()
    }

    /// Reads one message. The cap for strangers ([`super::MAX_UNAUTHENTICATED`]) is the caller's to apply, before it
    /// reads the bytes at all.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes; [`WireError::Unknown`] for a kind that this program does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let (kind, f) = open(bytes)?;
        Ok(match kind {
            kind::REDEEM => Self::Redeem {
                secret: Hidden(f.array(tag::SECRET)?),
                request: f.bytes(tag::SIGNING_REQUEST, MAX_REQUEST)?,
            },
            kind::REGISTER => Self::Register(Register {
                software: f.text(tag::SOFTWARE)?,
                candidates: candidates(f, tag::CANDIDATE)?,
                profile: profile(f)?,
                relay: candidates(f, tag::ENDPOINT)?,
                revocations: match f.optional(tag::VERSION)? {
                    None => 0,
                    Some(_) => u64::from_be_bytes(f.array(tag::VERSION)?),
                },
                watch: f.flag(tag::WATCH)?,
            }),
            kind::UPDATE => Self::Update { candidates: candidates(f, tag::CANDIDATE)?, profile: profile(f)? },
            kind::LOOKUP => Self::Lookup { request: request(f)?, target: target(f)? },
            kind::LIST => Self::List { request: request(f)?, after: name(f)? },
            kind::CONNECT => Self::Connect {
                request: request(f)?,
                target: target(f)?,
                noise: f.bytes_or_empty(tag::NOISE, MAX_NOISE)?,
            },
            kind::CONVEY => Self::Convey {
                attempt: AttemptId(f.array(tag::ATTEMPT)?),
                noise: f.nonempty(tag::NOISE, MAX_NOISE)?,
            },
            kind::READY => Self::Ready {
                attempt: AttemptId(f.array(tag::ATTEMPT)?),
                round: f.byte(tag::ROUND)?,
                endpoints: endpoints(f)?,
                rtt: millis(f)?,
            },
            kind::DELAYS => {
                Self::Delays(f.list(tag::DELAY, MAX_PLACES)?.map(parse_delay).collect::<Result<_, _>>()?)
            }
            kind::DIALLED => Self::Dialled {
                attempt: AttemptId(f.array(tag::ATTEMPT)?),
                round: f.byte(tag::ROUND)?,
                forge: f.flag(tag::FORGE)?,
                from: endpoint(f.required(tag::OBSERVED)?)?,
                syn: f.nonempty(tag::SYN, MAX_SYN)?,
            },
            kind::RENEW => {
                Self::Renew { request: request(f)?, csr: f.bytes(tag::SIGNING_REQUEST, MAX_REQUEST)? }
            }
            kind::PING => Self::Ping { nonce: u32::from_be_bytes(f.array(tag::NONCE)?) },
            _ => return Err(WireError::Unknown),
        })
    }
}

impl FromBroker {
    /// The message's bytes; never more than [`MAX_AUTHENTICATED`]. What exceeds a cap (of a list, of a text) is cut off;
    /// a listing says so in `more`.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut m = Emitter::message(match self {
            Self::Enrolled { .. } => kind::ENROLLED,
            Self::Registered(_) => kind::REGISTERED,
            Self::Found { .. } => kind::FOUND,
            Self::Listing { .. } => kind::LISTING,
            Self::Offer(_) => kind::OFFER,
            Self::Conveyed { .. } => kind::CONVEYED,
            Self::Changed(_) => kind::CHANGED,
            Self::Revocations(_) => kind::REVOCATIONS,
            Self::Renewed { .. } => kind::RENEWED,
            Self::Refused { .. } => kind::REFUSED,
            Self::Pong { .. } => kind::PONG,
            Self::Awaited { .. } => kind::AWAITED,
            Self::Go { .. } => kind::GO,
            Self::Relays(_) => kind::RELAYS,
            Self::Dialled { .. } => kind::BOTH_DIALLED,
        });
        match self {
            Self::Enrolled { certificate } => {
                m.capped(tag::CERTIFICATE, certificate, MAX_CERTIFICATE);
            }
            Self::Registered(registered) => {
                m.field(tag::REGISTRATION, &registered.registration.0.to_be_bytes());
                for addr in registered.udp.iter().take(MAX_UDP) {
                    m.endpoint(tag::UDP, *addr);
                }
                for addr in registered.stun.iter().take(MAX_STUN) {
                    m.endpoint(tag::STUN, *addr);
                }
                m.endpoint(tag::OBSERVED, registered.observed)
                    .field(tag::TIME, &registered.time.micros().to_be_bytes())
                    .flag(tag::FORGE, registered.forge);
            }
            Self::Found { request, member } => {
                m.request(*request).field(tag::MEMBER, &emit_member(member));
            }
            Self::Listing { request, members, more } => {
                m.request(*request);
                let mut cut = false;
                for (n, member) in members.iter().enumerate() {
                    let record = emit_member(member);
                    let room_after = MAX_AUTHENTICATED.saturating_sub(m.len() + FIELD_HEADER + record.len());
                    if n == MAX_LISTED || room_after < FIELD_HEADER + 1 {
                        cut = true;
                        break;
                    }
                    m.field(tag::MEMBER, &record);
                }
                m.flag(tag::MORE, *more || cut);
            }
            Self::Offer(offer) => {
                m.field(tag::ATTEMPT, &offer.attempt.0);
                if let Some(request) = offer.request {
                    m.request(request);
                }
                m.field(tag::MEMBER, &emit_member(&offer.peer))
                    .candidates(tag::CANDIDATE, &offer.candidates)
                    .profile(&offer.profile);
                for relay in offer.relays.iter().take(MAX_RELAYS) {
                    m.field(tag::RELAY, &emit_relay(relay));
                }
                m.noise(&offer.noise);
            }
            Self::Conveyed { attempt, noise } => {
                m.field(tag::ATTEMPT, &attempt.0).noise(noise);
            }
            Self::Changed(member) => {
                m.field(tag::MEMBER, &emit_member(member));
            }
            Self::Revocations(list) => {
                m.capped(tag::REVOCATIONS, list, MAX_REVOCATIONS);
            }
            Self::Renewed { request, certificate } => {
                m.request(*request).capped(tag::CERTIFICATE, certificate, MAX_CERTIFICATE);
            }
            Self::Refused { request, why, text } => {
                m.request(*request).field(tag::REFUSAL, &[refusal_number(*why)]).text(tag::TEXT, text);
            }
            Self::Pong { nonce } => {
                m.field(tag::NONCE, &nonce.to_be_bytes());
            }
            Self::Awaited { attempt, round } => {
                m.round(*attempt, *round);
            }
            Self::Relays(places) => {
                for place in places.iter().take(MAX_PLACES) {
                    m.field(tag::PLACE, &emit_place(place));
                }
            }
            Self::Go { attempt, round, endpoints, wait } => {
                m.round(*attempt, *round).endpoints(endpoints).millis((*wait).min(MAX_WAIT));
            }
            Self::Dialled { attempt, round, forge, syn } => {
                m.round(*attempt, *round).flag(tag::FORGE, *forge).capped(tag::SYN, syn, MAX_SYN);
            }
        }
        m.finish()
    }

    /// Reads one message.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes; [`WireError::Unknown`] for a kind that this program does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let (kind, f) = open(bytes)?;
        Ok(match kind {
            kind::ENROLLED => Self::Enrolled { certificate: f.bytes(tag::CERTIFICATE, MAX_CERTIFICATE)? },
            kind::REGISTERED => Self::Registered(Registered {
                registration: RegistrationId(u64::from_be_bytes(f.array(tag::REGISTRATION)?)),
                udp: f.list(tag::UDP, MAX_UDP)?.map(endpoint).collect::<Result<_, _>>()?,
                stun: f.list(tag::STUN, MAX_STUN)?.map(endpoint).collect::<Result<_, _>>()?,
                observed: endpoint(f.required(tag::OBSERVED)?)?,
                time: time(f, tag::TIME)?,
                forge: f.flag(tag::FORGE)?,
            }),
            kind::FOUND => {
                Self::Found { request: request(f)?, member: parse_member(f.required(tag::MEMBER)?)? }
            }
            kind::LISTING => Self::Listing {
                request: request(f)?,
                members: f.list(tag::MEMBER, MAX_LISTED)?.map(parse_member).collect::<Result<_, _>>()?,
                more: f.flag(tag::MORE)?,
            },
            kind::OFFER => Self::Offer(Offer {
                attempt: AttemptId(f.array(tag::ATTEMPT)?),
                request: match f.optional(tag::REQUEST)? {
                    None => None,
                    Some(_) => Some(request(f)?),
                },
                peer: parse_member(f.required(tag::MEMBER)?)?,
                candidates: candidates(f, tag::CANDIDATE)?,
                profile: profile(f)?,
                relays: f.list(tag::RELAY, MAX_RELAYS)?.map(parse_relay).collect::<Result<_, _>>()?,
                noise: f.bytes_or_empty(tag::NOISE, MAX_NOISE)?,
            }),
            kind::CONVEYED => Self::Conveyed {
                attempt: AttemptId(f.array(tag::ATTEMPT)?),
                noise: f.nonempty(tag::NOISE, MAX_NOISE)?,
            },
            kind::CHANGED => Self::Changed(parse_member(f.required(tag::MEMBER)?)?),
            kind::REVOCATIONS => Self::Revocations(f.bytes(tag::REVOCATIONS, MAX_REVOCATIONS)?),
            kind::RENEWED => Self::Renewed {
                request: request(f)?,
                certificate: f.bytes(tag::CERTIFICATE, MAX_CERTIFICATE)?,
            },
            kind::REFUSED => Self::Refused {
                request: request(f)?,
                why: refusal(f.array::<1>(tag::REFUSAL)?),
                text: f.text(tag::TEXT)?,
            },
            kind::PONG => Self::Pong { nonce: u32::from_be_bytes(f.array(tag::NONCE)?) },
            kind::AWAITED => {
                Self::Awaited { attempt: AttemptId(f.array(tag::ATTEMPT)?), round: f.byte(tag::ROUND)? }
            }
            kind::RELAYS => {
                Self::Relays(f.list(tag::PLACE, MAX_PLACES)?.map(parse_place).collect::<Result<_, _>>()?)
            }
            kind::GO => Self::Go {
                attempt: AttemptId(f.array(tag::ATTEMPT)?),
                round: f.byte(tag::ROUND)?,
                endpoints: endpoints(f)?,
                wait: Some(millis(f)?).filter(|wait| *wait <= MAX_WAIT).ok_or(WireError::Invalid)?,
            },
            kind::BOTH_DIALLED => Self::Dialled {
                attempt: AttemptId(f.array(tag::ATTEMPT)?),
                round: f.byte(tag::ROUND)?,
                forge: f.flag(tag::FORGE)?,
                syn: f.nonempty(tag::SYN, MAX_SYN)?,
            },
            _ => return Err(WireError::Unknown),
        })
    }
}

fn open(bytes: &[u8]) -> Result<(u8, Fields<'_>), WireError> {
    if bytes.len() > MAX_AUTHENTICATED {
        return Err(WireError::TooLong);
    }
    let mut reader = Reader::new(bytes);
    let kind = reader.u8()?;
    Ok((kind, Fields::new(reader.rest())?))
}

impl Emitter {
    /// A value that its reader refuses when it is longer than `max` is left out here already.
    fn capped(&mut self, tag: u8, value: &[u8], max: usize) -> &mut Self {
        if value.len() > max { self } else { self.field(tag, value) }
    }

    fn request(&mut self, request: RequestId) -> &mut Self {
        self.field(tag::REQUEST, &request.0.to_be_bytes())
    }

    fn noise(&mut self, noise: &[u8]) -> &mut Self {
        if noise.is_empty() { self } else { self.capped(tag::NOISE, noise, MAX_NOISE) }
    }

    fn target(&mut self, target: &Target) -> &mut Self {
        match target {
            Target::Name(name) => self.field(tag::NAME, name.as_str().as_bytes()),
            Target::Addr(ip) => {
                let mut writer = Writer::new();
                profile::put_ip(&mut writer, *ip);
                self.field(tag::ADDRESS, writer.as_slice())
            }
        }
    }

    fn endpoint(&mut self, tag: u8, addr: SocketAddr) -> &mut Self {
        let mut writer = Writer::new();
        profile::put_endpoint(&mut writer, addr);
        self.field(tag, writer.as_slice())
    }

    fn round(&mut self, attempt: AttemptId, round: u8) -> &mut Self {
        self.field(tag::ATTEMPT, &attempt.0).field(tag::ROUND, &[round])
    }

    fn endpoints(&mut self, endpoints: &[SocketAddr]) -> &mut Self {
        for addr in endpoints.iter().take(MAX_ENDPOINTS) {
            self.endpoint(tag::ENDPOINT, *addr);
        }
        self
    }

    fn millis(&mut self, millis: u16) -> &mut Self {
        if millis == 0 { self } else { self.field(tag::MILLIS, &millis.to_be_bytes()) }
    }

    fn candidates(&mut self, tag: u8, candidates: &[Candidate]) -> &mut Self {
        for candidate in candidates.iter().take(MAX_CANDIDATES) {
            let mut writer = Writer::new();
            profile::put_candidate(&mut writer, candidate);
            self.field(tag, writer.as_slice());
        }
        self
    }

    fn profile(&mut self, value: &Profile) -> &mut Self {
        if *value == Profile::default() {
            return self;
        }
        let mut writer = Writer::new();
        profile::put_profile(&mut writer, value);
        self.field(tag::PROFILE, writer.as_slice())
    }
}

fn emit_member(member: &MemberRecord) -> Vec<u8> {
    let mut m = Emitter::record();
    m.capped(tag::CERTIFICATE, &member.certificate, MAX_CERTIFICATE)
        .flag(tag::ONLINE, member.online)
        .field(tag::LAST_SEEN, &member.last_seen.micros().to_be_bytes());
    m.finish()
}

fn parse_member(bytes: &[u8]) -> Result<MemberRecord, WireError> {
    let f = Fields::new(bytes)?;
    Ok(MemberRecord {
        certificate: f.bytes(tag::CERTIFICATE, MAX_CERTIFICATE)?,
        online: f.flag(tag::ONLINE)?,
        last_seen: time(f, tag::LAST_SEEN)?,
    })
}

fn emit_relay(relay: &RelayOffer) -> Vec<u8> {
    let mut m = Emitter::record();
    m.capped(tag::CERTIFICATE, &relay.certificate, MAX_CERTIFICATE)
        .candidates(tag::ENDPOINT, &relay.endpoints)
        .field(tag::SESSION, &relay.session.0)
        .capped(tag::TOKEN, &relay.token.0, MAX_TOKEN);
    m.finish()
}

fn parse_relay(bytes: &[u8]) -> Result<RelayOffer, WireError> {
    let f = Fields::new(bytes)?;
    Ok(RelayOffer {
        certificate: f.bytes(tag::CERTIFICATE, MAX_CERTIFICATE)?,
        endpoints: candidates(f, tag::ENDPOINT)?,
        session: RelaySession(f.array(tag::SESSION)?),
        token: Hidden(f.bytes(tag::TOKEN, MAX_TOKEN)?),
    })
}

fn emit_place(place: &RelayPlace) -> Vec<u8> {
    let mut m = Emitter::record();
    m.field(tag::NAME, place.name.as_str().as_bytes()).candidates(tag::ENDPOINT, &place.endpoints);
    m.finish()
}

fn parse_place(bytes: &[u8]) -> Result<RelayPlace, WireError> {
    let f = Fields::new(bytes)?;
    let name = name(f)?.ok_or(WireError::Missing)?;
    Ok(RelayPlace { name, endpoints: candidates(f, tag::ENDPOINT)? })
}

fn emit_delay(delay: &RelayDelay) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u16(delay.rtt.unwrap_or(UNREACHABLE)).put(delay.name.as_str().as_bytes());
    writer.finish()
}

fn parse_delay(bytes: &[u8]) -> Result<RelayDelay, WireError> {
    let mut reader = Reader::new(bytes);
    let rtt = Some(reader.u16()?).filter(|rtt| *rtt != UNREACHABLE);
    let name = parse_name(reader.rest())?;
    Ok(RelayDelay { name, rtt })
}

fn request(f: Fields<'_>) -> Result<RequestId, WireError> {
    f.array(tag::REQUEST).map(u32::from_be_bytes).map(RequestId)
}

fn name(f: Fields<'_>) -> Result<Option<MemberName>, WireError> {
    f.optional(tag::NAME)?.map(parse_name).transpose()
}

fn parse_name(bytes: &[u8]) -> Result<MemberName, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Invalid)?;
    text.parse().map_err(|_| WireError::Invalid)
}

fn target(f: Fields<'_>) -> Result<Target, WireError> {
    match (name(f)?, f.optional(tag::ADDRESS)?) {
        (Some(name), None) => Ok(Target::Name(name)),
        (None, Some(value)) => whole(value, profile::take_ip).map(|ip: IpAddr| Target::Addr(ip)),
        (None, None) => Err(WireError::Missing),
        (Some(_), Some(_)) => Err(WireError::Invalid),
    }
}

fn endpoint(value: &[u8]) -> Result<SocketAddr, WireError> {
    whole(value, profile::take_endpoint)
}

fn endpoints(f: Fields<'_>) -> Result<Vec<SocketAddr>, WireError> {
    f.list(tag::ENDPOINT, MAX_ENDPOINTS)?.map(endpoint).collect()
}

fn millis(f: Fields<'_>) -> Result<u16, WireError> {
    match f.optional(tag::MILLIS)? {
        None => Ok(0),
        Some(_) => f.array(tag::MILLIS).map(u16::from_be_bytes),
    }
}

/// Candidates of a transport or kind that this program does not know are passed over.
fn candidates(f: Fields<'_>, tag: u8) -> Result<Vec<Candidate>, WireError> {
    f.list(tag, MAX_CANDIDATES)?
        .map(|value| whole(value, profile::take_candidate))
        .filter(|candidate| *candidate != Err(WireError::Unknown))
        .collect()
}

fn profile(f: Fields<'_>) -> Result<Profile, WireError> {
    match f.optional(tag::PROFILE)? {
        None => Ok(Profile::default()),
        Some(value) => whole(value, profile::take_profile),
    }
}

fn time(f: Fields<'_>, tag: u8) -> Result<UnixTime, WireError> {
    f.array(tag).map(|bytes| UnixTime::from_epoch(Duration::from_micros(u64::from_be_bytes(bytes))))
}

/// A value must be used up by what reads it.
fn whole<'a, T>(
    value: &'a [u8],
    take: impl FnOnce(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<T, WireError> {
    let mut reader = Reader::new(value);
    let taken = take(&mut reader)?;
    if reader.is_empty() { Ok(taken) } else { Err(WireError::Invalid) }
}

fn refusal_number(why: Refusal) -> u8 {
    match why {
        Refusal::NotFound => 1,
        Refusal::Offline => 2,
        Refusal::InvalidInvite => 3,
        Refusal::NameTaken => 4,
        Refusal::NoAddressLeft => 5,
        Refusal::TooMany => 6,
        Refusal::NoAuthority => 7,
        Refusal::Malformed => 8,
        Refusal::Forbidden => 9,
    }
}

/// A reason that only a newer broker knows reads as "forbidden": asking again does not help, and the text explains.
fn refusal([number]: [u8; 1]) -> Refusal {
    match number {
        1 => Refusal::NotFound,
        2 => Refusal::Offline,
        3 => Refusal::InvalidInvite,
        4 => Refusal::NameTaken,
        5 => Refusal::NoAddressLeft,
        6 => Refusal::TooMany,
        7 => Refusal::NoAuthority,
        8 => Refusal::Malformed,
        _ => Refusal::Forbidden,
    }
}
