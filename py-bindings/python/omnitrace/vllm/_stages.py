"""omnitrace's own stages: what hooks may `do` beside recording an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Any

from . import _call, _ends, _roles
from ._api import Api
from ._engine import Engine
from ._native import Native
from ._steps import Models, Steps

_api = Api()
_native = Native(_api)
_engine = Engine()
_models = Models()
steps = Steps(lambda: _engine.step)

WHEN: Mapping[str, Sized] = {
    "outputs received": _api.silent,
    "outputs made": _engine.silent,
}
"""What a stage waits for: while it is empty, there is nothing to do for it."""

STAGES: Mapping[str, Callable[..., Any]] = {
    "learn role": _roles.learn,
    "learn model": _api.configured,
    "call begins": _call.begins,
    "call ends": _api.call_ends,
    "call fails": _api.call_fails,
    "chat received": _api.chat_received,
    "request tokenized": _api.tokenized,
    "chat answered": _api.chat_answered,
    "completion received": _api.completion_received,
    "completion answered": _api.completion_answered,
    "request carries": _call.carries,
    "request sent": _api.sent,
    "outputs received": _api.outputs,
    "request finished": _api.finished,
    "requests aborted": _api.aborted,
    "engine fails": _api.engine_fails,
    "answer begins": _api.begins,
    "answer breaks": _api.breaks,
    "answer streams": _api.streams,
    "answer ends": _api.ends,
    "answer fails": _api.fails,
    "native configured": _native.configured,
    "native prepared": _native.prepared,
    "native finishing": _native.finishing,
    "native span": _native.span,
    "engines end": _ends.engines_end,
    "engine ends": _ends.engine_ends,
    "engine starts": _engine.starts,
    "request arrives": _engine.arrives,
    "request waits": _engine.waits,
    "scheduling": _engine.scheduling,
    "blocks allocated": _engine.blocks,
    "scheduled": _engine.scheduled,
    "request preempted": _engine.preempted,
    "event noted": _engine.event,
    "executing": _engine.executing,
    "executed": _engine.executed,
    "outputs made": _engine.outputs,
    "pull needed": _engine.needs_pull,
    "transfers finished": _engine.transfers,
    "request freed": _engine.freed,
    "step arrives": _engine.step_arrives,
    "step leaves": _engine.step_leaves,
    "step begins": steps.begins,
    "step scheduled": steps.scheduled,
    "step executing": steps.executing,
    "step executed": steps.executed,
    "step ends": steps.ends,
    "step reaches worker": _models.arrives,
    "main model begins": _models.main_begins,
    "main model ends": _models.main_ends,
    "mtp model begins": _models.draft_begins,
    "mtp model ends": _models.draft_ends,
}
