"""Modules with vLLM's names for what the hooks are put on, and nothing in them: what is left
is the cost of the hooks."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any


class Request(SimpleNamespace):
    """A request on its way to the engine, and in it."""

    def __init__(self, number: int) -> None:
        super().__init__(
            request_id=f"chatcmpl-38a4f1c0-5b1e-4c52-9c0d-{number:012x}-1a2b3c4d",
            external_req_id=f"chatcmpl-38a4f1c0-5b1e-4c52-9c0d-{number:012x}",
            trace_headers=None,
            kv_transfer_params=None,
            sampling_params=None,
            num_computed_tokens=64,
            num_prompt_tokens=64,
            prompt_len=64,
            num_cached_tokens=0,
            blocks=(),
        )


class Outputs(SimpleNamespace):
    """What the engine says of a step: `EngineCoreOutputs`."""

    def __init__(self, request_ids: list[str]) -> None:
        outputs = [SimpleNamespace(request_id=each, trace_headers=None) for each in request_ids]
        super().__init__(outputs=outputs, engine_index=0)


class Step(SimpleNamespace):
    """What the scheduler chooses: `SchedulerOutput`."""

    def __init__(self, new: list[str], running: list[str]) -> None:
        super().__init__(
            scheduled_new_reqs=[SimpleNamespace(req_id=each) for each in new],
            num_scheduled_tokens=dict.fromkeys((*new, *running), 1),
            total_num_scheduled_tokens=len(new) + len(running),
        )


class ServerErrorMiddleware:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pass


class OpenAIServingChat:
    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        return request.answer

    async def chat_completion_stream_generator(
        self, request: Any, result_generator: Any, request_id: str
    ) -> AsyncIterator[str]:
        for item in result_generator:
            yield item


class AsyncLLM:
    async def add_request(self, request_id: str, trace_headers: Any = None) -> None:
        pass


class AsyncMPClient:
    async def add_request_async(self, request: Any) -> None:
        pass


class SyncMPClient:
    def add_request(self, request: Any) -> None:
        pass


class OutputProcessor:
    def process_outputs(self, engine_core_outputs: Any, engine_core_timestamp: Any = None) -> Any:
        pass

    def _update_stats_from_finished(
        self, req_state: Any, finish_reason: Any, iteration_stats: Any
    ) -> None:
        pass

    def abort_requests(self, request_ids: Any, internal: bool) -> list[str]:
        return []

    def propagate_error(self, e: Exception) -> None:
        pass


class EngineCore:
    def __init__(self, vllm_config: Any = None) -> None:
        pass

    def preprocess_add_request(self, request: Any) -> Any:
        return request

    def add_request(self, request: Any) -> None:
        pass


class Scheduler:
    requests: dict[str, Any] = {}
    chosen: Any = Step([], [])

    def add_request(self, request: Any) -> None:
        pass

    def schedule(self) -> Any:
        return self.chosen

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        return model_runner_output.made

    def _free_request(self, request: Any) -> None:
        pass

    def _update_from_kv_xfer_finished(self, kv_connector_output: Any) -> None:
        pass


class KVCacheManager:
    def allocate_slots(self, request: Any, num_new_tokens: int) -> Any:
        return request.blocks


class MultiprocExecutor:
    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        return None


class Worker:
    def execute_model(self, scheduler_output: Any) -> Any:
        return None


_MODULES = {
    "starlette.middleware.errors": (ServerErrorMiddleware,),
    "vllm.entrypoints.openai.chat_completion.serving": (OpenAIServingChat,),
    "vllm.v1.engine.async_llm": (AsyncLLM,),
    "vllm.v1.engine.core_client": (AsyncMPClient, SyncMPClient),
    "vllm.v1.engine.output_processor": (OutputProcessor,),
    "vllm.v1.engine.core": (EngineCore,),
    "vllm.v1.core.sched.scheduler": (Scheduler,),
    "vllm.v1.core.kv_cache_manager": (KVCacheManager,),
    "vllm.v1.executor.multiproc_executor": (MultiprocExecutor,),
    "vllm.v1.worker.gpu_worker": (Worker,),
}


def load() -> None:
    """Puts them where the plugin looks for vLLM's own."""
    for name, classes in _MODULES.items():
        module = ModuleType(name)
        for cls in classes:
            setattr(module, cls.__name__, cls)
        sys.modules[name] = module
