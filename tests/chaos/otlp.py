"""Which spans an OTLP request holds."""

from __future__ import annotations

import gzip
import json
from email.message import Message
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from traces import Key, key


class Span(NamedTuple):
    key: Key
    span_id: int


def spans(body: bytes, headers: Message) -> list[Span]:
    """The spans of a request; a name that nobody has given is a KeyError."""
    plain = gzip.decompress(body) if headers["Content-Encoding"] == "gzip" else body
    if headers["Content-Type"] == "application/json":
        return [
            Span(key(int(span["traceId"], 16), span["name"]), int(span["spanId"], 16))
            for resource in json.loads(plain)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
    number = int.from_bytes
    return [
        Span(key(number(span.trace_id, "big"), span.name), number(span.span_id, "big"))
        for resource in ExportTraceServiceRequest.FromString(plain).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
