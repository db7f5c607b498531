//! Any bytes as a certificate, of a member and of the CA: reading never panics, and only what the CA signed is believed.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::identity::certificate::Certificate;
use ntcp_overlay::identity::certificate::TrustAnchor;

const T0: UnixTime = UnixTime::from_secs(1_800_000_000);

fuzz_target!(|data: &[u8]| {
    // This CA is new in each run, so it signed nothing that can come in.
    static CA: OnceLock<Authority> = OnceLock::new();
    let ca = CA.get_or_init(|| {
        Authority::create(&"home".parse().expect("a name"), "10.77.0.0/16".parse().expect("a prefix"), T0)
    });
    if let Ok(certificate) = Certificate::parse(data) {
        assert_eq!(certificate.der, data);
    }
    if let Ok(anchor) = TrustAnchor::parse(data) {
        assert_eq!(anchor.der, data);
        let _ = anchor.verify(data, T0);
    }
    assert!(ca.anchor().verify(data, T0).is_err());
});
