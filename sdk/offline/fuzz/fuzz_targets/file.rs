//! No file makes `convert` panic, be it a log, compressed, Jaeger JSON or OTLP; and what it
//! writes of the file, it reads again.
#![no_main]

use std::cell::OnceCell;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use omnitrace::Vocabulary;
use omnitrace_offline::clock::Mode;
use omnitrace_offline::convert::{Format, Options, Summary, convert};
use omnitrace_offline::ingest::{ReadError, Settings, ingest};
use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Reads `from` and writes its traces to `to`; none if there is nothing in it.
fn converted(folder: &Path, from: &Path, to: &Path, format: Format) -> Option<Summary> {
    let vocabulary = Vocabulary::of_logs();
    let settings = Settings {
        temporary: folder,
        memory: 1 << 20,
        exported: true,
        hosts: false,
        clock: Mode::Auto,
    };
    let store = match ingest(&vocabulary, from, settings, &|_| ()) {
        Ok(store) => store,
        Err(ReadError::Empty { .. }) => return None,
        Err(other) => panic!("{other}"),
    };
    let options = Options {
        format,
        ..Options::default()
    };
    Some(convert(&vocabulary, &store, &options, to, &|_| ()).expect("there is room"))
}

fuzz_target!(|bytes: &[u8]| {
    FOLDER.with(|folder| {
        let folder = folder
            .get_or_init(|| TempDir::new().expect("a folder"))
            .path();
        let (input, jaeger, otlp) = (
            folder.join("in"),
            folder.join("jaeger"),
            folder.join("otlp"),
        );
        std::fs::write(&input, bytes).expect("there is room");
        let Some(first) = converted(folder, &input, &jaeger, Format::Jaeger) else {
            return;
        };
        let Some(second) = converted(folder, &input, &otlp, Format::OtlpJson) else {
            panic!("read once only");
        };
        assert_eq!((first.traces, first.spans), (second.traces, second.spans));
        if first.spans > 0 {
            let again = converted(folder, &otlp, &jaeger, Format::Jaeger).expect("OTLP is read");
            assert!(again.spans > 0);
        }
    });
});
