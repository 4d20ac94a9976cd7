"""Tokens of a streamed answer: counted where they are, and nowhere else."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping

import pytest
from nginx_peers import Answer, Collector, StartUpstream, reply, stream
from nginx_server import Nginx, get, tracing
from nginx_trees import Tree, call, root, trees

TOKENS = ["Proxy got first token", "Proxy got second token", "Proxy got third token"]


def chunk(content: str | None = None, **more: object) -> bytes:
    delta = {} if content is None else {"content": content}
    data = {"id": "chatcmpl-x", "choices": [{"index": 0, "delta": delta}], **more}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"
ANSWER = ROLE + b": ping\n\n" + b"".join(map(chunk, ["A", " b", "\n", "c" * 3000])) + USAGE + DONE


Answered = Callable[..., tuple[bytes, list[Tree]]]


@pytest.fixture
def answered(nginx: Nginx, collector: Collector, upstream: StartUpstream) -> Answered:
    """Sends one request that is answered thus; returns the body and the trees."""

    def run(
        answer: Answer,
        directives: str = "proxy_buffering off;",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, list[Tree]]:
        server = upstream(answer)
        nginx.start(
            f"""{tracing(collector)} gzip_types text/event-stream; gzip_proxied any;
            server {{
                listen 127.0.0.1:{nginx.port};
                location / {{
                    proxy_pass http://{server.address}; proxy_http_version 1.1; {directives}
                }}
            }}"""
        )
        body = get(nginx, headers=headers).body
        nginx.stop()
        return body, trees(collector.spans, {**nginx.names, server.port: "<upstream>"})

    return run


def streamed(
    count: int, usage: dict[str, int] | None = None, more: Mapping[str, object] | None = None
) -> list[Tree]:
    """The tree of a request whose answer had so many tokens."""
    usage = {f"gen_ai.usage.{key}_tokens": value for key, value in (usage or {}).items()}
    found = {"omnitrace.tokens.count": count, **usage, **(more or {})}
    return [root("/", "/", events=TOKENS[:count], children=[call()], more=found)]


@pytest.mark.parametrize("size", [1, 7, 100, len(ANSWER)])
def test_tokens_are_found_however_the_bytes_are_split(size: int, answered: Answered) -> None:
    pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    assert answered(stream(pieces)) == (ANSWER, streamed(4, {"input": 7, "output": 4}))


def test_lines_may_end_as_the_standard_allows(answered: Answered) -> None:
    body = ANSWER.replace(b"\n", b"\r\n")
    assert answered(stream([body])) == (body, streamed(4, {"input": 7, "output": 4}))


def events(*named: tuple[str, object]) -> bytes:
    return b"".join(f"event: {n}\ndata: {json.dumps(data)}\n\n".encode() for n, data in named)


TEXT = {"type": "output_text", "text": "where does"}
ITEM = {"type": "message", "content": [TEXT]}
COUNTS = {"input_tokens": 21, "output_tokens": 2}
RESPONSE = events(
    ("response.created", {"response": {"output": [], "text": None, "usage": None}}),
    ("response.output_item.added", {"item": {**ITEM, "content": []}}),
    ("response.content_part.added", {"part": {**TEXT, "text": ""}}),
    ("response.output_text.delta", {"delta": "where", "sequence_number": 4}),
    ("response.output_text.delta", {"delta": " does", "sequence_number": 5}),
    # All that follows says it once more.
    ("response.output_text.done", {"text": TEXT["text"]}),
    ("response.content_part.done", {"part": TEXT}),
    ("response.output_item.done", {"item": ITEM}),
    ("response.completed", {"response": {"output": [ITEM], "usage": COUNTS}}),
)
MESSAGE = events(
    ("message_start", {"message": {"content": [], "usage": {**COUNTS, "output_tokens": 0}}}),
    ("content_block_start", {"content_block": {"type": "text", "text": ""}}),
    ("content_block_delta", {"delta": {"type": "thinking_delta", "thinking": "where"}}),
    ("content_block_delta", {"delta": {"type": "text_delta", "text": " does"}}),
    ("message_delta", {"delta": {"stop_reason": "max_tokens"}, "usage": COUNTS}),
    ("message_stop", {"type": "message_stop"}),
)


@pytest.mark.parametrize("body", [RESPONSE, MESSAGE], ids=["response", "message"])
@pytest.mark.parametrize("size", [1, 10_000])
def test_tokens_of_responses_and_of_messages_are_found(
    body: bytes, size: int, answered: Answered
) -> None:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    # In one piece they are written at once.
    assert answered(stream(pieces)) == (body, streamed(2, {"input": 21, "output": 2}))


def test_an_answer_without_content_has_no_tokens(answered: Answered) -> None:
    body = ROLE + b": only a comment\n\n" + DONE
    assert answered(stream([body])) == (body, streamed(0))


def test_tokens_are_seen_before_nginx_compresses_them(answered: Answered) -> None:
    pieces = [ANSWER[:500], ANSWER[500:]]
    body, trees = answered(
        stream(pieces),
        "proxy_buffering off; gzip on; gzip_min_length 1;",
        {"Accept-Encoding": "gzip"},
    )
    assert (gzip.decompress(body), trees) == (ANSWER, streamed(4, {"input": 7, "output": 4}))


def test_what_the_upstream_has_compressed_is_noted_and_left_alone(answered: Answered) -> None:
    body = gzip.compress(ANSWER)
    headers = {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}
    noted = {"omnitrace.tokens.unreadable": "gzip"}
    expected = [root("/", "/", children=[call()], more=noted)]
    assert answered(reply(200, body, headers)) == (body, expected)


@pytest.mark.parametrize(
    ("mode", "content_type", "found"),
    [
        ("auto", "text/event-stream; charset=utf-8", True),
        ("auto", "TEXT/EVENT-STREAM", True),
        ("auto", "text/event-streams", False),
        ("auto", "text/plain", False),
        ("on", "text/plain", True),
        ("off", "text/event-stream", False),
    ],
)
def test_the_tokens_directive(
    mode: str, content_type: str, found: bool, answered: Answered
) -> None:
    body, trees = answered(stream([chunk("A"), DONE], content_type), f"omnitrace_tokens {mode};")
    assert body == chunk("A") + DONE
    assert trees == (streamed(1) if found else [root("/", "/", children=[call()])])


def test_tokens_that_nginx_collects_are_marked_as_delayed(answered: Answered) -> None:
    body = chunk("A") + chunk("B") + DONE
    answer = reply(200, body, {"Content-Type": "text/event-stream"})
    delayed = streamed(2, more={"omnitrace.tokens.delayed": True})
    assert answered(answer, "proxy_buffering on;") == (body, delayed)


def test_an_answer_that_is_no_stream_has_its_usage(answered: Answered) -> None:
    whole = {
        "choices": [{"message": {"role": "assistant", "content": "data: {}\n\n"}}],
        "usage": {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5},
    }
    body = json.dumps(whole, indent=1).encode()
    usage = {"gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 5}
    expected = [root("/", "/", children=[call()], more=usage)]
    assert answered(reply(200, body, {"Content-Type": "application/json"})) == (body, expected)


def test_an_error_in_the_middle_of_a_stream_is_noted(answered: Answered) -> None:
    error = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
    body = chunk("A") + error + DONE
    expected = streamed(1, more={"omnitrace.tokens.error": True})
    assert answered(stream([body])) == (body, expected)


def test_the_body_of_an_error_has_no_tokens(answered: Answered) -> None:
    body = b'{"error":{"message":"\\"content\\":\\"x\\"","code":400}}'
    answer = reply(400, body, {"Content-Type": "application/json"})
    assert answered(answer) == (body, [root("/", "/", 400, children=[call(400)])])


def test_an_answer_that_nginx_keeps_in_a_file_arrives_whole(answered: Answered) -> None:
    body = ANSWER * 200
    directives = "proxy_buffers 2 4k; proxy_buffer_size 4k; proxy_busy_buffers_size 4k;"
    sent, [tree] = answered(reply(200, body, {"Content-Type": "text/event-stream"}), directives)
    assert sent == body
    assert tree[3]["omnitrace.tokens.count"] >= 4
