"""Which spans a request gives and what they say: whole trees."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler

from nginx_peers import Collector, Received, StartUpstream, hang_up, reply
from nginx_server import Nginx, get, raw, tracing
from nginx_trees import call, root, trees


def test_a_proxied_request_is_a_root_with_one_call(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location /api/ {{ proxy_pass http://{server.address}; }}
        }}"""
    )
    assert get(nginx, "/api/x?secret=1").text == "ok"
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    assert trees(collector.spans, names) == [root("/api/x", "/api/", children=[call()])]
    [client] = collector.named("Upstream request")
    assert server.header("traceparent") == [f"00-{client.trace_id}-{client.span_id}-01"]
    assert {span.service for span in collector.spans} == {"omni-proxy"}
    assert set(collector.paths) == {"/v1/traces"}
    assert nginx.books() == [
        {"created": 2, "exported": 2, "logged": 0, "dropped": 0, "in flight": 0, "events lost": 0}
    ]


def test_an_answer_of_nginx_itself_is_a_root_alone(nginx: Nginx, collector: Collector) -> None:
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ return 200 hello; }}
            location /fails {{ return 503; }}
        }}"""
    )
    assert get(nginx, "/a").text == "hello"
    assert get(nginx, "/fails").status == 503
    nginx.stop()
    assert trees(collector.spans, nginx.names) == [
        root("/a", "/"),
        root("/fails", "/fails", status=503),
    ]


def test_requests_that_die_before_the_rewrite_phase_are_traced(
    nginx: Nginx, collector: Collector
) -> None:
    nginx.start(
        f"""{tracing(collector)} client_max_body_size 10; large_client_header_buffers 2 1k;
        server {{ listen 127.0.0.1:{nginx.port}; location / {{ return 200; }} }}
        server {{ listen 127.0.0.1:{nginx.port}; server_name gone; return 410; }}"""
    )
    raw(nginx, b"NONSENSE\r\n\r\n")
    raw(nginx, b"GET /bad HTTP/1.1\r\nHost: a b\r\n\r\n")
    raw(nginx, b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 4096))
    raw(nginx, b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n" + b"x" * 11)
    raw(nginx, b"GET /gone HTTP/1.1\r\nHost: gone\r\nConnection: close\r\n\r\n")
    raw(nginx, b"GET /old\r\n")
    nginx.stop()
    bare = {"user_agent.original": None, "server.address": None}
    unread = {**bare, "network.protocol.version": None}
    # nginx stamps them in milliseconds, so they are told apart by what they were.
    found = trees(collector.spans, nginx.names)
    assert sorted(found, key=lambda tree: str(tree[3].get("url.path", tree))) == [
        root(None, None, 400, method="_OTHER", more=unread),
        root(None, None, 414, method="_OTHER", more=unread),
        root("/bad", None, 400, more=bare),
        root("/gone", None, 410, more={**bare, "server.address": "gone"}),
        root("/large", "/", 413, method="POST", more={**bare, "server.address": "x"}),
        root("/old", "/", more={**bare, "network.protocol.version": "0.9"}),
    ]


def test_each_try_is_a_call_and_its_server_is_told_its_id(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    bad, good = upstream(hang_up), upstream()
    nginx.start(
        f"""{tracing(collector)}
        upstream pool {{ server {bad.address}; server {good.address} backup; }}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://pool; }}
        }}"""
    )
    assert get(nginx).text == "ok"
    nginx.stop()
    names = {**nginx.names, bad.port: "<bad>", good.port: "<good>"}
    failed = call(None, to="<bad>", error="upstream_error")
    again = call(200, to="<good>", number=1, more={"http.request.resend_count": 1})
    assert trees(collector.spans, names) == [root("/", "/", children=[failed, again])]
    first, second = collector.named("Upstream request")
    assert bad.header("traceparent") == [f"00-{first.trace_id}-{first.span_id}-01"]
    assert good.header("traceparent") == [f"00-{second.trace_id}-{second.span_id}-01"]


def test_every_way_to_fail_has_its_name(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    def cut_short(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"only this")
        handler.close_connection = True

    def say_nothing(handler: BaseHTTPRequestHandler, _: Received) -> None:
        stop.wait(10)

    stop = threading.Event()
    answers = {
        "/status": reply(404),
        "/broken": reply(500),
        "/short": cut_short,
        "/silent": say_nothing,
    }
    server = upstream(lambda handler, request: answers[request.path](handler, request))
    nginx.start(
        f"""{tracing(collector)} proxy_read_timeout 200ms;
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
            location /refused {{ proxy_pass http://127.0.0.1:1; }}
        }}"""
    )
    assert get(nginx, "/status").status == 404
    assert get(nginx, "/broken").status == 500
    assert get(nginx, "/short").body == b"only this"
    assert get(nginx, "/silent").status == 504
    assert get(nginx, "/refused").status == 502
    stop.set()
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    assert trees(collector.spans, names) == [
        root("/status", "/", 404, children=[call(404)]),
        root("/broken", "/", 500, children=[call(500)]),
        root("/short", "/", children=[call(200, error="incomplete_response")]),
        root("/silent", "/", 504, children=[call(None, error="timeout")]),
        root("/refused", "/refused", 502, children=[call(None, to=1, error="connect_error")]),
    ]


def test_a_client_that_leaves_ends_its_call(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    left = threading.Event()

    def endless(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"begin")
        handler.wfile.flush()
        left.wait(10)

    server = upstream(endless)
    nginx.start(
        f"""{tracing(collector)} proxy_buffering off;
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
        }}"""
    )
    with socket.create_connection(("127.0.0.1", nginx.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"begin" not in connection.recv(65536):
            pass
    nginx.wait_for(lambda: len(collector.spans) == 2, "no spans")
    left.set()
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    more = {
        "server.address": "x", "user_agent.original": None, "omnitrace.client_closed": True,
    }  # fmt: skip
    client = call(200, error="client_closed")
    assert trees(collector.spans, names) == [root("/", "/", 200, children=[client], more=more)]


def test_a_cached_answer_has_no_call(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)} proxy_cache_path {nginx.directory}/cache keys_zone=zone:1m;
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{
                proxy_pass http://{server.address}; proxy_cache zone; proxy_cache_valid 1h;
            }}
        }}"""
    )
    assert [get(nginx).text, get(nginx).text] == ["ok", "ok"]
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    asked, hit = ({"omnitrace.cache.status": word} for word in ("MISS", "HIT"))
    assert trees(collector.spans, names) == [
        root("/", "/", children=[call()], more=asked),
        root("/", "/", more=hit),
    ]
    # The cache's own processes start no exporter.
    assert len(nginx.books()) == 1


def test_calls_on_a_kept_connection_are_told_apart(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)}
        upstream pool {{ server {server.address}; keepalive 4; }}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{
                proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection "";
            }}
        }}"""
    )
    for _ in range(3):
        assert get(nginx).text == "ok"
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    assert trees(collector.spans, names) == [root("/", "/", children=[call()])] * 3
    told = [server.header("traceparent", i) for i in range(3)]
    assert told == [
        [f"00-{client.trace_id}-{client.span_id}-01"]
        for client in collector.named("Upstream request")
    ]


def test_an_upstream_named_by_a_variable_is_a_call_too(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ set $target {server.address}; proxy_pass http://$target; }}
        }}"""
    )
    assert get(nginx).text == "ok"
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    assert trees(collector.spans, names) == [root("/", "/", children=[call()])]
    [client] = collector.named("Upstream request")
    assert server.header("traceparent") == [f"00-{client.trace_id}-{client.span_id}-01"]


def test_an_internal_redirect_stays_in_its_trace(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server, other = upstream(reply(404)), upstream()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location /intercepted {{
                proxy_pass http://{server.address};
                proxy_intercept_errors on; error_page 404 = @other;
            }}
            location /rewritten {{ rewrite ^ /target last; }}
            location /target {{ proxy_pass http://{other.address}; }}
            location /tried {{ try_files /nothing @other; }}
            location @other {{ proxy_pass http://{other.address}; }}
        }}"""
    )
    for path in ("/intercepted", "/rewritten", "/tried"):
        assert get(nginx, path).text == "ok"
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>", other.port: "<other>"}
    second = call(to="<other>", number=1)
    assert trees(collector.spans, names) == [
        root("/intercepted", "/intercepted", children=[call(404), second]),
        root("/rewritten", "/rewritten", children=[call(to="<other>")]),
        root("/tried", "/tried", children=[call(to="<other>")]),
    ]
    told = [server.header("traceparent"), *(other.header("traceparent", i) for i in range(3))]
    assert told == [
        [f"00-{client.trace_id}-{client.span_id}-01"]
        for client in collector.named("Upstream request")
    ]


def test_the_users_own_name_and_attributes_are_on_the_root(
    nginx: Nginx, collector: Collector
) -> None:
    nginx.start(
        f"""{tracing(collector)} omnitrace_span_attr app.where http;
        server {{
            listen 127.0.0.1:{nginx.port};
            omnitrace_span_name "$request_method $uri";
            location / {{ return 200; }}
            location /own {{
                omnitrace_span_attr app.key $http_key;
                omnitrace_span_attr app.empty $http_nothing;
                omnitrace_span_attr app.status "got $status";
                return 200;
            }}
        }}"""
    )
    get(nginx, "/a")
    get(nginx, "/own", headers={"Key": "v\xe4lue"})
    nginx.stop()
    name = "omnitrace.span.name"
    assert trees(collector.spans, nginx.names) == [
        ("GET /a", *root("/a", "/", more={name: "GET /a", "app.where": "http"})[1:]),
        (
            "GET /own",
            *root(
                "/own",
                "/own",
                more={name: "GET /own", "app.key": "v\ufffdlue", "app.status": "got 200"},
            )[1:],
        ),
    ]


def test_what_is_off_leaves_no_trace(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)}
        map $arg_trace $wanted {{ default off; yes on; }}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ omnitrace off; proxy_pass http://{server.address}; }}
            location /some {{ omnitrace $wanted; proxy_pass http://{server.address}; }}
            location /parent {{
                omnitrace $omnitrace_sampled; proxy_pass http://{server.address};
            }}
        }}"""
    )
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"
    get(nginx, "/off", headers={"traceparent": parent + "1"})
    get(nginx, "/some?trace=no")
    get(nginx, "/some?trace=yes")
    get(nginx, "/some?trace=no", headers={"traceparent": parent + "1"})
    get(nginx, "/parent", headers={"traceparent": parent + "0"})
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    assert trees(collector.spans, names) == [root("/some", "/some", children=[call()])]
    # Off is as if the module were not there; not sampled is told to the upstream.
    assert server.header("traceparent", 0) == [parent + "1"]
    assert server.header("x-request-id", 0) == []
    assert [server.header("traceparent", i)[0][-2:] for i in (1, 2)] == ["00", "01"]
    assert [server.header("traceparent", i) for i in (3, 4)] == [[parent + "0"]] * 2
