"""The actions recorded, named as omnitrace's vocabulary has them (sic). A node that does
both, `serve`, decodes what it has prefilled: its requests are Decode's."""

from __future__ import annotations

from ._roles import DECODE, PREFILL, SERVE


def _by_role(prefill: str, decode: str) -> dict[str, str]:
    return {PREFILL: prefill, DECODE: decode, SERVE: decode}


RECEIVED = _by_role("PD api server get request", "Enter decode to generate")
TOKENIZED = _by_role("Prefill request tokenized", "Decode request tokenized")
SENT = _by_role("Prefill request sent to engine", "Decode request sent to engine")
FINISHED = _by_role(
    "Finish prefill pickle and start response", "Finish decode pickle and start response"
)
TOKENS = (
    "First decode output token",
    "Second decode output token",
    "Third decode output token",
)
ENGINE_RECEIVED = _by_role(
    "Start process request in prefill engine", "Start to dispatch decode request"
)
RUNNING = _by_role("success add to seq groups", "Start append running sequece for decode")
EXECUTE = _by_role("Prefill start execute_model", "Start to send output")

PREFILL_WAITING = "Prefill add waiting queue"
TRY_TO_SCHEDULE = "try to schedule in waiting queue"
PREFILL_BLOCKS = "Prefill get new_blocks"
NO_BLOCKS = "fail to add result of kv insufficient"
PREFILL_EXECUTED = "Prefill done execute_model"
PREFILL_SEND = "Start to send output in prefill stage"
PREFILL_FREE = "Prefill free kv blocks"
NEED_PULL = "Add need pulling sequence"
FINISH_PULL = "Finish pull kv"
PREEMPTED = "Preempted"
RESUMED = "Resumed"
