//! Any text as an invite, any bytes in an undamaged one, any bytes as a signing request.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use ntcp_overlay::wire::enroll::Invite;
use ntcp_overlay::wire::enroll::SigningRequest;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        check(text);
    }
    // Few mutations survive the checksum: put a right one behind.
    let whole = [data, &crc32fast::hash(data).to_be_bytes()].concat();
    check(&format!("ntcp1-{}", URL_SAFE_NO_PAD.encode(whole)));
    if let Ok(request) = SigningRequest::parse(data) {
        assert_eq!(request.emit(), data);
    }
});

fn check(text: &str) {
    if let Ok(invite) = Invite::from_text(text) {
        assert_eq!(Invite::from_text(&invite.to_text()).as_ref(), Ok(&invite));
    }
}
