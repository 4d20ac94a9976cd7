use crate::engine::{EXECUTE_END, EXECUTE_START};
use crate::id::TraceId;
use crate::legacy_log::{Line, parse_line};

use super::*;

const ROOM: &str = "7301244955023216841";

fn read(line: &str) -> SglangLine<'_> {
    match parse_line(line.as_bytes()) {
        Ok(Line::Sglang(line)) => line,
        other => panic!("{line}: {other:?}"),
    }
}

fn moment(action: &str) -> (String, Vec<Attribute>) {
    let line = format!("profile REQ_ID[{ROOM}] action:{action}.Timestamp 1795334645.5773022");
    let SglangLine::Action(action) = read(&line) else {
        panic!("{line}");
    };
    assert_eq!(
        (action.room, action.time),
        (ROOM, 1_795_334_645_577_302_200)
    );
    (action.action.to_owned(), action.attributes)
}

#[test]
fn an_action_is_read_with_its_values() {
    let values = |action: &str| {
        let (name, attributes) = moment(action);
        let text = |a: &Attribute| format!("{}={:?}", a.key, a.value);
        (name, attributes.iter().map(text).collect::<Vec<_>>())
    };
    for (action, name, attributes) in [
        ("p_9 开始执行Run forward", "p_9 开始执行Run forward", vec![]),
        (
            "p_4 tokennizer to sche|Seq len=1024",
            "p_4 tokennizer to sche",
            vec!["gen_ai.usage.input_tokens=I64(1024)"],
        ),
        (
            "d_7 Add need pullling sequence|waiting_pull_len=3",
            "d_7 Add need pullling sequence",
            vec!["sglang.waiting_pull_len=I64(3)"],
        ),
        (
            "CompletionMetric: num_completion_tokens=17",
            "CompletionMetric",
            vec!["gen_ai.usage.output_tokens=I64(17)"],
        ),
        (
            "v1.2.Timestamp 3|share=0.5|by whom=x y|nothing",
            "v1.2.Timestamp 3",
            vec!["sglang.share=F64(0.5)", "sglang.by_whom=Str(\"x y\")"],
        ),
    ] {
        let attributes: Vec<String> = attributes.into_iter().map(str::to_owned).collect();
        assert_eq!(values(action), (name.to_owned(), attributes), "{action}");
    }
}

#[test]
fn a_request_without_a_room_is_none() {
    let line = "profile REQ_ID[0] action:p_2 触发engine处理请求.Timestamp 1795334645.5";
    assert_eq!(read(line), SglangLine::NoRoom);
}

#[test]
fn the_name_of_a_file_says_the_node_and_that_its_role() {
    for (name, node) in [
        (
            "omni_print_NODE_P0_123_456.json",
            Some(("P0", Some("sglang-prefill"))),
        ),
        (
            "omni_print_NODE_D10_123_456_1.json.gz",
            Some(("D10", Some("sglang-decode"))),
        ),
        ("omni_print_NODE_7.json", Some(("7", None))),
        ("omni_print_NODE_", None),
        ("omni_print_P0_123_456.json", None),
        ("-", None),
    ] {
        assert_eq!(sglang_node(name), node, "{name}");
    }
}

#[test]
fn damaged_lines_are_said() {
    for (line, error) in [
        ("profile REQ_ID[12", LineError::NoRequestId),
        ("profile REQ_ID[12] action:d_1", LineError::NoTimestamp),
        (
            "profile REQ_ID[12] action:d_1.Timestamp soon",
            LineError::BadTimestamp,
        ),
        (
            "profile REQ_ID[] action:d_1.Timestamp 1.5",
            LineError::EmptyRequestId,
        ),
        (
            "profile: engine_step start:1.5|finish:2.5|seqs:2",
            LineError::BadProfile,
        ),
        (
            "profile: engine_step start:1.5|finish:?|engine_core_str=7|1.6",
            LineError::BadProfile,
        ),
        (
            "profile: worker_step start:7|1.5|model_step=many",
            LineError::BadProfile,
        ),
    ] {
        assert_eq!(parse_line(line.as_bytes()), Err(error), "{line}");
    }
}

#[test]
fn a_step_is_an_engines_step_with_links_to_its_requests_and_a_workers_share_is_below_it() {
    let source = Arc::new(Source {
        role: "sglang-prefill".into(),
        node: "P0".into(),
    });
    let span = |line: &str| match read(line) {
        SglangLine::Step(step) => step.span(&source).unwrap(),
        other => panic!("{other:?}"),
    };
    let step = span(
        "profile: engine_step start:1795334645.5|finish:1795334645.6|execute time:100.0|seqs:2|\
         tokens:30|waiting_reqs_num_after_step=4|reqs_ids=['71', '72']|bs_tokens=[10, 20]|\
         execute_model_start_time=1795334645.51|execute_model_end_time=1795334645.59|\
         execute_model_cost_time=80.0|kv_cache_usage=0.25|kv_blocks_num=100|\
         start_free_block_num=80|end_free_block_num=75|cost_blocks_num=5|\
         engine_core_str=7|1795334645.51",
    );
    let attributes: Vec<String> = (step.attributes.iter())
        .map(|a| {
            format!(
                "{}={:?}",
                a.key.trim_start_matches("omnitrace.engine."),
                a.value
            )
        })
        .collect();
    assert_eq!(
        attributes,
        [
            "step_id=Str(\"7-1795334645.510000000\")",
            "pid=I64(7)",
            "batch_size=I64(2)",
            "scheduled_tokens=I64(30)",
            "running=I64(2)",
            "total_tokens=I64(30)",
            "waiting=I64(4)",
            "kv.blocks=I64(100)",
            "kv.free_blocks_at_start=I64(80)",
            "kv.free_blocks_at_end=I64(75)",
            "kv.blocks_used=I64(5)",
            "kv.usage=F64(0.25)",
        ]
    );
    let begin = 1_795_334_645_000_000_000;
    assert_eq!(
        (&*step.name, step.start - begin, step.end - begin),
        (STEP, 500_000_000, 600_000_000)
    );
    let events = step.events.iter().map(|e| (&*e.name, e.time - begin));
    assert_eq!(
        events.collect::<Vec<_>>(),
        [(EXECUTE_START, 510_000_000), (EXECUTE_END, 590_000_000)]
    );
    let linked: Vec<TraceId> = step.links.iter().map(|l| l.trace_id).collect();
    assert_eq!(linked, ["71", "72"].map(TraceId::of_request));
    let worker = span("profile: worker_step start:7|1795334645.51|model_step=12");
    assert_eq!(
        (&*worker.name, worker.trace_id, worker.parent_span_id),
        (WORKER_STEP, step.trace_id, Some(step.span_id))
    );
    assert_eq!(
        (
            worker.start - begin,
            worker.end,
            worker.attributes[1].clone()
        ),
        (
            510_000_000,
            worker.start,
            Attribute::new(attribute::MODEL_STEP, 12)
        )
    );
}
