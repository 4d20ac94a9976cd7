use proptest::prelude::*;
use proptest::sample::select;

use super::{ProxyLine, ProxySays, parse_proxy_line};
use model::{Found, found};

mod model;

const ID: &str = "64ec5181-d89b-45f0-a167-e51c7713e684";

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
        prop_assert_eq!(found(&line), model::naive::found(&line));
    }
}
