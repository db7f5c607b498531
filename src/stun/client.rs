//! One transaction: request, retransmission ladder, answer or timeout (RFC 8489 6.2.1).
