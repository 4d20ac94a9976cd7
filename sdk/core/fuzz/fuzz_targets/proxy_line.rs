//! No line of a log makes the reader of Omni Proxy's lines panic, and each says what the plainest
//! reading of it says.
//!
//! The input is a line's message; an input that begins with a digit is a whole line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omnitrace::legacy_log::{ProxyLine, ProxySays, parse_proxy_line};

#[path = "../../src/legacy_log/proxy_line/tests/model.rs"]
mod model;

fuzz_target!(|input: &[u8]| {
    let line = match input.first() {
        Some(b'0'..=b'9') => input.to_vec(),
        _ => [b"2026/11/22 08:05:36 [info] 22205#0: ", input].concat(),
    };
    assert_eq!(model::found(&line), model::naive::found(&line));
});
