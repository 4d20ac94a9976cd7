//! Logs of SGLang: one tree for each node that a request was on, and the old converter's file.

#![allow(clippy::unwrap_used)] // a test may

mod logs;

use std::fs;
use std::path::{Path, PathBuf};

use logs::{BEGIN, convert, convert_to, has_no_cycle, parent, request, service, spans, tag};
use serde_json::{Value, json};

/// What the nodes of a request log, in the order of time, 1 ms apart: the prefill node's
/// (`p`), the decode node's.
const ACTIONS: [(char, &str); 35] = [
    ('p', "p_1 prefill api server收到请求"),
    ('d', "d_1 decode api server收到请求"),
    ('p', "p_2 触发engine处理请求"),
    ('d', "d_2 触发engine处理请求"),
    ('p', "p_3 engine开始tokennizer"),
    ('d', "d_3 engine开始tokennizer"),
    ('p', "p_3 engine结束tokennizer"),
    ('d', "d_3 engine结束tokennizer"),
    ('p', "p_4 tokennizer to sche|Seq len=1024"),
    ('d', "d_4 tokennizer to sche|Seq len=1024"),
    ('p', "p_5 P侧添加到bootstrap队列之后"),
    ('d', "d_5 scheduler开始处理请求"),
    ('d', "d_6 D侧添加到prealloc_queue队列之后"),
    ('d', "d_8 开始分配kv缓存"),
    ('d', "d_9 d侧开始握手"),
    ('d', "d_7 Add need pullling sequence|waiting_pull_len=3"),
    ('p', "P侧握手完成"),
    ('p', "p_6 握手完成加到waiting队列"),
    ('p', "p_7 组batch完成 开始run batch"),
    ('p', "p_8 Push a new batch to the input queue"),
    ('p', "p_9 开始执行Run forward"),
    ('p', "p_9 结束执行Run forward"),
    ('p', "p_13 开始发送kv cache"),
    ('p', "p_14 完成发送kv cache"),
    ('d', "d_11 d侧收到kv传输完成通知"),
    ('p', "p_15 P侧释放KV"),
    ('p', "p_16 client收到输出并入队"),
    ('p', "p_17 client出队"),
    ('p', "p_18 api server收到请求准备返回"),
    (
        'd',
        "d_12 轮询到状态 kv cache传输完成 开始加入到waiting队列",
    ),
    ('d', "d_18 触发首个decode token执行"),
    ('d', "d_19 decoder返回第一个token"),
    ('d', "d_20 decoder返回第二个token"),
    ('d', "d_21 api server收到推理结果"),
    ('d', "CompletionMetric: num_completion_tokens=17"),
];

const P_FILE: &str = "omni_print_NODE_P0_123_4567.json";
const D_FILE: &str = "omni_print_NODE_D10_89_1011_1.json";

/// The rooms of requests are 63-bit numbers.
fn room(number: u64) -> u64 {
    7_301_244_955_023_216_000 + number
}

/// The two nodes' lines of a request that begins at `begin`, microseconds since 1970; the
/// decode node's clock is `ahead`.
fn lines(number: u64, begin: u64, ahead: i64) -> (String, String) {
    let (mut prefill, mut decode) = (String::new(), String::new());
    for ((node, action), at) in ACTIONS.iter().zip(0u64..) {
        let time = begin + at * 1000;
        let (file, time) = match node {
            'p' => (&mut prefill, time),
            _ => (&mut decode, time.saturating_add_signed(ahead)),
        };
        // As Python writes a float: no zeros at its end.
        let stamp = format!("{}.{:06}", time / 1_000_000, time % 1_000_000);
        let stamp = stamp.trim_end_matches('0');
        let room = room(number);
        *file += &format!("profile REQ_ID[{room}] action:{action}.Timestamp {stamp}\n");
    }
    (prefill, decode)
}

/// A folder of a test's own with the logs of so many requests, a second apart.
fn folder(test: &str, requests: u64, ahead: i64) -> PathBuf {
    let folder = logs::folder(test, &[]);
    let (mut prefill, mut decode) = (String::new(), String::new());
    for number in 1..=requests {
        let (p, d) = lines(number, BEGIN + number * 1_000_000, ahead);
        prefill += &p;
        decode += &d;
    }
    fs::write(folder.join("logs").join(P_FILE), prefill).unwrap();
    fs::write(folder.join("logs").join(D_FILE), decode).unwrap();
    folder
}

/// A trace as text: each span below its parent, with its service, start and length in ms
/// and what else is worth a look.
fn drawn(trace: &Value) -> String {
    let first = spans(trace).iter().map(start).min().unwrap();
    let mut text = String::new();
    below(trace, None, 0, first, &mut text);
    text
}

fn start(span: &Value) -> u64 {
    span["startTime"].as_u64().unwrap()
}

fn below(trace: &Value, above: Option<&Value>, depth: usize, first: u64, text: &mut String) {
    let id = |span: Option<&Value>| span.map(|s| s["spanID"].clone());
    let mut here: Vec<&Value> = (spans(trace).iter())
        .filter(|span| id(parent(trace, span)) == id(above))
        .collect();
    here.sort_by_key(|span| (start(span), span["operationName"].to_string()));
    for span in here {
        let process = &trace["processes"][span["processID"].as_str().unwrap()];
        let mut notes = vec![];
        if depth == 0 {
            notes.push(service(trace, span).to_owned());
            notes.extend(process["tags"].as_array().unwrap().iter().map(show));
        }
        let tags = span["tags"].as_array().unwrap().iter();
        notes.extend(
            tags.filter(|t| !["span.kind", "gen_ai.request.id"].contains(&key(t)))
                .map(show),
        );
        notes.extend(
            span["logs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|log| show(&log["fields"][0])),
        );
        let links = span["references"].as_array().unwrap().iter();
        let links = links.filter(|r| r["refType"] == "FOLLOWS_FROM");
        notes.extend(links.map(|link| {
            let mut all = spans(trace).iter();
            let other = all.find(|s| s["spanID"] == link["spanID"]).unwrap();
            format!("→ {}", other["operationName"].as_str().unwrap())
        }));
        *text += &format!(
            "{}{} {}+{} {}\n",
            "  ".repeat(depth),
            span["operationName"].as_str().unwrap(),
            (start(span) - first) / 1000,
            span["duration"].as_u64().unwrap() / 1000,
            notes.join(", ")
        );
        below(trace, Some(span), depth + 1, first, text);
    }
}

fn key(tag: &Value) -> &str {
    tag["key"].as_str().unwrap()
}

fn show(tag: &Value) -> String {
    let text = tag["value"].as_str().map(str::to_owned);
    format!("{}={}", key(tag), text.unwrap_or(tag["value"].to_string()))
}

#[test]
fn a_request_is_a_tree_on_each_of_its_nodes() {
    let (traces, said) = convert(&folder("sglang-tree", 3, 0), &[]);
    let counts = "omnitrace: 3 traces with 90 spans of 3 requests (1 counted in the statistics)";
    assert!(said.lines().last().unwrap().starts_with(counts), "{said}");
    assert_eq!(traces.len(), 4 + 3);
    insta::assert_snapshot!(drawn(&traces[4]));
}

#[test]
fn the_old_layout_is_the_old_converters_file() {
    let (traces, said) = convert(&folder("sglang-legacy", 3, 0), &["--layout", "legacy"]);
    assert!(!said.contains("incomplete"), "{said}");
    assert_eq!(traces.len(), 3);
    for trace in &traces {
        assert_eq!(spans(trace).len(), 39);
        let roots = spans(trace).iter().filter(|s| parent(trace, s).is_none());
        assert_eq!(roots.count(), 9);
        for span in spans(trace) {
            assert_eq!(span["operationName"], service(trace, span));
        }
    }
    let named = |name: &str| {
        let mut all = spans(&traces[0]).iter();
        all.find(|s| s["operationName"] == name).unwrap()
    };
    let running = named("D running");
    let tags: Vec<(&str, &Value)> = (running["tags"].as_array().unwrap().iter())
        .map(|tag| (key(tag), &tag["value"]))
        .collect();
    assert_eq!(
        tags,
        [
            ("RequestID", &room(1).to_string().into()),
            ("start_time", &1_795_334_646.03.into()),
            ("end_time", &1_795_334_646.033.into()),
            ("start_action", &"d_18 触发首个decode token执行".into()),
            ("end_action", &"d_21 api server收到推理结果".into()),
        ]
    );
    let begins = json!([{"timestamp": running["startTime"], "fields": []}]);
    assert_eq!(running["logs"], begins);
    let above = |name| parent(&traces[0], named(name)).map(|s| s["operationName"].clone());
    assert_eq!(above("P running"), Some("Prefill".into()));
    assert_eq!(above("P handshaking"), Some("Prefill".into()));
    assert_eq!(
        above("Send output in prefill stage"),
        Some("P running".into())
    );
    assert_eq!(above("D running"), None);
    let one = room(2).to_string();
    let chosen = convert(
        &folder("sglang-legacy", 3, 0),
        &["--layout=legacy", &format!("--filter-reqids={one}")],
    );
    assert_eq!(chosen.0, traces[1..2]);
}

#[test]
fn a_file_that_names_no_node_is_read_by_its_actions() {
    let folder = folder("sglang-no-node", 1, 0);
    let logs = folder.join("logs");
    fs::rename(logs.join(P_FILE), logs.join("first")).unwrap();
    fs::rename(logs.join(D_FILE), logs.join("second")).unwrap();
    let step = "profile: engine_step start:1795334646|finish:1795334646.5|reqs_ids=[]|\
                bs_tokens=[]|engine_core_str=7|1795334646.1\n";
    fs::write(logs.join("third"), step).unwrap();
    let (traces, _) = convert(&folder, &[]);
    let mut services: Vec<&str> = traces[4..]
        .iter()
        .flat_map(|trace| spans(trace).iter().map(|s| service(trace, s)))
        .collect();
    services.sort();
    services.dedup();
    assert_eq!(services, ["sglang", "sglang-decode", "sglang-prefill"]);
    let (traces, _) = convert(&folder, &["--layout", "legacy"]);
    assert_eq!(spans(&traces[0]).len(), 39);
}

#[test]
fn pictures_of_the_same_and_requests_without_a_room_are_left_out() {
    let folder = folder("sglang-companions", 1, 0);
    let (plain, _) = convert(&folder, &[]);
    let logs = folder.join("logs");
    let event =
        "[\n{\"name\":\"p_1\",\"ph\":\"X\",\"pid\":\"71\",\"tid\":1,\"ts\":1.5,\"dur\":2},\n";
    fs::write(logs.join("omni_trace_NODE_P0_123_4567.json"), event).unwrap();
    fs::write(logs.join("omni_trace_NODE_D10_1_2.json"), event).unwrap();
    let warm_up = "profile REQ_ID[0] action:p_2 触发engine处理请求.Timestamp 1795334640.5\n";
    fs::write(logs.join("omni_print_NODE_P1_1_1.json"), warm_up).unwrap();
    let (traces, said) = convert(&folder, &[]);
    assert_eq!(traces, plain);
    assert!(
        said.starts_with(
            "omnitrace: 2 Chrome traces left out, which only show what other files hold (first: "
        ) && said
            .lines()
            .next()
            .unwrap()
            .ends_with("omni_trace_NODE_D10_1_2.json)"),
        "{said}"
    );
    assert_eq!(convert(&folder, &["--quiet"]).1, "");
}

#[test]
fn engine_steps_are_spans_with_links_to_the_requests_in_them() {
    let folder = folder("sglang-steps", 1, 0);
    let steps = format!(
        "profile: engine_step start:1795334646.02|finish:1795334646.022|execute time:2.0|seqs:1|\
         tokens:1024|waiting_reqs_num_after_step=0|reqs_ids=[{}]|bs_tokens=[1024]|\
         execute_model_start_time=1795334646.0201|execute_model_end_time=1795334646.0219|\
         execute_model_cost_time=1.8|kv_cache_usage=0.25|kv_blocks_num=100|\
         start_free_block_num=80|end_free_block_num=75|cost_blocks_num=5|\
         engine_core_str=7|1795334646.0201\n\
         profile: worker_step start:7|1795334646.0201|model_step=12\n",
        room(1)
    );
    let log = folder.join("logs").join(P_FILE);
    let whole = fs::read_to_string(&log).unwrap() + &steps;
    fs::write(&log, whole).unwrap();
    let (traces, _) = convert(&folder, &[]);
    let of = |name: &str| {
        let all = traces.iter().skip(4);
        let mut all = all.flat_map(|t| spans(t).iter().map(move |s| (t, s)));
        all.find(|(_, s)| s["operationName"] == name).unwrap()
    };
    let (trace, step) = of("engine step");
    assert_eq!(service(trace, step), "sglang-prefill");
    assert_eq!(tag(step, "omnitrace.engine.scheduled_tokens"), 1024);
    let (_, prefill) = of("Prefill");
    assert_eq!(
        (
            &step["references"][0]["spanID"],
            &step["references"][0]["traceID"]
        ),
        (&prefill["spanID"], &prefill["traceID"])
    );
    let (_, worker) = of("worker step");
    assert_eq!(parent(trace, worker).unwrap(), step);
    assert_eq!(tag(worker, "omnitrace.engine.model_step"), 12);
}

#[test]
fn clocks_of_the_two_nodes_are_brought_together() {
    let (_, said) = convert(&folder("sglang-clocks", 50, 50_000), &[]);
    let clock = |node: &str| said.lines().any(|l| l.contains(node) && l.contains("50."));
    assert!(clock("D10") || clock("P0"), "{said}");
    let (traces, _) = convert(&folder("sglang-clocks", 50, 50_000), &[]);
    for trace in &traces[4..] {
        let named = |name: &str| {
            let mut all = spans(trace).iter();
            all.find(|s| s["operationName"] == name).unwrap()
        };
        let (sent, pulled) = (named("Send kv"), named("Pull kv"));
        let end = start(pulled) + pulled["duration"].as_u64().unwrap();
        assert!(
            start(sent) <= end,
            "sent at {}, there at {end}",
            start(sent)
        );
        assert!(has_no_cycle(trace));
    }
}

#[test]
fn a_directory_may_hold_logs_of_vllm_too() {
    let folder = folder("sglang-mixed", 2, 0);
    let vllm = request("v1", BEGIN + 500_000);
    for file in ["proxy.log", "prefill.log", "decode.log"] {
        let text: String = (vllm.iter().filter(|l| l.file == file))
            .map(logs::Line::text)
            .collect();
        fs::write(folder.join("logs").join(file), text).unwrap();
    }
    let (traces, said) = convert(&folder, &["--layout", "legacy"]);
    let count: Vec<usize> = traces.iter().map(|t| spans(t).len()).collect();
    assert_eq!(count, [45, 45, 45, 45, 45, 39, 39], "{said}");
    let (traces, _) = convert(&folder, &[]);
    assert_eq!(traces.len() - 4, 3);
}

#[test]
fn statistics_know_the_times_to_the_first_token() {
    let folder = folder("sglang-stats", 5, 0);
    let logs = folder.join("logs");
    let output = logs::omnitrace(&["stats", "--json", path(&logs)]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let phase = |name: &str| {
        let mut all = summary["phases"].as_array().unwrap().iter();
        all.find(|p| p["name"] == name).unwrap().clone()
    };
    assert_eq!(phase("Pull kv")["role"], "sglang-decode");
    let again = convert_to(&folder, &["--format", "otlp"]).0;
    assert_eq!(String::from_utf8(again).unwrap().lines().count(), 5);
    let mut latencies = summary["latencies"].as_array().unwrap().iter();
    let first_token = latencies.find(|l| l["name"] == "TTFT").unwrap();
    assert_eq!(
        (&first_token["role"], &first_token["p50_ms"]),
        (&"sglang-decode".into(), &30.0.into())
    );
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
