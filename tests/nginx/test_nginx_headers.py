"""What the upstream is told: traceparent, tracestate, X-Request-Id; and the variables."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nginx_peers import Collector, StartUpstream, Upstream
from nginx_server import ARGUMENTS, Nginx, get, raw, tracing
from nginx_trees import MADE_ID, call, root, trees

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"

Proxy = Callable[..., Upstream]


@pytest.fixture
def proxy(nginx: Nginx, collector: Collector, upstream: StartUpstream) -> Proxy:
    """Starts an nginx that passes everything on, with more directives; returns the upstream."""

    def start(directives: str = "") -> Upstream:
        server = upstream()
        nginx.start(
            f"""{tracing(collector)}
            server {{
                listen 127.0.0.1:{nginx.port};
                location / {{ proxy_pass http://{server.address}; {directives} }}
            }}"""
        )
        return server

    return start


def test_a_callers_trace_goes_on(proxy: Proxy, nginx: Nginx, collector: Collector) -> None:
    server = proxy()
    get(nginx, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1,other=2"})
    nginx.stop()
    [server_span] = collector.named("Trace for Omni Proxy")
    [client] = collector.named("Upstream request")
    assert (server_span.trace_id, server_span.parent_id) == (TRACE, PARENT)
    assert (client.trace_id, client.parent_id) == (TRACE, server_span.span_id)
    assert server.header("traceparent") == [f"00-{TRACE}-{client.span_id}-01"]
    assert server.header("tracestate") == ["vendor=1,other=2"]


@pytest.mark.parametrize(
    "sent",
    [
        [f"00-{TRACE}-{PARENT}"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"ff-{TRACE}-{PARENT}-01"],
        ["\x80\xff"],
        [""],
        [f"00-{TRACE}-{PARENT}-01"] * 2,
        [f"00-{TRACE}-{PARENT}-01", "nonsense", "more nonsense"],
    ],
    ids=lambda sent: ", ".join(sent)[:30],
)
def test_what_is_no_context_starts_a_trace_of_its_own(
    sent: list[str], proxy: Proxy, nginx: Nginx, collector: Collector
) -> None:
    server = proxy()
    lines = "".join(f"TraceParent: {value}\r\n" for value in sent)
    raw(
        nginx,
        f"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\n{lines}Tracestate: v=1\r\nB: 2\r\n"
        "Connection: close\r\n\r\n".encode("latin-1"),
    )
    nginx.stop()
    [server_span] = collector.named("Trace for Omni Proxy")
    [client] = collector.named("Upstream request")
    assert (server_span.parent_id, client.parent_id) == ("", server_span.span_id)
    assert server_span.trace_id == client.trace_id != TRACE
    assert server.header("traceparent") == [f"00-{client.trace_id}-{client.span_id}-01"]
    # The state belongs to the trace that is not continued; everything else arrives.
    assert [server.header(name) for name in ("tracestate", "a", "b")] == [[], ["1"], ["2"]]


def test_a_caller_who_does_not_record_is_passed_on_as_he_is(
    proxy: Proxy, nginx: Nginx, collector: Collector
) -> None:
    server = proxy()
    sent = f"00-{TRACE}-{PARENT}-00"
    get(nginx, headers={"traceparent": sent, "tracestate": "v=1"})
    nginx.stop()
    assert collector.spans == []
    assert server.header("traceparent") == [sent]
    assert server.header("tracestate") == ["v=1"]


@pytest.mark.parametrize(
    ("context", "continued", "told"),
    [
        ("propagate", True, "ours"),
        ("inject", False, "ours"),
        ("extract", True, "theirs"),
        ("ignore", False, "theirs"),
    ],
)
def test_the_context_directive(
    context: str, continued: bool, told: str, proxy: Proxy, nginx: Nginx, collector: Collector
) -> None:
    server = proxy(f"omnitrace_context {context};")
    sent = f"00-{TRACE}-{PARENT}-01"
    get(nginx, headers={"traceparent": sent})
    nginx.stop()
    [server_span] = collector.named("Trace for Omni Proxy")
    [client] = collector.named("Upstream request")
    assert (server_span.trace_id == TRACE, server_span.parent_id == PARENT) == (continued,) * 2
    ours = f"00-{client.trace_id}-{client.span_id}-01"
    assert server.header("traceparent") == [{"ours": ours, "theirs": sent}[told]]


def test_a_request_without_an_id_gets_one(
    proxy: Proxy, nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = proxy()
    get(nginx)
    get(nginx, headers={"X-Request-Id": ""})
    nginx.stop()
    ids = [server.header("x-request-id", i) for i in (0, 1)]
    assert [(len(id), bool(MADE_ID.fullmatch(id[0]))) for id in ids] == [(1, True)] * 2
    assert ids[0] != ids[1]
    kept = [s.attributes["gen_ai.request.id"] for s in collector.named("Trace for Omni Proxy")]
    assert kept == [id for [id] in ids]


def test_no_id_is_made_where_that_is_off(proxy: Proxy, nginx: Nginx, collector: Collector) -> None:
    server = proxy("omnitrace_request_id off;")
    get(nginx)
    get(nginx)
    nginx.stop()
    assert [server.header("x-request-id", i) for i in (0, 1)] == [[], []]
    assert len({span.trace_id for span in collector.spans}) == 2


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"job-1", "job-1"),
        (b"MiXed Case", "MiXed Case"),
        (b'a"b\\c; RequestID:x; Role:y {"z":1}', 'a"b\\c; RequestID:x; Role:y {"z":1}'),
        (b"tab\there", "tab\there"),
        ("\u00fcml\u00e4ut".encode(), "\u00fcml\u00e4ut"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\x01\x02\x7f", "\x01\x02\x7f"),
        (b"n" * 1000, "n" * 256),
        (b"\xff" * 256, "\ufffd" * 85),
    ],
    ids=["plain", "case", "separators", "tab", "utf-8", "bytes", "controls", "long", "long bytes"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["exported", "logged"])
def test_any_id_is_kept(
    sent: bytes,
    kept: str,
    legacy: bool,
    nginx: Nginx,
    collector: Collector,
    upstream: StartUpstream,
) -> None:
    server = upstream()
    log = nginx.directory / "log"
    nginx.start(
        f"""{tracing(collector).replace("log off", f"log always {log}" if legacy else "log off")}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
        }}"""
    )
    raw(
        nginx,
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\nUser-Agent: test\r\n"
        b"Connection: close\r\n\r\n" % sent,
    )
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    tree = root("/", "/", id=kept, children=[call(id=kept)], more={"server.address": "x"})
    assert trees(collector.spans, names) == [tree]
    assert server.header("x-request-id") == [sent.decode("latin-1")]
    if legacy:
        # Time received, the try, all tokens; then what was exported. No "Start to schedule".
        lines = [line for file in log.iterdir() for line in file.read_text().splitlines()]
        assert [line.count("<<<Action: ") for line in lines if "<<<Exported" not in line] == [1] * 4


@pytest.mark.skipif(
    "http_auth_request_module" not in ARGUMENTS, reason="this nginx has no auth_request"
)
def test_a_subrequest_changes_its_own_headers_only(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    allow, server = upstream(), upstream()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{
                auth_request /auth; proxy_pass http://{server.address};
            }}
            location /auth {{
                internal; omnitrace_upstream_role prefill; proxy_pass http://{allow.address};
            }}
        }}"""
    )
    get(nginx, headers={"Custom": "1"})
    nginx.stop()
    names = {**nginx.names, allow.port: "<auth>", server.port: "<upstream>"}
    auth = call(name="P running", to="<auth>")
    assert trees(collector.spans, names) == [root("/", "/", children=[auth, call()])]
    [asked], [client] = collector.named("P running"), collector.named("Upstream request")
    assert allow.header("traceparent") == [f"00-{asked.trace_id}-{asked.span_id}-01"]
    assert server.header("traceparent") == [f"00-{client.trace_id}-{client.span_id}-01"]
    assert (allow.header("custom"), server.header("custom")) == (["1"], ["1"])
    assert allow.header("x-request-id") == server.header("x-request-id")


def test_the_variables_name_the_root_span(nginx: Nginx, collector: Collector) -> None:
    text = "$omnitrace_trace_id $omnitrace_span_id $omnitrace_parent_id $omnitrace_sampled"
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ return 200 "{text}"; }}
            location /off {{ omnitrace off; return 200 "{text}"; }}
            location /early {{ set $early "{text}"; return 200 $early; }}
        }}"""
    )
    first = get(nginx, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}).text
    second = get(nginx, "/early").text
    assert get(nginx, "/off").text == "   "
    unsampled = get(nginx, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}).text
    nginx.stop()
    spans = collector.named("Trace for Omni Proxy")
    told = [f"{s.trace_id} {s.span_id} {s.parent_id} 1" for s in spans]
    assert told == [first, second]
    assert unsampled.split(" ")[2:] == [PARENT, "0"]
