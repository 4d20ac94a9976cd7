"""The stages of a request in the engine and its workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .. import _omnitrace as omnitrace
from . import _carrier, _roles, _usage
from ._actions import (
    ENGINE_RECEIVED,
    EXECUTE,
    FINISH_PULL,
    FINISHED,
    NEED_PULL,
    NO_BLOCKS,
    PREEMPTED,
    PREFILL_BLOCKS,
    PREFILL_EXECUTED,
    PREFILL_FREE,
    PREFILL_SEND,
    PREFILL_WAITING,
    RECEIVED,
    RESUMED,
    RUNNING,
    TOKENS,
    TRY_TO_SCHEDULE,
)

_MOST = 100_000
"""Requests that are kept in mind: one that the engine refuses is never freed."""


class _Request:
    """How far a request is: each stage is recorded once."""

    # Most stay as they are: nothing is stored for them.
    waits = refused = has_blocks = is_running = executing = False
    is_root = False
    """No API process of ours has received it: the engine's part is all that is known."""
    has_spoken = False
    """Of a root: its first output has been made."""
    preemptions = 0
    pulls: Mapping[str, int] = MappingProxyType({})
    """How much another node, or a store, has for it."""

    def __init__(self, role: str) -> None:
        self.role = role


@dataclass(frozen=True)
class _KvCache:
    """What a block holds, for each group of layers that share their blocks."""

    tokens: Sequence[int] = ()
    bytes: Sequence[int] = ()
    """Of one worker: where several share a model, each has as much."""

    @classmethod
    def of(cls, config: Any) -> _KvCache:
        """Reads vLLM's `KVCacheConfig`."""
        groups = [
            (group.kv_cache_spec, len(group.layer_names))
            for group in getattr(config, "kv_cache_groups", ())
        ]
        return cls(
            [spec.block_size for spec, _ in groups],
            [spec.page_size_bytes * layers for spec, layers in groups],
        )

    def of_tokens(self, tokens: int) -> dict[str, int]:
        """The attributes of as many tokens' blocks."""
        return self.taken([-(-tokens // size) for size in self.tokens])

    def taken(self, blocks: Sequence[int]) -> dict[str, int]:
        """The attributes of as many blocks of each group."""
        if len(blocks) != len(self.bytes) or not blocks:
            return {}
        size = sum(count * each for count, each in zip(blocks, self.bytes))
        return {"omnitrace.kv.blocks": sum(blocks), "omnitrace.kv.bytes": size}


def rank(scheduler: Any) -> int | None:
    """Of the engine that has this scheduler, among those that share a model's requests."""
    config = getattr(getattr(scheduler, "vllm_config", None), "parallel_config", None)
    # Engines that know nothing of each other all have the rank 0, but not the same index.
    index: int | None = getattr(config, "data_parallel_index", None)
    return getattr(config, "data_parallel_rank", None) if index is None else index


class Engine:
    """What is known of the requests in this process."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request] = {}
        self._new: list[str] = []
        """Not yet offered to the scheduler."""
        self._computing: set[str] = set()
        """Their prompts are being computed."""
        self.silent: set[str] = set()
        """They have not put anything out, or are about to put out their last."""
        self._last: dict[str, dict[str, Any]] = {}
        """What the ends of some of these will say."""
        self._pulling: list[str] = []
        """Workers are about to fetch their blocks."""
        self._preempted: set[str] = set()
        self._gone: list[str] = []
        self._steps = 0
        self._kv = _KvCache()
        self._rank = 0

    def starts(self, scheduler: Any) -> None:
        """The scheduler knows the KV cache now, and which engine's it is."""
        self._rank = rank(scheduler) or 0
        self._kv = _KvCache.of(getattr(scheduler, "kv_cache_config", None))

    @property
    def step(self) -> int:
        """Number of the last step that was scheduled."""
        return self._steps

    def arrives(self, request: Any) -> None:
        """A request comes from the API process."""
        request_id = request.request_id
        if request_id in self._requests:
            return
        is_root = not _carrier.is_ours(request)
        if is_root:
            _carrier.adopt(request, request_id)
        else:
            _carrier.take(request, request_id)
        role = _roles.of_request(request)
        if len(self._requests) >= _MOST:
            # The engine's other thread may change them at the same time.
            with contextlib.suppress(RuntimeError):
                self._requests.pop(next(iter(self._requests)), None)
        known = self._requests[request_id] = _Request(role)
        if is_root:
            known.is_root = True
            asked = _usage.ASKED.of(getattr(request, "sampling_params", None))
            omnitrace.action(RECEIVED[role], request_id, asked)
        omnitrace.action(ENGINE_RECEIVED[role], request_id)

    def waits(self, request: Any) -> None:
        """A request is put into the scheduler's queue."""
        request_id = request.request_id
        known = self._requests.get(request_id)
        if known is None:
            known = self._requests[request_id] = _Request(_roles.of_request(request))
        # A scheduler may pass it on to the one that it is made of.
        if known.waits:
            return
        known.waits = True
        if known.role == _roles.PREFILL:
            omnitrace.action(PREFILL_WAITING, request_id)
        self._new.append(request_id)
        self.silent.add(request_id)

    def scheduling(self) -> None:
        """The scheduler begins to choose what the next step computes."""
        if self._gone:
            for request_id in self._gone:
                self._requests.pop(request_id, None)
                self._computing.discard(request_id)
                self._preempted.discard(request_id)
                self.silent.discard(request_id)
            self._gone.clear()
        if self._new:
            for request_id in self._new:
                # One whose client has gone by now is not offered.
                if request_id in self._requests:
                    omnitrace.action(TRY_TO_SCHEDULE, request_id)
            self._new.clear()

    def blocks(self, request: Any, blocks: Any) -> None:
        """The scheduler has asked for KV blocks; None: there were not enough."""
        known = self._requests.get(request.request_id)
        if known is None or known.has_blocks:
            return
        if blocks is None:
            if known.role == _roles.PREFILL and not known.refused:
                known.refused = True
                omnitrace.action(NO_BLOCKS, request.request_id)
            return
        known.has_blocks = True
        if known.role == _roles.PREFILL:
            ids: Sequence[Sequence[int]] = getattr(blocks, "get_block_ids", tuple)()
            attributes = self._kv.taken([len(of_group) for of_group in ids])
            omnitrace.action(PREFILL_BLOCKS, request.request_id, attributes)

    def scheduled(self, output: Any) -> None:
        """The scheduler has chosen: what runs for the first time, and for the workers
        the traces of it."""
        self._steps += 1
        new = [request.req_id for request in output.scheduled_new_reqs]
        for request_id in new:
            known = self._requests.get(request_id)
            if known is not None and not known.is_running:
                known.is_running = True
                omnitrace.action(RUNNING[known.role], request_id)
        if self._preempted:
            self._resume(output.num_scheduled_tokens)
        if new or self._pulling:
            output.omnitrace = _carriers((*new, *self._pulling))
            self._pulling.clear()

    def preempted(self, request: Any) -> None:
        """The scheduler takes a running request's blocks away."""
        known = self._requests.get(request.request_id)
        if known is not None and request.request_id not in self._preempted:
            self._preempted.add(request.request_id)
            omnitrace.action(PREEMPTED, request.request_id, None, known.preemptions)

    def event(self, request: Any, event: Any) -> None:
        """vLLM notes something of a request."""
        if getattr(event, "name", "") == "PREEMPTED":
            self.preempted(request)

    def _resume(self, scheduled: Container[str]) -> None:
        for request_id in [r for r in self._preempted if r in scheduled]:
            self._preempted.discard(request_id)
            known = self._requests.get(request_id)
            if known is not None:
                omnitrace.action(RESUMED, request_id, None, known.preemptions)
                known.preemptions += 1

    def executing(self, output: Any) -> None:
        """The model runs."""
        attributes = None
        for request in output.scheduled_new_reqs:
            known = self._requests.get(request.req_id)
            if known is None or known.executing:
                continue
            known.executing = True
            attributes = attributes or {
                "omnitrace.engine.step": self._steps,
                "omnitrace.engine.batch_size": len(output.num_scheduled_tokens),
                "omnitrace.engine.scheduled_tokens": output.total_num_scheduled_tokens,
            }
            omnitrace.action(EXECUTE[known.role], request.req_id, attributes)
            if known.role == _roles.PREFILL:
                self._computing.add(request.req_id)

    def executed(self, scheduler: Any, output: Any, outcome: Any) -> None:
        """The model has run: some prompts are computed."""
        _take(outcome)
        for request_id in [r for r in self._computing if r in output.num_scheduled_tokens]:
            request = scheduler.requests.get(request_id)
            if request is None or request.num_computed_tokens >= request.num_prompt_tokens:
                self._computing.discard(request_id)
                omnitrace.action(PREFILL_EXECUTED, request_id)

    def outputs(self, outputs: Any) -> None:
        """Outputs are about to leave; the first of a request has its trace with it."""
        of_clients: Iterable[Any] = outputs.values() if isinstance(outputs, dict) else (outputs,)
        for of_client in of_clients:
            for output in of_client.outputs:
                request_id = output.request_id
                if request_id in self.silent:
                    self.silent.discard(request_id)
                    known = self._requests.get(request_id)
                    if known is not None and known.role == _roles.PREFILL:
                        omnitrace.action(PREFILL_SEND, request_id)
                    if known is None or not known.is_root:
                        _carrier.put(output, request_id, self._rank)
                    elif known.role != _roles.PREFILL and not known.has_spoken:
                        known.has_spoken = True
                        omnitrace.action(TOKENS[0], request_id)
        if self._last:
            for request_id, said in self._last.items():
                self.silent.discard(request_id)
                self._root_ends(request_id, said)
            self._last.clear()

    def _root_ends(self, request_id: str, said: dict[str, Any]) -> None:
        if (known := self._requests.get(request_id)) is not None:
            omnitrace.action(FINISHED[known.role], request_id, said)

    def needs_pull(self, request: Any, external_tokens: int | None) -> None:
        """Blocks are allocated for what another node, or a store, has computed."""
        known = self._requests.get(request.request_id)
        # What a prefill node has from a store is no transfer from another node. A connector
        # of several connectors and the one of them that is chosen both say it.
        if known is None or known.role == _roles.PREFILL or known.pulls:
            return
        if external_tokens:
            known.pulls = {
                "omnitrace.kv.external_tokens": external_tokens,
                **self._kv.of_tokens(external_tokens),
            }
            omnitrace.action(NEED_PULL, request.request_id)
            self._pulling.append(request.request_id)

    def transfers(self, output: Any) -> None:
        """Transfers of KV blocks are over: received, or fetched by another node."""
        for request_id in getattr(output, "finished_recving", None) or ():
            known = self._requests.get(request_id)
            if known is not None and known.pulls:
                omnitrace.action(FINISH_PULL, request_id, known.pulls)
        # These have ended, so only the process says what they were: an offloading connector
        # of another node sends too, to a store.
        if _roles.of_process() == _roles.PREFILL:
            for request_id in getattr(output, "finished_sending", None) or ():
                omnitrace.action(PREFILL_FREE, request_id)

    def freed(self, request: Any) -> None:
        """A request has ended; its last output may still be to be made."""
        request_id = request.request_id
        self._gone.append(request_id)
        known = self._requests.get(request_id)
        if known is None or not known.is_root:
            return
        reason = str(request.get_finished_reason())
        said = {
            "gen_ai.response.finish_reasons": [reason],
            "omnitrace.engine.rank": self._rank,
            **_usage.REQUEST.of(request),
        }
        if reason == "abort":
            # There will be no output.
            self._root_ends(request_id, {**said, "omnitrace.aborted": True})
        else:
            self._last[request_id] = said
            self.silent.add(request_id)

    def step_arrives(self, output: Any) -> None:
        """A step arrives in a worker, with the traces of what is new in it."""
        _take(output)

    def step_leaves(self, output: Any) -> None:
        """The outcome of a step leaves a worker, with the traces of what it has fetched."""
        # Older versions have it in the outcome itself.
        of_connector = getattr(output, "kv_connector_output", output)
        if fetched := getattr(of_connector, "finished_recving", None):
            output.omnitrace = _carriers(fetched)


def _carriers(request_ids: Iterable[str]) -> tuple[int, dict[str, dict[str, str]]]:
    """What other processes of this node need of these requests, and whose it is."""
    carriers: dict[str, dict[str, str]] = {}
    for request_id in request_ids:
        carriers[request_id] = {}
        omnitrace.inject(carriers[request_id], request_id)
    return os.getpid(), carriers


def _take(message: Any) -> None:
    """Takes it out of a message, which may be from this process."""
    process, carriers = getattr(message, "omnitrace", None) or (0, {})
    if carriers and process != os.getpid():
        for request_id, carrier in carriers.items():
            omnitrace.extract(carrier, request_id)
