//! `omnitrace stats` as a user runs it.

#![allow(clippy::unwrap_used)] // a test may

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use omnitrace::Vocabulary;
use serde_json::Value;

fn stats(logs: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnitrace"))
        .args(["stats", logs.to_str().unwrap()])
        .args(options)
        .output()
        .unwrap()
}

/// What it says on stdout and on stderr.
fn said(logs: &Path, options: &[&str]) -> (String, String) {
    let output = stats(logs, options);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    (String::from_utf8(output.stdout).unwrap(), errors)
}

/// Logs of five whole requests, 36 ms × 1…5 long, and of one that stops half-way.
fn logs(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stats-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let vocabulary = Vocabulary::omni_vllm();
    let mut text = String::new();
    for request in 1..=6u64 {
        let count = if request == 6 { 20 } else { 37 };
        for (index, action) in (0u64..).zip(&vocabulary.actions()[..count]) {
            let micros = request * 1_000_000 + index * 1_000 * request;
            let seconds = 1_795_334_645 + micros / 1_000_000;
            let (name, rest) = (&action.name, micros % 1_000_000);
            let role = &*vocabulary.role(action.roles[0]).name;
            text += &format!(
                "<<<Action: {name}; Timestamp:{seconds}.{rest:06}; RequestID:r{request}; Role:{role}_10.0.0.1\n"
            );
        }
    }
    fs::write(folder.join("all.log"), text).unwrap();
    folder
}

#[test]
fn a_person_gets_tables_whose_columns_stand_in_line() {
    let (table, errors) = said(&logs("table"), &[]);
    let blocks: Vec<&str> = table.split("\n\n").collect();
    assert_eq!(
        blocks[0],
        "6 requests, 5 complete, 3 counted (the first and the last 1 are left out)"
    );
    assert_eq!(
        blocks[1],
        "\
Latency, ms                     role    count      avg     min      max      p50      p90      p95      p99
whole request                               3  108.000  72.000  144.000  108.000  136.800  140.400  143.280
TTFT                            proxy       3   96.000  64.000  128.000   96.000  121.600  124.800  127.360
TTFT                            decode      3   21.000  14.000   28.000   21.000   26.600   27.300   27.860
TPOT                            proxy       3    4.500   3.000    6.000    4.500    5.700    5.850    5.970
gen_ai.latency.e2e              proxy       3  108.000  72.000  144.000  108.000  136.800  140.400  143.280
omnitrace.latency.kv_wait       decode      3    6.000   4.000    8.000    6.000    7.600    7.800    7.960
omnitrace.latency.second_token  proxy       3    6.000   4.000    8.000    6.000    7.600    7.800    7.960
omnitrace.latency.third_token   proxy       3    3.000   2.000    4.000    3.000    3.800    3.900    3.980"
    );
    let phases: Vec<&str> = blocks[2].lines().collect();
    assert_eq!(phases.len(), 1 + 35, "{table}");
    for (at, expected) in [
        (
            0,
            "Phase, ms (path: share of the critical path)      role      path  count      avg     min      max",
        ),
        (
            1,
            "Trace for Omni Proxy                              proxy     5.6%      3  108.000  72.000  144.000",
        ),
        (
            7,
            "  P running                                       proxy     5.6%      3   33.000  22.000   44.000",
        ),
        (
            8,
            "    Prefill                                       prefill   0.0%      3   27.000  18.000   36.000",
        ),
    ] {
        assert!(phases[at].starts_with(expected), "{table}");
    }
    let width = phases[0].chars().count();
    assert!(phases.iter().all(|line| line.chars().count() == width));
    assert!(table.contains("\nIncomplete requests stop after  for example  count\nEnter state D scheduled         r6               1\n"), "{table}");
    assert!(!errors.contains("omnitrace:"), "{errors}");
}

#[test]
fn phases_that_would_end_before_they_begin_are_told_and_not_counted() {
    let logs = logs("contradictory");
    let file = logs.join("all.log");
    let text = fs::read_to_string(&file).unwrap();
    // Of r2, freed before it was pulled.
    let freed = "Prefill free kv blocks; Timestamp:1795334647";
    let early = text.replace(&format!("{freed}.066000"), &format!("{freed}.040000"));
    assert_ne!(early, text);
    fs::write(file, early).unwrap();
    let options = ["--clock", "as-is", "--skip-req_num", "0"];
    let (table, _) = said(&logs, &options);
    assert!(
        table.ends_with(
            "\n
Phases that would end before they begin  for example  count
Prefill free kv                          r2               1\n"
        ),
        "{table}"
    );
    let (json, _) = said(&logs, &[&options[..], &["--json"]].concat());
    let summary: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(summary["counted"], 5);
    let phases = summary["phases"].as_array().unwrap().iter();
    let free = phases.filter(|phase| phase["name"] == "Prefill free kv");
    assert_eq!(free.map(|phase| &phase["count"]).collect::<Vec<_>>(), [4]);
}

#[test]
fn csv_has_the_columns_of_the_old_script_and_json_has_everything() {
    let logs = logs("csv");
    let (csv, _) = said(&logs, &["--csv", "--skip-req_num", "0"]);
    let lines: Vec<&str> = csv.split("\r\n").collect();
    assert_eq!(
        lines[0],
        "operation,count,avg_ms,min_ms,max_ms,p50_ms,p90_ms,p95_ms,p99_ms"
    );
    assert_eq!(
        lines[1],
        "Trace for Omni Proxy,5,108.000000,36.000000,180.000000,108.000000,165.600000,172.800000,178.560000"
    );
    assert_eq!(lines.len(), 1 + 35 + 1);
    let (json, _) = said(&logs, &["--json", "--skip-req_num", "0", "--slowest", "2"]);
    let summary: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(summary["counted"], 5);
    assert_eq!(summary["phases"][0]["p50_ms"], 108.0);
    assert_eq!(summary["phases"][0]["nodes"][0]["node"], "10.0.0.1");
    let slowest: Vec<&Value> = summary["slowest"].as_array().unwrap().iter().collect();
    assert_eq!(
        slowest.iter().map(|r| &r["id"]).collect::<Vec<_>>(),
        ["r5", "r4"]
    );
    assert_eq!(summary["incomplete"][0]["at"], "Enter state D scheduled");
}

#[test]
fn a_selection_is_shown_and_leaves_the_statistics_alone() {
    let logs = logs("selection");
    let (all, _) = said(&logs, &["--json"]);
    let (some, errors) = said(
        &logs,
        &["--json", "--filter-reqids", "chatcmpl-r2, r6,nobody"],
    );
    let (mut all, mut some): (Value, Value) = (
        serde_json::from_str(&all).unwrap(),
        serde_json::from_str(&some).unwrap(),
    );
    let chosen = some["chosen"].take();
    assert_eq!(all["chosen"].take(), Value::Array(Vec::new()));
    assert_eq!(some, all);
    let ids: Vec<&Value> = chosen
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["id"])
        .collect();
    assert_eq!(ids, ["r2", "r6"]);
    assert!(
        errors.contains("--filter-reqids: not in the logs: nobody"),
        "{errors}"
    );
}

#[test]
fn wrong_use_says_why() {
    let logs = logs("wrong");
    for (options, code, expected) in [
        (
            &["--filter-reqids", "a,b"][..],
            1,
            "none of these requests is in the logs: a, b",
        ),
        (
            &["--csv", "--json"],
            2,
            "'--csv' cannot be used with '--json'",
        ),
        (
            &["--slowest", "few"],
            2,
            "invalid value 'few' for '--slowest <N>'",
        ),
    ] {
        let output = stats(&logs, options);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.contains(expected), "{errors}");
        assert!(output.stdout.is_empty());
    }
    let (_, errors) = said(&logs, &["--skip-req_num", "3"]);
    assert!(
        errors.contains("--skip-req_num 3 would leave none of the 5 complete requests: the statistics count them all"),
        "{errors}"
    );
}
