"""omnitrace_omni_proxy: Omni Proxy's log lines become the phases of its requests."""

from __future__ import annotations

from typing import Any

import pytest
from nginx_peers import Collector, StartUpstream, reply, stream
from nginx_server import MODULE, Nginx, get, tracing
from nginx_trees import MADE_ID, Tree, call, root, trees
from omni_proxy_replay import CONFIGURED, Capture, Step, Workers, build, replay
from test_nginx_tokens import ANSWER, TOKENS

# The phases that the lines make, with the moments between which they are. The root and "D running"
# end where the request ends for nginx.
PHASES = [
    ("Process request", "Time received", "Enter state tokenization"),
    ("Tokenizer", "Enter state tokenization", "Enter state APC matching"),
    ("APC matching", "Enter state APC matching", "Enter state P waiting"),
    ("P waiting", "Enter state P waiting", "Enter state P scheduled"),
    ("P scheduled", "Enter state P scheduled", "Enter state P running"),
    ("P running", "Enter state P running", "Finish P running"),
    ("D waiting", "Enter state D waiting", "Enter state D scheduled"),
    ("D scheduled", "Enter state D scheduled", "Enter state D running"),
    ("D running", "Enter state D running", "Received all tokens"),
]


@pytest.fixture(scope="session")
def replay_module(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not CONFIGURED:
        pytest.skip("OMNITRACE_NGINX_CONFIGURED does not name the headers of this nginx")
    return str(build(tmp_path_factory.mktemp("replay")))


def site(
    nginx: Nginx, collector: Collector, capture: Capture | None = None, directives: str = ""
) -> str:
    """An Omni Proxy that replays; its own request ids and contexts are those of the capture."""
    own = ""
    if capture and capture.made_context:
        own = f"replay_request_id {capture.request_id}; replay_context {capture.made_context};"
    return f"""{tracing(collector)} {directives}
        error_log {nginx.directory}/http.log error;
        client_body_buffer_size 64k;
        server {{
            listen 127.0.0.1:{nginx.port};
            location /v1/ {{ omnitrace_omni_proxy on; {own} replay; }}
            location /cycle {{ omnitrace off; replay; }}
            location = /pid {{ omnitrace off; return 200 $pid; }}
        }}"""


def phase(name: str, id: str) -> Tree:
    if name in ("P running", "D running"):
        attributes = {"gen_ai.request.id": id, "omnitrace.role": "proxy"}
        return (name, "CLIENT", False, attributes, [], [])
    return (name, "INTERNAL", False, {"gen_ai.request.id": id}, [], [])


def expected(capture: Capture, nodes: dict[str, Any]) -> list[Tree]:
    """The tree of design over what the capture has."""
    moments = capture.moments()
    id = "<made>" if MADE_ID.fullmatch(capture.request_id) else capture.request_id
    there = [p for p in PHASES if p[1] in moments and p[2] in moments]
    there.sort(key=lambda phase: moments[phase[1]])
    return [
        root(
            "/v1/chat/completions",
            "/v1/",
            method="POST",
            id=id,
            events=[event for event in TOKENS if event in moments],
            children=[phase(name, id) for name, *_ in there],
            more=nodes,
        )
    ]


def nodes(prefill: tuple[str, int] | None, decode: tuple[str, int] | None) -> dict[str, Any]:
    found = {"prefill": prefill, "decode": decode}
    return {
        key: value
        for kind, node in found.items()
        if node
        for key, value in {
            f"omnitrace.{kind}.address": node[0],
            f"omnitrace.{kind}.index": node[1],
        }.items()
    }


def assert_times(collector: Collector, capture: Capture) -> None:
    """Each phase is as long as the stamps say, and begins where the one before it ends."""
    moments = capture.moments()
    for name, start, end in PHASES[:-1]:
        for span in collector.named(name):
            stamped = (moments[end] - moments[start]) * 1000
            assert abs(span.end - span.start - stamped) < 200_000, name
    for before, after in (("P waiting", "P scheduled"), ("P scheduled", "P running")):
        [first], [second] = collector.named(before), collector.named(after)
        assert first.end == second.start


CAPTURES = {
    "sequential": nodes(("127.0.0.1:38011", 0), ("127.0.0.1:39012", 1)),
    "other_worker": nodes(("127.0.0.1:38002", 1), ("127.0.0.1:39002", 1)),
    "spaced_id": nodes(("127.0.0.1:38001", 0), ("127.0.0.1:39001", 0)),
    "parallel": nodes(("127.0.0.1:38002", 1), ("127.0.0.1:39002", 1)),
    "prefill_fails": nodes(("127.0.0.1:38021", 0), None),
    "decode_fails": nodes(("127.0.0.1:38021", 0), ("127.0.0.1:39021", 0)),
    "not_streamed": nodes(("127.0.0.1:38021", 0), ("127.0.0.1:39021", 0)),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", CAPTURES)
def test_the_lines_of_a_real_proxy_are_the_tree_of_its_request(
    name: str, order: str, nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    capture = Capture.read(name)
    modules = (MODULE, replay_module) if order == "before" else (replay_module, MODULE)
    nginx.start(site(nginx, collector, capture), main="worker_processes 2;", modules=modules)
    # Where the module comes first the proxy makes no ids: it finds one.
    headers = {"X-Request-Id": capture.request_id}
    replay(nginx, capture, {} if capture.made_context and order == "before" else headers)
    nginx.stop()
    assert trees(collector.spans, nginx.names) == expected(capture, CAPTURES[name])
    assert_times(collector, capture)
    assert "<<<Action" not in (nginx.directory / "http.log").read_text()


def test_a_proxy_with_a_tokenizer_has_its_two_phases_more(
    nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    capture = Capture.read("spaced_id")
    at = next(n for n, step in enumerate(capture.steps) if "Enter state P waiting" in step.message)
    waiting = capture.steps[at]
    matching = waiting.message.replace("P waiting", "APC matching")
    step = Step(waiting.worker, True, waiting.due, matching).shifted(-9)
    capture = Capture((*capture.steps[:at], step, *capture.steps[at:]), capture.request_id, None)
    nginx.start(site(nginx, collector, capture), modules=(MODULE, replay_module))
    replay(nginx, capture, {"X-Request-Id": capture.request_id})
    nginx.stop()
    [tree] = trees(collector.spans, nginx.names)
    assert [child[0] for child in tree[5]] == [name for name, *_ in PHASES]
    assert_times(collector, capture)


@pytest.mark.parametrize("level", ["debug", "info", "notice", "emerg"])
def test_the_lines_are_read_whatever_the_log_of_the_location_writes(
    level: str, nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    capture = Capture.read("spaced_id")
    config = site(nginx, collector, capture).replace("http.log error", f"http.log {level}")
    nginx.start(config, modules=(MODULE, replay_module))
    replay(nginx, capture, {"X-Request-Id": capture.request_id})
    nginx.stop()
    assert trees(collector.spans, nginx.names) == expected(capture, CAPTURES["spaced_id"])
    written = "<<<Action" in (nginx.directory / "http.log").read_text()
    assert written == (level in ("debug", "info"))


def test_the_scanners_tokens_count_before_the_proxys_reads(
    nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    capture = Capture.read("spaced_id")
    config = site(nginx, collector, capture, "omnitrace_tokens on;")
    nginx.start(config, modules=(MODULE, replay_module))
    replay(nginx, capture, {"X-Request-Id": capture.request_id})
    nginx.stop()
    [span] = collector.named("Trace for Omni Proxy")
    # The replayed answer has no token in it, whatever was read from the decode node.
    assert (span.events, span.attributes["omnitrace.tokens.count"]) == ([], 0)


def test_tokens_are_found_where_the_proxy_hides_the_type_of_its_answer(
    nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    capture = Capture.read("spaced_id")
    nginx.start(site(nginx, collector), modules=(MODULE, replay_module))
    body = ANSWER.decode().replace("\r", "").replace("\n", "|")
    replay(nginx, capture, {"X-Request-Id": capture.request_id}, body)
    nginx.stop()
    [span] = collector.named("Trace for Omni Proxy")
    assert (span.events, span.attributes["omnitrace.tokens.count"]) == (TOKENS, 4)


def test_where_nobody_listens_the_lines_make_nothing(
    nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    capture = Capture.read("spaced_id")
    config = site(nginx, collector, capture).replace("omni_proxy on", "omni_proxy off")
    nginx.start(config, modules=(MODULE, replay_module))
    replay(nginx, capture, {"X-Request-Id": capture.request_id})
    nginx.stop()
    plain = root("/v1/chat/completions", "/v1/", method="POST", id=capture.request_id)
    assert trees(collector.spans, nginx.names) == [plain]


def test_two_requests_with_one_id_have_each_their_own_lines(
    nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    """Of those that say whose connection they are."""
    nginx.start(site(nginx, collector), modules=(MODULE, replay_module))
    capture = Capture.read("spaced_id")
    for _ in range(2):
        replay(nginx, capture, {"X-Request-Id": capture.request_id})
    nginx.stop()
    assert trees(collector.spans, nginx.names) == expected(capture, CAPTURES["spaced_id"]) * 2


def test_what_a_client_sends_is_no_line_of_the_proxys(
    nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    nginx.start(site(nginx, collector), modules=(MODULE, replay_module))
    line = "<<<Action: Enter state P waiting; Timestamp:1.000000; RequestID:x"
    path = "/v1/" + line.replace(" ", "%20")
    get(nginx, path, {"X-Request-Id": "x", "Content-Length": line}, method="POST")
    nginx.stop()
    [span] = collector.spans
    assert (span.name, span.attributes["gen_ai.request.id"]) == ("Trace for Omni Proxy", "x")


def live_steps() -> str:
    """What Omni Proxy does with a request, at the pace of its own."""

    def said(action: str) -> str:
        return f"request\t0\t\t\t<<<Action: {action}; Timestamp:@; RequestID:live\n"

    def scheduled(action: str) -> str:
        return f"cycle\t0\t\t\t<<<Action: {action}; Timestamp:@; RequestID:live\n"

    before = [
        said("Time received"),
        said("Enter state tokenization"),
        said("Enter state P waiting"),
        scheduled("Enter state P scheduled"),
        said("Enter state P running"),
        "prefill\t0\t\t\t\n",
    ]
    after = [
        said("Finish P running"),
        said("Enter state D waiting"),
        scheduled("Enter state D scheduled"),
        said("Enter state D running"),
        "decode\t0\t\t\t\n",
    ]
    return "".join(before + after)


@pytest.mark.parametrize("context", ["propagate", "inject"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_what_both_have_seen_is_one_span_and_the_nodes_are_called_from_it(
    order: str,
    context: str,
    nginx: Nginx,
    collector: Collector,
    upstream: StartUpstream,
    replay_module: str,
) -> None:
    p, d = upstream(reply(body=b"P")), upstream(stream([ANSWER[:400], ANSWER[400:]]))
    modules = (MODULE, replay_module) if order == "before" else (replay_module, MODULE)
    made = "00-801d8313cc459dfe1af9ceeafa32e27a-992db543879267b6-01"
    nginx.start(
        f"""{tracing(collector)}
        upstream prefill_endpoints {{ server {p.address}; }}
        server {{
            listen 127.0.0.1:{nginx.port};
            omnitrace_omni_proxy on; omnitrace_context {context};
            location /v1/ {{ replay_request_id live; replay_context {made}; replay; }}
            location ~ ^/prefill_sub(?<orig>/.*)$ {{
                internal; proxy_pass http://prefill_endpoints$orig;
            }}
            location @decode {{
                set $node {d.address}; proxy_buffering off; proxy_pass http://$node;
            }}
            location = /pid {{ omnitrace off; return 200 $pid; }}
        }}""",
        modules=modules,
    )
    workers = Workers(nginx, 1)
    headers = {} if order == "before" else {"X-Request-Id": "live"}
    assert workers.post(0, "/v1/chat/completions", live_steps(), headers) == 200
    workers.close()
    nginx.stop()

    names = {**nginx.names, p.port: "<prefill>", d.port: "<decode>"}
    tokens = {
        "omnitrace.tokens.count": 4,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
    }
    calls = {
        "P running": call(name="P running", to="<prefill>", method="POST", id="live"),
        "D running": call(name="D running", to="<decode>", method="POST", id="live"),
    }
    there = [name for name, *_ in PHASES if name not in ("Tokenizer", "APC matching")]
    children = [calls.get(name) or phase(name, "live") for name in there]
    assert trees(collector.spans, names) == [
        root(
            "/v1/chat/completions",
            "/v1/",
            method="POST",
            id="live",
            events=TOKENS,
            children=children,
            more=tokens,
        )
    ]
    [prefill], [decode] = collector.named("P running"), collector.named("D running")
    assert p.header("traceparent") == [f"00-{prefill.trace_id}-{prefill.span_id}-01"]
    assert d.header("traceparent") == [f"00-{decode.trace_id}-{decode.span_id}-01"]
    # The proxy's own copy names no other trace.
    assert d.header("ttft_traceparent") == d.header("traceparent")


def test_lines_cannot_be_joined_without_request_ids(nginx: Nginx) -> None:
    nginx.configure("omnitrace_request_id off; server { omnitrace_omni_proxy on; }")
    assert nginx.test().startswith(
        '[emerg] "omnitrace_omni_proxy on" joins lines and requests by their ids, '
        '"omnitrace_request_id" cannot be "off" there in <dir>'
    )


@pytest.mark.parametrize(
    ("directives", "message"),
    [
        (
            "omnitrace_omni_proxy yes;",
            'invalid value "yes" in "omnitrace_omni_proxy" directive, it must be "on" or "off"',
        ),
        (
            "omnitrace_omni_proxy on; omnitrace_omni_proxy on;",
            '"omnitrace_omni_proxy" directive is duplicate',
        ),
    ],
)
def test_a_wrong_directive_is_named(directives: str, message: str, nginx: Nginx) -> None:
    nginx.configure(directives)
    assert nginx.test().startswith(f"[emerg] {message} in <dir>")


def test_a_tree_is_the_same_with_one_process(
    nginx: Nginx, collector: Collector, replay_module: str
) -> None:
    capture = Capture.read("spaced_id")
    nginx.start(site(nginx, collector), main="master_process off;", modules=(MODULE, replay_module))
    replay(nginx, capture, {"X-Request-Id": capture.request_id})
    nginx.stop()
    assert trees(collector.spans, nginx.names) == expected(capture, CAPTURES["spaced_id"])
