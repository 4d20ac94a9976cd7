"""Spans as trees, as they are and as they should be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from nginx_peers import Span

# Spans are compared as (name, kind, error, attributes, events, children).
Tree = tuple[str, str, bool, dict[str, Any], list[str], list[Any]]

# What differs between two runs; everything else is compared.
VOLATILE = {
    "gen_ai.latency.e2e",
    "gen_ai.latency.time_to_first_token",
    "gen_ai.server.time_per_output_token",
    "omnitrace.latency.first_byte",
    "omnitrace.latency.last_token",
    "omnitrace.latency.second_token",
    "omnitrace.latency.third_token",
    "omnitrace.tokens.longest_gap",
    "omnitrace.upstream.bytes_received",
    "omnitrace.upstream.bytes_sent",
    "omnitrace.upstream.connect_time",
    "omnitrace.upstream.header_time",
}

# A request id of the module's own making: a UUID, version 4, in lower case.
MADE_ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def trees(spans: list[Span], names: dict[object, str]) -> list[Tree]:
    """Every trace as a tree, in the order of their roots; `names` replaces attribute values.

    No id may be there twice, and no child may reach out of its parent.
    """
    repeated = [id for id, count in Counter(s.span_id for s in spans).items() if count > 1]
    assert repeated == []
    by_id = {s.span_id: s for s in spans}
    children: dict[str, list[Span]] = {}
    roots = []
    for span in sorted(spans, key=lambda s: s.start):
        parent = by_id.get(span.parent_id)
        if parent is None:
            roots.append(span)
            continue
        assert parent.trace_id == span.trace_id
        assert parent.start <= span.start <= span.end <= parent.end
        children.setdefault(parent.span_id, []).append(span)

    def tree(span: Span) -> Tree:
        attributes = {
            key: names.get(value, "<made>" if MADE_ID.fullmatch(str(value)) else value)
            for key, value in span.attributes.items()
            if key not in VOLATILE
        }
        below = [tree(child) for child in children.get(span.span_id, [])]
        return (span.name, span.kind, span.error, attributes, span.events, below)

    return [tree(root) for root in roots]


def root(
    path: str | None,
    route: str | None,
    status: int = 200,
    children: Iterable[Tree] = (),
    events: Iterable[str] = (),
    method: str = "GET",
    id: str = "<made>",
    more: Mapping[str, object] | None = None,
) -> Tree:
    """The root span of a request that `get` sends."""
    attributes = {
        "http.request.method": method,
        "url.path": path,
        "url.scheme": "http",
        "http.route": route,
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": "<proxy>",
        "client.address": "127.0.0.1",
        "user_agent.original": "test",
        "http.response.status_code": status,
        "gen_ai.request.id": id,
        "omnitrace.role": "proxy",
        **({"error.type": str(status)} if status >= 500 else {}),
        **(more or {}),
    }
    present = {key: value for key, value in attributes.items() if value is not None}
    return ("Trace for Omni Proxy", "SERVER", status >= 500, present, list(events), list(children))


def call(
    status: int | None = 200,
    name: str = "Upstream request",
    to: str | int = "<upstream>",
    method: str = "GET",
    id: str = "<made>",
    error: str | None = None,
    number: int = 0,
    more: Mapping[str, object] | None = None,
) -> Tree:
    """The CLIENT span of an upstream try."""
    attributes = {
        "http.request.method": method,
        "server.address": "127.0.0.1",
        "server.port": to,
        "http.response.status_code": status,
        "gen_ai.request.id": id,
        "omnitrace.role": "proxy",
        "error.type": error or (str(status) if status and status >= 400 else None),
        "omnitrace.occurrence": number or None,
        **(more or {}),
    }
    present = {key: value for key, value in attributes.items() if value is not None}
    return (name, "CLIENT", "error.type" in present, present, [], [])


def subrequest(
    path: str,
    route: str,
    status: int = 200,
    number: int = 0,
    more: Mapping[str, object] | None = None,
) -> Tree:
    """The span of a subrequest that nginx answers itself."""
    attributes = {
        "http.request.method": "GET",
        "url.path": path,
        "http.route": route,
        "http.response.status_code": status,
        "gen_ai.request.id": "<made>",
        "error.type": str(status) if status >= 500 else None,
        "omnitrace.occurrence": number or None,
        **(more or {}),
    }
    present = {key: value for key, value in attributes.items() if value is not None}
    return ("Subrequest", "INTERNAL", "error.type" in present, present, [], [])
