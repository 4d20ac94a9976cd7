//! `omnitrace convert` as a user runs it, on logs as the old tools wrote them.

#![allow(clippy::unwrap_used)] // a test may

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use omnitrace::Vocabulary;
use serde_json::Value;

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("convert-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("logs")).unwrap();
    folder
}

fn omnitrace(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnitrace"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Converts `folder/logs` and reads the result.
fn convert(folder: &Path, options: &[&str]) -> (Vec<Value>, String) {
    let (logs, out) = (folder.join("logs"), folder.join("out.json"));
    let mut arguments = vec!["convert", logs.to_str().unwrap(), out.to_str().unwrap()];
    arguments.extend(options);
    let output = omnitrace(&arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(output.stdout.is_empty());
    let document: Value = serde_json::from_slice(&fs::read(out).unwrap()).unwrap();
    (document["data"].as_array().unwrap().clone(), said)
}

const BASE: u64 = 1_795_334_645;

/// The lines of one whole request, `scale` times as long as the shortest, by file.
fn lines(id: &str, number: u64, scale: u64) -> BTreeMap<String, String> {
    let vocabulary = Vocabulary::omni_vllm();
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for (index, action) in vocabulary.actions()[..37].iter().enumerate() {
        let micros = (number * 1_000_000) + index as u64 * 1_000 * scale;
        let stamp = format!("{}.{:06}", BASE + micros / 1_000_000, micros % 1_000_000);
        let role = &*vocabulary.role(action.roles[0]).name;
        let name = &action.name;
        if role == "proxy" {
            writeln!(
                files.entry("nginx_10.0.0.1.log".into()).or_default(),
                "2026/11/22 08:04:05 [info] 12#12: *7 <<<Action: {name}; Timestamp:{stamp}; RequestID:{id} while reading upstream, client: 127.0.0.1, server: , request: \"POST /v1/chat/completions HTTP/1.1\", host: \"10.0.0.1:7000\""
            )
        } else {
            let host = if role == "prefill" { "10.0.0.2" } else { "10.0.0.3" };
            writeln!(
                files.entry(format!("logs_{host}/log_pid_{}_tid_1.log", action.process)).or_default(),
                "2026-11-22 08:04:05,577 - <<<Action: {name}; Timestamp:{stamp}; RequestID:chatcmpl-{id}; Role:{role}_{host}"
            )
        }
        .unwrap();
    }
    files
}

fn append(folder: &Path, files: &BTreeMap<String, String>) {
    for (name, text) in files {
        let path = folder.join("logs").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

fn tag<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    span["tags"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["key"] == key)
        .map(|t| &t["value"])
}

fn root(trace: &Value) -> &Value {
    let spans = trace["spans"].as_array().unwrap();
    let mut roots = spans
        .iter()
        .filter(|s| s["references"].as_array().unwrap().is_empty());
    let root = roots.next().unwrap();
    assert_eq!(roots.next(), None, "one root");
    root
}

/// Service, operation, start after the root and duration in µs, by depth.
fn tree(trace: &Value) -> String {
    let spans = trace["spans"].as_array().unwrap();
    let begin = root(trace)["startTime"].as_u64().unwrap();
    let mut text = String::new();
    fn below(
        trace: &Value,
        spans: &[Value],
        parent: &Value,
        begin: u64,
        depth: usize,
        text: &mut String,
    ) {
        for span in spans {
            let above = span["references"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["refType"] == "CHILD_OF");
            if above.map_or(&Value::Null, |r| &r["spanID"]) != parent {
                continue;
            }
            let service = &trace["processes"][span["processID"].as_str().unwrap()]["serviceName"];
            let start = span["startTime"].as_u64().unwrap() - begin;
            writeln!(
                text,
                "{}{} {} {start}+{}",
                "  ".repeat(depth),
                service.as_str().unwrap(),
                span["operationName"].as_str().unwrap(),
                span["duration"],
            )
            .unwrap();
            below(trace, spans, &span["spanID"], begin, depth + 1, text);
        }
    }
    below(trace, spans, &Value::Null, begin, 0, &mut text);
    text
}

#[test]
fn a_whole_request_of_the_old_tools_becomes_the_tree() {
    let folder = folder("tree");
    append(&folder, &lines("38a4-one", 0, 1));
    let (traces, _) = convert(&folder, &["--skip-req_num", "0"]);
    assert_eq!(traces.len(), 5);
    assert_eq!(
        tree(&traces[4]),
        "\
omni-proxy Trace for Omni Proxy 0+36000
  omni-proxy Process request 1000+1000
  omni-proxy Tokenizer 2000+1000
  omni-proxy APC matching 3000+1000
  omni-proxy P waiting 4000+1000
  omni-proxy P scheduled 5000+1000
  omni-proxy P running 6000+11000
    vllm-prefill Prefill 7000+9000
      vllm-prefill Add to running for prefill 7000+5000
        vllm-prefill Start process request in prefill engine 7000+1000
        vllm-prefill Prefill add waiting queue 8000+1000
        vllm-prefill try to schedule in waiting queue 9000+1000
        vllm-prefill Prefill get new_blocks 10000+1000
        vllm-prefill success add to seq groups 11000+1000
      vllm-prefill Prefill execute_model 12000+2000
        vllm-prefill Prefill start execute_model 12000+1000
        vllm-prefill Prefill done execute_model 13000+1000
      vllm-prefill Send output in prefill stage 14000+2000
        vllm-prefill Start to send output in prefill stage 14000+1000
        vllm-prefill Finish prefill pickle and start response 15000+1000
  omni-proxy D waiting 18000+1000
  omni-proxy D scheduled 19000+1000
  omni-proxy D running 20000+16000
    vllm-decode Decode 21000+10000
      vllm-decode Add to need pulling for decode 21000+2000
        vllm-decode Start to dispatch decode request 21000+1000
        vllm-decode Add need pulling sequence 22000+1000
      vllm-decode Pull kv 23000+2000
        vllm-decode Start pull kv 23000+1000
        vllm-decode Finish pull kv 24000+1000
      vllm-decode Start append running sequece for decode 25000+1000
      vllm-decode Send output in decode stage 26000+5000
        vllm-decode Start to send output 26000+1000
        vllm-decode First decode output token 27000+1000
  vllm-prefill Prefill free kv 25000+8000
"
    );
    assert_eq!(
        tag(root(&traces[4]), "gen_ai.latency.time_to_first_token"),
        Some(&Value::from(0.032))
    );
}

#[test]
fn the_statistics_are_over_the_complete_requests_without_the_first_and_last() {
    let folder = folder("statistics");
    // Whole lengths 36 ms × 1…7; with one left out at each end: × 2…6.
    for scale in 1..=7 {
        append(&folder, &lines(&format!("r{scale}"), scale, scale));
    }
    let mut half = lines("half", 9, 1);
    half.retain(|file, _| file.contains("10.0.0.2"));
    append(&folder, &half);
    let (traces, said) = convert(&folder, &[]);
    assert_eq!(traces.len(), 4 + 8);
    let seen: Vec<(String, u64, f64)> = traces[..4]
        .iter()
        .map(|trace| {
            let root = root(trace);
            let key = root["tags"][0]["key"].as_str().unwrap();
            assert_eq!(tag(root, "omnitrace.requests"), Some(&Value::from(5)));
            (
                format!("{} {key}", root["operationName"].as_str().unwrap()),
                root["duration"].as_u64().unwrap(),
                tag(root, key).unwrap().as_f64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (
                "Request TP99 Percentile Trace omnitrace.duration.p99".into(),
                214_560,
                0.21456
            ),
            (
                "Request TP95 Percentile Trace omnitrace.duration.p95".into(),
                208_800,
                0.2088
            ),
            (
                "Request TP90 Percentile Trace omnitrace.duration.p90".into(),
                201_600,
                0.2016
            ),
            (
                "Request Average Trace omnitrace.duration.average".into(),
                144_000,
                0.144
            ),
        ]
    );
    // Averages of a nested request nest: the picture is the tree with other numbers.
    let expected = tree(&traces[7]).replacen("Trace for Omni Proxy", "Request Average Trace", 1);
    assert_eq!(tree(&traces[3]), expected);
    assert!(said.contains("1 of 8 requests are incomplete"), "{said}");
    assert!(said.contains("5 counted in the statistics"), "{said}");
}

#[test]
fn a_selection_is_of_traces_and_leaves_the_statistics_alone() {
    let folder = folder("selection");
    for scale in 1..=5 {
        append(&folder, &lines(&format!("r{scale}"), scale, scale));
    }
    let (all, _) = convert(&folder, &[]);
    for option in ["--filter-reqids", "--select-reqids"] {
        let (some, said) = convert(&folder, &[option, "r4, chatcmpl-r2,nobody"]);
        assert_eq!(some[..4], all[..4]);
        assert_eq!(some[4..], [all[5].clone(), all[7].clone()]);
        assert!(said.contains("not in the logs: nobody"), "{said}");
    }
}

#[test]
fn an_action_that_makes_no_phase_is_an_event_nevertheless() {
    let folder = folder("reversed");
    let freeing = "Prefill free kv blocks";
    for number in 1..=3 {
        let mut files = lines(&format!("r{number}"), number, 1);
        for text in files.values_mut() {
            *text = match number {
                // Freed at the prefill node before the decode node says that it has pulled.
                2 => text.replace(
                    &format!("{freeing}; Timestamp:{}.033000", BASE + 2),
                    &format!("{freeing}; Timestamp:{}.020000", BASE + 2),
                ),
                // Nothing else is known of it.
                3 => (text.lines().filter(|line| line.contains(freeing)))
                    .map(|line| format!("{line}\n"))
                    .collect(),
                _ => text.clone(),
            };
        }
        append(&folder, &files);
    }
    let (traces, said) = convert(&folder, &["--clock", "as-is"]);
    let [.., whole, reversed, single] = &traces[..] else {
        panic!("{} traces", traces.len())
    };
    let phase = "  vllm-prefill Prefill free kv 25000+8000\n";
    assert!(tree(whole).ends_with(phase));
    assert_eq!(tree(whole).replace(phase, ""), tree(reversed));
    assert_eq!(tree(single), "vllm-prefill Prefill 0+0\n");
    assert_eq!(
        tag(root(single), "omnitrace.incomplete"),
        Some(&true.into())
    );
    // Spans and times of its events.
    let events = |trace: &Value| -> Vec<(String, Value)> {
        let spans = trace["spans"].as_array().unwrap().iter();
        let all = spans.flat_map(|span| {
            let events = span["logs"].as_array().unwrap().iter();
            events.map(move |event| (&span["operationName"], event))
        });
        all.filter(|(_, event)| event["fields"][0]["value"] == freeing)
            .map(|(name, event)| (name.as_str().unwrap().into(), event["timestamp"].clone()))
            .collect()
    };
    let micros = |millis: u64| ((BASE * 1_000 + millis) * 1_000).into();
    assert_eq!(events(whole), []);
    assert_eq!(events(reversed), [("Prefill".into(), micros(2_020))]);
    assert_eq!(events(single), [("Prefill".into(), micros(3_033))]);
    assert!(
        said.contains("are shown as events of other spans: \"Prefill free kv\" (1)\n"),
        "{said}"
    );
    assert!(said.contains("1 of 3 requests are incomplete"), "{said}");
}

#[test]
fn rotated_and_compressed_files_count_and_repeats_do_not() {
    let folder = folder("files");
    let whole = lines("r1", 0, 1);
    append(&folder, &whole);
    let (plain, _) = convert(&folder, &[]);

    // The same once more, elsewhere and compressed, with Windows line ends.
    let file = fs::File::create(folder.join("logs/copy.log.1.gz")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    for text in whole.values() {
        gzip.write_all(text.replace('\n', "\r\n").as_bytes())
            .unwrap();
    }
    gzip.finish().unwrap();
    let (twice, _) = convert(&folder, &[]);
    assert_eq!(twice, plain);
    for file in whole.keys() {
        fs::remove_file(folder.join("logs").join(file)).unwrap();
    }
    let (compressed, _) = convert(&folder, &[]);
    assert_eq!(compressed, plain);
}

#[test]
fn damaged_lines_and_binary_garbage_are_counted_with_their_place() {
    let folder = folder("garbage");
    append(&folder, &lines("r1", 0, 1));
    let (clean, _) = convert(&folder, &[]);
    let garbage: Vec<u8> = (0..200_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(folder.join("logs/core.bin"), garbage).unwrap();
    let bad = "noise\n<<<Action: x; Timestamp:1.2.3; RequestID:r\n<<<Action: cut off; Timest\n<<<Action: y; Timestamp:1e5; RequestID:r\n";
    fs::write(folder.join("logs/bad.log"), bad).unwrap();
    fs::write(folder.join("logs/cut.gz"), b"\x1f\x8b\x08\x00rubbish").unwrap();
    let (traces, said) = convert(&folder, &[]);
    assert_eq!(traces, clean);
    let place = folder.join("logs/bad.log").display().to_string();
    for expected in [
        format!("1 line left out: no \"; Timestamp:\" after the action (first at {place}:3)"),
        format!("2 lines left out: timestamp is not a number of seconds (first at {place}:2)"),
        "cut.gz: ".to_owned(),
    ] {
        assert!(said.contains(&expected), "{expected}\n{said}");
    }
}

#[test]
fn failures_say_why_and_leave_no_file() {
    let folder = folder("failures");
    let (logs, out) = (folder.join("logs"), folder.join("out.json"));
    let (logs, out) = (logs.to_str().unwrap(), out.to_str().unwrap());
    let fails = |arguments: &[&str], code: i32, expected: &str| {
        let output = omnitrace(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!Path::new(out).exists());
    };
    fails(
        &["convert", "/no/such/place", out],
        1,
        "cannot read /no/such/place: No such file",
    );
    fails(&["convert", logs, out], 1, "no action lines");
    append(&folder, &lines("r1", 0, 1));
    fails(
        &["convert", logs, out, "--filter-reqids", "a,b"],
        1,
        "none of these requests is in the logs: a, b",
    );
    fails(
        &["convert", logs, "/no/such/place/out.json"],
        1,
        "cannot write /no/such/place/out.json",
    );
    fails(&["convert", logs], 2, "<OUTPUT>");
    fails(
        &["convert", logs, out, "--skip-req_num", "few"],
        2,
        "invalid value 'few' for '--skip-req_num",
    );
    fails(
        &["replay", logs, "--endpoint", "localhost:4318"],
        1,
        "--endpoint localhost:4318 does not begin with http://",
    );
    fails(
        &["replay", logs, "--endpoint", "http://127.0.0.1:9"],
        1,
        "0 spans were sent, then http://127.0.0.1:9/v1/traces did not take the next",
    );
}
