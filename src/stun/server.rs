//! The stateless Binding server.
