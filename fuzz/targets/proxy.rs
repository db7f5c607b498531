//! Any bytes as a proxy's answers, whole and in pieces: none panics, and what is whole stays so whatever follows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::config::proxy::Proxy;
use ntcp_overlay::wire::WireError;
use ntcp_overlay::wire::proxy::Front;
use ntcp_overlay::wire::proxy::accepted;
use ntcp_overlay::wire::proxy::http_answer;
use ntcp_overlay::wire::proxy::method;
use ntcp_overlay::wire::proxy::verdict;

fuzz_target!(|data: &[u8]| {
    check(data, http_answer);
    check(data, method);
    check(data, accepted);
    check(data, verdict);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<Proxy>();
    }
});

fn check<T: PartialEq + std::fmt::Debug>(data: &[u8], parse: impl Fn(&[u8]) -> Result<Front<T>, WireError>) {
    match parse(data) {
        Ok(Front::Whole(answer, len)) => {
            assert!(len <= data.len());
            assert_eq!(parse(&data[..len]), Ok(Front::Whole(answer, len)));
            assert!(matches!(parse(&data[..len - 1]), Ok(Front::Missing(n)) if n > 0));
        }
        Ok(Front::Missing(n)) => assert!(n > 0),
        Err(_) => {}
    }
}
