//! Any text as a configuration: a mistake has a place within the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ntcp_overlay::config::file::parse;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = parse(text) {
        let _ = error.to_string();
    }
});
