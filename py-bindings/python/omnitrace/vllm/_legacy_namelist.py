"""OmniInfer's own namelists, which users have in PROFILING_NAMELIST today.

Their `entry_operation` and `exit_operation` are Python text that the old tool executes.
Here nothing of it ever is: the built-in hooks record what it would have logged, and what
they do not cover is named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._hooks import Hook

logger = logging.getLogger("omnitrace")

_OPERATIONS = ("entry_operation", "exit_operation", "entry_message", "exit_message")


@dataclass(frozen=True)
class Entry:
    """A function that a legacy namelist names."""

    module: str
    """package.module, or package.module:Class."""
    function: str


def read(file: Path) -> list[Entry] | None:
    """The entries of a legacy namelist; None if the file is something else.

    Raises OSError.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    targets = content.get("targets") if isinstance(content, dict) else None
    if not isinstance(targets, list) or "hooks" in content:
        return None
    if not any(isinstance(each, dict) and _is_legacy(each) for each in targets):
        return None
    named = [each for each in targets if isinstance(each, dict)]
    return [Entry(str(each.get("module")), str(each.get("function_name"))) for each in named]


def _is_legacy(entry: dict[str, Any]) -> bool:
    return "function_name" in entry or any(key in entry for key in _OPERATIONS)


def say(file: Path, entries: Iterable[Entry], built_in: Iterable[Hook]) -> None:
    """Says which entries the built-in hooks do not cover, and what to write instead."""
    covered = {
        target.rpartition(".")[2].rpartition(":")[2] for h in built_in for target in h.targets
    }
    covered |= {hook.on_result for hook in built_in if hook.on_result}
    missed = sorted({f"{e.module}.{e.function}" for e in entries if e.function not in covered})
    if not missed:
        logger.info(
            "PROFILING_NAMELIST=%s is a namelist of the old tools: the built-in hooks record "
            "what it names",
            file,
        )
        return
    logger.warning(
        "PROFILING_NAMELIST=%s is a namelist of the old tools, whose Python text is not "
        "executed; the built-in hooks do not cover %s: name these in a file of hooks "
        "(`hooks: [{target: module:Class.method, action: …, request_id: path}]`)",
        file,
        ", ".join(missed),
    )
