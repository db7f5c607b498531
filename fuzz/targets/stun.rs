//! Any bytes as a STUN message, in a datagram and in a stream: what is read is written again as it was, nothing is
//! authentic, and the server's answer is never much longer than the question.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::stun::server::respond;
use ntcp_overlay::wire::frame::Front;
use ntcp_overlay::wire::stun::Integrity;
use ntcp_overlay::wire::stun::Received;
use ntcp_overlay::wire::stun::front;

fuzz_target!(|data: &[u8]| {
    if let Ok(Front::Whole(len)) = front(data) {
        assert!(len <= data.len());
    }
    let Ok(received) = Received::parse(data) else { return };
    assert!(!received.is_authentic(b"a key that nobody knows"));
    assert!(!received.is_authentic_sha1(b"a key that nobody knows"));

    let key = b"key";
    let bytes = received.message.emit(Integrity::Sha256(key));
    let again = Received::parse(&bytes).expect("what we write, we read");
    assert!(again.is_authentic(key));
    assert_eq!(again.message, received.message);

    let from = "203.0.113.5:4242".parse().expect("an address");
    let local = "198.51.100.1:3478".parse().expect("an address");
    if let Some(answer) = respond(&received, from, local) {
        assert!(answer.len() <= data.len() + 12);
    }
});
