//! A hostile STUN server: whatever it answers, a survey of the NATs comes to an end, sends no more than its budget, and to
//! nobody but single hosts.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::base::addr::is_candidate;
use ntcp_overlay::base::rng::Seed;
use ntcp_overlay::discovery::BUDGET;
use ntcp_overlay::discovery::LIFETIMES_BUDGET;
use ntcp_overlay::discovery::Scope;
use ntcp_overlay::discovery::Survey;
use ntcp_overlay::discovery::probe::Finding;
use ntcp_overlay::discovery::probe::Heard;
use ntcp_overlay::discovery::probe::Probe;
use ntcp_overlay::wire::stun::Received;

fuzz_target!(|data: &[u8]| {
    let server: SocketAddr = "198.51.100.1:3478".parse().expect("an address");
    let local: SocketAddr = "192.168.1.2:40000".parse().expect("an address");
    let scope = Scope { lifetimes: true, privileged: true };
    let mut survey = Survey::new(&[server], scope, Seed([1; 32]));
    let (mut rest, mut cost, mut out) = (data, 0, Vec::new());
    loop {
        while let Some((question, probe)) = survey.poll_probe() {
            cost += probe.cost();
            assert!(cost <= BUDGET + LIFETIMES_BUDGET);
            let to = match &probe {
                Probe::Udp(datagram) => Some(datagram.to),
                Probe::Dial(dial) => Some(dial.to),
                Probe::Trace { to, .. } | Probe::Syn { to, .. } | Probe::SynAck { to, .. } => Some(*to),
                Probe::Ask(_) | Probe::Listen(_) | Probe::Wait(_) => None,
            };
            assert!(to.is_none_or(is_candidate), "{probe:?}");
            out.push((question, probe));
        }
        if out.is_empty() {
            break;
        }
        let (question, probe) = out.remove(0);
        // Each answer: its length, and itself.
        let (len, behind) = rest.split_first().map_or((0, rest), |(len, behind)| (usize::from(*len), behind));
        let (bytes, behind) = behind.split_at(len.min(behind.len()));
        rest = behind;
        let heard = Received::parse(bytes).map(|received| Heard {
            source: server,
            local,
            message: received.message,
            sequence: Some(1),
        });
        let finding = match (probe, heard) {
            (Probe::Listen(_) | Probe::Wait(_) | Probe::Syn { .. } | Probe::SynAck { .. }, _) => {
                Finding::Done(Some(local))
            }
            (_, Ok(heard)) => Finding::Heard(heard),
            (_, Err(_)) => Finding::Silence,
        };
        survey.handle_finding(question, finding);
        let _ = survey.report();
    }
});
