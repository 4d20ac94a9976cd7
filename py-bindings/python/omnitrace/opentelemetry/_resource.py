"""What describes the process: there is one resource, whatever the number of providers."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from .._omnitrace import _describe_process, _process_description

logger = logging.getLogger("omnitrace")

# What omnitrace says of itself, and what is another's in a forked child.
_OURS = ("telemetry.sdk.", "process.pid")

_lock = threading.Lock()
_described: weakref.ref[Any] | None = None
_attributes: dict[str, Any] = {}


def describe_process(provider: Any, resource: Any) -> None:
    """Adds the attributes of a provider's resource to those of the process."""
    global _described, _attributes
    attributes = {
        key: value for key, value in dict(resource.attributes).items() if not _is_ours(key, value)
    }
    with _lock:
        other = _described() if _described else None
        if other is not None and attributes != _attributes:
            logger.warning(
                "a second TracerProvider has another resource: from now on the spans of "
                "both are described with its attributes; a process has one resource"
            )
        unchanged = attributes == _attributes
        _described, _attributes = weakref.ref(provider), attributes
    if not unchanged:
        _describe_process(attributes)


def forget(provider: Any) -> None:
    """A provider that has been shut down has no say any more."""
    global _described
    with _lock:
        if _described and _described() is provider:
            _described = None


def of_process() -> Mapping[str, Any]:
    """All that omnitrace says of the process."""
    return _process_description()


def _is_ours(key: str, value: Any) -> bool:
    # The SDK's word for a service that nobody has named.
    unnamed = key == "service.name" and str(value).startswith("unknown_service")
    return unnamed or key.startswith(_OURS)
