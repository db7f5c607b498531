//! The broker's UDP sockets: registrations of members, and plain Binding answers for anybody. One thread per address.
//!
//! A registration that changes nothing is answered without asking the broker: one look into a table, one keyed hash.
//! That is what has to scale; only a changed address takes the broker's lock.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crate::base::id::RegistrationId;
use crate::engine::broker::hub::Hub;
use crate::engine::clock;
use crate::engine::responder;
use crate::engine::responder::Stop;
use crate::stun::limiter::Limiter;
use crate::stun::server;
use crate::wire::stun::Attribute;
use crate::wire::stun::BINDING;
use crate::wire::stun::Class;
use crate::wire::stun::Integrity;
use crate::wire::stun::Received;

/// TCP connections with which one member may ask what it looks like at a time: more than its attempts at direct
/// connections that run at once.
const MAX_LOOKS: usize = 32;

/// What is needed to answer one member's registrations.
#[derive(Debug)]
struct Registered {
    key: [u8; 32],
    /// The newest accepted, for IPv4 and IPv6: its time and its source.
    last: Mutex<[Option<(u64, SocketAddr)>; 2]>,
    /// TCP connections that ask what they look like, open now.
    looks: AtomicUsize,
}

/// One TCP connection of a member that asks what it looks like; counted while it lives.
#[derive(Debug)]
pub(super) struct Look {
    member: RegistrationId,
    of: Arc<Registered>,
}

impl Look {
    /// Whose it is.
    pub(super) fn member(&self) -> RegistrationId {
        self.member
    }

    /// The key of its answers.
    pub(super) fn key(&self) -> &[u8; 32] {
        &self.of.key
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.of.looks.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What became of a registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Answer it; the source is the one before.
    Same,
    /// Answer it, and tell the broker of the new source.
    Moved,
    /// Forged, replayed, or of nobody who is connected: silence.
    Ignore,
}

/// All registrations, by name.
#[derive(Debug, Default)]
pub(super) struct Registrations(RwLock<HashMap<RegistrationId, Arc<Registered>>>);

impl Registrations {
    /// From now on `id` may register with `key`.
    pub(super) fn allow(&self, id: RegistrationId, key: [u8; 32]) {
        let entry = Arc::new(Registered { key, last: Mutex::default(), looks: AtomicUsize::new(0) });
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, entry);
    }

    /// And no longer.
    pub(super) fn forget(&self, id: RegistrationId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn find(&self, id: RegistrationId) -> Option<Arc<Registered>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// Who sent a message, if it is authentic.
fn sender(
    registrations: &Registrations,
    received: &Received<'_>,
) -> Option<(RegistrationId, Arc<Registered>)> {
    let message = &received.message;
    if message.class != Class::Request || message.method != BINDING {
        return None;
    }
    let id = RegistrationId(u64::from_be_bytes(message.username()?.try_into().ok()?));
    let entry = registrations.find(id)?;
    received.is_authentic(&entry.key).then_some((id, entry))
}

/// The first message of a TCP connection that asks what it looks like. `None` if it is not a member's, or its member has
/// [`MAX_LOOKS`] such connections already. A replay is harmless: it is told its own address, which its handshake proves.
pub(super) fn look(registrations: &Registrations, received: &Received<'_>) -> Option<Look> {
    let (member, of) = sender(registrations, received)?;
    let before = of.looks.fetch_add(1, Ordering::Relaxed);
    Some(Look { member, of }).filter(|_| before < MAX_LOOKS)
}

impl Registered {
    /// Judges a message that says it comes at `time`. The same message from the same source is answered again, because
    /// the first answer may be lost; anything older, or the same from elsewhere, is a replay.
    fn judge(&self, time: u64, from: SocketAddr) -> Verdict {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let [v4, v6] = &mut *last;
        let slot = if from.is_ipv4() { v4 } else { v6 };
        match *slot {
            Some((newest, source)) if time < newest || (time == newest && source != from) => Verdict::Ignore,
            Some((_, source)) => {
                *slot = Some((time, from));
                if source == from { Verdict::Same } else { Verdict::Moved }
            }
            None => {
                *slot = Some((time, from));
                Verdict::Moved
            }
        }
    }
}

/// The registration that a message is, with the key that its answer needs; `None` if it is none, or deserves silence.
pub(super) fn judge(
    registrations: &Registrations,
    received: &Received<'_>,
    from: SocketAddr,
) -> Option<(RegistrationId, [u8; 32], Verdict)> {
    let (id, entry) = sender(registrations, received)?;
    let verdict = entry.judge(received.message.timestamp()?, from);
    (verdict != Verdict::Ignore).then_some((id, entry.key, verdict))
}

/// What came in on UDP, each since the start.
#[derive(Debug, Default)]
pub(super) struct UdpCounters {
    pub(super) registrations: AtomicU64,
    pub(super) bindings: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) limited: AtomicU64,
    pub(super) garbage: AtomicU64,
}

/// Serves one socket on a thread of its own until `stop`.
///
/// # Errors
/// If the socket or the thread cannot be had.
pub(super) fn spawn(hub: Arc<Hub>, socket: UdpSocket, stop: Stop) -> io::Result<JoinHandle<()>> {
    let mut limiter = Limiter::new(clock::now().instant);
    responder::spawn("broker-udp", socket, stop, move |bytes, from, local| {
        on_datagram(&hub, bytes, from, local, &mut limiter)
    })
}

fn on_datagram(
    hub: &Hub,
    bytes: &[u8],
    from: SocketAddr,
    local: SocketAddr,
    limiter: &mut Limiter,
) -> Option<Vec<u8>> {
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    let counters = &hub.udp_counters;
    let Ok(received) = Received::parse(bytes) else {
        count(&counters.garbage);
        return None;
    };
    if received.message.username().is_some() {
        let Some((id, key, verdict)) = judge(&hub.registrations, &received, from) else {
            count(&counters.refused);
            return None;
        };
        count(&counters.registrations);
        if verdict == Verdict::Moved {
            hub.on_mapped(id, from);
        }
        let answer = received.message.success().with(Attribute::XorMappedAddress(from));
        return Some(answer.emit(Integrity::Sha256(&key)));
    }
    if !limiter.allow(from, clock::now().instant) {
        count(&counters.limited);
        return None;
    }
    let answer = server::respond(&received, from, local);
    count(if answer.is_some() { &counters.bindings } else { &counters.refused });
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::Message;
    use crate::wire::stun::TransactionId;

    const KEY: [u8; 32] = [7; 32];
    const ID: RegistrationId = RegistrationId(0x0102_0304_0506_0708);

    fn registration(id: u64, time: u64, key: &[u8]) -> Vec<u8> {
        Message::request(BINDING, TransactionId([1; 12]))
            .with(Attribute::Username(id.to_be_bytes().to_vec()))
            .with(Attribute::Timestamp(time))
            .emit(Integrity::Sha256(key))
    }

    fn verdict(registrations: &Registrations, bytes: &[u8], from: &str) -> Option<Verdict> {
        let received = Received::parse(bytes).unwrap();
        judge(registrations, &received, from.parse().unwrap()).map(|(_, _, verdict)| verdict)
    }

    #[test]
    fn registrations_move_with_their_source_and_replays_are_ignored() {
        let all = Registrations::default();
        all.allow(ID, KEY);
        let (home, away) = ("198.51.100.1:4000", "203.0.113.1:5000");
        let first = registration(ID.0, 100, &KEY);
        for (case, bytes, from, wanted) in [
            ("the first", first.clone(), home, Some(Verdict::Moved)),
            ("sent again because the answer was lost", first.clone(), home, Some(Verdict::Same)),
            ("replayed from elsewhere", first.clone(), away, None),
            ("a later one", registration(ID.0, 101, &KEY), home, Some(Verdict::Same)),
            ("replayed after it", first.clone(), home, None),
            ("a later one from elsewhere", registration(ID.0, 102, &KEY), away, Some(Verdict::Moved)),
            (
                "IPv6 counts for itself",
                registration(ID.0, 50, &KEY),
                "[2001:db8::1]:4000",
                Some(Verdict::Moved),
            ),
            ("another key", registration(ID.0, 200, &[8; 32]), home, None),
            ("another name", registration(9, 200, &KEY), home, None),
        ] {
            assert_eq!(verdict(&all, &bytes, from), wanted, "{case}");
        }
        all.forget(ID);
        assert_eq!(verdict(&all, &registration(ID.0, 300, &KEY), home), None, "gone with its connection");
    }

    #[test]
    fn a_registration_without_time_or_integrity_is_none() {
        let all = Registrations::default();
        all.allow(ID, KEY);
        let request = Message::request(BINDING, TransactionId([1; 12]))
            .with(Attribute::Username(ID.0.to_be_bytes().to_vec()));
        assert_eq!(verdict(&all, &request.emit(Integrity::Sha256(&KEY)), "192.0.2.1:1"), None);
        let bare = request.with(Attribute::Timestamp(1));
        assert_eq!(verdict(&all, &bare.emit(Integrity::None), "192.0.2.1:1"), None);
        assert_eq!(verdict(&all, &bare.emit(Integrity::Sha256(&KEY)), "192.0.2.1:1"), Some(Verdict::Moved));
    }
}
