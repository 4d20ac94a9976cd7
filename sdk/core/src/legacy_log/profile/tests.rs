use std::sync::Arc;

use super::*;
use crate::legacy_log::{Line, LineFormatter, parse_line, span_entries};
use crate::span::{Dropped, Source, SpanEvent, SpanKind, Status};

const NODE: &str = "10.0.0.3";
const ID: StepId = StepId {
    pid: 7,
    executed: 1_795_334_645_579_000_000,
};

fn request(id: &str, tokens: i64) -> Link {
    let link = engine::link(&Vocabulary::omni_vllm(), NODE, "prefill", id, None);
    Link {
        attributes: vec![
            Attribute::new(attribute::REQUEST_ID, id),
            Attribute::new(attribute::SCHEDULED_TOKENS, tokens),
        ],
        ..link
    }
}

fn span(name: &str, role: &str) -> Span {
    let context = ID.context(NODE);
    Span {
        trace_id: context.trace_id,
        span_id: context.span_id,
        parent_span_id: None,
        parent_is_remote: false,
        flags: 1,
        trace_state: "".into(),
        name: name.into(),
        kind: SpanKind::Internal,
        start: 1_795_334_645_577_302_011,
        end: 1_795_334_645_600_000_007,
        status: Status::Unset,
        attributes: vec![Attribute::new(attribute::STEP_ID, &*ID.to_string())],
        events: Vec::new(),
        links: Vec::new(),
        dropped: Dropped::default(),
        scope: None,
        source: Arc::new(Source {
            role: role.into(),
            node: NODE.into(),
        }),
        origin: None,
    }
}

/// A step as vLLM's scheduler makes one.
fn step_of(role: &str) -> Span {
    let event = |name: &str, time| SpanEvent {
        time,
        name: name.into(),
        ..SpanEvent::default()
    };
    let mut span = span(STEP, role);
    for (key, n) in [
        (attribute::PID, 7),
        ("omnitrace.engine.step", 12),
        (attribute::BATCH_SIZE, 2),
        (attribute::SCHEDULED_TOKENS, 33),
        (attribute::TOTAL_TOKENS, 97),
        (attribute::RUNNING, 2),
        (attribute::WAITING, 1),
        (attribute::KV_BLOCKS, 12),
        (attribute::KV_FREE_AT_START, 11),
        (attribute::KV_FREE_AT_END, 8),
        (attribute::KV_BLOCKS_USED, 3),
    ] {
        span.attributes.push(Attribute::new(key, n));
    }
    span.attributes
        .push(Attribute::new(attribute::KV_USAGE, 0.25));
    span.events = vec![
        event(engine::EXECUTE_START, ID.executed),
        event(engine::EXECUTE_END, ID.executed + 20_500_000),
    ];
    span.links = vec![request("a-1", 32), request("b", 1)];
    span
}

fn model_of(name: &str, role: &str) -> Span {
    let mut span = span(name, role);
    span.parent_span_id = Some(span.span_id);
    span.parent_is_remote = true;
    span.span_id = ID.model_span_id(NODE, name, 8, span.start);
    span
}

/// The one line of a span, without its date and its end.
fn write(span: &Span) -> String {
    let mut out = Vec::new();
    for entry in span_entries(&Vocabulary::omni_vllm(), span) {
        LineFormatter::default().entry(entry, &mut out);
    }
    let text = String::from_utf8(out).unwrap();
    let (_, line) = text.split_once(" - ").unwrap();
    assert_eq!(line.matches('\n').count(), 1);
    format!("- {}", line.trim_end_matches('\n'))
}

fn read(line: &str) -> Span {
    let Ok(Line::Action(read)) = parse_line(line.as_bytes()) else {
        panic!("{line}: {:?}", parse_line(line.as_bytes()));
    };
    let (role, node) = read.source.unwrap();
    let source = Arc::new(Source {
        role: read.suffix.role.as_deref().unwrap_or(role).into(),
        node: node.into(),
    });
    let span = read.suffix.span.as_ref().unwrap();
    span.span(&read.action, read.time, &read.suffix.attributes, source)
        .unwrap()
}

/// What the old tools take of a line.
fn old_form(line: &str) -> &str {
    &line[line.find("profile").unwrap()..]
}

#[test]
fn each_role_has_the_old_systems_line() {
    const TIMES: &str = "1795334645.577302011|1795334645.600000007|22.697996";
    const MODEL: &str = "1795334645.579000000|1795334645.599500000|20.500000";
    const REST: &str = "0.25|12|11|8|3|7-1795334645.579000000";
    let ids = "['chatcmpl-a-1', 'chatcmpl-b']|[32, 1]";
    for (role, expected) in [
        (
            "prefill",
            format!("profile: prefill_{NODE}|{TIMES}|2|33|1|{ids}|{MODEL}|{REST}"),
        ),
        (
            "decode",
            format!("profile: decode_{NODE}|{TIMES}|2|97|1|[]|[]|{MODEL}|{REST}"),
        ),
        (
            "serve",
            format!("profile: decode_{NODE}|{TIMES}|2|97|1|{ids}|{MODEL}|{REST}"),
        ),
    ] {
        let line = write(&step_of(role));
        assert_eq!(old_form(&line), expected);
        assert_eq!(old_form(&line).split('|').count(), STEP_FIELDS);
    }
    for (name, marker) in [
        (MAIN_MODEL, "profile_mainmodel"),
        (MTP_MODEL, "profile_mtpmodel"),
    ] {
        for role in ["decode", "serve"] {
            assert_eq!(
                old_form(&write(&model_of(name, role))),
                format!("{marker}: decode_{NODE}|{TIMES}|7-1795334645.579000000")
            );
        }
        let line = write(&model_of(name, "prefill"));
        assert!(
            line.starts_with(&format!("- <<<Action: {name}; ")),
            "{line}"
        );
    }
}

#[test]
fn every_span_comes_back_as_it_was_whatever_is_in_its_texts() {
    let odd = [
        "plain",
        "profile: decode_1.2.3.4|5|[]",
        "profile_mainmodel: x|1|2|3|4",
        "a; Role:x_1.2.3.4 {\"like\":\"json\"} - {",
        "line\nbreak\r<<<Action: x; Timestamp:1; RequestID:r\\profile\\",
        "<<<Exported: 00",
        "it's, ['ünïcödé\u{2028}']",
    ];
    for text in odd {
        for role in ["prefill", "decode", "serve"] {
            let mut step = step_of(role);
            step.attributes.push(Attribute::new(text, text));
            step.links.push(request(text, 5));
            step.dropped.links = 3;
            let main = Span {
                attributes: [Attribute::new("x", text)]
                    .into_iter()
                    .chain(model_of(MAIN_MODEL, role).attributes)
                    .collect(),
                ..model_of(MAIN_MODEL, role)
            };
            for span in [step, main, model_of(MTP_MODEL, role)] {
                let line = write(&span);
                assert_eq!(read(&line), span, "{line}");
                if line.contains(" profile: ") {
                    let markers = ["profile:", "profile_mainmodel:", "profile_mtpmodel:", "<<<"];
                    let count = |marker| line.matches(marker).count();
                    assert_eq!(markers.map(count), [1, 0, 0, 0], "{line}");
                    assert_eq!(line.split('|').count(), STEP_FIELDS, "{line}");
                }
            }
        }
    }
}

#[test]
fn what_is_not_known_of_a_step_stays_so() {
    for role in ["prefill", "decode"] {
        let span = span(STEP, role);
        let line = write(&span);
        assert_eq!(
            old_form(&line).split_once("22.697996").unwrap().1,
            "|None|None|None|[]|[]|None|None|None|None|None|None|None|None|7-1795334645.579000000"
        );
        assert_eq!(read(&line), span);
    }
}

#[test]
fn a_span_that_only_has_the_name_is_a_span_like_any_other() {
    let mut span = span(STEP, "decode");
    span.attributes.clear();
    let line = write(&span);
    assert!(line.starts_with("- <<<Action: engine step; "), "{line}");
    assert_eq!(read(&line), span);
}

#[test]
fn the_old_systems_lines_are_steps_with_models_below_and_links_to_requests() {
    let times = "1795334645.5773021|1795334645.6|22.6979";
    let model = "1795334645.579|1795334645.5995|20.5";
    let step = read(&format!(
        "2026-11-22 08:04:05,600 - profile: prefill_{NODE}|{times}|2|33|1|['chatcmpl-a-1', 'chatcmpl-b']|[32, 1]|{model}|0.25|12|11|8|3|7-1795334645.579"
    ));
    let live = step_of("prefill");
    let known =
        |a: &&Attribute| !matches!(&*a.key, attribute::TOTAL_TOKENS | "omnitrace.engine.step");
    let sorted = |span: &Span| {
        let mut attributes: Vec<_> = span.attributes.iter().filter(known).cloned().collect();
        attributes.sort_by(|a, b| a.key.cmp(&b.key));
        attributes
    };
    assert_eq!(sorted(&step), sorted(&live));
    assert_eq!(
        Span {
            start: 1_795_334_645_577_302_100,
            end: 1_795_334_645_600_000_000,
            attributes: step.attributes.clone(),
            ..live
        },
        step
    );

    let decode = read(&format!(
        "- profile: decode_{NODE}|{times}|2|97|1|[]|[]|{model}|0.25|12|11|8|3|7-1795334645.579"
    ));
    assert_eq!((&*decode.links, decode.span_id), (&[][..], step.span_id));
    assert_eq!(
        value(&decode.attributes, attribute::TOTAL_TOKENS),
        Some(&Value::I64(97))
    );
    let main = read(&format!(
        "- profile_mainmodel: decode_{NODE}|{times}|7-1795334645.579"
    ));
    let mtp = read(&format!(
        "- profile_mtpmodel: decode_{NODE}|{times}|7-1795334645.579"
    ));
    for (model, name) in [(&main, MAIN_MODEL), (&mtp, MTP_MODEL)] {
        assert_eq!(
            (&*model.name, model.trace_id, model.parent_span_id),
            (name, step.trace_id, Some(step.span_id))
        );
    }
    assert_ne!(main.span_id, mtp.span_id);
}

#[test]
fn damaged_lines_are_said_and_other_tools_lines_are_not_ours() {
    let whole = write(&step_of("decode"));
    let cut = &whole[..whole.len() - "|3|7-1795334645.579000000".len()];
    assert_eq!(parse_line(cut.as_bytes()), Err(LineError::BadProfile));
    assert_eq!(
        parse_line(b"- {\"span\": profile_mtpmodel: decode_x|1.0|2.0|1|7-1.0"),
        Err(LineError::BadSuffix)
    );
    assert_eq!(
        parse_line(b"- profile_mtpmodel: decode_x|1.0|2.0|1|seven"),
        Err(LineError::BadProfile)
    );
    for other in [
        "profile: engine start:1.5|finish:2.5|execute time:1|seqs:2",
        "profile REQ 12 action:p_1.Timestamp 1.5",
        "the user's profile: none",
        "profile_mainmodel: decode_x",
    ] {
        assert_eq!(parse_line(other.as_bytes()), Ok(Line::Other), "{other}");
    }
}
