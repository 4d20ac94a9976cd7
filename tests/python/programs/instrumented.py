"""A FastAPI service and an httpx client, instrumented by libraries that know nothing of
omnitrace; the argument says whose TracerProvider records them.

Says the service's port. Nothing below the choice of the provider differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator

import fastapi
import httpx
import uvicorn
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

if sys.argv[1] == "omnitrace":
    from omnitrace.opentelemetry import TracerProvider

    trace.set_tracer_provider(TracerProvider())
else:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = SdkTracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

HTTPXClientInstrumentor().instrument()
tracer = trace.get_tracer("shop", "1.0")
app = fastapi.FastAPI()


@app.get("/items/{number}")
async def item(number: int) -> dict[str, int]:
    with tracer.start_as_current_span("look up", attributes={"number": number}) as span:
        await asyncio.sleep(0.001)
        span.add_event("found", {"shelf": number // 2})
    return {"number": number}


@app.post("/orders")
def order(items: list[int]) -> dict[str, int]:
    """Runs in a thread of the service's pool."""
    with tracer.start_as_current_span("store", kind=trace.SpanKind.CLIENT):
        return {"items": len(items)}


@app.get("/refused")
async def refused() -> None:
    raise fastapi.HTTPException(503, "no room")


@app.get("/broken")
async def broken() -> None:
    raise RuntimeError("not meant to happen")


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        for part in "abc":
            with tracer.start_as_current_span(f"part {part}"):
                yield part

    return StreamingResponse(parts())


@app.get("/chain/{depth}")
async def chain(depth: int, request: fastapi.Request) -> int:
    if not depth:
        return 0
    async with httpx.AsyncClient() as client:
        answer = await client.get(str(request.url.replace(path=f"/chain/{depth - 1}")))
        return int(answer.json()) + 1


FastAPIInstrumentor.instrument_app(app)


async def ask(url: str) -> None:
    with tracer.start_as_current_span("client") as span:
        async with httpx.AsyncClient(base_url=url) as client:
            await asyncio.gather(*(client.get(f"/items/{n}") for n in range(3)))
            await client.post("/orders", json=[1, 2])
            await client.get("/refused")
            await client.get("/broken")
            await client.get("/nowhere")
            await client.get("/items/x", params={"q": "1"})
            async with client.stream("GET", "/stream") as answer:
                span.set_attribute("streamed", (await answer.aread()).decode())
            await client.get("/chain/2")
        span.set_status(trace.StatusCode.OK)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        os.write(1, f"{json.dumps(port)}\n".encode())
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{port}"
        asyncio.run(ask(url))
        with contextlib.suppress(httpx.ConnectError), httpx.Client() as client:
            client.get(f"{url}/items/7").raise_for_status()
            client.get("http://127.0.0.1:1/nobody")
        server.should_exit = True
        thread.join()


main()
