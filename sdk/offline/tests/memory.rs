//! What memory does not hold goes through a temporary file: the result is the same.

#![allow(clippy::unwrap_used)] // a test may

use std::fmt::Write as _;
use std::path::Path;

use omnitrace::Vocabulary;
use omnitrace_offline::clock::Mode;
use omnitrace_offline::convert::{Options, convert};
use omnitrace_offline::ingest::{MEMORY, ReadError, Settings, ingest};

fn write_logs(folder: &Path) {
    let vocabulary = Vocabulary::omni_vllm();
    for file in 0..3 {
        let mut text = String::new();
        for request in 0..700 {
            let actions = vocabulary.actions()[..37].iter().enumerate();
            for (index, action) in actions.filter(|(index, _)| index % 3 == file) {
                let micros = request * 1_000 + index;
                let role = &vocabulary.role(action.roles[0]).name;
                writeln!(
                    text,
                    "<<<Action: {}; Timestamp:1795334645.{micros:06}; RequestID:r{request}; Role:{role}_10.0.0.{file}",
                    action.name
                )
                .unwrap();
            }
        }
        std::fs::write(folder.join(format!("{file}.log")), text).unwrap();
    }
}

#[test]
fn without_any_memory_the_file_is_the_same_and_nothing_else_is_left() {
    let (logs, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_logs(logs.path());
    let vocabulary = Vocabulary::omni_vllm();
    let converted = |memory: usize| {
        let settings = Settings {
            temporary: out.path(),
            memory,
            exported: false,
            hosts: false,
            clock: Mode::Auto,
        };
        let store = ingest(&vocabulary, logs.path(), settings, &|_| ()).unwrap();
        assert_eq!((store.requests(), store.report().events), (700, 700 * 37));
        let path = out.path().join("out.json");
        convert(&vocabulary, &store, &Options::default(), &path, &|_| ()).unwrap();
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
        std::fs::read(path).unwrap()
    };
    let (some, none) = (converted(MEMORY), converted(0));
    assert!(some == none, "{} and {} bytes", some.len(), none.len());
}

#[test]
fn a_folder_without_room_for_the_events_is_one_error() {
    let logs = tempfile::tempdir().unwrap();
    write_logs(logs.path());
    let settings = Settings {
        temporary: Path::new("/no/such/folder"),
        memory: 0,
        exported: false,
        hosts: false,
        clock: Mode::Auto,
    };
    let error = ingest(&Vocabulary::omni_vllm(), logs.path(), settings, &|_| ()).unwrap_err();
    assert!(matches!(error, ReadError::Spill(_)), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("cannot keep the events in a temporary file in /no/such/folder: "),
        "{error}"
    );
}
