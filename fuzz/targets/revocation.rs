//! Any bytes as a signed revocation list; and, because few mutations survive a signature, any bytes under a right one.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::base::time::UnixTime;
use ntcp_overlay::identity::authority::Authority;
use ntcp_overlay::identity::certificate::CertError;
use ntcp_overlay::identity::revocation::RevocationList;

fuzz_target!(|data: &[u8]| {
    static CA: OnceLock<Authority> = OnceLock::new();
    let ca = CA.get_or_init(|| {
        Authority::create(
            &"home".parse().expect("a name"),
            "10.77.0.0/16".parse().expect("a prefix"),
            UnixTime::from_secs(1_800_000_000),
        )
    });
    assert!(
        RevocationList::parse_signed(data, ca.anchor()).is_err(),
        "the CA of this run signed nothing yet"
    );
    let signed = [data, &ca.key().sign(data)].concat();
    match RevocationList::parse_signed(&signed, ca.anchor()) {
        Ok(list) => assert_eq!(ca.sign_revocations(&list), signed),
        Err(error) => assert_ne!(error, CertError::WrongAuthority),
    }
});
