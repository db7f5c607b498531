//! Floor: engine.

pub mod broker;
pub mod cleanup;
pub mod clock;
pub mod dial;
pub mod enroll;
pub mod framed;
pub mod link;
pub mod member;
pub mod membership;
pub mod relay;
pub mod responder;
pub mod roles;
pub mod serve;
pub mod stun_server;
pub mod tls;
pub mod up;
