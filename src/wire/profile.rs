//! Candidates, endpoints and NAT profiles as bytes: parts of broker messages.
