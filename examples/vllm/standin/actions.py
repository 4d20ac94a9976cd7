"""The actions recorded, named exactly as omnitrace's vocabulary has them (sic)."""

from __future__ import annotations

from .options import Role

# API process.
RECEIVED: dict[Role, str] = {
    "prefill": "PD api server get request",
    "decode": "Enter decode to generate",
}
FINISHED: dict[Role, str] = {
    "prefill": "Finish prefill pickle and start response",
    "decode": "Finish decode pickle and start response",
}
DECODE_TOKENS = (
    "First decode output token",
    "Second decode output token",
    "Third decode output token",
)

# Engine process, either role.
ENGINE_RECEIVED: dict[Role, str] = {
    "prefill": "Start process request in prefill engine",
    "decode": "Start to dispatch decode request",
}
TRY_TO_SCHEDULE = "try to schedule in waiting queue"
RUNNING: dict[Role, str] = {
    "prefill": "success add to seq groups",
    "decode": "Start append running sequece for decode",
}

# Engine process, prefill.
PREFILL_WAITING = "Prefill add waiting queue"
PREFILL_BLOCKS = "Prefill get new_blocks"
PREFILL_EXECUTE = "Prefill start execute_model"
PREFILL_EXECUTED = "Prefill done execute_model"
PREFILL_SEND = "Start to send output in prefill stage"
PREFILL_FREE = "Prefill free kv blocks"

# Engine process, decode.
NEED_PULL = "Add need pulling sequence"
START_PULL = "Start pull kv"
FINISH_PULL = "Finish pull kv"
DECODE_SEND = "Start to send output"
