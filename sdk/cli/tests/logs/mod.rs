//! Logs as the old tools write them, to be bent by a test.

#![allow(dead_code)] // each test has use for a part

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use omnitrace::Vocabulary;
use serde_json::Value;

/// When the first request begins, in microseconds since 1970.
pub(crate) const BEGIN: u64 = 1_795_334_645_000_000;

/// One action line.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) action: String,
    /// Microseconds since 1970.
    pub(crate) time: u64,
    pub(crate) id: String,
    /// Role and node; none on a proxy's line.
    pub(crate) source: Option<(&'static str, &'static str)>,
    /// What nginx writes after the id.
    pub(crate) trailer: &'static str,
    pub(crate) file: String,
}

pub(crate) const TRAILER: &str =
    ", client: 10.0.9.8, server: , request: \"POST / HTTP/1.1\", host: \"10.0.0.1:7000\"";

/// The 37 lines of a whole request that begins at `begin`, 1 ms apart.
pub(crate) fn request(id: &str, begin: u64) -> Vec<Line> {
    let vocabulary = Vocabulary::omni_vllm();
    let line = |(index, action): (usize, &omnitrace::vocabulary::Action)| {
        let role = &*vocabulary.role(action.roles[0]).name;
        let scheduler = index == 5 || index == 19;
        Line {
            action: action.name.to_string(),
            time: begin + index as u64 * 1000,
            id: id.to_owned(),
            source: match role {
                "prefill" => Some(("prefill", "10.0.0.2")),
                "decode" => Some(("decode", "10.0.0.3")),
                _ => None,
            },
            trailer: if scheduler { "" } else { TRAILER },
            file: format!("{role}.log"),
        }
    };
    vocabulary.actions()[..37]
        .iter()
        .enumerate()
        .map(line)
        .collect()
}

impl Line {
    pub(crate) fn text(&self) -> String {
        let stamp = format!("{}.{:06}", self.time / 1_000_000, self.time % 1_000_000);
        let (action, id) = (&self.action, &self.id);
        match self.source {
            Some((role, node)) => format!(
                "2026-11-22 08:04:05,577 - <<<Action: {action}; Timestamp:{stamp}; RequestID:chatcmpl-{id}; Role:{role}_{node}\n"
            ),
            None => format!(
                "2026/11/22 08:04:05 [info] 12#12: *7 <<<Action: {action}; Timestamp:{stamp}; RequestID:{id}{}\n",
                self.trailer
            ),
        }
    }
}

/// A folder of a test's own with these lines in its `logs`.
pub(crate) fn folder(test: &str, lines: &[Line]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("logs")).unwrap();
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for line in lines {
        *files.entry(&line.file).or_default() += &line.text();
    }
    for (file, text) in files {
        fs::write(folder.join("logs").join(file), text).unwrap();
    }
    folder
}

pub(crate) fn omnitrace(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnitrace"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Converts `folder/logs`: the file, and what was said.
pub(crate) fn convert_to(folder: &Path, options: &[&str]) -> (Vec<u8>, String) {
    let (logs, out) = (folder.join("logs"), folder.join("out"));
    let mut arguments = vec!["convert", logs.to_str().unwrap(), out.to_str().unwrap()];
    arguments.extend(options);
    let output = omnitrace(&arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (fs::read(out).unwrap(), said)
}

/// Converts `folder/logs` for Jaeger: the traces, and what was said.
pub(crate) fn convert(folder: &Path, options: &[&str]) -> (Vec<Value>, String) {
    let (file, said) = convert_to(folder, options);
    let document: Value = serde_json::from_slice(&file).unwrap();
    (document["data"].as_array().unwrap().clone(), said)
}

pub(crate) fn spans(trace: &Value) -> &Vec<Value> {
    trace["spans"].as_array().unwrap()
}

/// The service of a span, which in the old layout is its name.
pub(crate) fn service<'a>(trace: &'a Value, span: &Value) -> &'a str {
    let process = span["processID"].as_str().unwrap();
    trace["processes"][process]["serviceName"].as_str().unwrap()
}

pub(crate) fn tag<'a>(span: &'a Value, key: &str) -> &'a Value {
    let tags = span["tags"].as_array().unwrap();
    tags.iter()
        .find(|t| t["key"] == key)
        .map_or(&Value::Null, |t| &t["value"])
}

pub(crate) fn parent<'a>(trace: &'a Value, span: &Value) -> Option<&'a Value> {
    let references = span["references"].as_array().unwrap();
    let above = references.iter().find(|r| r["refType"] == "CHILD_OF")?;
    spans(trace).iter().find(|s| s["spanID"] == above["spanID"])
}

/// Whether following the parents of each span comes to an end.
pub(crate) fn has_no_cycle(trace: &Value) -> bool {
    spans(trace).iter().all(|span| {
        let mut above = Some(span);
        for _ in 0..=spans(trace).len() {
            match above {
                Some(span) => above = parent(trace, span),
                None => return true,
            }
        }
        false
    })
}
