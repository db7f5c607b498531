//! The certificate authority of a network.
