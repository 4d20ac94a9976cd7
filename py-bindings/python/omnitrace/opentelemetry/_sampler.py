"""The SDK's samplers, as far as omnitrace has the same."""

from __future__ import annotations

import re
from typing import Any

_STATIC = {"AlwaysOnSampler": "always_on", "AlwaysOffSampler": "always_off"}
_RATIO = re.compile(r"TraceIdRatioBased\{(.+)\}")
# With the decisions that the standard parent-based samplers take.
_PARENT_BASED = re.compile(
    r"ParentBased\{root:(.+),remoteParentSampled:AlwaysOnSampler,"
    r"remoteParentNotSampled:AlwaysOffSampler,localParentSampled:AlwaysOnSampler,"
    r"localParentNotSampled:AlwaysOffSampler\}"
)


def standard_sampler(sampler: Any) -> tuple[Any, float]:
    """The name and ratio of a standard sampler; any other as it is.

    Raises TypeError for what is no sampler, ValueError for an unknown name.
    """
    if sampler is None or isinstance(sampler, str):
        return sampler, 1.0
    if not hasattr(sampler, "should_sample"):
        raise TypeError(
            f"sampler must be a name such as 'always_on' or an object with should_sample, "
            f"not {type(sampler).__name__}"
        )
    if type(sampler).__module__ != "opentelemetry.sdk.trace.sampling":
        return sampler, 1.0
    description = sampler.get_description()
    prefix = ""
    if found := _PARENT_BASED.fullmatch(description):
        description, prefix = found[1], "parentbased_"
    if found := _RATIO.fullmatch(description):
        return prefix + "traceidratio", float(found[1])
    if description in _STATIC:
        return prefix + _STATIC[description], 1.0
    return sampler, 1.0
