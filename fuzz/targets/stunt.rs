//! Any requests on connections to a STUNT server, and any packets at its silent port: whatever is done is done to the
//! address at the other end of the connection that asked, and every answer can be read.
#![no_main]

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::base::grid::Grid;
use ntcp_overlay::base::grid::Home;
use ntcp_overlay::base::rng::Rng;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::stunt::server::Done;
use ntcp_overlay::stunt::server::Means;
use ntcp_overlay::stunt::server::Order;
use ntcp_overlay::stunt::server::StuntServer;
use ntcp_overlay::stunt::server::Verdict;
use ntcp_overlay::wire::stun::Received;
use ntcp_overlay::wire::stun::captured;

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    let homes = [[198, 51, 100, 1], [198, 51, 100, 2]].map(|ip| Home { bound: ip.into(), seen: ip.into() });
    let grid = Grid::new(homes.to_vec(), 3478, Some(3479), Some(3480));
    let means = Means { own_syn: true, raw: true };
    let mut server = StuntServer::new(grid, means, Rng::new(Seed([1; 32])), start);
    let local = SocketAddr::new(homes[0].bound, 3478);
    let askers = [4000, 4001].map(|port| SocketAddr::from(([203, 0, 113, 5], port)));
    for asker in askers {
        assert!(server.handle_connected(asker, start));
    }
    // A message or a packet: which, how much later, how long, and its bytes.
    let (mut rest, mut millis) = (data, 0);
    while let [kind, wait, len, tail @ ..] = rest {
        let (bytes, next) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = next;
        millis += u64::from(*wait);
        let now = start + Duration::from_millis(millis);
        if kind & 2 == 0 {
            if let Ok((from, to, segment)) = captured::read(bytes) {
                server.handle_segment(from, to, segment, now);
            }
            while server.poll_outcome().is_some() {}
            continue;
        }
        let asker = askers[usize::from(kind & 1)];
        let Ok(received) = Received::parse(bytes) else { continue };
        let answer = match server.handle_request(&received, (asker, local), None, now) {
            None => continue,
            Some(Verdict::Answer(answer)) => answer,
            Some(Verdict::Act(ticket, order)) => {
                match order {
                    Order::Connect { from, to, .. } => {
                        assert_eq!(to.ip(), asker.ip());
                        assert!(homes.iter().any(|home| home.bound == from.ip()));
                    }
                    Order::Send { packet, to, .. } => {
                        assert_eq!(to, asker.ip());
                        assert_eq!(packet.get(16..20), Some(&[203, 0, 113, 5][..]));
                    }
                    Order::Wait(_) => {}
                }
                if kind & 4 != 0 {
                    continue; // it still runs
                }
                server.handle_done(ticket, Done::Taken).expect("it ran")
            }
        };
        Received::parse(&answer).expect("what we write, we read");
    }
});
