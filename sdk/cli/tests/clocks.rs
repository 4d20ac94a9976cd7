//! `omnitrace convert --clock` on logs of clocks that disagree: the real ones of an Omni
//! Proxy (`omni-proxy/`: four runs of one boot), and made ones of hosts 50 ms apart.

#![allow(clippy::unwrap_used)] // a test may

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::read::MultiGzDecoder;
use omnitrace::Vocabulary;
use serde_json::Value;

/// What the wall clock showed, in µs, when the host of the real logs was booted: by 63
/// requests whose start has both clocks, less than 0.1 ms apart.
const BOOTED: i64 = 1_795_333_698_218_486;

fn convert(name: &str, logs: &Path, options: &[&str]) -> (Vec<Value>, String) {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clocks-{name}.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_omnitrace"))
        .args(["convert", logs.to_str().unwrap(), out.to_str().unwrap()])
        .args(options)
        // The host's zone; only logs without any better hint depend on it.
        .env("TZ", "UTC")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let document: Value = serde_json::from_slice(&fs::read(out).unwrap()).unwrap();
    let traces = document["data"].as_array().unwrap().iter();
    // The statistics come first, and are of no request.
    let is_request = |t: &&Value| tag(root(t), "gen_ai.request.id").is_some();
    (traces.filter(is_request).cloned().collect(), said)
}

fn tag<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    let mut tags = span["tags"].as_array().unwrap().iter();
    tags.find(|t| t["key"] == key).map(|t| &t["value"])
}

fn parent(span: &Value) -> Option<&Value> {
    let references = span["references"].as_array().unwrap();
    let above = references.iter().find(|r| r["refType"] == "CHILD_OF");
    above.map(|r| &r["spanID"])
}

fn spans(trace: &Value) -> &[Value] {
    trace["spans"].as_array().unwrap()
}

fn roots(trace: &Value) -> impl Iterator<Item = &Value> {
    spans(trace).iter().filter(|s| parent(s).is_none())
}

fn root(trace: &Value) -> &Value {
    roots(trace).next().unwrap()
}

fn extent(span: &Value) -> (i64, i64) {
    let start = span["startTime"].as_i64().unwrap();
    (start, start + span["duration"].as_i64().unwrap())
}

/// Spans that reach outside their parents, in µs.
fn outside(trace: &Value) -> Vec<i64> {
    let by_id: HashMap<&Value, &Value> = spans(trace).iter().map(|s| (&s["spanID"], s)).collect();
    let over = |span: &Value| {
        let ((start, end), (from, to)) = (extent(span), extent(by_id[parent(span)?]));
        Some((from - start).max(end - to)).filter(|over| *over > 0)
    };
    spans(trace).iter().filter_map(over).collect()
}

/// Request ids of the actions in a log, with the stamps of `Time received` in µs.
fn received(log: &Path) -> BTreeMap<String, Vec<i64>> {
    let mut text = Vec::new();
    let mut file = MultiGzDecoder::new(File::open(log).unwrap());
    file.read_to_end(&mut text).unwrap();
    let mut requests = BTreeMap::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let Some((_, action)) = line.split_once("<<<Action: ") else {
            continue;
        };
        let (name, rest) = action.split_once("; Timestamp:").unwrap();
        let (stamp, id) = rest.split_once("; RequestID:").unwrap();
        let id = id.split(", client:").next().unwrap();
        let id = id.split(" while ").next().unwrap();
        let stamps: &mut Vec<i64> = requests.entry(id.to_owned()).or_default();
        if name == "Time received" {
            stamps.push(stamp.replace('.', "").parse().unwrap());
        }
    }
    requests
}

fn real(run: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/omni-proxy")
        .join(run)
}

#[test]
fn real_omni_proxy_logs_have_every_request_once_and_stand_on_the_wall_clock() {
    // A client has sent two ids of the second run twice.
    for (run, requests, ids) in [
        ("run2_trace", 43, 43),
        ("run4_client_reqid", 11, 9),
        ("run5_parallel", 20, 20),
        ("run7_odd", 9, 9),
    ] {
        let stamps = received(&real(run).join("nginx_error.log.gz"));
        assert_eq!(stamps.values().flatten().count(), requests, "{run}");
        let (traces, said) = convert(run, &real(run), &[]);
        let mut seen = BTreeSet::new();
        for trace in &traces {
            let id = tag(root(trace), "gen_ai.request.id")
                .unwrap()
                .as_str()
                .unwrap();
            assert!(seen.insert(id), "{run}: {id} twice");
            let starts: Vec<i64> = roots(trace).map(|r| extent(r).0).collect();
            assert_eq!(starts.len(), stamps[id].len(), "{run} {id}");
            for (start, stamp) in starts.iter().zip(&stamps[id]) {
                let error = start - (BOOTED + stamp);
                assert!(error.abs() < 1_000, "{run} {id}: {error} µs");
            }
            assert_eq!(outside(trace), [0; 0], "{run} {id}");
        }
        assert_eq!(seen.len(), ids, "{run}");
        assert!(
            said.contains("the proxy's host was booted at 2026-11-22 07:48:18.218"),
            "{said}"
        );
    }
}

#[test]
fn as_is_leaves_the_stamps_of_the_log() {
    let stamps = received(&real("run7_odd").join("nginx_error.log.gz"));
    let (traces, said) = convert("as-is", &real("run7_odd"), &["--clock", "as-is"]);
    assert_eq!(traces.len(), 9);
    for trace in &traces {
        let id = tag(root(trace), "gen_ai.request.id")
            .unwrap()
            .as_str()
            .unwrap();
        assert_eq!(stamps[id], [extent(root(trace)).0]);
    }
    assert!(!said.contains("booted"), "{said}");
}

/// Logs of `count` requests, one each second, on three hosts. `ahead` says by how many µs
/// the prefill and the decode node's clocks are ahead at a time in µs after the first.
fn skewed(name: &str, count: u64, ahead: impl Fn(&str, u64) -> i64) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clocks-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let vocabulary = Vocabulary::omni_vllm();
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for number in 0..count {
        for (index, action) in (0u64..).zip(&vocabulary.actions()[..37]) {
            let role = &*vocabulary.role(action.roles[0]).name;
            // Steps of 0.3 to 1 ms, others in each request.
            let jitter = (number * 37 + index).wrapping_mul(2_654_435_761) % 700;
            let after = number * 1_000_000 + index * 1_000 + jitter;
            let at = (1_795_334_645_000_000 + after).cast_signed() + ahead(role, after);
            let (action, stamp) = (
                &action.name,
                format!("{}.{:06}", at / 1_000_000, at % 1_000_000),
            );
            let line = format!("<<<Action: {action}; Timestamp:{stamp}; RequestID:");
            let text = files
                .entry(if role == "proxy" { "proxy" } else { role })
                .or_default();
            if role == "proxy" {
                writeln!(text, "2026/11/22 08:04:05 [info] 12#12: *7 {line}r{number}, client: ::1, host: \"10.0.0.1:70\"")
            } else {
                let host = if role == "prefill" { "10.0.0.2" } else { "10.0.0.3" };
                writeln!(text, "2026-11-22 08:04:05,577 - {line}chatcmpl-r{number}; Role:{role}_{host}")
            }
            .unwrap();
        }
    }
    for (name, text) in files {
        fs::write(folder.join(format!("{name}.log")), text).unwrap();
    }
    folder
}

#[test]
fn trees_of_hosts_50_ms_off_and_drifting_nest_and_say_what_was_moved() {
    let ahead = |role: &str, after: u64| match role {
        "prefill" => 50_000 + (after / 50_000).cast_signed(),
        "decode" => -50_000 - (after / 50_000).cast_signed(),
        _ => 0,
    };
    let folder = skewed("skewed", 600, ahead);
    let (as_is, _) = convert("skewed-as-is", &folder, &["--clock", "as-is"]);
    assert!(as_is.iter().all(|t| !outside(t).is_empty()));
    let (traces, said) = convert("skewed-auto", &folder, &[]);
    assert_eq!(traces.len(), 600);
    for (number, trace) in (0u64..).zip(&traces) {
        assert_eq!(outside(trace), [0; 0]);
        assert_eq!(spans(trace).len(), 35);
        for span in spans(trace) {
            assert_eq!(tag(span, "omnitrace.clock.cut_start"), None, "{span:#}");
            assert_eq!(tag(span, "omnitrace.clock.cut_end"), None, "{span:#}");
            let seconds = |key: &str| tag(span, key).map(|v| v.as_f64().unwrap());
            let process = span["processID"].as_str().unwrap();
            let service = &trace["processes"][process]["serviceName"];
            let truth = match service.as_str().unwrap() {
                "vllm-prefill" => -0.05 - number as f64 * 2e-5,
                "vllm-decode" => 0.05 + number as f64 * 2e-5,
                _ => {
                    assert_eq!(seconds("omnitrace.clock.offset"), None);
                    continue;
                }
            };
            let error = (seconds("omnitrace.clock.offset").unwrap() - truth).abs();
            let uncertainty = seconds("omnitrace.clock.uncertainty").unwrap();
            assert!(
                error <= uncertainty && uncertainty < 4e-3,
                "{error} {uncertainty}"
            );
        }
    }
    // The host, which way its clock is off, and its drift to within what is uncertain.
    for (host, way, drift, within) in [
        ("10.0.0.2", "ahead of", 20.0, 2.0),
        ("10.0.0.3", "behind", -20.0, 8.0),
    ] {
        let begin = format!("omnitrace: the clock of {host} is 5");
        let line = said.lines().find(|l| l.starts_with(&begin)).unwrap();
        let middle = format!(" ms {way} that of the proxy, drifting by ");
        let (_, rest) = line.split_once(&middle).unwrap();
        let (found, rest) = rest.split_once(" ppm (± ").unwrap();
        let error: f64 = found.parse::<f64>().unwrap() - drift;
        assert!(error.abs() < within, "{said}");
        assert!(
            rest.ends_with("): its times are moved onto the latter"),
            "{said}"
        );
    }
}

#[test]
fn hosts_that_agree_are_left_alone() {
    let folder = skewed("agreeing", 50, |_, _| 0);
    let (traces, said) = convert("agreeing", &folder, &[]);
    let (as_is, _) = convert("agreeing-as-is", &folder, &["--clock", "as-is"]);
    assert_eq!(traces, as_is);
    assert!(
        said.contains("2 clocks agree with that of the proxy"),
        "{said}"
    );
}

#[test]
fn a_proxy_whose_time_zone_nobody_knows_is_put_right_by_its_messages() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clocks-zone");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let vocabulary = Vocabulary::omni_vllm();
    let (mut proxy, mut nodes) = (String::new(), String::new());
    for number in 0..40 {
        // From "Time received" on: the client has sent the id.
        for (index, action) in (0u64..).zip(&vocabulary.actions()[..37]).skip(1) {
            let after = number * 1_017_000 + index * 1_000;
            let stamp =
                |from: u64| format!("{}.{:06}", from + after / 1_000_000, after % 1_000_000);
            let (name, role) = (&action.name, &*vocabulary.role(action.roles[0]).name);
            if role == "proxy" {
                // It runs in UTC+8; this machine, by the test's TZ, does not.
                let second = 245 + after / 1_000_000;
                let (minute, second, stamp) = (second / 60, second % 60, stamp(1_000));
                writeln!(proxy, "2026/11/22 16:{minute:02}:{second:02} [info] 7#7: *7 <<<Action: {name}; Timestamp:{stamp}; RequestID:r{number}, client: ::1")
            } else {
                let stamp = stamp(1_795_334_645);
                writeln!(nodes, "<<<Action: {name}; Timestamp:{stamp}; RequestID:chatcmpl-r{number}; Role:{role}_10.0.0.2")
            }
            .unwrap();
        }
    }
    fs::write(folder.join("proxy.log"), proxy).unwrap();
    fs::write(folder.join("nodes.log"), nodes).unwrap();
    let (traces, said) = convert("zone", &folder, &[]);
    assert_eq!(traces.len(), 40);
    for (number, trace) in (0..).zip(&traces) {
        assert_eq!(outside(trace), [0; 0]);
        let truth = 1_795_334_645_001_000 + number * 1_017_000;
        let error = extent(root(trace)).0 - truth;
        assert!(error.abs() < 4_000, "{error} µs\n{said}");
    }
    assert!(
        said.contains("taken for this machine's time zone (set TZ for another)"),
        "{said}"
    );
    assert!(
        said.contains("the clock of the proxy is 28800 s ahead of that of 10.0.0.2"),
        "{said}"
    );
}

#[test]
fn an_unknown_way_with_clocks_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_omnitrace"))
        .args(["convert", "logs", "out.json", "--clock", "guess"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("invalid value 'guess' for '--clock <MODE>': not auto or as-is"),
        "{said}"
    );
}

#[test]
fn two_proxies_have_a_clock_each() {
    let folder = skewed("two-proxies", 400, |_, _| 0);
    let whole = fs::read_to_string(folder.join("proxy.log")).unwrap();
    // Every fourth request went through another proxy, whose clock is 80 ms ahead.
    let (mut first, mut second) = (String::new(), String::new());
    for line in whole.lines() {
        let (head, rest) = line.split_once("Timestamp:").unwrap();
        let (stamp, rest) = rest.split_once("; RequestID:r").unwrap();
        let (id, _) = rest.split_once(',').unwrap();
        if id.parse::<u64>().unwrap() % 4 > 0 {
            writeln!(first, "{line}").unwrap();
            continue;
        }
        let micros: u64 = stamp.replace('.', "").parse::<u64>().unwrap() + 80_000;
        let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
        let stamp = format!("{seconds}.{micros:06}");
        writeln!(second, "{head}Timestamp:{stamp}; RequestID:r{rest}").unwrap();
    }
    fs::remove_file(folder.join("proxy.log")).unwrap();
    // The first one's log was rotated in the middle of a request, and all of it copied.
    let (begin, end) = first.split_at(first[..first.len() / 2].rfind('\n').unwrap() + 1);
    for folder in [&folder, &folder.join("copy")] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("nginx_10.0.0.1.log.1"), begin).unwrap();
        fs::write(folder.join("nginx_10.0.0.1.log"), end).unwrap();
    }
    fs::write(folder.join("nginx_10.0.0.9.log"), second).unwrap();
    let (traces, said) = convert("two-proxies", &folder, &[]);
    assert_eq!(traces.len(), 400);
    let moved = |trace: &Value| {
        let root = root(trace);
        tag(root, "omnitrace.clock.offset").map(|offset| offset.as_f64().unwrap())
    };
    let mut of_second = 0;
    for trace in &traces {
        assert_eq!((outside(trace), spans(trace).len()), (vec![], 35));
        assert!(
            spans(trace)
                .iter()
                .all(|s| tag(s, "omnitrace.clock.cut_start").is_none())
        );
        let id = tag(root(trace), "gen_ai.request.id")
            .unwrap()
            .as_str()
            .unwrap();
        let is_first = id[1..].parse::<u64>().unwrap() % 4 > 0;
        match moved(trace) {
            None => assert!(is_first, "{id}: {said}"),
            Some(offset) => {
                assert!(!is_first && (offset + 0.08).abs() < 4e-3, "{id}: {offset}");
                of_second += 1;
            }
        }
    }
    assert_eq!(of_second, 100);
    assert!(said.contains("the clock of the proxy of "), "{said}");
    assert!(said.contains("nginx_10.0.0.9.log is "), "{said}");
}
