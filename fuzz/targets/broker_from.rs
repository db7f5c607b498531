//! Any bytes as a message from a broker.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::wire::broker::FromBroker;
use ntcp_overlay::wire::broker::MAX_AUTHENTICATED;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = FromBroker::parse(data) else { return };
    let bytes = message.emit();
    assert!(bytes.len() <= MAX_AUTHENTICATED);
    assert_eq!(FromBroker::parse(&bytes), Ok(message));
});
