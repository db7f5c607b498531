//! Any bytes as what a relay's tap reads: a SYN or an ICMP message about a segment. Whatever is understood makes an answer
//! that is a packet for its sender.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::wire::ip::Packet;
use ntcp_overlay::wire::syn::Syn;
use ntcp_overlay::wire::syn::TooBig;

fuzz_target!(|data: &[u8]| {
    if let Ok(syn) = Syn::parse(data) {
        let (to, answer) = syn.answered_with(&syn, 1460);
        let packet = Packet::parse(&answer).expect("a packet");
        assert_eq!((to, packet.destination(), packet.source()), (syn.from.ip(), syn.from.ip(), syn.to.ip()));
    }
    if let Ok(word) = TooBig::parse(data) {
        let (to, passed) = word.passed_on(word.from, word.to);
        assert_eq!(to, word.from.ip());
        assert_eq!(TooBig::parse(&passed), Ok(word));
    }
});
