"""A program that uses vLLM's engine by itself: prompts at once, then one whose reader leaves.

python offline.py MODEL
"""

from __future__ import annotations

import asyncio
import sys

from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

OPTIONS = {"dtype": "bfloat16", "max_model_len": 256, "max_num_seqs": 16, "enforce_eager": True}
PROMPT = "where does the time of a request go"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# Enough for the engine to notice that nobody wants the rest.
LONG = SamplingParams(max_tokens=200, ignore_eos=True)


def prompts_at_once(model: str) -> None:
    """`LLM` counts its requests."""
    engine = LLM(model, **OPTIONS)
    answers = engine.generate([PROMPT] * 3, SamplingParams(max_tokens=8, ignore_eos=True))
    assert len(answers) == 3
    engine.llm_engine.engine_core.shutdown()


async def reader_leaves(model: str) -> None:
    """`AsyncLLM` has its user's ids."""
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model, **OPTIONS))
    answer = engine.generate(PROMPT, LONG, "left", trace_headers={"traceparent": TRACEPARENT})
    async for _ in answer:
        break
    await answer.aclose()
    engine.shutdown()


if __name__ == "__main__":
    prompts_at_once(sys.argv[1])
    asyncio.run(reader_leaves(sys.argv[1]))
