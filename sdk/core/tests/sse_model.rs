//! The scanner of streamed answers finds what a plain reading of the whole stream finds.

use omnitrace::sse::{Scanner, Usage};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// What a scanner says of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    tokens: u64,
    done: bool,
    error: bool,
    usage: Usage,
}

fn scanned<'b>(mut scanner: Scanner, pieces: impl Iterator<Item = &'b [u8]>) -> Found {
    let counted: u64 = pieces.map(|piece| scanner.feed(piece)).sum();
    assert_eq!(counted, scanner.tokens());
    Found {
        tokens: scanner.tokens(),
        done: scanner.is_done(),
        error: scanner.has_error(),
        usage: scanner.usage(),
    }
}

/// The same by the standard's own steps, over all lines at once, with a JSON parser.
fn read(stream: &str) -> Found {
    let mut found = Found::default();
    let text = stream.strip_prefix('\u{feff}').unwrap_or(stream);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut data: Vec<&str> = Vec::new();
    let mut name = "";
    // What follows the last line end is no line yet.
    let lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    for line in lines.split('\n') {
        if line.is_empty() {
            let mut content = false;
            if let Ok(value) = serde_json::from_str(&data.join("\n")) {
                walk(&value, &mut found, &mut content);
            }
            // What a response repeats at its end is no token.
            let is_new = !name.starts_with("response.") || name.ends_with(".delta");
            found.tokens += u64::from(content && is_new);
            found.error |= name == "error";
            data.clear();
            name = "";
        } else if let Some(rest) = line.strip_prefix("event:") {
            name = rest.strip_prefix(' ').unwrap_or(rest);
        } else if let Some(rest) = line.strip_prefix("data:") {
            let rest = rest.strip_prefix(' ').unwrap_or(rest);
            found.done |= rest == "[DONE]";
            data.push(rest);
        }
    }
    // The scanner reads counts as they come, the standard drops an event without its end.
    found
}

fn walk(value: &Value, found: &mut Found, content: &mut bool) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                match key.as_str() {
                    "content" | "text" | "reasoning_content" | "reasoning" | "arguments"
                    | "refusal" | "delta" | "thinking" | "partial_json" => {
                        *content |= value.as_str().is_some_and(|t| !t.is_empty())
                    }
                    "prompt_tokens" | "input_tokens" if value.is_u64() => {
                        found.usage.input = value.as_u64();
                    }
                    "completion_tokens" | "output_tokens" if value.is_u64() => {
                        found.usage.output = value.as_u64();
                    }
                    "error" => found.error |= value.is_object() || value.is_string(),
                    _ => {}
                }
                walk(value, found, content);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, found, content)),
        _ => {}
    }
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec![
            "content", "text", "reasoning_content", "reasoning", "arguments", "refusal",
            "prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "error",
            "thinking", "partial_json", "delta", "id", "choices", "xcontent", "content ", "con\"tent", "x\"content", "x\\",
        ]).prop_map(str::to_owned),
        1 => "[a-z\"\\\\: ]{0,12}",
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just(String::new()),
        3 => "[a-zé:\"\\\\ \n{}]{1,12}",
        1 => prop::sample::select(vec![
            "\"content\":\"x\"", "say \"content\": \"x\"", "\\\"content\\\":\"x\"", ":", "\"",
            "[DONE]", "\n\ndata: x\n\n", "\"error\":{\"", "\"prompt_tokens\":9,",
        ]).prop_map(str::to_owned),
    ]
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (0u32..9).prop_map(Value::from),
        Just(json!(1.5)),
        Just(json!(2e30)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// The lines of one event, its empty line included.
fn event() -> impl Strategy<Value = Vec<String>> {
    let lines = |json: String, blank: bool| -> Vec<String> {
        let name = if blank { "data: " } else { "data:" };
        json.lines().map(|line| format!("{name}{line}")).collect()
    };
    let data = prop_oneof![
        4 => (tree(), any::<bool>()).prop_map(move |(v, blank)| lines(v.to_string(), blank)),
        2 => (tree(), any::<bool>())
            .prop_map(move |(v, blank)| lines(format!("{v:#}"), blank)),
        // One that begins as others do.
        4 => text().prop_map(|text| {
            let chunk = json!({"a": "x:y", "choices": [{"delta": {"content": text}}]});
            vec![format!("data: {chunk}")]
        }),
        1 => Just(vec!["data: [DONE]".to_owned()]),
        1 => prop::sample::select(vec![
            ": ping", "event: content", "id: \"content\":\"x\"", "data", "dat", "datas: {}",
            " data: {\"content\":\"x\"}", "\u{feff}data: {\"content\":\"x\"}",
        ]).prop_map(|line| vec![line.to_owned()]),
    ];
    let name = prop::option::of(prop::sample::select(vec![
        "event: response.output_text.delta",
        "event:response.output_text.done",
        "event: error",
        "event: response.completed",
        "event:  response.x",
        "event: content_block_delta",
        "event: ",
    ]));
    (data, any::<bool>(), name).prop_map(|(mut lines, comment, name)| {
        if comment {
            lines.insert(lines.len() / 2, ": \"text\":\"x\"".to_owned());
        }
        // Before the data or after it.
        let at = if comment { lines.len() } else { 0 };
        lines.splice(at..at, name.map(str::to_owned));
        lines.push(String::new());
        lines
    })
}

fn stream() -> impl Strategy<Value = String> {
    let end = prop::sample::select(vec!["\n", "\r\n", "\r"]);
    (any::<bool>(), vec((event(), end), 0..12)).prop_map(|(mark, events)| {
        let mut stream = String::from(if mark { "\u{feff}" } else { "" });
        for (lines, end) in events {
            for line in lines {
                stream.push_str(&line);
                stream.push_str(end);
            }
        }
        stream
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_stream_is_read_as_the_standard_says(
        stream in stream(),
        size in prop_oneof![Just(1usize), 2..9usize, 10..400usize],
    ) {
        prop_assert_eq!(scanned(Scanner::new(), stream.as_bytes().chunks(size)), read(&stream));
    }

    #[test]
    fn any_bytes_are_the_same_however_they_are_split(
        bytes in vec(prop::sample::select(b"data: {\"content\":\"x1,.e}[DONE]\\\r\n\xef\xbb\xbf ".to_vec()), 0..300),
        size in 1..40usize,
    ) {
        let whole = std::iter::once(bytes.as_slice());
        prop_assert_eq!(scanned(Scanner::new(), bytes.chunks(size)), scanned(Scanner::new(), whole));
    }

    #[test]
    fn any_lines_are_the_same_however_they_are_split(
        words in vec(prop::sample::select(vec![
            "event", ":", " ", "response.", "error", "x.delta", "data", "{\"delta\":\"x\"}", "\n", "\r",
            "a name that is so long that nobody would ever keep all of it, .delta at its end",
        ]), 0..60),
        size in 1..40usize,
    ) {
        let bytes = words.concat().into_bytes();
        let whole = std::iter::once(bytes.as_slice());
        prop_assert_eq!(scanned(Scanner::new(), bytes.chunks(size)), scanned(Scanner::new(), whole));
    }

    #[test]
    fn a_document_has_its_usage_and_no_tokens(value in tree(), size in 1..64usize, pretty: bool) {
        let body = if pretty { format!("{value:#}\n") } else { format!("{value}\n") };
        let mut expected = Found::default();
        walk(&value, &mut expected, &mut false);
        prop_assert_eq!(scanned(Scanner::document(), body.as_bytes().chunks(size)), expected);
    }
}
