"""The exporter's certificates, and what the environment says beside the directives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nginx_peers import Collector, StartUpstream, hang_up
from nginx_server import Nginx, get, tracing

from authority import Authority

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def authority(nginx: Nginx) -> Authority:
    """Its files are in nginx's own directory."""
    return Authority.new(nginx.directory)


@pytest.fixture
def secure(authority: Authority) -> Iterator[Collector]:
    """A Collector that talks to clients of the authority alone."""
    collector = Collector(authority.context(asks_clients=True))
    yield collector
    collector.close()


def site(nginx: Nginx, exporter: str) -> str:
    return f"""
        omnitrace on; omnitrace_legacy_log off;
        omnitrace_exporter {{ interval 50ms; {exporter} }}
        server {{ listen 127.0.0.1:{nginx.port}; location / {{ return 200; }} }}"""


def name(file: str) -> str:
    """As nginx finds it beside its configuration."""
    return Path(file).name


@pytest.mark.parametrize("way", ["directives", "variables", "both"])
def test_both_ends_show_their_certificates(
    nginx: Nginx, secure: Collector, authority: Authority, way: str
) -> None:
    trusted = f"trusted_certificate {name(authority.trusted)};"
    shown = f"certificate {name(authority.client)}; certificate_key {name(authority.client_key)};"
    client = {
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": authority.client,
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": authority.client_key,
    }
    directives, environment = {
        "directives": (
            trusted + shown,
            # The block outweighs them.
            {"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": "/nowhere", **dict.fromkeys(client, "/no")},
        ),
        "variables": ("", {"OTEL_EXPORTER_OTLP_CERTIFICATE": authority.trusted, **client}),
        "both": (trusted, client),
    }[way]
    nginx.start(site(nginx, f"endpoint {secure.url}; {directives}"), environment=environment)
    assert get(nginx).status == 200
    nginx.stop()
    assert len(secure.spans) == 1
    assert [line for line in nginx.messages() if not line.startswith("notice")] == []


def test_the_master_reads_what_its_workers_may_not(
    nginx: Nginx, secure: Collector, authority: Authority
) -> None:
    for file in (authority.trusted, authority.client, authority.client_key):
        Path(file).chmod(0o600)
    # With root's nginx the workers are nobody's, and may not even enter the directory.
    nginx.start(
        site(
            nginx,
            f"endpoint {secure.url}; trusted_certificate {name(authority.trusted)};"
            f"certificate {name(authority.client)}; certificate_key {name(authority.client_key)};",
        ),
        user=False,
    )
    assert get(nginx).status == 200
    nginx.stop()
    assert len(secure.spans) == 1


def test_a_pair_that_does_not_fit_is_refused(nginx: Nginx, authority: Authority) -> None:
    client, key = name(authority.client), name(authority.client_key)
    for directives, directive, file, reason in [
        (f"certificate {client};", "certificate", client, 'needs a "certificate_key" too'),
        (f"certificate_key {key};", "certificate_key", key, 'needs a "certificate" too'),
        (
            f"certificate {client}; certificate_key {name(authority.server_key)};",
            "certificate_key",
            name(authority.server_key),
            "is not the key of the client certificate",
        ),
        (
            f"certificate {key}; certificate_key {key};",
            "certificate",
            key,
            "has no certificate in PEM form in it",
        ),
        (
            f"certificate {client}; certificate_key none.pem;",
            "certificate_key",
            "none.pem",
            "cannot be read (No such file or directory (os error 2))",
        ),
    ]:
        nginx.configure(f"omnitrace_exporter {{ {directives} }}")
        assert nginx.test().startswith(
            f'[emerg] invalid value "<dir>/{file}" in "{directive}" directive, it {reason} in <dir>'
        )


def test_certificates_for_a_plain_endpoint_are_said_to_have_no_effect(
    nginx: Nginx, authority: Authority
) -> None:
    exporter = f"endpoint http://c:1; trusted_certificate {name(authority.trusted)};"
    nginx.configure(site(nginx, exporter))
    assert nginx.test().startswith(
        '[warn] omnitrace: the certificates of "omnitrace_exporter" have no effect on '
        "http://c:1/v1/traces: the connection is not encrypted in <dir>"
    )


@pytest.mark.parametrize(
    ("propagators", "sent"),
    [
        ("b3", {"b3": f"{TRACE}-{PARENT}-1"}),
        ("b3multi", {"X-B3-TraceId": TRACE, "X-B3-SpanId": PARENT, "X-B3-Sampled": "1"}),
        ("tracecontext,b3", {"X-B3-TraceId": TRACE, "X-B3-SpanId": PARENT, "X-B3-Flags": "1"}),
    ],
)
def test_context_comes_and_goes_in_the_formats_that_are_asked_for(
    nginx: Nginx,
    collector: Collector,
    upstream: StartUpstream,
    propagators: str,
    sent: dict[str, str],
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
        }}""",
        environment={"OTEL_PROPAGATORS": propagators},
    )
    get(nginx, headers={**sent, "baggage": "k=v", "other": "1"})
    nginx.stop()
    [root] = collector.named("Trace for Omni Proxy")
    [client] = collector.named("Upstream request")
    assert (root.trace_id, root.parent_id) == (TRACE, PARENT)
    ours = f"{TRACE}-{client.span_id}"
    expected = {
        "b3": {"b3": [f"{ours}-1"]},
        "b3multi": {
            "x-b3-traceid": [TRACE], "x-b3-spanid": [client.span_id], "x-b3-sampled": ["1"],
        },
        "tracecontext,b3": {"traceparent": [f"00-{ours}-01"], "b3": [f"{ours}-d"]},
    }[propagators]  # fmt: skip
    names = ["traceparent", "b3", *(f"x-b3-{n}" for n in ("traceid", "spanid", "sampled", "flags"))]
    told = {name: server.header(name) for name in names}
    assert {name: values for name, values in told.items() if values} == expected
    assert (server.header("baggage"), server.header("other")) == (["k=v"], ["1"])


@pytest.mark.parametrize("propagators", ["b3,tracecontext", "b3multi"])
def test_each_try_at_an_upstream_is_announced_in_each_format(
    nginx: Nginx, collector: Collector, upstream: StartUpstream, propagators: str
) -> None:
    first, second = upstream(hang_up), upstream()
    nginx.start(
        f"""{tracing(collector)}
        upstream both {{ server {first.address} weight=1000; server {second.address}; }}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://both; }}
        }}""",
        environment={"OTEL_PROPAGATORS": propagators},
    )
    assert get(nginx).status == 200
    nginx.stop()
    tries = collector.named("Upstream request")
    assert len(tries) == 2
    for server, made in zip((first, second), tries, strict=True):
        told = "".join(
            value for name in ("traceparent", "b3", "x-b3-spanid") for value in server.header(name)
        )
        assert told.count(made.span_id) == len(propagators.split(","))


@pytest.mark.parametrize(
    ("sampler", "sent", "sampled"),
    [
        ("always_off", {}, False),
        ("always_off", {"traceparent": f"00-{TRACE}-{PARENT}-01"}, False),
        ("parentbased_always_off", {"traceparent": f"00-{TRACE}-{PARENT}-01"}, True),
        ("always_on", {"traceparent": f"00-{TRACE}-{PARENT}-00"}, True),
    ],
)
def test_the_sampler_decides_where_it_does_not_ask_the_caller(
    nginx: Nginx,
    collector: Collector,
    upstream: StartUpstream,
    sampler: str,
    sent: dict[str, str],
    sampled: bool,
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
        }}""",
        environment={"OTEL_TRACES_SAMPLER": sampler},
    )
    get(nginx, headers=sent)
    nginx.stop()
    [told] = server.header("traceparent")
    assert told[-2:] == ("01" if sampled else "00")
    assert len(collector.spans) == (2 if sampled else 0)
