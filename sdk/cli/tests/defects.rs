//! The defects of the old converter, by their numbers in its description, and that ours
//! does right; and its options.
//!
//! | defect | what was wrong | test |
//! |---|---|---|
//! | B1 | a line without a host crashes, or has another's | `b1_…` |
//! | B2 | one request without a beginning or a first token crashes | `b2_…` |
//! | B3 | "Prefill free kv" below the wrong span | `b3_…` |
//! | B4 | few requests, or none, crash | `b4_…` |
//! | B5 | a span's type is tested by part of its text | `b5_…` |
//! | B6 | unknown names make a request complete | `b6_…` |
//! | B7 | times since boot are taken for wall clock | `real_omni_proxy_logs_…` and others in clocks.rs |
//! | B8 | clocks that differ: negative spans, circles | `b8_…`, `trees_of_hosts_50_ms_off_…` in clocks.rs |
//! | B9 | a bad number crashes | `b9_…` |
//! | B10 | nodes with IPv6, names or no address are booked as the proxy | `b10_…` |
//! | B11 | role of one line with the time of another | `b11_…` |
//! | B12 | order of files instead of time | `b12_…` |
//! | B13 | a selection without a match is a success without a file | `b13_…` |
//! | B14 | an id with `chatcmpl-` is never found | `b14_…` |
//! | B15 | types, stamps and ids that only the UI's upload takes | `b15_…` |
//! | B16 | the whole output in memory | `b16_…`; bench-offline has the figures |
//! | B17 | only `*.log` is read | `b17_…` |
//! | B18 | an id that comes again mixes two runs | `b18_…` |

#![allow(clippy::unwrap_used)] // a test may

mod logs;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use logs::{
    BEGIN, Line, convert, folder, has_no_cycle, omnitrace, parent, request, service, spans, tag,
};
use serde_json::Value;

const LEGACY: [&str; 2] = ["--layout", "legacy"];

/// So many whole requests, a second apart.
fn requests(count: u64) -> Vec<Line> {
    (1..=count)
        .flat_map(|n| request(&format!("r{n}"), BEGIN + n * 1_000_000))
        .collect()
}

/// The span with this service in the old layout.
fn named<'a>(trace: &'a Value, name: &str) -> Option<&'a Value> {
    spans(trace).iter().find(|s| service(trace, s) == name)
}

/// Ids of the requests in a file of the old layout, without the statistics.
fn ids(traces: &[Value]) -> Vec<&str> {
    let requests = traces.iter().skip(4);
    requests
        .map(|t| tag(&spans(t)[0], "RequestID").as_str().unwrap())
        .collect()
}

#[test]
fn b1_a_line_without_a_host_has_that_of_its_own_request() {
    let hosts = [
        (
            "v4",
            ", client: 1.2.3.4, host: \"10.0.0.7:7000\"",
            "10.0.0.7",
        ),
        (
            "v6",
            ", client: 1.2.3.4, host: \"[fd00::1]:7000\"",
            "fd00::1",
        ),
        (
            "name",
            ", client: 1.2.3.4, host: \"proxy.example\"",
            "proxy.example",
        ),
        ("none", ", client: 1.2.3.4", ""),
    ];
    let mut lines = Vec::new();
    for (n, (id, trailer, _)) in (0u64..).zip(hosts) {
        let mut all = request(id, BEGIN + n * 1_000_000);
        let proxy = all
            .iter_mut()
            .filter(|l| l.source.is_none() && !l.trailer.is_empty());
        proxy.for_each(|line| line.trailer = trailer);
        // The scheduler's line, which has no host at all, comes first in the file.
        all.swap(0, 5);
        lines.extend(all);
    }
    let (traces, _) = convert(&folder("b1", &lines), &LEGACY);
    let seen: Vec<_> = (traces.iter().skip(4))
        .map(|trace| {
            tag(named(trace, "P waiting").unwrap(), "ip")
                .as_str()
                .unwrap()
        })
        .collect();
    assert_eq!(seen, hosts.map(|(_, _, host)| host));
}

#[test]
fn b2_one_odd_request_does_not_end_the_run() {
    for missing in ["Start to schedule", "Proxy got first token"] {
        let mut lines = requests(5);
        lines.retain(|l| l.id != "r3" || l.action != missing);
        let (traces, _) = convert(&folder("b2", &lines), &LEGACY);
        assert_eq!(ids(&traces), ["r1", "r2", "r3", "r4", "r5"]);
        assert_eq!(named(&traces[6], "TTFT"), None);
        assert!(named(&traces[5], "TTFT").is_some());
        let (traces, _) = convert(&folder("b2", &lines), &[]);
        assert_eq!(traces.len(), 4 + 5);
    }
}

#[test]
fn b3_freeing_the_kv_cache_hangs_below_its_pull() {
    let (traces, _) = convert(&folder("b3", &requests(1)), &LEGACY);
    let free = named(&traces[4], "Prefill free kv").unwrap();
    let above = parent(&traces[4], free).unwrap();
    assert_eq!(service(&traces[4], above), "Pull kv");
}

#[test]
fn b4_few_requests_or_none_are_enough() {
    for count in 1..=3 {
        let (traces, said) = convert(&folder("b4", &requests(count)), &LEGACY);
        assert_eq!(traces.len() as u64, 4 + count);
        assert_eq!(said.contains("would leave none"), count < 3, "{said}");
    }
    let mut half = requests(1);
    half.truncate(20);
    let (traces, said) = convert(&folder("b4", &half), &LEGACY);
    assert_eq!(traces, Vec::<Value>::new());
    assert!(said.contains("1 of 1 requests are incomplete"), "{said}");
}

#[test]
fn b5_only_the_big_spans_have_chains_of_small_ones() {
    let (traces, _) = convert(&folder("b5", &requests(1)), &LEGACY);
    let trace = &traces[4];
    let below = |name: &str| -> Vec<&str> {
        let children = spans(trace)
            .iter()
            .filter(|s| parent(trace, s).is_some_and(|above| service(trace, above) == name));
        children.map(|span| service(trace, span)).collect()
    };
    // Of the types big_single, special, add and big.
    assert_eq!(below("Prefill"), ["Proxy received request"]);
    assert_eq!(below("P running"), ["PD api server get request"]);
    assert_eq!(below("Prefill free kv"), [""; 0]);
    assert_eq!(below("TPOT1"), ["TPOT2"]);
    assert_eq!(
        below("Prefill execute_model"),
        [
            "Send output in prefill stage",
            "Prefill start execute_model"
        ]
    );
}

#[test]
fn b6_names_beside_the_catalogue_do_not_make_a_request_complete() {
    let mut lines = requests(3);
    lines.retain(|l| l.id != "r2" || !l.action.starts_with("Enter state D"));
    for action in [
        "Pop output queues",
        "Client get prefill output",
        "Decode done execute_model",
    ] {
        lines.push(Line {
            action: action.to_owned(),
            ..request("r2", BEGIN + 2_000_000)[8].clone()
        });
    }
    let (traces, _) = convert(&folder("b6", &lines), &LEGACY);
    assert_eq!(ids(&traces), ["r1", "r3"]);
}

#[test]
fn b8_clocks_that_differ_make_neither_negative_spans_nor_circles() {
    let mut lines = requests(3);
    for line in &mut lines {
        match line.source {
            Some(("prefill", _)) => line.time -= 50_000,
            Some(("decode", _)) => line.time += 50_000,
            _ => {}
        }
    }
    for layout in ["legacy", "tree"] {
        let (traces, _) = convert(&folder("b8", &lines), &["--layout", layout]);
        for trace in &traces {
            assert!(has_no_cycle(trace));
            let durations = spans(trace).iter().map(|s| s["duration"].as_i64().unwrap());
            assert_eq!(durations.filter(|d| *d < 0).count(), 0);
        }
    }
}

#[test]
fn b9_a_number_that_is_none_costs_its_line_only() {
    let folder = folder("b9", &requests(3));
    let bad = "<<<Action: Time received; Timestamp:1.2.3; RequestID:r1, client: x\n\
               <<<Action: Time received; Timestamp:.; RequestID:r1, client: x\n";
    fs::write(folder.join("logs/bad.log"), bad).unwrap();
    let (traces, said) = convert(&folder, &LEGACY);
    assert_eq!(ids(&traces), ["r1", "r2", "r3"]);
    assert!(
        said.contains("2 lines left out: timestamp is not a number of seconds"),
        "{said}"
    );
}

#[test]
fn b10_whatever_a_node_calls_itself_it_is_not_the_proxy() {
    let nodes = [
        ("None", "10.0.0.2", "10.0.0.2"),
        ("prefill", "fd00::2", "fd00::2"),
        ("prefill", "node-2.example", "node-2.example"),
        (
            "prefill",
            "Error getting local IP: [Errno 101] Network is unreachable",
            "",
        ),
    ];
    for (role, node, shown) in nodes {
        let mut lines = requests(1);
        for line in lines
            .iter_mut()
            .filter(|l| matches!(l.source, Some(("prefill", _))))
        {
            line.source = Some((role, node));
        }
        let (traces, said) = convert(&folder("b10", &lines), &LEGACY);
        let span = named(&traces[4], "Prefill execute_model").unwrap();
        assert_eq!(
            (tag(span, "role"), tag(span, "ip")),
            (&"prefill".into(), &shown.into()),
            "{said}"
        );
    }
}

#[test]
fn b11_role_and_time_are_of_the_same_line() {
    let mut lines = requests(1);
    let again = Line {
        source: Some(("decode", "10.0.0.3")),
        time: BEGIN + 1_024_000,
        file: "a-first-by-name.log".into(),
        ..lines[10].clone()
    };
    assert_eq!(again.action, "try to schedule in waiting queue");
    lines.push(again);
    let (traces, _) = convert(&folder("b11", &lines), &LEGACY);
    let span = named(&traces[4], "try to schedule in waiting queue").unwrap();
    assert_eq!(
        (tag(span, "role"), tag(span, "ip")),
        (&"prefill".into(), &"10.0.0.2".into())
    );
    assert_eq!(span["startTime"], BEGIN + 1_009_000);
}

#[test]
fn b12_requests_are_in_the_order_of_time_not_of_files() {
    let mut lines = Vec::new();
    for n in 1..=4u64 {
        let mut all = request(&format!("r{n}"), BEGIN + n * 1_000_000);
        // The whole request takes n times as long, and the last has the first name.
        for (index, line) in (0u64..).zip(&mut all) {
            line.time += index * 1000 * (n - 1);
            line.file = format!("{}.log", 9 - n);
        }
        lines.extend(all);
    }
    let (traces, _) = convert(&folder("b12", &lines), &LEGACY);
    assert_eq!(ids(&traces), ["r1", "r2", "r3", "r4"]);
    // Without the first and the last: the average of 72 and 108 ms.
    assert_eq!(spans(&traces[3])[0]["duration"], 90_000);
}

#[test]
fn b13_a_selection_without_a_match_is_an_error() {
    let folder = folder("b13", &requests(3));
    let (logs, out) = (folder.join("logs"), folder.join("out"));
    let arguments = [
        "convert",
        logs.to_str().unwrap(),
        out.to_str().unwrap(),
        "--filter-reqids=x",
    ];
    for layout in ["tree", "legacy"] {
        let output = omnitrace(&[&arguments[..], &["--layout", layout]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "omnitrace: --filter-reqids: none of these requests is in the logs: x\n"
        );
        assert!(!out.exists());
    }
}

#[test]
fn b14_an_id_is_selected_with_or_without_its_prefix() {
    let folder = folder("b14", &requests(4));
    let (traces, _) = convert(
        &folder,
        &["--layout=legacy", "--select-reqids=chatcmpl-r3,r1"],
    );
    assert_eq!(ids(&traces), ["r1", "r3"]);
}

#[test]
fn b15_ids_types_and_stamps_are_those_that_jaeger_knows() {
    let (traces, _) = convert(&folder("b15", &requests(3)), &LEGACY);
    assert_eq!(traces.len(), 4 + 3);
    for span in traces.iter().flat_map(spans) {
        let id = span["spanID"].as_str().unwrap();
        assert!(
            id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
        let types = span["tags"].as_array().unwrap().iter().map(|t| &t["type"]);
        assert_eq!(
            types.filter(|t| *t != "string" && *t != "float64").count(),
            0
        );
        assert_eq!(span["logs"][0]["timestamp"], span["startTime"]);
    }
}

#[test]
fn b16_the_output_is_never_in_memory_as_a_whole() {
    let lines: Vec<Line> = (0..6_000)
        .flat_map(|n| request(&format!("r{n}"), BEGIN + n * 10_000))
        .collect();
    let logs = folder("b16", &lines).join("logs");
    let mut child = Command::new(env!("CARGO_BIN_EXE_omnitrace"))
        .args(["convert", "--quiet", "--layout=legacy"])
        .args([logs.to_str().unwrap(), "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut written, mut peak) = (0, 0);
    let mut output = child.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = output.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        written += read;
        // Of a process that has just ended there is nothing to be read.
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.unwrap_or_default();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let most = most.and_then(|most| most.trim().strip_suffix(" kB"));
        peak = peak.max(most.map_or(0, |kb| kb.parse::<usize>().unwrap() * 1024));
    }
    assert!(child.wait().unwrap().success());
    assert!(peak > 0 && peak < written / 2, "{peak} bytes for {written}");
}

#[test]
fn b17_files_of_any_name_and_packing_are_read() {
    let lines = requests(3);
    let folder = folder("b17", &lines);
    let (plain, _) = convert(&folder, &LEGACY);
    let logs = folder.join("logs");
    fs::rename(logs.join("proxy.log"), logs.join("proxy.log.1")).unwrap();
    let text = fs::read(logs.join("prefill.log")).unwrap();
    fs::write(
        logs.join("prefill"),
        zstd::encode_all(&text[..], 3).unwrap(),
    )
    .unwrap();
    fs::remove_file(logs.join("prefill.log")).unwrap();
    let text = fs::read(logs.join("decode.log")).unwrap();
    let file = fs::File::create(logs.join("decode.log")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &text).unwrap();
    gzip.finish().unwrap();
    assert_eq!(convert(&folder, &LEGACY).0, plain);
}

#[test]
fn b18_the_same_id_in_a_later_run_is_another_request() {
    let day = 86_400_000_000;
    let lines = [request("1", BEGIN), request("1", BEGIN + day)].concat();
    let folder = folder("b18", &lines);
    let (traces, _) = convert(&folder, &LEGACY);
    let later = format!("1@{}", (BEGIN + day) / 1_000_000);
    assert_eq!(ids(&traces), ["1", &later]);
    for trace in &traces[4..] {
        assert_eq!(spans(trace).len(), 45);
        assert_eq!(spans(trace)[0]["duration"], 36_000);
    }
    let (both, _) = convert(&folder, &["--layout=legacy", "--filter-reqids=1"]);
    assert_eq!(both[4..], traces[4..]);
    let (tree, _) = convert(&folder, &[]);
    assert_eq!(tree.len(), 4 + 2);
}

#[test]
fn the_documents_options_do_what_it_says_of_them() {
    let mut lines = Vec::new();
    for n in 1..=6u64 {
        let mut all = request(&format!("r{n}"), BEGIN + n * 1_000_000);
        for (index, line) in (0u64..).zip(&mut all) {
            line.time += index * 1000 * n * n;
        }
        lines.extend(all);
    }
    let folder = folder("options", &lines);
    for layout in [&[][..], &LEGACY] {
        let run = |options: &[&str]| convert(&folder, &[layout, options].concat()).0;
        // The average of the whole requests, which take 36 (1 + n²) ms; the old layout cuts
        // what is less than a microsecond.
        let average = |traces: &[Value]| {
            let spans = spans(&traces[3]);
            let longest = spans.iter().map(|s| s["duration"].as_u64().unwrap()).max();
            (longest.unwrap() + 500) / 1000
        };
        let of = |n: &[u64]| {
            let all = n.iter().map(|n| 36 * (1 + n * n));
            all.sum::<u64>() / n.len() as u64
        };
        let plain = run(&[]);
        assert_eq!(average(&plain), of(&[2, 3, 4, 5]));
        assert_eq!(
            average(&run(&["--skip-req_num", "0"])),
            of(&[1, 2, 3, 4, 5, 6])
        );
        assert_eq!(average(&run(&["--skip-req_num=2"])), of(&[3, 4]));
        // The statistics are over all requests, whatever is selected.
        for option in ["--filter-reqids", "--select-reqids"] {
            let selected = run(&[option, "r5, r2,nobody"]);
            assert_eq!(selected[..4], plain[..4]);
            assert_eq!(selected[4..], [plain[5].clone(), plain[8].clone()]);
        }
    }
}
