//! What a signal leaves behind of a conversion.

#![allow(clippy::unwrap_used)] // a test may

mod logs;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use logs::{BEGIN, request};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

fn send(signal: &str, child: &Child) {
    let command = format!("kill -{signal} {}", child.id());
    let status = Command::new("sh").args(["-c", &command]).status().unwrap();
    assert!(status.success());
}

/// The file that the output is written to until it is complete.
fn part(folder: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.find(|path| path.extension().is_some_and(|e| e == "part"))
}

/// Whether all of it stands still, or it has ended.
fn has_stopped(child: &Child) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id()));
    let states = tasks.into_iter().flatten().map(|task| {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        // After the name, which stands in brackets.
        stat.rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next())
    });
    let mut states = states.flatten();
    states.all(|state| matches!(state, 'T' | 'Z' | 'X'))
}

/// Starts a conversion by this shell command, stops it in the middle of its writing, sends
/// it the signal and lets it go on.
fn interrupted(test: &str, shell: &str, signal: &str) -> (ExitStatus, Vec<String>) {
    // As many as are needed to find the process at it.
    for requests in [2_000, 20_000, 200_000] {
        let lines: Vec<logs::Line> = (0..requests)
            .flat_map(|n| request(&format!("r{n}"), BEGIN + n * 1_000))
            .collect();
        let folder = logs::folder(test, &lines);
        let mut child = Command::new("sh")
            .args(["-c", shell])
            .env("OMNITRACE", env!("CARGO_BIN_EXE_omnitrace"))
            .current_dir(&folder)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The file is there for a moment before the reading begins, too.
        let mut is_stopped = false;
        while !is_stopped && child.try_wait().unwrap().is_none() {
            if part(&folder).is_none() {
                continue;
            }
            send("STOP", &child);
            while !has_stopped(&child) {}
            is_stopped = part(&folder).is_some();
            if is_stopped {
                send(signal, &child);
            }
            send("CONT", &child);
        }
        let status = child.wait().unwrap();
        if is_stopped {
            let names = fs::read_dir(&folder).unwrap();
            let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            return (status, names);
        }
    }
    panic!("too fast to be stopped");
}

#[test]
fn a_signal_ends_the_conversion_and_nothing_is_left_of_its_file() {
    for (name, number) in [("INT", SIGINT), ("TERM", SIGTERM)] {
        let test = format!("interrupt-{name}");
        // The tests themselves may have been told to ignore it.
        let shell = format!("exec env --default-signal={name} \"$OMNITRACE\" convert logs out");
        let (status, left) = interrupted(&test, &shell, name);
        assert_eq!((status.signal(), left), (Some(number), vec!["logs".into()]));
    }
}

#[test]
fn a_signal_that_the_shell_has_told_to_ignore_is_ignored() {
    let shell = "trap '' INT; exec \"$OMNITRACE\" convert logs out";
    let (status, left) = interrupted("interrupt-ignored", shell, "INT");
    assert!(status.success(), "{status}");
    assert_eq!(left, ["logs", "out"]);
}
