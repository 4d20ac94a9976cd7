"""What a request asks for and what the engine says that it has taken, as attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any


class Members:
    """Members of an object, by OpenTelemetry's names; those that a version has."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._last: tuple[type, tuple[str, ...], Callable[[Any], tuple[Any, ...]]] | None = None
        """The last object's class, what it has, and how that is read; replaced at once, for
        other threads."""

    def of(self, what: Any) -> dict[str, Any]:
        """What an object has of them."""
        if (last := self._last) is not None and last[0] is type(what):
            try:
                return dict(zip(last[1], last[2](what)))
            except AttributeError:
                # It lacks what others of its class have.
                pass
        there = {name: member for name, member in self._names.items() if hasattr(what, member)}
        # Two more, that every object has: of a single one it makes no tuple.
        get = attrgetter(*there.values(), *["__class__"] * 2)
        self._last = type(what), tuple(there), get
        return dict(zip(there, get(what)))


# Of `SamplingParams`.
ASKED = Members(
    {
        "gen_ai.request.max_tokens": "max_tokens",
        "gen_ai.request.temperature": "temperature",
        "gen_ai.request.top_p": "top_p",
    }
)
# Of the engine's own `Request`.
REQUEST = Members(
    {
        "gen_ai.usage.input_tokens": "num_prompt_tokens",
        "gen_ai.usage.output_tokens": "num_output_tokens",
        "omnitrace.preemptions": "num_preemptions",
    }
)
# Of `RequestState`, for each prompt.
PROMPT = Members(
    {
        "gen_ai.usage.input_tokens": "prompt_len",
        "gen_ai.usage.cache_read.input_tokens": "num_cached_tokens",
    }
)
# Of `FinishedRequestStats`.
CHOICE = Members(
    {
        "gen_ai.usage.output_tokens": "num_generation_tokens",
        "omnitrace.preemptions": "num_preemptions",
        "gen_ai.latency.e2e": "e2e_latency",
        "gen_ai.latency.time_in_queue": "queued_time",
        "gen_ai.latency.time_in_model_prefill": "prefill_time",
        "gen_ai.latency.time_in_model_decode": "decode_time",
        "gen_ai.latency.time_in_model_inference": "inference_time",
    }
)
# Of several prompts and choices these add up; of the others the last to finish says it.
_SUMS = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.output_tokens",
    "omnitrace.preemptions",
)


def add_up(before: Mapping[str, Any], said: dict[str, Any]) -> None:
    """Adds to what the engine says of a part of a request what it has said of others."""
    for name in _SUMS:
        if (value := before.get(name)) is not None:
            said[name] = value + (said.get(name) or 0)
