"""The final counters of a process, for tests that balance them."""

from __future__ import annotations

import json
import os
from typing import Literal

import omnitrace

from .options import Options


def close(options: Options, process: Literal["api", "engine"]) -> None:
    """End recording; with ``--stats-dir`` leave the counters there as a JSON line."""
    omnitrace.shutdown()
    if options.stats_dir is None:
        return
    options.stats_dir.mkdir(parents=True, exist_ok=True)
    file = options.stats_dir / f"{options.role}-{process}-{os.getpid()}.json"
    file.write_text(json.dumps(omnitrace.stats()) + "\n")
