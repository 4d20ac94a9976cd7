"""Every function of omnitrace, as a type checker sees it and as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType

import omnitrace
from omnitrace import SpanContext, span


@span("function", attributes={"model": "m", "n": 1, "x": 0.5, "yes": True, "list": [1]})
def function(x: int) -> str:
    with span("returns from a block"):
        return str(x)


@span("coroutine", "r")
async def coroutine(x: int) -> str:
    async with span("async") as inner:
        inner.set_attribute("x", x)
        await asyncio.sleep(0)
    return str(x)


@span("generator")
def generator(n: int) -> Iterator[int]:
    yield from range(n)


@span("stream")
async def stream(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


class Service:
    @span("method")
    def method(self) -> int:
        return 1


async def main() -> list[int]:
    text: str = await coroutine(1)
    return [i async for i in stream(len(text))]


def describe(context: SpanContext) -> tuple[str, str, bool, str]:
    return context.trace_id, context.span_id, context.sampled, context.traceparent


omnitrace.init(
    service_name="s",
    role="prefill",
    endpoint="http://127.0.0.1:9",
    traces_endpoint=None,
    protocol="http/protobuf",
    headers={"a": "b"},
    compression="gzip",
    timeout=5,
    insecure=True,
    certificate=None,
    client_certificate=None,
    client_key=None,
    exporter="none",
    sampler="traceidratio",
    sampler_arg=1.0,
    propagators="tracecontext",
    attribute_count_limit=64,
    attribute_value_length_limit=1000,
    event_count_limit=64,
    link_count_limit=64,
    event_attribute_count_limit=16,
    link_attribute_count_limit=16,
    resource_attributes=MappingProxyType({"a": "b"}),
    legacy_log="off",
    legacy_log_directory="/nowhere",
    schedule_delay=0.5,
    export_timeout=1,
    max_export_batch_size=512,
    max_queue_size=2048,
    memory_limit_mib=8,
    log_level="error",
    disabled=False,
)
omnitrace.action("PD api server get request", "r", {"n": 1})
carrier: dict[str, str] = {}
omnitrace.inject(carrier)
omnitrace.inject(carrier, "r")
context: SpanContext | None = omnitrace.extract(carrier, request_id="r")
with span("parent", parent=context) as open_span:
    inside: SpanContext | None = open_span.context
    assert inside is not None
    described: tuple[str, str, bool, str] = describe(inside)
numbers: list[int] = [*generator(2), Service().method(), *asyncio.run(main())]
words: str = function(1)
safe: bool = omnitrace.flush(timeout=1.0)
omnitrace.shutdown(1)
books = omnitrace.stats()
left: int = books["created"] - sum(books["dropped"].values())
why: str | None = books["last_error"]
assert (numbers, words, safe, left, why) == ([0, 1, 1, 0], "1", False, 0, None)
assert omnitrace.__version__ and len(described[0]) == 32
