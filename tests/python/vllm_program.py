"""What programs in these tests begin with that go through `omnitrace.vllm`'s stages: stand-ins
for vLLM's own objects."""

from __future__ import annotations

import json
import re
from typing import Any

from program import Program, Result

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

STANDINS = """\
import asyncio, json
from types import SimpleNamespace as Thing
from omnitrace.vllm import _api, _carrier, _engine
from omnitrace.vllm._api import Api
from omnitrace.vllm._engine import Engine

def chat(**members):
    return Thing(messages=[{"role": "user", "content": "secret"}], model="tiny", **members)

def raw(request_id, **headers):
    return Thing(headers={"x-request-id": request_id, **headers})

def of_engine(external, before="", **members):
    # As EngineCoreRequest and Request have it, with an id of the engine's own.
    return Thing(**{"request_id": f"{before}{external}-1a2b3c4d", "external_req_id": external,
                    "trace_headers": None, "kv_transfer_params": None, **members})

def arriving(external, **members):
    # As the API process has sent it.
    return of_engine(external, **{"trace_headers": {"omnitrace": "1"}, **members})

def state(external, prompt=7, cached=None, before=""):
    # As RequestState has it.
    return Thing(request_id=f"{before}{external}-1a2b3c4d", external_req_id=external,
                 prompt_len=prompt, num_cached_tokens=cached)

def statistics(*tokens, preemptions=0):
    return Thing(finished_requests=[Thing(
        num_generation_tokens=n, e2e_latency=2.0, queued_time=0.25, prefill_time=0.5,
        decode_time=1.0, inference_time=1.5, num_preemptions=preemptions) for n in tokens])

def step(*new, running=()):
    # As SchedulerOutput has it.
    return Thing(scheduled_new_reqs=[Thing(req_id=each) for each in new],
                 num_scheduled_tokens=dict.fromkeys((*new, *running), 4),
                 total_num_scheduled_tokens=4 * (len(new) + len(running)))

def scheduler(*groups, **parallel):
    # As Scheduler has it: tokens and bytes of a block in a layer, layers.
    return Thing(vllm_config=Thing(parallel_config=Thing(**parallel)), kv_cache_config=Thing(kv_cache_groups=[
        Thing(kv_cache_spec=Thing(block_size=tokens, page_size_bytes=size),
              layer_names=[""] * layers) for tokens, size, layers in groups]))

def made(*request_ids):
    # As EngineCoreOutputs has it.
    return Thing(outputs=[Thing(request_id=each, trace_headers=None) for each in request_ids])

class ErrorResponse:
    def __init__(self, kind):
        self.error = Thing(type=kind, message="secret")
"""
LINE = re.compile(r"<<<Action: ([^;]+); [^;]+; RequestID:chatcmpl-(\S+); Role:\S+(?: (\{.*\}))?$")


def run(
    program: Program, code: str, *args: str, before: str = "", **variables: str | None
) -> Result:
    """Runs stages; nothing is said through `logging`, and no text of a user's is recorded."""
    result = program.run(
        code, *args, before=STANDINS + before, **{"OMNITRACE_LEGACY_LOG": "always", **variables}
    )
    assert result.messages == []
    assert "secret" not in "".join(result.lines)
    return result


def recorded(result: Result) -> list[tuple[str, str, dict[str, Any]]]:
    """What was recorded, in order: action, request and attributes."""
    found = [match.groups() for line in result.lines if (match := LINE.search(line))]
    return [(name, of, json.loads(more or "{}").get("attributes", {})) for name, of, more in found]


def actions(result: Result) -> list[tuple[str, str]]:
    """What was recorded, in order: action and request."""
    return [(name, of) for name, of, _ in recorded(result)]
