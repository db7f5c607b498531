//! The UDP ports of a survey.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Tasks;
use super::failed;
use crate::discovery::probe::Datagram;
use crate::discovery::probe::Finding;
use crate::discovery::probe::Heard;
use crate::discovery::probe::Slot;
use crate::discovery::probe::WAITS;
use crate::discovery::question::Question;
use crate::wire::stun::Integrity;
use crate::wire::stun::Message;
use crate::wire::stun::Received;
use crate::wire::stun::TransactionId;

/// Largest datagram that is looked at.
const MAX_DATAGRAM: usize = 1500;

/// A message and where it came from.
type Letter = (SocketAddr, Message);

/// The ports of a survey; each is bound when it is first used.
pub(super) struct Ears {
    local: IpAddr,
    ears: BTreeMap<Slot, Arc<Ear>>,
    readers: JoinSet<()>,
}

struct Ear {
    socket: UdpSocket,
    local: SocketAddr,
    waiting: Mutex<BTreeMap<TransactionId, oneshot::Sender<Letter>>>,
}

impl Ears {
    pub(super) fn new(local: IpAddr) -> Self {
        Self { local, ears: BTreeMap::new(), readers: JoinSet::new() }
    }

    /// Sends a datagram and waits for what comes of it, in a task.
    pub(super) fn send(&mut self, question: Question, datagram: Datagram, tasks: &mut Tasks) {
        let both = self.ear(datagram.from).and_then(|from| Ok((from, self.ear(datagram.hear)?)));
        match both {
            Ok((from, hear)) => {
                let (heard, answer) = oneshot::channel();
                hear.waiting().insert(datagram.message.transaction, heard);
                let bytes = datagram.message.emit(Integrity::None);
                if datagram.after.is_zero() {
                    // A full buffer or a dead route is a loss like any other: it is sent again.
                    let _ = from.socket.try_send_to(&bytes, datagram.to);
                }
                tasks.spawn(async move { (question, follow(&from, &datagram, &bytes, answer).await) });
            }
            Err(error) => {
                tasks.spawn(async move { (question, failed("no UDP port", &error)) });
            }
        }
    }

    fn ear(&mut self, slot: Slot) -> io::Result<Arc<Ear>> {
        if let Some(ear) = self.ears.get(&slot) {
            return Ok(Arc::clone(ear));
        }
        let socket = std::net::UdpSocket::bind((self.local, 0))?;
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let ear = Arc::new(Ear { socket: UdpSocket::from_std(socket)?, local, waiting: Mutex::default() });
        self.readers.spawn(read(Arc::clone(&ear)));
        self.ears.insert(slot, Arc::clone(&ear));
        Ok(ear)
    }
}

impl Ear {
    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<TransactionId, oneshot::Sender<Letter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands each message to whoever waits for its transaction id; strangers' datagrams are nobody's.
async fn read(ear: Arc<Ear>) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        // An error is an ICMP message about something sent before: whoever waits learns it from the silence.
        let Ok((len, source)) = ear.socket.recv_from(&mut buffer).await else { continue };
        let Ok(received) = Received::parse(buffer.get(..len).unwrap_or_default()) else { continue };
        let waiting = ear.waiting().remove(&received.message.transaction);
        if let Some(waiting) = waiting {
            let _ = waiting.send((source, received.message));
        }
    }
}

async fn follow(
    from: &Ear,
    datagram: &Datagram,
    bytes: &[u8],
    mut answer: oneshot::Receiver<Letter>,
) -> Finding {
    if !datagram.after.is_zero() {
        tokio::time::sleep(datagram.after).await;
        let _ = from.socket.send_to(bytes, datagram.to).await;
    }
    for (n, wait) in WAITS.into_iter().enumerate() {
        if n > 0 {
            let _ = from.socket.send_to(bytes, datagram.to).await;
        }
        if let Ok(Ok((source, message))) = tokio::time::timeout(wait, &mut answer).await {
            return Finding::Heard(Heard { source, local: from.local, message, sequence: None });
        }
    }
    Finding::Silence
}
