"""Prefill by a subrequest, decode by the request itself: one trace over both."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from nginx_peers import Answer, Collector, StartUpstream, Upstream, reply, stream
from nginx_server import MODULE, NJS, Nginx, Response, get, tracing
from nginx_trees import Tree, call, root, trees
from test_nginx_tokens import ANSWER, TOKENS

pytestmark = pytest.mark.skipif(
    not os.path.exists(NJS), reason="njs is missing: apt-get install libnginx-mod-http-js"
)

SCRIPT = """
async function chat(r) {
    const prefill = await r.subrequest('/prefill', {method: 'POST', body: 'for P'});
    if (prefill.status != 200) {
        return r.return(prefill.status, prefill.responseText);
    }
    r.variables.body = 'for D, from ' + prefill.responseText;
    r.internalRedirect('@decode');
}
export default {chat};
"""


Outcome = tuple[Response, list[Tree], Upstream, Upstream]
Chat = Callable[[Answer, Answer], Outcome]


@pytest.fixture
def chat(nginx: Nginx, collector: Collector, upstream: StartUpstream) -> Chat:
    """Sends one chat request through both legs; returns the answer, trees and upstreams."""

    def run(prefill: Answer, decode: Answer) -> Outcome:
        p, d = upstream(prefill), upstream(decode)
        (Path(nginx.directory) / "chat.js").write_text(SCRIPT)
        nginx.start(
            f"""{tracing(collector)} js_path {nginx.directory}; js_import chat.js;
            upstream prefill {{ server {p.address}; keepalive 4; }}
            upstream decode {{ server {d.address}; keepalive 4; }}
            server {{
                listen 127.0.0.1:{nginx.port}; js_var $body;
                proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
                location /v1/chat {{ js_content chat.chat; }}
                location /prefill {{
                    internal; omnitrace_upstream_role prefill; proxy_pass http://prefill;
                }}
                location @decode {{
                    omnitrace_upstream_role decode; proxy_set_body $body; proxy_pass http://decode;
                }}
            }}""",
            modules=(NJS, MODULE),
        )
        answer = get(nginx, "/v1/chat", method="POST", body=b"ask")
        nginx.stop()
        names = {**nginx.names, p.port: "<prefill>", d.port: "<decode>"}
        return answer, trees(collector.spans, names), p, d

    return run


def test_both_legs_are_calls_of_one_root(chat: Chat, collector: Collector) -> None:
    answer, trees, p, d = chat(reply(body=b"P"), stream([ANSWER[:400], ANSWER[400:]]))
    assert answer.body == ANSWER
    found = {
        "omnitrace.tokens.count": 4,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
    }
    calls = [
        call(name="P running", to="<prefill>", method="POST"),
        call(name="D running", to="<decode>", method="POST"),
    ]
    assert trees == [
        root("/v1/chat", "/v1/chat", method="POST", events=TOKENS, children=calls, more=found)
    ]
    [prefill], [decode] = collector.named("P running"), collector.named("D running")
    assert p.header("traceparent") == [f"00-{prefill.trace_id}-{prefill.span_id}-01"]
    assert d.header("traceparent") == [f"00-{decode.trace_id}-{decode.span_id}-01"]
    assert p.header("x-request-id") == d.header("x-request-id")
    assert (p.received[0].body, d.received[0].body) == (b"for P", b"for D, from P")


def test_a_failed_prefill_is_an_error_of_its_call(chat: Chat) -> None:
    answer, trees, _, d = chat(reply(503, b"full"), reply())
    assert (answer.status, answer.text) == (503, "full")
    failed = call(503, name="P running", to="<prefill>", method="POST")
    assert trees == [root("/v1/chat", "/v1/chat", 503, method="POST", children=[failed])]
    assert d.received == []
