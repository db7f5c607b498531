//! A look from outside: what one of our TCP connections looks like to the broker.
//!
//! A STUN Binding over TCP to the broker's own port, authenticated like a UDP registration.

use std::net::SocketAddr;

use crate::base::id::RegistrationId;
use crate::wire::stun;
use crate::wire::stun::TransactionId;

/// Whom to ask, and how to prove who asks.
#[derive(Clone, Copy)]
pub struct Observer {
    /// The broker, where we reached it over TCP.
    pub at: SocketAddr,
    /// Our registration there.
    pub registration: RegistrationId,
    /// Its key, from the TLS session.
    pub key: [u8; 32],
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Observer({})", self.at)
    }
}

impl Observer {
    /// The question.
    #[must_use]
    pub fn request(&self, transaction: TransactionId) -> Vec<u8> {
        stun::Message::request(stun::BINDING, transaction)
            .with(stun::Attribute::Username(self.registration.0.to_be_bytes().to_vec()))
            .emit(stun::Integrity::Sha256(&self.key))
    }

    /// What an authentic answer to `transaction` says.
    #[must_use]
    pub fn answer(&self, bytes: &[u8], transaction: TransactionId) -> Option<SocketAddr> {
        let received = stun::Received::parse(bytes).ok()?;
        let message = &received.message;
        let ours = message.class == stun::Class::Success
            && message.transaction == transaction
            && received.is_authentic(&self.key);
        message.mapped().filter(|_| ours)
    }
}
