//! Lines that are cut, glued or scrambled: whatever comes, the reader goes on.

#![allow(clippy::unwrap_used)] // a test may

use omnitrace::Vocabulary;
use omnitrace::legacy_log::parse_line;
use omnitrace_offline::clock::Mode;
use omnitrace_offline::ingest::{MEMORY, ReadError, Settings, ingest};
use proptest::collection::vec;
use proptest::prelude::*;

const LINES: [&str; 4] = [
    "2026-11-22 08:04:05,577 - <<<Action: Prefill add waiting queue; Timestamp:1795334645.577302; RequestID:chatcmpl-38a4; Role:prefill_10.0.0.2 {\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\",\"attributes\":{\"a\":[1,\"b\"]}}",
    "2026/11/22 08:04:05 [info] 12#12: *7 <<<Action: Enter state D running; Timestamp:947.873795; RequestID:38a4 while connecting to upstream, client: 127.0.0.1, server: , request: \"POST / HTTP/1.1\", host: \"[fd00::1]:7000\"",
    "2026-11-22 08:04:05,600 - profile: decode_10.0.0.3|1795334645.577302011|1795334645.579302011|2.0|1|7|0|[]|[]|1795334645.578|1795334645.579|1.0|0.5|100|90|89|1|7-1795334645.578000000",
    "2026-11-22 08:04:05,600 - <<<Exported: b7ad6b7169203331,00f067aa0ba902b7",
];

/// Part of one line, then part of another, with some bytes changed.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let part = (0..LINES.len(), any::<u16>(), any::<u16>()).prop_map(|(line, from, to)| {
        let line = LINES[line].as_bytes();
        let (from, to) = (usize::from(from) % line.len(), usize::from(to) % line.len());
        line[from.min(to)..from.max(to)].to_vec()
    });
    let changes = vec((any::<u16>(), any::<u8>()), 0..4);
    (vec(part, 1..4), changes).prop_map(|(parts, changes)| {
        let mut bytes = parts.concat();
        for (at, byte) in changes {
            let length = bytes.len().max(1);
            if let Some(changed) = bytes.get_mut(usize::from(at) % length) {
                *changed = byte;
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn a_damaged_line_is_read_or_said_to_be_damaged(line in damaged()) {
        // The answer does not matter: that there is one does.
        let _ = parse_line(&line);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_of_damaged_lines_loses_none_of_the_good_ones(lines in vec(damaged(), 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let mut text = Vec::new();
        for line in &lines {
            text.extend(line.iter().filter(|b| **b != b'\n'));
            text.extend_from_slice(b"\n<<<Action: Time received; Timestamp:1795334645.5; RequestID:good-one, client: x\n");
        }
        std::fs::write(folder.path().join("x.log"), text).unwrap();
        let settings = Settings { temporary: folder.path(), memory: MEMORY, exported: true, hosts: true, clock: Mode::Auto };
        match ingest(&Vocabulary::omni_vllm(), folder.path(), settings, &|_| ()) {
            Ok(store) => {
                prop_assert_eq!(store.report().lines, 2 * lines.len() as u64);
                prop_assert!(store.report().events >= lines.len() as u64);
                let mut reader = store.reader();
                let all = (0..store.traces()).map(|n| reader.trace(n).unwrap());
                let mut requests = all.flat_map(|t| t.requests);
                prop_assert!(requests.any(|r| &*r.id == "good-one" && !r.events.is_empty()));
            }
            Err(error) => {
                prop_assert!(lines.is_empty() && matches!(error, ReadError::Empty { .. }), "{}", error);
            }
        }
    }
}
