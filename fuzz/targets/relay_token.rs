//! Any bytes as a relay token and as a relayed message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::wire::relay::SignedToken;
use ntcp_overlay::wire::relay::split;

fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = SignedToken::parse(data) {
        assert_eq!(signed.token.with_signature(&signed.signature), data);
        assert_eq!(signed.token.signed_part(), signed.signed_part);
    }
    if let Ok((channel, payload)) = split(data) {
        assert_eq!([&channel.header()[..], payload].concat(), data);
    }
});
