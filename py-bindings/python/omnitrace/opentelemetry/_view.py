"""What can be read of a span, in the shape that the SDK gives it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Event:
    """A moment within a span."""

    name: str
    attributes: Mapping[str, Any]
    timestamp: int
    """Nanoseconds since 1970."""
    dropped_attributes: int = 0


@dataclass(frozen=True)
class InstrumentationScope:
    """The library that makes spans."""

    name: str
    version: str | None = None
    schema_url: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class Resource:
    """What describes the process."""

    attributes: Mapping[str, Any]
    schema_url: str = ""


def finished(span: Any) -> Any:
    """A span that has ended, as span processors get it: the SDK's own `ReadableSpan`
    where the SDK is in use."""
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is None:
        return span
    from opentelemetry.sdk.resources import Resource as SdkResource

    resource = span.resource
    if not isinstance(resource, SdkResource):
        resource = SdkResource(dict(resource.attributes), resource.schema_url)
    events = [
        sdk.Event(e.name, _bounded(e.attributes, e.dropped_attributes), e.timestamp)
        for e in span.events
    ]
    return sdk.ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=resource,
        attributes=_bounded(span.attributes, span.dropped_attributes),
        events=_bounded_list(events, span.dropped_events),
        links=_bounded_list(span.links, span.dropped_links),
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=_sdk_scope(span.instrumentation_scope),
    )


def _bounded(attributes: Mapping[str, Any], dropped: int) -> Any:
    """With the count where the SDK's exporters look for it."""
    from opentelemetry.attributes import BoundedAttributes

    bounded = BoundedAttributes(attributes=attributes)
    bounded.dropped = dropped
    return bounded


def _bounded_list(items: Sequence[Any], dropped: int) -> Any:
    from opentelemetry.sdk.util import BoundedList

    bounded: Any = BoundedList.from_seq(None, items)
    bounded.dropped = dropped
    return bounded


def _sdk_scope(scope: InstrumentationScope) -> Any:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope as SdkScope

    try:
        return SdkScope(scope.name, scope.version, scope.schema_url, dict(scope.attributes))
    except TypeError:
        # An SDK whose scopes have no attributes yet.
        return SdkScope(scope.name, scope.version, scope.schema_url)
