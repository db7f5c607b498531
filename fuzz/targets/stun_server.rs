//! Any datagrams, from a few endpoints, to a STUN server with two addresses and two ports: every answer goes to the address
//! that asked, comes from the server, and nobody gets more than he sent and the allowance.
#![no_main]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::base::grid::Grid;
use ntcp_overlay::base::grid::Home;
use ntcp_overlay::stun::discovery_server::DiscoveryServer;
use ntcp_overlay::wire::stun::Received;

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    let homes = [[198, 51, 100, 1], [198, 51, 100, 2]].map(|ip| Home { bound: ip.into(), seen: ip.into() });
    let mut server = DiscoveryServer::new(Grid::new(homes.to_vec(), 3478, Some(3479), Some(3480)), start);
    let (mut sent, mut got, mut millis) = (BTreeMap::new(), BTreeMap::new(), 0);
    // A datagram: who, where, how much later, how long, and its bytes.
    let mut rest = data;
    while let [who, place, wait, len, tail @ ..] = rest {
        let (bytes, next) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = next;
        millis += u64::from(*wait);
        let from = SocketAddr::from(([203, 0, 113, who >> 2], 4000 + u16::from(who & 3)));
        let home = homes[usize::from(place & 1)].bound;
        let local = SocketAddr::new(home, 3478 + u16::from(place >> 1 & 1));
        *sent.entry(from.ip()).or_insert(0) += bytes.len();
        let now = start + Duration::from_millis(millis);
        let Some(reply) = server.handle_datagram(bytes, from, local, now) else { continue };
        assert_eq!(reply.to.ip(), from.ip());
        assert!(
            homes.iter().any(|home| home.bound == reply.from.ip())
                && (3478..=3479).contains(&reply.from.port())
        );
        Received::parse(&reply.bytes).expect("what we write, we read");
        *got.entry(from.ip()).or_insert(0) += reply.bytes.len();
        let allowance = 4096 + 256 * usize::try_from(millis / 1000 + 1).expect("seconds");
        assert!(got[&from.ip()] <= sent[&from.ip()] + allowance);
    }
});
