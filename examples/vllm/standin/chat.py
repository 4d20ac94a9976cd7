"""OpenAI's chat completions: the request, and the JSON of the answers."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

TOKEN = re.compile(r"\w+|[^\w\s]")
"""What counts as one token of a prompt."""

TEMPLATE_TOKENS = 4
"""Tokens that the chat template adds per message."""


class Message(BaseModel):
    """One message of the conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Return the message's text; other parts (images, …) count for nothing here."""
        if isinstance(self.content, list):
            return " ".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """``stream_options``."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``; members not listed are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    n: Annotated[int, Field(ge=1, le=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    kv_transfer_params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options need stream=true")
        if self.limit is not None and self.min_tokens > self.limit:
            raise ValueError("min_tokens must not exceed max_tokens")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens the answer may have, if the client says so."""
        return self.max_completion_tokens or self.max_tokens

    def count_tokens(self) -> int:
        """Tokenise the prompt and return its length."""
        words = sum(len(TOKEN.findall(message.text())) for message in self.messages)
        return words + TEMPLATE_TOKENS * len(self.messages)


class Answer:
    """Builds the JSON of one answer, whole or in chunks."""

    def __init__(self, request_id: str, model: str, prompt_tokens: int) -> None:
        """Name the answer after the request's external id."""
        self._head = {"id": request_id, "created": int(time.time()), "model": model}
        self._prompt_tokens = prompt_tokens
        self._tokens: list[str] = []

    @property
    def output_tokens(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    def add(self, token: str) -> None:
        """Take one more token."""
        self._tokens.append(token)

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """Return one chunk of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self) -> dict[str, Any]:
        """Return the last chunk of a stream whose client wants to know the usage."""
        return self._head | {
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": self._usage(),
        }

    def whole(
        self, finish_reason: str, kv_transfer_params: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Return the answer to a request without ``stream``."""
        message = {"role": "assistant", "content": "".join(self._tokens)}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
            "kv_transfer_params": kv_transfer_params,
        }

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self._prompt_tokens + self.output_tokens,
        }


def error(status: int, kind: str, message: str) -> dict[str, Any]:
    """Return the JSON of an error, in vLLM's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
