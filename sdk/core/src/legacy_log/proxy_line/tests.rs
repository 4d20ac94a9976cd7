use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const ID: &str = "64ec5181-d89b-45f0-a167-e51c7713e684";

/// What a line is found to say, with all that its methods find.
#[derive(Debug, PartialEq)]
enum Found {
    Nothing,
    Action {
        connection: Option<u64>,
        name: String,
        stamp: u64,
        ids: Vec<Vec<u8>>,
        upstream: Option<String>,
    },
    MadeContext(Option<u64>, Vec<u8>),
    PrefillNode(Option<u64>, u32),
    DecodeNode(Option<u64>, u32),
}

fn found(line: &[u8]) -> Found {
    let Some(ProxyLine { connection, says }) = parse_proxy_line(line) else {
        return Found::Nothing;
    };
    match says {
        ProxySays::Action(action) => Found::Action {
            connection,
            name: action.name.to_owned(),
            stamp: action.stamp,
            ids: action.ids().map(<[u8]>::to_vec).collect(),
            upstream: action.upstream().map(str::to_owned),
        },
        ProxySays::MadeContext(context) => Found::MadeContext(connection, context.to_vec()),
        ProxySays::PrefillNode(index) => Found::PrefillNode(connection, index),
        ProxySays::DecodeNode(index) => Found::DecodeNode(connection, index),
    }
}

fn action(name: &str, stamp: u64, connection: u64, ids: &[&str], upstream: Option<&str>) -> Found {
    Found::Action {
        connection: (connection > 0).then_some(connection),
        name: name.to_owned(),
        stamp,
        ids: ids.iter().map(|id| id.as_bytes().to_vec()).collect(),
        upstream: upstream.map(str::to_owned),
    }
}

#[test]
fn the_lines_of_a_real_proxy_say_what_happened_to_whom_and_where() {
    let trailer =
        r#", client: 127.0.0.1, server: localhost, request: "POST /v1/chat/completions HTTP/1.1""#;
    let line = |message: &str| {
        found(format!("2026/11/22 08:05:36 [info] 22205#0: {message}\n").as_bytes())
    };
    assert_eq!(
        line(&format!(
            "*1 <<<Action: Start to schedule; Timestamp:1795334736.859215; RequestID:{ID}{trailer}, host: \"127.0.0.1:37150\""
        )),
        action(
            "Start to schedule",
            1_795_334_736_859_215_000,
            1,
            &[ID],
            None
        )
    );
    assert_eq!(
        line(&format!(
            "<<<Action: Enter state P scheduled; Timestamp:1038.641435; RequestID:{ID}"
        )),
        action("Enter state P scheduled", 1_038_641_435_000, 0, &[ID], None)
    );
    let glued = format!(
        "*4 <<<Action: Finish P running; Timestamp:1109.185195; RequestID:{ID} while sending to client{trailer}, subrequest: \"/prefill_sub/v1/chat/completions\", upstream: \"http://127.0.0.1:38001/v1/chat/completions\", host: \"127.0.0.1:37150\""
    );
    assert_eq!(
        line(&glued),
        action(
            "Finish P running",
            1_109_185_195_000,
            4,
            &[ID],
            Some("127.0.0.1:38001")
        )
    );
    assert_eq!(
        line(&format!(
            "*7 <<<Action: Enter state D running; Timestamp:1109.295829; RequestID:a while b while connecting to upstream{trailer}, upstream: \"[::1]:39001\""
        )),
        action(
            "Enter state D running",
            1_109_295_829_000,
            7,
            &["a while b"],
            Some("[::1]:39001")
        )
    );
    let made = "00-801d8313cc459dfe1af9ceeafa32e27a-992db543879267b6-01";
    assert_eq!(
        line(&format!(
            "*1 ****Action: Inject Traceparent****; Timestamp:1795334736.859242; trace_headers:{made}{trailer}"
        )),
        Found::MadeContext(Some(1), made.as_bytes().to_vec())
    );
    assert_eq!(
        line(&format!("*4 [Prefill-2] Submit to:13{trailer}")),
        Found::PrefillNode(Some(4), 13)
    );
    assert_eq!(
        line(&format!(
            "*4 [Decode-2]: Done from 5. while sending to client{trailer}"
        )),
        Found::DecodeNode(Some(4), 5)
    );
}

#[test]
fn an_id_may_hold_the_words_that_nginx_glues_to_it() {
    let ids = |id: &str, trailer: &str| {
        let line = format!(
            "2026/11/22 08:05:36 [info] 1#1: *1 <<<Action: Time received; Timestamp:1.5; RequestID:{id}{trailer}"
        );
        match found(line.as_bytes()) {
            Found::Action { ids, .. } => ids,
            other => panic!("{other:?}"),
        }
    };
    let client = ", client: ::1";
    assert_eq!(ids("wait while x", client), [&b"wait while x"[..], b"wait"]);
    assert_eq!(ids("wait while x", ""), [b"wait while x"]);
    assert_eq!(ids("", client), Vec::<Vec<u8>>::new());
    assert_eq!(ids(&format!("{ID}7"), client), Vec::<Vec<u8>>::new());
}

#[test]
fn what_a_client_can_write_is_no_action() {
    let action = format!("<<<Action: Received all tokens; Timestamp:1.5; RequestID:{ID}");
    for line in [
        format!(
            "2026/11/22 08:05:36 [info] 1#1: *1 client sent invalid method, request: \"{action}\""
        ),
        format!("2026/11/22 08:05:36 [error] 1#1: *1 open() \"/{action}\" failed"),
        format!("2026-11-22 08:04:05,577 - {action}"),
        format!("2026/11/22 08:05:36 [info] 1#1: *x {action}"),
        action,
    ] {
        assert_eq!(found(line.as_bytes()), Found::Nothing, "{line}");
    }
}

/// The same by the plainest means: text is cut at what stands between its parts.
mod naive {
    use super::Found;

    pub(super) fn found(line: &[u8]) -> Found {
        try_found(line).unwrap_or(Found::Nothing)
    }

    fn try_found(line: &[u8]) -> Option<Found> {
        // One character for each byte.
        let text: String = line.iter().map(|b| char::from(*b)).collect();
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let (_, text) = text.split_at_checked(text.char_indices().nth(19)?.0)?;
        let (level, text) = text.strip_prefix(" [")?.split_once("] ")?;
        if level.chars().count() > 7 || level.contains(']') {
            return None;
        }
        let (pid, text) = text.split_once('#')?;
        let (tid, text) = text.split_once(": ")?;
        number(pid)?;
        number(tid)?;
        let numbered = text.strip_prefix('*').map(|text| {
            let end = text
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len());
            (number(&text[..end]), &text[end..])
        });
        let (connection, message) = match numbered {
            Some((Some(connection), rest)) => (Some(connection), rest.strip_prefix(' ')?),
            _ => (None, text),
        };
        if let Some(rest) = message.strip_prefix("<<<Action: ") {
            return action(connection, rest);
        }
        if let Some(rest) = message.strip_prefix("****Action: Inject Traceparent****; Timestamp:") {
            let (_, value) = rest.split_once("; trace_headers:")?;
            let value = bytes(value);
            return Some(Found::MadeContext(connection, value.get(..55)?.to_vec()));
        }
        if let Some(rest) = message.strip_prefix("[Prefill-") {
            let (slot, rest) = rest.split_once("] Submit to:")?;
            number(slot)?;
            return Some(Found::PrefillNode(connection, leading(rest)?));
        }
        let (slot, rest) = message
            .strip_prefix("[Decode-")?
            .split_once("]: Done from ")?;
        number(slot)?;
        Some(Found::DecodeNode(connection, leading(rest)?))
    }

    fn action(connection: Option<u64>, text: &str) -> Option<Found> {
        let (name, rest) = text.split_once("; Timestamp:")?;
        let (stamp, rest) = rest.split_once("; RequestID:")?;
        let (id, trailer) = match rest.find(", client: ") {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (whole, fraction) = stamp.split_once('.').unwrap_or((stamp, ""));
        if !(1..=10).contains(&whole.len())
            || !(whole.to_owned() + fraction)
                .chars()
                .all(|c| c.is_ascii_digit())
        {
            return None;
        }
        let nanos: String = format!("{fraction:0<9}").chars().take(9).collect();
        let stamp = number(whole)? * 1_000_000_000 + number(&nanos)?;
        let mut ids = vec![id];
        if let (Some((cut, _)), false) = (id.rsplit_once(" while "), trailer.is_empty()) {
            ids.push(cut);
        }
        let ids = ids
            .into_iter()
            .map(bytes)
            .filter(|id| !id.is_empty() && id.len() <= 36);
        let upstream = trailer.split_once(", upstream: \"").and_then(|(_, rest)| {
            let (text, _) = rest.split_once('"')?;
            let address = text.split_once("://").map_or(text, |(_, address)| address);
            let address = address.split('/').next().unwrap_or_default();
            String::from_utf8(bytes(address))
                .ok()
                .filter(|a| !a.is_empty())
        });
        Some(Found::Action {
            connection,
            name: String::from_utf8(bytes(name)).ok()?,
            stamp,
            ids: ids.collect(),
            upstream,
        })
    }

    fn bytes(text: &str) -> Vec<u8> {
        text.chars().map(|c| c as u8).collect()
    }

    fn number(digits: &str) -> Option<u64> {
        let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
        digits.parse().ok().filter(|_| plain)
    }

    fn leading(text: &str) -> Option<u32> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        number(&text[..end])?.try_into().ok()
    }
}

/// Pieces that lines are made of, whole, broken and in any order.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = select(vec![
        "2026/11/22 08:05:36",
        " [info] ",
        " [",
        "] ",
        "22205#0",
        "1#",
        ": ",
        "*17 ",
        "*",
        " ",
        "<<<Action: ",
        "<<<",
        "Enter state P waiting",
        "; Timestamp:",
        "1038.640780",
        "1e9",
        "9.",
        "99999999999",
        "; RequestID:",
        ID,
        "id with space",
        " while ",
        "reading upstream",
        ", client: ",
        "127.0.0.1",
        ", upstream: \"",
        "http://10.0.0.2:80/v1",
        "[::1]:80",
        "\"",
        "****Action: Inject Traceparent****; Timestamp:",
        "; trace_headers:",
        "00-801d8313cc459dfe1af9ceeafa32e27a-992db543879267b6-01",
        "[Prefill-",
        "[Decode-",
        "] Submit to:",
        "]: Done from ",
        "4",
        "4294967296",
        "\n",
        "\0",
        "ü",
    ]);
    prop_oneof![
        9 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ]
}

/// A line that begins as nginx's do, with anything as its message.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let pieces = || proptest::collection::vec(piece(), 0..14).prop_map(|pieces| pieces.concat());
    let begun = (proptest::option::of(any::<u32>()), pieces()).prop_map(|(connection, message)| {
        let connection = connection.map_or(String::new(), |number| format!("*{number} "));
        let mut line = format!("2026/11/22 08:05:36 [info] 1#1: {connection}").into_bytes();
        line.extend(message);
        line
    });
    let said = (any::<u32>(), "[A-Z][a-zP ]{0,20}", 0u64..1 << 40, "[ -~ü]{0,40}", pieces()).prop_map(
        |(connection, name, micros, id, trailer)| {
            let stamp = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
            let mut line = format!(
                "2026/11/22 08:05:36 [info] 1#1: *{connection} <<<Action: {name}; Timestamp:{stamp}; RequestID:{id}, client: ::1"
            )
            .into_bytes();
            line.extend(trailer);
            line
        },
    );
    prop_oneof![pieces(), begun, said]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn every_line_means_what_the_plainest_reading_of_it_means(line in line()) {
        prop_assert_eq!(found(&line), naive::found(&line));
    }
}
