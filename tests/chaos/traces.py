"""What the program under chaos makes, known to both sides without asking."""

from __future__ import annotations

NAMES = [
    "Prefill",
    "Add to running for prefill",
    "Start process request in prefill engine",
    *(f"work {n}" for n in range(7)),
]
"""The spans of one trace."""
PLACES = {name: place for place, name in enumerate(NAMES)}

Key = int
"""A span: its trace's id (label of the process and a number), then its place in NAMES."""


def key(trace_id: int, name: str) -> Key:
    return trace_id << 8 | PLACES[name]


def keys_of(label: int, traces: int) -> list[Key]:
    """Every span that the process of that label makes with so many traces."""
    ids = [label << 64 | number for number in range(1, traces + 1)]
    return [trace_id << 8 | place for trace_id in ids for place in range(len(NAMES))]


def label_of(key: Key) -> int:
    return key >> 72
