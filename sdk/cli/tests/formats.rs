//! The formats that `omnitrace convert` writes: whole files.

#![allow(clippy::unwrap_used)] // a test may

mod logs;

use std::collections::BTreeMap;

use logs::{BEGIN, convert, convert_to, folder, omnitrace, request, spans, tag};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::Value;

/// A request whose spans are few.
fn short(test: &str) -> std::path::PathBuf {
    let mut lines = request("r\"1,", BEGIN);
    lines.retain(|l| {
        matches!(
            &*l.action,
            "Time received"
                | "Enter state P running"
                | "Finish P running"
                | "PD api server get request"
                | "Finish prefill pickle and start response"
                | "Received all tokens"
        )
    });
    folder(test, &lines)
}

fn text(test: &str, options: &[&str]) -> String {
    String::from_utf8(convert_to(&short(test), options).0).unwrap()
}

#[test]
fn csv_has_a_row_for_each_span() {
    insta::assert_snapshot!(text("csv", &["--format", "csv"]));
}

#[test]
fn perfetto_has_a_beginning_and_an_end_for_each_span_and_a_name_for_each_process() {
    insta::assert_snapshot!(text("perfetto", &["--format", "perfetto"]));
}

#[test]
fn the_old_layout_of_a_whole_request_is_the_old_file() {
    let folder = folder("legacy", &request("38a4", BEGIN));
    let (file, _) = convert_to(&folder, &["--layout", "legacy", "--skip-req_num", "0"]);
    let file = String::from_utf8(file).unwrap();
    let lines: Vec<&str> = file.lines().collect();
    assert_eq!(lines.len(), 1 + 5 + 1);
    insta::assert_snapshot!(lines[5].replace("{\"traceID\"", "\n{\"traceID\""));
    insta::assert_snapshot!(lines[4].replace("{\"traceID\"", "\n{\"traceID\""));
}

#[test]
fn perfetto_events_of_a_row_are_one_in_the_other() {
    let mut lines = Vec::new();
    for n in 0..5 {
        lines.extend(request(&format!("r{n}"), BEGIN + n * 7_000));
    }
    let (file, _) = convert_to(&folder("rows", &lines), &["--format", "perfetto"]);
    let document: Value = serde_json::from_slice(&file).unwrap();
    let mut open: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    let mut pairs = 0;
    for event in document["traceEvents"].as_array().unwrap() {
        let row = format!("{} {}", event["pid"], event["id2"]["local"]);
        match event["ph"].as_str().unwrap() {
            "b" => open.entry(row).or_default().push(event),
            "e" => {
                let begun = open.get_mut(&row).unwrap().pop().unwrap();
                assert_eq!(begun["name"], event["name"]);
                assert!(begun["ts"].as_f64() <= event["ts"].as_f64());
                pairs += 1;
            }
            other => assert_eq!(other, "M"),
        }
    }
    assert!(open.values().all(Vec::is_empty));
    let (traces, _) = convert(&folder("rows", &lines), &[]);
    assert_eq!(
        pairs,
        traces[4..].iter().map(|t| spans(t).len()).sum::<usize>()
    );
}

#[test]
fn otlp_as_json_lines_and_as_protobuf_holds_what_jaeger_is_given() {
    let mut lines = request("r1", BEGIN);
    lines.extend(request("r2", BEGIN + 1_000_000));
    let folder = folder("otlp", &lines);
    let (json, _) = convert_to(&folder, &["--format", "otlp"]);
    let json: Vec<ExportTraceServiceRequest> = String::from_utf8(json)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(json.len(), 2);
    let (protobuf, _) = convert_to(&folder, &["--format", "otlp-protobuf"]);
    let whole = ExportTraceServiceRequest::decode(&protobuf[..]).unwrap();
    let joined: Vec<_> = json.into_iter().flat_map(|r| r.resource_spans).collect();
    assert_eq!(whole.resource_spans, joined);
    let (traces, _) = convert(&folder, &[]);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut ours: Vec<_> = (whole.resource_spans.iter())
        .flat_map(|r| &r.scope_spans)
        .flat_map(|s| &s.spans)
        .map(|s| {
            let start = s.start_time_unix_nano / 1000;
            (hex(&s.trace_id), hex(&s.span_id), s.name.clone(), start)
        })
        .collect();
    let mut jaegers: Vec<_> = (traces[4..].iter())
        .flat_map(spans)
        .map(|s| {
            let text = |key: &str| s[key].as_str().unwrap().to_owned();
            let start = s["startTime"].as_u64().unwrap();
            (
                text("traceID"),
                text("spanID"),
                text("operationName"),
                start,
            )
        })
        .collect();
    ours.sort();
    jaegers.sort();
    assert_eq!(ours, jaegers);
    assert_eq!(tag(&spans(&traces[4])[0], "gen_ai.request.id"), "r1");
}

#[test]
fn a_layout_that_a_format_does_not_have_is_refused_and_so_are_unknown_ones() {
    let folder = short("refused");
    let (logs, out) = (folder.join("logs"), folder.join("out"));
    let arguments = ["convert", logs.to_str().unwrap(), out.to_str().unwrap()];
    for (options, code, expected) in [
        (
            &["--layout=legacy", "--format=csv"][..],
            1,
            "--layout legacy is a layout of --format jaeger",
        ),
        (
            &["--format=xml"][..],
            2,
            "not one of jaeger, otlp, otlp-protobuf, perfetto, csv",
        ),
        (&["--layout=flat"][..], 2, "not tree or legacy"),
    ] {
        let output = omnitrace(&[&arguments[..], options].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!out.exists());
    }
}

#[test]
fn what_was_written_can_be_read_again() {
    let mut lines = request("r1", BEGIN);
    lines.extend(request("r2", BEGIN + 1_000_000));
    let folder = folder("again", &lines);
    let (direct, _) = convert(&folder, &["--skip-req_num=0"]);
    for format in ["jaeger", "otlp", "otlp-protobuf"] {
        let again = folder.join(format);
        std::fs::create_dir_all(again.join("logs")).unwrap();
        let (file, _) = convert_to(&folder, &["--format", format, "--skip-req_num=0"]);
        std::fs::write(again.join("logs/any name"), file).unwrap();
        let (traces, said) = convert(&again, &[]);
        let mut expected: Vec<&Value> = direct.iter().collect();
        if format != "jaeger" {
            expected.drain(..4);
        }
        // The statistics are traces like others now; all are in the order of time.
        expected.sort_by_key(|t| (spans(t)[0]["startTime"].as_u64(), t["traceID"].to_string()));
        let mut seen: Vec<&Value> = traces.iter().collect();
        seen.sort_by_key(|t| (spans(t)[0]["startTime"].as_u64(), t["traceID"].to_string()));
        assert_eq!(seen, expected, "{format} {said}");
    }
    let broken = folder.join("broken");
    std::fs::create_dir_all(broken.join("logs")).unwrap();
    std::fs::write(broken.join("logs/a.json"), "{\"data\": [{\"traceID\": 7}]}").unwrap();
    let (logs, out) = (broken.join("logs"), broken.join("out"));
    let output = omnitrace(&["convert", logs.to_str().unwrap(), out.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("a.json: invalid type: integer `7`, expected a string"),
        "{said}"
    );
}

#[test]
fn stdin_and_stdout_are_files_too() {
    use std::io::Write as _;
    let folder = short("pipes");
    let (file, _) = convert_to(&folder, &[]);
    let mut text = Vec::new();
    for name in ["prefill.log", "proxy.log"] {
        text.extend(std::fs::read(folder.join("logs").join(name)).unwrap());
    }
    for packed in [text.clone(), zstd::encode_all(&text[..], 1).unwrap()] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_omnitrace"))
            .args(["convert", "-", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&packed).unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, file);
    }
}

#[test]
fn an_object_of_otlp_that_cannot_be_read_does_not_hide_the_others() {
    let object = |id: u8, value: &str| {
        format!(
            r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"{id:032x}","spanId":"{id:016x}","name":"s{id}","startTimeUnixNano":"{BEGIN}000","endTimeUnixNano":"{BEGIN}001","attributes":[{{"key":"v","value":{value}}}]}}]}}]}}]}}"#
        )
    };
    let lines = [
        object(1, r#"{"doubleValue":"NaN"}"#),
        object(2, r#"{"arrayValue":{"values":[{"doubleValue":"1.5"}]}}"#),
        object(3, r#"{"doubleValue":{}}"#),
        object(4, r#"{"doubleValue":"much"}"#),
        object(5, r#"{"doubleValue":"-Infinity"}"#),
        object(6, r#"{"doubleValue":0.5}"#)[..60].to_owned(),
    ];
    let folder = folder("odd-otlp", &[]);
    std::fs::write(folder.join("logs/spans.json"), lines.join("\n")).unwrap();
    let (file, said) = convert_to(&folder, &["--format", "csv"]);
    let file = String::from_utf8(file).unwrap();
    let rows: Vec<(&str, &str)> = (file.lines().skip(1))
        .map(|row| row.split_at(33).1.split_at(17))
        .map(|(id, rest)| (&id[15..16], rest.split_once(",\"").unwrap().1))
        .collect();
    assert_eq!(
        rows,
        [
            ("1", r#"{""v"":""NaN""}""#),
            ("2", r#"{""v"":[1.5]}""#),
            ("5", r#"{""v"":""-Infinity""}""#),
        ]
    );
    assert!(
        said.contains("spans.json: object 3: ")
            && said.contains(", and 2 more that cannot be read"),
        "{said}"
    );
}
