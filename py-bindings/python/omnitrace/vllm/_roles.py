"""Whether this process, or a request, is for prefill, for decode, or for both.

ROLE says it; else the KV transfer's configuration does (a producer is for prefill, a
consumer for decode); where both are allowed, each request says it in its
``kv_transfer_params``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import _endpoint

PREFILL, DECODE, SERVE = "prefill", "decode", "serve"

_BY_KV_ROLE = {"kv_producer": PREFILL, "kv_consumer": DECODE}

_learnt: str | None = None
"""The role of this process, once it is known for good."""


def of_process() -> str:
    """The role of this process."""
    return _learnt or _of_environment()


def _of_environment() -> str:
    role = os.environ.get("ROLE", "").strip()
    return role if role in {PREFILL, DECODE} else SERVE


def learn(vllm_config: Any) -> None:
    """Takes the role from vLLM's configuration where the environment has none.

    It is left in ROLE: engine and workers are told so, whichever way they are started.
    """
    global _learnt
    if not os.environ.get("ROLE", "").strip():
        transfer = getattr(vllm_config, "kv_transfer_config", None)
        kv_role = getattr(transfer, "kv_role", None)
        os.environ["ROLE"] = _BY_KV_ROLE.get(str(kv_role), SERVE)
    # It is asked for with each request, and to read the environment takes long.
    _learnt = _of_environment()
    _endpoint.settle()


def of_request(request: Any) -> str:
    """The role that a request has here: any of the engine's classes for one, or None."""
    role = of_process()
    if role != SERVE:
        return role
    params = getattr(request, "kv_transfer_params", None)
    if params is None:
        sampling = getattr(request, "sampling_params", None)
        extra = getattr(sampling, "extra_args", None)
        params = extra.get("kv_transfer_params") if isinstance(extra, Mapping) else None
    return of_parameters(params)


def of_parameters(params: Any) -> str:
    """The role that a request with these parameters of KV transfer has here."""
    role = of_process()
    if role == SERVE and params and isinstance(params, Mapping):
        if params.get("do_remote_decode"):
            return PREFILL
        if params.get("do_remote_prefill"):
            return DECODE
    return role
