//! The relay itself: bind requests in, answers and forwarded messages out; never a socket.
