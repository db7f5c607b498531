//! Any bytes as a message of the data plane and as an IP packet: told apart, viewed, clamped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::wire::demux::Kind;
use ntcp_overlay::wire::demux::kind;
use ntcp_overlay::wire::ip::Packet;
use ntcp_overlay::wire::ip::UDP;
use ntcp_overlay::wire::ip::clamp_mss;
use ntcp_overlay::wire::relay::split;
use ntcp_overlay::wire::super_packet::Held;
use ntcp_overlay::wire::super_packet::read;

fuzz_target!(|data: &[u8]| {
    if kind(data) == Kind::Relay {
        let (channel, payload) = split(data).expect("the table of first bytes and the relay agree");
        assert_eq!([&channel.header()[..], payload].concat(), data);
    }
    let parsed = Packet::parse(data);
    if let Ok(packet) = parsed {
        assert!(packet.bytes().len() <= data.len());
        assert!(packet.payload_at() <= packet.bytes().len());
        assert_eq!(Packet::parse(packet.bytes()).map(|again| again.bytes()), Ok(packet.bytes()));
        let _ = packet.ports();
        let behind = data.get(packet.bytes().len()..).unwrap_or_default();
        if let Held::SuperPacket(size) = read(&packet, behind, 1380) {
            assert!(usize::from(size.get()) <= 1380 || packet.protocol() == UDP);
        }
    }
    let mut changed = data.to_vec();
    let lowered = clamp_mss(&mut changed, 1200);
    assert_eq!(lowered, changed != data);
    assert!(!clamp_mss(&mut changed, 1200) || !lowered, "once is enough");
    let difference = changed.iter().zip(data).filter(|(a, b)| a != b).count();
    assert!(difference <= 4);
});
