"""The API process: the HTTP server, and what it records of each request."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

import omnitrace

from . import actions, books
from .chat import Answer, ChatRequest, error
from .engine_client import EngineClient, EngineError
from .messages import AddRequest, Output
from .options import Options

TOKENISE_SECONDS_PER_TOKEN = 5e-6

GRACE_SECONDS = 5
"""How long running requests may take to finish once the node is told to stop."""


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT."""
    uvicorn.run(
        build(options),
        host=options.host,
        port=options.port,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def build(options: Options) -> FastAPI:
    """Make the application; its engine process lives as long as it."""
    engine = EngineClient(options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()
        books.close(options, "api")

    app = FastAPI(title="vLLM stand-in", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def bad_request(_: Request, reason: RequestValidationError) -> Response:
        message = "; ".join(
            f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}".lstrip(": ")
            for problem in reason.errors()
        )
        return _error(400, "BadRequestError", message)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if engine.alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {
            "id": options.model,
            "object": "model",
            "owned_by": "omnitrace",
            "max_model_len": options.max_model_len,
        }
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        if body.model != options.model:
            message = f"the model {body.model!r} does not exist"
            return _error(404, "NotFoundError", message)
        completion = Completion(options, engine, body, request)
        return await completion.respond()

    return app


class Completion:
    """One chat completion, from its headers to its last byte."""

    def __init__(
        self, options: Options, engine: EngineClient, body: ChatRequest, http: Request
    ) -> None:
        """Record the request's arrival."""
        self._options = options
        self._engine = engine
        self._body = body
        self._http = http
        base = http.headers.get("x-request-id") or str(uuid.uuid4())
        self._id = f"chatcmpl-{base}"
        omnitrace.extract(http.headers, self._id)
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": body.model,
        }
        if body.limit is not None:
            attributes["gen_ai.request.max_tokens"] = body.limit
        omnitrace.action(actions.RECEIVED[options.role], self._id, attributes)
        self._prompt_tokens = 0

    async def respond(self) -> Response:
        """Tokenise, generate and answer."""
        self._prompt_tokens = self._body.count_tokens()
        await asyncio.sleep(self._prompt_tokens * TOKENISE_SECONDS_PER_TOKEN)
        if self._prompt_tokens + (self._body.limit or 1) > self._options.max_model_len:
            message = (
                f"{self._prompt_tokens} prompt tokens and the answer exceed the "
                f"model's maximum of {self._options.max_model_len}"
            )
            return _error(400, "BadRequestError", message)

        answer = Answer(self._id, self._options.model, self._prompt_tokens)
        if self._body.stream:
            return StreamingResponse(self._stream(answer), media_type="text/event-stream")
        try:
            whole = await self._unless_disconnected(answer)
        except EngineError as reason:
            return _error(500, "InternalServerError", str(reason))
        # A client that is gone does not see the status; 499 is nginx's word for it.
        return JSONResponse(whole) if whole else Response(status_code=499)

    async def _unless_disconnected(self, answer: Answer) -> dict[str, Any] | None:
        """Generate the whole answer; None if the client leaves before it is there."""
        # The body has been read, so the one message left is the disconnect.
        leaving = asyncio.ensure_future(self._http.receive())
        whole = asyncio.ensure_future(self._whole(answer))
        try:
            await asyncio.wait({leaving, whole}, return_when=asyncio.FIRST_COMPLETED)
            return await whole if whole.done() else None
        finally:
            leaving.cancel()
            whole.cancel()

    async def _whole(self, answer: Answer) -> dict[str, Any]:
        async with aclosing(self._outputs()) as outputs:
            async for output in outputs:
                answer.add(output.token)
        self._finish(answer, output.finish_reason)
        return answer.whole(output.finish_reason or "", output.kv_transfer_params)

    async def _stream(self, answer: Answer) -> AsyncIterator[str]:
        """Yield the answer's events: a role, the tokens, an end, [DONE]."""
        tokens = iter(actions.DECODE_TOKENS if self._options.role == "decode" else ())
        try:
            async with aclosing(self._outputs()) as outputs:
                async for output in outputs:
                    if output.first:
                        yield _event(answer.chunk({"role": "assistant", "content": ""}))
                    answer.add(output.token)
                    if name := next(tokens, None):
                        omnitrace.action(name, self._id)
                    yield _event(answer.chunk({"content": output.token}))
        except EngineError as reason:
            yield _event(error(500, "InternalServerError", str(reason)))
        else:
            yield _event(answer.chunk({}, output.finish_reason))
            if self._body.stream_options and self._body.stream_options.include_usage:
                yield _event(answer.usage_chunk())
            self._finish(answer, output.finish_reason)
        yield "data: [DONE]\n\n"

    async def _outputs(self) -> AsyncGenerator[Output]:
        """Run the request in the engine; the trace goes there and back with it."""
        carrier: dict[str, str] = {}
        omnitrace.inject(carrier, self._id)
        room = self._options.max_model_len - self._prompt_tokens
        request = AddRequest(
            request_id=f"{self._id}-{uuid.uuid4().hex[:8]}",
            prompt_tokens=self._prompt_tokens,
            max_tokens=self._body.limit or min(self._options.answer_tokens, room),
            finish_reason="length" if self._body.limit else "stop",
            kv_transfer_params=self._body.kv_transfer_params,
            carrier=carrier,
        )
        async with aclosing(self._engine.generate(request)) as outputs:
            async for output in outputs:
                if output.first:
                    omnitrace.extract(output.carrier, self._id)
                yield output

    def _finish(self, answer: Answer, finish_reason: str | None) -> None:
        omnitrace.action(
            actions.FINISHED[self._options.role],
            self._id,
            {
                "gen_ai.usage.input_tokens": self._prompt_tokens,
                "gen_ai.usage.output_tokens": answer.output_tokens,
                "gen_ai.response.finish_reasons": json.dumps([finish_reason]),
            },
        )


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse(error(status, kind, message), status)
