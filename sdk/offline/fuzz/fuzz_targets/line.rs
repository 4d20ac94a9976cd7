//! No line makes the reader of logs panic, and what it reads of a line does not depend on
//! what stands before the marker.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omnitrace::legacy_log::{Line, MARKER, parse_line};

fuzz_target!(|line: &[u8]| {
    let read = parse_line(line);
    if line.starts_with(MARKER.as_bytes()) {
        let prefixed = [b"2026-11-22 08:04:05,577 - ", line].concat();
        assert_eq!(read, parse_line(&prefixed));
        assert!(!matches!(read, Ok(Line::Other)));
    }
});
