"""Steps of a real vLLM's engine are spans of the engine's own trace, and old lines in the log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pair import Load, Vllm, unfinished
from program import command
from sink import Sink, Span, content
from stack import Stack

TOKENS = 8
DRAFTS = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
WINDOW = 10 * 10**9


@pytest.fixture
def sinks() -> Iterator[list[Sink]]:
    """A Collector, and one that logs are replayed to."""
    opened = [Sink(), Sink()]
    yield opened
    for each in opened:
        each.close()


def named(spans: list[Span], name: str) -> list[Span]:
    return sorted((s for s in spans if s.name == name), key=lambda span: span.start)


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "speculative"])
def test_each_step_is_a_span_with_its_models_and_links_to_its_requests(
    tmp_path: Path, stacks: list[Stack], sinks: list[Sink], drafts: bool
) -> None:
    sink, archive = sinks
    stack = Vllm(tmp_path, collector=sink.url, legacy_log="always", workers={"serve"})
    stacks.append(stack)
    options = ["--speculative-config", json.dumps(DRAFTS)] if drafts else []
    stack.start_node("serve", stack.decode, options, {"OMNITRACE_VLLM_STEPS": "1"})
    stack.wait_for_node("serve", stack.decode)
    answers = Load(stack.decode, 2, at_once=1, tokens=TOKENS).run()
    assert unfinished(answers) == []
    asked = {said.request_id for said in answers}
    sink.wait(lambda s: len(named(s.spans, "Decode")) == 2, 60)

    def is_whole(of: Sink) -> bool:
        steps = {span.span_id for span in named(of.spans, "engine step")}
        mains = {span.parent_id for span in named(of.spans, "main model")}
        linked = {link.attributes["gen_ai.request.id"] for s in of.spans for link in s.links}
        return steps == mains and linked == asked

    sink.wait(is_whole, 60)
    assert stack.messages("serve") == []
    stack.stop("serve")

    steps = named(sink.spans, "engine step")
    decodes = {(s.trace_id, s.span_id): s for s in named(sink.spans, "Decode")}
    of_request: dict[str, list[int]] = {}
    for step in steps:
        own: dict[str, Any] = {
            key.removeprefix("omnitrace.engine."): value for key, value in step.attributes.items()
        }
        start, end = step.events
        assert step.start <= start.time <= end.time <= step.end
        # A trace holds ten seconds of one engine.
        same = [s for s in steps if s.events[0].time // WINDOW == start.time // WINDOW]
        assert {s.trace_id for s in same} == {step.trace_id}
        assert own["step_id"] == f"{step.pid}-{start.time // 10**9}.{start.time % 10**9:09}"
        assert (own["pid"], own["rank"], own["batch_size"]) == (step.pid, 0, 1)
        assert own["total_tokens"] >= own["scheduled_tokens"] > 0
        assert (own["waiting"], 0 <= own["kv.usage"] < 1) == (0, True)
        free = own["kv.free_blocks_at_start"] - own["kv.free_blocks_at_end"]
        assert (own["kv.blocks_used"], own["kv.blocks"] > 10) == (free, True)
        (link,) = step.links
        decode = decodes[link.trace_id, link.span_id]
        request_id = str(link.attributes["gen_ai.request.id"])
        assert decode.attributes["gen_ai.request.id"] == request_id
        assert link.attributes["omnitrace.engine.scheduled_tokens"] == own["scheduled_tokens"]
        of_request.setdefault(request_id, []).append(own["scheduled_tokens"])
    numbers = [int(step.attributes["omnitrace.engine.step"]) for step in steps]
    assert numbers == sorted(set(numbers))

    # The first step of a request computes its prompt; each one after it makes a token or more.
    for request_id, tokens in of_request.items():
        (decode,) = [d for d in decodes.values() if d.attributes["gen_ai.request.id"] == request_id]
        assert tokens[0] == decode.attributes["gen_ai.usage.input_tokens"]
        assert drafts or (set(tokens[1:]) == {1} and len(tokens) >= TOKENS)
    begun = named(sink.spans, "Start to send output")
    assert {span.attributes["omnitrace.engine.step"] for span in begun} <= set(numbers)

    by_id = {step.span_id: step for step in steps}
    mains, mtps = named(sink.spans, "main model"), named(sink.spans, "mtp model")
    assert len(mains) == len(steps) and bool(mtps) == drafts
    for model in [*mains, *mtps]:
        step = by_id[model.parent_id]
        assert (model.trace_id, model.remote, model.pid != step.pid) == (step.trace_id, True, True)
        assert model.attributes == {
            "omnitrace.engine.step_id": step.attributes["omnitrace.engine.step_id"],
            "omnitrace.rank": 0,
        }
        assert step.events[0].time <= model.start <= model.end <= step.events[1].time

    lines = [line for log in stack.logs.glob("*.log") for line in log.read_text().splitlines()]
    count = {
        marker: sum(f" {marker}: decode_127.0.0.1|" in line for line in lines)
        for marker in ("profile", "profile_mainmodel", "profile_mtpmodel")
    }
    assert list(count.values()) == [len(steps), len(mains), len(mtps)]
    command("replay", stack.logs, "--endpoint", archive.url, "--all")

    def of_engine(spans: list[Span]) -> list[Span]:
        names = {"engine step", "main model", "mtp model"}
        return [span for span in spans if span.name in names]

    assert content(of_engine(archive.spans)) == content(of_engine(sink.spans))
