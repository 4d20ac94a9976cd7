use super::*;
use crate::legacy_log::{AttributeMap, EventSuffix, LinkSuffix, ScopeSuffix, SpanSuffix};
use crate::span::Dropped;
use crate::value::{Attribute, Value};

fn entry<'a>(action: &'a str, request_id: &'a str, suffix: Suffix) -> Entry<'a> {
    Entry {
        action,
        time: 1_795_334_645_577_302_011,
        request_id,
        role: "prefill",
        node: "10.0.0.2",
        suffix,
        profile: None,
    }
}

fn write(entry: Entry<'_>) -> String {
    let mut out = Vec::new();
    LineFormatter::default().entry(entry, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_written_line_is_the_old_one() {
    let line = write(entry(
        "Prefill add waiting queue",
        "38a4",
        Suffix::default(),
    ));
    // The date is local time, which the test does not choose.
    assert_eq!(
        line.split_once(',').unwrap().1,
        "577 - <<<Action: Prefill add waiting queue; Timestamp:1795334645.577302011; \
         RequestID:chatcmpl-38a4; Role:prefill_10.0.0.2\n"
    );
}

#[test]
fn whatever_is_in_ids_names_and_attributes_the_line_comes_back_whole() {
    let odd = [
        "plain",
        "a; Role:x_1.2.3.4",
        "line\nbreak\r<<<Action: x",
        " blanks at the ends ",
        "quotes \" and {braces}",
        "ends {\"like\":\"json\"}",
        "x while sending",
        "ünïcödé\u{2028}",
    ];
    for text in odd {
        let list: Value = Value::Array([text, "b"].map(Value::from).into_iter().collect());
        let suffix = Suffix {
            traceparent: Some("00-1-2-01".into()),
            occurrence: 2,
            attributes: AttributeMap(vec![
                Attribute::new("b; \n", text),
                Attribute::new("a", 1.0),
                Attribute::new("n", -7),
                Attribute::new("list", list.clone()),
            ]),
            span: Some(SpanSuffix {
                start: 1,
                trace_id: "t".into(),
                span_id: "s".into(),
                parent_span_id: None,
                parent_is_remote: true,
                kind: "client".into(),
                flags: 1,
                trace_state: text.into(),
                ok: false,
                error: Some(text.into()),
                events: vec![EventSuffix {
                    time: 2,
                    name: text.into(),
                    attributes: AttributeMap(vec![Attribute::new(text, 1)]),
                    dropped_attributes: 3,
                }],
                links: vec![LinkSuffix {
                    trace_id: "t".into(),
                    span_id: "s".into(),
                    trace_state: text.into(),
                    attributes: AttributeMap(vec![Attribute::new(text, true)]),
                    dropped_attributes: 4,
                }],
                dropped: Dropped {
                    attributes: 1,
                    events: 2,
                    links: 3,
                },
                scope: Some(ScopeSuffix {
                    name: text.into(),
                    version: text.into(),
                    schema_url: text.into(),
                    attributes: AttributeMap(vec![Attribute::new("list", list.clone())]),
                }),
            }),
            ..Suffix::default()
        };
        let line = write(entry(text, text, suffix.clone()));
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        let Ok(Line::Action(read)) = parse_line(line.trim_end_matches('\n').as_bytes()) else {
            panic!("{line}")
        };
        assert_eq!(read.action, text);
        assert_eq!(read.request_id.trim_start_matches("chatcmpl-"), text);
        assert_eq!(read.source, Some(("prefill", "10.0.0.2")));
        assert_eq!(read.time, 1_795_334_645_577_302_011);
        assert_eq!(
            Suffix {
                action: None,
                request_id: None,
                ..read.suffix
            },
            suffix
        );
    }
}

#[test]
fn the_lines_of_the_old_tools_are_read() {
    let read = |line: &'static str| match parse_line(line.as_bytes()) {
        Ok(Line::Action(a)) => (
            a.action.into_owned(),
            a.time,
            a.request_id.into_owned(),
            a.source,
        ),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        read(
            "2026-11-22 08:04:05,577 - <<<Action: Decode send ip, rank; Timestamp:1735000000.0; RequestID:chatcmpl-A_b.c|d; Role:decode_fe80::1"
        ),
        (
            "Decode send ip, rank".into(),
            1_735_000_000_000_000_000,
            "chatcmpl-A_b.c|d".into(),
            Some(("decode", "fe80::1"))
        )
    );
    assert_eq!(
        read(
            "2026/11/22 08:04:05 [info] 12#12: *7 <<<Action: Enter state D running; Timestamp:947.873795; RequestID:id with space 4 while connecting to upstream, client: 127.0.0.1, server: , request: \"POST / HTTP/1.1\", host: \"h\""
        ),
        (
            "Enter state D running".into(),
            947_873_795_000,
            "id with space 4".into(),
            None
        )
    );
    assert_eq!(
        read(
            "2026/11/22 08:04:05 [info] 12#12: <<<Action: Enter state P scheduled; Timestamp:947.873795; RequestID:38a4"
        ),
        (
            "Enter state P scheduled".into(),
            947_873_795_000,
            "38a4".into(),
            None
        )
    );
    assert_eq!(
        read("<<<Action: x; Timestamp:1.5; RequestID:r; Role:prefill"),
        ("x".into(), 1_500_000_000, "r".into(), Some(("prefill", "")))
    );
    assert_eq!(
        read(
            "<<<Action: Add need pullling sequence;|waiting_pull_len=3 Timestamp:1.5; RequestID:r; Role:decode"
        ),
        (
            "Add need pulling sequence".into(),
            1_500_000_000,
            "r".into(),
            Some(("decode", ""))
        )
    );
}

#[test]
fn damaged_lines_say_what_is_wrong() {
    for (line, error) in [
        ("<<<Action: x; Timest", LineError::NoTimestamp),
        (
            "<<<Action: x; Timestamp:1.2.3; RequestID:r",
            LineError::BadTimestamp,
        ),
        (
            "<<<Action: x; Timestamp:; RequestID:r",
            LineError::BadTimestamp,
        ),
        (
            "<<<Action: x; Timestamp:1e9; RequestID:r",
            LineError::BadTimestamp,
        ),
        ("<<<Action: x; Timestamp:1.2", LineError::NoRequestId),
        (
            "<<<Action: x; Timestamp:1.2; RequestID:",
            LineError::EmptyRequestId,
        ),
        (
            "<<<Action: x; Timestamp:1.2; RequestID:r; Role:a_b {\"x",
            LineError::BadSuffix,
        ),
    ] {
        assert_eq!(parse_line(line.as_bytes()), Err(error), "{line}");
    }
    assert_eq!(
        parse_line(b"<<<Action: \xff; Timestamp:1.2; RequestID:r"),
        Err(LineError::NotUtf8)
    );
}

#[test]
fn exported_spans_come_back() {
    let ids: Vec<SpanId> = (1..=70).filter_map(SpanId::new).collect();
    let mut out = Vec::new();
    LineFormatter::default().exported(0, &ids, &mut out);
    let read: Vec<SpanId> = out
        .split(|b| *b == b'\n')
        .flat_map(|line| match parse_line(line) {
            Ok(Line::Exported(ids)) => ids,
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(read, ids);
}
