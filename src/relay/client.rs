//! One side of a relay session, as a member sees it: bind, refresh, wrap.
