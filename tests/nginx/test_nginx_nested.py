"""Requests within requests: subrequests, slices, and a proxy behind a proxy."""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from nginx_peers import Collector, Received, StartUpstream, reply
from nginx_server import ARGUMENTS, MODULE, NJS, Nginx, get, tracing
from nginx_trees import call, root, subrequest, trees


def test_every_kind_of_subrequest_has_a_call_of_its_own(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    page = b'<!--#include virtual="/part?a" --><!--#include virtual="/part?b" -->'
    answers = {"/": reply(200, page, {"Content-Type": "text/html"})}
    server = upstream(lambda handler, request: answers.get(request.path, reply())(handler, request))
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ ssi on; mirror /mirror; proxy_pass http://{server.address}; }}
            location /part {{ proxy_pass http://{server.address}; }}
            location /mirror {{ internal; proxy_pass http://{server.address}; }}
        }}"""
    )
    assert get(nginx).text == "okok"
    nginx.stop()
    clients = collector.named("Upstream request")
    told = [header for n in range(4) for header in server.header("traceparent", n)]
    assert sorted(told) == sorted(f"00-{c.trace_id}-{c.span_id}-01" for c in clients)
    names = {**nginx.names, server.port: "<upstream>"}
    [(*_, calls)] = trees(collector.spans, names)
    # The mirror's is numbered first or second: it runs beside the request.
    numbers = sorted(c[3].pop("omnitrace.occurrence", 0) for c in calls)
    assert (calls, numbers) == ([call()] * 4, [0, 1, 2, 3])


PAGE = '<!--#include virtual="/part?a" --><!--#include virtual="/broken" -->'


@pytest.mark.parametrize("log", ["off", "on"])
def test_subrequests_that_nginx_answers_itself_have_spans(
    nginx: Nginx, collector: Collector, log: str
) -> None:
    nginx.start(
        f"""{tracing(collector)} log_subrequest {log};
        server {{
            listen 127.0.0.1:{nginx.port}; ssi on; default_type text/html;
            location = / {{ return 200 '{PAGE}'; }}
            location /part {{ ssi on; return 200 '<!--#include virtual="/inner" -->'; }}
            location /inner {{ return 200 inner; }}
            location /broken {{ return 503; }}
        }}"""
    )
    assert "inner" in get(nginx).text
    nginx.stop()
    below = [
        subrequest("/part", "/part"),
        subrequest("/broken", "/broken", 503, number=1),
        subrequest("/inner", "/inner", number=2),
    ]
    [(*tree, children)] = trees(collector.spans, nginx.names)
    assert (*tree, []) == root("/", "/")
    assert sorted(children, key=lambda c: c[3].get("omnitrace.occurrence", 0)) == below


@pytest.mark.skipif(
    "http_auth_request_module" not in ARGUMENTS, reason="this nginx has no auth_request"
)
@pytest.mark.parametrize(("says", "status"), [(204, 200), (403, 403)])
def test_who_made_a_subrequest_is_still_told_that_it_is_over(
    nginx: Nginx, collector: Collector, says: int, status: int
) -> None:
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location /page {{ auth_request /auth; mirror /mirror; root {nginx.directory}; }}
            location /auth {{ internal; return {says}; }}
            location /mirror {{ internal; return 200; }}
        }}"""
    )
    (Path(nginx.directory) / "page").touch()
    assert get(nginx, "/page").status == status
    nginx.stop()
    below = [subrequest("/auth", "/auth", says)]
    if status == 200:
        below.append(subrequest("/mirror", "/mirror", number=1))
    assert trees(collector.spans, nginx.names) == [root("/page", "/page", status, children=below)]


@pytest.mark.skipif(
    "http_auth_request_module" not in ARGUMENTS, reason="this nginx has no auth_request"
)
def test_a_subrequest_ends_when_it_is_over_and_not_with_its_request(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream(reply())
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ auth_request /auth; proxy_pass http://{server.address}; }}
            location /auth {{ internal; return 204; }}
        }}"""
    )
    get(nginx)
    nginx.stop()
    [asked], [passed_on] = collector.named("Subrequest"), collector.named("Upstream request")
    assert asked.end <= passed_on.start


@pytest.mark.skipif(not os.path.exists(NJS), reason="njs is missing")
def test_a_scripts_subrequests_have_spans_and_it_gets_their_answers(
    nginx: Nginx, collector: Collector
) -> None:
    (Path(nginx.directory) / "ask.js").write_text(
        """async function ask(r) {
            const found = await Promise.all(["/a", "/b"].map(path => r.subrequest(path)));
            r.return(200, found.map(each => each.responseText).join(" and "));
        }
        export default {ask};"""
    )
    nginx.start(
        f"""{tracing(collector)} js_path {nginx.directory}; js_import ask.js;
        server {{
            listen 127.0.0.1:{nginx.port};
            location = / {{ js_content ask.ask; }}
            location /a {{ return 200 one; }}
            location /b {{ return 200 two; }}
        }}""",
        modules=(NJS, MODULE),
    )
    assert get(nginx).text == "one and two"
    nginx.stop()
    below = [subrequest("/a", "/a"), subrequest("/b", "/b", number=1)]
    assert trees(collector.spans, nginx.names) == [root("/", "/", children=below)]


def test_what_a_cache_has_needs_no_call(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream(reply(200, b"part", {"Cache-Control": "max-age=60"}))
    nginx.start(
        f"""{tracing(collector)}
        proxy_cache_path {nginx.directory}/cache keys_zone=parts:1m;
        server {{
            listen 127.0.0.1:{nginx.port}; default_type text/html;
            location = / {{ ssi on; return 200 '<!--#include virtual="/part" -->'; }}
            location /part {{ proxy_cache parts; proxy_pass http://{server.address}; }}
        }}"""
    )
    assert [get(nginx).text for _ in range(2)] == ["part", "part"]
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    hit = subrequest("/part", "/part", more={"omnitrace.cache.status": "HIT"})
    assert trees(collector.spans, names) == [
        root("/", "/", children=[call()]),
        root("/", "/", children=[hit]),
    ]


@pytest.mark.skipif("http_slice_module" not in ARGUMENTS, reason="this nginx has no slices")
def test_the_parts_of_a_slice_are_calls_of_their_own(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    whole = b"0123456789" * 10

    def ranged(handler: BaseHTTPRequestHandler, request: Received) -> None:
        first, last = request.headers["range"][0].removeprefix("bytes=").split("-")
        part = whole[int(first) : int(last) + 1]
        headers = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}"}
        reply(206, part, headers)(handler, request)

    server = upstream(ranged)
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{
                slice 40; proxy_set_header Range $slice_range; proxy_http_version 1.1;
                proxy_pass http://{server.address};
            }}
        }}"""
    )
    assert get(nginx).body == whole
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    more = [call(206, number=n) for n in (1, 2)]
    assert trees(collector.spans, names) == [root("/", "/", children=[call(206), *more])]
    clients = collector.named("Upstream request")
    told = [server.header("traceparent", n) for n in range(3)]
    assert told == [[f"00-{c.trace_id}-{c.span_id}-01"] for c in clients]


def test_a_proxy_behind_a_proxy_hangs_under_its_call(nginx: Nginx, collector: Collector) -> None:
    socket_path = f"{nginx.directory}/inner.sock"
    nginx.start(
        f"""{tracing(collector)}
        server {{ listen unix:{socket_path}; location / {{ return 200 inner; }} }}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://unix:{socket_path}; }}
        }}"""
    )
    assert get(nginx, headers={"X-Request-Id": "r"}).text == "inner"
    nginx.stop()
    to_socket = {"server.address": socket_path, "server.port": None}
    inner = {"network.protocol.version": "1.0", "client.address": "unix:", "server.port": None}
    below = root("/", "/", id="r", more={**inner, "server.address": "localhost"})
    name, kind, error, attributes, events, _ = call(id="r", more=to_socket)
    outer = (name, kind, error, attributes, events, [below])
    assert trees(collector.spans, nginx.names) == [root("/", "/", id="r", children=[outer])]
