"""Engine steps of `omnitrace.vllm`. The scheduler here is made up, with vLLM's names; `make
test-vllm` has the real one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from program import NODE, Program, Result, command
from sink import Sink, Span, content

SCHEDULER = """\
class Pool:
    num_gpu_blocks = 12
    free = 11

    def get_num_free_blocks(self):
        return self.free


class Manager:
    def __init__(self):
        self.block_pool = Pool()

    @property
    def usage(self):
        return 1 - self.block_pool.free / 12


class Request:
    def __init__(self, request_id, num_computed_tokens=0):
        self.request_id = self.req_id = request_id
        self.num_computed_tokens = num_computed_tokens


class Cached:
    def __init__(self, num_computed_tokens):
        self.num_computed_tokens = num_computed_tokens


class Output:
    def __init__(self, new, cached, tokens):
        self.scheduled_new_reqs = new
        self.scheduled_cached_reqs = cached
        self.num_scheduled_tokens = tokens
        self.total_num_scheduled_tokens = sum(tokens.values())


class Scheduler:
    lists_cached_requests = False

    def __init__(self):
        self.kv_cache_manager = Manager()
        self.running, self.waiting, self.requests = [], [], {}

    def schedule(self, new=None, old=None):
        '''`new`: prompts' tokens by id. `old`: tokens computed before by id.'''
        new, old = new or {}, old or {}
        self.running = [*new, *old]
        if hasattr(self, "kv_cache_manager"):
            self.kv_cache_manager.block_pool.free -= len(new)
        tokens = {**new, **{request_id: 1 for request_id in old}}
        cached = Cached(list(old.values()))
        if self.lists_cached_requests:
            cached = [Request(*request) for request in old.items()]
        return Output([Request(i) for i in new], cached, tokens)

    def update_from_output(self, scheduler_output, model_runner_output):
        return {}

    def get_request_counts(self):
        return len(self.running), 3
"""

EXECUTOR = """\
class Executor:
    def execute_model(self, scheduler_output, non_block=False):
        return None
"""

WORKER = """\
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class Worker:
    rank = 1

    def __init__(self):
        self.model_runner = GPUModelRunner()

    def execute_model(self, scheduler_output):
        return self.model_runner.execute_model(scheduler_output)
"""

RUNNER = """\
class GPUModelRunner:
    def execute_model(self, scheduler_output):
        self._model_forward()

    def _model_forward(self):
        pass

    def propose_draft_token_ids(self):
        pass
"""

FILES = {
    "core/sched/scheduler.py": SCHEDULER,
    "executor/abstract.py": EXECUTOR,
    "worker/gpu_worker.py": WORKER,
    "worker/gpu_model_runner.py": RUNNER,
}

# `STEP` goes through one step as vLLM's engine does.
BEFORE = """\
import pickle
from omnitrace import vllm
vllm.register()
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.executor.abstract import Executor

scheduler, executor = Scheduler(), Executor()

def step(**scheduled):
    output = scheduler.schedule(**scheduled)
    executor.execute_model(output)
    scheduler.update_from_output(output, None)
    return output
"""

STEPS: dict[str, str | None] = {"OMNITRACE_VLLM_STEPS": "1"}


def run(program: Program, code: str, **variables: str | None) -> Result:
    """Runs a program beside the made-up vLLM."""
    package = program.workplace / "vllm" / "v1"
    for name, text in FILES.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for folder in file.relative_to(program.workplace).parents:
            if folder != Path("."):
                (program.workplace / folder / "__init__.py").touch()
    return program.run(code, before=BEFORE, **{**STEPS, **variables})


def named(spans: list[Span], name: str) -> list[Span]:
    return sorted((s for s in spans if s.name == name), key=lambda span: span.start)


def test_a_step_says_what_was_chosen_what_it_took_and_what_is_left(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        from vllm.v1.worker.gpu_worker import Worker
        extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "old")
        for request_id in ("new", "old"):
            action("Enter decode to generate", request_id)
        output = scheduler.schedule(new={"new": 32}, old={"old": 64})
        executor.execute_model(output)
        message = pickle.dumps(output)

        def worker():
            worker = Worker()
            worker.execute_model(pickle.loads(message))
            worker.model_runner.propose_draft_token_ids()
            # As a data-parallel engine without requests does.
            worker.model_runner._model_forward()
            worker.model_runner.propose_draft_token_ids()
            flush()

        join(fork(worker))
        scheduler.update_from_output(output, None)
        for request_id in ("new", "old"):
            action("Finish decode pickle and start response", request_id)
        say(os.getpid())
        """,
        ROLE="decode",
    )
    (pid,) = result.said
    (step,) = named(sink.spans, "engine step")
    start, end = step.events
    assert (step.kind, step.parent_id, step.status, step.pid) == ("INTERNAL", "", "UNSET", pid)
    assert step.start <= start.time <= end.time <= step.end
    assert [event.name for event in step.events] == ["start execute_model", "done execute_model"]
    step_id = f"{pid}-{start.time // 10**9}.{start.time % 10**9:09}"
    assert step.attributes == {
        "omnitrace.engine.pid": pid,
        "omnitrace.engine.step_id": step_id,
        "omnitrace.engine.step": 1,
        "omnitrace.engine.batch_size": 2,
        "omnitrace.engine.scheduled_tokens": 33,
        "omnitrace.engine.total_tokens": 97,
        "omnitrace.engine.running": 2,
        "omnitrace.engine.waiting": 3,
        "omnitrace.engine.kv.usage": pytest.approx(2 / 12),
        "omnitrace.engine.kv.blocks": 12,
        "omnitrace.engine.kv.free_blocks_at_start": 11,
        "omnitrace.engine.kv.free_blocks_at_end": 10,
        "omnitrace.engine.kv.blocks_used": 1,
    }

    # The links lead to the requests' own spans.
    decodes = {s.attributes["gen_ai.request.id"]: s for s in named(sink.spans, "Decode")}
    assert [
        (link.trace_id, link.span_id, link.attributes, link.dropped) for link in step.links
    ] == [
        (
            decodes[request_id].trace_id,
            decodes[request_id].span_id,
            {"gen_ai.request.id": request_id, "omnitrace.engine.scheduled_tokens": tokens},
            0,
        )
        for request_id, tokens in (("new", 32), ("old", 1))
    ]
    assert decodes["old"].trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"

    models = [s for s in sink.spans if s.name.endswith(" model")]
    models.sort(key=lambda span: span.start)
    assert [model.name for model in models] == ["main model", "mtp model"]
    for model in models:
        assert (model.trace_id, model.parent_id) == (step.trace_id, step.span_id)
        assert (model.remote, model.pid == pid) == (True, False)
        assert model.attributes == {"omnitrace.engine.step_id": step_id, "omnitrace.rank": 1}
        assert start.time <= model.start <= model.end <= end.time
    assert models[0].end <= models[1].start


def test_steps_that_overlap_are_told_apart_by_their_outputs(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        outputs = [scheduler.schedule(new={"first": 8})]
        executor.execute_model(outputs[0])
        outputs.append(scheduler.schedule(new={"second": 5}))
        executor.execute_model(outputs[1])
        for output in outputs:
            scheduler.update_from_output(output, None)
        """,
    )
    steps = named(sink.spans, "engine step")
    assert [
        (
            step.attributes["omnitrace.engine.step"],
            step.attributes["omnitrace.engine.scheduled_tokens"],
            [link.attributes["gen_ai.request.id"] for link in step.links],
        )
        for step in steps
    ] == [(1, 8, ["first"]), (2, 5, ["second"])]
    # The second was chosen while the model ran for the first.
    times = [event.time for step in steps for event in step.events]
    first_start, first_end, second_start, second_end = times
    assert [first_start, steps[1].start, second_start, first_end, steps[0].end, second_end] == (
        sorted([*times, steps[1].start, steps[0].end])
    )


@pytest.mark.parametrize(
    ("ratio", "recorded"),
    [
        ("1", [1, 3, 4, 5, 6, 7, 8, 9]),
        ("0.25", [5, 9]),
        (" 0.5 ", [3, 5, 7, 9]),
        ("0", []),
        ("", []),
        (None, []),
    ],
)
def test_the_same_part_of_the_steps_with_tokens_is_recorded_each_time(
    program: Program, sink: Sink, ratio: str | None, recorded: list[int]
) -> None:
    result = run(
        program,
        """
        for n in range(9):
            # The second has nothing to compute.
            step(new={} if n == 1 else {f"r{n}": n + 1})
        hooks = Scheduler.update_from_output.__omnitrace_hooks__
        say(sum("/steps/" in hook for hook in hooks))
        """,
        OMNITRACE_VLLM_STEPS=ratio,
    )
    steps = named(sink.spans, "engine step")
    assert [step.attributes["omnitrace.engine.step"] for step in steps] == recorded
    assert result.said == [2 if recorded else 0]


@pytest.mark.parametrize("wrong", ["many", "1.5", "-0.1", "nan"])
def test_a_wrong_ratio_is_said_once_and_no_steps_are_recorded(
    program: Program, sink: Sink, wrong: str
) -> None:
    result = run(
        program,
        """
        step(new={"r": 1})
        """,
        OMNITRACE_VLLM_STEPS=wrong,
    )
    assert named(sink.spans, "engine step") == []
    assert [said for said in result.messages if "OMNITRACE_VLLM_STEPS" in said[1]] == [
        (
            "WARNING",
            f'OMNITRACE_VLLM_STEPS="{wrong}" is not a ratio from 0 to 1: '
            "no engine steps are recorded",
        )
    ]


def test_what_this_scheduler_does_not_have_is_left_out(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        del scheduler.kv_cache_manager, Scheduler.get_request_counts
        scheduler.lists_cached_requests = True
        scheduler.waiting.append("w")
        # Nor is its executor known.
        output = scheduler.schedule(old={"a": 7, "b": 9})
        scheduler.update_from_output(output, None)
        """,
    )
    assert not any("failed" in text for _, text in result.messages)
    (step,) = named(sink.spans, "engine step")
    own = {k.removeprefix("omnitrace.engine."): v for k, v in step.attributes.items()}
    assert sorted(own) == [
        "batch_size",
        "pid",
        "running",
        "scheduled_tokens",
        "step",
        "step_id",
        "total_tokens",
        "waiting",
    ]
    assert (own["total_tokens"], own["running"], own["waiting"]) == (18, 2, 1)


def test_a_trace_that_the_sampler_leaves_out_is_left_out(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        output = step(new={"r": 1})
        flush()
        say([hasattr(output, "omnitrace_step"), stats()["created"], stats()["unsampled"]])
        """,
        OTEL_TRACES_SAMPLER="always_off",
    )
    assert (result.said, sink.spans) == ([[False, 0, 1]], [])


# What the old tools read of the lines.
OLD = re.compile(r"profile(?:_mainmodel|_mtpmodel)?: (?P<fields>.*)")

ONE_STEP = """
    from vllm.v1.worker.gpu_worker import Worker
    worker = Worker()
    for n in range(3):
        output = scheduler.schedule(new={f"n{n}": 32}, old={"chatcmpl-old": 64})
        executor.execute_model(output)
        worker.execute_model(output)
        worker.model_runner.propose_draft_token_ids()
        scheduler.update_from_output(output, None)
    with span("engine step", attributes={"of": "somebody else"}):
        pass
"""


def old_lines(result: Result) -> dict[str, list[list[str]]]:
    """The fields of the lines that old tools read, by marker."""
    found: dict[str, list[list[str]]] = {}
    for line in result.lines:
        if match := OLD.search(line):
            found.setdefault(match[0].partition(":")[0], []).append(match["fields"].split("|"))
    return found


@pytest.mark.parametrize("role", ["prefill", "decode", None])
@pytest.mark.parametrize("mode", ["fallback", "always"])
def test_the_legacy_log_has_the_old_lines_and_gives_the_same_spans_again(
    program: Program, sink: Sink, archive: Sink, role: str | None, mode: str
) -> None:
    if mode == "fallback":
        sink.script = ["503"]
    result = run(program, ONE_STEP, ROLE=role, OMNITRACE_LEGACY_LOG=mode)
    live = sink.spans if mode == "always" else sink.refused
    spans = [span for span in live if not span.name.startswith("Start")]
    lines = old_lines(result)
    steps, old_role = lines["profile"], role or "decode"
    assert [len(fields) for fields in steps] == [18, 18, 18]
    for n, (fields, step) in enumerate(zip(steps, named(spans, "engine step"), strict=False)):
        listed = [f"['chatcmpl-n{n}', 'chatcmpl-old']", "[32, 1]"]
        assert fields[0] == f"{old_role}_{NODE}"
        assert fields[1:3] == [f"{t // 10**9}.{t % 10**9:09}" for t in (step.start, step.end)]
        assert fields[4:9] == ["2", "33" if role == "prefill" else "97", "3"] + (
            ["[]", "[]"] if role == "decode" else listed
        )
        assert fields[13:17] == ["12", str(11 - n), str(10 - n), "1"]
        assert fields[17] == step.attributes["omnitrace.engine.step_id"]
    models = {name: rows for name, rows in lines.items() if name != "profile"}
    if role == "prefill":
        assert models == {}
    else:
        assert list(models) == ["profile_mainmodel", "profile_mtpmodel"]
        for rows in models.values():
            # Joined by the last field.
            assert [row[-1] for row in rows] == [fields[-1] for fields in steps]
            assert [(len(row), row[0]) for row in rows] == [(5, f"{old_role}_{NODE}")] * 3

    more = ["--all"] if mode == "always" else []
    command("replay", result.directory, "--endpoint", archive.url, *more)
    assert content([s for s in archive.spans if not s.name.startswith("Start")]) == content(spans)
    assert len(spans) == 10


def test_lines_of_the_old_system_become_steps_too(
    program: Program, sink: Sink, archive: Sink
) -> None:
    program.directory.mkdir()
    times = "1735000000.1|1735000000.2500002|150.0002|2"
    rest = "1735000000.11|1735000000.24|130.0|0.25|12|11|8|3|77-1735000000.11"
    (program.directory / "old.log").write_text(
        f"2024-12-24 00:26:40,250 - profile: prefill_10.0.0.2|{times}|33|1|"
        f"['chatcmpl-a', 'chatcmpl-b']|[32, 1]|{rest}\n"
        f"2024-12-24 00:26:41,250 - profile: decode_10.0.0.3|{times}|97|1|[]|[]|{rest}\n"
        "2024-12-24 00:26:41,250 - profile_mainmodel: decode_10.0.0.3|1735000000.12|"
        "1735000000.2|80.0|77-1735000000.11\n"
    )
    command("replay", program.directory, "--endpoint", archive.url)
    found: dict[tuple[str, Any], Span] = {
        (span.name, span.resource["service.name"]): span for span in archive.spans
    }
    prefill = found["engine step", "vllm-prefill"]
    decode = found["engine step", "vllm-decode"]
    main = found["main model", "vllm-decode"]
    assert len(archive.spans) == 3
    assert (decode.start, decode.end) == (1735000000_100000000, 1735000000_250000200)
    assert [event.time for event in decode.events] == [1735000000_110000000, 1735000000_240000000]
    assert (main.trace_id, main.parent_id) == (decode.trace_id, decode.span_id)
    assert prefill.trace_id != decode.trace_id and decode.links == []
    assert [link.attributes for link in prefill.links] == [
        {"gen_ai.request.id": "a", "omnitrace.engine.scheduled_tokens": 32},
        {"gen_ai.request.id": "b", "omnitrace.engine.scheduled_tokens": 1},
    ]
    assert decode.attributes == {
        "omnitrace.engine.step_id": "77-1735000000.110000000",
        "omnitrace.engine.pid": 77,
        "omnitrace.engine.running": 2,
        "omnitrace.engine.total_tokens": 97,
        "omnitrace.engine.waiting": 1,
        "omnitrace.engine.kv.blocks": 12,
        "omnitrace.engine.kv.free_blocks_at_start": 11,
        "omnitrace.engine.kv.free_blocks_at_end": 8,
        "omnitrace.engine.kv.blocks_used": 3,
        "omnitrace.engine.kv.usage": 0.25,
    }
