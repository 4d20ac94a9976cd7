"""Instrumentation that others wrote, on our provider and on the SDK's own."""

from __future__ import annotations

from typing import Any

import pytest

from program import Program, can_import
from sink import Sink, Span

pytestmark = pytest.mark.skipif(
    not (can_import("fastapi") and can_import("uvicorn")),
    reason="there is no FastAPI for this interpreter",
)

# What is another's in each run: the port of a connection's other end.
EPHEMERAL = ("net.peer.port", "client.port", "network.peer.port")


def record(program: Program, sink: Sink, provider: str, semantics: str | None) -> list[Any]:
    """The spans of the same requests, as a provider records them."""
    result = program.start(
        "instrumented.py", provider, OTEL_SEMCONV_STABILITY_OPT_IN=semantics
    ).end()
    (port,) = result.said
    spans, sink.spans = sink.spans, []
    return forest(spans, port)


def forest(spans: list[Span], port: int) -> list[Any]:
    """The traces, each span over its children, without what differs from run to run."""
    assert len({span.span_id for span in spans}) == len(spans)
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        if parent := by_id.get(span.parent_id):
            assert (span.trace_id, span.start >= parent.start) == (parent.trace_id, True)
            assert span.remote == (parent.kind == "CLIENT" and span.kind == "SERVER")
        else:
            assert span.parent_id == ""

    def plain(attributes: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for key, value in attributes.items():
            if key == "exception.stacktrace":
                # Who records is in it, too.
                value = value.strip().splitlines()[-1]
            elif value == port:
                value = "PORT"
            elif isinstance(value, str):
                value = value.replace(str(port), "PORT")
            elif key in EPHEMERAL:
                value = "ANY"
            kept[key] = value
        return dict(sorted(kept.items()))

    def below(parent: str) -> list[Any]:
        children = [span for span in spans if span.parent_id == parent]
        trees = [
            (
                span.name,
                span.kind,
                (span.status, span.message),
                plain(span.attributes),
                [(event.name, plain(event.attributes)) for event in span.events],
                span.links,
                (span.scope.name, span.scope.version, span.scope.schema_url),
                below(span.span_id),
            )
            for span in children
        ]
        return sorted(trees, key=repr)

    return below("")


def names(trees: list[Any]) -> list[Any]:
    """Of each span with those of its children, but for ASGI's single messages."""
    return [
        (tree[0], names(tree[-1]))
        for tree in trees
        if not tree[0].endswith((" http send", " http receive"))
    ]


@pytest.mark.parametrize("semantics", [None, "http", "http/dup"])
def test_fastapi_and_httpx_say_the_same_on_our_provider_as_on_the_sdks(
    program: Program, sink: Sink, semantics: str | None
) -> None:
    ours = record(program, sink, "omnitrace", semantics)
    theirs = record(program, sink, "sdk", semantics)
    assert ours == theirs
    # What has been compared: the whole of this.
    found: Any = ("GET", [("GET /items/{number}", [("look up", [])])])
    chain: Any = ("GET", [("GET /chain/{depth}", [])])
    for _ in range(2):
        chain = ("GET", [("GET /chain/{depth}", [chain])])
    calls = [
        *3 * [found],
        ("POST", [("POST /orders", [("store", [])])]),
        ("GET", [("GET /refused", [])]),
        ("GET", [("GET /broken", [])]),
        # A path that no route has, and a number that is none.
        ("GET", [("GET", [])]),
        ("GET", [("GET /items/{number}", [])]),
        ("GET", [("GET /stream", [(f"part {part}", []) for part in "abc"])]),
        chain,
    ]
    nobody: Any = ("GET", [])
    *others, (client, made) = sorted(names(ours))
    assert others == [nobody, found]
    assert (client, sorted(made)) == ("client", sorted(calls))
