//! Any bytes as a message to the broker, from someone without a certificate or from a member.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::wire::broker::MAX_AUTHENTICATED;
use ntcp_overlay::wire::broker::ToBroker;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = ToBroker::parse(data) else { return };
    let bytes = message.emit();
    assert!(bytes.len() <= MAX_AUTHENTICATED);
    assert_eq!(ToBroker::parse(&bytes), Ok(message));
});
